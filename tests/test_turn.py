"""The models' lock: in the order of coming, between passes too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mrr.turn import FairLock


def waiting(lock: FairLock, work: Callable[[], object]) -> threading.Thread:
    """A thread that does work once it has the lock, and stands in the queue by now."""
    n_before = len(lock._waiting)

    def run() -> None:
        with lock:
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while len(lock._waiting) == n_before:
        assert time.monotonic() < end
        time.sleep(0.001)
    return thread


def test_who_takes_the_lock_again_at_once_comes_after_who_waits() -> None:
    lock, order = FairLock(), list[str]()
    with lock:
        others = [waiting(lock, lambda: order.append("first"))]
        others.append(waiting(lock, lambda: order.append("second")))
    with lock:
        order.append("again")
    assert order == ["first", "second", "again"]
    for other in others:
        other.join(60)


def test_a_block_within_a_block_keeps_the_lock() -> None:
    lock, order = FairLock(), list[str]()
    with lock:
        other = waiting(lock, lambda: order.append("other"))
        with lock:
            order.append("inner")
        time.sleep(0.01)
        order.append("outer")
    other.join(60)
    assert order == ["inner", "outer", "other"]


def test_rest_lets_those_who_wait_go_first_from_within_blocks_too() -> None:
    lock, order = FairLock(), list[str]()
    with lock, lock:
        lock.rest()  # nobody waits
        first = waiting(lock, lambda: order.append("first"))
        lock.rest()
        order.append("mine")
        second = waiting(lock, lambda: order.append("second"))
    for other in (first, second):
        other.join(60)
    assert order == ["first", "mine", "second"]


def test_who_does_not_want_it_any_more_leaves_the_queue_to_the_next() -> None:
    lock, order, wanted = FairLock(), list[str](), threading.Event()
    answers: list[bool] = []
    with lock:
        leaver = threading.Thread(target=lambda: answers.append(lock.acquire(wanted.is_set)))
        wanted.set()
        leaver.start()
        while not lock._waiting:
            time.sleep(0.001)
        other = waiting(lock, lambda: order.append("next"))
        assert not answers, "it is wanted, and waited for"
        wanted.clear()
        leaver.join(60)
        assert answers == [False]
    other.join(60)
    assert order == ["next"]
    assert lock.acquire(lambda: False), "what is free is not waited for"
    lock.release()


def test_interrupts_while_resting_leave_the_lock_with_who_has_to_give_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, taken = FairLock(), []

    def interrupted() -> bool:
        taken.append(None)
        if len(taken) < 3:
            raise KeyboardInterrupt
        return take()

    take = lock._take
    with pytest.raises(KeyboardInterrupt), lock:
        monkeypatch.setattr(lock, "_take", interrupted)
        lock.rest()
    monkeypatch.undo()
    other = threading.Thread(target=lambda: taken.append(lock.acquire()))
    other.start()
    other.join(60)
    assert taken == [None, None, None, True]


def test_only_its_owner_releases_it() -> None:
    with pytest.raises(RuntimeError, match="does not hold it"):
        FairLock().release()
