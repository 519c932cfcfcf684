"""What `GET /system` says: version, database, providers and their state, limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from app import __version__
from app.core.capabilities import Capability
from app.core.config import Settings
from app.core.database.revision import REVISION
from app.schemas.system import DatabaseState, ProviderState, SystemLimits, SystemRead
from app.services.resilience import CircuitBreakers, ProviderTarget
from app.services.turns.retention import IDEMPOTENCY_KEY_RETENTION
from app.services.voice import UPLOAD_BYTES_LIMIT

_OPENAI_HOST = "api.openai.com"


@dataclass(frozen=True, slots=True)
class SystemReport:
    """Knows the parts of this server; one instance serves the process."""

    settings: Settings
    targets: Mapping[Capability, ProviderTarget]
    breakers: Mapping[Capability, CircuitBreakers]
    announced_ends: Mapping[str, date]
    """When OpenAI shuts models down."""

    def read(self) -> SystemRead:
        """Return the state of this server."""
        settings = self.settings
        return SystemRead(
            version=__version__,
            environment=settings.app_env,
            database=DatabaseState(
                kind="sqlite" if settings.parsed_database_url.is_sqlite else "postgresql",
                revision=REVISION,
            ),
            providers=[
                ProviderState(
                    capability=capability,
                    host=target.host,
                    model=target.model,
                    shutdown_date=self._end_of(target),
                    is_failing=self.breakers[capability].is_open,
                )
                for capability, target in self.targets.items()
            ],
            default_voice=settings.tts_voice,
            limits=SystemLimits(
                upload_bytes=UPLOAD_BYTES_LIMIT,
                audio_retention_days=settings.audio_retention_days,
                idempotency_hours=int(IDEMPOTENCY_KEY_RETENTION.total_seconds() // 3600),
            ),
        )

    def _end_of(self, target: ProviderTarget) -> date | None:
        is_openai = target.host == _OPENAI_HOST
        return self.announced_ends.get(target.model or "") if is_openai else None
