"""`/`: the console, a page where agents are made, talked to and paid for; its sign-in."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from app.core.security import Forbidden
from app.http.authentication import Authenticator
from app.http.console_cookie import delete_cookie, set_cookie
from app.http.console_files import CONSOLE_FILES, EMBED, PAGE, PREFIX, console_response
from app.http.deps import Caller, Db
from app.http.endpoint_route import EndpointRoute
from app.services.identity import CredentialKind, audit, console_sessions

router = APIRouter(tags=["console"], route_class=EndpointRoute)


@router.post("/console/session", status_code=HTTPStatus.NO_CONTENT)
async def sign_in(request: Request, response: Response, db: Db, caller: Caller) -> None:
    """Exchange the key of this request for a cookie, with which a browser is its caller for 12 h.

    It counts for requests of the server's own pages only, and ends with the key.
    """
    if caller.credential and caller.credential.prefix == CredentialKind.CONSOLE_SESSION:
        raise Forbidden("Send the key as `Authorization: Bearer <key>` to sign in again.")
    authenticator: Authenticator = request.state.authenticator
    digest = authenticator.credential_hash(caller)
    session, credential = await console_sessions.create(db, caller, digest)
    audit.record(db, caller, audit.Action.CONSOLE_SIGNED_IN, session.id)
    set_cookie(request, response, credential.text, console_sessions.LIFE)


@router.delete("/console/session", status_code=HTTPStatus.NO_CONTENT)
async def sign_out(request: Request, response: Response, db: Db, caller: Caller) -> None:
    """End the console session of this request, if it has one."""
    await console_sessions.end(db, caller)
    delete_cookie(request, response)


files = APIRouter(include_in_schema=False)


@files.get("/")
async def console(request: Request) -> Response:
    """Show the console."""
    return console_response(request, PAGE)


@files.get(f"/{EMBED}")
async def embedded_chat(request: Request) -> Response:
    """Serve the chat that pages of other sites embed."""
    return console_response(request, EMBED)


@files.get(PREFIX + "{name:path}")
async def console_file(request: Request, name: str) -> Response:
    """Serve a script, a style, an icon or the font of the console."""
    if name not in CONSOLE_FILES:
        raise HTTPException(404)
    return console_response(request, name)


router.routes.extend(files.routes)
