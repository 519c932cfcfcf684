"""Models near their end are named at start."""

import logging
from collections.abc import AsyncIterator, Iterator
from datetime import date

import pytest

from app.services.openai_service import ProviderClient, warn_of_shutdowns
from tests.support.provider import Fault, Provider

pytestmark = pytest.mark.anyio

TODAY = date(2026, 11, 23)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[ProviderClient]:
    async with ProviderClient(provider.base_url, "key") as client:
        yield client


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("2027-01-06", "will be shut down on 2027-01-06"),
        ("2026-11-23T00:00:00Z", "was shut down on 2026-11-23"),
        (1_790_000_000, "was shut down on 2026-09-21"),
        ("2028-01-01", None),
        ("soon", None),
        (None, None),
        (10**30, None),
    ],
)
async def test_announced_end_is_a_warning_that_names_the_setting(
    provider: Provider,
    client: ProviderClient,
    caplog: pytest.LogCaptureFixture,
    end: object,
    words: str | None,
) -> None:
    provider.shutdown_dates = {"gpt-6-luna": end}

    await warn_of_shutdowns(client, {"CHAT_MODEL": "gpt-6-luna"}, today=TODAY)

    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == (
        [f"The provider says that gpt-6-luna {words}: change CHAT_MODEL."] if words else []
    )


@pytest.mark.parametrize("fault", [Fault.STATUS_404, Fault.CLOSE_BEFORE_HEADERS, Fault.EMPTY])
async def test_provider_without_a_list_is_no_warning(
    provider: Provider, client: ProviderClient, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    provider.fail(fault, "models", times=None)

    await warn_of_shutdowns(client, {"CHAT_MODEL": "gpt-6-luna"}, today=TODAY)

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
