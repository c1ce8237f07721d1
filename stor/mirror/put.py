"""A sample on its way in: is it stored already, where does it go, who was first."""

import hashlib
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.errors import NoRoom, StorError, Unavailable
from stor.index.numbers import Registration
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror, Survey
from stor.mirror.mirrors import Mirrors
from stor.mirror.repair import Unmendable
from stor.mirror.small_writes import SMALL_BYTES, Rounds, SmallWrite
from stor.mirror.turns import Contest
from stor.mirror.write import MirrorWrite, Write
from stor.threads import Unanswered, within

T = TypeVar("T")

#: How long a client waits for a stored sample to be made whole before it is told to come again;
#: none waits for 30 s without hearing anything.
MEND_SECONDS = 15.0

#: What an upload has written so far is moved to another set in pieces of this size.
_MOVE_BYTES = 1024 * 1024


class Puts:
    """The samples that are being put, so that many uploads of one leave one sample."""

    def __init__(self, mirrors: Mirrors, ready: Deferred[None]) -> None:
        """`ready` fires when the disks' states are known first."""
        self.ready = ready
        self._mirrors = mirrors
        self._watchers: list[Callable[[Digest], None]] = []
        self._rounds: dict[Mirror, Rounds] = {}

    def watch(self, stored: Callable[[Digest], None]) -> None:
        """Have `stored` told of every sample that is found to be stored, or is stored."""
        self._watchers.append(stored)

    def stored(self, digest: Digest) -> None:
        """A sample is stored."""
        for told in self._watchers:
            told(digest)

    def put_small(self, digest: Digest, content: bytes) -> "SmallPut | None":
        """A put of a small sample that is whole in memory, where nothing stands in its way.

        That is: the index knows that nobody has it, nobody else is at it, and there is room on a
        set whose disks are all in order. Else `None`, and `expect` finds out. It is to begin before
        anything else is put.
        """
        mirrors = self._mirrors
        if not self.ready.called or mirrors.turns.busy(digest):
            return None
        known = mirrors.known(digest)
        if known is None or known.holders or known.unsure:
            return None
        mirror = mirrors.draw(len(content))
        if mirror is None:
            return None
        rounds = self._rounds.get(mirror) or self._rounds_of(mirror)
        write = SmallWrite(rounds, digest, len(content), mirrors.now_ns())
        write.content = content
        return SmallPut(self, mirrors, write)

    def maker(self, length: int | None, *, read_back: bool = False) -> Callable[..., Write]:
        """What makes a write of `length` bytes, if that is known, as `Mirrors.write_on` has it.

        `read_back`: some of them come from a disk, which may have damaged them.
        """
        if length is not None and length <= SMALL_BYTES:
            return self._small_write  # in memory to the end
        if read_back:
            return partial(MirrorWrite, summer=BlockSummer(hashlib.sha256()))
        return MirrorWrite

    def _small_write(
        self,
        mirror: Mirror,
        members: Sequence[Member],
        digest: Digest,
        length: int,
        reserve_bytes: int,
        modified_ns: int,
        registration: Registration | None = None,
    ) -> Write:
        if len(members) < len(mirror.members):
            of = mirror, members, digest, length, reserve_bytes, modified_ns
            return MirrorWrite(*of, registration=registration)
        return SmallWrite(self._rounds_of(mirror), digest, length, modified_ns)

    def _rounds_of(self, mirror: Mirror) -> Rounds:
        rounds = self._rounds.get(mirror)
        if rounds is None:
            in_use = self._mirrors.in_use
            self._rounds = {m: its for m, its in self._rounds.items() if m in in_use}
            rounds = Rounds(mirror, self._mirrors.clock, self._mirrors.learning)
            self._rounds[mirror] = rounds
        return rounds

    def expect(self, digest: Digest, length: int | None) -> "Put":
        """Begin to put a sample; `length` in bytes when it is known. Ends with `Put.leave`.

        Whatever is committed from here on counts for this upload too.
        """
        contest = self._mirrors.turns.join(digest)
        return Put(self, self._mirrors, digest, length, contest)

    def ended(self, digest: Digest) -> None:
        """One upload of the sample fewer."""
        self._mirrors.turns.leave(digest)


