"""What an endpoint can ask for, by name.

All are coroutines, though they wait for nothing: FastAPI runs plain functions in a thread.
"""

from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from app.core.database import Database, get_database, get_db, get_reading_db
from app.core.security import Caller as CallerIdentity
from app.services.turns import TurnEngine
from app.services.voice import VoiceService


async def _get_caller(connection: HTTPConnection) -> CallerIdentity:
    caller: CallerIdentity = connection.state.caller
    return caller


async def _get_turns(connection: HTTPConnection) -> TurnEngine:
    turns: TurnEngine = connection.state.turns
    return turns


async def _get_voice(connection: HTTPConnection) -> VoiceService:
    voice: VoiceService = connection.state.voice
    return voice


# "function": commit before the response leaves, so a failed commit is never a 201.
Db = Annotated[AsyncSession, Depends(get_db, scope="function")]
ReadingDb = Annotated[AsyncSession, Depends(get_reading_db, scope="function")]
Data = Annotated[Database, Depends(get_database)]
Caller = Annotated[CallerIdentity, Depends(_get_caller)]
Turns = Annotated[TurnEngine, Depends(_get_turns)]
Voice = Annotated[VoiceService, Depends(_get_voice)]
