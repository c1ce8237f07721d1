"""Bodies that wait on a local disk until S3 has them."""

import os
import tempfile
from collections.abc import Sequence
from typing import BinaryIO, TypeVar

from twisted.internet.defer import Deferred

from stor.errors import NoRoom, Unavailable
from stor.threads import Pool

T = TypeVar("T")


class Spool:
    """A directory for bodies, bounded. What is in it has no name: a crash leaves nothing."""

    def __init__(self, directory: str, limit_bytes: int, worker: Pool) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._worker = worker
        self.used_bytes = 0

    async def open(self, length: int | None) -> "SpooledBody":
        """Room for a body, of `length` bytes when it is known. Raises `NoRoom`, `Unavailable`."""
        if length is not None and length > self._limit_bytes:
            raise NoRoom(f"no room: at most {self._limit_bytes} bytes can be spooled (spool_bytes)")
        self.reserve(length or 0)
        try:
            file = await self._worker.run(_make, self._directory)
        except OSError as error:
            self.used_bytes -= length or 0
            raise Unavailable(f"the spool cannot be written: {error}") from error
        return SpooledBody(self, self._worker, file, length or 0)

    def reserve(self, length: int) -> None:
        """Have room for `length` bytes more. Raises `Unavailable`."""
        if self.used_bytes + length > self._limit_bytes:
            raise Unavailable("the spool is full of bodies that are on their way to S3")
        self.used_bytes += length


class SpooledBody:
    """One body. Await its operations one by one; `close` gives all of it back."""

    def __init__(self, spool: Spool, worker: Pool, file: BinaryIO, reserved: int) -> None:
        self.size = 0
        self._spool = spool
        self._worker = worker
        self._file = file
        self._reserved = reserved
        self._last: Deferred[object] | None = None
        self._closed = False

    async def add(self, chunks: Sequence[bytes]) -> None:
        """Append. Raises `NoRoom`, `Unavailable`."""
        size = self.size + sum(map(len, chunks))
        if size > self._reserved:
            self._spool.reserve(size - self._reserved)
            self._reserved = size
        try:
            await self._run(self._worker.run(_append, self._file.fileno(), chunks))
        except OSError as error:
            raise NoRoom(f"no room: the spool cannot be written: {error}") from error
        self.size = size

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`. Raises `OSError`."""
        return await self._run(self._worker.run(os.pread, self._file.fileno(), length, offset))

    def close(self) -> None:
        """Give file and room back, after the operation that is under way. Never raises."""
        if self._closed:
            return
        self._closed = True
        if self._last is None or self._last.called:
            self._end(None)
        else:
            self._last.addBoth(self._end)

    async def _run(self, operation: Deferred[T]) -> T:
        ended: Deferred[object] = Deferred()
        self._last = ended
        try:
            return await operation
        finally:
            ended.callback(None)

    def _end(self, outcome: object) -> None:
        self._spool.used_bytes -= self._reserved
        self._worker.finish(self._file.close).addErrback(lambda _: None)


def _make(directory: str) -> BinaryIO:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return tempfile.TemporaryFile(dir=directory, buffering=0)


def _append(fd: int, chunks: Sequence[bytes]) -> None:
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(fd, rest) :]
