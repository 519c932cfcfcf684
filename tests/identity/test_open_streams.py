"""A key that is revoked while its stream is open: the stream ends within five seconds."""

import time
from http import HTTPStatus
from uuid import UUID

import anyio
import httpx2
import pytest

from app.core.database import StorageUnavailable
from app.core.errors import AppError
from app.core.security import Caller, unauthenticated
from app.services.identity import OpenStreamRegistry
from tests.identity.world import ADMIN, World, bearer
from tests.support.fake_providers import FakeChatModel, FakeSpeaker
from tests.support.turns import Gate
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

SSE = {"accept": "text/event-stream"}


@pytest.mark.parametrize("kind", ["key", "session token"])
async def test_event_stream_ends_soon_after_its_key_is_revoked(
    world: World, chat_model: FakeChatModel, kind: str
) -> None:
    key = await world.key()
    things = await world.things()
    gate = chat_model.while_thinking = Gate()
    headers = bearer(key["key"])
    if kind == "session token":
        headers = await world.token(things.session_id, headers)
    answers: list[httpx2.Response] = []
    revoked_at = 0.0

    async def follow() -> None:
        body = {"session_id": things.session_id, "content": "Hi"}
        answers.append(await world.client.post("/messages/text", json=body, headers=headers | SSE))

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await gate.arrived.wait()
        await world.client.delete(f"/keys/{key['id']}", headers=ADMIN)
        revoked_at = time.monotonic()
        await until(lambda: answers)
        group.cancel_scope.cancel()
    gate.opened.set()

    assert time.monotonic() - revoked_at < 30
    assert answers[0].status_code == HTTPStatus.OK
    last = answers[0].text.rstrip().split("\n\n")[-1]
    assert last.startswith("event: error")
    assert '"unauthenticated"' in last
    assert "turn.completed" not in answers[0].text


async def test_sound_is_cut_soon_after_its_key_is_revoked(
    world: World, speech: bytes, chat_model: FakeChatModel, speaker: FakeSpeaker
) -> None:
    key = await world.key()
    things = await world.things()
    chat_model.answer = "First there is one sentence of it. Then there is another. And more."

    async def revoke_and_wait() -> None:
        if len(speaker.said) == 2:
            await world.client.delete(f"/keys/{key['id']}", headers=ADMIN)
            await anyio.sleep(2.5)

    speaker.while_speaking = revoke_and_wait
    with pytest.raises(RuntimeError):  # the connection breaks
        await world.client.post(
            "/messages/voice",
            data={"session_id": things.session_id},
            files={"audio": ("x.wav", speech)},
            headers=bearer(key["key"]),
        )


async def test_caller_is_asked_about_once_for_all_its_streams() -> None:
    asked: list[Caller] = []
    cut: list[tuple[str, AppError]] = []
    revoked, kept = (Caller(UUID(int=number)) for number in range(2))
    away = True

    async def require_valid(caller: Caller) -> None:
        asked.append(caller)
        if away:
            raise StorageUnavailable
        if caller == revoked:
            raise unauthenticated()

    streams = OpenStreamRegistry(require_valid)
    async with streams.watching():
        with (
            streams.cut_when_refused(revoked, lambda error: cut.append(("first", error))),
            streams.cut_when_refused(revoked, lambda error: cut.append(("second", error))),
            streams.cut_when_refused(kept, lambda error: cut.append(("kept", error))),
        ):
            await until(lambda: len(asked) == 2)
            assert (sorted(asked, key=lambda caller: caller.workspace_id), cut) == (
                [revoked, kept],
                [],
            )
            away = False
            await until(lambda: len(cut) == 2)
            assert sorted(name for name, _ in cut) == ["first", "second"]
            assert {error.code for _, error in cut} == {"unauthenticated"}
        asked.clear()
        await anyio.sleep(2.5)  # a whole round and more, in which nobody may be asked about
        assert asked == []
