"""The queue of what is heard and spoken: the most urgent task first."""

import threading

import pytest

from app.services.local_service.tasks import Cancelled, ModelQueue, Task, Urgency

WAIT_SECONDS = 20


class Waiter(threading.Thread):
    """Waits for its turn, and notes that it came."""

    def __init__(self, queue: ModelQueue, urgency: Urgency, order: list[Urgency]) -> None:
        super().__init__(daemon=True)
        self.queued, self.task = queue, Task()
        self.urgency, self.order = urgency, order
        self.was_cancelled = False

    def run(self) -> None:
        try:
            with self.queued.holding(self.task, self.urgency):
                self.order.append(self.urgency)
        except Cancelled:
            self.was_cancelled = True


def wait_until_queued(queue: ModelQueue, count: int) -> None:
    turns = threading.Event()
    for _ in range(1000):
        if len(queue._waiting) == count:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            return
        turns.wait(0.01)
    raise AssertionError("they never waited")


def test_most_urgent_task_comes_first() -> None:
    queue, order = ModelQueue(), list[Urgency]()
    waiters = [Waiter(queue, urgency, order) for urgency in reversed(Urgency)]
    with queue.holding(Task(), Urgency.NEXT_SENTENCE):
        for count, waiter in enumerate(waiters, start=1):
            waiter.start()
            wait_until_queued(queue, count)
        assert not order
    for waiter in waiters:
        waiter.join(WAIT_SECONDS)

    assert order == list(Urgency)


def test_cancelled_task_leaves_the_queue_and_the_others_go_on() -> None:
    queue, order = ModelQueue(), list[Urgency]()
    leaving = Waiter(queue, Urgency.ENDED_SPEECH, order)
    staying = Waiter(queue, Urgency.NEXT_SENTENCE, order)
    with queue.holding(Task(), Urgency.NEXT_SENTENCE):
        leaving.start()
        staying.start()
        wait_until_queued(queue, 2)
        leaving.task.cancel()
        leaving.join(WAIT_SECONDS)
        assert leaving.was_cancelled
    staying.join(WAIT_SECONDS)

    assert order == [Urgency.NEXT_SENTENCE]


def test_queue_is_free_again_behind_a_failure() -> None:
    queue = ModelQueue()
    with pytest.raises(ValueError, match="x"), queue.holding(Task(), Urgency.ENDED_SPEECH):
        raise ValueError("x")
    with queue.holding(Task(), Urgency.NEXT_SENTENCE):
        pass
