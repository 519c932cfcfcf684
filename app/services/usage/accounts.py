"""Who pays for a turn, and how much of what that account may use."""

from dataclasses import field
from datetime import date, datetime
from uuid import UUID

from app.core.limits import NO_LIMITS, Limits
from app.core.security import Caller
from app.core.values import value
from app.services.usage.tariff import NANOS, Tariff, Used

_NO_LIMIT = 2**62
_CHARACTERS_PER_TOKEN = 4
"""Of an answer that will be spoken: about what models of English write."""


@value(frozen=True, slots=True)
class Reservation:
    """What is kept for a turn of an account's budgets, until it is known what it used."""

    bucket: str
    day: date
    """The day that pays, in UTC."""
    tokens: int
    nanos: int
    upload_ms: int = 0


@value(frozen=True, slots=True)
class Account:
    """Who pays: a key, or a workspace for what comes without one."""

    workspace_id: UUID
    key_id: str | None = None
    user_id: str | None = None
    limits: Limits = NO_LIMITS
    tariff: Tariff = field(default_factory=Tariff)
    context_tokens: int = _NO_LIMIT
    """How many tokens a prompt and its answer may have, where an agent does not say."""

    @property
    def bucket(self) -> str:
        """The name of the account's row; empty without a key."""
        return self.key_id or ""

    @property
    def has_budgets(self) -> bool:
        """True where anything but requests is limited."""
        limits = self.limits
        return bool(
            limits.concurrent_turns
            or limits.upload_minutes_per_day
            or limits.tokens_per_day
            or limits.usd_per_day
        )

    @property
    def turns_limit(self) -> int:
        """Turns that may be unsettled at once."""
        return _limit(self.limits.concurrent_turns)

    @property
    def upload_ms_limit(self) -> int:
        """Milliseconds of recordings in a day."""
        return _limit(round((self.limits.upload_minutes_per_day or 0) * 60_000))

    @property
    def tokens_limit(self) -> int:
        """Tokens in a day."""
        return _limit(self.limits.tokens_per_day)

    @property
    def nanos_limit(self) -> int:
        """Nano-dollars in a day."""
        return _limit(round((self.limits.usd_per_day or 0) * NANOS))

    def reservation(
        self, now: datetime, used: Used, *, is_spoken: bool = False
    ) -> Reservation | None:
        """Return what to keep for a turn that may use up to `used`; `None` without limits."""
        if not self.has_budgets:
            return None
        tokens = (used.prompt_tokens or 0) + (used.completion_tokens or 0)
        if is_spoken:
            characters = (used.completion_tokens or 0) * _CHARACTERS_PER_TOKEN
            used = _spoken(used, characters)
        nanos = self.tariff.cost(used, now.date()).known_nanos if self.limits.usd_per_day else 0
        upload_ms = round(used.speech_in_seconds * 1000)
        return Reservation(self.bucket, now.date(), tokens, nanos, upload_ms)


def _spoken(used: Used, characters: int) -> Used:
    return Used(
        used.chat_model,
        used.prompt_tokens,
        used.cached_tokens,
        used.completion_tokens,
        used.speech_in_seconds,
        characters,
    )


def _limit(given: int | None) -> int:
    return min(given, _NO_LIMIT) if given else _NO_LIMIT


@value(frozen=True, slots=True)
class Accounts:
    """Every account of this server: the defaults of its settings, and its prices."""

    defaults: Limits = NO_LIMITS
    tariff: Tariff = field(default_factory=Tariff)
    context_tokens: int = _NO_LIMIT

    def of(self, caller: Caller) -> Account:
        """Return who pays for what `caller` does."""
        return Account(
            caller.workspace_id,
            caller.key_id,
            caller.user_id,
            caller.limits.or_else(self.defaults),
            self.tariff,
            self.context_tokens,
        )


NOBODYS_ACCOUNT = Account(UUID(int=0))
