"""The composition root: opens the database and the providers, and joins every part."""

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypedDict
from urllib.parse import urlsplit

import anyio.to_thread

from app.core.config import AppEnv, Settings
from app.core.database import Database, StorageUnavailable
from app.core.errors import StartRefused
from app.core.logging import configure_logging
from app.core.schema_gate import REVISION, SchemaGate, current_revision
from app.core.security import AdminKey, load_or_create_admin_key
from app.core.single_process import sole_owner
from app.routers.access import Door
from app.services.ports import ChatModel, Speaker, Transcriber
from app.services.resilience import Breaker, PatientChatModel, PatientSpeaker, PatientTranscriber
from app.services.turns import TurnEngine
from app.services.voice import VoiceService

logger = logging.getLogger(__name__)

ADMIN_KEY_FILE = "admin.key"


class State(TypedDict):
    """What lives as long as the process; `routers/deps.py` hands it to endpoints."""

    database: Database
    schema_gate: SchemaGate
    door: Door
    turns: TurnEngine
    voice: VoiceService


class Providers(TypedDict):
    """Who answers for each part."""

    chat_model: ChatModel
    transcriber: Transcriber
    speaker: Speaker


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncGenerator[State]:
    """Open all that `settings` describe; close it in the reverse order."""
    configure_logging(settings.log_level)
    async with AsyncExitStack() as stack:
        if settings.parsed_database_url.sqlite_path:
            stack.enter_context(sole_owner(settings.parsed_database_url.sqlite_path))
        database = Database.from_settings(settings)
        stack.push_async_callback(database.dispose)
        await _prepare_tables(settings, database)
        providers = await _open_providers(settings, stack)
        async with serving(settings, database, providers) as state:
            logger.info("Database: %s", database.url)
            yield state


@asynccontextmanager
async def serving(
    settings: Settings, database: Database, providers: Providers
) -> AsyncGenerator[State]:
    """Build the use cases over an open database and providers, and run turns while it lasts."""
    turns = TurnEngine(database, PatientChatModel(providers["chat_model"], Breaker()))
    voice = VoiceService(
        turns,
        PatientTranscriber(providers["transcriber"], Breaker()),
        PatientSpeaker(providers["speaker"], Breaker()),
        default_voice=settings.tts_voice,
    )
    async with turns.running():
        yield State(
            database=database,
            schema_gate=SchemaGate(database),
            door=Door(settings.app_env, _admin_key(settings)),
            turns=turns,
            voice=voice,
        )


def _admin_key(settings: Settings) -> AdminKey:
    if settings.admin_api_key:
        return AdminKey(settings.admin_api_key)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / ADMIN_KEY_FILE
    key = load_or_create_admin_key(path)
    logger.info("Admin key for requests from other machines: in the file %s", path)
    return AdminKey(key)


async def _prepare_tables(settings: Settings, database: Database) -> None:
    """Upgrade in development; in production serve nothing until the revision is right.

    Raises `StartRefused` where a database is not there in development; in production the server
    starts, and serves once the database is back.
    """
    try:
        revision = await current_revision(database)
    except StorageUnavailable as error:
        if settings.app_env is AppEnv.DEVELOPMENT:
            raise StartRefused(
                f"The database cannot be reached ({database.url}): check DATABASE_URL."
            ) from error
        logger.exception("The database cannot be reached (%s)", database.url)
        return
    if revision == REVISION:
        return
    if settings.app_env is AppEnv.DEVELOPMENT:
        from app.core.migrations import upgrade

        logger.info("Upgrading the database from %s to %s", revision or "nothing", REVISION)
        await anyio.to_thread.run_sync(upgrade, settings)
    else:
        logger.error(
            "The database is at revision %s and this version needs %s: run `alembic upgrade head`. "
            "Until then every request is answered with 503.",
            revision or "none",
            REVISION,
        )


async def _open_providers(settings: Settings, stack: AsyncExitStack) -> Providers:
    """Open an adapter for each part. Raises `StartRefused` where the embedded engine lacks one."""
    local = await stack.enter_async_context(_local_engine(settings))
    openai = _OpenAI(settings, stack)
    return Providers(
        chat_model=local.chat_model if settings.chat_is_embedded else await openai.chat_model(),
        transcriber=local.transcriber if settings.stt_is_embedded else await openai.transcriber(),
        speaker=local.speaker if settings.tts_is_embedded else await openai.speaker(),
    )
