"""What waits within a link, and how much of it may: messages for the program, and messages for the broker.

Both bounds are in bytes as well as in number, because a message may have megabytes and the other side sets
the pace. A single message is never too large: there would be no way to get rid of it.
"""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Item = TypeVar("Item")

SENT_LIMIT = 1024
SENT_BYTES = 64 * 1024 * 1024
RETAINED_FACTOR = 2
"""Retained messages may go this far beyond: they are few, the program itself makes them, and what they say is
said once; peers ask for all others, or their senders repeat them."""


class BoundedQueue(queue.Queue[Item]):
    """A queue that is full by the number of its items, or by their bytes."""

    def __init__(self, maxsize: int, max_bytes: int, size: Callable[[Item], int]) -> None:
        """Bound the queue; items of size 0 are bounded by number alone."""
        super().__init__(maxsize)
        self._max_bytes, self._size, self._bytes = max_bytes, size, 0

    # queue.Queue calls these two under its lock; an exception in `_put` leaves the queue as it was.

    def _put(self, item: Item) -> None:
        size = self._size(item)
        if size and self._bytes and self._bytes + size > self._max_bytes:
            raise queue.Full
        super()._put(item)
        self._bytes += size

    def _get(self) -> Item:
        item = super()._get()
        self._bytes -= self._size(item)
        return item


class Unacknowledged:
    """What was handed to one connection and the broker has not acknowledged, by packet id.

    One thread sends, another hears of acknowledgements, and may do so before the first learned the packet id.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[int, tuple[str, int]] = {}
        self._bytes = 0
        self._early: set[int] = set()

    def has_room(self, size: int, *, retain: bool) -> bool:
        """Whether a message of `size` bytes may be sent now."""
        factor = RETAINED_FACTOR if retain else 1
        with self._lock:
            waiting = len(self._sent)
            return not waiting or (
                waiting < factor * SENT_LIMIT and self._bytes + size <= factor * SENT_BYTES
            )

    def sent(self, packet_id: int, topic: str, size: int) -> None:
        """A message was handed over."""
        with self._lock:
            if packet_id in self._early:
                self._early.discard(packet_id)
            else:
                self._sent[packet_id] = topic, size
                self._bytes += size

    def acknowledged(self, packet_id: int) -> tuple[str, int]:
        """The broker has it; its topic and size, as far as they are known."""
        with self._lock:
            if packet_id not in self._sent:
                self._early.add(packet_id)
                return "a topic", 0
            topic, size = self._sent.pop(packet_id)
            self._bytes -= size
            return topic, size

    def largest(self) -> tuple[str, int]:
        """Topic and size of the largest one; ("", 0): there is none."""
        with self._lock:
            return max(self._sent.values(), key=lambda sent: sent[1], default=("", 0))
