"""From one Stor into another: what the other one lacks is fetched, verified and sent."""

import hashlib
import tempfile
import threading
from collections.abc import Sequence

from twisted.internet.defer import Deferred

from stor.client.api import (
    CONNECTIONS,
    STORED,
    Client,
    GivenUp,
    NotStored,
    Refused,
    mismatch,
)
from stor.client.files import reason
from stor.client.get import OF_THE_DISK, TOGETHER, TOGETHER_BYTES, Unpacking, failure
from stor.client.listing import Listed
from stor.client.many import Outcome, Report, side_by_side
from stor.client.memory import MemoryClient
from stor.client.put import states_of
from stor.client.tar import BadTar
from stor.digest import Digest, MalformedDigest
from stor.threads import Pool

#: A larger sample is kept in a file of no name while it is on its way.
_MEMORY_BYTES = 1024 * 1024

#: A sample up to this size comes with others in one answer.
_SMALL_BYTES = 256 * 1024


class Spool:
    """A sample between two Stors: a `Sink`, and a `Body` once it is whole and verified."""

    def __init__(self, digest: Digest, pool: Pool) -> None:
        self.size = 0
        self._digest = digest
        self._pool = pool
        #: A thread may still read for a request that was cut, while the next one begins.
        self._lock = threading.Lock()
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - see discard
        self._hasher = hashlib.sha256()

    @property
    def received_bytes(self) -> int:
        """See `Sink`."""
        return self.size

    async def begin(self) -> None:
        """See `Sink`."""
        if self.size:
            await self._pool.run(self.begin_anew)

    async def add(self, data: bytes, *, last: bool) -> None:
        """See `Sink`. Raises `OSError`."""
        await self._pool.run(self.write, data, last)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body`."""
        return self._pool.run(self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)

    def begin_anew(self) -> None:
        """See `Sink.begin`. Blocking, as all below."""
        with self._lock:
            self._file.seek(0)
            self._file.truncate()
            self.size, self._hasher = 0, hashlib.sha256()

    def write(self, data: bytes, last: bool) -> None:
        """See `Sink.add`. Raises `ContentMismatch`, `OSError`."""
        with self._lock:
            self._file.seek(self.size)
            self._file.write(data)
            self._hasher.update(data)
            self.size += len(data)
        if last and self._hasher.digest() != self._digest.raw:
            raise mismatch(self._digest)

    def discard(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._file.close()


class Relay:
    """A Stor as the target of a mirror. Memory does not grow with the samples."""

    def __init__(
        self,
        source: Client | MemoryClient,
        target: Client | MemoryClient,
        pool: Pool,
        report: Report,
        *,
        connections: int = CONNECTIONS,
    ) -> None:
        """`pool` is for what is kept of large samples, below `$TMPDIR`."""
        self._source = source
        self._target = target
        self._pool = pool
        self._report = report
        self._connections = connections
        #: Whether the target has taken a sample: until it has, one is sent alone, so that a wrong
        #: password is tried once.
        self._welcome = False
        self._stopped = False

    async def take(self, samples: Sequence[Listed]) -> None:
        """Copy what the target lacks. Raises `GivenUp`, `Stopped`."""
        left = {sample.digest: sample for sample in samples}
        digests = list(left)
        states = await states_of(self._target, digests, lambda: self._stopped)
        for digest, state in zip(digests, states, strict=True):
            if state == STORED[0]:
                self._report(Outcome("present", str(digest), None, left.pop(digest).size))
        if left and not self._welcome:
            first = min(left.values(), key=lambda sample: sample.size)
            await self._copy([left.pop(first.digest)])
            self._welcome = True
        groups = _grouped(list(left.values()))

        async def copy_on() -> None:
            while groups and not self._stopped:
                await self._copy(groups.pop())

        await side_by_side(min(self._connections, len(groups)), copy_on, self.stop)

    async def sync(self) -> None:
        """What was taken is durable: the target has said so."""

    def stop(self) -> None:
        """Copy no more."""
        self._stopped = True
        self._source.stop()
        self._target.stop()

    async def _copy(self, samples: Sequence[Listed]) -> None:
        spools = {sample.digest: Spool(sample.digest, self._pool) for sample in samples}
        try:
            ended: dict[Digest, Exception | None] = {}
            if len(spools) > 1:
                unpacking = Unpacking(spools, self._pool)
                ended = unpacking.ended
                try:
                    await self._source.batch(list(spools), unpacking)
                except OSError as error:
                    raise _given_up(error) from None
                except (BadTar, MalformedDigest):
                    pass  # what has not come of it is fetched by itself
            for digest, spool in spools.items():
                if self._stopped:
                    return
                try:
                    await self._copy_one(digest, spool, ended)
                finally:
                    await self._pool.finish(spool.discard)
        finally:
            await self._pool.finish(_discard_all, list(spools.values()))

    async def _copy_one(
        self, digest: Digest, spool: Spool, ended: dict[Digest, Exception | None]
    ) -> None:
        """Fetch one, unless it has come already, and send it."""
        try:
            if digest not in ended:
                await self._source.receive(digest, spool)
            elif (error := ended[digest]) is not None:
                raise error
            new = await self._target.send(digest, spool)
        except (NotStored, Refused, OSError) as error:
            if isinstance(error, OSError) and error.errno in OF_THE_DISK:
                raise _given_up(error) from None
            self._report(failure(digest, None, error))
        else:
            self._report(Outcome("stored" if new else "present", str(digest), None, spool.size))


def _grouped(samples: list[Listed]) -> list[list[Listed]]:
    """Those that come in one answer: many small ones, or one."""
    groups: list[list[Listed]] = []
    together: list[Listed] = []
    total = 0
    for sample in samples:
        if sample.size > _SMALL_BYTES:
            groups.append([sample])
            continue
        if len(together) == TOGETHER or total + sample.size > TOGETHER_BYTES:
            groups.append(together)
            together, total = [], 0
        together.append(sample)
        total += sample.size
    return [*groups, together] if together else groups


def _given_up(error: OSError) -> GivenUp:
    return GivenUp(f"{tempfile.gettempdir()}: {reason(error)}")


def _discard_all(spools: list[Spool]) -> None:
    for spool in spools:
        spool.discard()
