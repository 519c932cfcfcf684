"""Whose job is next, and how many may wait."""

import pytest

from app.services.sandbox.errors import TooManyJobs, WorkerBusy
from app.services.sandbox.fair_queue import (
    CALLER_BYTES,
    CALLER_JOBS,
    TOTAL_JOBS,
    CallerKey,
    FairQueue,
    Job,
)


def job(workspace: str, caller: str, payload: bytes = b"") -> Job:
    return Job((workspace, caller), "module:function", {}, payload)


def order(queue: FairQueue, count: int) -> list[CallerKey]:
    jobs = [queue.take(lambda _caller: True) for _ in range(count)]
    return [job.caller for job in jobs if job]


def test_workspaces_take_turns_and_then_their_callers() -> None:
    queue = FairQueue()
    for workspace, caller in ("aa", "aa", "aa", "ab", "ab", "ca"):
        queue.add(job(workspace, caller))

    turns = order(queue, 6)

    assert ["".join(caller) for caller in turns] == ["aa", "ca", "ab", "aa", "ab", "aa"]
    assert len(queue) == 0


def test_a_caller_that_comes_late_is_next_however_many_wait() -> None:
    queue = FairQueue()
    for _ in range(CALLER_JOBS):
        queue.add(job("a", "crowd"))
    order(queue, 1)
    queue.add(job("a", "late"))

    assert order(queue, 2).index(("a", "late")) <= 1


def test_the_jobs_of_one_caller_keep_their_order_also_when_put_back() -> None:
    queue = FairQueue()
    jobs = [job("a", "a", bytes([number])) for number in range(3)]
    for each in jobs:
        queue.add(each)
    first = queue.take(lambda _caller: True)
    assert first is jobs[0]
    queue.put_back(jobs[0])

    assert queue.take_all() == jobs


def test_who_may_not_start_is_passed_by() -> None:
    queue = FairQueue()
    queue.add(job("a", "a"))
    queue.add(job("b", "b"))

    taken = queue.take(lambda caller: caller == ("b", "b"))

    assert taken is not None
    assert taken.caller == ("b", "b")
    assert queue.take(lambda _caller: False) is None
    assert len(queue) == 1


def test_one_caller_can_fill_its_own_line_alone() -> None:
    queue = FairQueue()
    for _ in range(CALLER_JOBS):
        queue.add(job("a", "a"))

    with pytest.raises(TooManyJobs) as refused:
        queue.add(job("a", "a"))
    assert refused.value.retry_after_seconds
    queue.add(job("a", "b"))


def test_the_bytes_of_one_caller_are_bounded_but_one_upload_always_fits() -> None:
    queue = FairQueue()
    queue.add(job("a", "a", bytes(CALLER_BYTES + 1)))

    with pytest.raises(TooManyJobs):
        queue.add(job("a", "a", b"x"))


def test_a_full_queue_refuses_everybody_for_a_while() -> None:
    queue = FairQueue()
    for number in range(TOTAL_JOBS):
        queue.add(job("a", str(number)))

    with pytest.raises(WorkerBusy) as refused:
        queue.add(job("b", "b"))
    assert refused.value.retry_after_seconds
    order(queue, 1)
    queue.add(job("b", "b"))


def test_a_job_that_nobody_waits_for_leaves_no_trace() -> None:
    queue = FairQueue()
    waiting = job("a", "a", b"payload")
    queue.add(waiting)
    queue.remove(waiting)
    queue.remove(waiting)

    assert len(queue) == 0
    assert queue.take(lambda _caller: True) is None
