"""Who comes in: keys, session tokens, Supabase's users, workspaces; and what they did."""

from app.services.identity import api_keys, audit, session_tokens, workspaces
from app.services.identity.callers import RECHECK_SECONDS, Callers
from app.services.identity.credentials import Credential, CredentialKind, parse
from app.services.identity.errors import (
    CannotGrant,
    IdentityUnavailable,
    KeyNotFound,
    WorkspaceNotFound,
)
from app.services.identity.jwks import Jwks
from app.services.identity.supabase import SupabaseTokens

__all__ = [
    "RECHECK_SECONDS",
    "Callers",
    "CannotGrant",
    "Credential",
    "CredentialKind",
    "IdentityUnavailable",
    "Jwks",
    "KeyNotFound",
    "SupabaseTokens",
    "WorkspaceNotFound",
    "api_keys",
    "audit",
    "parse",
    "session_tokens",
    "workspaces",
]
