"""Whatever happens to turns, keys and sessions: budgets equal a ledger that is kept beside them."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, cast
from uuid import UUID, uuid4

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.core.database import Database
from app.core.limits import NO_LIMITS, KeyLimits, Limits
from app.core.security import ADMIN, ALL_PERMISSIONS, DEFAULT_WORKSPACE_ID, Caller, CallerKind
from app.models import Budget, KeptUsage, Turn, new_id
from app.services import crud
from app.services.identity import CannotGrant, api_keys
from app.services.ports import (
    ChatFinished,
    ChatRequest,
    FinishReason,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    TextDelta,
)
from app.services.turns import LiveTurn, RequestKey, TurnEngine, TurnOptions
from app.services.turns.errors import TurnCancellation
from app.services.usage import AccountDirectory, PriceTable
from app.services.usage.accounts import Account
from app.services.usage.errors import BudgetExhausted, TooManyTurns

pytestmark = pytest.mark.anyio

OUTPUT_TOKENS = 60
DEFAULTS = KeyLimits(
    Limits(0, 3, 0, 20_000, 0), Limits(0, 2, 0, 3_000, 0)
)  # small enough that some are reached
End = Literal["answer", "refuse", "break", "cancel", "hold"]


@dataclass(frozen=True)
class Grant:
    """A key makes another one, with a limit of tokens; 0 is none."""

    maker: int
    tokens_per_day: int


@dataclass(frozen=True)
class Say:
    """A caller says something in a session."""

    caller: int
    session: int
    end: End
    share: float
    """How much of what it may use the provider says that it used; above 1 it ignores the limit."""


@dataclass(frozen=True)
class Repeat:
    """A request is sent again with its key."""

    turn: int


@dataclass(frozen=True)
class Release:
    """The turn that was held longest ends."""


@dataclass(frozen=True)
class Delete:
    session: int


Step = Grant | Say | Repeat | Release | Delete
small = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.builds(Grant, small, st.sampled_from([0, 500, 1_000, 5_000, 30_000])),
        st.builds(
            Say,
            small,
            small,
            st.sampled_from(["answer", "answer", "refuse", "break", "cancel", "hold"]),
            st.floats(0, 3),
        ),
        st.builds(Repeat, small),
        st.builds(Release),
        st.builds(Delete, small),
    ),
    min_size=4,
    max_size=20,
)


@dataclass
class ScriptedChatModel:
    """Uses, answers, fails or waits as it is told."""

    context_tokens: int = 1_000
    end: End = "answer"
    share: float = 1.0
    opened: list[anyio.Event] = field(default_factory=list[anyio.Event])
    arrived: anyio.Event = field(default_factory=anyio.Event)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        end, share = self.end, self.share
        self.arrived.set()
        if end == "refuse":
            raise ProviderRejected("no")
        if end == "break":
            raise ProviderTimeout("slow")
        if end in {"hold", "cancel"}:
            gate = anyio.Event()
            if end == "hold":
                self.opened.append(gate)
            await gate.wait()
        for _ in range(1 if share <= 2 else 1_000):  # above 2 its answer has no end, either
            yield TextDelta("Hello there!")
        most_prompt = sum(len(line.content.encode()) + 8 for line in request.messages)
        yield ChatFinished(
            FinishReason.STOP,
            "gpt-6-luna",
            int(most_prompt * min(share, 1)),
            0,
            int((request.max_output_tokens or 0) * share),
        )


@dataclass
class Ledger:
    """What each bucket must have, counted from what clients were told."""

    database: Database
    turns: dict[UUID, tuple[str, ...]] = field(default_factory=dict[UUID, tuple[str, ...]])
    """Accepted turns and whom they are charged to."""
    gone: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Tokens and nano-dollars of turns that were deleted."""

    async def amounts(self, turn_id: UUID) -> tuple[int, int]:
        async with self.database.reading() as db:
            turn = await db.get(Turn, (DEFAULT_WORKSPACE_ID, turn_id))
        assert turn
        if turn.ended_at is None:
            assert turn.reserved_tokens is not None
            assert turn.reserved_nanos is not None
            used = (turn.prompt_tokens or 0) + (turn.completion_tokens or 0)
            return turn.reserved_tokens + used, turn.reserved_nanos + (turn.cost_nanos or 0)
        tokens = (turn.prompt_tokens or 0) + (turn.completion_tokens or 0)
        assert turn.cost_nanos is not None
        assert tokens <= (turn.reserved_tokens or 0) * turn.attempt
        assert turn.cost_nanos <= (turn.reserved_nanos or 0) * turn.attempt
        return tokens, turn.cost_nanos

    async def forget(self, turn_ids: list[UUID]) -> None:
        for turn_id in turn_ids:
            self._charge_gone(turn_id, *await self.amounts(turn_id))

    async def bill_deleted(self, turn_id: UUID) -> None:
        """Count a turn that ran while its session was deleted, by the bill that is kept of it."""
        async with self.database.reading() as db:
            bill = await db.get(KeptUsage, (DEFAULT_WORKSPACE_ID, turn_id))
        assert bill
        amounts = (bill.prompt_tokens or 0) + (bill.completion_tokens or 0), bill.cost_nanos or 0
        self._charge_gone(turn_id, *amounts)

    def _charge_gone(self, turn_id: UUID, tokens: int, nanos: int) -> None:
        for name in self.turns.pop(turn_id):
            before = self.gone.get(name, (0, 0))
            self.gone[name] = before[0] + tokens, before[1] + nanos

    async def check(self, limits: dict[str, int]) -> None:
        expected = dict(self.gone)
        for turn_id, names in self.turns.items():
            tokens, nanos = await self.amounts(turn_id)
            for name in names:
                before = expected.get(name, (0, 0))
                expected[name] = before[0] + tokens, before[1] + nanos
        async with self.database.reading() as db:
            rows = (await db.scalars(select(Budget).where(Budget.bucket.in_(limits)))).all()
        assert {row.bucket: (row.tokens, row.nanos) for row in rows} == {
            name: expected.get(name, (0, 0)) for name in {row.bucket for row in rows}
        }
        assert {name for name, amount in expected.items() if any(amount)} <= {
            row.bucket for row in rows
        }
        for row in rows:
            assert not limits[row.bucket] or row.tokens <= limits[row.bucket], row.bucket


