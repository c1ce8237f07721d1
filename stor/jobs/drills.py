"""The jobs that see once a day whether damage is mended: a copy of a sample of Stor's own."""

import json
import os
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.content import Content
from stor.digest import Digest
from stor.disk.disk import QUARANTINE_DIRECTORY, Disk, write_all
from stor.disk.journal import Kind as RecordKind
from stor.disk.leaving import Leaving
from stor.errors import Damaged, StorError
from stor.jobs.job import Job, Scope
from stor.jobs.jobs import Jobs
from stor.jobs.kind import Impossible, Kind, NotNow
from stor.jobs.run import Run
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.search import Search
from stor.mirror.walking import on_disk
from stor.mirror.write import MirrorWrite

#: How often each set is tried.
PERIOD_SECONDS = 86400.0

#: How long the repair of the copy may take.
MEND_SECONDS = 60.0

#: Each read picks any of the copies: this many are all but sure to meet the bad one.
_MOST_READS = 200


@attrs.frozen
class Outcome:
    """When a set was tried last, in seconds since the epoch, and what was wrong, if anything."""

    at: float
    fault: str | None


class Drills(Kind):
    """Damages one copy of a sample, reads it, and sees it mended: once a day on each set.

    The sample is Stor's own, the same each time. It is on the disks while that lasts, and told of
    nowhere: no feed, no figure of damage and repair has it.
    """

    log = Logger()
    name = "drill"
    beside_others = True

    def __init__(
        self, jobs: Jobs, mirrors: Mirrors, period_seconds: float = PERIOD_SECONDS
    ) -> None:
        """`jobs` has it from now on. Each set is tried every `period_seconds`; 0: never."""
        self._period_seconds = period_seconds
        self._jobs = jobs
        self._mirrors = mirrors
        self._rng = random.Random()
        #: By the roots of a set, one a line.
        self._outcomes: dict[str, Outcome] = {}
        jobs.take_up(self)

    @property
    def outcomes(self) -> Mapping[Mirror, Outcome]:
        """How each set that was tried did."""
        return {
            mirror: outcome
            for mirror in self._mirrors.mirrors
            if (outcome := self._outcomes.get(_key(_roots(mirror)))) is not None
        }

    @property
    def warnings(self) -> list[str]:
        """The sets that did not mend the damage, a line each."""
        return [
            f"{mirror}: the daily drill failed, damage may not be mended: {outcome.fault}"
            for mirror, outcome in self.outcomes.items()
            if outcome.fault is not None
        ]

    def due(self) -> None:
        """Try the sets whose time has come; see `Kind.due`."""
        if not (self._period_seconds and self._jobs.settled) or self._mirrors.learning is None:
            return
        now = self._jobs.wall_seconds()
        for mirror in self._mirrors.mirrors:
            roots = _roots(mirror)
            last = self._outcomes.get(_key(roots))
            jobs = [job for job in self._jobs.of(self) if job.scope.roots == roots]
            # What was tried in the future was so by a clock that was wrong then.
            tried = last is not None and 0 <= now - last.at < self._period_seconds
            if tried or not _ready(mirror) or any(not job.state.over for job in jobs):
                continue
            for job in jobs:  # of yesterday
                self._jobs.forget(job)
            self._jobs.add(self, Scope(roots))

    def obstacle(self, job: Job) -> str | None:
        """See `Kind.obstacle`."""
        places = self._jobs.places(job)
        if not places or not _ready(places[0].mirror):
            return "that goes on when all disks of the set are there and can be written"
        return None

    def kept(self) -> Mapping[str, Any]:
        """See `Kind.kept`."""
        return {"drills": {key: attrs.astuple(one) for key, one in self._outcomes.items()}}

    def load(self, value: Mapping[str, Any]) -> None:
        """See `Kind.load`."""
        found = value.get("drills", {})  # a Stor before it had drills has kept none
        self._outcomes = {
            str(key): Outcome(float(at), None if fault is None else str(fault))
            for key, (at, fault) in found.items()
        }

    async def work(self, run: Run) -> None:
        """See `Kind.work`."""
        places, learning = self._jobs.places(run.job), self._mirrors.learning
        if not places or learning is None:
            raise NotNow("the set has other disks now")
        mirror = places[0].mirror
        content = _content(mirror)
        digest = Digest.of(content)
        fault = None
        for member in mirror.members:
            member.drilled.add(digest)
        try:
            await self._try(run, mirror, digest, content, learning)
        except Impossible as error:
            fault = str(error)
        except (Damaged, StorError) as error:
            fault = f"{digest} cannot be stored or read: {error}"
        finally:
            await self._remove(mirror, digest, len(content), learning)
            for member in mirror.members:
                member.corrupt.discard(digest)
                member.drilled.discard(digest)
        self._outcomes[_key(run.job.scope.roots)] = Outcome(self._jobs.wall_seconds(), fault)
        if fault is not None:
            self.log.error("Drill on {mirror}: {fault}", mirror=mirror, fault=fault)
            raise Impossible(fault)
        run.reached("", 1.0)

    async def _try(
        self, run: Run, mirror: Mirror, digest: Digest, content: bytes, learning: LearningNames
    ) -> None:
        """Raises `Impossible` when the damage is served or stays, and what a disk has to say."""
        await self._store(mirror, digest, content, learning)
        chosen = self._rng.choice(mirror.members)
        pool = self._jobs.pool(chosen.root)
        await run.turn(chosen)
        await chosen.work(pool, _damage, chosen.disk, digest, content)
        for _ in range(_MOST_READS):
            if await self._read(mirror, digest) != content:
                raise Impossible(f"{chosen.root}: a damaged copy was served")
            if digest in chosen.corrupt or await self._good(chosen, digest):
                break
        else:
            raise Impossible(f"{chosen.root}: a damaged copy was not noticed")
        until = run.clock.seconds() + MEND_SECONDS
        while not await self._good(chosen, digest):
            if run.clock.seconds() >= until:
                raise Impossible(f"{chosen.root}: a damaged copy was not mended")
            await deferLater(run.clock, 1.0)
        if not await chosen.work(pool, _clear_quarantine, chosen.disk, digest):
            raise Impossible(f"{chosen.root}: a damaged copy was not put into quarantine")

    async def _store(
        self, mirror: Mirror, digest: Digest, content: bytes, learning: LearningNames
    ) -> None:
        write = MirrorWrite(
            mirror,
            mirror.members,
            digest,
            len(content),
            0,
            int(self._jobs.wall_seconds() * 1e9),
            registration=learning.expect(digest, mirror, RecordKind.MOVED),
        )
        try:
            await write.prepare()
            await write.add([content], True)
            await write.commit()
        finally:
            await write.discard()

    async def _read(self, mirror: Mirror, digest: Digest) -> bytes | None:
        """What a client would get."""
        mirrors = self._mirrors
        search = Search([mirror], digest, mirrors.report, mirrors.clock, self._rng)
        try:
            source = await search.next()
            if source is None:
                return None
            content = Content(digest, source, search, mirrors.clock)
            try:
                await content.prepare()
                return content.whole
            finally:
                content.close()
        finally:
            search.close()

    async def _good(self, member: Member, digest: Digest) -> bool:
        """Whether a disk has a good copy."""
        pool = self._jobs.pool(member.root)
        try:
            return await member.work(pool, member.disk.verify, digest) is not None
        except Damaged:
            return False

    async def _remove(
        self, mirror: Mirror, digest: Digest, size: int, learning: LearningNames
    ) -> None:
        """Have the sample on no disk any more, and in no index. What fails stays till next time."""
        with learning.leaving(mirror) as event:
            leaving = {m: Leaving(m.disk, m.names, [digest], event) for m in mirror.members}
            try:
                for member, its in leaving.items():
                    await member.work(self._jobs.pool(member.root), on_disk, member, its.record)
                    sync = partial(on_disk, member, its.sync_record)
                    await member.work(self._jobs.pool(member.root), sync)
                    its.recorded()
                learning.left(digest, mirror, size)
                for member, its in leaving.items():
                    pool = self._jobs.pool(member.root)
                    await member.work(pool, on_disk, member, its.remove)
                    await member.work(pool, _clear_quarantine, member.disk, digest)
                self._mirrors.repairs.left(digest, mirror)
            except Exception:
                failure = Failure()
                self.log.warn("Drill on {mirror}: {e}", mirror=mirror, e=str(failure.value))


