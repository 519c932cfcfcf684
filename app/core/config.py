"""The settings, read from environment variables and `.env` and validated once at start."""

import os
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from app.core.capabilities import Capability
from app.core.database.url import DatabaseUrl
from app.core.limits import KeyLimits, Limits
from app.core.logging import LogFormat
from app.core.prices import InvalidPrices, PriceList, parse_prices
from app.core.secrets_key import parse_secrets_keys
from app.core.unknown_settings import unknown_settings


class AppEnv(StrEnum):
    """The deployment mode. `DEVELOPMENT` serves requests from loopback without a key."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Provider(StrEnum):
    """The provider of a capability.

    `AUTO` means `OPENAI` if a key or a base URL is set, otherwise `EMBEDDED`.
    """

    AUTO = "auto"
    OPENAI = "openai"
    EMBEDDED = "embedded"


class EmbeddedModels(StrEnum):
    """Which set of embedded models: for answers, or for tests and small machines."""

    DEFAULT = "default"
    SMALL = "small"


class LogLevel(StrEnum):
    """The least severe messages of the program that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_ADDRESS = re.compile(
    r"https?://([^/?#@\s]*@)?([^/?#@\s:\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?([/?#]|$)"
)


def _http_url(url: str) -> str:
    url = url.strip()
    if not url.isprintable():
        raise ValueError("holds an invisible character; copy it again")
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    # `port` raises `ValueError` itself for numbers above 65535.
    if _ADDRESS.match(url) is None or urlsplit(url).port == 0:
        raise ValueError("must name a server, for example https://host or http://host:port")
    return url.rstrip("/")


def _header_secret(secret: SecretStr | None) -> SecretStr | None:
    """Trim what a copied secret brought along; refuse what no HTTP header can carry."""
    if secret is None:
        return None
    value = secret.get_secret_value().strip()
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ValueError(
            "holds a space or a character that no HTTP header can carry, perhaps an invisible one; "
            "copy it again"
        )
    return SecretStr(value) if value else None


def _model_name(name: str | None) -> str | None:
    if name is None:
        return None
    name = name.strip()
    if not name:
        raise ValueError("must name a model")
    if not name.isprintable():
        raise ValueError("holds an invisible character; copy it again")
    return name


HttpUrl = Annotated[str, AfterValidator(_http_url)]
HeaderSecret = Annotated[SecretStr | None, AfterValidator(_header_secret)]
ModelName = Annotated[str, AfterValidator(_model_name)]

_HIGHEST_LIMIT = 10**12
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")
OPENAI_HOST = "api.openai.com"
OPENAI_URL = f"https://{OPENAI_HOST}/v1"
_REALTIME_MODEL = "gpt-realtime-2.1-mini"
_COMPATIBLE_SPEECH_MODEL = "tts-1"


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")


