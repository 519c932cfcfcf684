"""A turn that waits for a client's action has no owner and no task, and is nobody's to recover."""

from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import select, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import BusyPolicy, Message, Turn, TurnStatus
from app.services.turns import TurnOptions
from app.services.turns.storage import leases
from app.state import Providers, State
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, open_server

pytestmark = pytest.mark.anyio


async def waiting_turn(
    database: Database, state: State, model: FakeChatModel, session: str
) -> UUID:
    """Accept a turn, and leave it as one that waits for an action, as another server stored it."""
    gate = Gate()
    model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session), "Refund order 7.")
    await gate.arrived.wait()
    turn.interrupt_for_shutdown()  # so that it is no server's
    await turn.settled.wait()
    async with database.transaction() as db:
        await db.execute(
            update(Turn)
            .where(Turn.id == turn.record.id)
            .values(status=TurnStatus.REQUIRES_ACTION, owner_id=None, lease_expires_at=None)
        )
    model.while_thinking = None
    return turn.record.id


async def status_of(database: Database, turn_id: UUID) -> TurnStatus:
    async with database.reading() as db:
        return (await db.scalars(select(Turn.status).where(Turn.id == turn_id))).one()


@pytest.mark.parametrize("all_others", [True, False])
async def test_it_is_not_recovered(
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
    all_others: bool,
) -> None:
    turn_id = await waiting_turn(database, state, chat_model, session_id)

    claimed = await database.run(leases.recover_expired, UUID(int=2), all_others=all_others)

    assert claimed == []
    assert await status_of(database, turn_id) is TurnStatus.REQUIRES_ACTION


async def test_a_server_that_starts_leaves_it_alone(
    state: State,
    settings: Settings,
    database: Database,
    providers: Providers,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    turn_id = await waiting_turn(database, state, chat_model, session_id)
    asked = len(chat_model.requests)
    async with open_server(settings, database, providers) as restarted:
        other = await restarted["turns"].find(ADMIN, turn_id)
        assert other.record.status is TurnStatus.REQUIRES_ACTION

    assert await status_of(database, turn_id) is TurnStatus.REQUIRES_ACTION
    assert len(chat_model.requests) == asked


async def test_it_can_be_cancelled(
    state: State,
    database: Database,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    turn_id = await waiting_turn(database, state, chat_model, session_id)
    queued = await state["turns"].start(ADMIN, UUID(session_id), "And then?")
    assert queued.record.status is TurnStatus.QUEUED

    response = await client.post(f"/turns/{turn_id}/cancel")

    assert response.json()["status"] == "cancelled"
    with anyio.fail_after(60):
        reply = await state["turns"].result(queued)
    assert reply.content == "Hello there!"


async def test_a_message_may_interrupt_it(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    turn_id = await waiting_turn(database, state, chat_model, session_id)
    options = TurnOptions(BusyPolicy.INTERRUPT)

    with anyio.fail_after(60):
        live = await state["turns"].start(ADMIN, UUID(session_id), "Never mind.", None, options)
        reply = await state["turns"].result(live)

    assert reply.content == "Hello there!"
    assert await status_of(database, turn_id) is TurnStatus.CANCELLED
    async with database.reading() as db:
        sequence = (await db.scalars(select(Message.seq).order_by(Message.seq))).all()
    assert list(sequence) == [1, 2, 3, 4]
