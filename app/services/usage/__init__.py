"""Billing and limits: cost of turns, accounts, daily budgets, rate limits, usage reports."""

from app.services.usage.accounts import (
    CHARACTERS_PER_TOKEN,
    UNLIMITED_ACCOUNT,
    Account,
    AccountDirectory,
    Bucket,
    Reservation,
)
from app.services.usage.pricing import BillableUsage, PriceTable
from app.services.usage.rate_limits import RequestLimiter
from app.services.usage.storage import TURN_BYTES, StorageMeter

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "TURN_BYTES",
    "UNLIMITED_ACCOUNT",
    "Account",
    "AccountDirectory",
    "BillableUsage",
    "Bucket",
    "PriceTable",
    "RequestLimiter",
    "Reservation",
    "StorageMeter",
]
