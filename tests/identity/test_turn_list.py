"""`GET /turns` shows nobody the turns of others."""

import pytest

from tests.identity.world import World, bearer

pytestmark = pytest.mark.anyio


async def test_callers_see_the_turns_of_their_own_sessions_alone(world: World) -> None:
    mine = await world.things(user_id="user-1")
    theirs = await world.things(user_id="user-2")
    in_other_workspace = await world.things(world.callers["other workspace"], user_id=None)

    async def seen(headers: dict[str, str], **filters: str) -> set[str]:
        answer = await world.client.get("/turns", headers=headers, params=filters)
        return {turn["id"] for turn in answer.json()}

    of_user = bearer(world.issuer.token("user-1"))
    assert theirs.turn_id not in await seen(of_user)
    assert mine.turn_id in await seen(of_user)
    assert await seen(of_user, session_id=theirs.session_id) == set()
    assert await seen(await world.token(mine.session_id)) == {mine.turn_id}
    token = await world.token(mine.session_id)
    assert await seen(token, session_id=theirs.session_id) == set()
    assert await seen(world.callers["other workspace"]) == {in_other_workspace.turn_id}
    assert in_other_workspace.turn_id not in await seen(world.callers["key"])
