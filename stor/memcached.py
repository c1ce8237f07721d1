"""One memcached server: asked in a thread of its own, left alone when it does not answer.

Not pymemcache's `HashClient`, which has all servers in one. Measured with pymemcache 4.0 and 1000
questions a second: while the name of one server of three takes 5 s to fail (getaddrinfo(3) has no
time-out), 4905 of 9092 answers of all servers are later than 50 ms. With several threads it loses
count of dead servers (6 times `ValueError: No such node` in 10 s with one server stopped). It times
dead servers by the wall clock: two hours back keep a server out for two hours. Its hash takes 28 us
a key with three servers, where ours takes 1.4.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

from pymemcache.client.base import Client as PymemcacheClient
from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownCommandError,
)
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.threads import Busy, Pool, Unanswered, within

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: What a lookup waits for an answer at most.
WAIT_SECONDS = 0.05

#: How long a server that did not answer, or not in time, is not asked anything.
REST_SECONDS = 30.0

#: Also the longest time that memcached does not take for a date.
LIFETIME_SECONDS = 30 * 24 * 60 * 60


class Client(Protocol):
    """The part of pymemcache's `Client` that is used; by one thread at a time."""

    def get(self, key: str) -> bytes | None:
        """The value, or None; raises anything."""

    def set(self, key: str, value: bytes, expire: int, noreply: bool) -> bool | None:
        """Keep a value for `expire` seconds; raises anything."""

    def delete(self, key: str, noreply: bool) -> bool:
        """Forget a value; raises anything."""

    def close(self) -> None:
        """End the connection; the next call makes another."""


def connected(host: str, port: int, timeout_seconds: float = WAIT_SECONDS) -> Client:
    """A client of a real server. It connects when it is first asked something."""
    return PymemcacheClient(
        (host, port), connect_timeout=timeout_seconds, timeout=timeout_seconds, no_delay=True
    )


class _LeftAlone(Exception):
    """The server has failed since this question was put into the queue."""


class Memcached:
    """A server that may be slow, down or wrong at any time: nothing here raises.

    After an error or a time-out it is left alone, for `REST_SECONDS` and until it has answered a
    question that nobody waits for. So a server that hangs costs one lookup `WAIT_SECONDS`, once.
    """

    log = Logger()

    def __init__(self, name: str, client: Client, worker: Pool, clock: IReactorTime) -> None:
        """`name` decides, with those of the other servers, which keys are asked of this one.

        `worker` has one thread: pymemcache's client is for one, and a server that hangs takes
        no thread from another.
        """
        self.name = name
        self._client = client
        self._worker = worker
        self._clock = clock
        #: Whether it is asked: it has answered, or not been asked yet.
        self.trusted = True
        self._rest_ends = 0.0
        self._on_trial = False
        self._failing = False

    async def get(self, key: str) -> bytes | None:
        """The value, when the server has it and says so within `WAIT_SECONDS`."""
        if not self._available(key):
            return None
        try:
            return await within(self._clock, WAIT_SECONDS, self._run(self._client.get, key))
        except Unanswered:
            # Or else the next ones would wait behind this question. Perhaps it is this process
            # that is slow: an answer that comes late ends the rest.
            self._rest()
            return None

    def set(self, key: str, value: bytes) -> None:
        """Have the server keep a value, some time soon, perhaps."""
        if self._available(key):
            # With a reply: the error that memcached sends all the same when a set without one
            # fails would be taken for the answer to the next command.
            self._run(self._client.set, key, value, LIFETIME_SECONDS, False)

    def delete(self, key: str, value: bytes) -> None:
        """Have the server forget a value, some time soon, perhaps; another one is left there."""
        if self._available(key):
            self._run(self._delete, key, value)

    def stop(self) -> None:
        """End the connection and the thread. Never waits for them."""
        self._worker.finish(self._client.close).addErrback(lambda failure: None)
        self._worker.stop()

    def _run(self, function: Callable[[*Args], T | None], *args: *Args) -> Deferred[T | None]:
        """What `function` returns in the thread; None when it fails."""
        job = self._worker.run(self._twice, function, *args)
        return job.addCallbacks(self._answered, self._failed)

    def _twice(self, function: Callable[[*Args], T], *args: *Args) -> T | None:
        """In the thread: a second time when the connection was one to a server before a restart."""
        if self._failing:
            raise _LeftAlone
        try:
            return _ask(function, *args)
        except TimeoutError:
            raise
        except Exception:
            return _ask(function, *args)

    def _delete(self, key: str, value: bytes) -> None:
        if self._client.get(key) == value:
            self._client.delete(key, False)

    def _available(self, key: str) -> bool:
        """Whether to ask it. When its rest is over, this asks it for `key` to find out."""
        if not self.trusted and not self._on_trial and self._clock.seconds() >= self._rest_ends:
            self._on_trial = True
            trial = self._worker.run(_ask, self._client.get, key)
            trial.addCallbacks(self._answered, self._failed)
            trial.addBoth(self._tried)
        return self.trusted

    def _tried(self, ended: object) -> None:
        self._on_trial = False

    def _answered(self, answer: T) -> T:
        self.trusted = True
        if self._failing:
            self._failing = False
            self.log.info("memcached {name} answers again", name=self.name)
        return answer

    def _failed(self, failure: Failure) -> None:
        if failure.check(Busy, _LeftAlone):
            return  # which says nothing of the server
        if not self._failing:
            self._failing = True
            self.log.warn(
                "memcached {name} is left alone until it answers: {error}",
                name=self.name,
                # pymemcache raises whatever comes to it, and some of that says only what it is.
                error=f"{type(failure.value).__name__}: {failure.value}",
            )
        self._rest()

    def _rest(self) -> None:
        self.trusted = False
        self._rest_ends = self._clock.seconds() + REST_SECONDS


def _ask(function: Callable[[*Args], T], *args: *Args) -> T | None:
    """In the thread: `None` also where the server is well and refuses this key alone.

    It has no memory for the value, or does not take it; the next key may have another slab.
    """
    try:
        return function(*args)
    except (MemcacheUnexpectedCloseError, MemcacheUnknownCommandError):
        raise
    except (MemcacheServerError, MemcacheClientError):
        return None