class Settings(BaseSettings):
    """All settings: each field is read from the environment variable of its name in capitals.

    Durations end in `_seconds`, sizes in `_bytes`, counts in `_limit` or `_count`.
    Secrets are `SecretStr`, so that a settings object can be logged. An empty variable
    counts as not set.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    app_env: AppEnv = AppEnv.DEVELOPMENT
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    data_dir: Path = Path("data")
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat | None = None
    access_log: bool = True
    metrics_token: SecretStr | None = Field(default=None, min_length=16)
    otel_exporter_otlp_endpoint: HttpUrl | None = None
    otel_exporter_otlp_headers: SecretStr | None = None
    otel_service_name: str = Field(default="agent-platform", min_length=1, max_length=200)
    admin_api_key: SecretStr | None = Field(default=None, min_length=16)
    supabase_url: HttpUrl | None = None
    supabase_jwt_secret: SecretStr | None = Field(default=None, min_length=32)
    supabase_jwt_audience: str = Field(default="authenticated", min_length=1)
    cors_origins: str | None = None
    secrets_key: SecretStr | None = None
    tools_allowed_addresses: str | None = None
    tools_proxy: SecretStr | None = None
    mcp_servers_file: Path | None = None

    database_url: SecretStr | None = None
    database_pool_size: int = Field(default=10, ge=2, le=1000)

    chat_provider: Provider = Provider.AUTO
    stt_provider: Provider = Provider.AUTO
    tts_provider: Provider = Provider.AUTO
    openai_api_key: HeaderSecret = None
    openai_base_url: HttpUrl = OPENAI_URL
    stt_base_url: HttpUrl | None = None
    stt_api_key: HeaderSecret = None
    tts_base_url: HttpUrl | None = None
    tts_api_key: HeaderSecret = None
    chat_model: ModelName = "gpt-6-luna"
    chat_context_tokens: int = Field(default=128_000, ge=512)
    context_compaction: bool = False
    chat_model_vision: bool | None = None
    chat_first_byte_seconds: int = Field(default=120, ge=1, le=3600)
    stt_model: ModelName = "gpt-transcribe"
    tts_model: ModelName | None = None
    tts_voice: str = Field(default="alloy", min_length=1, max_length=64)

    files_dir: Path | None = None
    audio_retention_days: int = Field(default=7, ge=0, le=36_500)
    tool_result_retention_days: int = Field(default=30, ge=0, le=36_500)

    prices: str | None = None
    prices_file: Path | None = None
    limit_requests_per_minute: int = Field(default=600, ge=0, le=_HIGHEST_LIMIT)
    limit_concurrent_turns: int = Field(default=64, ge=0, le=_HIGHEST_LIMIT)
    limit_upload_minutes_per_day: int = Field(default=600, ge=0, le=_HIGHEST_LIMIT)
    limit_tokens_per_day: int = Field(default=5_000_000, ge=0, le=_HIGHEST_LIMIT)
    limit_usd_per_day: Decimal = Field(default=Decimal(50), ge=0, le=1_000_000)

    limit_user_requests_per_minute: int = Field(default=120, ge=0, le=_HIGHEST_LIMIT)
    limit_user_concurrent_turns: int = Field(default=8, ge=0, le=_HIGHEST_LIMIT)
    limit_user_upload_minutes_per_day: int = Field(default=60, ge=0, le=_HIGHEST_LIMIT)
    limit_user_tokens_per_day: int = Field(default=500_000, ge=0, le=_HIGHEST_LIMIT)
    limit_user_usd_per_day: Decimal = Field(default=Decimal(5), ge=0, le=1_000_000)
    limit_workspace_tokens_per_day: int = Field(default=0, ge=0, le=_HIGHEST_LIMIT)
    limit_workspace_usd_per_day: Decimal = Field(default=Decimal(0), ge=0, le=1_000_000)
    limit_stored_mb_per_workspace: int = Field(default=10_000, ge=0, le=_HIGHEST_LIMIT)
    limit_live_lines: int = Field(default=200, ge=1, le=_HIGHEST_LIMIT)
    limit_live_lines_per_key: int = Field(default=8, ge=1, le=_HIGHEST_LIMIT)

    embedded_models: EmbeddedModels = EmbeddedModels.DEFAULT
    embedded_threads: int | None = Field(default=None, ge=1, le=256)
    models_dir: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _ignore_case_of_words(cls, values: Any) -> Any:  # noqa: ANN401  # as pydantic passes it
        """Accept `LOG_LEVEL=DEBUG`: letter case and spaces around do not matter in a choice."""
        for name, field in cls.model_fields.items():
            is_choice = isinstance(field.annotation, type) and issubclass(field.annotation, StrEnum)
            if is_choice and isinstance(values.get(name), str):
                values[name] = values[name].strip().lower()
        return values

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
    def _refuse_jwt_secret_without_issuer(self) -> Self:
        if self.supabase_jwt_secret and self.supabase_url is None:
            raise ValueError(
                "SUPABASE_JWT_SECRET needs SUPABASE_URL: tokens must name that URL as their issuer"
            )
        return self

    @model_validator(mode="after")
    def _refuse_invalid_origins(self) -> Self:
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "CORS_ORIGINS takes origins such as https://app.example.com, separated by "
                    "commas; wildcards are not supported"
                )
        return self

    @model_validator(mode="after")
    def _refuse_what_cannot_be_parsed(self) -> Self:
        _ = self.secrets_keys, self.parsed_database_url, self.price_list
        return self

    @property
    def chosen_log_format(self) -> LogFormat:
        """`LOG_FORMAT`; without it JSON in production, and text for people in development."""
        if self.log_format:
            return self.log_format
        return LogFormat.JSON if self.app_env is AppEnv.PRODUCTION else LogFormat.TEXT

    @property
    def price_list(self) -> PriceList:
        """The prices in `PRICES_FILE` and `PRICES`; for a model in both, `PRICES` counts."""
        file_prices: PriceList = {}
        try:
            if self.prices_file:
                file_prices = parse_prices(self.prices_file.read_bytes())
        except (OSError, InvalidPrices) as error:
            reason = "cannot be read" if isinstance(error, OSError) else str(error)
            raise ValueError(f"PRICES_FILE {reason}") from None
        try:
            return {**file_prices, **(parse_prices(self.prices) if self.prices else {})}
        except InvalidPrices as error:
            raise ValueError(f"PRICES {error}") from None

    @property
    def key_limits(self) -> KeyLimits:
        """What a caller, and an end user, may use whose key has no limits of its own."""
        return KeyLimits(
            Limits(
                self.limit_requests_per_minute,
                self.limit_concurrent_turns,
                self.limit_upload_minutes_per_day,
                self.limit_tokens_per_day,
                self.limit_usd_per_day,
            ),
            Limits(
                self.limit_user_requests_per_minute,
                self.limit_user_concurrent_turns,
                self.limit_user_upload_minutes_per_day,
                self.limit_user_tokens_per_day,
                self.limit_user_usd_per_day,
            ),
        )

    @property
    def workspace_limits(self) -> Limits:
        """What everybody in a workspace may use together, apart from the admin."""
        return Limits(
            0, 0, 0, self.limit_workspace_tokens_per_day, self.limit_workspace_usd_per_day
        )

    @property
    def secrets_keys(self) -> tuple[bytes, ...]:
        """The keys of `SECRETS_KEY`; the first seals, all open."""
        if self.secrets_key is None:
            return ()
        try:
            return parse_secrets_keys(self.secrets_key.get_secret_value())
        except ValueError as error:
            raise ValueError(f"SECRETS_KEY {error}") from None

    @property
    def limits_dollars(self) -> bool:
        """True where a limit in US dollars is set."""
        return bool(
            self.limit_usd_per_day
            or self.limit_user_usd_per_day
            or self.limit_workspace_usd_per_day
        )

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins whose pages may call the API from a browser, from `CORS_ORIGINS`."""
        origins = (self.cors_origins or "").split(",")
        return tuple(origin.strip().rstrip("/") for origin in origins if origin.strip())

    @property
    def parsed_database_url(self) -> DatabaseUrl:
        """`DATABASE_URL` in the form that the driver needs; by default a file in `DATA_DIR`."""
        return DatabaseUrl.parse(self.database_url, self.data_dir)

    @property
    def chosen_providers(self) -> Mapping[Capability, Provider]:
        """The provider of each capability, with `AUTO` resolved to one of the others."""
        configured = {
            Capability.CHAT: (self.chat_provider, None),
            Capability.STT: (self.stt_provider, self.stt_base_url),
            Capability.TTS: (self.tts_provider, self.tts_base_url),
        }
        return {
            capability: self._resolved(provider, own_url=own_url)
            for capability, (provider, own_url) in configured.items()
        }

    @property
    def speech_model(self) -> str:
        """`TTS_MODEL`, or the default of the server that speaks: few others have Realtime."""
        if self.tts_model:
            return self.tts_model
        is_openai = _is_openai(self.tts_base_url or self.openai_base_url)
        return _REALTIME_MODEL if is_openai else _COMPATIBLE_SPEECH_MODEL

    @property
    def has_vision(self) -> bool:
        """`CHAT_MODEL_VISION`; without it, whether OpenAI serves, whose models see images."""
        is_openai = _is_openai(self.openai_base_url)
        return is_openai if self.chat_model_vision is None else self.chat_model_vision

    @property
    def embedded_capabilities(self) -> frozenset[Capability]:
        """The capabilities whose provider is the embedded engine."""
        return frozenset(
            capability
            for capability, provider in self.chosen_providers.items()
            if provider is Provider.EMBEDDED
        )

    def _resolved(self, provider: Provider, *, own_url: str | None) -> Provider:
        if provider is not Provider.AUTO:
            return provider
        is_configured = self.openai_api_key or own_url or self.openai_base_url != OPENAI_URL
        return Provider.OPENAI if is_configured else Provider.EMBEDDED


def setting_faults(error: ValidationError) -> list[str]:
    """Return a sentence, without its full stop, for each wrong value."""
    faults: list[str] = []
    for fault in error.errors():
        name = str(fault["loc"][0]).upper() if fault["loc"] else ""
        message = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{name} {message}".strip())
    return faults


def load_settings(*, warn: bool = True) -> Settings:
    """Read the environment and `.env`; end the process with one sentence per wrong value.

    Unless `warn` is false, names that are not settings are reported on standard error, once.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in setting_faults(error):
            sys.stderr.write(f"Invalid setting: {fault}.\n")
        sys.stderr.write("See .env.example for every setting and its default.\n")
        raise SystemExit(2) from None
    if warn:
        for warning in unknown_settings(
            Settings.model_fields, DotEnvSettingsSource(Settings).env_vars, os.environ
        ):
            if warning not in _reported:
                _reported.add(warning)
                sys.stderr.write(f"{warning}\n")
    return settings


_reported: set[str] = set()
"""A process may read its settings more than once."""
