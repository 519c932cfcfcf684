"""The text format of keys and session tokens: `ap_<8-char id>_<43 base62><6-char checksum>`.

The checksum detects typing mistakes, and lets secret scanners recognize a key offline.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from enum import StrEnum

from app.core.security import PresentedCredential

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 43  # 256 bits
_CHECKSUM_LENGTH = 6
_FORM = re.compile(rb"(ap|st|cs|ek)_([0-9A-Za-z]{8})_[0-9A-Za-z]{43}([0-9A-Za-z]{6})")


class CredentialKind(StrEnum):
    """The kind of a credential; the value is the prefix of its text."""

    KEY = "ap"
    SESSION_TOKEN = "st"  # noqa: S105  # a prefix
    CONSOLE_SESSION = "cs"
    CLIENT_SECRET = "ek"  # noqa: S105  # a prefix; OpenAI's clients in browsers insist on it


@dataclass(frozen=True, slots=True)
class Credential:
    """A new key or token: `text` is shown once, and `digest` is what is stored."""

    id: str
    text: str = field(repr=False)
    digest: bytes = field(repr=False)


def new_credential(kind: CredentialKind, credential_id: str | None = None) -> Credential:
    """Create a key or token; with a new id where `credential_id` is not given."""
    credential_id = credential_id or _random(8)
    body = f"{kind}_{credential_id}_{_random(_SECRET_LENGTH)}"
    text = body + _checksum(body.encode())
    return Credential(credential_id, text, _digest(text.encode()))


def parse(text: bytes) -> PresentedCredential | None:
    """Parse the credential of a request; `None` where format or checksum is wrong."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    prefix, credential_id, checksum = form.groups()
    if _checksum(text[:-_CHECKSUM_LENGTH]).encode() != checksum:
        return None
    return PresentedCredential(prefix.decode(), credential_id.decode(), _digest(text))


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(body: bytes) -> str:
    rest, digits = zlib.crc32(body), ""
    for _ in range(_CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


def _digest(text: bytes) -> bytes:
    # No slow hash: 256 random bits cannot be guessed, and this runs for every request.
    return hashlib.sha256(text).digest()
