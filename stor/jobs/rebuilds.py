"""The jobs that make the disks of each set complete."""

import secrets
from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from stor.disk.disk import DiskAway
from stor.errors import NoRoom
from stor.jobs.job import Job, Scope, State
from stor.jobs.jobs import Jobs
from stor.jobs.kind import Kind, NotNow
from stor.jobs.rebuild import Rebuild
from stor.jobs.refill import Refill
from stor.jobs.run import Halted, Run
from stor.jobs.scrub import BATCH_DIRECTORIES
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.threads import Busy

#: A comparison that could not be finished goes on no earlier.
RETRY_SECONDS = 60.0

#: One that failed, which is an error in Stor, begins anew no earlier.
FAILED_SECONDS = 600.0


class Rebuilds(Kind):
    """Compares the disks of each set of which one is not complete: a job a set, by itself.

    It comes before all others, and is not to be cancelled: the samples have too few copies.
    """

    log = Logger()
    name = "rebuild"

    def __init__(
        self,
        jobs: Jobs,
        mirrors: Mirrors,
        clock: IReactorTime,
        batch_directories: int = BATCH_DIRECTORIES,
    ) -> None:
        """`batch_directories` is how many of the lowest directories are compared in one go."""
        self._jobs = jobs
        self._mirrors = mirrors
        self._clock = clock
        self._batch_directories = batch_directories
        self._not_before: dict[int, float] = {}
        #: The jobs that a disk was away for since they could not be finished.
        self._broken_off: set[int] = set()
        self._unsure = secrets.token_hex(8)
        jobs.take_up(self)

    @property
    def compared(self) -> Mapping[str, float]:
        """How much of each disk that is not complete has been compared, from 0 to 1."""
        jobs = self._by_roots()
        return {
            member.root: jobs[roots].share
            for mirror in self._mirrors.mirrors
            if (roots := _roots(mirror)) in jobs
            for member in mirror.members
            if not member.complete
        }

    @property
    def running(self) -> set[str]:
        """The disks of which that goes on now."""
        jobs = [job for job in self._jobs.of(self) if job.state is State.RUNNING]
        return {root for job in jobs for root in job.scope.roots}

    @property
    def warnings(self) -> list[str]:
        """The disks that are not complete, and what becomes of that; a line each."""
        jobs = self._by_roots()
        return [
            f"{member.root}: not complete, it may lack samples of its set: "
            f"{self._outlook(mirror, jobs.get(_roots(mirror)))}"
            for mirror in self._mirrors.mirrors
            for member in mirror.members
            if member.health.readable and not member.complete
        ]

    def turn(self, job: Job) -> int:
        """See `Kind.turn`."""
        return 0

    def due(self) -> None:
        """Compare each set with a disk that may lack samples; see `Kind.due`."""
        mirrors = {_roots(mirror): mirror for mirror in self._mirrors.mirrors}
        for job in self._jobs.of(self):
            mirror = mirrors.get(job.scope.roots)
            if job.state is State.FAILED and self._clock.seconds() >= self._retry(job):
                self._jobs.forget(job)
            elif job.state.over or job.state is State.RUNNING:
                pass
            elif mirror is None:
                self._jobs.end(job, State.CANCELLED, "the set has other disks now")
            elif all(member.complete for member in mirror.members):
                self._jobs.end(job, State.DONE, None)
        self._go_on_with_disks_that_are_back()
        known = {job.scope.roots for job in self._jobs.of(self) if not _ended(job)}
        for roots, mirror in mirrors.items():
            short = any(m.health.readable and not m.complete for m in mirror.members)
            if short and roots not in known:
                self._jobs.add(self, Scope(roots))

    def obstacle(self, job: Job) -> str | None:
        """See `Kind.obstacle`."""
        mirror = self._mirror(job)
        if mirror is None:
            return "the set has other disks now"
        if self._retry(job) > self._clock.seconds():
            return job.reason or "it was not finished, and goes on soon"
        return self._missing(mirror)

    def lasting(self, job: Job) -> str | None:
        """See `Kind.lasting`."""
        if job.state.over:
            return None
        return (
            f"samples would have too few copies for good; to have it rest: stor pause {job.id}, "
            "or take the disk out of the configuration"
        )

    async def work(self, run: Run) -> None:
        """See `Kind.work`."""
        mirror = self._mirror(run.job)
        if mirror is None:
            raise NotNow("the set has other disks now")
        mirrors, pool = self._mirrors, self._jobs.pool
        refill = Refill(run, mirror, mirrors.repairs, mirrors.learning, pool)
        work = Rebuild(
            run,
            mirror,
            mirrors.repairs,
            refill,
            lambda: mirrors.known_disks,
            pool,
            self._unsure,
            self._batch_directories,
        )
        try:
            await work.run()
        except Halted:
            raise
        except (NotNow, NoRoom, DiskAway, Busy, OSError) as error:
            self.log.warn("{mirror}: not complete yet: {error}", mirror=mirror, error=str(error))
            self._not_before[run.job.id] = self._clock.seconds() + RETRY_SECONDS
            if isinstance(error, DiskAway):  # also where it is back before anybody looks
                self._broken_off.add(run.job.id)
            raise NotNow(str(error)) from error
        except Exception:
            self._not_before[run.job.id] = self._clock.seconds() + FAILED_SECONDS
            raise

    def _go_on_with_disks_that_are_back(self) -> None:
        """What was broken off as a disk was away waits for that disk alone."""
        for job in self._jobs.of(self):
            mirror = self._mirror(job)
            if mirror is None or job.state is not State.WAITING:
                self._broken_off.discard(job.id)
            elif not all(member.health.sound for member in mirror.members):
                self._broken_off.add(job.id)
            elif job.id in self._broken_off:
                self._broken_off.remove(job.id)
                self._not_before.pop(job.id, None)

    def _retry(self, job: Job) -> float:
        """Before when a job that was not finished does not go on."""
        return self._not_before.get(job.id, 0.0)

    def _mirror(self, job: Job) -> Mirror | None:
        mirrors = self._mirrors.mirrors
        return next((mirror for mirror in mirrors if _roots(mirror) == job.scope.roots), None)

    def _by_roots(self) -> dict[tuple[str, ...], Job]:
        """The jobs that compare the disks of sets, or will, by those disks."""
        return {job.scope.roots: job for job in self._jobs.of(self) if not _ended(job)}

    def _missing(self, mirror: Mirror) -> str | None:
        """What a comparison waits for, if for anything."""
        away = [m.root for m in mirror.members if not m.health.sound]
        if away:
            return f"it is compared with {', '.join(away)} when that can be read"
        known = self._mirrors.known_disks
        unmarked = [m.root for m in mirror.members if known.proof([m.root]) is None]
        held = [m.root for m in mirror.members if not m.writable and not m.complete]
        wanted = any(m.writable and not m.complete for m in mirror.members)
        if unmarked or not wanted:
            return f"that goes on when {', '.join(unmarked or held)} can be written"
        return None

    def _outlook(self, mirror: Mirror, job: Job | None) -> str:
        if job is not None and job.state is State.RUNNING:
            return f"{job.share:.0%} compared"
        if job is not None and job.state is State.PAUSED:
            return f"{job.share:.0%} compared, and job {job.id} is paused"
        missing = self._missing(mirror)
        if missing is None and job is not None and job.reason is not None:
            return f"it goes on soon: {job.reason}"
        return missing or "it is compared with the others soon"


def _roots(mirror: Mirror) -> tuple[str, ...]:
    return tuple(member.root for member in mirror.members)


def _ended(job: Job) -> bool:
    """Whether nothing more comes of a job; one that failed is seen to a while later."""
    return job.state.over and job.state is not State.FAILED
