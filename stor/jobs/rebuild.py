"""Comparing the disks of a set, and putting on each what it lacks."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.identity import KnownDisks
from stor.disk.loading import Loaded
from stor.disk.walk import Unreadable, first_directories, leaves_of, names_in
from stor.errors import Damaged, Unavailable
from stor.jobs.job import Job
from stor.jobs.kind import NotNow
from stor.jobs.reading import Reading
from stor.jobs.refill import BATCH_SAMPLES, Refill
from stor.jobs.run import Run
from stor.jobs.scrub import BATCH_DIRECTORIES, REGION_BATCHES
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.repair import Absent, Repairs, Unmendable
from stor.threads import Busy, Pool

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: The log has a line of a comparison this often, and no more of samples that cannot be mended.
LINE_SECONDS = 60.0

#: A set with more samples than this that cannot be mended has another trouble than these.
MOST_LEFTOVERS = 1000


@attrs.frozen
class Cursor:
    """How far a comparison has come.

    `disks` tells these disks, as they are known, from others, or from the same of which somebody
    else may have taken something: what was compared of those says nothing. `short` are the roots
    of those that lack samples in the end. In pass `number` all below the directories before `first`
    is done, and of what is below those from `first` to `last` all directories up to `leaf`.
    """

    disks: str
    number: int = 0
    short: tuple[str, ...] = ()
    first: str = ""
    last: str = ""
    leaf: tuple[int, int] = (-1, -1)

    @classmethod
    def parse(cls, text: str, disks: str) -> "Cursor":
        """Read what `str` gives; what is none, or of other disks, is the beginning."""
        try:
            its, number, short, first, last, leaf = json.loads(text)
            cursor = cls(
                str(its),
                int(number),
                tuple(map(str, short)),
                str(first),
                str(last),
                (int(leaf[0]), int(leaf[1])),
            )
        except (ValueError, TypeError, IndexError):
            return cls(disks)
        return cursor if cursor.disks == disks else cls(disks)

    def __str__(self) -> str:
        return json.dumps(attrs.astuple(self))


@attrs.frozen
class _Leaf:
    """One of the lowest directories: the number of the first disk that has it, and its inode there.

    `on` has its inode on each disk that has it.
    """

    place: tuple[int, int]
    path: str
    on: dict[Member, int]


@attrs.frozen
class _Lacking:
    """A sample that not all disks have: who could give it, its inode there, and who lacks it."""

    holders: int
    rank: int
    inode: int
    digest: Digest
    lacking: frozenset[Member]


class Rebuild:
    """One comparison of a mirror's disks, each name that any of them has with all others.

    What a disk lacks is read on another one in the order in which it lies there, verified, and
    put on it in batches. A disk is complete once it has every name that any of them has, but for
    those that are noted on it to be repaired (`Repairs.noted`). A disk that goes away, fails or is
    not to be written meanwhile stays as it was.
    """

    log = Logger()

    def __init__(
        self,
        run: Run,
        mirror: Mirror,
        repairs: Repairs,
        refill: Refill,
        known_disks: Callable[[], KnownDisks],
        pool: Callable[[str], Pool],
        unsure: str,
        batch_directories: int = BATCH_DIRECTORIES,
    ) -> None:
        """`pool` gives the threads for a root's long work.

        `unsure` stands in the cursor for a disk of which nobody would know that somebody else has
        changed it while no Stor ran: it is another word after each start.
        """
        self._run = run
        self._job: Job = run.job
        self._mirror = mirror
        self._repairs = repairs
        self._refill = refill
        self._known_disks = known_disks
        self._pool = pool
        self._unsure = unsure
        self._batch_directories = batch_directories
        members = mirror.members
        #: The disks, the one first whose order the samples are read in.
        self._order = sorted(members, key=lambda m: (not m.complete, members.index(m)))
        self._proof = self._proven()
        self._short: set[Member] = set()
        self._share = self._whole = 0.0
        self._said_seconds = run.clock.seconds()
        #: What was wrong with the last sample that could not be mended, until the log has it.
        self._trouble: str | None = None

    async def run(self) -> None:
        """Go on from the job's cursor to the end, with which the disks are complete.

        Raises `Halted`, `NotNow`, `DiskAway`, `Busy`, `OSError`.
        """
        job, disks = self._job, self._disks()
        cursor = Cursor.parse(job.cursor, disks)
        if cursor == Cursor(disks):
            job.share, job.samples_done, job.bytes_done = 0.0, 0, 0
            job.mended = job.not_mended = 0
            job.troubles.clear()
        self.log.info("Comparing {mirror}", mirror=self._mirror)
        self._short = {m for m in self._mirror.members if m.root in cursor.short}
        # With more than one disk to be filled, samples that have one copy left come first.
        passes = 2 if sum(not m.complete for m in self._order) > 1 and len(self._order) > 2 else 1
        for number in range(cursor.number, passes):
            if number != cursor.number:
                cursor = Cursor(disks, number, self._roots_short())
            await self._pass(cursor, single=number + 1 < passes, passes=passes)
        await self._finish(disks)

    def _proven(self) -> tuple[str, ...] | None:
        return self._known_disks().proof([m.root for m in self._mirror.members])

    def _disks(self) -> str:
        """What tells these disks, as they are, from others."""
        parts = [self._order[0].root, *(self._proof or ())]
        for member in self._mirror.members:
            names = member.names
            sure = names is not None and names.written and names.strange is None
            parts.append(str(names.identity) if names is not None and sure else self._unsure)
        return " ".join(parts)

    def _roots_short(self) -> tuple[str, ...]:
        return tuple(sorted(member.root for member in self._short))

    async def _pass(self, cursor: Cursor, *, single: bool, passes: int) -> None:
        firsts: set[str] = set()
        for member in self._order:
            found, unreadable = await self._walk(member, first_directories, member.disk)
            self._require(member, unreadable)
            firsts.update(found)
        todo = sorted(firsts)
        number = sum(first < cursor.first for first in todo)
        while number < len(todo):
            here = cursor if todo[number] == cursor.first else Cursor(cursor.disks, cursor.number)
            here = attrs.evolve(here, first=todo[number])
            count, leaves = await self._region(here, todo[number:])
            here = attrs.evolve(here, last=todo[number + count - 1])
            rest = [leaf for leaf in leaves if leaf.place > here.leaf]
            for begin in range(0, len(rest), self._batch_directories):
                batch = rest[begin : begin + self._batch_directories]
                done = (len(leaves) - len(rest) + begin) / len(leaves)
                self._share = (cursor.number + (number + count * done) / len(todo)) / passes
                self._whole = count * len(batch) / len(leaves) / len(todo) / passes
                await self._batch(here, batch, single=single)
                here = attrs.evolve(here, leaf=batch[-1].place, short=self._roots_short())
                self._run.reached(str(here), self._share + self._whole)
            number += count

    async def _region(self, cursor: Cursor, firsts: Sequence[str]) -> tuple[int, list[_Leaf]]:
        """The lowest directories below some of `firsts`, in order; and below how many of them.

        As many as fit into memory: the more they are, the fewer times the disk is crossed. After a
        restart those that they were before.
        """
        found: dict[str, _Leaf] = {}
        count = 0
        for first in firsts:
            full = len(found) >= self._batch_directories * REGION_BATCHES
            if first > cursor.last if cursor.last else full:
                break
            for rank, member in enumerate(self._order):
                await self._run.turn(member)
                pace = self._run.pace(member)
                leaves = await self._walk(member, leaves_of, member.disk, first, pace)
                self._require(member, leaves.unreadable)
                for inode, path in leaves.entries:
                    leaf = found.setdefault(path, _Leaf((rank, inode), path, {}))
                    leaf.on[member] = inode
            count += 1
        return count, sorted(found.values(), key=lambda leaf: leaf.place)

    async def _batch(self, cursor: Cursor, leaves: Sequence[_Leaf], *, single: bool) -> None:
        """Compare the names in some of the lowest directories, and copy what is lacking."""
        names: dict[Member, dict[bytes, int]] = {}
        for member in self._order:
            its = sorted((leaf.on[member], leaf.path) for leaf in leaves if member in leaf.on)
            paths, pace = [path for _, path in its], self._run.pace(member)
            found, unreadable = await self._walk(member, names_in, member.disk, paths, pace)
            self._require(member, unreadable)
            names[member] = found
        lacking = []
        for sha in set[bytes]().union(*names.values()):
            holders = [member for member in self._order if sha in names[member]]
            if len(holders) == len(self._order) or (single and len(holders) > 1):
                continue
            giver = holders[0]
            lacks = frozenset(self._order) - frozenset(holders)
            rank, inode = self._order.index(giver), names[giver][sha]
            lacking.append(_Lacking(len(holders), rank, inode, Digest(sha), lacks))
        lacking.sort(key=lambda one: (one.holders, one.rank, one.inode))
        done = 0
        for rank, group in groupby(lacking, key=lambda one: one.rank):
            wanted = list(group)
            await self._copy(cursor, self._order[rank], wanted, (done, len(lacking)))
            done += len(wanted)

    async def _copy(
        self,
        cursor: Cursor,
        giver: Member,
        wanted: Sequence[_Lacking],
        progress: tuple[int, int],
    ) -> None:
        """Have samples that `giver` has on the disks that lack them."""
        every = {
            one.digest: self._targets(one.lacking)
            for one in wanted
            if not await self._repairs.has_left(one.digest, self._mirror)
        }
        targets = {digest: lacking for digest, lacking in every.items() if lacking}
        reading = Reading(self._run, giver, self._pool(giver.root), targets, BATCH_SAMPLES)
        done, total = progress

        def came(samples: int) -> None:
            nonlocal done
            done += samples
            self._run.reached(str(cursor), self._share + self._whole * done / total)

        while targets and (batch := await reading.next()) is not None:
            alone = list(batch.bad)
            if batch.samples:
                self._run.did(len(batch.samples), 0)
                alone += await self._put(batch.samples, targets)
                came(len(batch.samples))
            for digest in batch.large:
                alone += await self._put_large(giver, digest, targets[digest])
                came(1)
            for digest in alone:
                await self._mend(digest, targets[digest])
            self._say()

    def _targets(self, lacking: Iterable[Member]) -> set[Member]:
        """Those disks that may be written. Raises `NotNow` when none is left to be filled."""
        lacks = set(lacking)
        self._short.update(member for member in lacks if not member.writable)
        if all(member.complete or member in self._short for member in self._order):
            raise NotNow(f"{', '.join(self._roots_short())}: cannot be written")
        return lacks - self._short

    async def _put(
        self, held: Sequence[Loaded], targets: dict[Digest, set[Member]]
    ) -> list[Digest]:
        """Put samples where they are lacking: those that did not get everywhere."""
        where = await self._refill.put(held, targets)
        return [
            sample.digest
            for sample in held
            if not self._is_there(sample.digest, where.get(sample.digest, set()), targets)
        ]

    async def _put_large(self, giver: Member, digest: Digest, lacking: set[Member]) -> list[Digest]:
        try:
            where = await self._refill.stream(giver, digest, lacking)
        except (Damaged, OSError):  # whoever mends it finds out what it is
            where = set()
        return [] if self._is_there(digest, where, {digest: lacking}) else [digest]

    def _is_there(
        self, digest: Digest, where: set[Member], targets: dict[Digest, set[Member]]
    ) -> bool:
        if not where >= targets[digest]:
            return False
        good = set(self._order) - self._short
        self._repairs.put_back(digest, self._mirror, good, where)
        self._run.mended()
        return True

    async def _mend(self, digest: Digest, lacking: set[Member]) -> None:
        """Have one sample made whole that is not as simple as others."""
        mirror = self._mirror
        lacking = self._targets(lacking)
        if not lacking:
            return
        try:
            good = await self._made_whole(digest)
        except Absent:
            return  # an upload that was given up has taken its names along
        except (Unmendable, Unavailable) as error:
            self._trouble = f"{digest}: {error}"
            good = set()
        if not good.isdisjoint(lacking):
            self._run.did(1, 0)
            self._run.mended()
        short = lacking - self._short - good
        faulty = [member for member in mirror.members if not member.health.sound]
        if faulty:
            raise NotNow(faulty[0].fault or f"{faulty[0].root}: is not to be read")
        if short:
            self._job.not_mended += 1
            self._job.trouble(str(digest), self._trouble or "it is not on all disks")
            if self._job.not_mended > MOST_LEFTOVERS:
                self._begin_anew()
                raise NotNow(f"more than {MOST_LEFTOVERS} samples cannot be mended")
            self._short.update(short - await self._repairs.note(digest, mirror))
            self._repairs.report(digest, mirror)

    async def _made_whole(self, digest: Digest) -> set[Member]:
        try:
            whole = await self._repairs.make_whole(digest, self._mirror)
        except Absent:  # which a disk has listed: it may not have been itself for a moment
            whole = await self._repairs.make_whole(digest, self._mirror)
        return set(whole.good)

    async def _finish(self, disks: str) -> None:
        mirror, job = self._mirror, self._job
        faulty = [member.root for member in mirror.members if not member.health.sound]
        if faulty:
            raise NotNow(f"{', '.join(faulty)}: not to be read")
        self._proof, before = self._proven(), self._proof
        if self._disks() != disks or self._proof is None or self._proof != before:
            self._begin_anew()
            raise NotNow(f"{mirror}: not the disks any more that were compared")
        for member in mirror.members:
            if member.writable and member not in self._short and not member.complete:
                await member.mark_complete(self._proof)
                self.log.info("{root} is complete", root=member.root)
        say = self.log.warn if job.not_mended else self.log.info
        say(
            "Compared {mirror}: {copied} samples copied, {leftovers} cannot be mended{last}",
            mirror=mirror,
            copied=job.mended,
            leftovers=job.not_mended,
            last=f", the last {self._trouble}" if self._trouble else "",
        )
        if self._short:
            roots = ", ".join(self._roots_short())
            self._begin_anew()
            raise NotNow(f"{roots}: samples could not be put there")

    def _begin_anew(self) -> None:
        self._job.cursor = ""

    def _say(self) -> None:
        """Have a line a minute in the log, however many samples there are."""
        now = self._run.clock.seconds()
        if now - self._said_seconds < LINE_SECONDS:
            return
        self._said_seconds = now
        job = self._job
        say = self.log.info if self._trouble is None else self.log.warn
        trouble, self._trouble = self._trouble, None
        say(
            "Comparing {mirror}: {done:.0%}, {copied} samples copied{more}",
            mirror=self._mirror,
            done=job.share,
            copied=job.mended,
            more=f", {job.not_mended} cannot be mended, the last {trouble}" if trouble else "",
        )

    async def _walk(self, member: Member, function: Callable[[*Args], T], *args: *Args) -> T:
        """Have directories read: the disk rests between, so that it does not seem to hang.

        Raises what `function` does.
        """
        reading: Deferred[T] = self._pool(member.root).run(function, *args)
        try:
            return await reading
        except (DiskAway, OSError):
            member.probe_soon()
            raise
        except Busy as error:
            raise NotNow(str(error)) from error

    def _require(self, member: Member, unreadable: Sequence[Unreadable]) -> None:
        """Raises `NotNow` when not all directories could be read."""
        if unreadable:
            member.probe_soon()
            one = unreadable[0]
            raise NotNow(f"{member.root}/{one.path}: {one.error.strerror}")
