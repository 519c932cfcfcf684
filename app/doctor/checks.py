"""What a check found, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something should be done."""
    BROKEN = "broken"
    """Turns will fail until something is done."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `advice` says what to do, unless all is well."""

    name: str
    verdict: Verdict
    finding: str
    advice: str | None = None


def ok(name: str, finding: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name, Verdict.OK, finding)


def warning(name: str, finding: str, advice: str) -> Check:
    """Return a check that found something that should be changed."""
    return Check(name, Verdict.WARNING, finding, advice)


def broken(name: str, finding: str, advice: str) -> Check:
    """Return a check that found something that does not work."""
    return Check(name, Verdict.BROKEN, finding, advice)


def has_broken(checks: Iterable[Check]) -> bool:
    """Tell whether something does not work."""
    return any(check.verdict is Verdict.BROKEN for check in checks)
