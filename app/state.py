"""The composition root: opens the database and the providers, and joins every part."""

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from pydantic import SecretStr

from app.core.config import AppEnv, Settings
from app.core.database import Database, StorageUnavailable
from app.core.errors import StartRefused
from app.core.logging import configure_logging
from app.core.schema_gate import REVISION, SchemaGate, current_revision
from app.core.security import AdminKey, load_or_create_admin_key
from app.core.single_process import sole_owner
from app.routers.access import Door
from app.services.identity import Callers, OpenStreams
from app.services.openai_service import (
    OpenAIChatModel,
    OpenAIClient,
    OpenAITranscriber,
    make_speaker,
    warn_of_shutdowns,
)
from app.services.ports import ChatModel, Speaker, Transcriber
from app.services.resilience import Breaker, PatientChatModel, PatientSpeaker, PatientTranscriber
from app.services.turns import AudioStore, TurnEngine
from app.services.usage import Accounts, RequestLimiter, Tariff
from app.services.usage import Part as PaidPart
from app.services.usage.price_table import PRICES
from app.services.voice import VoiceService, VoiceTurns

if TYPE_CHECKING:
    from app.services.identity.supabase import SupabaseTokens
    from app.services.local_service import Part

logger = logging.getLogger(__name__)

_ALLOCATIONS_BETWEEN_COLLECTIONS = 10_000

ADMIN_KEY_FILE = "admin.key"

_ChosenModel = tuple[OpenAIClient, dict[str, str]]
"""A model by the setting that chose it, and who is asked for it."""


class State(TypedDict):
    """What lives as long as the process; `routers/deps.py` hands it to endpoints."""

    database: Database
    schema_gate: SchemaGate
    door: Door
    request_limiter: RequestLimiter
    open_streams: OpenStreams
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
        if path := settings.parsed_database_url.sqlite_path:
            stack.enter_context(sole_owner(path))
        database = Database.from_settings(settings)
        stack.push_async_callback(database.dispose)
        await _prepare_tables(settings, database)
        chosen: list[_ChosenModel] = []
        providers = await _open_providers(settings, stack, chosen)
        background = await stack.enter_async_context(_background())
        for client, models in chosen:
            background.start_soon(warn_of_shutdowns, client, models)
        async with serving(settings, database, providers) as state:
            logger.info("Database: %s", database.url)
            _spare_the_collector()
            yield state


async def prepare(settings: Settings) -> None:
    """Do what is done once for several workers: development's migrations, and the admin key.

    Raises `StartRefused`. The caller has set up logging.
    """
    database = Database.from_settings(settings)
    try:
        await _prepare_tables(settings, database)
    finally:
        await database.dispose()
    _ = _admin_key(settings)