def _roots(mirror: Mirror) -> tuple[str, ...]:
    return tuple(member.root for member in mirror.members)


def _key(roots: tuple[str, ...]) -> str:
    return "\n".join(roots)


def _ready(mirror: Mirror) -> bool:
    """Whether a copy can be mended there: new samples are stored, and each has more than one."""
    members = mirror.members
    return len(members) > 1 and all(m.writable and m.complete and m.names for m in members)


def _content(mirror: Mirror) -> bytes:
    """The sample of a set, the same each time; nobody else knows what is in it."""
    markers = [member.health.marker for member in mirror.members]
    uuids = sorted(marker.uuid for marker in markers if marker is not None)
    return b"A sample of Stor's own, for its daily drill.\n" + json.dumps(uuids).encode()


def _damage(disk: Disk, digest: Digest, content: bytes) -> None:
    """In a thread of the disk: have other bytes than `content` in place of a copy, as many.

    Raises `DiskAway`, `OSError`.
    """
    with disk.entered() as root_fd:
        disk.files.unlink(digest.disk_path, root_fd)
        fd = disk.files.create(digest.disk_path, root_fd)
        try:
            write_all(disk.files, fd, bytes(byte ^ 1 for byte in content))
        finally:
            disk.files.close(fd)


def _clear_quarantine(disk: Disk, digest: Digest) -> int:
    """In a thread of the disk: remove a sample's bad copies from the quarantine; how many.

    Raises `DiskAway`, `OSError`.
    """
    name, removed = os.path.basename(digest.disk_path), 0
    with disk.entered() as root_fd:
        fd = disk.files.open_directory(QUARANTINE_DIRECTORY, root_fd)
        try:
            found = [entry for entry in disk.files.list(fd) if entry.startswith(f"{name}.")]
        finally:
            disk.files.close(fd)
        for entry in found:
            disk.files.unlink(f"{QUARANTINE_DIRECTORY}/{entry}", root_fd)
            removed += not entry.endswith(".reason")
    disk.quarantined_total -= removed
    return removed
