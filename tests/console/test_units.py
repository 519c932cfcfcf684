"""Parts of the console's scripts that need a browser, and nothing else of the page."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.console.conftest import PAGE_UNITS, OpenPage

POST = {"path": "messages/text", "body": {"content": "Hi"}, "key": "the-key"}
CREATED = 'id: 1\nevent: turn.created\ndata: {"turn_id": "T"}\n\n'
BEGUN = 'id: 2\nevent: turn.in_progress\ndata: {"attempt": 1}\n\n'
WORDS = 'id: 3\nevent: output_text.delta\ndata: {"delta": "a"}\n\n'
DONE = "id: 4\nevent: turn.completed\ndata: {}\n\n"
ALL = [[1, "turn.created"], [2, "turn.in_progress"], [3, "output_text.delta"]]


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    page = open_page()
    page.evaluate(PAGE_UNITS.read_text())
    return page


def run_turn(page: Page, *script: dict[str, Any], **options: Any) -> dict[str, Any]:
    return page.evaluate(
        "(given) => window.units.runTurn(...given)", [list(script), options or POST]
    )


def test_text_that_grows_is_lexed_as_the_whole_is(page: Page) -> None:
    assert page.evaluate("(count) => window.units.lexed(count)", 400) == []


@pytest.mark.parametrize(
    ("timings", "more", "stages"),
    [
        ({}, {}, []),
        (
            {"first_token_ms": 400, "total_ms": 900},
            {"modality": "text"},
            [["thinking", 0, 400], ["writing", 400, 900]],
        ),
        (
            {
                "stt_ms": 300, "first_token_ms": 700, "first_sentence_ms": 900,
                "first_audio_ms": 1100, "total_ms": 1600,
            },
            {"modality": "voice"},
            [
                ["hearing", 0, 300], ["thinking", 300, 700], ["writing", 700, 900],
                ["voicing", 900, 1100], ["speaking", 1100, 1600],
            ],
        ),
        (
            {"first_token_ms": 5400, "total_ms": 6000},
            {
                "modality": "text",
                "created_at": "2026-01-01T00:00:00Z",
                "started_at": "2026-01-01T00:00:05Z",
            },
            [["queued", 0, 5000], ["thinking", 5000, 5400], ["writing", 5400, 6000]],
        ),
        ({"total_ms": 50}, {"modality": "text"}, [["writing", 0, 50]]),
    ],
)  # fmt: skip
def test_turn_is_cut_into_stages(
    page: Page, timings: dict[str, int], more: dict[str, str], stages: list[list[Any]]
) -> None:
    assert (
        page.evaluate("(turn) => window.units.stages(turn)", {"timings": timings, **more}) == stages
    )


def test_turn_that_is_not_cut_is_told_as_it_comes(page: Page) -> None:
    whole = CREATED + BEGUN + WORDS + DONE
    halves = [whole[at : at + 11] for at in range(0, len(whole), 11)]

    ran = run_turn(page, {"chunks": halves})

    assert ran["told"] == [*ALL, [4, "turn.completed"]]
    assert ran["asked"] == [["POST", "/messages/text", "the-key"]]
    assert not ran["waited"]


def test_cut_stream_goes_on_where_it_broke_off_and_tells_nothing_twice(page: Page) -> None:
    ran = run_turn(
        page,
        {"chunks": [CREATED + BEGUN], "cutAfter": 2},
        {"unreachable": True},
        {"chunks": [BEGUN + WORDS + DONE]},
    )

    assert ran["told"] == [*ALL, [4, "turn.completed"]]
    follow = ["GET", "/turns/T/events?after=2", None]
    assert ran["asked"] == [["POST", "/messages/text", "the-key"], follow, follow]
    assert ran["waited"]


def test_message_whose_answer_was_lost_is_sent_again_with_its_key(page: Page) -> None:
    ran = run_turn(page, {"unreachable": True}, {"chunks": [CREATED + BEGUN + WORDS + DONE]})

    assert ran["told"][-1] == [4, "turn.completed"]
    assert ran["asked"] == 2 * [["POST", "/messages/text", "the-key"]]


def test_refused_message_is_not_sent_again(page: Page) -> None:
    ran = run_turn(page, {"status": 409, "body": {"code": "session-busy", "detail": "Wait."}})

    assert (ran["error"], ran["told"], len(ran["asked"])) == ("session-busy", [], 1)


def test_turn_whose_events_are_deleted_is_read_instead(page: Page) -> None:
    turn = {"status": "completed", "message": {"content": "a"}, "usage": {}, "timings": {}}
    ran = run_turn(
        page,
        {"status": 404, "body": {"code": "events-pruned", "detail": "Gone."}},
        {"status": 200, "body": turn},
        turnId="T",
    )

    assert ran["told"] == [[None, "turn.completed"]]
    assert [asked[1] for asked in ran["asked"]] == ["/turns/T/events?after=0", "/turns/T"]


def test_waiting_turn_is_looked_at_and_followed_once_it_goes_on(page: Page) -> None:
    asks = 'id: 3\nevent: turn.requires_action\ndata: {"actions": []}\n\n'
    ran = run_turn(
        page,
        {"chunks": [CREATED + BEGUN + asks]},
        {"status": 200, "body": {"status": "in_progress", "attempt": 2}},
        {"chunks": [DONE]},
    )

    told = [name for _, name in ran["told"]]
    assert told == ["turn.created", "turn.in_progress", "turn.requires_action", "turn.completed"]
    assert [asked[1] for asked in ran["asked"][1:]] == ["/turns/T", "/turns/T/events?after=3"]
