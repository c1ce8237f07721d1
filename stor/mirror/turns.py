"""Whose turn it is at a sample: uploads, repairs and moves of one do not meet."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from types import TracebackType

import attrs
from twisted.internet.defer import DeferredLock

from stor.digest import Digest
from stor.errors import Superseded


@attrs.define
class Contest:
    """The uploads of one sample that are in flight, and its move; the first to commit wins.

    `changes` grows when a commit or a move begins and when it ends. `stored` are the sample's paths
    after it.
    """

    lock: DeferredLock = attrs.field(factory=DeferredLock)
    parties: int = 0
    changes: int = 0
    stored: list[str] | None = None


@attrs.define
class _Copies:
    """A lock, and how many hold it or wait for it."""

    lock: DeferredLock = attrs.field(factory=DeferredLock)
    parties: int = 0


class Turns:
    """What is kept of a sample while anybody is at it.

    A repair holds the sample's copies, a commit its names, a move both: first all copies, then all
    names, each in the order of the samples, so that no two wait for each other.
    """

    def __init__(self) -> None:
        self._contests: dict[bytes, Contest] = {}
        self._copies: dict[Digest, _Copies] = {}

    @property
    def idle(self) -> bool:
        """Whether nobody is at any sample."""
        return not self._contests and not self._copies

    def busy(self, digest: Digest) -> bool:
        """Whether an upload or a move is at a sample."""
        return digest.raw in self._contests

    def join(self, digest: Digest) -> Contest:
        """One more upload, or a move, until `leave`."""
        contest = self._contests.get(digest.raw)
        if contest is None:
            contest = self._contests[digest.raw] = Contest()
        contest.parties += 1
        return contest

    def leave(self, digest: Digest) -> None:
        """One fewer."""
        contest = self._contests[digest.raw]
        contest.parties -= 1
        if not contest.parties:
            del self._contests[digest.raw]

    async def hold(self, digests: Collection[Digest]) -> Callable[[], None]:
        """No repair and no move but the caller's is at these samples, until it calls the result."""
        held: list[Digest] = []
        for digest in sorted(digests, key=_raw):
            copies = self._copies.setdefault(digest, _Copies())
            copies.parties += 1
            await copies.lock.acquire()
            held.append(digest)

        def release() -> None:
            for digest in held:
                copies = self._copies[digest]
                copies.parties -= 1
                if not copies.parties:
                    del self._copies[digest]
                copies.lock.release()

        return release

    @asynccontextmanager
    async def moving(self, digests: Collection[Digest]) -> AsyncIterator[dict[Digest, Contest]]:
        """No name of these samples is made or goes meanwhile, but by the caller.

        Who has looked for one of them before or meanwhile looks again.
        """
        contests = {digest: self.join(digest) for digest in sorted(digests, key=_raw)}
        locked: list[Contest] = []
        try:
            for contest in contests.values():
                await contest.lock.acquire()
                locked.append(contest)
                contest.changes += 1
            yield contests
        finally:
            for contest in locked:
                contest.changes += 1
                contest.lock.release()
            for digest in contests:
                self.leave(digest)


def _raw(digest: Digest) -> bytes:
    return digest.raw


@attrs.define
class RequestQueue:
    """The requests for one upload: whose turn it is, and the number of the newest."""

    lock: DeferredLock = attrs.field(factory=DeferredLock)
    requests: int = 0
    newest: int = 0
    give_way: Callable[[], None] = lambda: None


class UploadTurn:
    """The right to an upload, of one request at a time: a newer one ends the older.

    An `async with`, which begins once the one before has parked what it has.
    """

    def __init__(
        self, queues: dict[Digest, RequestQueue], digest: Digest, give_way: Callable[[], None]
    ) -> None:
        self._queues = queues
        self._digest = digest
        self._give_way = give_way
        self._queue = queues.setdefault(digest, RequestQueue())
        self._queue.requests += 1
        self._queue.newest += 1
        self._number = self._queue.newest

    async def __aenter__(self) -> "UploadTurn":
        self._queue.give_way()
        await self._queue.lock.acquire()
        self._queue.give_way = self._give_way
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.give_way = lambda: None
        self._queue.requests -= 1
        if not self._queue.requests:
            del self._queues[self._digest]
        self._queue.lock.release()

    def expect_newest(self) -> None:
        """Raises `Superseded` when another request has come."""
        if self._number != self._queue.newest:
            raise Superseded
