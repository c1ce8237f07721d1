"""A sample being read: verified, and from whichever copy is good."""

import hashlib
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from stor.digest import Digest, Hasher
from stor.errors import Damaged, Unavailable
from stor.threads import within
from stor.zero_copy import SplicePipe

#: A copy whose disk takes longer for one read is left for the next copy.
READ_SECONDS = 10.0

#: What is hashed late is read in such parts.
_MISSING_BYTES = 1024 * 1024


class Source(Protocol):
    """One copy of a sample, open. `whole` is the verified content when it is small.

    `place` is where it is, for the log, and `storage` which storage that is on. `proven`: all of
    it was read not long ago, and is right, so that it need not be read again to be sent.
    """

    place: str
    storage: str
    size: int
    modified_ns: int
    whole: bytes | None
    proven: bool

    def read(self, offset: int, length: int, hasher: Hasher | None) -> Deferred[bytes]:
        """From 1 to `length` bytes from `offset`, given to `hasher` too.

        With a hasher the read that reaches the end fails with `Damaged` when the hash of all
        bytes is not the sample's.
        """

    def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> Deferred[bool]:
        """Send from 1 to `length` bytes from `offset` of a `proven` copy, past memory.

        `False` when they have to be read instead. `SplicePipe.newly_sent` says how many were sent,
        also when it fails.
        """

    def close(self) -> None:
        """Give back what the copy holds, after the read in flight if there is one."""


S = TypeVar("S", bound=Source)


class Copies(Protocol[S]):
    """The copies of one sample, best first."""

    async def next(self) -> S | None:
        """The next one that can be opened, `None` when there are no more. Never raises."""

    async def twin(self, source: S) -> S | None:
        """Another copy that is kept beside `source`, as `next` gives them."""

    def mark_corrupt(self, source: S, reason: str) -> None:
        """The copy is bad: not to be served again."""

    def suspect(self, source: S) -> None:
        """The copy could not be read."""

    def close(self) -> None:
        """No more are wanted."""


