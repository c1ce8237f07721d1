"""Many files into a Stor: hashed in threads, asked about in thousands, sent where they are not."""

from collections.abc import Callable, Iterable, Sequence

import attrs
from twisted.internet.defer import Deferred

from stor.client.api import (
    ASKED,
    CONNECTIONS,
    STORED,
    UNKNOWN,
    Bytes,
    Client,
    ContentMismatch,
    NotStored,
    Refused,
)
from stor.client.files import (
    ATTEMPTS,
    Changed,
    Hashed,
    OpenFile,
    Problem,
    changing,
    hash_file,
    named,
    named_file,
    reason,
)
from stor.client.many import Feed, Outcome, Report, side_by_side
from stor.client.memory import MemoryClient
from stor.digest import Digest
from stor.threads import Pool

#: Files that a thread hashes in one visit.
_HASHED_AT_ONCE = 16

#: With this much hashed, the server is asked about it, however few files it is.
_HASHED_BYTES = 4 * 1024**3

#: What it takes to send a small file, and how often it is asked again whether that is needed.
_SENDING_SECONDS = 0.001
_ASKED_AGAIN_SECONDS = 0.5

#: A file up to this size is read whole before it is sent.
_WHOLE_BYTES = 1024 * 1024


@attrs.frozen
class _Reading:
    """A `Body` that is read in threads."""

    file: OpenFile
    size: int
    pool: Pool

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return self.pool.run(self.file.read, offset, length)