def _spare_the_collector() -> None:
    """Let the garbage collector leave alone what stays, and look at the rest less often.

    It was a tenth of a turn's CPU, and a full collection took 70 ms.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_BETWEEN_COLLECTIONS, 20, 50)


@asynccontextmanager
async def serving(
    settings: Settings, database: Database, providers: Providers
) -> AsyncGenerator[State]:
    """Build the use cases over an open database and providers, and run turns while it lasts."""
    voices = VoiceTurns(
        PatientTranscriber(providers["transcriber"], Breaker()),
        PatientSpeaker(providers["speaker"], Breaker()),
        settings.tts_voice,
    )
    chat_model = PatientChatModel(providers["chat_model"], Breaker())
    limits = settings.limits
    accounts = Accounts(limits, _tariff(settings), chat_model.context_tokens)
    audio = AudioStore(settings.audio_retention_days)
    turns = TurnEngine(database, chat_model, voices, audio, accounts)
    voice = VoiceService(turns, voices, database)
    schema_gate, callers = SchemaGate(database), Callers(database)
    open_streams = OpenStreams(callers.require_still)
    async with turns.running(), open_streams.watched(), _supabase_users(settings) as users:
        yield State(
            database=database,
            schema_gate=schema_gate,
            door=Door(settings.app_env, _admin_key(settings), callers, users, schema_gate),
            open_streams=open_streams,
            request_limiter=RequestLimiter(database, limits),
            turns=turns,
            voice=voice,
        )


def _tariff(settings: Settings) -> Tariff:
    """Return the prices of the models that serve each part."""
    embedded = {
        PaidPart.CHAT: settings.chat_is_embedded,
        PaidPart.STT: settings.stt_is_embedded,
        PaidPart.TTS: settings.tts_is_embedded,
    }
    return Tariff(
        {**PRICES, **settings.price_list},
        {
            PaidPart.CHAT: settings.chat_model,
            PaidPart.STT: settings.stt_model,
            PaidPart.TTS: settings.tts_model,
        },
        frozenset(part for part, is_embedded in embedded.items() if is_embedded),
    )


@asynccontextmanager
async def _supabase_users(settings: Settings) -> AsyncGenerator["SupabaseTokens | None"]:
    """Open what knows the end users of a Supabase project, where one is named."""
    url, audience = settings.supabase_url, settings.supabase_jwt_audience
    if url is None:
        yield None
        return
    from app.services.identity.jwks import Jwks
    from app.services.identity.supabase import SupabaseTokens

    if settings.supabase_jwt_secret:
        yield SupabaseTokens(url, audience, settings.supabase_jwt_secret)
    else:
        async with Jwks(f"{url}/auth/v1/.well-known/jwks.json") as public_keys:
            yield SupabaseTokens(url, audience, public_keys)


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
        if revision and revision > REVISION:  # four digits each
            raise StartRefused(
                f"The database is at revision {revision} and this version needs {REVISION}: "
                "a newer version was here. Start that one, or set another DATABASE_URL or DATA_DIR."
            )
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


def fetch_weights(settings: Settings) -> None:
    """Bring the embedded models here before the server starts, with progress on standard error.

    Does nothing where none is needed or all are here. Raises `StartRefused`.
    """
    if not settings.needs_embedded_engine:
        return
    from app.services.local_service import (
        EmbeddedPackagesMissing,
        WeightsUnavailable,
        ensure_weights,
        require_packages,
    )

    parts = _embedded_parts(settings)
    try:
        require_packages(parts)
        ensure_weights(
            settings.embedded_models,
            data_dir=settings.data_dir,
            models_dir=settings.models_dir,
            parts=parts,
        )
    except (EmbeddedPackagesMissing, WeightsUnavailable) as error:
        raise StartRefused(str(error)) from error


def _embedded_parts(settings: Settings) -> "set[Part]":
    from app.services.local_service import Part

    chosen = {
        Part.CHAT: settings.chat_is_embedded,
        Part.STT: settings.stt_is_embedded,
        Part.TTS: settings.tts_is_embedded,
    }
    return {part for part, is_embedded in chosen.items() if is_embedded}


@asynccontextmanager
async def _background() -> AsyncGenerator[TaskGroup]:
    """Run what nobody waits for, until the server stops."""
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


async def _open_providers(
    settings: Settings, stack: AsyncExitStack, chosen: list[_ChosenModel]
) -> Providers:
    """Open an adapter for each part and say which; add to `chosen`. Raises `StartRefused`."""
    embedded = await _open_engine(settings, stack) if settings.needs_embedded_engine else None

    async def connect(base_url: str | None, api_key: SecretStr | None) -> OpenAIClient:
        # Another server is not shown OpenAI's key.
        key = api_key if base_url else api_key or settings.openai_api_key
        client = OpenAIClient(
            base_url or settings.openai_base_url, key.get_secret_value() if key else None
        )
        return await stack.enter_async_context(client)

    chat_model: ChatModel
    transcriber: Transcriber
    speaker: Speaker
    if embedded and settings.chat_is_embedded:
        chat_model = embedded["chat_model"]
        logger.info("Chat: embedded, %s models (demo grade)", settings.embedded_models)
    else:
        client = await connect(None, None)
        chosen.append((client, {"CHAT_MODEL": settings.chat_model}))
        chat_model = OpenAIChatModel(
            client, settings.chat_model, context_tokens=settings.chat_context_tokens
        )
        logger.info("Chat: %s at %s", settings.chat_model, _host(settings.openai_base_url))
    if embedded and settings.stt_is_embedded:
        transcriber = embedded["transcriber"]
        logger.info("Speech in: embedded, %s models", settings.embedded_models)
    else:
        client = await connect(settings.stt_base_url, settings.stt_api_key)
        chosen.append((client, {"STT_MODEL": settings.stt_model}))
        transcriber = OpenAITranscriber(client, settings.stt_model)
        url = settings.stt_base_url or settings.openai_base_url
        logger.info("Speech in: %s at %s", settings.stt_model, _host(url))
    if embedded and settings.tts_is_embedded:
        speaker = embedded["speaker"]
        logger.info("Speech out: embedded, %s models", settings.embedded_models)
    else:
        client = await connect(settings.tts_base_url, settings.tts_api_key)
        chosen.append((client, {"TTS_MODEL": settings.tts_model}))
        speaker = make_speaker(client, settings.tts_model)
        url = settings.tts_base_url or settings.openai_base_url
        logger.info("Speech out: %s at %s", settings.tts_model, _host(url))
    return Providers(chat_model=chat_model, transcriber=transcriber, speaker=speaker)


async def _open_engine(settings: Settings, stack: AsyncExitStack) -> Providers:
    """Start the embedded engine for the parts that need it. Raises `StartRefused`."""
    from app.services.local_service import (
        EmbeddedPackagesMissing,
        LocalChatModel,
        LocalEngine,
        LocalSpeaker,
        LocalTranscriber,
    )

    engine = LocalEngine(
        models=settings.embedded_models,
        data_dir=settings.data_dir,
        models_dir=settings.models_dir,
        threads=settings.embedded_threads,
        parts=_embedded_parts(settings),
    )
    try:
        await stack.enter_async_context(engine)
    except EmbeddedPackagesMissing as error:
        raise StartRefused(str(error)) from error
    return Providers(
        chat_model=LocalChatModel(engine),
        transcriber=LocalTranscriber(engine),
        speaker=LocalSpeaker(engine),
    )


def _host(url: str) -> str:
    return urlsplit(url).hostname or "?"
