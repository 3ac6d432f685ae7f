"""Patience: when a request is made again, when it is given up, and who may end it."""

from __future__ import annotations

import random
import threading
import time
from email.utils import formatdate
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das_gpu import patience as module
from das_gpu.errors import InterruptedRunError, SourceError
from das_gpu.patience import (
    GaveUp,
    Patience,
    Transient,
    Watch,
    cancelled_by,
    parse_retry_after,
    patiently,
)

NEVER_ENDING = Transient(SourceError("The store failed."))


class FakeTime:
    """A clock that only waiting moves; ``steps_s`` are the waits."""

    def __init__(self):
        self.now_s = 1000.0
        self.steps_s = []

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.steps_s.append(seconds)
        self.now_s += seconds


class Store:
    """Fails in the ways given, one after the other, and then answers."""

    def __init__(self, *failures):
        self.failures = iter(failures)
        self.attempts = 0

    def __call__(self, _watch):
        self.attempts += 1
        if (failure := next(self.failures, None)) is not None:
            raise failure
        return b"fine"


@pytest.fixture
def clock(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(store, patience=None):
    """What a request came to: its answer, or why it was given up."""
    try:
        return patiently(store, patience or Patience())
    except GaveUp as end:
        return end


def test_an_answer_is_given_at_once(clock):
    assert run(Store()) == b"fine"
    assert clock.steps_s == []


def test_only_what_may_pass_is_tried_again(clock):
    store = Store(SourceError("It is not there."))
    with pytest.raises(SourceError, match="not there"):
        patiently(store, Patience())
    assert store.attempts == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_of_a_minute_is_survived_with_few_requests(clock, seed):
    """With any luck: waits vary by a quarter, so that many readers do not come back together."""
    random.seed(seed)
    began_s = clock.now_s
    store = Store()
    store.failures = iter(lambda: NEVER_ENDING if clock.now_s < began_s + 60 else None, None)
    assert run(store) == b"fine"
    assert store.attempts < 15


def test_waits_grow_from_one_second_to_fifteen_and_vary_by_a_quarter(clock):
    run(Store(*repeat(NEVER_ENDING, 12)))
    for taken_s, usual_s in zip(clock.steps_s, chain([1, 2, 4, 8], repeat(15)), strict=False):
        assert 0.75 * usual_s <= taken_s <= 1.25 * usual_s
    assert len({round(taken_s / 15, 6) for taken_s in clock.steps_s[4:]}) > 4


@given(st.floats(0.01, 1000), st.integers(0, 2**32))
def test_nobody_waits_longer_than_was_asked(total_s, seed):
    clock = FakeTime()
    random.seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        end = run(Store(*repeat(NEVER_ENDING, 10_000)), Patience(total_s=total_s))
    assert isinstance(end, GaveUp)
    assert end.last is NEVER_ENDING
    assert sum(clock.steps_s) <= total_s
    # It did not give up while another wait would still have fitted in.
    assert sum(clock.steps_s) >= total_s - 1.25 * 15


def test_giving_up_says_how_it_was_tried(clock):
    assert str(run(Store(NEVER_ENDING), Patience(total_s=0.1))) == "Tried once."
    end = run(Store(*repeat(NEVER_ENDING, 99)), Patience(total_s=20))
    assert str(end) == f"Tried {len(clock.steps_s) + 1} times in {sum(clock.steps_s):.0f} s."


def test_a_server_that_asks_for_time_is_given_it(clock):
    run(Store(Transient(SourceError("busy"), retry_after_s=42)))
    assert clock.steps_s == [42]


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(clock):
    end = run(Store(Transient(SourceError("busy"), retry_after_s=300)), Patience(total_s=240))
    assert str(end) == "Tried once."
    assert clock.steps_s == []


def test_a_server_that_throttles_without_saying_for_how_long_is_given_five_seconds(clock):
    run(Store(Transient(SourceError("busy"), throttled=True)))
    assert clock.steps_s == [5]


def test_an_object_whose_body_breaks_off_again_and_again_is_given_up(clock):
    """The store answers: waiting for four minutes would help nobody."""
    broken = Transient(SourceError("cut"), answered=True)
    store = Store(broken, NEVER_ENDING, broken, broken, NEVER_ENDING, broken, broken)
    assert isinstance(run(store), GaveUp)
    assert store.attempts == 6
    assert run(Store(broken, broken, broken)) == b"fine"


def test_a_shorter_patience_shortens_its_parts():
    assert Patience.within(240) == Patience()
    short = Patience.within(3)
    assert (short.total_s, short.connect_s, short.stall_s, short.slow_s) == (3, 3, 3, 3)
    assert Patience.within(1000).stall_s == Patience().stall_s


# Watch


def watch(clock, **limits):
    patience = Patience(**limits)
    return Watch(patience, clock.now_s + patience.total_s)


def test_a_body_that_comes_too_slowly_is_given_up_after_a_while(clock):
    one = watch(clock, slow_s=30, slow_rate=1000)
    clock.now_s += 29.9
    assert one.verdict(0) is None
    clock.now_s += 0.2
    assert one.verdict(30_200) is None
    assert one.verdict(30_000) == "only 30000 bytes came in 30 s"


def test_a_body_that_is_late_is_given_up_however_fast_it_comes(clock):
    one = watch(clock, total_s=20, slow_s=30)
    clock.now_s += 20
    assert one.verdict(10**9) is None
    clock.now_s += 0.1
    assert one.verdict(10**9) == "1000000000 bytes had come when the time was up"


# Ending it


def test_an_event_ends_the_wait_for_the_next_attempt():
    event = threading.Event()
    threading.Timer(0.1, event.set).start()
    started_s = time.monotonic()
    with cancelled_by(event), pytest.raises(InterruptedRunError):
        patiently(Store(NEVER_ENDING), Patience())
    assert time.monotonic() - started_s < 0.6


def test_an_event_ends_an_attempt_at_its_next_look():
    event = threading.Event()
    event.set()
    with cancelled_by(event):
        one = Watch(Patience(), time.monotonic() + 240)
    with pytest.raises(InterruptedRunError):
        one.verdict(0)


def test_an_event_ends_the_requests_of_its_own_thread_only():
    event = threading.Event()
    event.set()
    verdicts = []

    def other():
        verdicts.append(Watch(Patience(), time.monotonic() + 240).verdict(0))

    with cancelled_by(event):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert verdicts == [None, None]


# Retry-After


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds(seconds):
    assert parse_retry_after(str(seconds)) == seconds


@given(st.integers(-(10**6), 10**6))
def test_retry_after_as_a_date(seconds):
    found = parse_retry_after(formatdate(time.time() + seconds, usegmt=True))
    assert found == pytest.approx(max(0, seconds), abs=2)


@pytest.mark.parametrize("text", [None, "", "soon", "-1", "Wed, 99 Oct 2015 07:28:00 GMT"])
def test_what_asks_for_nothing_is_not_waited_for(text):
    assert parse_retry_after(text) in (None, 0)


@given(st.text())
def test_no_header_does_harm(text):
    found = parse_retry_after(text)
    assert found is None or found >= 0
