"""What waits within a link is bounded by bytes as well as by number, in both directions."""

import queue
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import backlog
from runtime.backlog import BoundedQueue, Unacknowledged

SIZES = st.lists(st.integers(0, 50), max_size=60)


@given(SIZES, st.data())
def test_a_queue_holds_no_more_bytes_than_its_bound_and_loses_nothing_that_it_took(
    sizes: list[int], data: st.DataObject
) -> None:
    items: BoundedQueue[int] = BoundedQueue(10, 60, lambda size: size)
    kept: list[int] = []
    for size in sizes:
        try:
            items.put_nowait(size)
            kept.append(size)
        except queue.Full:
            assert len(kept) == 10 or sum(kept) + size > 60
        assert sum(kept) <= 60
        if kept and data.draw(st.booleans()):
            assert items.get_nowait() == kept.pop(0)
    while kept:
        assert items.get_nowait() == kept.pop(0)
    assert items.empty()
    assert items._bytes == 0


def test_one_item_that_is_larger_than_the_bound_goes_through_alone() -> None:
    items: BoundedQueue[int] = BoundedQueue(10, 60, lambda size: size)
    items.put_nowait(1000)
    items.put_nowait(0)  # an event without bytes still has a place
    with pytest.raises(queue.Full):
        items.put_nowait(1)
    assert items.get_nowait() == 1000
    items.put_nowait(1)


def test_what_the_broker_does_not_acknowledge_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "SENT_BYTES", 100)
    monkeypatch.setattr(backlog, "SENT_LIMIT", 3)
    sent = Unacknowledged()
    assert sent.has_room(1000, retain=False)  # alone, it could not go otherwise
    sent.sent(1, "a", 80)
    assert not sent.has_room(21, retain=False)
    assert sent.has_room(21, retain=True)
    assert sent.has_room(20, retain=False)
    sent.sent(2, "b", 0)
    sent.sent(3, "c", 0)
    assert not sent.has_room(0, retain=False)
    assert sent.has_room(120, retain=True)
    assert not sent.has_room(121, retain=True)
    assert sent.largest() == ("a", 80)
    assert sent.acknowledged(1) == ("a", 80)
    assert sent.has_room(100, retain=False)


def test_an_acknowledgement_that_comes_before_the_packet_id_is_known_counts() -> None:
    sent = Unacknowledged()
    sent.acknowledged(5)
    sent.sent(5, "a", 10)
    assert sent.largest() == ("", 0)
    assert sent._bytes == 0
    sent.sent(5, "b", 7)  # ids are used again
    assert sent.acknowledged(5) == ("b", 7)


def test_two_threads_leave_nothing_behind() -> None:
    sent, numbers = Unacknowledged(), range(1, 5000)

    def hear() -> None:
        for number in numbers:
            sent.acknowledged(number)

    thread = threading.Thread(target=hear)
    thread.start()
    for number in numbers:
        sent.sent(number, "a", number)
    thread.join()
    assert (sent._sent, sent._early, sent._bytes) == ({}, set(), 0)
