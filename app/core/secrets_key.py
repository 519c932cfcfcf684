"""`SECRETS_KEY`, and the file that stands in for it in development."""

import base64
import secrets
from pathlib import Path

from app.core.key_file import load_or_create_key_file

_KEY_BYTES = 32


def parse_secrets_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys of `SECRETS_KEY`, comma-separated base64 of 32 bytes each.

    Raises `ValueError`, with a sentence that holds nothing of the text.
    """
    keys: list[bytes] = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            key = base64.b64decode(each, validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise ValueError(
                "takes keys of 32 bytes in base64, separated by commas (make one with "
                "`openssl rand -base64 32`)"
            )
        keys.append(key)
    return tuple(keys)


def load_or_create_secrets_keys(path: Path) -> tuple[bytes, ...]:
    """Return the keys in the file `path`, making one at first.

    Raises `StartRefused` where the file is not safe or has no key, and `OSError`.
    """

    def make() -> str:
        return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()

    text = load_or_create_key_file(path, make, what="secrets", setting="SECRETS_KEY")
    return parse_secrets_keys(text)