class SmallPut:
    """A small sample that is put in one go."""

    def __init__(self, puts: Puts, mirrors: Mirrors, write: SmallWrite) -> None:
        self._puts = puts
        self._mirrors = mirrors
        self._write = write
        self._contest = contest = mirrors.turns.join(write.digest)
        contest.lock.acquire()
        contest.changes += 1
        contest.stored = None

    def begin(self, ended: Callable[[list[str] | None], None]) -> None:
        """Store it; `ended` is told its paths once it is durable on every disk.

        Or `None`, when nothing of it is left, and it may be put again as `Puts.expect` has it.
        """
        self._ended = ended
        self._write.begin(self._told)

    def _told(self, error: StorError | None) -> None:
        write, contest = self._write, self._contest
        contest.stored = paths = None if error else write.paths
        contest.changes += 1
        contest.lock.release()
        self._mirrors.turns.leave(write.digest)
        if paths is not None:
            self._mirrors.stored(write.digest, write.mirror)
            self._puts.stored(write.digest)
        self._ended(paths)


class Put:
    """One upload of a sample. `stored`, `begin`, `add` …, `commit`; in the end always `leave`.

    A set that loses a disk under way is left for another one, as long as one disk of it can still
    give back what was written.
    """

    log = Logger()

    def __init__(
        self,
        puts: Puts,
        mirrors: Mirrors,
        digest: Digest,
        length: int | None,
        contest: Contest,
    ) -> None:
        self._puts = puts
        self._mirrors = mirrors
        self._digest = digest
        self._length = length
        self._contest = contest
        self._home: Survey | None = None
        self._write: Write | None = None
        self._tried: set[Mirror] = set()
        self._surveyed = 0
        self._left = False
        #: What makes a write on a mirror.
        self._make: Callable[..., Write] = puts.maker(length)

    async def stored(self) -> list[str] | None:
        """The sample's paths when every available disk of one mirror has a good copy.

        One that lacks it gets it first. Raises `Unavailable` when a disk that should have a copy
        did not say, or could not be given one.
        """
        await self._puts.ready
        contest = self._contest
        while True:
            changes = contest.changes
            surveys = await self._mirrors.survey(self._digest, self._length)
            # A commit that is under way shows names that are not durable yet, that go again when it
            # fails, and that are not all there yet.
            if contest.lock.locked:
                await contest.lock.acquire()
                contest.lock.release()
            if contest.changes == changes:
                self._surveyed = changes
                return await self._judge(surveys)

    async def _judge(self, surveys: list[Survey]) -> list[str] | None:
        self._home = None
        homes = [survey for survey in surveys if survey.known]
        for survey in homes:
            mending = self._mirrors.repairs.mending(self._digest, survey.mirror)
            whole = not (survey.lacking or survey.unequal or survey.trouble or mending)
            if survey.paths and whole:
                self._puts.stored(self._digest)
                return survey.paths
        for survey in homes:
            if survey.trouble is not None:
                raise Unavailable(
                    f"a storage of the set that holds the sample failed: {survey.trouble.value}"
                )
            if survey.paths:
                try:
                    return await self._mend(survey.mirror)
                except Unmendable:
                    pass  # the good size was all that was good: only the body can help
            self._home = self._home or survey
        return None

    async def begin(self) -> None:
        """Choose the mirror and have room there. Raises `NoRoom`, `Unavailable`.

        A sample of which a mirror has nothing but bad copies is made whole there.
        """
        home = self._home
        if home is not None:
            members = [member for member, _ in home.answers if member.writable]
            if members:
                what = home.mirror, members, self._digest, self._length
                write = self._mirrors.write_on(*what, self._make)
                self._use(write)
                await write.prepare()
                return
        await self._place()

    async def add(self, chunks: list[bytes], last: bool) -> None:
        """Write more of the body everywhere. Raises `NoRoom`, `Unavailable`."""
        await self._persist(lambda write: write.add(chunks, last), whole=False)

    async def commit(self) -> tuple[list[str], bool]:
        """Make the sample durable on every disk: its paths, and whether this upload made it.

        Raises `NoRoom`, `Unavailable`.
        """
        contest = self._contest
        await contest.lock.acquire()
        try:
            if contest.stored is not None and contest.changes != self._surveyed:
                return contest.stored, False
            contest.changes += 1
            contest.stored = None
            try:
                contest.stored, created = await self._commit()
            finally:
                contest.changes += 1
            return contest.stored, created
        finally:
            contest.lock.release()

    async def leave(self) -> None:
        """The end, good or bad: what is not committed leaves nothing behind. Never raises."""
        if self._left:
            return
        self._left = True
        try:
            if self._write is not None:
                await self._write.discard()
        finally:
            self._puts.ended(self._digest)

    async def _commit(self) -> tuple[list[str], bool]:
        try:
            committed = await self._persist(self._name, whole=True)
        except BaseException:
            await self._abandon(self._begun())  # before anybody else looks at what has a name
            raise
        if self._home is not None:
            self._mirrors.repairs.renewed(self._digest, self._home.mirror)
        self._mirrors.stored(self._digest, self._begun().mirror)
        self._puts.stored(self._digest)
        return committed

    async def _name(self, write: Write) -> tuple[list[str], bool]:
        outbox = self._mirrors.outbox
        if outbox is None:
            return await write.commit()
        with outbox.arriving(self._digest):
            await outbox.add(self._digest, write.mirror)
            return await write.commit()

    async def _persist(self, step: Callable[[Write], Coroutine[Any, Any, T]], *, whole: bool) -> T:
        """Do a step of the write; where it fails, on the next set, as long as there is one."""
        while True:
            try:
                return await step(self._begun())
            except (NoRoom, Unavailable) as error:
                await self._move(error, whole=whole)

    async def _mend(self, mirror: Mirror) -> list[str]:
        mending = Deferred.fromCoroutine(self._mirrors.repairs.mend(self._digest, mirror))
        try:
            return await within(self._mirrors.clock, MEND_SECONDS, mending)
        except Unanswered as error:
            self._mirrors.repairs.report(self._digest, mirror)
            raise Unavailable("the sample is being put back on a storage that lacks it") from error

    def _make_moved(self) -> Callable[..., Write]:
        """What makes a write that takes what another one has written: all is hashed once more."""
        return self._puts.maker(self._length, read_back=True)

    async def _place(self, *, moved: bool = False) -> None:
        """Begin on another mirror than those tried before; on the next when that one fails.

        `moved`: with what is read back from a disk.
        """
        while True:
            make = self._make_moved() if moved else self._make
            write = await self._mirrors.place(self._digest, self._length, self._tried, make)
            self._tried.add(write.mirror)
            self._use(write)
            try:
                await write.prepare()
            except (NoRoom, Unavailable) as error:
                await write.discard()
                if not self._elsewhere():
                    raise self._mirrors.for_good(error, self._length) from error
                self.log.warn("{error}; trying another set", error=str(error))
            else:
                return

    async def _move(self, reason: NoRoom | Unavailable, *, whole: bool) -> None:
        """Go on with another mirror, from what a good disk of this one can give back.

        `whole` means that the body is complete. Raises `reason` when there is nowhere to go.
        """
        old, moved = self._begun(), False
        try:
            while self._home is None and self._elsewhere():
                self.log.warn("{error}; moving the upload to another set", error=str(reason))
                await self._place(moved=True)
                try:
                    await self._copy(old, self._begun(), whole)
                    self._moved()
                    moved = True
                    return
                except (NoRoom, Unavailable):
                    await self._begun().discard()
        except (NoRoom, Unavailable):
            pass  # what sent the upload away says more
        finally:
            await (old.discard() if moved else self._abandon(old))
        raise self._mirrors.for_good(reason, self._length)

    def _moved(self) -> None:
        """What was written so far has come from a disk again."""

    async def _abandon(self, write: Write) -> None:
        """The write has failed, and there is no other place: nothing has the sample's name."""
        await write.discard()

    async def _copy(self, old: Write, new: Write, whole: bool) -> None:
        size = old.written_bytes
        for offset in range(0, size, _MOVE_BYTES):
            length = min(_MOVE_BYTES, size - offset)
            chunk = await old.read_back(offset, length)
            await new.add([chunk], whole and offset + length == size)
        if whole and not size:
            await new.add([], True)

    def _elsewhere(self) -> bool:
        return any(
            mirror.writable and mirror not in self._tried for mirror in self._mirrors.mirrors
        )

    def _use(self, write: Write) -> None:
        self._write = write

    def _begun(self) -> Write:
        if self._write is None:
            raise ValueError("an upload writes only after begin()")
        return self._write
