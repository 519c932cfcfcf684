"""Billing accounts of callers: the budgets that a turn is charged to, with limits and prices."""

from dataclasses import field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from app.core.limits import DEFAULT_LIMITS, NO_LIMITS, KeyLimits, Limits
from app.core.security import Caller, CallerKind
from app.core.value_objects import value_object
from app.services.usage.pricing import NANOS, BillableUsage, PriceTable

NO_LIMIT = 2**62
CHARACTERS_PER_TOKEN = 8
"""The most that an answer has for each token that it may take; about twice that of English text."""
ADMIN_BUCKET = ""
KEYLESS_BUCKET = "users"
"""All end users together that come without a key, apart from the admin."""
WORKSPACE_BUCKET = "workspace"
USER_PREFIX = "user:"
SESSION_PREFIX = "session:"
"""A session token's, where its session has no end user."""


class BucketKind(StrEnum):
    """Whose budget a bucket is."""

    KEY = "key"
    USER = "user"
    SESSION = "session"
    USERS = "users"
    """All end users that come without a key."""
    ADMIN = "admin"
    WORKSPACE = "workspace"


_NAMED_KINDS = {
    ADMIN_BUCKET: BucketKind.ADMIN,
    KEYLESS_BUCKET: BucketKind.USERS,
    WORKSPACE_BUCKET: BucketKind.WORKSPACE,
}


def bucket_kind(name: str) -> BucketKind:
    """Return the kind of the bucket with this name; keys' are their ids."""
    if name.startswith(USER_PREFIX):
        return BucketKind.USER
    if name.startswith(SESSION_PREFIX):
        return BucketKind.SESSION
    return _NAMED_KINDS.get(name, BucketKind.KEY)


@value_object(frozen=True, slots=True)
class Bucket:
    """One budget: a key's (its id), an end user's, a session's, or a workspace's."""

    name: str
    limits: Limits = NO_LIMITS
    """With defaults filled in."""

    @property
    def is_limited(self) -> bool:
        """True if turns, recordings, tokens or money are limited."""
        limits = self.limits
        return bool(
            limits.concurrent_turns
            or limits.upload_minutes_per_day
            or limits.tokens_per_day
            or limits.usd_per_day
        )

    @property
    def turns_limit(self) -> int:
        """Maximum number of unsettled turns."""
        return _limit(self.limits.concurrent_turns, 1)

    @property
    def upload_ms_limit(self) -> int:
        """Milliseconds of recordings per day."""
        return _limit(self.limits.upload_minutes_per_day, 60_000)

    @property
    def tokens_limit(self) -> int:
        """Tokens per day."""
        return _limit(self.limits.tokens_per_day, 1)

    @property
    def nanos_limit(self) -> int:
        """Nano-dollars per day."""
        return _limit(self.limits.usd_per_day, NANOS)


@lru_cache(maxsize=1024)
def _limit(limit: Decimal | float | None, unit: int) -> int:
    """Return a limit in whole units; a tiny one is 0, and not none."""
    return min(int(Decimal(str(limit)) * unit), NO_LIMIT) if limit else NO_LIMIT


@value_object(frozen=True, slots=True)
class Reservation:
    """The part of budgets reserved for a turn until its usage is known."""

    buckets: tuple[Bucket, ...]
    """In the order in which their rows are locked."""
    day: date
    """The UTC day whose budget is charged."""
    tokens: int
    nanos: int
    upload_ms: int = 0


