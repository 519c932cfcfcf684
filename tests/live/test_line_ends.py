"""What ends an open line by itself: an hour, ten minutes without an event, a slow client."""

import pytest

from app.core.database import Database
from app.models import MessageStatus
from app.services.live_voice.config import LineTimes
from app.state import State
from tests.live.conftest import OpenLine, ask, send_message
from tests.live.test_interruptions import stored
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def times(**changes: float) -> LineTimes:
    return LineTimes(**{"check_seconds": 0.01, **changes})


def test_lines_last_an_hour_ten_minutes_unused_and_twenty_seconds_unread() -> None:
    usual = LineTimes()

    assert (usual.line_seconds, usual.idle_seconds, usual.reader_seconds) == (3600, 600, 20)


async def test_line_ends_after_its_time_also_in_mid_answer(
    open_line: OpenLine, state: State, chat_model: FakeChatModel, database: Database
) -> None:
    gate = chat_model.while_thinking = Gate()
    state["live"].times = times(line_seconds=1)
    async with open_line() as line:
        await send_message(line, "Hi.")
        await line.send("response.create")
        await gate.arrived.wait()
        closed = await line.until_closed()
        gate.opened.set()

    assert (closed.code, "hour" in closed.reason) == (1001, True)
    await wait_until_settled(database)
    assert (await stored(database))[-1].status is MessageStatus.COMPLETED


async def test_line_that_nobody_uses_ends_and_an_answer_is_use(
    open_line: OpenLine, state: State, chat_model: FakeChatModel
) -> None:
    gate = chat_model.while_thinking = Gate()
    state["live"].times = times(idle_seconds=0.5)
    async with open_line() as idle, open_line() as busy:
        await idle.until("session.created")
        await send_message(busy, "Hi.")
        await busy.send("response.create")
        await gate.arrived.wait()
        closed = await idle.until_closed()
        gate.opened.set()
        done = await busy.until("response.done")
        closed_too = await busy.until_closed()

    assert (closed.code, "ten minutes" in closed.reason) == (1000, True)
    assert closed_too.code == 1000
    assert done["response"]["status"] == "completed"


async def test_client_that_reads_nothing_is_cut_off(
    open_line: OpenLine, state: State, database: Database
) -> None:
    state["live"].times = times(reader_seconds=0.2)
    async with open_line(unread_events=2) as line:
        await send_message(line, "Hi.")
        await line.send("response.create")
        await until(lambda: state["live"].line_count == 0)
        assert not line.events

    await wait_until_settled(database)
    assert state["open_streams"].stream_count == 0


async def test_client_that_reads_is_not_cut_off(open_line: OpenLine, state: State) -> None:
    state["live"].times = times(reader_seconds=1)
    async with open_line(unread_events=2) as line:
        assert (await ask(line, "Hi."))["status"] == "completed"
