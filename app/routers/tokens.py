"""`/sessions/{id}/tokens`: short-lived tokens for browsers, instead of keys."""

from datetime import timedelta
from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter

from app.http.deps import Caller, Db
from app.http.endpoint_route import EndpointRoute
from app.schemas.identity import TokenCreate, TokenRead
from app.services.identity import audit, session_tokens

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=EndpointRoute)


@router.post("/{session_id}/tokens", status_code=HTTPStatus.CREATED, name="create_session_token")
async def create_token(session_id: UUID, body: TokenCreate, db: Db, caller: Caller) -> TokenRead:
    """Create a short-lived token with which a browser can read this session, send and cancel."""
    lifetime = timedelta(seconds=body.ttl_seconds)
    token, credential = await session_tokens.create(db, caller, session_id, lifetime)
    audit.record(db, caller, audit.Action.TOKEN_CREATED, session_id, token_id=token.id)
    return TokenRead(token=credential.text, session_id=session_id, expires_at=token.expires_at)
