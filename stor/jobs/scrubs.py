"""The jobs that read every copy: those that somebody asked for, and the passes over each disk."""

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.logger import Logger

from stor.digest import Digest
from stor.jobs.job import Job, Rate, Scope, State
from stor.jobs.jobs import Jobs
from stor.jobs.kind import Impossible, Kind
from stor.jobs.run import Counts, Run
from stor.jobs.scrub import BATCH_DIRECTORIES, Scrub
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.move import Moves

_DAY_SECONDS = 86400.0


class Scrubs(Kind):
    """Scrubs of disks and of single samples; two scrubs of the same are one.

    One that somebody asked for comes before a pass that nobody did.
    """

    log = Logger()
    name = "scrub"

    def __init__(
        self, jobs: Jobs, mirrors: Mirrors, batch_directories: int = BATCH_DIRECTORIES
    ) -> None:
        """`batch_directories` is how many of the lowest directories are read in one go."""
        self._jobs = jobs
        self._mirrors = mirrors
        self._batch_directories = batch_directories
        #: When each disk was last scrubbed whole, in seconds since the epoch.
        self.scrubbed: dict[str, float] = {}
        #: When each disk was first seen.
        self._since: dict[str, float] = {}
        self._counts: dict[str, Counts] = {}
        self._period_seconds = 0.0
        jobs.take_up(self)

    def ask(
        self,
        roots: Sequence[str] = (),
        prefix: str = "",
        sha: str | None = None,
        rate: Rate | None = None,
    ) -> list[Job]:
        """Scrub these disks, or all of them, or one sample: the jobs. Raises `Refused`."""
        if sha is not None:
            scopes = [Scope(sha=str(Digest.parse(sha)))]
        else:
            self._jobs.require(roots)
            known = [member.root for member in self._mirrors.members]
            scopes = [Scope((root,), prefix.lower()) for root in dict.fromkeys(roots or known)]
        return self._jobs.ask(self, scopes, rate)

    def follow(self, scrub_days: float) -> None:
        """Scrub every disk once in `scrub_days`, over and over; 0: only when asked.

        `Jobs.follow` is to be called after it.
        """
        self._period_seconds = scrub_days * _DAY_SECONDS
        for member in self._mirrors.members:
            self._since.setdefault(member.root, self._jobs.wall_seconds())
        for job in self._passes():
            if not self._period_seconds:
                self._jobs.end(job, State.CANCELLED, "scrub_days is 0")
                self._jobs.forget(job)
            elif not job.state.over:
                job.period_seconds = self._period_seconds
                self._jobs.renew(job)

    @property
    def disks(self) -> Mapping[str, Counts]:
        """What the scrubs of each disk have met since the start."""
        return {member.root: self._counts_of(member.root) for member in self._mirrors.members}

    @property
    def ages_seconds(self) -> Mapping[str, float]:
        """How long ago each disk was scrubbed whole; or was first seen, if it never was."""
        now = self._jobs.wall_seconds()
        known = {member.root for member in self._mirrors.members}
        return {
            root: max(0.0, now - self.scrubbed.get(root, since))
            for root, since in self._since.items()
            if root in known
        }

    @property
    def period_seconds(self) -> float:
        """How long a pass over a disk may take that nobody asked for; 0: there is none."""
        return self._period_seconds

    async def work(self, run: Run) -> None:
        """See `Kind.work`."""
        places = self._jobs.places(run.job)
        if places:
            await self._disk(run, places[0].mirror, places[0].member)
        else:
            await self._sample(run)

    def obstacle(self, job: Job) -> str | None:
        """See `Kind.obstacle`."""
        if job.period_seconds is not None and not self._jobs.settled:
            return "Stor has just started"
        for place in self._jobs.places(job):
            if not place.member.health.sound:
                return place.member.fault or f"{place.member.root}: is not to be read"
        return None

    def due(self) -> None:
        """Have a pass over every disk whose last one is over, and the time for that, too."""
        if not self._period_seconds or not self._jobs.settled:
            return
        now = self._jobs.wall_seconds()
        last = {job.scope.roots[0]: job for job in self._passes()}
        for member in self._mirrors.members:
            root, job = member.root, last.get(member.root)
            # Of a pass that is no longer remembered it is known when it ended.
            begun = self.scrubbed.get(root, -self._period_seconds) if job is None else job.began
            # What began in the future did so by a clock that was wrong then.
            lately = 0 <= now - begun < self._period_seconds
            over = (job is None or job.state.over) and not lately
            if over and member.complete and member.health.sound:
                self._jobs.add(self, Scope((root,)), self._period_seconds)

    def done(self, job: Job) -> None:
        """See `Kind.done`."""
        if job.scope.roots and not job.scope.prefix:
            self.scrubbed[job.scope.roots[0]] = self._jobs.wall_seconds()
        found = job.bad + job.missing
        say = self.log.warn if found else self.log.info
        say(
            "Scrubbed {about}: copies read: {samples}, bad: {bad}, missing: {missing}; samples "
            "mended: {mended}, not mended: {not_mended}",
            about=str(job.scope),
            samples=job.samples_done,
            bad=job.bad,
            missing=job.missing,
            mended=job.mended,
            not_mended=job.not_mended,
        )

    def counts(self, job: Job) -> Counts:
        """See `Kind.counts`."""
        return self._counts_of(job.scope.roots[0] if job.scope.roots else "")

    def kept(self) -> Mapping[str, Any]:
        """See `Kind.kept`."""
        return {"scrubbed": self.scrubbed, "since": self._since}

    def load(self, value: Mapping[str, Any]) -> None:
        """See `Kind.load`."""
        self.scrubbed, self._since = (
            {str(root): float(at) for root, at in value[name].items()}
            for name in ("scrubbed", "since")
        )

    def _counts_of(self, root: str) -> Counts:
        return self._counts.setdefault(root, Counts())

    def _passes(self) -> list[Job]:
        """Those that nobody asked for."""
        return [job for job in self._jobs.of(self) if job.period_seconds is not None]

    async def _disk(self, run: Run, mirror: Mirror, member: Member) -> None:
        names, job = self._mirrors.names, run.job
        if names is not None and names.known(mirror) and not job.scope.prefix:
            job.samples_known = names.samples(mirror)
        await self._scrub(run, mirror, member).run()

    async def _sample(self, run: Run) -> None:
        digest = Digest.parse(str(run.job.scope.sha))
        mirrors: Sequence[Mirror] = self._mirrors.mirrors
        if self._mirrors.names is not None:
            known = self._mirrors.names.find(digest)
            # What nobody knows, somebody may have put there by hand.
            mirrors = [*known.holders, *known.unsure] or mirrors
        kept = False
        for mirror in mirrors:
            kept = await self._scrub(run, mirror, mirror.members[0]).one(digest) or kept
        if not kept:
            raise Impossible(f"no disk that can be read has {digest}")
        run.reached("", 1.0)

    def _scrub(self, run: Run, mirror: Mirror, member: Member) -> Scrub:
        repairs, directories = self._mirrors.repairs, self._batch_directories
        learning, pool = self._mirrors.learning, self._jobs.pool
        moves = Moves(self._mirrors)
        return Scrub(run, mirror, member, repairs, moves, pool, directories, learning)