class Put:
    """Stores files. Memory does not grow with their number or size."""

    def __init__(
        self,
        client: Client | MemoryClient,
        hashing: Pool,
        reading: Pool,
        report: Report,
        *,
        hashing_threads: int = 2,
        connections: int = CONNECTIONS,
        by_name: bool = False,
    ) -> None:
        """`by_name`: a file that has a sample's name is that sample, and read only to be sent."""
        self._client = client
        self._hashing = hashing
        self._reading = reading
        self._report = report
        self._hashing_threads = hashing_threads
        self._connections = connections
        self._by_name = by_name
        #: Whether the server has taken a file: until it has, one is sent alone, so that a wrong
        #: password is tried once.
        self._welcome = False
        self._stopped = False

    async def run(self, names: Iterable[str | Problem]) -> None:
        """Store every file of `names`, which is walked in threads. Raises `GivenUp`, `Stopped`."""
        feed = Feed(names, self._hashing)
        gathering = self._begin_to_gather(feed)
        try:
            while chunk := await gathering:
                gathering = self._begin_to_gather(feed)
                await self._take(chunk)
        finally:
            self._stopped = True
            gathering.addErrback(lambda _: None)

    def stop(self) -> None:
        """Hash no more."""
        self._stopped = True
        self._client.stop()

    def _begin_to_gather(self, feed: Feed[str | Problem]) -> Deferred[list[Hashed]]:
        return Deferred.fromCoroutine(self._gather(feed))

    async def _gather(self, feed: Feed[str | Problem]) -> list[Hashed]:
        """Hash until it is enough to ask about; none at the end."""
        chunk: list[Hashed] = []
        hashed_bytes = 0

        def hash_some() -> list[Hashed | Problem]:
            found = feed.some(_HASHED_AT_ONCE)
            return [self._look_at(name) if isinstance(name, str) else name for name in found]

        async def hash_on() -> None:
            nonlocal hashed_bytes
            while len(chunk) < ASKED and hashed_bytes < _HASHED_BYTES and not self._stopped:
                some = await self._hashing.run(hash_some)
                if not some:
                    return
                for one in some:
                    if isinstance(one, Problem):
                        self._failed(one)
                    else:
                        chunk.append(one)
                        hashed_bytes += one.size

        await side_by_side(self._hashing_threads, hash_on, lambda: None)
        return chunk

    def _look_at(self, path: str) -> Hashed | Problem:
        return (named_file(path) if self._by_name else None) or hash_file(path)

    async def _take(self, chunk: list[Hashed]) -> None:
        """Store the files of a chunk. Equal ones are sent once."""
        by_digest: dict[Digest, list[Hashed]] = {}
        for hashed in chunk:
            by_digest.setdefault(hashed.digest, []).append(hashed)
        digests = list(by_digest)
        waiting = []
        for begin in range(0, len(digests), ASKED):
            asked = digests[begin : begin + ASKED]
            states = await states_of(self._client, asked, lambda: self._stopped)
            for digest, state in zip(asked, states, strict=True):
                if state == STORED[0]:
                    self._done("present", by_digest[digest])
                else:
                    waiting.append(by_digest[digest])
        if not waiting:
            return
        if not self._welcome:
            first = min(waiting, key=lambda files: files[0].size)
            waiting.remove(first)
            await self._store(first)
            self._welcome = True

        async def store_on() -> None:
            while waiting and not self._stopped:
                await self._store(waiting.pop())

        await side_by_side(min(self._connections, len(waiting)), store_on, self.stop)

    async def _store(self, files: Sequence[Hashed]) -> None:
        """Store equal files: one of them, and others where that one cannot be read any more."""
        stored: Digest | None = None
        for hashed in files:
            if hashed.digest == stored:
                self._done("present", [hashed])
                continue
            try:
                new, hashed = await self._send(hashed)  # noqa: PLW2901 - it may have changed
            except _Passed as passed:
                self._failed(passed.problem)
            else:
                stored = hashed.digest
                self._done("stored" if new else "present", [hashed])

    async def _send(self, hashed: Hashed) -> tuple[bool, Hashed]:
        """Send a file; where it has changed, as it is now. Raises `_Passed`."""
        problem = changing(hashed.path)
        for _ in range(ATTEMPTS):
            try:
                return await self._send_as_hashed(hashed), hashed
            except Changed:
                problem = changing(hashed.path)
            except ContentMismatch as error:
                problem = Problem(hashed.path, str(error))
            except (NotStored, Refused) as error:
                raise _Passed(Problem(hashed.path, str(error))) from None
            except OSError as error:
                raise _Passed(Problem(hashed.path, reason(error))) from None
            again = await self._reading.run(hash_file, hashed.path)
            if isinstance(again, Problem):
                raise _Passed(again)
            if self._by_name and named(hashed.path) not in (None, again.digest):
                raise _Passed(Problem(hashed.path, f"damaged: its content is {again.digest}"))
            if again.digest != hashed.digest:
                problem = changing(hashed.path)
            hashed = again
        raise _Passed(problem)

    async def _send_as_hashed(self, hashed: Hashed) -> bool:
        if hashed.size <= _WHOLE_BYTES:
            content = await self._reading.run(_read, hashed)
            return await self._client.send(hashed.digest, Bytes(content))
        file = await self._reading.run(OpenFile, hashed)
        try:
            body = _Reading(file, hashed.size, self._reading)
            new = await self._client.send(hashed.digest, body)
            await self._reading.run(file.expect_unchanged)
            return new
        finally:
            # Not before what a thread may still read of it.
            await self._reading.finish(file.close)

    def _done(self, state: str, files: Sequence[Hashed]) -> None:
        for hashed in files:
            self._report(Outcome(state, str(hashed.digest), hashed.path, hashed.size))

    def _failed(self, problem: Problem) -> None:
        self._report(Outcome("failed", None, problem.path, error=problem.reason))


async def states_of(
    client: Client | MemoryClient, digests: Sequence[Digest], stopped: Callable[[], bool]
) -> bytes:
    """Which of them are stored, as `Client.missing` says it.

    A server that has just started learns what it has: that is waited for, but never longer than
    to send what is unknown would take.
    """
    states = bytearray(await client.missing(digests))
    left = states.count(UNKNOWN) * _SENDING_SECONDS
    while left >= _ASKED_AGAIN_SECONDS and not stopped() and UNKNOWN in states:
        left -= _ASKED_AGAIN_SECONDS
        await client.wait(_ASKED_AGAIN_SECONDS)
        unknown = [n for n, state in enumerate(states) if state == UNKNOWN[0]]
        for n, state in zip(
            unknown, await client.missing([digests[n] for n in unknown]), strict=True
        ):
            states[n] = state
    return bytes(states)


class _Passed(Exception):
    """A file is passed over."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


def _read(hashed: Hashed) -> bytes:
    """A small file, whole. Raises `Changed`, `OSError`."""
    file = OpenFile(hashed)
    try:
        content = file.read(0, hashed.size)
        file.expect_unchanged()
        return content
    finally:
        file.close()
