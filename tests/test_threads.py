"""Blocking work in threads of its own, and waiting for it."""

import os
import threading
import time
import weakref
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from stor.threads import (
    TURN_SECONDS,
    Busy,
    Outcomes,
    ThreadPool,
    Unanswered,
    settle,
    start_thread,
    within,
)
from tests.conformance import result_of, start
from tests.integration.process import poll

#: Nothing here takes long; this ends a test that would hang.
PATIENCE_SECONDS = 30


class FakeReactor:
    """Keeps what threads want called until the test has it called."""

    def __init__(self):
        self.calls = SimpleQueue()
        self.later = []

    def callFromThread(self, function, *args):
        self.calls.put((function, args))

    def callLater(self, delay, function, *args):
        if delay:
            self.later.append((function, args))
        else:
            self.calls.put((function, args))

    def pass_time(self):
        """Do what was to be done after a while."""
        later, self.later = self.later, []
        for function, args in later:
            function(*args)

    def wait_for(self, *deferreds):
        """Do the reactor's part until all of `deferreds` have fired."""
        while not all(deferred.called for deferred in deferreds):
            function, args = self.calls.get(timeout=PATIENCE_SECONDS)
            function(*args)


class Stuck:
    """A job that takes until `release`; `begun` gets a thread for each that has started."""

    def __init__(self):
        self.begun = SimpleQueue()
        self._released = threading.Event()

    def __call__(self):
        self.begun.put(threading.current_thread())
        assert self._released.wait(PATIENCE_SECONDS)
        return "done"

    def wait_until_begun(self):
        return self.begun.get(timeout=PATIENCE_SECONDS)

    def release(self):
        self._released.set()


class Threads:
    """Starts threads while there are any to be had; the pool's `start`."""

    def __init__(self, error=RuntimeError):
        self.to_be_had = True
        self.error = error
        self.started = 0

    def __call__(self, work, name):
        if not self.to_be_had:
            raise self.error("can't start new thread")
        self.started += 1
        start_thread(work, name)


@pytest.fixture
def reactor():
    return FakeReactor()


@pytest.fixture
def stuck():
    job = Stuck()
    yield job
    job.release()


@pytest.fixture
def worker(reactor, request):
    name = f"worker of {request.node.name}"
    made = ThreadPool(Outcomes(reactor), name, threads=3, waiting_limit=2)
    yield made
    made.stop()


def threads_of(worker):
    return [t for t in threading.enumerate() if t.name == worker._name and t.is_alive()]


def test_work_is_done_in_another_thread_and_answered_in_the_reactor_s(worker, reactor):
    seen = []
    result = worker.run(lambda a, b: (a + b, threading.current_thread()), 2, 3)
    result.addCallback(lambda done: seen.append((*done, threading.current_thread())))
    assert seen == []
    reactor.wait_for(result)
    ((total, worked_in, answered_in),) = seen
    assert total == 5
    assert worked_in.name == worker._name
    assert worked_in.daemon
    assert worked_in is not answered_in is threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("why"), OSError(5, "why"), SystemExit(3)])
def test_what_the_work_raises_comes_back(worker, reactor, error):
    def work():
        raise error

    outcomes = []
    result = worker.run(work).addErrback(outcomes.append)
    reactor.wait_for(result)
    assert outcomes[0].value is error
    # The thread is there for the next job.
    result = worker.run(threading.current_thread)
    reactor.wait_for(result)
    assert result.result.name == worker._name


@pytest.mark.parametrize("nice", [0, 5, 40])
def test_threads_take_second_place_as_far_as_they_are_told(reactor, nice):
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    worker = ThreadPool(Outcomes(reactor), "second", threads=1, nice=nice)
    result = worker.run(os.getpriority, os.PRIO_PROCESS, 0)
    reactor.wait_for(result)
    worker.stop()
    assert result.result == min(19, ours + nice)
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


def test_one_thread_does_its_jobs_in_order(reactor):
    worker = ThreadPool(Outcomes(reactor), "in order", threads=1, waiting_limit=100)
    done = []
    results = [worker.run(done.append, number) for number in range(100)]
    reactor.wait_for(*results)
    worker.stop()
    assert done == list(range(100))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_outcomes_that_take_long_to_hear_leave_the_reactor_turns_of_its_own(reactor, workers):
    """However many workers they come from."""
    outcomes = Outcomes(reactor)
    several = [ThreadPool(outcomes, f"one of {workers}", 1) for _ in range(workers)]
    results = [several[n % workers].run(len, "job") for n in range(6)]
    seen = []
    for result in results:
        result.addCallback(seen.append)
        result.addCallback(lambda _: time.sleep(2 * TURN_SECONDS))
    poll(lambda: len(outcomes._waiting) == 6, what="all jobs done")
    turns = 0
    while len(seen) < 6:
        before = len(seen)
        function, args = reactor.calls.get(timeout=PATIENCE_SECONDS)
        function(*args)
        assert len(seen) - before <= 1
        turns += 1
    assert turns == 6
    for worker in several:
        worker.stop()


