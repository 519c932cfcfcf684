"""Who comes in: keys, session tokens, Supabase's users, workspaces; and what they did.

`supabase` and `jwks` are imported only where they are used: cryptography takes ten megabytes.
"""

from app.services.identity import api_keys, audit, session_tokens, workspaces
from app.services.identity.callers import Callers
from app.services.identity.credentials import Credential, CredentialKind, parse
from app.services.identity.errors import (
    CannotGrant,
    IdentityUnavailable,
    KeyNotFound,
    WorkspaceNotFound,
)
from app.services.identity.open_streams import RECHECK_SECONDS, OpenStreams

__all__ = [
    "RECHECK_SECONDS",
    "Callers",
    "CannotGrant",
    "Credential",
    "CredentialKind",
    "IdentityUnavailable",
    "KeyNotFound",
    "OpenStreams",
    "WorkspaceNotFound",
    "api_keys",
    "audit",
    "parse",
    "session_tokens",
    "workspaces",
]