class Run:
    """One sequence of steps, with keys, users and sessions of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.model = ScriptedChatModel()
        self.accounts = AccountDirectory(DEFAULTS, NO_LIMITS, PriceTable(), 1_000)
        self.engine = TurnEngine(database, self.model, accounts=self.accounts)
        self.ledger = Ledger(database)
        self.keys: list[Caller] = []
        self.users = [f"user-{uuid4().hex[:8]}" for _ in range(2)]
        self.limits: dict[str, int] = {f"user:{user}": 3_000 for user in self.users}
        self.sessions: list[tuple[UUID, str | None]] = []
        self.requests: list[tuple[Caller, UUID, UUID, TurnOptions]] = []
        self.held: list[tuple[LiveTurn, anyio.Event]] = []

    async def prepare(self) -> None:
        await self.grant_root()
        async with self.database.transaction() as db:
            agent = await crud.create_agent(
                db,
                DEFAULT_WORKSPACE_ID,
                name="A",
                system_prompt="Be brief.",
                model="gpt-6-luna",
                max_output_tokens=OUTPUT_TOKENS,
            )
            for number in range(6):
                user = (None, *self.users)[number % 3]
                session = await crud.create_session(db, ADMIN, agent.id, user_id=user)
                self.sessions.append((session.id, user))

    async def grant_root(self) -> None:
        await self._grant(ADMIN, 20_000)

    async def _grant(self, maker: Caller, tokens_per_day: int) -> None:
        new_key = api_keys.NewKey(
            "k", sorted(ALL_PERMISSIONS), None, KeyLimits(Limits(tokens_per_day=tokens_per_day))
        )
        async with self.database.transaction() as db:
            key, _ = await api_keys.create(db, maker, new_key, DEFAULTS)
        ancestors = ((maker.key_id, maker.limits), *maker.ancestors) if maker.key_id else ()
        limits = api_keys.limits_of(key)
        self.keys.append(
            Caller(
                DEFAULT_WORKSPACE_ID,
                CallerKind.KEY,
                key_id=key.id,
                limits=limits.own,
                ancestors=cast("tuple[tuple[str, Limits], ...]", ancestors),
            )
        )
        self.limits[key.id] = tokens_per_day

    async def grant(self, step: Grant) -> None:
        maker = self.keys[step.maker % len(self.keys)]
        bounds = [self.limits[name] for name in (maker.key_id, *dict(maker.ancestors)) if name]
        asks_more = any(bound and not 0 < step.tokens_per_day <= bound for bound in bounds)
        try:
            await self._grant(maker, step.tokens_per_day)
        except CannotGrant:
            assert asks_more
        else:
            assert not asks_more

    async def say(self, step: Say) -> None:
        if not self.sessions:
            return
        caller = self.keys[step.caller % len(self.keys)]
        session_id, user = self.sessions[step.session % len(self.sessions)]
        key = RequestKey(uuid4().hex, bytes(32))
        options = TurnOptions(key=key)
        self.model.end, self.model.share, self.model.arrived = step.end, step.share, anyio.Event()
        try:
            live = await self.engine.start(caller, session_id, "Hi", None, options)
        except (BudgetExhausted, TooManyTurns):
            return
        names = [caller.key_id or "", *dict(caller.ancestors)]
        names += [f"user:{user}"] if user else []
        self.ledger.turns[live.record.id] = tuple(names)
        self.requests.append((caller, session_id, live.record.id, options))
        if live.record.status == "queued":  # behind a held one
            await self.engine.cancel(caller, live.record.id)
            return
        await self.model.arrived.wait()
        if step.end == "hold":
            self.held.append((live, self.model.opened[-1]))
            return
        if step.end == "cancel":
            await self.engine.cancel(caller, live.record.id)
        await live.settled.wait()

    async def repeat(self, step: Repeat) -> None:
        if not self.requests:
            return
        caller, session_id, turn_id, options = self.requests[step.turn % len(self.requests)]
        self.model.end, self.model.share = "answer", 1.0
        try:
            live = await self.engine.start(caller, session_id, "Hi", None, options)
        except (BudgetExhausted, TooManyTurns, crud.SessionNotFound):
            return
        assert live.record.id == turn_id
        if any(held.record.id == turn_id for held, _ in self.held):
            return
        if live.record.status == "queued":
            await self.engine.cancel(caller, turn_id)
            return
        with suppress(ProviderError, TurnCancellation):
            await self.engine.result(live)

    async def release(self) -> None:
        if self.held:
            live, gate = self.held.pop(0)
            gate.set()
            await live.settled.wait()

    async def delete(self, step: Delete) -> None:
        if not self.sessions:
            return
        session_id, _ = self.sessions.pop(step.session % len(self.sessions))
        of_session = [turn for _, session, turn, _ in self.requests if session == session_id]
        held = {live.record.id for live, _ in self.held if live.record.session_id == session_id}
        await self.ledger.forget([turn for turn in of_session if turn not in held])
        self.requests = [each for each in self.requests if each[1] != session_id]
        async with self.database.transaction() as db:
            await crud.delete_session(db, ADMIN, session_id)
        for live, gate in [each for each in self.held if each[0].record.session_id == session_id]:
            self.held.remove((live, gate))
            gate.set()
            await live.settled.wait()
            await self.ledger.bill_deleted(live.record.id)

    async def take(self, step: Step) -> None:
        match step:
            case Grant():
                await self.grant(step)
            case Say():
                await self.say(step)
            case Repeat():
                await self.repeat(step)
            case Release():
                await self.release()
            case Delete():
                await self.delete(step)
        await self.ledger.check(self.limits)


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
async def test_budgets_equal_the_ledger_after_every_step(
    database: Database, steps: list[Step]
) -> None:
    run = Run(database)
    await run.prepare()
    async with run.engine.running():
        for step in steps:
            await run.take(step)
        while run.held:
            await run.release()
        await run.ledger.check(run.limits)


def test_account_of_nobody_has_no_budgets() -> None:
    assert Account(new_id()).budgets("somebody") == ()
