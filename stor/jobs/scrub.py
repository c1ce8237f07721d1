"""Reading every copy of a disk, and putting right what is wrong: names first, then bytes."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.errnos import Fault, fault_of
from stor.disk.verification import Gone, Verdict, Verification
from stor.disk.walk import (
    Unreadable,
    WalkedSample,
    first_directories,
    leaves_of,
    names_in,
    samples_in,
)
from stor.errors import Damaged, StorError, Unavailable
from stor.jobs.job import Job
from stor.jobs.kind import NotNow
from stor.jobs.run import Run
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.move import Moves
from stor.mirror.repair import Absent, Repairs
from stor.threads import Pool

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: How many of the lowest directories are read in one go, with the inodes of their files.
BATCH_DIRECTORIES = 4096


#: How many batches are sorted at least: as many directories, of 150 bytes each in memory, as a full
#: disk has below one of the first level.
REGION_BATCHES = 16

#: The inode of one of the lowest directories, and its path.
_Leaf = tuple[int, str]

_SUFFIX = ".dat"


@attrs.frozen
class Cursor:
    """How far a scrub has come.

    From `first` to `last` all directories up to the inode `leaf` are done, and of those after it,
    up to `end`, all samples up to the inode `sample`. `leaf` is -1 before anything was looked at.
    """

    first: str = ""
    last: str = ""
    leaf: int = -1
    end: int = -1
    sample: int = -1

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str` gives; what is none is the beginning."""
        first, _, rest = text.partition("/")
        last, *numbers = rest.split("/")
        try:
            return cls(first, last, *map(int, numbers)) if len(numbers) == 3 else cls()
        except ValueError:
            return cls()

    def __str__(self) -> str:
        return f"{self.first}/{self.last}/{self.leaf}/{self.end}/{self.sample}"