class Content(Generic[S]):
    """What a client is sent. Reads do not overlap; `close` ends it.

    It is read from the first byte on, in order, and hashed on the way; the last part is not given
    out before the hash is right. After `take_part` there is no whole to be hashed: what is read is
    compared with the same part of another copy, where there is one. When a copy fails at byte k,
    the next one goes on at byte k.

    From a copy that is `proven` any part can be sent without being read. Where a read comes after
    that, what its hash has to begin with is read and hashed first.
    """

    log = Logger()

    def __init__(self, digest: Digest, source: S, copies: Copies[S], clock: IReactorTime) -> None:
        self.digest = digest
        self.size = source.size
        self.modified_ns = source.modified_ns
        self.whole = source.whole
        #: Where the first byte comes from.
        self.place = source.place
        self.storage = source.storage
        self._source: S | None = source
        self._copies = copies
        self._clock = clock
        self._hasher = hashlib.sha256()
        self._hashed_bytes = 0
        self._part = False
        self._wanted = True
        #: What was sent unread last, and from where on.
        self._passed_by: S | None = None
        self._passed_from = 0
        self._sizes_differ = False
        self._givers: list[S] = []
        self._twin: S | None = None
        self._alone = False

    def take_part(self) -> None:
        """Only a part will be read, from anywhere: there will be no whole to be hashed."""
        self._part = True

    def give_up(self) -> None:
        """Nobody wants any more of it: end what is under way soon, with any outcome."""
        self._wanted = False

    @property
    def proven(self) -> bool:
        """Whether the next bytes can be sent without being read."""
        return self._source is not None and self._source.proven

    async def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> bool:
        """Send up to `length` bytes from `offset` as far as the client takes them.

        `False`: the splice_pipe is of no more use. Where it has ended to send, the next one goes on
        while the content is `proven`, or else `read`. Raises `Damaged` when the file was changed
        since the first bytes of it were sent: those that are still on their way are its pages,
        and may have changed with it.
        """
        source = self._source
        if source is None or not source.proven:
            return False
        if source is not self._passed_by:
            self._passed_by, self._passed_from = source, offset
        sending = source.send(splice_pipe, offset, length)
        splice_pipe.lend(sending)
        try:
            source.proven = await within(self._clock, READ_SECONDS, sending)
        except Exception as error:
            self._failed(source, offset, error)
            if isinstance(error, Damaged) and offset > self._passed_from:
                raise
            await self._next_source()
            return False
        return source.proven

    async def read(self, offset: int, length: int) -> bytes:
        """From 1 to `length` bytes from `offset`, from the first copy that has them.

        Raises `Damaged` when no good copy is left, or when the bytes given out so far turn out
        not to be the sample's, and `Unavailable` when a copy is left that could not be read, or
        that has another size than was promised: then nothing can save this answer.
        """
        trouble: Exception | None = None
        while self._source is not None and self._wanted:
            source = self._source
            # Where something was sent unread: what the hash of the whole has to begin with.
            missing = 0 if self._part else offset - self._hashed_bytes
            begin, count = offset - missing, min(missing, _MISSING_BYTES) or length
            # A copy of the hash: a read that fails, or ends too late, must not have touched it.
            hasher = None if self._part else self._hasher.copy()
            try:
                data = await self._read_from(source, begin, count, hasher)
            except Damaged as error:
                if source.whole is None:
                    self._copies.mark_corrupt(source, str(error))
                if hasher is not None and begin + count == self.size and begin:
                    self._condemn_givers(source)
                    raise
            except Exception as error:
                trouble = error
                self._failed(source, begin, error)
            else:
                if hasher is None:
                    await self._compare(source, offset, data)
                else:
                    self._hasher = hasher
                    self._hashed_bytes += len(data)
                    if source not in self._givers:
                        self._givers.append(source)
                if not missing:
                    return data
                continue
            await self._next_source()
        if trouble is not None:
            raise Unavailable(f"no copy can be read: {trouble}") from trouble
        if self._sizes_differ:
            reason = f"the copies of {self.digest} differ in size, and are being looked at"
            raise Unavailable(reason)
        raise Damaged(f"no good copy of {self.digest} is left at byte {offset}")

    async def _read_from(self, source: S, offset: int, length: int, hasher: Hasher | None) -> bytes:
        if source.whole is None:
            return await within(self._clock, READ_SECONDS, source.read(offset, length, hasher))
        # It is good: if the hash is wrong all the same, what was given out before was bad.
        data = source.whole[offset : offset + length]
        if hasher is not None:
            hasher.update(data)
            if offset + len(data) == self.size and hasher.digest() != self.digest.raw:
                raise Damaged(f"{self.digest}: a part of a wrong whole was given out")
        return data

    def close(self) -> None:
        """Give the copies back. Not while a read is in flight."""
        for source in (self._source, self._twin):
            if source is not None:
                source.close()
        self._source = self._twin = None
        self._copies.close()

    async def _compare(self, source: S, offset: int, data: bytes) -> None:
        """Raise `Unavailable` when another copy differs; one that cannot be read says nothing."""
        while not self._alone:
            if self._twin is None:
                self._twin = await self._copies.twin(source)
                if self._twin is None:
                    self._alone = True
                    return
            try:
                reading = self._twin.read(offset, len(data), None)
                other = await within(self._clock, READ_SECONDS, reading)
            except Exception as error:
                self.log.warn("{place}: {reason}", place=self._twin.place, reason=str(error))
                self._copies.suspect(self._twin)
                self._twin.close()
                self._twin = None
                continue
            if other != data or self._twin.size != self.size:
                self._copies.suspect(source)
                reason = f"{source.place} and {self._twin.place} differ, and are being looked at"
                self.log.error("Damaged: {reason}", reason=reason)
                raise Unavailable(reason)
            return

    def _failed(self, source: S, offset: int, error: Exception) -> None:
        self.log.warn(
            "{place} failed at byte {offset}: {reason}",
            place=source.place,
            offset=offset,
            reason=str(error),
        )
        self._copies.suspect(source)

    def _condemn_givers(self, last: S) -> None:
        """One of the copies that gave bytes is bad: none is served before all are looked at."""
        for giver in self._givers:
            if giver is not last:
                self._copies.mark_corrupt(giver, f"{giver.place}: gave a part of a wrong whole")

    async def _next_source(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source, self._twin = self._twin, None
        while self._source is None and (source := await self._copies.next()) is not None:
            if source.size == self.size:
                self._source = source
            else:
                self._sizes_differ = True
                source.close()
