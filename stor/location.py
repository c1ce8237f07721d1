"""Where a digest was last seen: a hint, never the truth."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from stor.digest import Digest
from stor.memcached import Memcached
from stor.status import MemcachedStatus

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
