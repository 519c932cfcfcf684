"""What the model is shown: what fits, in blocks, and always the question."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import MessageStatus, Role
from app.services.turns.prompt import HistoryMessage, build_prompt, estimate_tokens


def history(count: int, words: str = "word " * 20, first: int = 1) -> list[HistoryMessage]:
    """An alternating history that ends with a question."""
    return [
        HistoryMessage(
            seq, Role.USER if seq % 2 else Role.ASSISTANT, MessageStatus.COMPLETED, f"{seq} {words}"
        )
        for seq in range(first, first + count)
    ]


def shown(messages: list[HistoryMessage], context_tokens: int) -> list[int]:
    prompt = build_prompt(
        "Be brief.", messages, context_tokens=context_tokens, max_output_tokens=100
    )
    assert prompt[0].role is Role.SYSTEM
    return [int(message.content.split()[0]) for message in prompt[1:]]


def test_short_history_is_shown_whole() -> None:
    assert shown(history(9), 8000) == list(range(1, 10))


def test_window_moves_in_blocks_so_that_the_prefix_stays_equal() -> None:
    starts = [shown(history(count), 1500)[0] for count in range(1, 201, 2)]

    assert starts == sorted(starts)
    assert set(starts) == {1} | {start for start in starts if start % 16 == 1}
    changes = sum(before != after for before, after in pairwise(starts))
    assert changes <= 13


@pytest.mark.parametrize("context_tokens", [512, 1000, 4096])
def test_prompt_fits_in_the_context(context_tokens: int) -> None:
    messages = history(199)

    numbers = shown(messages, context_tokens)

    used = sum(estimate_tokens(message.content) for message in messages if message.seq in numbers)
    assert used <= context_tokens or numbers == [199]
    assert numbers[-1] == 199


def test_question_that_is_too_long_by_itself_is_shown_all_the_same() -> None:
    assert shown(history(5, "word " * 5000), 1000) == [5]


def test_history_that_was_loaded_from_the_middle_begins_at_a_block() -> None:
    assert shown(history(200, first=802), 10**9)[0] == 817


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