@value_object(frozen=True, slots=True)
class Account:
    """What a caller's requests are charged to."""

    workspace_id: UUID
    key_id: str | None = None
    user_id: str | None = None
    """The end user who asks."""
    buckets: tuple[Bucket, ...] = ()
    """The caller's key, or what stands for one, the keys that it descends from, the workspace."""
    own_bucket: Bucket | None = None
    """The end user's, or the session token's."""
    user_limits: Limits | None = None
    """Of each end user whose sessions the caller uses; `None` for the admin, who has none."""
    tariff: PriceTable = field(default_factory=PriceTable)
    context_tokens: int = NO_LIMIT
    """Default context window in tokens, for agents that do not set one."""

    def budgets(self, user_id: str | None) -> tuple[Bucket, ...]:
        """Return the limited budgets that a turn in a session of `user_id` is charged to."""
        user = self.own_bucket
        if user is None and user_id is not None and self.user_limits is not None:
            user = Bucket(USER_PREFIX + user_id, self.user_limits)
        buckets = (*self.buckets, user) if user else self.buckets
        return tuple(
            sorted(filter(_is_limited, buckets), key=_name),
        )

    def reservation(
        self,
        now: datetime,
        used: BillableUsage,
        user_id: str | None = None,
        *,
        is_spoken: bool = False,
    ) -> Reservation | None:
        """Return the reservation for a turn that uses at most `used`; `None` without limits."""
        buckets = self.budgets(user_id)
        if not buckets:
            return None
        tokens = (used.prompt_tokens or 0) + (used.completion_tokens or 0)
        if is_spoken:
            characters = (used.completion_tokens or 0) * CHARACTERS_PER_TOKEN
            used = _spoken(used, characters)
        nanos = self.tariff.cost(used, now.date()).budget_nanos
        upload_ms = round(used.speech_in_seconds * 1000)
        return Reservation(buckets, now.date(), tokens, nanos, upload_ms)


def _is_limited(bucket: Bucket) -> bool:
    return bucket.is_limited


def _name(bucket: Bucket) -> str:
    return bucket.name


def _spoken(used: BillableUsage, characters: int) -> BillableUsage:
    return BillableUsage(
        used.chat_model,
        used.prompt_tokens,
        used.cached_tokens,
        used.completion_tokens,
        used.speech_in_seconds,
        characters,
    )


@value_object(frozen=True, slots=True)
class AccountDirectory:
    """Creates the accounts of callers from default limits and prices of the settings."""

    defaults: KeyLimits = KeyLimits(NO_LIMITS, NO_LIMITS)
    workspace_limits: Limits = NO_LIMITS
    """Of everything in a workspace together; what the admin does is counted, and not refused."""
    tariff: PriceTable = field(default_factory=PriceTable)
    context_tokens: int = NO_LIMIT

    def of(self, caller: Caller) -> Account:
        """Return the account that is charged for the requests of `caller`."""
        is_admin = caller.kind is CallerKind.ADMIN and not caller.key_id
        own = caller.limits.with_defaults(self.defaults.own)
        user = (caller.user_limits or DEFAULT_LIMITS).with_defaults(self.defaults.user)
        name = caller.key_id or (ADMIN_BUCKET if is_admin else KEYLESS_BUCKET)
        ancestors = [
            Bucket(key_id, limits.with_defaults(self.defaults.own))
            for key_id, limits in caller.ancestors
        ]
        return Account(
            caller.workspace_id,
            caller.key_id,
            caller.user_id,
            (Bucket(name, own), *ancestors, *self._workspace(is_admin=is_admin)),
            _own_bucket(caller, user),
            None if is_admin else user,
            self.tariff,
            self.context_tokens,
        )

    def _workspace(self, *, is_admin: bool) -> tuple[Bucket, ...]:
        if not Bucket(WORKSPACE_BUCKET, self.workspace_limits).is_limited:
            return ()
        limits = _COUNTED if is_admin else self.workspace_limits
        return (Bucket(WORKSPACE_BUCKET, limits),)


_COUNTED = Limits(0, NO_LIMIT, 0, 0, 0)
"""Limits that nothing reaches."""


def _own_bucket(caller: Caller, limits: Limits) -> Bucket | None:
    if caller.user_id is not None:
        return Bucket(USER_PREFIX + caller.user_id, limits)
    if caller.session_id is None:
        return None
    if caller.session_user_id is not None:
        return Bucket(USER_PREFIX + caller.session_user_id, limits)
    return Bucket(f"{SESSION_PREFIX}{caller.session_id}", limits)


UNLIMITED_ACCOUNT = Account(UUID(int=0))
