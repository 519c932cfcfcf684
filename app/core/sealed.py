"""Authenticated encryption of secrets: AES-256-GCM with a random nonce for each value.

A sealed value is the byte 1, 8 bytes that name the key, the nonce of 12 bytes, and the ciphertext
with its tag. It is bound to a workspace and a name: it cannot be opened as another's.
"""

import hashlib
import secrets
from collections.abc import Sequence
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.core.sealed_errors import SealBroken, secrets_key_missing

_FORMAT = b"\x01"
_KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_PURPOSE = b"agent-platform sealed value\0"


class Sealer:
    """Seals with the first of `keys` and opens with all of them."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {_id_of(key): AESGCM(key) for key in keys}
        self.key_id = _id_of(keys[0]).hex()
        """Names the key that seals; it says nothing about the key itself."""
        self.key_ids = frozenset(each.hex() for each in self._ciphers)
        """Of the keys that open."""

    def seal(self, value: bytes, workspace_id: UUID, name: str) -> bytes:
        """Encrypt `value` for this workspace and name."""
        head = _FORMAT + bytes.fromhex(self.key_id)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = self._ciphers[bytes.fromhex(self.key_id)]
        return head + nonce + cipher.encrypt(nonce, value, _bound_to(head, workspace_id, name))

    def open(self, sealed: bytes, workspace_id: UUID, name: str) -> bytes:
        """Decrypt what `seal` returned for the same workspace and name.

        Raises `SecretsKeyMissing` where no key opens it, and `SealBroken`.
        """
        head, rest = sealed[: 1 + _KEY_ID_BYTES], sealed[1 + _KEY_ID_BYTES :]
        cipher = self._ciphers.get(head[1:])
        if cipher is None:
            raise secrets_key_missing()
        try:
            bound = _bound_to(head, workspace_id, name)
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            raise SealBroken(f"the sealed value {name!r} cannot be opened") from None


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"agent-platform key id\0" + key).digest()[:_KEY_ID_BYTES]


def _bound_to(head: bytes, workspace_id: UUID, name: str) -> bytes:
    return _PURPOSE + head + workspace_id.bytes + name.encode()
