"""The composition root: opens the database and the providers, and builds the services."""

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypedDict

import anyio
import anyio.to_thread
from sqlalchemy.exc import DBAPIError

from app.core.capabilities import Capability
from app.core.config import AppEnv, Settings
from app.core.database import Database, StorageUnavailable
from app.core.database.file_lock import exclusive_file_lock
from app.core.database.revision import REVISION, RevisionCheck, current_revision
from app.core.errors import StartRefused
from app.core.key_file import load_or_create_admin_key
from app.core.logging import configure_logging
from app.core.private_files import make_private_folder
from app.core.security import AdminKey
from app.http.authentication import Authenticator
from app.http.readiness import Readiness
from app.http.system_report import SystemReport
from app.providers import (
    ANNOUNCED_ENDS,
    Providers,
    mcp_client_of,
    open_providers,
    outbound_of,
    provider_targets,
)
from app.services.files.folder_store import FolderFileStore
from app.services.files.library import WARM_UP as DOCUMENTS_WARM_UP
from app.services.files.library import FileLibrary
from app.services.identity import CallerLookup, OpenStreamRegistry
from app.services.live_voice import LiveService
from app.services.outbound_port import Outbound
from app.services.resilience import (
    CircuitBreakers,
    RetryingChatModel,
    RetryingSpeaker,
    RetryingTranscriber,
)
from app.services.sandbox.limits import JobLimits
from app.services.sandbox.sandbox import Sandbox
from app.services.tool_ports import ToolRunner
from app.services.tools.http_runner import HttpToolRunner
from app.services.tools.key_ring import KeyRing
from app.services.tools.mcp_directory import McpDirectory
from app.services.tools.mcp_runner import McpToolRunner
from app.services.tools.runners import ToolRunners
from app.services.tools.secret_store import SecretStore
from app.services.tools.secrets import used_key_ids
from app.services.tools.tester import ToolTester
from app.services.turns import AudioStore, TurnEngine
from app.services.turns.context.attachments import PromptFiles
from app.services.turns.execution.message_input import MessageInput
from app.services.turns.session_events import SessionEvents
from app.services.usage import AccountDirectory, RequestLimiter, StorageMeter
from app.services.usage.audio_usage import AudioMeter
from app.services.usage.pricing import price_table
from app.services.usage.storage import MEGABYTE
from app.services.usage.token_quotas import TokenQuotas
from app.services.voice import VoiceService, VoiceTurns
from app.services.voice.audio_requests import AudioRequests
from app.services.voice.speech_formats import WARM_UP as ENCODING_WARM_UP
from app.services.voice.upload_check import WARM_UP, UploadCheck
from app.telemetry import Telemetry
from app.telemetry.gauges import add_gauges
from app.telemetry.tracing import open_tracer
from app.telemetry.workers import MetricsOfWorkers

if TYPE_CHECKING:
    from app.services.identity.supabase import SupabaseTokens

logger = logging.getLogger(__name__)

_ALLOCATIONS_BETWEEN_COLLECTIONS = 10_000

ADMIN_KEY_FILE = "admin.key"
_DOCUMENT_LIMITS = JobLimits(cpu_seconds=20, output_bytes=1 << 20, wall_seconds=60)


class State(TypedDict):
    """The objects that live as long as the process; `http/deps.py` passes them to endpoints."""

    database: Database
    schema_gate: RevisionCheck
    readiness: Readiness
    telemetry: Telemetry
    metrics: MetricsOfWorkers
    authenticator: Authenticator
    accounts: AccountDirectory
    storage: StorageMeter
    secret_keys: KeyRing
    outbound: Outbound
    tool_runner: ToolRunner
    tool_tester: ToolTester
    mcp_directory: McpDirectory
    request_limiter: RequestLimiter
    token_quotas: TokenQuotas
    open_streams: OpenStreamRegistry
    turns: TurnEngine
    session_events: SessionEvents
    files: FileLibrary
    message_input: MessageInput
    voice: VoiceService
    audio_requests: AudioRequests
    live: LiveService
    system: SystemReport


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncGenerator[State]:
    """Open everything that `settings` configure; close it in reverse order after the block.

    Raises `StartRefused`.
    """
    configure_logging(settings.log_level, settings.chosen_log_format)
    async with AsyncExitStack() as stack:
        if path := settings.parsed_database_url.sqlite_path:
            stack.enter_context(exclusive_file_lock(path))
        database = Database.from_settings(settings)
        stack.push_async_callback(database.dispose)
        await _prepare_tables(settings, database)
        await _require_keys_of_secrets(settings, database)
        providers = await stack.enter_async_context(open_providers(settings))
        async with build_state(settings, database, providers) as state:
            logger.info("Database: %s", database.url)
            _tune_garbage_collection()
            yield state


