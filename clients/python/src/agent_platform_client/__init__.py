"""A client of Agent Platform: streams that resume, and retries that run a turn once.

`AgentPlatform` and `AsyncAgentPlatform` have the same methods. What they take and return are the
typed dictionaries of `agent_platform_client.types`, which are generated from the OpenAPI document.
"""

from agent_platform_client import types
from agent_platform_client._async_client import AsyncAgentPlatform, AsyncTurnStream
from agent_platform_client._client import AgentPlatform, TurnStream
from agent_platform_client._protocol import RateLimit, VoiceReply
from agent_platform_client.errors import (
    AgentPlatformError,
    ApiError,
    AuthenticationFailed,
    Conflict,
    ConnectionLost,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    ServerFailed,
    ServerUnavailable,
    TurnFailed,
)

__all__ = [
    "AgentPlatform",
    "AgentPlatformError",
    "ApiError",
    "AsyncAgentPlatform",
    "AsyncTurnStream",
    "AuthenticationFailed",
    "Conflict",
    "ConnectionLost",
    "InvalidRequest",
    "NotFound",
    "PermissionDenied",
    "RateLimit",
    "RateLimited",
    "ServerFailed",
    "ServerUnavailable",
    "TurnFailed",
    "TurnStream",
    "VoiceReply",
    "types",
]