def test_outcomes_are_heard_in_their_order_with_one_waking_of_the_reactor(reactor):
    now = count(step=TURN_SECONDS / 4)
    outcomes, heard = Outcomes(reactor, partial(next, now)), []
    for n in range(20):
        outcomes.put(heard.append, n)
    assert reactor.calls.qsize() == 1
    turns = 0
    while heard != list(range(20)):
        function, args = reactor.calls.get_nowait()
        function(*args)
        turns += 1
    assert 4 <= turns <= 10
    assert reactor.calls.empty()
    outcomes.put(heard.append, 20)
    assert reactor.calls.qsize() == 1


def test_nothing_more_is_heard_in_a_turn_after_what_takes_long(reactor):
    outcomes, heard, turns = Outcomes(reactor, lambda: 0), [], []
    for n in range(6):
        outcomes.put(heard.append, n, last=n in (1, 4))
    while not reactor.calls.empty():
        function, args = reactor.calls.get_nowait()
        function(*args)
        turns.append(list(heard))
        heard.clear()
    assert turns == [[0, 1], [2, 3, 4], [5]]


def test_what_is_put_while_others_are_heard_is_heard_too(reactor):
    outcomes, heard = Outcomes(reactor), []
    outcomes.put(lambda n: outcomes.put(heard.append, n), 1)
    while not heard:
        function, args = reactor.calls.get_nowait()
        function(*args)
    assert heard == [1]


def test_a_thread_is_started_only_when_all_others_are_at_work(worker, reactor):
    assert threads_of(worker) == []
    for _ in range(5):
        reactor.wait_for(worker.run(len, "job"))
        assert len(threads_of(worker)) == 1


def test_no_more_threads_than_allowed_are_at_work(worker, reactor, stuck):
    results = [worker.run(stuck) for _ in range(5)]
    assert len({stuck.wait_until_begun() for _ in range(3)}) == 3
    assert len(threads_of(worker)) == 3
    with pytest.raises(Empty):
        stuck.begun.get_nowait()
    stuck.release()
    reactor.wait_for(*results)
    assert len(threads_of(worker)) == 3
    assert [result.result for result in results] == ["done"] * 5


def test_what_is_too_much_fails_and_is_not_called(worker, reactor, stuck):
    results = [worker.run(stuck) for _ in range(5)]
    called = []
    for _ in range(3):
        with pytest.raises(Busy):
            result_of(worker.run(called.append, 1))
    stuck.release()
    reactor.wait_for(*results)
    last = worker.run(called.append, 2)
    reactor.wait_for(last)
    assert called == [2]


def test_what_gives_back_is_never_refused(worker, reactor, stuck):
    results = [worker.run(stuck) for _ in range(5)]
    given_back = []
    results += [worker.finish(given_back.append, number) for number in range(10)]
    with pytest.raises(Busy):
        result_of(worker.run(given_back.append, 10))
    stuck.release()
    reactor.wait_for(*results)
    assert sorted(given_back) == list(range(10))


def test_work_counts_until_the_reactor_has_its_result(worker, reactor):
    results = [worker.run(len, "job") for _ in range(5)]
    with pytest.raises(Busy):
        result_of(worker.run(len, "job"))
    reactor.wait_for(*results)
    reactor.wait_for(worker.run(len, "job"))


def test_stop_ends_idle_threads_and_waits_for_none(worker, reactor, stuck):
    results = [worker.run(stuck) for _ in range(3)]
    for _ in range(3):
        stuck.wait_until_begun()
    hung = threads_of(worker)
    worker.stop()
    assert [thread.is_alive() for thread in hung] == [True] * 3
    stuck.release()
    reactor.wait_for(*results)
    for thread in hung:
        thread.join(PATIENCE_SECONDS)
    assert threads_of(worker) == []


def test_what_was_accepted_before_stop_is_done(worker, reactor, stuck):
    results = [worker.run(stuck) for _ in range(5)]
    worker.stop()
    stuck.release()
    reactor.wait_for(*results)
    assert [result.result for result in results] == ["done"] * 5


def test_stop_before_any_work_is_harmless(reactor):
    ThreadPool(Outcomes(reactor), "never used", threads=2).stop()


