"""Where a digest was last seen: a hint, never the truth, which memcached servers may share.

Each server is asked in a thread of its own, and left alone when it does not answer. Not by
pymemcache's `HashClient`, which has all servers in one. Measured with pymemcache 4.0 and 1000
questions a second: while the name of one server of three takes 5 s to fail (getaddrinfo(3) has no
time-out), 4905 of 9092 answers of all servers are later than 50 ms. With several threads it loses
count of dead servers (6 times `ValueError: No such node` in 10 s with one server stopped). It times
dead servers by the wall clock: two hours back keep a server out for two hours. Its hash takes 28 us
a key with three servers, where ours takes 1.4.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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

from stor.digest import Digest
from stor.status import MemcachedStatus
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


#: Of both keys and values. The older Stor's are not read: theirs are paths, without a format.
FORMAT = "2"

#: What this process remembers by itself, at about 245 bytes each.
RECENT_LIMIT = 100_000

#: The place of what is in the bucket.
S3 = "s3"


def mirror_place(host: str, roots: Sequence[str]) -> str:
    """The place that a mirror is: no other host, and no other set of disks, means the same."""
    return f"{host}:{','.join(roots)}"


class Locations:
    """Remembers the places of samples: the latest by itself, others in memcached.

    What memcached says counts only when it names one of the places that this process knows:
    anything else there, of another host, a former configuration or no sense at all, is as if it
    were not there. Nothing here fails, and nothing takes longer than `memcached.WAIT_SECONDS`.
    """

    def __init__(
        self,
        places: Iterable[str],
        servers: Sequence[Memcached],
        clock: IReactorTime,
        recent_limit: int = RECENT_LIMIT,
    ) -> None:
        """`places` are all that there are: `mirror_place`s, and `S3`."""
        self._values = {place: _value(place) for place in places}
        self._places = {value: place for place, value in self._values.items()}
        self._servers = servers
        self._clock = clock
        self._recent_limit = recent_limit
        self._recent: OrderedDict[bytes, str] = OrderedDict()
        self._asked: dict[Digest, list[Deferred[str | None]]] = {}
        #: Lookups that found a place, those that did not, and the time that both took together.
        self.hits = 0
        self.misses = 0
        self.seconds = 0.0

    @property
    def places(self) -> frozenset[str]:
        """All that there are."""
        return frozenset(self._values)

    async def where(self, digest: Digest) -> str | None:
        """The place where the sample was last seen, as far as anybody knows. Never raises."""
        begun = self._clock.seconds()
        place = self._recent.get(digest.raw)
        if place is not None:
            self._recent.move_to_end(digest.raw)
        elif self._servers:
            place = await self._shared(digest)
        if place is None:
            self.misses += 1
        else:
            self.hits += 1
        self.seconds += self._clock.seconds() - begun
        return place

    def remember(self, digest: Digest, place: str) -> None:
        """The sample is at `place`, one of those that there are.

        Known here at once, and in memcached some time soon, unless it was known here before.
        """
        value = self._values[place]
        if self._recent.get(digest.raw) != place and self._servers:
            self._server(digest).set(_key(digest), value)
        self._note(digest, place)

    def forget(self, digest: Digest, place: str) -> None:
        """The sample is not at `place`, whoever said so."""
        if self._recent.get(digest.raw) == place:
            del self._recent[digest.raw]
        if self._servers:
            self._server(digest).delete(_key(digest), self._values[place])

    @property
    def servers(self) -> list[MemcachedStatus]:
        """Every memcached, as far as is known."""
        return [MemcachedStatus(one.name, one.trusted) for one in self._servers]

    def stop(self) -> None:
        """End the threads and connections. Never waits for them."""
        for server in self._servers:
            server.stop()

    def _note(self, digest: Digest, place: str) -> None:
        self._recent[digest.raw] = place
        self._recent.move_to_end(digest.raw)
        if len(self._recent) > self._recent_limit:
            self._recent.popitem(last=False)

    def _shared(self, digest: Digest) -> Deferred[str | None]:
        """The answer of memcached, asked once for all that wait for it.

        Everyone has a Deferred of their own, so that one who is cancelled takes no other along.
        """
        mine: Deferred[str | None] = Deferred()
        waiting = self._asked.setdefault(digest, [])
        waiting.append(mine)
        if len(waiting) == 1:
            Deferred.fromCoroutine(self._ask(digest))
        return mine

    async def _ask(self, digest: Digest) -> None:
        place = None
        try:
            value = await self._server(digest).get(_key(digest))
            # What came to be known meanwhile is newer.
            place = self._recent.get(digest.raw) or self._places.get(value or b"")
            if place is not None:
                self._note(digest, place)
        finally:
            for waiter in self._asked.pop(digest):
                waiter.callback(place)

    def _server(self, digest: Digest) -> Memcached:
        """The same one on every host that has the same servers, in whatever order.

        Rendezvous hashing: with a server more or less, only the keys that it gets or had move.
        """
        if len(self._servers) == 1:
            return self._servers[0]
        return max(self._servers, key=lambda server: _weight(server.name, digest))


def _weight(name: str, digest: Digest) -> bytes:
    return hashlib.sha256(_encoded(name) + digest.raw).digest()


def _key(digest: Digest) -> str:
    return f"stor:{FORMAT}:{digest}"


def _value(place: str) -> bytes:
    return _encoded(f"{FORMAT}:{place}")


def _encoded(text: str) -> bytes:
    # A path, and any text in JSON, may have surrogates, which UTF-8 alone refuses.
    return text.encode(errors="surrogatepass")
