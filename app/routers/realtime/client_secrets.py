"""`POST /v1/realtime/client_secrets`: credentials with which browsers open lines."""

from datetime import timedelta
from http import HTTPStatus

import orjson
from fastapi import APIRouter

from app.http.deps import Caller, Db, Voice
from app.http.endpoint_route import EndpointRoute
from app.http.openai_errors import InvalidParameter
from app.models import new_id
from app.schemas.realtime import ClientSecretCreate, ClientSecretRead
from app.services.identity import audit, client_secrets
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.sessions import BUILT_IN_AGENT

router = APIRouter(prefix="/v1/realtime", tags=["openai"], route_class=EndpointRoute)


@router.post("/client_secrets", status_code=HTTPStatus.OK, name="create_client_secret")
async def create_client_secret(
    body: ClientSecretCreate, db: Db, caller: Caller, voice: Voice
) -> ClientSecretRead:
    """Create a short-lived credential for `/v1/realtime`, with the settings of its lines.

    Lines that are open outlive it, but not the key that made it.
    """
    configuration = body.session
    if len(orjson.dumps(configuration)) > client_secrets.LONGEST_CONFIGURATION_BYTES:
        raise InvalidParameter("session", "It may have 64 KB at most.")
    life = timedelta(seconds=body.expires_after.seconds)
    secret, credential = await client_secrets.create(
        db, caller, life, configuration, session_id=body.session_id, user_id=body.user_id
    )
    audit.record(db, caller, audit.Action.CLIENT_SECRET_CREATED, secret.id)
    expires_at = int(secret.expires_at.timestamp())
    from app.routers.realtime.session_settings import SessionSettings  # needs NumPy

    settings = SessionSettings(
        str(configuration.get("model") or BUILT_IN_AGENT),
        (body.session_id or new_id()).hex,
        expires_at,
    )
    try:
        settings.update(configuration, voice.voice_names)
    except LiveInputRefused as refusal:
        raise InvalidParameter(refusal.param or "session", refusal.detail, refusal.reason) from None
    return ClientSecretRead(value=credential.text, expires_at=expires_at, session=settings.value)
