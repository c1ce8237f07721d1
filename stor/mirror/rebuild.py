"""Making the disks of a mirror complete: compare them, and put back what any of them lacks."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest, MalformedDigest
from stor.disk.disk import Disk, DiskAway
from stor.disk.identity import KnownDisks
from stor.errors import NoRoom, Unavailable
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.repair import Absent, Repairs, Unmendable
from stor.threads import Busy, settle

T = TypeVar("T")

#: A comparison that could not be finished begins anew no earlier.
RETRY_SECONDS = 60.0

#: The log has a line of a comparison this often, and no more of samples that cannot be mended.
LINE_SECONDS = 60.0

#: A mirror with more samples than this that cannot be mended has another trouble than these.
MOST_LEFTOVERS = 1000


class NotNow(Exception):
    """Something that is needed to go on is not there."""


@attrs.define(eq=False)
class _Run:
    """One comparison of a mirror. `short` are the disks that lack samples in the end."""

    mirror: Mirror
    proof: tuple[str, ...]
    done: float = 0.0
    copied: int = 0
    leftovers: int = 0
    short: set[Member] = attrs.field(factory=set)
    said_seconds: float = 0.0
    #: What was wrong with the last sample that could not be mended, until the log has it.
    trouble: str | None = None


class Rebuilds:
    """Compares the disks of each mirror that is not complete; one comparison a mirror at a time.

    Every disk is walked, and what any of them has is put on all others. A disk is complete once
    it has every name that any of them has, but for those that are noted on it to be repaired
    (`Repairs.noted`). A disk that goes away, fails or is not to be written meanwhile stays as it
    was. What is interrupted begins anew, and passes over what it has copied.
    """

    log = Logger()

    def __init__(self, repairs: Repairs, known_disks: KnownDisks, clock: IReactorTime) -> None:
        self.known_disks = known_disks
        self._repairs = repairs
        self._clock = clock
        self._runs: dict[Mirror, _Run] = {}
        self._not_before: dict[Mirror, float] = {}

    def progress(self, member: Member) -> float | None:
        """How much of a disk has been compared, from 0 to 1; `None` while nothing is."""
        return next((r.done for m, r in self._runs.items() if member in m.members), None)

    def warnings(self, mirrors: Sequence[Mirror]) -> list[str]:
        """The disks that are not complete, and what becomes of that; a line each."""
        return [
            f"{member.root}: not complete, it may lack samples of its set: {self._outlook(mirror)}"
            for mirror in mirrors
            for member in mirror.members
            if member.health.readable and not member.complete
        ]

    def resume(self, mirror: Mirror) -> None:
        """Begin what is due and can be done; called every now and then."""
        if mirror in self._runs or self._not_before.get(mirror, 0.0) > self._clock.seconds():
            return
        proof = self.known_disks.proof([member.root for member in mirror.members])
        wanted = any(member.writable and not member.complete for member in mirror.members)
        if wanted and proof is not None and all(m.health.sound for m in mirror.members):
            self._runs[mirror] = run = _Run(mirror, proof)
            Deferred.fromCoroutine(self._attempt(run)).addErrback(self._bug, mirror)

    def _outlook(self, mirror: Mirror) -> str:
        if mirror in self._runs:
            return f"{self._runs[mirror].done:.0%} compared"
        away = [m.root for m in mirror.members if not m.health.sound]
        if away:
            return f"it is compared with {', '.join(away)} when that can be read"
        unmarked = [m.root for m in mirror.members if self.known_disks.proof([m.root]) is None]
        held = [m.root for m in mirror.members if not m.writable and not m.complete]
        if unmarked or held:
            return f"that goes on when {', '.join(unmarked or held)} can be written"
        return "it is compared with the others soon"

    async def _attempt(self, run: _Run) -> None:
        mirror = run.mirror
        try:
            await self._compare(run)
            await self._finish(run)
        except (NotNow, NoRoom, DiskAway, Busy, OSError) as error:
            self.log.warn("{mirror}: not complete yet: {error}", mirror=mirror, error=str(error))
        finally:
            del self._runs[mirror]
            if all(member.complete or not member.writable for member in mirror.members):
                self._not_before.pop(mirror, None)
            else:
                self._not_before[mirror] = self._clock.seconds() + RETRY_SECONDS

    async def _compare(self, run: _Run) -> None:
        members = run.mirror.members
        self.log.info("Comparing {mirror}", mirror=run.mirror)
        run.said_seconds = self._clock.seconds()
        outer = await _ask_all(members, "", _directories)
        for first in sorted(set().union(*outer.values())):
            holders = [member for member in members if first in outer[member]]
            inner = await _ask_all(holders, first, _directories)
            for second in sorted(set().union(*inner.values())):
                run.done = (int(first, 16) * 256 + int(second, 16)) / 65536
                self._say(run)
                path = f"{first}/{second}"
                found = await _ask_all([m for m in holders if second in inner[m]], path, _samples)
                for digest in sorted(set().union(*found.values()), key=str):
                    lacking = {m for m in members if digest not in found.get(m, ())}
                    if lacking:
                        await self._mend(run, digest, lacking)

    async def _mend(self, run: _Run, digest: Digest, lacking: set[Member]) -> None:
        mirror = run.mirror
        run.short.update(member for member in lacking if not member.writable)
        if all(member.complete or member in run.short for member in mirror.members):
            raise NotNow(f"{_roots(run.short)}: cannot be written")
        if lacking <= run.short:
            return
        try:
            good = await self._made_whole(digest, mirror)
        except Absent:
            return  # an upload that was given up has taken its names along
        except (Unmendable, Unavailable) as error:
            run.trouble = f"{digest}: {error}"
            good = set()
        self._say(run)
        run.copied += not good.isdisjoint(lacking)
        short = lacking - run.short - good
        faulty = [member for member in mirror.members if not member.health.sound]
        if faulty:
            raise NotNow(f"{faulty[0].health.fault}")
        if short:
            run.leftovers += 1
            if run.leftovers > MOST_LEFTOVERS:
                raise NotNow(f"more than {MOST_LEFTOVERS} samples cannot be mended")
            run.short.update(short - await self._repairs.note(digest, mirror))
            self._repairs.report(digest, mirror)

    def _say(self, run: _Run) -> None:
        """Have a line a minute in the log, however many samples there are."""
        now = self._clock.seconds()
        if now - run.said_seconds < LINE_SECONDS:
            return
        run.said_seconds = now
        say = self.log.info if run.trouble is None else self.log.warn
        trouble, run.trouble = run.trouble, None
        say(
            "Comparing {mirror}: {done:.0%}, {copied} samples copied{more}",
            mirror=run.mirror,
            done=run.done,
            copied=run.copied,
            more=f", {run.leftovers} cannot be mended, the last {trouble}" if trouble else "",
        )

    async def _made_whole(self, digest: Digest, mirror: Mirror) -> set[Member]:
        try:
            return await self._repairs.make_whole(digest, mirror)
        except Absent:  # which a disk has listed: it may not have been itself for a moment
            return await self._repairs.make_whole(digest, mirror)

    async def _finish(self, run: _Run) -> None:
        mirror = run.mirror
        faulty = [member for member in mirror.members if not member.health.sound]
        if faulty or self.known_disks.proof([m.root for m in mirror.members]) != run.proof:
            raise NotNow(f"{_roots(faulty) or mirror}: not the disk any more that was compared")
        for member in mirror.members:
            if member.writable and member not in run.short and not member.complete:
                await member.mark_complete(run.proof)
                self.log.info("{root} is complete", root=member.root)
        say = self.log.warn if run.leftovers else self.log.info
        say(
            "Compared {mirror}: {copied} samples copied, {leftovers} cannot be mended{last}",
            mirror=mirror,
            copied=run.copied,
            leftovers=run.leftovers,
            last=f", the last {run.trouble}" if run.trouble else "",
        )
        if run.short:
            raise NotNow(f"{_roots(run.short)}: samples could not be put there")

    def _bug(self, failure: Failure, mirror: Mirror) -> None:
        self.log.failure("Comparing {mirror}", failure, mirror=mirror)


async def _ask_all(
    members: Sequence[Member], path: str, ask: Callable[[Disk, str], set[T]]
) -> dict[Member, set[T]]:
    """What each of the disks says of `path`. Raises when one does not say."""
    found = {}
    answers = await settle([member.read(ask, member.disk, path) for member in members])
    for member, answer in zip(members, answers, strict=True):
        if isinstance(answer, Failure):
            answer.raiseException()
        else:
            found[member] = answer
    return found


def _roots(members: Sequence[Member] | set[Member]) -> str:
    return ", ".join(sorted(member.root for member in members))


def _directories(disk: Disk, path: str) -> set[str]:
    """The directories of samples in `path`, such as `AA` or, for the root, nothing."""
    with disk.entered() as root_fd:
        return {name for name in _names(disk, path or ".", root_fd) if _is_hex(name)}


def _samples(disk: Disk, path: str) -> set[Digest]:
    """The samples in the directories below `path`, such as `AA/BB`."""
    found = set()
    with disk.entered() as root_fd:
        for inner in filter(_is_hex, _names(disk, path, root_fd)):
            for name in _names(disk, f"{path}/{inner}", root_fd):
                with suppress(MalformedDigest):  # a file that is not Stor's
                    digest = Digest.parse(name.removesuffix(".dat"))
                    if digest.disk_path == f"{path}/{inner}/{name}":
                        found.add(digest)
    return found


def _is_hex(name: str) -> bool:
    return len(name) == 2 and not set(name) - set("0123456789ABCDEF")


def _names(disk: Disk, path: str, root_fd: int) -> list[str]:
    for _ in range(2):  # it was listed; uploads that are given up take directories along
        with suppress(FileNotFoundError, NotADirectoryError):
            fd = disk.files.open_directory(path, root_fd)
            try:
                return disk.files.list(fd)
            finally:
                disk.files.close(fd)
    return []
