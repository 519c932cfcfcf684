"""`/messages`: talk to an agent, in text or by voice."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import Response, StreamingResponse

from app.routers.deps import Caller, Turns, Voice
from app.routers.strict_route import StrictRoute
from app.routers.voice_headers import voice_headers
from app.schemas.chat import ReplyRead, TextMessageCreate
from app.services.turns import Reply

router = APIRouter(prefix="/messages", tags=["messages"], route_class=StrictRoute)


@router.post("/text", response_model=ReplyRead)
async def send_text(body: TextMessageCreate, turns: Turns, caller: Caller) -> Reply:
    """Send a message and wait for the agent's answer.

    Both are stored, and the turn goes on if the client leaves: `GET /turns/{id}` tells its end.
    """
    return await turns.reply_to_text(caller, body.session_id, body.content)


@router.post(
    "/voice",
    response_class=Response,
    responses={200: {"content": {"audio/mpeg": {}}, "description": "The spoken answer, as MP3"}},
)
async def send_voice(
    session_id: Annotated[UUID, Form()],
    audio: Annotated[UploadFile, File(description="wav, mp3, m4a, webm, ogg or flac")],
    voice: Voice,
    caller: Caller,
) -> Response:
    """Send a recording and hear the agent's answer as MP3.

    The header `X-Transcription` has what was understood, percent-encoded where it is not plain
    ASCII; the whole text is in the session's messages. The headers come with the first sound,
    so that a failure before it is a problem document.
    """
    answer = await voice.reply_to_recording(caller, session_id, await audio.read())
    await answer.first_sound()
    return StreamingResponse(answer.mp3(), media_type="audio/mpeg", headers=voice_headers(answer))
