"""Slugs of agents: short names for URLs and for the clients of other APIs."""

import re
import unicodedata
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Agent, new_id

SLUG_PREFIX = "agent-"
"""Before a slug, where an agent is named as a model."""
_LONGEST_SLUG = 48
_NUMBERED_SLUGS = 50


def slug_of(name: str) -> str:
    """Return the letters `a-z`, digits and hyphens of a name; `agent` where it has none."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:_LONGEST_SLUG].strip("-")
    return slug or "agent"


async def free_slug(db: AsyncSession, workspace_id: UUID, name: str) -> str:
    """Return the slug of a name, with a number behind it where an agent has it already.

    Behind the 50th of a name it is a random one, which bounds the search.
    """
    slug = slug_of(name)
    numbered = [slug, *(f"{slug}-{number}" for number in range(2, _NUMBERED_SLUGS + 1))]
    query = select(Agent.slug).where(Agent.workspace_id == workspace_id, Agent.slug.in_(numbered))
    taken = set(await db.scalars(query))
    free = (candidate for candidate in numbered if candidate not in taken)
    return next(free, None) or unused_slug(name)


def unused_slug(name: str) -> str:
    """Return the slug of a name with random digits behind it, which no agent has."""
    return f"{slug_of(name)}-{new_id().hex[-12:]}"