async def prepare(settings: Settings) -> None:
    """Do once what several workers share: the migrations in development, and the admin key.

    The caller must have configured logging. Raises `StartRefused`.
    """
    database = Database.from_settings(settings)
    try:
        await _prepare_tables(settings, database)
        await _require_keys_of_secrets(settings, database)
    finally:
        await database.dispose()
    _ = _admin_key(settings)


def _tune_garbage_collection() -> None:
    """Exclude the objects of the start from garbage collection, and collect less often.

    Collections took a tenth of a turn's CPU, and a full one took 70 ms.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_BETWEEN_COLLECTIONS, 20, 50)


@asynccontextmanager
async def build_state(
    settings: Settings, database: Database, providers: Providers
) -> AsyncGenerator[State]:
    """Build the services on an open database and providers; run turns while the block runs."""
    async with open_tracer(settings) as tracer:
        telemetry = Telemetry(tracer)
        async with _build_state(settings, database, providers, telemetry) as state:
            yield state


@asynccontextmanager
async def _build_state(
    settings: Settings, database: Database, providers: Providers, telemetry: Telemetry
) -> AsyncGenerator[State]:
    breakers = {
        Capability.CHAT: CircuitBreakers(settings.chat_model),
        Capability.STT: CircuitBreakers(),
        Capability.TTS: CircuitBreakers(),
    }
    targets = provider_targets(settings, telemetry)
    voices = VoiceTurns(
        RetryingTranscriber(
            providers["transcriber"], breakers[Capability.STT], target=targets[Capability.STT]
        ),
        RetryingSpeaker(
            providers["speaker"], breakers[Capability.TTS], target=targets[Capability.TTS]
        ),
        settings.tts_voice,
    )
    chat_model = RetryingChatModel(
        providers["chat_model"], breakers[Capability.CHAT], target=targets[Capability.CHAT]
    )
    accounts = AccountDirectory(
        settings.key_limits,
        settings.workspace_limits,
        price_table(settings),
        chat_model.context_tokens,
    )
    audio = AudioStore(settings.audio_retention_days)
    storage = StorageMeter(database, settings.limit_stored_mb_per_workspace * MEGABYTE)
    secret_keys, outbound = KeyRing.from_settings(settings), outbound_of(settings)
    secret_store = SecretStore(database, secret_keys)
    mcp_client = providers.get("mcp") or mcp_client_of(settings)
    http_runner = HttpToolRunner(outbound, secret_store)
    mcp_directory = McpDirectory(database, mcp_client, secret_store, secret_keys)
    mcp_runner = McpToolRunner(database, mcp_client, secret_store, http_runner, mcp_directory)
    tool_runner = ToolRunners(http_runner, mcp_runner)
    documents = Sandbox([DOCUMENTS_WARM_UP], _DOCUMENT_LIMITS)
    store = FolderFileStore(settings.files_dir or settings.data_dir / "files")
    files = FileLibrary(database, store, documents, storage)
    prompt_files = PromptFiles(
        files,
        has_vision=settings.has_vision,
        may_have_vision=Capability.CHAT not in settings.embedded_capabilities,
    )
    turns = TurnEngine(
        database,
        chat_model,
        voices,
        audio,
        accounts,
        observer=telemetry,
        storage=storage,
        tool_runner=tool_runner,
        result_days=settings.tool_result_retention_days,
        compacts_context=settings.context_compaction,
        files=prompt_files,
    )
    session_events = SessionEvents(database, lambda: turns.is_draining)
    message_input = MessageInput(database, prompt_files, turns.uploads)
    sandbox = Sandbox([WARM_UP, ENCODING_WARM_UP])
    uploads = UploadCheck(sandbox)
    voice = VoiceService(turns, voices, database, uploads)
    schema_gate, admin_key = RevisionCheck(database), _admin_key(settings)
    callers = CallerLookup(database, admin_key)
    open_streams = OpenStreamRegistry(callers.require_valid)
    request_limiter = RequestLimiter(database, accounts)
    metrics = MetricsOfWorkers(telemetry.metrics)
    add_gauges(
        telemetry.metrics,
        turns=turns,
        database=database,
        open_streams=open_streams,
        request_limiter=request_limiter,
        breakers=breakers,
        engine=providers.get("engine"),
        sandbox=sandbox,
        documents=documents,
    )
    async with (
        sandbox,
        documents,
        outbound,
        mcp_client,
        files.pruning(),
        turns.running(),
        session_events.polling(),
        open_streams.watching(),
        telemetry.watching(),
        metrics.serving(),
        _supabase_users(settings) as users,
    ):
        yield State(
            database=database,
            schema_gate=schema_gate,
            readiness=Readiness(turns, schema_gate),
            telemetry=telemetry,
            metrics=metrics,
            authenticator=Authenticator(
                settings.app_env,
                admin_key,
                callers,
                users,
                schema_gate,
                AdminKey(settings.metrics_token) if settings.metrics_token else None,
            ),
            open_streams=open_streams,
            accounts=accounts,
            storage=storage,
            secret_keys=secret_keys,
            outbound=outbound,
            tool_runner=tool_runner,
            tool_tester=ToolTester(tool_runner),
            mcp_directory=mcp_directory,
            request_limiter=request_limiter,
            token_quotas=TokenQuotas(database, accounts),
            turns=turns,
            session_events=session_events,
            files=files,
            message_input=message_input,
            voice=voice,
            audio_requests=AudioRequests(
                turns, voices, uploads, AudioMeter(database, accounts, storage), sandbox
            ),
            live=LiveService(
                turns,
                voices,
                database,
                request_limiter,
                settings.limit_live_lines,
                settings.limit_live_lines_per_key,
                message_input,
                storage,
                providers.get("turn_end_judge"),
            ),
            system=SystemReport(settings, targets, breakers, ANNOUNCED_ENDS),
        )


@asynccontextmanager
async def _supabase_users(settings: Settings) -> AsyncGenerator["SupabaseTokens | None"]:
    """Open the verifier of Supabase access tokens, or yield `None` without `SUPABASE_URL`."""
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
    make_private_folder(settings.data_dir)
    path = settings.data_dir / ADMIN_KEY_FILE
    key = load_or_create_admin_key(path)
    logger.info("The admin key, for requests from other machines, is in the file %s", path)
    return AdminKey(key)


async def _require_keys_of_secrets(settings: Settings, database: Database) -> None:
    """Raise `StartRefused` in production where a stored secret is sealed with an unknown key.

    A database that cannot be read yet is not waited for.
    """
    if settings.app_env is not AppEnv.PRODUCTION:
        return
    try:
        async with database.reading() as db:
            used = await used_key_ids(db)
    except (StorageUnavailable, DBAPIError):
        return
    keys = KeyRing.from_settings(settings)
    if used and not used <= (keys.sealer().key_ids if settings.secrets_keys else set()):
        raise StartRefused(
            "The database has secrets that no key in SECRETS_KEY opens: add the key that they "
            "were stored with, or the secrets.key file of the development server they are from."
        )


async def _prepare_tables(settings: Settings, database: Database) -> None:
    """Migrate the database in development; in production only check and log its revision.

    Raises `StartRefused` if the database is unreachable in development, or newer than this
    version. In production the server starts anyway, and serves requests once the database is
    reachable and at the right revision.
    """
    try:
        revision = await current_revision(database)
    except StorageUnavailable as error:
        if settings.app_env is AppEnv.DEVELOPMENT:
            raise StartRefused(
                f"The database cannot be reached ({database.url}): start it, or check DATABASE_URL."
            ) from error
        logger.error("The database cannot be reached (%s): trying again", database.url)  # noqa: TRY400
        return
    if revision == REVISION:
        return
    if settings.app_env is AppEnv.DEVELOPMENT:
        if revision and revision > REVISION:  # four digits each
            raise StartRefused(
                f"The database is at revision {revision}, and this version needs {REVISION}: a "
                "newer version has upgraded it. Start that version, or set another DATABASE_URL "
                "or DATA_DIR."
            )
        from app.core.database.migrations import upgrade

        logger.info("Upgrading the database from %s to %s", revision or "nothing", REVISION)
        await anyio.to_thread.run_sync(upgrade, settings)
    else:
        logger.error(
            "The database is at revision %s and this version needs %s: run `agent-platform "
            "migrate` (or `alembic upgrade head`). Until then every request is answered with 503.",
            revision or "none",
            REVISION,
        )
