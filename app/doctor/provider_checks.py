"""The providers: reachable, with a valid key and the models that the settings name."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from app.core.capabilities import Capability
from app.core.config import Settings
from app.core.logging import describe_cause
from app.doctor.checks import Check, broken, ok, warning
from app.providers import ModelCheck, check_models, missing_weights
from app.services.ports import ProviderError, ProviderRejected, UpstreamIncomplete

_NEAR = timedelta(days=120)
_SHOWN_FILES = 3


async def check_providers(settings: Settings) -> Sequence[Check]:
    """Ask every provider for its models, which costs nothing, and look for embedded ones."""
    models = {
        Capability.CHAT: ("CHAT_MODEL", settings.chat_model),
        Capability.STT: ("STT_MODEL", settings.stt_model),
        Capability.TTS: ("TTS_MODEL", settings.speech_model),
    }
    checks = [
        _of_model(capability, *models[capability], found)
        for capability, found in (await check_models(settings)).items()
    ]
    if settings.embedded_capabilities:
        checks.append(_embedded(settings))
    return checks


def _of_model(capability: Capability, setting: str, model: str, found: ModelCheck) -> Check:
    name = f"provider of {capability.value}"
    if found.error:
        return _unreachable(name, found.error)
    if found.is_shut_down:
        return broken(name, f"{model} was shut down on {found.shutdown_date}", f"Change {setting}.")
    if found.is_listed is False:
        return broken(
            name,
            f"the provider answers, and does not list {model}",
            f"Change {setting}, or let the key use that model.",
        )
    if found.shutdown_date and _is_near(found.shutdown_date):
        return warning(
            name, f"{model} will be shut down on {found.shutdown_date}", f"Change {setting}."
        )
    if found.is_listed is None:
        return warning(
            name, "the provider's list of models cannot be read", f"Try a turn with {model}."
        )
    return ok(name, f"{model} is there")


def _unreachable(name: str, error: ProviderError) -> Check:
    cause = describe_cause(error)
    finding = f"{error.code}{f' ({cause})' if cause else ''}"
    if isinstance(error, (ProviderRejected, UpstreamIncomplete)):
        return warning(
            name,
            f"the provider has no list of models: {finding}",
            "Some compatible servers have none. Else check the base URL.",
        )
    return broken(name, finding, error.detail)


def _embedded(settings: Settings) -> Check:
    missing = missing_weights(settings)
    parts = ", ".join(sorted(settings.embedded_capabilities))
    if not missing:
        return ok("embedded models", f"complete, for {parts}")
    if missing[0].endswith("."):  # a sentence about packages
        return broken("embedded models", "packages are missing", missing[0])
    more = f" and {len(missing) - _SHOWN_FILES} more" if len(missing) > _SHOWN_FILES else ""
    return warning(
        "embedded models",
        f"missing: {', '.join(missing[:_SHOWN_FILES])}{more}",
        "The next start fetches them; without a network, set MODELS_DIR to a folder that has them.",
    )


def _is_near(end: date) -> bool:
    return end - datetime.now(UTC).date() <= _NEAR
