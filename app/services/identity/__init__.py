"""API keys, session tokens, Supabase users, workspaces and the audit log.

`supabase` and `jwks` are imported only where they are used: `cryptography` takes 10 MB of memory.
"""

from app.services.identity import (
    api_keys,
    audit,
    client_secrets,
    console_sessions,
    session_tokens,
    workspaces,
)
from app.services.identity.callers import CallerLookup
from app.services.identity.credentials import Credential, CredentialKind, parse
from app.services.identity.errors import (
    CannotGrant,
    IdentityUnavailable,
    KeyNotFound,
    WorkspaceNotFound,
)
from app.services.identity.revocation import RECHECK_SECONDS, OpenStreamRegistry

__all__ = [
    "RECHECK_SECONDS",
    "CallerLookup",
    "CannotGrant",
    "Credential",
    "CredentialKind",
    "IdentityUnavailable",
    "KeyNotFound",
    "OpenStreamRegistry",
    "WorkspaceNotFound",
    "api_keys",
    "audit",
    "client_secrets",
    "console_sessions",
    "parse",
    "session_tokens",
    "workspaces",
]
