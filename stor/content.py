"""A sample being read: verified, and from whichever copy is good."""

import hashlib
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from stor.digest import Digest
from stor.errors import Damaged


class Hasher(Protocol):
    """A running hash, as hashlib makes them."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """The hash of all bytes taken in."""


class Source(Protocol):
    """One copy of a sample, open. `whole` is the verified content when it is small."""

    place: str
    size: int
    modified_ns: int
    whole: bytes | None

    def read(self, offset: int, length: int, hasher: Hasher | None) -> Deferred[bytes]:
        """Exactly `length` bytes from `offset`, given to `hasher` too.

        With a hasher the read that reaches the end fails with `Damaged` when the hash of all
        bytes is not the sample's. On any other failure the hasher is untouched.
        """

    def close(self) -> None:
        """Give back what the copy holds, after the read in flight if there is one."""


class Copies(Protocol):
    """The copies of one sample, best first."""

    async def next(self) -> Source | None:
        """The next one that can be opened, `None` when there are no more. Never raises."""


class Content:
    """What a client is sent. Reads do not overlap; `close` ends it.

    Read from the first byte on, in order, it is hashed on the way, and the last part is not given
    out before the hash is right. When a copy fails at byte k, the next one goes on at byte k.
    """

    log = Logger()

    def __init__(self, digest: Digest, source: Source, copies: Copies) -> None:
        self.digest = digest
        self._source: Source | None = source
        self._copies = copies
        self._hasher = hashlib.sha256()
        self._hashed_bytes = 0
        self.size = source.size
        self.modified_ns = source.modified_ns
        self.whole = source.whole

    async def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, from the first copy that has them.

        Raises `Damaged` when no good copy is left, or when the bytes given out so far turn out
        not to be the sample's: then nothing can save this answer.
        """
        while self._source is not None:
            hasher = self._hasher if offset == self._hashed_bytes else None
            try:
                data = await self._source.read(offset, length, hasher)
            except Damaged as error:
                self.log.error("Damaged: {error}", error=str(error))
                if hasher is not None and offset + length == self.size:
                    raise
                reason = str(error)
            except Exception as error:
                reason = str(error)
            else:
                if hasher is not None:
                    self._hashed_bytes += length
                return data
            self.log.warn(
                "{place} failed at byte {offset}: {reason}",
                place=self._source.place,
                offset=offset,
                reason=reason,
            )
            await self._next_source()
        raise Damaged(f"no good copy of {self.digest} is left at byte {offset}")

    def close(self) -> None:
        """Give the copy back. Not while a read is in flight."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    async def _next_source(self) -> None:
        self.close()
        while (source := await self._copies.next()) is not None:
            if source.size == self.size:
                self._source = source
                return
            source.close()
