"""The bounded queue: order, dropping, and that a waiting thread can always be freed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from rtseg.queues import BoundedQueue

Limited = Callable[[Callable[[], Any]], Any]


def test_first_in_first_out() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3)
    assert all(queue.put(i) for i in range(3))
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    assert queue.dropped == 0


def test_drop_oldest_keeps_the_newest() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, drop_oldest=True)
    for i in range(7):
        assert queue.put(i)
    queue.close()
    assert [queue.get(), queue.get(), queue.get()] == [5, 6, None]
    assert queue.dropped == 5


def test_close_lets_the_rest_out_and_nothing_in() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    queue.put(1)
    queue.close()
    assert not queue.put(2)
    assert queue.get() == 1
    assert queue.get() is None
    assert queue.get() is None


def test_abort_forgets_what_waits() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    queue.put(1)
    queue.abort()
    assert queue.get() is None
    assert not queue.put(2)


@pytest.mark.parametrize("end", [BoundedQueue.close, BoundedQueue.abort])
def test_ending_frees_a_waiting_getter(
    end: Callable[[BoundedQueue[int]], None], limited: Limited
) -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    threading.Timer(0.05, end, (queue,)).start()
    assert limited(queue.get) is None


@pytest.mark.parametrize("end", [BoundedQueue.close, BoundedQueue.abort])
def test_ending_frees_a_waiting_putter(
    end: Callable[[BoundedQueue[int]], None], limited: Limited
) -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(0)
    threading.Timer(0.05, end, (queue,)).start()
    assert limited(lambda: queue.put(1)) is False


def test_two_threads_lose_nothing(limited: Limited) -> None:
    queue: BoundedQueue[int] = BoundedQueue(3)
    got: list[int] = []

    def take() -> None:
        while (item := queue.get()) is not None:
            got.append(item)

    def both() -> None:
        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        for i in range(2000):
            queue.put(i)
        queue.close()
        taker.join()

    limited(both)
    assert got == list(range(2000))
