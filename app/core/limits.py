"""How much a caller may use, and what it is told of that."""

from decimal import Decimal

from app.core.values import value


@value(frozen=True, slots=True)
class Limits:
    """What a key may use. `None` is the default of the settings, 0 is no limit."""

    requests_per_minute: int | None = None
    concurrent_turns: int | None = None
    upload_minutes_per_day: float | None = None
    tokens_per_day: int | None = None
    usd_per_day: Decimal | float | None = None

    def or_else(self, defaults: "Limits") -> "Limits":
        """Return these limits, with `defaults` where there is none."""
        if self == DEFAULT_LIMITS:
            return defaults

        def chosen(name: str) -> int | None:
            own: int | None = getattr(self, name)
            return getattr(defaults, name) if own is None else own

        return Limits(
            chosen("requests_per_minute"),
            chosen("concurrent_turns"),
            chosen("upload_minutes_per_day"),
            chosen("tokens_per_day"),
            defaults.usd_per_day if self.usd_per_day is None else self.usd_per_day,
        )


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(0, 0, 0, 0, Decimal(0))


@value(frozen=True, slots=True)
class Quota:
    """How a caller stands with one limit."""

    resource: str
    """`requests`, `turns`, `upload_seconds`, `tokens` or `usd`."""
    limit: str
    remaining: str
    reset_at: int
    """Seconds since 1970 until which `limit` counts."""
