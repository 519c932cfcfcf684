"""What clients were told, compared with what is stored and with what the provider saw."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from tests.faults.recorder import Message, Recorder, answer_to
from tests.faults.servers import Platform

SYSTEM = {"role": "system", "content": "You are Ada."}
LOADED_MESSAGES = 200

Export = dict[str, Any]
Prompt = list[dict[str, str]]


async def compare(recorder: Recorder, platform: Platform) -> list[str]:
    """Return everything that is wrong after a row, with all its servers up."""
    wrongs = [f"{m.content!r}: {wrong}" for m in recorder.messages for wrong in m.wrongs]
    sessions = {message.session_id for message in recorder.messages}
    wrongs += await compare_sessions(recorder, platform, sessions)
    wrongs += await _compare_by_sql(recorder, platform)
    known = {message.content for message in recorder.messages}
    stored = {row[0] for row in await platform.query(_USER_MESSAGES)}
    for content in prompts_seen(platform):
        if content in known and content not in stored:
            wrongs.append(f"{content!r}: the provider was asked, and nothing is stored")
    return wrongs


async def compare_sessions(
    recorder: Recorder, platform: Platform, session_ids: Collection[str]
) -> list[str]:
    """Compare some sessions, read back over HTTP."""
    sent: dict[str, list[Message]] = defaultdict(list)
    for message in recorder.messages:
        sent[message.session_id].append(message)
    prompts = prompts_seen(platform)
    wrongs: list[str] = []
    for session_id in session_ids:
        url = f"{recorder.urls[0]}/sessions/{session_id}/export"
        async with recorder.http.get(url) as response:
            if response.status != 200:
                wrongs.append(f"session {session_id} answers {response.status}")
                continue
            export: Export = await response.json()
        wrongs += _compare_session(export, sent[session_id], prompts)
        wrongs += await _compare_last_turn(recorder, sent[session_id])
    return wrongs


def prompts_seen(platform: Platform) -> dict[str, list[Prompt]]:
    """Return the prompts that the provider saw, by their question."""
    prompts: dict[str, list[Prompt]] = defaultdict(list)
    for request in list(platform.provider.requests):
        if request.path == "/v1/chat/completions":
            prompt: Prompt = request.body["messages"]
            prompts[prompt[-1]["content"].rpartition("\n\n")[2]].append(prompt)
    return prompts


def _compare_session(
    export: Export, sent: Iterable[Message], prompts: dict[str, list[Prompt]]
) -> list[str]:
    messages: list[dict[str, Any]] = export["messages"]
    turns = {turn["id"]: turn for turn in export["turns"]}
    asked = {message["content"]: message for message in messages if message["role"] == "user"}
    wrongs = [f"session {export['session']['id']}: {w}" for w in _compare_shape(messages, sent)]
    for message in sent:
        told = f"{message.content!r} (turn {message.turn_id}, {[str(t) for t in message.told]})"
        question = asked.get(message.content)
        if question is None:
            wrongs += [f"{told}: acknowledged and LOST"] if message.reply else []
            continue
        seq: int = question["seq"]
        seen = prompts.get(message.content, [])
        expected = _expected_prompt(messages[:seq])
        turn = turns[question["turn_id"]]
        found = [*_compare_prompts(message, turn, seen, expected)]
        if message.reply:
            found += _compare_answer(message, messages[seq], turn)
        wrongs += [f"{told}: {wrong}" for wrong in found]
    return wrongs


def _compare_shape(messages: list[dict[str, Any]], sent: Iterable[Message]) -> Iterable[str]:
    if [message["seq"] for message in messages] != list(range(1, len(messages) + 1)):
        yield "seq has gaps"
    if any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(messages)):
        yield "roles do not alternate"
    asked = {message["content"] for message in messages if message["role"] == "user"}
    if doubled := len(messages) // 2 - len(asked):
        yield f"{doubled} messages are doubled"
    if strangers := asked - {message.content for message in sent}:
        yield f"nobody sent {strangers}"


def _compare_prompts(
    message: Message, turn: dict[str, Any], seen: list[Prompt], expected: Prompt
) -> Iterable[str]:
    if len(seen) > turn["attempt"]:
        yield f"asked {len(seen)} times in {turn['attempt']} attempts"
    if message.reply and not seen:
        yield "answered without the provider"
    if not all(_is_whole_end(prompt, expected) for prompt in seen):
        yield f"a prompt is not the settled prefix: {seen} != {expected}"


def _compare_answer(
    message: Message, answer: dict[str, Any], turn: dict[str, Any]
) -> Iterable[str]:
    reply = message.reply or {}
    if answer["id"] != reply["id"] or answer["seq"] != reply["seq"]:
        yield f"the acknowledged answer is another one: {answer} != {reply}"
    if answer["content"] != reply["content"]:
        yield f"acknowledged {reply['content']!r}, stored {answer['content']!r}"
    if answer["content"] != answer_to(message.content):
        yield f"the provider did not say {answer['content']!r}"
    if (answer["status"], turn["status"]) != ("completed", "completed"):
        yield f"acknowledged, and stored as {answer['status']} in a {turn['status']} turn"


def _expected_prompt(messages: list[dict[str, Any]]) -> Prompt:
    """Return the messages as a prompt has them: neighbours of one role are joined."""
    prompt: Prompt = []
    for message in messages:
        role, content = message["role"], message["content"]
        if not content or (role == "assistant" and message["status"] == "failed"):
            continue
        if prompt and prompt[-1]["role"] == role:
            prompt[-1]["content"] += f"\n\n{content}"
        else:
            prompt.append({"role": role, "content": content})
    return prompt


def _is_whole_end(prompt: Prompt, expected: Prompt) -> bool:
    """Tell whether a prompt has all messages, or the newest of very many."""
    if prompt[0] != SYSTEM:
        return False
    shown = prompt[1:]
    is_long_enough = len(shown) >= min(len(expected), LOADED_MESSAGES // 2)
    return is_long_enough and shown == expected[-len(shown) :]


async def _compare_last_turn(recorder: Recorder, sent: list[Message]) -> list[str]:
    """Read one stream of a session again, from its first event."""
    last = next((m for m in reversed(sent) if m.reply and m.events), None)
    if last is None:
        return []
    again = Message(last.key, last.session_id, last.content, streams=True)
    again.turn_id = last.turn_id
    await recorder.attempt(again)
    if again.reply != last.reply:
        told = [str(told) for told in again.told]
        return [f"{last.content!r}: read again it says {again.reply} {told}, not {last.reply}"]
    return [f"{last.content!r}, read again: {wrong}" for wrong in again.wrongs]


_USER_MESSAGES = "SELECT content FROM {schema}messages WHERE role = 'user'"


async def _compare_by_sql(recorder: Recorder, platform: Platform) -> list[str]:
    wrongs: list[str] = []
    if unsettled := await platform.unsettled():
        wrongs.append(f"{unsettled} turns are stuck")
    contents = Counter(row[0] for row in await platform.query(_USER_MESSAGES))
    wrongs += [f"{content!r} is stored {n} times" for content, n in contents.items() if n > 1]
    lost = [m.content for m in recorder.messages if m.reply and m.content not in contents]
    wrongs += [f"{content!r}: acknowledged and LOST (by SQL)" for content in lost]
    ((orphans,),) = await platform.query(
        "SELECT count(*) FROM {schema}idempotency_keys WHERE turn_id IS NULL AND status IS NULL"
    )
    if orphans:
        wrongs.append(f"{orphans} keys lead to nothing")
    ((waiting,),) = await platform.query(
        "SELECT count(*) FROM {schema}messages WHERE status = 'in_progress'"
    )
    if waiting:
        wrongs.append(f"{waiting} messages wait for ever")
    if platform.is_sqlite:
        ((verdict,),) = await platform.query("PRAGMA integrity_check")
        if verdict != "ok":
            wrongs.append(f"the file is damaged: {verdict}")
    return wrongs


def unexpected(
    book: Recorder, codes: Collection[str], *, may_break: bool, also: Collection[str] = ()
) -> list[str]:
    """Return answers that are neither success nor a retryable refusal with one of `codes`.

    `also`: whole answers that are right here. `may_break`: connections may end in the middle, as
    those of a killed server do.
    """
    allowed = {"200", *also} | {f"503 {code}" for code in codes}
    allowed |= {f"200 turn.failed {code}" for code in codes}
    allowed |= {f"200 {code}" for code in ("server.draining", "turn-state-unknown")}
    if may_break:
        allowed |= {"200 no end"}
    wrong = {
        words: count
        for words, count in book.tally().items()
        if words not in allowed and not (may_break and words.startswith("0 "))
    }
    return [f"{count} clients were told {words!r}" for words, count in wrong.items()]


def figures(book: Recorder, **more: object) -> dict[str, object]:
    """Return what every row tells."""
    tally = dict(sorted(book.tally().items(), key=lambda pair: -pair[1]))
    sent = {"sent": len(book.messages), "acknowledged": len(book.acknowledged)}
    return more | sent | {"told": tally}
