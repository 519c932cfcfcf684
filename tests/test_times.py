"""Times with any offset are stored as the same moment, on both databases."""

from datetime import UTC, datetime, timedelta, timezone
from typing import cast

import httpx2
import pytest
from sqlalchemy import Table, bindparam, insert, select, update

from app.core.database import Database
from app.core.database.statements import PreparedStatement, Rows
from app.core.database.transactions import TransactionScript
from app.models import Workspace, new_id

pytestmark = pytest.mark.anyio

MOMENT = datetime(2031, 3, 1, 4, 5, 6, 789, tzinfo=UTC)
OFFSETS = [timedelta(hours=5, minutes=30), timedelta(hours=-9, minutes=-30), timedelta(hours=14)]


@pytest.mark.parametrize("offset", OFFSETS)
async def test_time_with_an_offset_is_stored_as_the_same_moment(
    database: Database, offset: timedelta
) -> None:
    local, workspace_id = MOMENT.astimezone(timezone(offset)), new_id()

    async with database.transaction() as db:
        db.add(Workspace(id=workspace_id, name="w", created_at=local))
    async with database.reading() as db:
        found = await db.scalar(select(Workspace.created_at).where(Workspace.created_at == local))
        is_before = await db.scalar(
            select(Workspace.id).where(
                Workspace.id == workspace_id,
                Workspace.created_at < local + timedelta(microseconds=1),
            )
        )

    assert found == MOMENT
    assert found
    assert found.utcoffset() == timedelta(0)
    assert is_before == workspace_id


@pytest.mark.parametrize("offset", OFFSETS)
async def test_prepared_statement_stores_the_same_moment(
    database: Database, offset: timedelta
) -> None:
    workspaces = cast("Table", Workspace.__table__)
    insert_stmt = PreparedStatement(
        lambda _: insert(workspaces).values(
            id=bindparam("id"), name="w", created_at=bindparam("created_at")
        )
    )
    update_stmt = PreparedStatement(
        lambda _: (
            update(workspaces)
            .where(workspaces.c.created_at == bindparam("at_"))
            .values(name="found")
            .returning(workspaces.c.created_at)
        )
    )
    local = MOMENT.astimezone(timezone(offset))

    def script() -> TransactionScript[Rows]:
        yield [insert_stmt(id=new_id(), created_at=local)]
        (rows,) = yield [update_stmt(at_=MOMENT)]
        return rows

    assert await database.run(script) == [(MOMENT,)]


async def test_key_expires_at_the_moment_that_was_given(client: httpx2.AsyncClient) -> None:
    body = {"name": "k", "scopes": ["agents:read"], "expires_at": "2031-01-01T00:00:00+05:30"}

    made = (await client.post("/keys", json=body)).json()
    read = (await client.get(f"/keys/{made['id']}")).json()

    assert made["expires_at"] == "2030-12-31T18:30:00Z"
    assert read["expires_at"] == "2030-12-31T18:30:00Z"
