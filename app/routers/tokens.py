"""`/sessions/{id}/tokens`: what a browser may hold, instead of a key."""

from datetime import timedelta
from http import HTTPStatus
from uuid import UUID

from fastapi import APIRouter

from app.routers.deps import Caller, Db
from app.routers.strict_route import StrictRoute
from app.schemas.identity import TokenCreate, TokenRead
from app.services.identity import audit, session_tokens

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=StrictRoute)


@router.post("/{session_id}/tokens", status_code=HTTPStatus.CREATED)
async def create_token(session_id: UUID, body: TokenCreate, db: Db, caller: Caller) -> TokenRead:
    """Make a token that opens this session alone, for some minutes: read, talk, cancel."""
    life = timedelta(seconds=body.ttl_seconds)
    token, credential = await session_tokens.create(db, caller, session_id, life)
    audit.record(db, caller, audit.Action.TOKEN_CREATED, session_id, token_id=token.id)
    return TokenRead(token=credential.text, session_id=session_id, expires_at=token.expires_at)
