"""The limits of a caller, and the quota that responses report."""

from dataclasses import fields
from decimal import Decimal

from app.core.value_objects import value_object


@value_object(frozen=True, slots=True)
class Limits:
    """The limits of a key. `None` means the default from the settings, 0 means unlimited."""

    requests_per_minute: int | None = None
    concurrent_turns: int | None = None
    upload_minutes_per_day: float | None = None
    tokens_per_day: int | None = None
    usd_per_day: Decimal | float | None = None

    @classmethod
    def of_row(cls, row: object) -> "Limits":
        """Return the limits of a row whose columns have their names."""
        return cls(**{name: getattr(row, name) for name in LIMIT_NAMES})

    def with_defaults(self, defaults: "Limits") -> "Limits":
        """Return these limits, with `None` replaced by the value in `defaults`."""
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

    def first_above(self, bounds: "Limits") -> str | None:
        """Return the name of the first limit that is higher than that of `bounds`, if any is.

        No limit is higher than any. Both must have defaults filled in.
        """
        for name in LIMIT_NAMES:
            own, bound = _number(getattr(self, name)), _number(getattr(bounds, name))
            if bound and (not own or own > bound):
                return name
        return None


def _number(limit: Decimal | float | None) -> Decimal:
    return Decimal(str(limit or 0))  # by the shortest text, so that 0.1 equals a tenth


LIMIT_NAMES = tuple(field.name for field in fields(Limits))
DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(0, 0, 0, 0, Decimal(0))


@value_object(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key, and those of each end user that it serves."""

    own: Limits = DEFAULT_LIMITS
    user: Limits = DEFAULT_LIMITS

    def with_defaults(self, defaults: "KeyLimits") -> "KeyLimits":
        """Return these limits, with `defaults` where there is none."""
        return KeyLimits(
            self.own.with_defaults(defaults.own), self.user.with_defaults(defaults.user)
        )


@value_object(frozen=True, slots=True)
class Quota:
    """The state of one limit of a caller, as the `X-RateLimit-*` headers report it."""

    resource: str
    """`requests`, `turns`, `upload_seconds`, `tokens` or `usd`."""
    limit: str
    remaining: str
    reset_at: int
    """When the limit is reset, in seconds since 1970."""
