"""Opens the provider of each capability, with one function for each port and provider.

The registries are `CHAT_PROVIDERS`, `STT_PROVIDERS` and `TTS_PROVIDERS`. A new provider needs a
function here, a member of `core.config.Provider`, and an adapter in `services`.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict
from urllib.parse import urlsplit

import anyio
from pydantic import SecretStr

from app.core.capabilities import Capability
from app.core.config import Provider, Settings
from app.core.errors import StartRefused
from app.services.local_service.turn_end import LocalTurnEndJudge
from app.services.mcp_port import McpClient
from app.services.mcp_service.client import McpWorkerClient
from app.services.mcp_service.programs import McpClientSet, Program, has_command, read_programs
from app.services.openai_service import (
    ANNOUNCED_ENDS,
    ModelCheck,
    OpenAIChatModel,
    OpenAITranscriber,
    SpeechDecoder,
    check_model,
    make_speaker,
    warn_of_shutdowns,
)
from app.services.outbound.addresses import Guard, parse_allowed_addresses
from app.services.outbound.on_demand import OutboundOnDemand
from app.services.ports import ChatModel, Speaker, Transcriber
from app.services.provider_http.client import ProviderClient
from app.services.resilience import ProviderTarget
from app.services.sandbox.sandbox import Sandbox
from app.services.turn_end_port import TurnEndJudge
from app.telemetry import Telemetry
from app.telemetry.observer import host_of

if TYPE_CHECKING:
    from app.services.local_service import LocalEngine

__all__ = [
    "ANNOUNCED_ENDS",
    "Providers",
    "check_models",
    "fetch_weights",
    "missing_weights",
    "open_providers",
]

logger = logging.getLogger(__name__)


class McpConnector(McpClient, AbstractAsyncContextManager[Any], Protocol):
    """A client of MCP servers that is opened and closed."""


class Providers(TypedDict):
    """The opened adapter of each port."""

    chat_model: ChatModel
    transcriber: Transcriber
    speaker: Speaker
    engine: "NotRequired[LocalEngine]"
    """The embedded engine, where it serves one of them."""
    turn_end_judge: NotRequired[TurnEndJudge]
    mcp: NotRequired[McpConnector]
    """Instead of the worker process for MCP."""


class ProviderResources:
    """Opens and shares what adapters need: HTTP clients, and the embedded engine."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        """`stack` closes the resources."""
        self.settings = settings
        self.models: list[tuple[ProviderClient, Mapping[str, str]]] = []
        """Each HTTP client, with the models it is used for by the name of their setting."""
        self._stack = stack
        self.engine: LocalEngine | None = None
        """The embedded engine, once it was needed."""

    async def http_client(
        self,
        capability: Capability,
        model: str,
        base_url: str | None = None,
        api_key: SecretStr | None = None,
    ) -> ProviderClient:
        """Open a client for a model; without a URL of its own, of OPENAI_BASE_URL.

        Raises `StartRefused` where no connection could ever be made.
        """
        prefix = capability.name
        # OpenAI's key is never sent to another server.
        key = api_key if base_url else api_key or self.settings.openai_api_key
        has_own_key = bool(base_url or api_key) and capability is not Capability.CHAT
        patience: dict[str, float] = {}
        if capability is Capability.CHAT:
            patience["first_byte_timeout_seconds"] = self.settings.chat_first_byte_seconds
        try:
            client = ProviderClient(
                base_url or self.settings.openai_base_url,
                key.get_secret_value() if key else None,
                base_url_setting=f"{prefix}_BASE_URL" if base_url else "OPENAI_BASE_URL",
                api_key_setting=f"{prefix}_API_KEY" if has_own_key else "OPENAI_API_KEY",
                **patience,
            )
            self.models.append((client, {f"{prefix}_MODEL": model}))
            return await self._stack.enter_async_context(client)
        except ValueError as error:
            raise StartRefused(str(error)) from None

    async def speech_decoder(self) -> SpeechDecoder:
        """Return a decoder of compressed speech; its worker starts when such speech comes."""
        return SpeechDecoder(
            await self._stack.enter_async_context(Sandbox([SpeechDecoder.WARM_UP]))
        )

    async def embedded_engine(self) -> "LocalEngine":
        """Return the embedded engine, started at the first call.

        Raises `StartRefused` if its packages are missing.
        """
        if self.engine is None:
            from app.services.local_service import EmbeddedPackagesMissing, LocalEngine

            engine = LocalEngine(
                models=self.settings.embedded_models,
                data_dir=self.settings.data_dir,
                models_dir=self.settings.models_dir,
                threads=self.settings.embedded_threads,
                parts=self.settings.embedded_capabilities,
            )
            try:
                self.engine = await self._stack.enter_async_context(engine)
            except EmbeddedPackagesMissing as error:
                raise StartRefused(str(error)) from error
        return self.engine


async def _openai_chat_model(resources: ProviderResources) -> ChatModel:
    settings = resources.settings
    client = await resources.http_client(Capability.CHAT, settings.chat_model)
    logger.info("Chat: %s at %s", settings.chat_model, _host(settings.openai_base_url))
    return OpenAIChatModel(client, settings.chat_model, context_tokens=settings.chat_context_tokens)


async def _embedded_chat_model(resources: ProviderResources) -> ChatModel:
    from app.services.local_service import LocalChatModel

    engine = await resources.embedded_engine()
    logger.info("Chat: embedded, %s models (demo grade)", resources.settings.embedded_models)
    return LocalChatModel(engine)


async def _openai_transcriber(resources: ProviderResources) -> Transcriber:
    settings = resources.settings
    client = await resources.http_client(
        Capability.STT, settings.stt_model, settings.stt_base_url, settings.stt_api_key
    )
    url = settings.stt_base_url or settings.openai_base_url
    logger.info("Speech to text: %s at %s", settings.stt_model, _host(url))
    return OpenAITranscriber(client, settings.stt_model)


async def _embedded_transcriber(resources: ProviderResources) -> Transcriber:
    from app.services.local_service import LocalTranscriber

    engine = await resources.embedded_engine()
    logger.info("Speech to text: embedded, %s models", resources.settings.embedded_models)
    return LocalTranscriber(engine)


async def _openai_speaker(resources: ProviderResources) -> Speaker:
    settings = resources.settings
    client = await resources.http_client(
        Capability.TTS, settings.speech_model, settings.tts_base_url, settings.tts_api_key
    )
    url = settings.tts_base_url or settings.openai_base_url
    logger.info("Text to speech: %s at %s", settings.speech_model, _host(url))
    return make_speaker(client, settings.speech_model, await resources.speech_decoder())


async def _embedded_speaker(resources: ProviderResources) -> Speaker:
    from app.services.local_service import LocalSpeaker

    engine = await resources.embedded_engine()
    logger.info("Text to speech: embedded, %s models", resources.settings.embedded_models)
    return LocalSpeaker(engine)


CHAT_PROVIDERS: dict[Provider, Callable[[ProviderResources], Awaitable[ChatModel]]] = {
    Provider.OPENAI: _openai_chat_model,
    Provider.EMBEDDED: _embedded_chat_model,
}
STT_PROVIDERS: dict[Provider, Callable[[ProviderResources], Awaitable[Transcriber]]] = {
    Provider.OPENAI: _openai_transcriber,
    Provider.EMBEDDED: _embedded_transcriber,
}
TTS_PROVIDERS: dict[Provider, Callable[[ProviderResources], Awaitable[Speaker]]] = {
    Provider.OPENAI: _openai_speaker,
    Provider.EMBEDDED: _embedded_speaker,
}


@asynccontextmanager
async def open_providers(settings: Settings) -> AsyncGenerator[Providers]:
    """Open the adapters of the configured providers; close them after the block.

    A background task logs a warning for models that their provider will shut down. Raises
    `StartRefused`.
    """
    async with AsyncExitStack() as stack:
        resources = ProviderResources(settings, stack)
        chosen = settings.chosen_providers
        providers = Providers(
            chat_model=await CHAT_PROVIDERS[chosen[Capability.CHAT]](resources),
            transcriber=await STT_PROVIDERS[chosen[Capability.STT]](resources),
            speaker=await TTS_PROVIDERS[chosen[Capability.TTS]](resources),
        )
        if resources.engine:
            providers["engine"] = resources.engine
        judge = LocalTurnEndJudge(settings.data_dir, settings.models_dir)
        stack.callback(judge.close)
        providers["turn_end_judge"] = judge
        async with anyio.create_task_group() as background:
            for client, models in resources.models:
                background.start_soon(warn_of_shutdowns, client, models)
            yield providers
            background.cancel_scope.cancel()


async def check_models(settings: Settings) -> dict[Capability, ModelCheck]:
    """Ask each provider over HTTP for its models; capabilities that are embedded are left out."""
    named = {
        Capability.CHAT: ("CHAT_MODEL", settings.chat_model, None, None),
        Capability.STT: (
            "STT_MODEL", settings.stt_model, settings.stt_base_url, settings.stt_api_key
        ),
        Capability.TTS: (
            "TTS_MODEL", settings.speech_model, settings.tts_base_url, settings.tts_api_key
        ),
    }  # fmt: skip
    checks: dict[Capability, ModelCheck] = {}
    for capability, (setting, model, url, key) in named.items():
        if capability in settings.embedded_capabilities:
            continue
        async with AsyncExitStack() as stack:
            resources = ProviderResources(settings, stack)
            client = await resources.http_client(capability, model, url, key)
            checks[capability] = await check_model(client, setting, model)
    return checks


def missing_weights(settings: Settings) -> list[str]:
    """Return what the embedded engine lacks: packages, or files of models, by name.

    Nothing is fetched.
    """
    if not settings.embedded_capabilities:
        return []
    from app.services.local_service import (
        EmbeddedPackagesMissing,
        find_missing_weights,
        require_packages,
    )

    try:
        require_packages(settings.embedded_capabilities)
    except EmbeddedPackagesMissing as error:
        return [str(error)]
    return find_missing_weights(
        settings.embedded_models, settings.data_dir, settings.embedded_capabilities
    )


def fetch_weights(settings: Settings) -> None:
    """Download the embedded models that are needed and missing, with progress on standard error.

    Raises `StartRefused`.
    """
    if not settings.embedded_capabilities:
        return
    from app.services.local_service import (
        EmbeddedPackagesMissing,
        WeightsUnavailable,
        ensure_weights,
        require_packages,
    )

    try:
        require_packages(settings.embedded_capabilities)
        ensure_weights(
            settings.embedded_models,
            data_dir=settings.data_dir,
            models_dir=settings.models_dir,
            parts=settings.embedded_capabilities,
        )
    except (EmbeddedPackagesMissing, WeightsUnavailable) as error:
        raise StartRefused(str(error)) from error


def _host(url: str) -> str:
    return urlsplit(url).hostname or "?"


def outbound_of(settings: Settings) -> OutboundOnDemand:
    """Return the client for requests to where users point; to be entered. Raises `StartRefused`."""
    try:
        guard = Guard(parse_allowed_addresses(settings.tools_allowed_addresses or ""))
    except ValueError as error:
        raise StartRefused(f"TOOLS_ALLOWED_ADDRESSES {error}.") from None
    return OutboundOnDemand(guard, _tools_proxy(settings))


def mcp_client_of(settings: Settings) -> McpClientSet:
    """Return the client of MCP servers; to be entered. Raises `StartRefused`."""
    remote = McpWorkerClient(settings.tools_allowed_addresses or "", _tools_proxy(settings))
    return McpClientSet(remote, _programs(settings))


def mcp_programs(settings: Settings) -> list[tuple[str, str, bool]]:
    """Return name and command of the operator's MCP programs, and whether the command is there.

    Raises `StartRefused`.
    """
    programs = _programs(settings).items()
    return [(name, str(each["command"]), has_command(each)) for name, each in programs]


def _programs(settings: Settings) -> dict[str, Program]:
    if settings.mcp_servers_file is None:
        return {}
    try:
        return read_programs(settings.mcp_servers_file)
    except ValueError as error:
        raise StartRefused(f"MCP_SERVERS_FILE {error}.") from None


def _tools_proxy(settings: Settings) -> str | None:
    proxy = settings.tools_proxy.get_secret_value().strip() if settings.tools_proxy else ""
    if proxy and urlsplit(proxy).scheme != "http":
        raise StartRefused("TOOLS_PROXY must be the URL of a proxy, such as http://proxy:3128.")
    return proxy or None


def provider_targets(settings: Settings, telemetry: Telemetry) -> dict[Capability, ProviderTarget]:
    """Return what logs and metrics call the provider of each capability."""
    named = {
        Capability.CHAT: (None, settings.chat_model),
        Capability.STT: (settings.stt_base_url, settings.stt_model),
        Capability.TTS: (settings.tts_base_url, settings.speech_model),
    }
    embedded = settings.embedded_capabilities
    return {
        capability: ProviderTarget(capability, "embedded", None, telemetry)
        if capability in embedded
        else ProviderTarget(capability, host_of(url or settings.openai_base_url), model, telemetry)
        for capability, (url, model) in named.items()
    }
