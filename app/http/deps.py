"""The dependencies of endpoints, as annotated types.

All are coroutines although they wait for nothing, since FastAPI runs plain functions in a thread.
"""

from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from app.core.database import Database, get_database, get_db, get_reading_db
from app.core.security import Caller as CallerIdentity
from app.services.files.library import FileLibrary
from app.services.outbound_port import Outbound
from app.services.tools.key_ring import KeyRing
from app.services.tools.mcp_directory import McpDirectory
from app.services.tools.mcp_oauth import McpAuthorizer
from app.services.tools.tester import ToolTester
from app.services.turns import TurnEngine
from app.services.turns.session_events import SessionEvents
from app.services.usage import AccountDirectory, StorageMeter
from app.services.voice import VoiceService


async def _get_caller(connection: HTTPConnection) -> CallerIdentity:
    caller: CallerIdentity = connection.state.caller
    return caller


async def _get_turns(connection: HTTPConnection) -> TurnEngine:
    turns: TurnEngine = connection.state.turns
    return turns


async def _get_session_events(connection: HTTPConnection) -> SessionEvents:
    events: SessionEvents = connection.state.session_events
    return events


async def _get_voice(connection: HTTPConnection) -> VoiceService:
    voice: VoiceService = connection.state.voice
    return voice


async def _get_accounts(connection: HTTPConnection) -> AccountDirectory:
    accounts: AccountDirectory = connection.state.accounts
    return accounts


async def _get_secret_keys(connection: HTTPConnection) -> KeyRing:
    keys: KeyRing = connection.state.secret_keys
    return keys


async def _get_outbound(connection: HTTPConnection) -> Outbound:
    outbound: Outbound = connection.state.outbound
    return outbound


async def _get_mcp_directory(connection: HTTPConnection) -> McpDirectory:
    directory: McpDirectory = connection.state.mcp_directory
    return directory


async def _get_mcp_authorizer(connection: HTTPConnection) -> McpAuthorizer:
    authorizer: McpAuthorizer = connection.state.mcp_directory.authorizer
    return authorizer


async def _get_tool_tester(connection: HTTPConnection) -> ToolTester:
    tester: ToolTester = connection.state.tool_tester
    return tester


async def _get_files(connection: HTTPConnection) -> FileLibrary:
    files: FileLibrary = connection.state.files
    return files


async def _get_storage(connection: HTTPConnection) -> StorageMeter:
    storage: StorageMeter = connection.state.storage
    return storage


# "function": commit before the response is sent, so that a failed commit is never a 201.
Db = Annotated[AsyncSession, Depends(get_db, scope="function")]
ReadingDb = Annotated[AsyncSession, Depends(get_reading_db, scope="function")]
DatabaseDep = Annotated[Database, Depends(get_database)]
Storage = Annotated[StorageMeter, Depends(_get_storage)]
Accounts = Annotated[AccountDirectory, Depends(_get_accounts)]
Caller = Annotated[CallerIdentity, Depends(_get_caller)]
SecretKeys = Annotated[KeyRing, Depends(_get_secret_keys)]
OutboundDep = Annotated[Outbound, Depends(_get_outbound)]
McpDirectoryDep = Annotated[McpDirectory, Depends(_get_mcp_directory)]
McpAuthorizerDep = Annotated[McpAuthorizer, Depends(_get_mcp_authorizer)]
ToolTesterDep = Annotated[ToolTester, Depends(_get_tool_tester)]
Files = Annotated[FileLibrary, Depends(_get_files)]
Turns = Annotated[TurnEngine, Depends(_get_turns)]
SessionEventsDep = Annotated[SessionEvents, Depends(_get_session_events)]
Voice = Annotated[VoiceService, Depends(_get_voice)]
