"""Sessions and turns over HTTP, compared with a model of them in memory, by hypothesis."""

import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import hypothesis
import hypothesis.strategies as st
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.to_thread import run_sync
from hypothesis import HealthCheck
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from app.core.database.migrations import upgrade
from app.services.ports import ChatFinished, ChatRequest, FinishReason, TextDelta
from app.state import Providers, build_state
from tests.faults.report import Plan, Report, reporting
from tests.faults_provider.cases import own_database
from tests.support.application import IsolatedSettings, client_of
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber

STEPS = 25
QUEUE_LIMIT = 8
WAIT_SECONDS = 60
HELD = "held"
BEGUN = "Let me think"


class HeldModel:
    """Answers at once, or, where the question says so, in two pieces with a gate between them."""

    context_tokens = 100_000

    def __init__(self) -> None:
        self.gates: dict[str, anyio.Event] = {}
        self.prompts: dict[str, list[str]] = {}

    async def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        """Fulfil `ChatModel.stream`."""
        # The question of a turn that was cancelled in the queue has no answer: it is shown in one
        # message with the next one.
        words = [text for message in request.messages for text in message.content.split("\n\n")]
        question = words[-1]
        self.prompts[question] = words[1:-1]
        if question.startswith(HELD):
            yield TextDelta(BEGUN)
            await self.gates[question].wait()
        yield TextDelta(answer_to(question).removeprefix(BEGUN if is_held(question) else ""))
        yield ChatFinished(FinishReason.STOP, "model", 1, 1, 1)


def is_held(question: str) -> bool:
    return question.startswith(HELD)


def answer_to(question: str) -> str:
    return (BEGUN if is_held(question) else "") + f" of {question}"


@dataclass(slots=True)
class Turn:
    """What the model knows of a turn."""

    question: str
    status: str
    request: "Future[Any] | None" = None
    id: str = ""
    content: str = ""

    @property
    def is_settled(self) -> bool:
        return self.status in {"completed", "cancelled"}


@dataclass(slots=True)
class Conversation:
    """What the model knows of a session."""

    id: str
    title: str | None = None
    turns: list[Turn] = field(default_factory=list[Turn])

    @property
    def unsettled(self) -> list[Turn]:
        return [turn for turn in self.turns if not turn.is_settled]

    @property
    def messages(self) -> list[tuple[str, str, str]]:
        """Role, content and status of each message."""
        rows: list[tuple[str, str, str]] = []
        for turn in self.turns:
            status = turn.status if turn.is_settled else "in_progress"
            content = turn.content if turn.is_settled else ""
            rows += [("user", turn.question, "completed"), ("assistant", content, status)]
        return rows


