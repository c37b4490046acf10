"""A bounded queue between two threads that can always be left: by closing it, or by aborting it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BoundedQueue(Generic[Item]):
    """First in, first out, of limited length.

    Args:
        capacity: how many items may wait.
        drop_oldest: when full, `put` drops the oldest item instead of waiting.

    Attributes:
        dropped: how many items were dropped.
    """

    def __init__(self, capacity: int, *, drop_oldest: bool = False) -> None:
        self._capacity = capacity
        self._drop_oldest = drop_oldest
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0

    def put(self, item: Item) -> bool:
        """Adds an item, waiting for room if need be; False if the queue was closed meanwhile."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._closed:
                if self._drop_oldest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> Item | None:
        """The next item, waiting for it if need be; None once the queue is closed and empty."""
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No more items will come; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Closes the queue and forgets what waits in it."""
        with self._changed:
            self._items.clear()
            self._closed = True
            self._changed.notify_all()
