"""What the model is shown: what fits, from a stable start on, and always the question."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import MessageStatus, Role
from app.services.turns.context.prompt import build_prompt, estimate_tokens
from app.services.turns.records import HistoryMessage


def history(count: int, words: str = "word " * 20, first: int = 1) -> list[HistoryMessage]:
    """An alternating history that ends with a question."""
    return [
        HistoryMessage(
            seq, Role.USER if seq % 2 else Role.ASSISTANT, MessageStatus.COMPLETED, f"{seq} {words}"
        )
        for seq in range(first, first + count)
    ]


def shown(messages: list[HistoryMessage], context_tokens: int) -> list[int]:
    prompt = build_prompt("Be brief.", messages, context_tokens=context_tokens, output_tokens=100)
    assert prompt[0].role is Role.SYSTEM
    return [int(message.content.split()[0]) for message in prompt[1:]]


def test_short_history_is_shown_whole() -> None:
    assert shown(history(9), 8000) == list(range(1, 10))


def tokens_of(messages: Sequence[HistoryMessage]) -> int:
    return sum(estimate_tokens(message.content) for message in messages)


ROOM_OF_4096 = 3072 - estimate_tokens("Be brief.")


def prompts_of_a_session(
    messages: list[HistoryMessage], room: int, loaded: int = 200
) -> list[list[int]]:
    """Return the numbers of the messages in the prompt of each turn of a session."""
    prompts: list[list[int]] = []
    for end in range(1, len(messages) + 1, 2):
        prompt = build_prompt(
            "", messages[max(0, end - loaded) : end], context_tokens=room + 100 + 4,
            output_tokens=100,
        )  # fmt: skip
        prompts.append([int(message.content.split()[0]) for message in prompt])
    return prompts


def test_long_messages_leave_more_than_the_question_and_the_start_is_stable() -> None:
    messages = history(99, "words " * 300)

    prompts = prompts_of_a_session(messages, ROOM_OF_4096)

    counts = [len(prompt) for prompt in prompts]
    assert counts[:3] == [1, 3, 5]
    assert set(counts[3:]) == {3, 5}
    starts = [prompt[0] for prompt in prompts]
    assert starts[3:] == [start for start in starts[3::2] for _ in range(2)][: len(starts[3:])]


@pytest.mark.parametrize("words", [1, 20, 60, 120])
@pytest.mark.parametrize("room", [1000, 4000, 16_000])
def test_window_moves_on_by_a_quarter_of_its_room(words: int, room: int) -> None:
    messages = history(399, "word " * words)
    size = tokens_of(messages[100:300]) / 200

    starts = [prompt[0] for prompt in prompts_of_a_session(messages, room, loaded=2000)]

    moves = [after - before for before, after in pairwise(starts) if after != before]
    assert starts == sorted(starts)
    assert len(moves) * room / 4 <= 399 * size + room
    assert all(move * size >= room / 4 - 3 * size for move in moves)


@given(
    lengths=st.lists(st.integers(0, 280), min_size=60, max_size=150),
    shift=st.integers(0, 1),
    loaded=st.integers(120, 200),
)
def test_window_is_half_full_and_moves_forward_only(
    lengths: list[int], shift: int, loaded: int
) -> None:
    """Messages of up to a tenth of the room; imported sessions may begin with an answer."""
    room = 1000
    messages = [
        HistoryMessage(
            seq,
            Role.USER if (seq + shift) % 2 else Role.ASSISTANT,
            MessageStatus.COMPLETED,
            f"{seq} " + "x" * n,
        )
        for seq, n in enumerate(lengths, start=1)
    ]
    questions = [end for end in range(1, len(messages) + 1) if messages[end - 1].role == Role.USER]
    last_start = 0
    for end in questions:
        history_of_turn = messages[max(0, end - loaded) : end]
        prompt = build_prompt("", history_of_turn, context_tokens=room + 104, output_tokens=100)
        numbers = [int(message.content.split()[0]) for message in prompt]
        used = tokens_of([message for message in messages[:end] if message.seq >= numbers[0]])
        whole = tokens_of(messages[messages[0].role != Role.USER : end])
        assert numbers == list(range(numbers[0], end + 1))
        assert min(whole, room / 2) <= used <= room
        assert numbers[0] >= last_start
        last_start = numbers[0]


def test_start_does_not_depend_on_what_is_loaded() -> None:
    messages = history(199)

    starts = {
        build_prompt("", messages[first:], context_tokens=1500, output_tokens=100)[0].content
        for first in range(80)
    }

    assert len(starts) == 1


@pytest.mark.parametrize("context_tokens", [512, 1000, 4096])
def test_prompt_fits_in_the_context(context_tokens: int) -> None:
    messages = history(199)

    numbers = shown(messages, context_tokens)

    used = sum(estimate_tokens(message.content) for message in messages if message.seq in numbers)
    assert used <= context_tokens or numbers == [199]
    assert numbers[-1] == 199


def test_question_that_is_too_long_by_itself_is_shown_all_the_same() -> None:
    assert shown(history(5, "word " * 5000), 1000) == [5]


def test_start_of_a_history_that_was_loaded_from_the_middle_is_stable() -> None:
    firsts = range(2, 602, 2)
    starts = [shown(history(200, "", first), 10**9)[0] for first in firsts]

    moves = [after - before for before, after in pairwise(starts) if after != before]
    assert set(moves) == {64}
    assert all(first <= start <= first + 101 for first, start in zip(firsts, starts, strict=True))


@pytest.mark.parametrize("count", [199, 200, 201])
def test_at_least_half_of_a_history_that_was_loaded_in_part_is_shown(count: int) -> None:
    firsts = range(2 + count % 2, 602, 2)
    assert min(len(shown(history(count, "", first), 10**9)) for first in firsts) >= count // 2


@given(
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    context_tokens=st.integers(512, 20_000),
)
def test_question_is_always_last_and_nothing_in_between_is_left_out(
    lengths: list[int], context_tokens: int
) -> None:
    messages = [
        HistoryMessage(
            seq,
            Role.USER if seq % 2 else Role.ASSISTANT,
            MessageStatus.COMPLETED,
            f"{seq} " + "x" * n,
        )
        for seq, n in enumerate(lengths, start=1)
    ]

    numbers = shown(messages, context_tokens)

    assert numbers[-1] == len(lengths)
    assert numbers == list(range(numbers[0], len(lengths) + 1))


def line(seq: int, role: Role, content: str, status: MessageStatus) -> HistoryMessage:
    return HistoryMessage(seq, role, status, content)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param(
            [
                line(1, Role.USER, "One?", MessageStatus.COMPLETED),
                line(2, Role.ASSISTANT, "Half an ans", MessageStatus.FAILED),
                line(3, Role.USER, "Two?", MessageStatus.COMPLETED),
                line(4, Role.ASSISTANT, "", MessageStatus.CANCELLED),
                line(5, Role.USER, "Three?", MessageStatus.COMPLETED),
            ],
            [(Role.USER, "One?\n\nTwo?\n\nThree?")],
            id="failed and empty answers",
        ),
        pytest.param(
            [
                line(1, Role.USER, "", MessageStatus.FAILED),
                line(2, Role.ASSISTANT, "Welcome.", MessageStatus.COMPLETED),
                line(3, Role.ASSISTANT, "Ask me.", MessageStatus.COMPLETED),
                line(4, Role.USER, "Now?", MessageStatus.COMPLETED),
            ],
            [(Role.USER, "Now?")],
            id="answers before any question",
        ),
        pytest.param(
            [
                line(1, Role.USER, "One?", MessageStatus.COMPLETED),
                line(2, Role.ASSISTANT, "Yes.", MessageStatus.COMPLETED),
                line(3, Role.USER, "", MessageStatus.FAILED),
                line(4, Role.ASSISTANT, "And more.", MessageStatus.COMPLETED),
                line(5, Role.USER, "Two?", MessageStatus.COMPLETED),
            ],
            [
                (Role.USER, "One?"),
                (Role.ASSISTANT, "Yes.\n\nAnd more."),
                (Role.USER, "Two?"),
            ],
            id="two answers in a row",
        ),
    ],
)
def test_roles_alternate_and_the_user_begins(
    messages: list[HistoryMessage], expected: list[tuple[Role, str]]
) -> None:
    prompt = build_prompt("Be brief.", messages, context_tokens=8000, output_tokens=100)

    assert prompt[0].role is Role.SYSTEM
    assert [(message.role, message.content) for message in prompt[1:]] == expected
