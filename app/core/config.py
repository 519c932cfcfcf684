"""Everything the platform reads from its environment, validated once at start."""

import re
import sys
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.database_url import DatabaseUrl
from app.core.limits import Limits
from app.core.price_list import PriceList, WrongPrices, parse_prices


class AppEnv(StrEnum):
    """Where the process runs. `DEVELOPMENT` serves its own machine without a key."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Provider(StrEnum):
    """Who answers for a part: `AUTO` means OpenAI where a key or base URL is set."""

    AUTO = "auto"
    OPENAI = "openai"
    EMBEDDED = "embedded"


class EmbeddedModels(StrEnum):
    """Which set of embedded models: about 850 MB, or about 390 MB for small machines."""

    DEFAULT = "default"
    SMALL = "small"


_ADDRESS = re.compile(
    r"https?://([^/?#@\s]*@)?([^/?#@\s:\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?([/?#]|$)"
)


def _http_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    # The port's own `ValueError` is above 65535.
    if _ADDRESS.match(url) is None or urlsplit(url).port == 0:
        raise ValueError("must name a server, as https://host or http://host:port")
    return url.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]

_HIGHEST_LIMIT = 10**12
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")
OPENAI_URL = "https://api.openai.com/v1"


class Settings(BaseSettings):
    """One field per environment variable of the same name in capitals.

    Durations end in `_seconds`, sizes in `_bytes`, counts in `_limit` or `_count`.
    Secrets are `SecretStr`, so a settings object can be logged. An empty variable counts
    as not set.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    app_env: AppEnv = AppEnv.DEVELOPMENT
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    data_dir: Path = Path("data")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    admin_api_key: SecretStr | None = Field(default=None, min_length=16)
    supabase_url: HttpUrl | None = None
    supabase_jwt_secret: SecretStr | None = Field(default=None, min_length=32)
    supabase_jwt_audience: str = Field(default="authenticated", min_length=1)
    cors_origins: str | None = None

    database_url: SecretStr | None = None
    database_pool_size: int = Field(default=10, ge=2, le=1000)

    chat_provider: Provider = Provider.AUTO
    stt_provider: Provider = Provider.AUTO
    tts_provider: Provider = Provider.AUTO
    openai_api_key: SecretStr | None = None
    openai_base_url: HttpUrl = OPENAI_URL
    stt_base_url: HttpUrl | None = None
    stt_api_key: SecretStr | None = None
    tts_base_url: HttpUrl | None = None
    tts_api_key: SecretStr | None = None
    chat_model: str = Field(default="gpt-6-luna", min_length=1)
    chat_context_tokens: int = Field(default=128_000, ge=512)
    stt_model: str = Field(default="gpt-transcribe", min_length=1)
    tts_model: str = Field(default="gpt-realtime-2.1-mini", min_length=1)
    tts_voice: str = Field(default="alloy", min_length=1, max_length=64)

    audio_retention_days: int = Field(default=7, ge=0, le=36_500)

    prices: str | None = None
    prices_file: Path | None = None
    limit_requests_per_minute: int = Field(default=600, ge=0, le=_HIGHEST_LIMIT)
    limit_concurrent_turns: int = Field(default=64, ge=0, le=_HIGHEST_LIMIT)
    limit_upload_minutes_per_day: int = Field(default=600, ge=0, le=_HIGHEST_LIMIT)
    limit_tokens_per_day: int = Field(default=5_000_000, ge=0, le=_HIGHEST_LIMIT)
    limit_usd_per_day: Decimal = Field(default=Decimal(50), ge=0, le=1_000_000)

    embedded_models: EmbeddedModels = EmbeddedModels.DEFAULT
    embedded_threads: int | None = Field(default=None, ge=1, le=256)
    models_dir: Path | None = None

    @model_validator(mode="after")
    def _refuse_open_production(self) -> Self:
        if self.app_env is AppEnv.PRODUCTION and self.admin_api_key is None:
            raise ValueError(
                "ADMIN_API_KEY must be set when APP_ENV=production: a secret of at least 16 "
                "characters that clients send as `Authorization: Bearer ...` "
                "(make one with `openssl rand -hex 32`)"
            )
        return self

    @model_validator(mode="after")
    def _refuse_secret_of_nobody(self) -> Self:
        if self.supabase_jwt_secret and self.supabase_url is None:
            raise ValueError(
                "SUPABASE_JWT_SECRET needs SUPABASE_URL, which tokens must name as their issuer"
            )
        return self

    @model_validator(mode="after")
    def _refuse_wrong_origins(self) -> Self:
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "CORS_ORIGINS takes origins such as https://app.example.com, separated by "
                    "commas; each must be named"
                )
        return self

    @model_validator(mode="after")
    def _refuse_wrong_database_url(self) -> Self:
        _ = self.parsed_database_url
        return self

    @model_validator(mode="after")
    def _refuse_wrong_prices(self) -> Self:
        _ = self.price_list
        return self

    @property
    def price_list(self) -> PriceList:
        """The prices of `PRICES`, and those of `PRICES_FILE` for models that it does not name."""
        of_file: PriceList = {}
        try:
            if self.prices_file:
                of_file = parse_prices(self.prices_file.read_bytes())
        except (OSError, WrongPrices) as error:
            why = "cannot be read" if isinstance(error, OSError) else str(error)
            raise ValueError(f"PRICES_FILE {why}") from None
        try:
            return {**of_file, **(parse_prices(self.prices) if self.prices else {})}
        except WrongPrices as error:
            raise ValueError(f"PRICES {error}") from None

    @property
    def limits(self) -> Limits:
        """What a caller may use whose key has no limits of its own."""
        return Limits(
            self.limit_requests_per_minute,
            self.limit_concurrent_turns,
            self.limit_upload_minutes_per_day,
            self.limit_tokens_per_day,
            self.limit_usd_per_day,
        )

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The sites whose pages may call the API from a browser."""
        named = (self.cors_origins or "").split(",")
        return tuple(origin.strip().rstrip("/") for origin in named if origin.strip())

    @property
    def parsed_database_url(self) -> DatabaseUrl:
        """`DATABASE_URL` as the driver needs it; a file in `DATA_DIR` where it is not set."""
        return DatabaseUrl.parse(self.database_url, self.data_dir)

    @property
    def chat_is_embedded(self) -> bool:
        """True where the embedded engine answers."""
        return self._is_embedded(self.chat_provider, own_url=None)

    @property
    def stt_is_embedded(self) -> bool:
        """True where the embedded engine transcribes."""
        return self._is_embedded(self.stt_provider, own_url=self.stt_base_url)

    @property
    def tts_is_embedded(self) -> bool:
        """True where the embedded engine speaks."""
        return self._is_embedded(self.tts_provider, own_url=self.tts_base_url)

    @property
    def needs_embedded_engine(self) -> bool:
        """True where any part is embedded."""
        return self.chat_is_embedded or self.stt_is_embedded or self.tts_is_embedded

    def _is_embedded(self, provider: Provider, *, own_url: str | None) -> bool:
        if provider is not Provider.AUTO:
            return provider is Provider.EMBEDDED
        reachable = self.openai_api_key or own_url or self.openai_base_url != OPENAI_URL
        return not reachable


def load_settings() -> Settings:
    """Read the environment and `.env`; end the process with one sentence per wrong value."""
    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0]).upper() if fault["loc"] else ""
            message = fault["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"Wrong setting: {name + ' ' if name else ''}{message}.\n")
        sys.stderr.write("See .env.example for every setting and its default.\n")
        raise SystemExit(2) from None
