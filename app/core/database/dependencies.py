"""Dependencies of endpoints: the `Database`, or one transaction for the request.

FastAPI passes the `HTTPConnection` by its type, so this module does not import FastAPI.
"""

from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from app.core.database.database import Database


async def get_database(connection: HTTPConnection) -> Database:
    """Return the `Database` that the application's lifespan opened."""
    database: Database = connection.state.database
    return database


async def get_db(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Yield the request's ORM session; it is one transaction."""
    database = await get_database(connection)
    async with database.transaction() as db:
        yield db


async def get_reading_db(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Yield the request's ORM session, for endpoints that only read."""
    database = await get_database(connection)
    async with database.reading() as db:
        yield db
