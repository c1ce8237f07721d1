"""A sample being read: verified, and from whichever copy is good."""

import hashlib
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from stor.block_sums import BlockSums
from stor.digest import Digest, Hasher
from stor.errors import Changed, Damaged, Unavailable
from stor.threads import Unanswered, within
from stor.zero_copy import SplicePipe

#: A copy whose disk takes longer for one read is left for the next copy.
READ_SECONDS = 10.0

#: The same for a block, which is read whole before any of it is given: a slow disk's rate.
SLOW_BYTES_PER_SECOND = 20_000_000

#: What is hashed without being given is read in such parts.
_HASH_BYTES = 1024 * 1024

#: How long a client waits for its first byte while it is found out which of two copies is right.
SETTLE_SECONDS = 8.0


class Source(Protocol):
    """One copy of a sample, open. `whole` is the verified content when it is small.

    `place` is where it is, for the log, and `storage` which storage that is on. `proven`: all of
    it was read not long ago, and is right, so that it need not be read again to be sent. `sums`:
    those of its blocks, `None` while nobody has them. `provable`: reading all of it once spares
    others that for a while.
    """

    place: str
    storage: str
    size: int
    modified_ns: int
    whole: bytes | None
    provable: bool

    @property
    def proven(self) -> bool:
        """Whether it was verified lately."""

    @property
    def sums(self) -> BlockSums | None:
        """What its blocks are checked by."""

    def adopt(self, sums: BlockSums) -> None:
        """Check the blocks by `sums`, which another copy has; not where that takes memory."""

    def read(self, offset: int, length: int, hasher: Hasher | None) -> Deferred[bytes]:
        """From 1 to `length` bytes from `offset`, given to `hasher` too.

        With a hasher the read that reaches the end fails with `Damaged` when the hash of all
        bytes is not the sample's.
        """

    def read_checked(self, offset: int, length: int) -> Deferred[bytes]:
        """From 1 to `length` bytes from `offset`, from blocks that have the right sums.

        Fails with `Damaged` when one has not.
        """

    def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> Deferred[bool]:
        """Send from 1 to `length` bytes from `offset`, past memory: `proven`, or checked by `sums`.

        `False` when they have to be read instead. `SplicePipe.newly_sent` says how many were sent,
        also when it fails: with `Damaged` before a wrong block, with `Changed` when the file has
        become another since it was opened.
        """

    def close(self) -> None:
        """Give back what the copy holds, after the read in flight if there is one."""


class _WrongWhole(Damaged):
    """What was given out so far and the last part together are not the sample."""


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
        """The copy could not be read, or a part of it is wrong: have it looked at."""

    def close(self) -> None:
        """No more are wanted."""


