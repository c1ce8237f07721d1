"""A sample in S3 that is being read."""

from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from stor.block_sums import BlockSums
from stor.digest import Digest, Hasher
from stor.errors import Damaged
from stor.metrics import S3_STORAGE
from stor.s3.body import Body
from stor.s3.client import S3Failed
from stor.zero_copy import SplicePipe

#: The most that one read gives; a read may give less than was asked for.
_PIECE_BYTES = 64 * 1024

#: A block up to this size is held in memory until its sum is known to be right.
_BLOCK_BYTES = 1024 * 1024

#: How often a body that was cut is asked for again from where it ended, for each piece of it.
_RESUMPTIONS = 2


class Opener(Protocol):
    """Where bodies come from."""

    async def body(self, digest: Digest, offset: int, size: int) -> Body:
        """The sample from `offset` on. Raises `S3Failed`."""


class S3Source:
    """Implements `stor.content.Source`: one request at a time, no thread."""

    def __init__(
        self, opener: Opener, digest: Digest, size: int, modified_ns: int, body: Body | None
    ) -> None:
        """`body` is the sample from its first byte on, when it has been asked for already."""
        self.place = self.storage = S3_STORAGE
        self.size = size
        self.modified_ns = modified_ns
        self.whole: bytes | None = None
        self.proven = False
        self.provable = False
        self.sums: BlockSums | None = None
        self._block = b""
        self._block_begin = 0
        self._opener = opener
        self._digest = digest
        self._body = body
        #: The first bytes, when they were read before they were asked for.
        self._early = b""
        self._next_offset = 0
        self._resumptions_left = _RESUMPTIONS
        self._resumed_at = 0
        self._closed = False
        #: What is read before it was asked for has taken too long.
        self._late = False

    def read(self, offset: int, length: int, hasher: Hasher | None) -> Deferred[bytes]:
        """See `stor.content.Source.read`."""
        return Deferred.fromCoroutine(self._read(offset, length, hasher))

    def adopt(self, sums: BlockSums) -> None:
        """See `stor.content.Source.adopt`."""
        if sums.block_bytes <= _BLOCK_BYTES:
            self.sums = sums

    def read_checked(self, offset: int, length: int) -> Deferred[bytes]:
        """See `stor.content.Source.read_checked`."""
        return Deferred.fromCoroutine(self._read_checked(offset, length))

    def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> Deferred[bool]:
        """See `stor.content.Source.send`."""
        return succeed(False)

    def close(self) -> None:
        """See `stor.content.Source.close`."""
        self._closed = True
        if self._body is not None:
            self._body.close()
            self._body = None

    async def gather(self, clock: IReactorTime, seconds: float) -> None:
        """Read a small sample before it is asked for: `whole`, if it comes within `seconds`.

        Raises `Damaged`, `S3Failed`.
        """
        reading = Deferred.fromCoroutine(self._gather())

        def give_up() -> None:
            self._late = True
            reading.cancel()

        deadline = clock.callLater(seconds, give_up)
        try:
            await reading
        except Exception:
            if not self._late:
                raise
            self._late = False
            return  # what is missing is taken when it is wanted
        finally:
            if deadline.active():
                deadline.cancel()
        self.whole = self._early
        self.close()
        if Digest.of(self.whole) != self._digest:
            raise self._damaged()

    async def _gather(self) -> None:
        while len(self._early) < self.size:
            self._early += await self._persist(len(self._early), _PIECE_BYTES)

    async def _read(self, offset: int, length: int, hasher: Hasher | None) -> bytes:
        if offset < len(self._early):
            data = self._early[offset : offset + length]
        else:
            data = await self._persist(offset, min(length, _PIECE_BYTES))
        if hasher is not None:
            hasher.update(data)
            if offset + len(data) == self.size and hasher.digest() != self._digest.raw:
                raise self._damaged()
        return data

    async def _read_checked(self, offset: int, length: int) -> bytes:
        if self.sums is None:
            raise ValueError("a sample without block sums has no blocks to check")
        begin, end = self.sums.block(offset)
        if self._block_begin != begin or not self._block:
            parts, at = [], begin
            while at < end:
                parts.append(await self._read(at, end - at, None))
                at += len(parts[-1])
            self._block, self._block_begin = b"".join(parts), begin
            if not self.sums.fits(begin, self._block):
                self._block = b""
                raise self._damaged()
        return self._block[offset - begin :][:length]

    async def _persist(self, offset: int, limit: int) -> bytes:
        """Bytes from `offset` on; a body that is cut is asked for again from there."""
        while True:
            try:
                return await self._take(offset, limit)
            except Exception:
                if self._late:
                    raise
                self._drop()
                if offset >= self._resumed_at + _PIECE_BYTES:
                    self._resumed_at, self._resumptions_left = offset, _RESUMPTIONS
                if not self._resumptions_left or self._closed:
                    raise
                self._resumptions_left -= 1

    async def _take(self, offset: int, limit: int) -> bytes:
        if self._body is None or self._next_offset != offset:
            self._drop()
            body = await self._opener.body(self._digest, offset, self.size)
            if self._closed:
                body.close()
                raise S3Failed("s3: nobody wants it any more")
            self._body, self._next_offset = body, offset
        data = await self._body.take(limit)
        if not data:
            raise S3Failed(f"s3: the body ended at byte {offset} of {self.size}")
        self._next_offset += len(data)
        return data

    def _damaged(self) -> Damaged:
        return Damaged(f"s3: {self._digest}: content does not have the SHA-256 of its name")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