class Scrub:
    """Reads the copies on one disk in the order in which they lie there.

    Where the disk and its twins are complete, their names are compared first. A copy that is bad,
    unreadable or missing is put back from a good one; a good one that the index does not know, it
    is told of. Every sample that was there all the time is
    read at least once, however often the work is halted and begun again at its cursor. What another
    mirror has whole, too, is taken off this one.
    """

    log = Logger()

    def __init__(
        self,
        run: Run,
        mirror: Mirror,
        member: Member,
        repairs: Repairs,
        moves: Moves,
        pool: Callable[[str], Pool],
        batch_directories: int,
        learning: LearningNames | None = None,
    ) -> None:
        """`pool` gives the threads for a root's long work; `learning` is the index, if any."""
        self._learning = learning
        self._run = run
        self._job: Job = run.job
        self._mirror = mirror
        self._member = member
        self._repairs = repairs
        self._moves = moves
        self._pool = pool
        self._batch_directories = batch_directories
        self._region_directories = batch_directories * REGION_BATCHES
        self._prefix = run.job.scope.prefix.upper()

    async def run(self) -> None:
        """Go on from the job's cursor to the end. Raises `Halted`, `NotNow`, `DiskAway`, `Busy`."""
        begin = Cursor.parse(self._job.cursor)
        firsts: set[str] = set()
        for member in (self._member, *self._twins()):
            found, unreadable = await self._walk(member, first_directories, member.disk)
            firsts.update(found)
            self._tell(member, unreadable)
        todo = sorted(first for first in firsts if self._concerns(first))
        number = sum(first < begin.first for first in todo)
        while number < len(todo):
            cursor = begin if todo[number] == begin.first else Cursor(todo[number])
            count, own = await self._region(cursor, todo[number:])
            region = todo[number : number + count]
            await self._below(cursor, own, region, number / len(todo), count / len(todo))
            number += count
        self._run.reached(str(Cursor("G")), 1.0)  # after the last that there can be

    async def one(self, digest: Digest) -> bool:
        """Read the copies of one sample on all disks of the mirror: whether it is kept there.

        Raises like `run`.
        """
        wrong: list[Damaged | OSError] = []
        since = 0 if self._learning is None else self._learning.next_number

        async def heard(verdicts: Sequence[Verdict]) -> None:
            wrong.extend(verdict.error for verdict in verdicts if verdict.error is not None)

        for member in self._mirror.members:
            if member.health.readable:
                await self._read(member, [WalkedSample(digest.raw, 0, 0)], heard)
            else:
                self._job.trouble(str(digest), member.fault or f"{member.root}: not to be read")
        asked = [member for member in self._mirror.members if member.health.readable]
        if all(isinstance(error, Gone) for error in wrong) and len(wrong) == len(asked):
            return False
        for error in wrong:
            await self._mend(digest, missing=isinstance(error, Gone))
        if not wrong:
            await self._take_in({digest: 0}, since)
        return True

    def _twins(self) -> list[Member]:
        """The disks whose names have to be the same now."""
        if not self._member.complete:
            return []  # what it lacks is being copied to it
        return [
            member
            for member in self._mirror.members
            if member is not self._member and member.health.sound and member.complete
        ]

    def _concerns(self, directory: str) -> bool:
        digits, prefix = directory.replace("/", ""), self._prefix
        return digits.startswith(prefix) or prefix.startswith(digits)

    async def _region(self, cursor: Cursor, firsts: Sequence[str]) -> tuple[int, list[_Leaf]]:
        """The lowest directories below some of `firsts`, by inode; and below how many of them.

        As many as fit into memory: the more they are, the fewer times the disk is crossed. After a
        restart those that they were before.
        """
        member, pace = self._member, self._run.pace
        own: list[_Leaf] = []
        for number, first in enumerate(firsts):
            if first > cursor.last if cursor.last else len(own) >= self._region_directories:
                return number, sorted(own)
            await self._run.turn(member)
            leaves = await self._walk(member, leaves_of, member.disk, first, pace(member))
            self._tell(member, leaves.unreadable)
            own += [(inode, leaf) for inode, leaf in leaves.entries if self._concerns(leaf)]
        return len(firsts), sorted(own)

    async def _compare_others(self, own: Sequence[_Leaf], firsts: Sequence[str]) -> None:
        """Have put back what is in directories that only other disks have."""
        theirs: set[str] = set()
        for twin in self._twins():
            for first in firsts:
                pace = self._run.pace(twin)
                found = await self._walk(twin, leaves_of, twin.disk, first, pace)
                theirs.update(leaf for _, leaf in found.entries if self._concerns(leaf))
        others = sorted(theirs - {leaf for _, leaf in own})
        for begin in range(0, len(others), self._batch_directories):
            await self._compare(set(), others[begin : begin + self._batch_directories])

    async def _below(
        self,
        cursor: Cursor,
        own: Sequence[_Leaf],
        firsts: Sequence[str],
        share: float,
        whole: float,
    ) -> None:
        """What is below some directories of the first level, which are `whole` of all."""
        here = Cursor(firsts[0], firsts[-1], max(cursor.leaf, 0), cursor.end, cursor.sample)
        if cursor.leaf < 0:
            await self._compare_others(own, firsts)
            self._run.reached(str(here), share)
        todo = [entry for entry in own if entry[0] > here.leaf]
        done = len(own) - len(todo)
        for begin in range(0, len(todo), self._batch_directories):
            batch = todo[begin : begin + self._batch_directories]
            part = whole * len(batch) / len(own)
            await self._batch(here, batch, share + whole * (done + begin) / len(own), part)
            here = Cursor(firsts[0], firsts[-1], batch[-1][0])
        self._run.reached(str(here), share + whole)

    async def _batch(
        self, cursor: Cursor, leaves: Sequence[tuple[int, str]], share: float, whole: float
    ) -> None:
        member, end = self._member, leaves[-1][0]
        await self._run.turn(member)
        since = 0 if self._learning is None else self._learning.next_number
        found = await self._walk(member, samples_in, member.disk, leaves, self._run.pace(member))
        samples = [one for one in found.samples if self._is_meant(one.sha)]
        files = [one for one in found.unreadable if one.path.endswith(_SUFFIX)]
        unreadable = {_sha_of(one): one.error for one in files if self._is_meant(_sha_of(one))}
        directories = [one for one in found.unreadable if one not in files]
        self._tell(member, directories)
        if not directories:
            names = {*unreadable, *(sample.sha for sample in samples)}
            await self._compare(names, [leaf for _, leaf in leaves])
        for sha, error in unreadable.items():
            self._weigh(member, Verdict(WalkedSample(sha, 0, 0), error))
            await self._mend(Digest(sha), missing=False)
        # Directories that came or went make it another batch, which is read from its beginning.
        skipped = cursor.sample if cursor.end == end else -1
        todo = [sample for sample in samples if sample.inode > skipped]
        done = len(samples) - len(todo)

        async def heard(verdicts: Sequence[Verdict]) -> None:
            nonlocal done
            good = [one.sample for one in verdicts if one.error is None]
            await self._take_in({Digest(one.sha): one.size for one in good}, since)
            for verdict in verdicts:
                digest, gone = Digest(verdict.sample.sha), isinstance(verdict.error, Gone)
                if gone and await self._repairs.has_left(digest, self._mirror):
                    pass  # meanwhile
                elif verdict.error is not None:
                    await self._mend(digest, missing=gone)
                done += 1
                here = attrs.evolve(cursor, end=end, sample=verdict.sample.inode)
                self._run.reached(str(here), share + whole * done / len(samples))

        await self._read(member, todo, heard)

    async def _take_in(self, good: Mapping[Digest, int], since: int) -> None:
        """There are good copies. The disks were looked at after the number `since` was the next."""
        if self._learning is None:
            return
        gone = await self._are_elsewhere(good)
        for digest in good.keys() - gone:
            known = self._mirror in self._learning.find(digest).holders
            if not known and not await self._repairs.has_left(digest, self._mirror):
                self._learning.was_wrong(digest, self._mirror, since)

    async def _are_elsewhere(self, sizes: Mapping[Digest, int]) -> Collection[Digest]:
        """Which of some samples another mirror has whole: their copies here are removed.

        Such a copy was put here while the other mirror was away, by hand, or by a disk that was
        away when the sample moved and had forgotten that by the time it was back.
        """
        if self._learning is None:
            return ()
        find = self._learning.find
        twice = {
            digest: size
            for digest, size in sizes.items()
            if any(one is not self._mirror for one in find(digest).holders)
        }
        try:
            outcome = await self._moves.finish(self._mirror, twice)
        except Unavailable as error:  # by the next scrub, then
            self.log.warn("{mirror}: {error}", mirror=self._mirror, error=str(error))
            return ()
        self._job.duplicates += len(outcome.moved)
        for digest, reason in outcome.kept.items():
            self._job.trouble(str(digest), reason)
        return {*outcome.moved, *outcome.kept}

    async def _compare(self, own: set[bytes], leaves: Sequence[str]) -> None:
        """Have put back what one disk has in these directories and another lacks."""
        names = {self._member: own}
        for twin in self._twins():
            found = await self._walk(twin, names_in, twin.disk, leaves, self._run.pace(twin))
            self._tell(twin, found[1])
            if not found[1]:
                names[twin] = {sha for sha in found[0] if self._is_meant(sha)}
        for sha in sorted(set().union(*names.values())):
            lacking = [member for member, has in names.items() if sha not in has]
            if lacking and await self._are_elsewhere({Digest(sha): 0}):
                continue
            if lacking and await self._is_missing(Digest(sha), lacking):
                await self._mend(Digest(sha), missing=True)

    async def _is_missing(self, digest: Digest, members: Iterable[Member]) -> bool:
        """Whether one of these disks still lacks a sample: it may just have been stored."""
        for member in members:
            try:
                if await member.read(member.disk.look, digest, about=digest) is None:
                    return True
            except (Damaged, OSError):  # a repair finds out what it is
                return True
        return False

    async def _read(
        self,
        member: Member,
        samples: Sequence[WalkedSample],
        heard: Callable[[Sequence[Verdict]], Awaitable[None]],
    ) -> None:
        """Read copies whole; `heard` is told of each part of them what it has shown."""
        verification = Verification(member.disk, samples)
        try:
            ended = False
            while not ended:
                await self._run.turn(member)
                pool, most = self._pool(member.root), self._run.allowance
                part = await member.work(pool, verification.go_on, *most)
                ended = part.ended
                for verdict in part.verdicts:
                    self._weigh(member, verdict)
                self._run.did(len(part.verdicts), part.read_bytes)
                await heard(part.verdicts)
        finally:
            if verification.reading:
                member.give_back(verification.close).addErrback(lambda _: None)

    def _weigh(self, member: Member, verdict: Verdict) -> None:
        """Count what an error says of the disk. Raises `NotNow` when it is not the copy's."""
        error = verdict.error
        if isinstance(error, OSError):
            if fault_of(error) is Fault.PROCESS:
                raise NotNow(f"{member.root}: {error.strerror}")
            member.looked(Digest(verdict.sample.sha), Failure(error), 0.0)
            if not member.health.sound:
                raise NotNow(member.fault or f"{member.root} is not to be read")

    async def _mend(self, digest: Digest, *, missing: bool) -> None:
        """Make a sample whole, on each disk of its mirror, of which a copy is missing or bad."""
        good: frozenset[Member] = frozenset()
        reason = "it has no good copy there"
        meanwhile = False
        try:
            whole = await self._repairs.make_whole(digest, self._mirror)
            good = whole.good
            # A missing one that is there by now: the scrub of another disk has counted it.
            meanwhile = missing and not whole.put_back
        except Absent:
            return  # somebody has removed it, or an upload that was given up
        except StorError as error:
            reason = str(error)
        lacking = [member.root for member in self._mirror.members if member not in good]
        if lacking or not meanwhile:
            self._run.found(missing=missing)
        if lacking:
            self._job.not_mended += 1
            self._job.trouble(str(digest), f"{', '.join(lacking)}: {reason}")
            self._repairs.report(digest, self._mirror)
        elif not meanwhile:
            self._run.mended()

    def _walk(self, member: Member, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Have directories read: the disk rests between, so that it does not seem to hang."""
        return self._pool(member.root).run(function, *args)

    def _tell(self, member: Member, unreadable: Iterable[Unreadable]) -> None:
        for one in unreadable:
            self._job.trouble(f"{member.root}/{one.path}", one.error.strerror or str(one.error))

    def _is_meant(self, sha: bytes) -> bool:
        return sha.hex().upper().startswith(self._prefix)


def _sha_of(file: Unreadable) -> bytes:
    return bytes.fromhex(file.path.removesuffix(_SUFFIX)[-64:])