class Machine(RuleBasedStateMachine):
    """One user with some sessions. `folder` has a migrated database to copy."""

    portal: BlockingPortal
    folder: Path
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.sessions: list[Conversation] = []
        self.replayable: list[tuple[str, dict[str, Any], Any]] = []
        self.count = 0
        self.chat = HeldModel()
        # Entered and left in one task, as task groups must be.
        self._server = self.portal.wrap_async_context_manager(self._serving())
        self._server.__enter__()

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        folder = self.folder / f"run{self.runs}"
        providers = Providers(
            chat_model=self.chat, transcriber=FakeTranscriber(), speaker=FakeSpeaker()
        )
        async with (
            own_database(self.folder / "agent-platform.db", folder) as (settings, database),
            build_state(settings, database, providers) as state,
            client_of(settings, state) as self.http,
        ):
            ada = {"name": "Ada", "system_prompt": "Be brief."}
            self.agent_id = (await self.http.post("/agents", json=ada)).json()["id"]
            yield
            for gate in self.chat.gates.values():
                gate.set()
        await run_sync(shutil.rmtree, folder)

    def teardown(self) -> None:
        self._server.__exit__(None, None, None)

    def call(self, method: str, url: str, **options: Any) -> Any:  # noqa: ANN401  # httpx2's
        async def send() -> Any:  # noqa: ANN401
            return await self.http.request(method, url, **options)

        return self.portal.call(send)

    def until(self, is_so: Callable[[], Awaitable[bool]]) -> None:
        async def wait() -> None:
            with anyio.fail_after(WAIT_SECONDS):
                while not await is_so():
                    await anyio.sleep(0.002)

        self.portal.call(wait)

    def new_question(self, kind: str) -> str:
        self.count += 1
        question = f"{kind} {self.count}"
        if kind == HELD:
            self.chat.gates[question] = anyio.Event()
        return question

    def any_session(self, data: st.DataObject, *, idle: bool | None = None) -> Conversation | None:
        fit = [s for s in self.sessions if idle is None or idle is not bool(s.unsettled)]
        return data.draw(st.sampled_from(fit)) if fit else None

    # What a user does.

    @rule(title=st.none() | st.text("abcä ", min_size=1, max_size=5).filter(str.strip))
    @precondition(lambda self: len(self.sessions) < 4)
    def open_session(self, title: str | None) -> None:
        answer = self.call("POST", "/sessions", json={"agent_id": self.agent_id, "title": title})
        assert answer.status_code == 201, answer.text
        self.sessions.append(Conversation(answer.json()["id"], answer.json()["title"]))

    @rule(data=st.data(), title=st.sampled_from(["one", "two", None]))
    @precondition(lambda self: self.sessions)
    def rename_session(self, data: st.DataObject, title: str | None) -> None:
        conversation = data.draw(st.sampled_from(self.sessions))
        answer = self.call("PATCH", f"/sessions/{conversation.id}", json={"title": title})
        assert answer.status_code == 200
        conversation.title = title

    @rule(data=st.data())
    def delete_session(self, data: st.DataObject) -> None:
        conversation = self.any_session(data, idle=True)
        if conversation is None:
            return
        assert self.call("DELETE", f"/sessions/{conversation.id}").status_code == 204
        assert self.call("GET", f"/sessions/{conversation.id}").status_code == 404
        self.sessions.remove(conversation)
        self.replayable = [r for r in self.replayable if r[1]["session_id"] != conversation.id]

    @rule(data=st.data(), up_to=st.integers(0, 8))
    @precondition(lambda self: len(self.sessions) < 4)
    def fork_session(self, data: st.DataObject, up_to: int) -> None:
        conversation = self.any_session(data, idle=True)
        if conversation is None or up_to > 2 * len(conversation.turns):
            return
        up_to -= up_to % 2  # whole turns, which is what the model knows
        answer = self.call("POST", f"/sessions/{conversation.id}/fork", json={"up_to_seq": up_to})
        assert answer.status_code == 201, answer.text
        kept = [
            Turn(turn.question, turn.status, content=turn.content)  # no turn of its own
            for turn in conversation.turns[: up_to // 2]
        ]
        self.sessions.append(Conversation(answer.json()["id"], answer.json()["title"], kept))

    @rule(data=st.data(), with_key=st.booleans())
    def say(self, data: st.DataObject, with_key: bool) -> None:
        conversation = self.any_session(data, idle=True)
        if conversation is None:
            return
        question = self.new_question("quick")
        # A cancelled answer is shown as far as it came.
        before = [content for _, content, _ in conversation.messages if content]
        body = {"session_id": conversation.id, "content": question}
        key = {"Idempotency-Key": question.replace(" ", "-")} if with_key else {}
        answer = self.call("POST", "/messages/text", json=body, headers=key)
        assert answer.status_code == 200, answer.text
        reply = answer.json()
        assert reply["content"] == answer_to(question)
        assert reply["seq"] == 2 * len(conversation.turns) + 2
        assert self.chat.prompts[question] == before
        turn = Turn(question, "completed", id=reply["turn_id"], content=reply["content"])
        conversation.turns.append(turn)
        if with_key:
            self.replayable.append((key["Idempotency-Key"], body, reply))

    @rule(data=st.data(), is_other=st.booleans())
    @precondition(lambda self: self.replayable)
    def say_again_with_the_key(self, data: st.DataObject, is_other: bool) -> None:
        key, body, reply = data.draw(st.sampled_from(self.replayable))
        sent = body | {"content": "something else"} if is_other else body
        answer = self.call("POST", "/messages/text", json=sent, headers={"Idempotency-Key": key})
        if is_other:
            assert answer.json()["code"] == "idempotency-key-reused"
        else:
            assert answer.json() == reply
            assert answer.headers["idempotent-replayed"] == "true"

    @rule(data=st.data(), on_busy=st.sampled_from(["enqueue", "reject", "interrupt"]))
    def begin_to_say(self, data: st.DataObject, on_busy: str) -> None:
        conversation = self.any_session(data)
        if conversation is None:
            return
        question, waiting = self.new_question(HELD), conversation.unsettled
        body = {"session_id": conversation.id, "content": question, "on_busy": on_busy}
        if waiting and (on_busy == "reject" or len(waiting) > QUEUE_LIMIT):
            answer = self.call("POST", "/messages/text", json=body)
            code = "session-busy" if on_busy == "reject" else "session-queue-full"
            assert answer.json()["code"] == code
            if on_busy == "reject":
                assert answer.json()["active_turn_id"] == waiting[0].id
            return
        turn = Turn(question, "queued" if waiting else "in_progress")
        turn.request = self.portal.start_task_soon(
            lambda: self.http.post("/messages/text", json=body)
        )
        conversation.turns.append(turn)

        async def is_accepted() -> bool:
            stored = (await self.http.get(f"/sessions/{conversation.id}")).json()["messages"]
            turn.id = stored[-1]["turn_id"] if stored else ""
            return len(stored) == 2 * len(conversation.turns)

        self.until(is_accepted)
        if waiting and on_busy == "interrupt":
            self._has_ended(conversation, waiting[0], "cancelled", BEGUN)
        self._wait_for_the_live_one(conversation)

    @rule(data=st.data())
    def let_the_live_one_end(self, data: st.DataObject) -> None:
        conversation = self.any_session(data, idle=False)
        if conversation is None:
            return
        turn = conversation.unsettled[0]
        self.portal.call(self.chat.gates[turn.question].set)
        self._has_ended(conversation, turn, "completed", answer_to(turn.question))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        conversation = self.any_session(data, idle=False)
        if conversation is None:
            return
        turn = data.draw(st.sampled_from(conversation.unsettled))
        is_live = turn is conversation.unsettled[0]
        answer = self.call("POST", f"/turns/{turn.id}/cancel")
        assert answer.json()["status"] == "cancelled", answer.text
        self._has_ended(conversation, turn, "cancelled", BEGUN if is_live else "")

    def _has_ended(self, conversation: Conversation, turn: Turn, status: str, text: str) -> None:
        assert turn.request is not None
        answer = turn.request.result(WAIT_SECONDS)
        expected = 200 if status == "completed" else 409
        assert answer.status_code == expected, (turn, answer.text)
        turn.status, turn.content = status, text
        self._wait_for_the_live_one(conversation)

    def _wait_for_the_live_one(self, conversation: Conversation) -> None:
        if conversation.unsettled:
            live = conversation.unsettled[0]

            async def is_asked() -> bool:
                return live.question in self.chat.prompts

            self.until(is_asked)
            live.status = "in_progress"

    # What must always hold.

    @invariant()
    def what_is_stored_is_what_was_told(self) -> None:
        for conversation in self.sessions:
            stored = self.call("GET", f"/sessions/{conversation.id}").json()
            messages = stored["messages"]
            assert stored["title"] == conversation.title
            assert [message["seq"] for message in messages] == list(range(1, len(messages) + 1))
            told = [(each["role"], each["content"], each["status"]) for each in messages]
            assert told == conversation.messages

    @invariant()
    def each_turn_is_what_it_was_told_to_be(self) -> None:
        for conversation in self.sessions:
            for turn in (turn for turn in conversation.turns[-3:] if turn.id):
                status = self.call("GET", f"/turns/{turn.id}").json()["status"]
                assert status == turn.status, turn

    @invariant()
    def list_has_each_session_once(self) -> None:
        found = self.call("GET", "/sessions", params={"limit": 100}).json()
        assert sorted(each["id"] for each in found) == sorted(each.id for each in self.sessions)


async def sessions_and_turns(plan: Plan) -> Report:
    """Let hypothesis do what users do, in any order."""
    name = "model"
    runs = plan.rounds(30, 2000)
    async with reporting(name, plan) as report:
        await run_sync(_run_all, plan.seed, runs)
        report.figures = {"runs": runs, "steps_at_most": STEPS}
    return report


def _run_all(seed: int, runs: int) -> None:
    with (
        TemporaryDirectory(prefix="faults-model-") as name,
        start_blocking_portal(backend_options={"use_uvloop": True}) as portal,
    ):
        folder = Path(name)
        upgrade(IsolatedSettings(data_dir=folder))

        class Seeded(Machine):
            pass

        Seeded.portal, Seeded.folder = portal, folder
        seeded = hypothesis.seed(seed)(Seeded)
        run_machine(
            seeded,
            settings=hypothesis.settings(
                max_examples=runs,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[hypothesis.Phase.generate],  # each step of shrinking may wait for nothing
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
