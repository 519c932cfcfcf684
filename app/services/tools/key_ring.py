"""The keys that seal secrets, loaded at the first need."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from app.core.config import AppEnv, Settings
from app.core.errors import AppError, StartRefused
from app.core.private_files import make_private_folder
from app.core.sealed_errors import secrets_key_missing
from app.core.secrets_key import load_or_create_secrets_keys

if TYPE_CHECKING:
    from app.core.sealed import Sealer


SECRETS_KEY_FILE = "secrets.key"
"""In the data folder, where `SECRETS_KEY` is not set in development."""


class KeyRing:
    """Makes the `Sealer` from what `load_keys` returns, when it is first used.

    A server without secrets thus neither imports cryptography nor makes a key file.
    """

    def __init__(self, load_keys: Callable[[], Sequence[bytes]]) -> None:
        self._load_keys = load_keys
        self._sealer: Sealer | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the keys of `SECRETS_KEY`; in development, without it, those of a file."""

        def load() -> tuple[bytes, ...]:
            if settings.secrets_keys or settings.app_env is AppEnv.PRODUCTION:
                return settings.secrets_keys
            make_private_folder(settings.data_dir)
            return load_or_create_secrets_keys(settings.data_dir / SECRETS_KEY_FILE)

        return cls(load)

    def sealer(self) -> "Sealer":
        """Return the sealer. Raises `SecretsKeyMissing` where there is no key."""
        if self._sealer is None:
            from app.core.sealed import Sealer

            try:
                keys = self._load_keys()
            except (OSError, StartRefused) as error:
                missing: AppError = secrets_key_missing()
                raise missing from error
            if not keys:
                raise secrets_key_missing()
            self._sealer = Sealer(keys)
        return self._sealer
