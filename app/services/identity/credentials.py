"""Keys and session tokens as text: `ap_<8-char id>_<43 base62><6-char checksum>`.

The checksum finds typing mistakes, and lets secret scanners know a key without asking us.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from enum import StrEnum

from app.core.security import Presented

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 43  # 256 bits
_CHECKSUM_LENGTH = 6
_FORM = re.compile(rb"(ap|st)_([0-9A-Za-z]{8})_[0-9A-Za-z]{43}([0-9A-Za-z]{6})")


class CredentialKind(StrEnum):
    """What the text begins with."""

    KEY = "ap"
    SESSION_TOKEN = "st"  # noqa: S105  # a prefix


@dataclass(frozen=True, slots=True)
class Credential:
    """A new key or token: `text` is shown once, and `digest` is what is stored."""

    id: str
    text: str = field(repr=False)
    digest: bytes = field(repr=False)


def new_credential(kind: CredentialKind, credential_id: str | None = None) -> Credential:
    """Make a key or token, of a new id where none is given."""
    credential_id = credential_id or _random(8)
    body = f"{kind}_{credential_id}_{_random(_SECRET_LENGTH)}"
    text = body + _checksum(body.encode())
    return Credential(credential_id, text, _digest(text.encode()))


def parse(text: bytes) -> Presented | None:
    """Read what a request came with; `None` where it cannot be one of ours."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    prefix, credential_id, checksum = form.groups()
    if _checksum(text[:-_CHECKSUM_LENGTH]).encode() != checksum:
        return None
    return Presented(prefix.decode(), credential_id.decode(), _digest(text))


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
