"""Money and limits: what turns cost, who pays, and how much each may use."""

from app.services.usage.accounts import NOBODYS_ACCOUNT, Account, Accounts, Reservation
from app.services.usage.requests import RequestLimiter
from app.services.usage.tariff import Part, Tariff, Used

__all__ = [
    "NOBODYS_ACCOUNT",
    "Account",
    "Accounts",
    "Part",
    "RequestLimiter",
    "Reservation",
    "Tariff",
    "Used",
]