class Content(Generic[S]):
    """What a client is sent. Reads do not overlap; `close` ends it.

    With block sums every block is checked before any of it is given out, and where one is wrong
    or cannot be read, the next copy that has it right goes on from there. What the sums of one
    copy say holds for all.

    Without sums it is read from the first byte on, in order, compared with another copy where there
    is one, and hashed on the way; the last part is not given out before the hash is right. After
    `take_part` there is no whole to be hashed on the way: where there is no other copy, all of the
    only one is hashed before the last part is given out.
    """

    log = Logger()

    def __init__(self, digest: Digest, source: S, copies: Copies[S], clock: IReactorTime) -> None:
        self.digest = digest
        self._source: S | None = source
        self._copies = copies
        self._clock = clock
        self._sums = source.sums
        #: Copies with a wrong block, or one that cannot be read; the others of it may be good.
        self._aside: list[S] = []
        self._hasher = hashlib.sha256()
        self._hashed_bytes = 0
        #: Where the part that is wanted ends.
        self._part_end: int | None = None
        self._wanted = True
        self._given = False
        self._sends = True
        #: Since sending has failed: only a read tries each copy once and then gives up.
        self._reads_next = False
        #: What was sent unread last, and from where on.
        self._passed_by: S | None = None
        self._passed_from = 0
        self._sizes_differ = False
        self._givers: list[S] = []
        self._twin: S | None = None
        self._alone = False
        self._know(source)

    def _know(self, source: S) -> None:
        """What is said of the sample is what this copy says."""
        self.size = source.size
        self.modified_ns = source.modified_ns
        self.whole = source.whole
        #: Where the first byte comes from.
        self.place = source.place
        self.storage = source.storage

    async def prepare(self) -> None:
        """Find what a large sample is checked by, before its size is told to anybody.

        Of two copies that differ in size the right one is taken, however it is found out. Raises
        `Damaged` when neither is right, `Unavailable` when that takes long.
        """
        source = self._source
        if source is None or source.whole is not None or source.proven or self._sums is not None:
            return
        self._twin = twin = await self._copies.twin(source)
        if twin is None:
            self._alone = True
            return
        self._sums = twin.sums
        if twin.size != source.size:
            if twin.sums is None:
                await self._settle(source, twin)
            else:  # sums are kept with a copy of the size that they are for
                self._copies.mark_corrupt(
                    source, f"{source.place}: has {source.size} bytes, {twin.size} were stored"
                )
                self._source, self._twin = twin, None
                source.close()
        if self._source is None:
            raise self._verdict(0, [])
        self._know(self._source)

    def take_part(self, end: int) -> None:
        """Only a part will be read, from anywhere up to `end`: no whole is hashed on the way."""
        self._part_end = end

    def give_up(self) -> None:
        """Nobody wants any more of it: end what is under way soon, with any outcome."""
        self._wanted = False

    @property
    def sendable(self) -> bool:
        """Whether the next bytes can be sent past memory."""
        source = self._source
        if source is None or not self._sends or self._reads_next:
            return False
        return source.proven or self._checks(source)

    async def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> bool:
        """Send up to `length` bytes from `offset` as far as the client takes them.

        `False`: the splice_pipe is of no more use. Where it has ended to send, the next one goes on
        while the content is `sendable`, or else `read`. Raises `Changed` when the file was changed
        since the first bytes of it were sent: those that are still on their way are its pages,
        and may have changed with it.
        """
        source = self._source
        if source is None or not self.sendable:
            return False
        if source is not self._passed_by:
            self._passed_by, self._passed_from = source, offset
        sending = source.send(splice_pipe, offset, length)
        splice_pipe.lend(sending)
        try:
            possible = await within(self._clock, self._patience(source), sending)
        except Exception as error:
            if isinstance(error, Changed) and offset == self._passed_from and self._checks(source):
                self._sends = False  # where a file's times are not to be relied on, as through FUSE
                return False
            self._failed(source, offset, error)
            if isinstance(error, Changed) and offset > self._passed_from:
                raise
            lasting = isinstance(error, (Unanswered, Changed))
            self._reads_next = self._checks(source) and not lasting
            await self._next_source([source], keep=self._reads_next)
            return False
        self._given = True
        return possible

    async def read(self, offset: int, length: int) -> bytes:
        """From 1 to `length` bytes from `offset`, from the first copy that has them.

        Raises `Damaged` when no good copy is left, or when the bytes given out so far turn out
        not to be the sample's, and `Unavailable` when a copy is left that could not be read, or
        that has another size than was promised: then nothing can save this answer.
        """
        failures: list[tuple[S, Exception]] = []
        while (source := self._source) is not None and self._wanted:
            try:
                data = await self._read_one(source, offset, length)
            except Exception as error:
                failures.append((source, error))
                keep = self._blame(source, offset, error)
                await self._next_source([copy for copy, _ in failures], keep=keep)
            else:
                if data:
                    self._given = True
                    self._reads_next = False
                    return data
        raise self._verdict(offset, failures)

    def close(self) -> None:
        """Give the copies back. Not while a read is in flight."""
        for source in (self._source, self._twin, *self._aside):
            if source is not None:
                source.close()
        self._source = self._twin = None
        self._aside = []
        self._copies.close()

    async def _read_one(self, source: S, offset: int, length: int) -> bytes:
        """The next bytes; none when more has to be done before. Raises what reading fails with."""
        if not self._checks(source):
            return await self._read_unchecked(source, offset, length)
        reading = source.read_checked(offset, length)
        return await within(self._clock, self._patience(source), reading)

    def _blame(self, source: S, offset: int, error: Exception) -> bool:
        """What follows from a read that failed; whether the copy may be good elsewhere.

        Raises `error` when what was given out before may be wrong.
        """
        checks = self._checks(source)
        if checks or not isinstance(error, Damaged):
            self._failed(source, offset, error)
            return checks and not isinstance(error, Unanswered)
        if source.whole is None:
            self._copies.mark_corrupt(source, str(error))
        if isinstance(error, _WrongWhole):
            self._mark_givers_corrupt(source)
            raise error
        return False

    def _verdict(self, offset: int, failures: list[tuple[S, Exception]]) -> Exception:
        """Why there is no byte to be had at `offset`."""
        trouble = [error for _, error in failures if not isinstance(error, Damaged)]
        for source, error in failures:
            if isinstance(error, Damaged) and source.sums is not None:
                self._copies.mark_corrupt(source, str(error))
        if trouble:
            return Unavailable(f"no copy can be read: {trouble[-1]}")
        if self._sizes_differ:
            return Unavailable(
                f"the copies of {self.digest} differ in size, and are being looked at"
            )
        return Damaged(f"no good copy of {self.digest} is left at byte {offset}")

    def _checks(self, source: S) -> bool:
        """Whether blocks of the copy are checked. Not after bytes that only a hash can prove."""
        if self._hashed_bytes or source.whole is not None:
            return False
        if source.sums is None and self._sums is not None and source.size == self._sums.size:
            source.adopt(self._sums)
        return source.sums is not None

    def _patience(self, source: S) -> float:
        block_bytes = 0 if source.sums is None else source.sums.block_bytes
        return READ_SECONDS + block_bytes / SLOW_BYTES_PER_SECOND

    async def _read_unchecked(self, source: S, offset: int, length: int) -> bytes:
        """The next bytes, like `_read_one`, which only the hash of the whole proves."""
        if self._part_end is not None:
            data = await self._read_from(source, offset, length, None)
            if source.whole is None:
                await self._compare(source, offset, data)
                if self._source is not source:
                    return b""
            lone = self._alone and source.provable and not source.proven
            if lone and source.whole is None and offset + len(data) >= self._part_end:
                await self._hash_all(source)
            return data
        # Where something was sent unread: what the hash of the whole has to begin with.
        missing = offset - self._hashed_bytes
        begin, count = offset - missing, min(missing, _HASH_BYTES) or length
        # A copy of the hash: a read that fails, or ends too late, must not have touched it.
        hasher = self._hasher.copy()
        try:
            data = await self._read_from(source, begin, count, hasher)
        except Damaged as error:
            if begin + count < self.size or not (begin or self._twin):
                raise
            if self._twin is None:
                raise _WrongWhole(str(error)) from error
            await self._settle(source, self._twin)
            return b""
        if not missing and source.whole is None:
            await self._compare(source, begin, data)
            if self._source is not source:
                return b""
        self._hasher = hasher
        self._hashed_bytes += len(data)
        if source not in self._givers:
            self._givers.append(source)
        return b"" if missing else data

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

    async def _compare(self, source: S, offset: int, data: bytes) -> None:
        """Where another copy differs, go on with the one that is right.

        One that cannot be read says nothing. Raises like `_settle`.
        """
        while not self._alone and not source.proven:
            if self._twin is None:
                self._twin = await self._copies.twin(source)
                if self._twin is None:
                    self._alone = True
                    return
            twin = self._twin
            if twin.size == self.size:
                try:
                    reading = twin.read(offset, len(data), None)
                    other = await within(self._clock, READ_SECONDS, reading)
                except Exception as error:
                    self._failed(twin, offset, error)
                    twin.close()
                    self._twin = None
                    continue
                if other == data:
                    return
            await self._settle(source, twin)
            return

    async def _settle(self, source: S, twin: S) -> None:
        """Two copies differ: find out which one is right, if any, and go on with that.

        Raises `Unavailable` when nothing was given out yet and it takes long.
        """
        self.log.error("Damaged: {one} and {other} differ", one=source.place, other=twin.place)
        self._copies.suspect(source)
        settling = Deferred.fromCoroutine(self._right_of(source, twin))
        if self._given:
            right = await settling
        else:
            try:
                right = await within(self._clock, SETTLE_SECONDS, settling)
            except Unanswered as error:
                self._wanted = False
                reason = f"{source.place} and {twin.place} differ, and are being looked at"
                raise Unavailable(reason) from error
        for copy in (source, twin):
            if copy is not right:
                copy.close()
        self._source, self._twin, self._alone = right, None, True

    async def _right_of(self, *copies: S) -> S | None:
        for copy in sorted(copies, key=lambda copy: -copy.size):
            try:
                await self._hash_all(copy)
            except Damaged as error:
                self._copies.mark_corrupt(copy, str(error))
            except Exception as error:
                self._failed(copy, 0, error)
            else:
                return copy
        return None

    async def _hash_all(self, source: S) -> None:
        """Read all of a copy. Raises `Damaged` when it is not right, and what `read` fails with."""
        hasher, offset = hashlib.sha256(), 0
        while offset < source.size:
            if not self._wanted:
                raise Unavailable("nobody wants it any more")
            length = min(_HASH_BYTES, source.size - offset)
            data = await within(self._clock, READ_SECONDS, source.read(offset, length, hasher))
            offset += len(data)

    def _failed(self, source: S, offset: int, error: Exception) -> None:
        self.log.warn(
            "{place} failed at byte {offset}: {reason}",
            place=source.place,
            offset=offset,
            reason=str(error),
        )
        self._copies.suspect(source)

    def _mark_givers_corrupt(self, last: S) -> None:
        """One of the copies that gave bytes is bad: none is served before all are looked at."""
        for giver in self._givers:
            if giver is not last:
                self._copies.mark_corrupt(giver, f"{giver.place}: gave a part of a wrong whole")

    async def _next_source(self, failed: list[S], *, keep: bool) -> None:
        """Go on with a copy that has not failed here: one that is open, or the next one.

        `keep`: the one that failed here may be good elsewhere.
        """
        source, self._source = self._source, None
        if source is not None:
            if keep:
                self._aside.append(source)
            else:
                source.close()
        self._source, self._twin = self._twin, None
        if self._source is None:
            self._source = next((copy for copy in self._aside if copy not in failed), None)
            if self._source is not None:
                self._aside.remove(self._source)
        while self._source is None and (source := await self._copies.next()) is not None:
            if source.size == self.size:
                self._source = source
            else:
                self._sizes_differ = True
                source.close()
