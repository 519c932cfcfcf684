"""The days of budgets and reports: they begin and end at midnight in UTC."""

from datetime import UTC, date, datetime, timedelta


def start_of(day: date) -> datetime:
    """Return the midnight at which `day` begins."""
    return datetime.combine(day, datetime.min.time(), UTC)


def end_of(day: date) -> datetime:
    """Return the midnight at which `day` ends."""
    return start_of(day + timedelta(days=1))
