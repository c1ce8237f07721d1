"""The one bridge between blocking work and Twisted."""

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread, get_native_id
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Args = TypeVarTuple("Args")

#: How long it may take, in one turn of the reactor, to hear what has been done elsewhere: many
#: outcomes in one go would hold up the clients that can be answered at once.
TURN_SECONDS = 0.0002


#: With work waiting and no thread to be had, this long until the next attempt to start one.
START_AGAIN_SECONDS = 1.0


class Busy(Exception):
    """A pool has as much work waiting as it accepts, or no thread to do any."""


class Unanswered(Exception):
    """Blocking work has not ended in time; it goes on all the same."""


class Pool(Protocol):
    """Somewhere to do blocking work."""

    def run(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Call `function(*args)` elsewhere; fire with what it returns or raises.

        Fails with `Busy`, without calling, when too much is waiting already. A call that has
        begun always runs to its end: what it opened is owned by whoever receives the result,
        so nobody may cancel the Deferred.
        """

    def finish(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Like `run`, but never refused: for giving back what an earlier call has opened."""

    def stop(self) -> None:
        """Let the threads end once they are idle. Never waits for one."""


class ReactorFromThread(Protocol):
    """The part of Twisted's reactor that is told of what has been done."""

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:  # noqa: N802, A002
        """Have the reactor thread call `callable(*args)` soon."""

    def callLater(  # noqa: N802
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002
        *args: Any,
    ) -> Any:
        """Call `callable(*args)` after this many seconds; in the reactor thread."""


class Outcomes:
    """What was done elsewhere, on its way to who waits for it: in each turn of the reactor a few.

    All workers of a reactor have one, or each would take its time in every turn.
    """

    def __init__(
        self, reactor: ReactorFromThread, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._waiting: deque[tuple[Callable[[Any], object], Any, bool]] = deque()
        #: Whether the reactor will come for them.
        self._told = False

    def put(self, tell: Callable[[T], object], outcome: T, *, last: bool = False) -> None:
        """Have the reactor call `tell(outcome)` soon. From any thread; in this order.

        `last`: what follows from it takes long enough for nothing more to be heard in that turn.
        """
        self._waiting.append((tell, outcome, last))
        # To wake the reactor takes a system call; it takes all at once that is there by then.
        if not self._told:
            self._told = True
            self._reactor.callFromThread(self._take)

    def _take(self) -> None:
        self._told = False  # first: what is put from here on is told again
        end = self._seconds() + TURN_SECONDS
        for _ in range(len(self._waiting)):
            tell, outcome, last = self._waiting.popleft()
            tell(outcome)
            if self._waiting and (last or self._seconds() >= end):
                self._told = True
                self._reactor.callLater(0, self._take)
                return

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Have the reactor call `function` after `seconds`. In the reactor's thread."""
        self._reactor.callLater(seconds, function)


def start_thread(work: Callable[[], None], name: str) -> None:
    """Call `work` in a thread that the end of the process does not wait for.

    Raises `RuntimeError` when the system has no thread to give (pthread_create(3), EAGAIN).
    """
    Thread(target=work, name=name, daemon=True).start()


class ThreadPool:
    """A small pool of threads of its own.

    Not the reactor's pool, which also resolves names: one hung disk would take the whole process
    with it. Not `twisted.python.threadpool.ThreadPool` either: its `stop` joins its threads, and
    a thread inside a dead disk's system call never ends. These are daemon threads, started when
    first needed, which the end of the process does not wait for.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        name: str,
        threads: int,
        waiting_limit: int = 1000,
        *,
        nice: int = 0,
        start: Callable[[Callable[[], None], str], None] = start_thread,
    ) -> None:
        """`nice` is by how much its threads take second place to others (sched(7)).

        `start` starts a thread with a name, or raises `RuntimeError` or `MemoryError`.
        """
        self._outcomes = outcomes
        self._start = start
        self._nice = nice
        self._name = name
        self._threads_limit = threads
        self._waiting_limit = waiting_limit
        self._threads = 0
        self._starts_later = False
        self._unfinished = 0
        self._jobs: SimpleQueue[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._jobs = SimpleQueue()

    def run(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """See `Pool.run`."""
        if self._unfinished >= self._waiting_limit + self._threads_limit:
            return fail(Busy(f"{self._name}: {self._unfinished} operations are waiting"))
        if self._unfinished >= self._threads:
            self._man(self._unfinished + 1)
        if not self._threads:
            return fail(Busy(f"{self._name}: no thread can be started at the moment"))
        return self._queue(function, *args)

    def finish(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """See `Pool.finish`."""
        self._man(self._unfinished + 1)
        return self._queue(function, *args)

    @property
    def unfinished(self) -> int:
        """How many calls are waiting or being done."""
        return self._unfinished

    def stop(self) -> None:
        """See `Pool.stop`."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _queue(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        self._unfinished += 1
        self._jobs.put((result, function, args))
        return result

    def _man(self, jobs: int) -> None:
        """Have a thread for each of this many jobs, as far as there may be and can be.

        Those that cannot be started are started later, if there is still work for them.
        """
        while self._threads < min(self._threads_limit, jobs):
            try:
                self._start(self._work, self._name)
            except (RuntimeError, MemoryError):
                if not self._starts_later:
                    self._starts_later = True
                    self._outcomes.later(START_AGAIN_SECONDS, self._start_again)
                return
            self._threads += 1

    def _start_again(self) -> None:
        self._starts_later = False
        self._man(self._unfinished)

    def _work(self) -> None:
        _yield_to_reactor(self._nice)
        while (job := self._jobs.get()) is not None:
            waiter, function, args = job
            outcome: Any
            try:
                outcome = function(*args)
            except BaseException:
                # Failure() also carries the reasons that are no Exception: a waiter that never
                # fires would hold its disk's descriptors for ever.
                outcome = Failure()
            self._outcomes.put(self._ended, (waiter, outcome))
            del job, waiter, function, args, outcome  # an idle thread keeps no buffer alive

    def _ended(self, done: tuple[Deferred[Any], Any]) -> None:
        waiter, outcome = done
        self._unfinished -= 1
        waiter.callback(outcome)


def _yield_to_reactor(nice: int) -> None:
    """Let a thread that wakes up wait until the one that runs on its core has to wait.

    Else each job that is handed over, and each system call that ends, interrupts the reactor for a
    thread that cannot go on before the reactor lets go of the interpreter's lock; on one core two
    switches of five would be for nothing. See sched(7), SCHED_BATCH, and setpriority(2) for what a
    thread of Linux has for itself.
    """
    thread = get_native_id()
    with suppress(PermissionError):  # a service may be kept from it, and does without
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
        if nice:
            nicer = min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice)
            os.setpriority(os.PRIO_PROCESS, thread, nicer)


class Shared(Generic[K, T]):
    """Work that is done once for all who ask for it while it is under way."""

    def __init__(self) -> None:
        self._waiters: dict[K, list[Deferred[T]]] = {}

    def under_way(self, key: K) -> bool:
        """Whether the work is being done."""
        return key in self._waiters

    def run(self, key: K, begin: Callable[[], Deferred[T]]) -> Deferred[T]:
        """The outcome of the work of this key, which is begun unless it is under way."""
        waiter: Deferred[T] = Deferred()
        waiters = self._waiters.setdefault(key, [])
        waiters.append(waiter)
        if len(waiters) == 1:
            begin().addBoth(self._ended, key)
        return waiter

    def _ended(self, outcome: Any, key: K) -> None:
        for waiter in self._waiters.pop(key):
            waiter.callback(outcome)


def within(
    clock: IReactorTime,
    seconds: float,
    inner: Deferred[T],
    late: Callable[[T], object] = lambda result: None,
) -> Deferred[T]:
    """The outcome of `inner`; fails with `Unanswered` when it takes longer than `seconds`.

    Work in a thread cannot be cancelled: what it returns too late is given to `late`, whose
    business it is to close it. A late failure is dropped: `Unanswered` has been said before.
    """
    outer: Deferred[T] = Deferred()

    def give_up() -> None:
        outer.errback(Unanswered(f"not done within {seconds:g} s"))

    deadline = clock.callLater(seconds, give_up)

    def ended(outcome: "T | Failure") -> None:
        if deadline.active():
            deadline.cancel()
            outer.callback(outcome)
        elif not isinstance(outcome, Failure):
            late(outcome)

    inner.addBoth(ended)
    return outer


async def settle(pending: list[Deferred[T]]) -> list[T | Failure]:
    """Wait until every one of `pending` has ended, well or badly; their outcomes, in order.

    Never raises: what was opened by those that succeeded is still the caller's to close.
    """
    outcomes = await DeferredList(pending, consumeErrors=True)
    return [outcome for _, outcome in outcomes]


def settle_within(
    clock: IReactorTime, seconds: float, pending: Sequence[Deferred[T]]
) -> Deferred[list[T | Failure]]:
    """Like `settle`, but what takes longer than `seconds` has failed, with `Unanswered`.

    It goes on all the same; nobody hears what becomes of it.
    """
    settled: Deferred[list[T | Failure]] = Deferred()
    outcomes: dict[int, T | Failure] = {}
    places = range(len(pending))

    def give_up() -> None:
        late = Failure(Unanswered(f"not done within {seconds:g} s"))
        settled.callback([outcomes.get(place, late) for place in places])

    def ended(outcome: "T | Failure", place: int) -> None:
        outcomes[place] = outcome
        if len(outcomes) == len(pending) and deadline.active():
            deadline.cancel()
            settled.callback([outcomes[place] for place in places])

    deadline = clock.callLater(seconds, give_up)
    for place, one in enumerate(pending):
        one.addBoth(ended, place)
    return settled
