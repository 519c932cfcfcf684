"""Errors of sealed values; importing them does not import cryptography."""

from app.core.errors import AppError, ErrorKind


class SecretsKeyMissing(AppError):
    """The key of the stored secrets is missing."""

    kind = ErrorKind.UNAVAILABLE
    code = "secrets-key-missing"


class SealBroken(Exception):
    """A sealed value was changed, or belongs to another workspace or name."""


def secrets_key_missing() -> SecretsKeyMissing:
    """Create the error of a server that lacks the key."""
    return SecretsKeyMissing(
        "The server has no SECRETS_KEY that opens the stored secrets: ask its operator.",
        retry_after_seconds=60,
    )