def test_an_idle_thread_keeps_no_buffer_alive(reactor):
    class Buffer:
        """Something that can be watched."""

    worker = ThreadPool(Outcomes(reactor), "one", threads=1)
    given = Buffer()
    watched = [weakref.ref(given)]
    result = worker.run(lambda _: Buffer(), given)
    result.addCallback(lambda made: watched.append(weakref.ref(made)))
    reactor.wait_for(result)
    del given, result
    # The second job begins when the first has left nothing behind in the thread.
    reactor.wait_for(worker.run(len, "job"))
    worker.stop()
    assert [reference() for reference in watched] == [None, None]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_without_a_thread_work_is_refused_and_what_gives_back_waits(reactor, error):
    threads = Threads(error)
    threads.to_be_had = False
    pool = ThreadPool(Outcomes(reactor), "starved", threads=2, waiting_limit=2, start=threads)
    called = []
    for _ in range(10):
        with pytest.raises(Busy, match="no thread"):
            result_of(pool.run(called.append, "run"))
    given_back = pool.finish(called.append, "finish")
    assert pool.unfinished == 1
    reactor.pass_time()
    assert called == []
    threads.to_be_had = True
    reactor.pass_time()
    reactor.wait_for(given_back)
    assert called == ["finish"]
    assert pool.unfinished == 0
    results = [pool.run(called.append, n) for n in range(4)]
    reactor.wait_for(*results)
    assert threads.started == 2
    pool.stop()


def test_work_behind_a_thread_that_hangs_goes_on_when_threads_can_be_started(reactor, stuck):
    threads = Threads()
    pool = ThreadPool(Outcomes(reactor), "starved", threads=2, start=threads)
    hung = pool.run(stuck)
    stuck.wait_until_begun()
    threads.to_be_had = False
    waiting = pool.run(len, "job")
    threads.to_be_had = True
    reactor.pass_time()
    reactor.wait_for(waiting)
    assert not hung.called
    stuck.release()
    reactor.wait_for(hung)
    pool.stop()


@given(
    st.lists(st.sampled_from(["run", "finish", "no threads", "threads", "time", "wait"])),
    st.integers(1, 3),
)
def test_whatever_was_accepted_is_done_once_whenever_threads_are_to_be_had(steps, limit):
    """And nothing else is; no thread is counted that never began."""
    reactor, threads = FakeReactor(), Threads()
    pool = ThreadPool(Outcomes(reactor), "starved now and then", limit, 3, start=threads)
    accepted, refused, done = {}, set(), []
    for n, step in enumerate(steps):
        if step in ("no threads", "threads"):
            threads.to_be_had = step == "threads"
        elif step == "time":
            reactor.pass_time()
        elif step == "wait":
            if threads.started:
                reactor.wait_for(*accepted.values())
        else:
            waiter = getattr(pool, step)(done.append, n)
            if waiter.called:
                assert step == "run"
                assert waiter.addErrback(lambda failure: failure.trap(Busy)) is waiter
                refused.add(n)
            else:
                accepted[n] = waiter
    threads.to_be_had = True
    reactor.pass_time()
    reactor.wait_for(*accepted.values())
    assert sorted(done) == sorted(accepted)
    assert pool.unfinished == 0
    assert threads.started <= limit
    pool.stop()


def test_settle_waits_for_all_and_never_raises():
    first, second, third = Deferred(), Deferred(), Deferred()
    outcomes = start(settle([first, second, third]))
    second.errback(ValueError("two"))
    assert not outcomes
    third.callback(3)
    assert not outcomes
    first.callback(1)
    ((one, two, three),) = outcomes
    assert (one, three) == (1, 3)
    assert isinstance(two, Failure)


def test_settle_of_nothing_is_nothing():
    assert result_of(settle([])) == []


def test_settle_takes_failures_of_every_kind():
    failures = [fail(error) for error in (ValueError(), Busy(), SystemExit())]
    outcomes = result_of(settle([*failures, succeed("good")]))
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [True] * 3 + [False]


def test_within_passes_on_what_comes_in_time():
    clock = Clock()
    assert result_of(within(clock, 5, succeed("good"))) == "good"
    with pytest.raises(ValueError, match="bad"):
        result_of(within(clock, 5, fail(ValueError("bad"))))
    inner, late = Deferred(), []
    outcomes = start(within(clock, 5, inner, late.append))
    clock.advance(4.9)
    inner.callback("just in time")
    assert outcomes == ["just in time"]
    assert (late, clock.getDelayedCalls()) == ([], [])


def test_within_gives_up_and_has_what_comes_too_late_closed():
    clock, inner, late = Clock(), Deferred(), []
    outcomes = start(within(clock, 5, inner, late.append))
    clock.advance(5)
    assert outcomes[0].check(Unanswered)
    assert late == []
    inner.callback("too late")
    assert late == ["too late"]


def test_within_drops_a_late_failure():
    clock, inner, late = Clock(), Deferred(), []
    outcomes = start(within(clock, 5, inner, late.append))
    clock.advance(5)
    inner.errback(ValueError("too late"))
    assert outcomes[0].check(Unanswered)
    assert late == []
