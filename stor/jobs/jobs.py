"""The long work of a Stor: queued, running and finished."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.jobs.job import Job, Rate, Scope, State
from stor.jobs.run import Counts, Halted, Run
from stor.jobs.scrub import BATCH_DIRECTORIES, NotNow, Scrub
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.store import Work
from stor.threads import Busy, Pool, within

#: The file in the state directory.
JOBS_FILE = "jobs.json"

#: How far jobs have come is kept this often, all of them at once.
CHECKPOINT_SECONDS = 10.0

#: How many finished jobs are remembered.
MOST_OVER = 100

#: A pass that nobody asked for begins no earlier after a start: then there is other work to do.
SETTLE_SECONDS = 300.0

#: The most samples that one answer lists.
_LISTED = 10_000

#: How long the end of Stor waits for what is kept of the jobs.
_END_SECONDS = 2.0

_DAY_SECONDS = 86400.0


class Refused(Exception):
    """What was asked of a job cannot be done; one line."""


class NotKept(Exception):
    """No disk has the sample that a job is about."""


class Jobs:
    """The jobs of one Stor, in the process that writes.

    At most one works at a disk; one that somebody asked for comes before one that nobody did.
    Two scrubs of the same are one.
    """

    log = Logger()

    def __init__(
        self,
        mirrors: Mirrors,
        clock: IReactorTime,
        wall_seconds: Callable[[], float],
        threads: Callable[[str], Pool],
        save: Callable[[bytes], Deferred[None]],
        batch_directories: int = BATCH_DIRECTORIES,
    ) -> None:
        """`threads` gives a pool of one thread with a name; `save` keeps all durably.

        `batch_directories` is how many of the lowest directories a scrub reads in one go.
        """
        self._mirrors = mirrors
        self._clock = clock
        self._wall_seconds = wall_seconds
        self._threads = threads
        self._save = save
        self._batch_directories = batch_directories
        self._pools: dict[str, Pool] = {}
        self._jobs: dict[int, Job] = {}
        self._next = 1
        self._runs: dict[int, Run] = {}
        #: When each disk was last scrubbed whole, in seconds since the epoch.
        self.scrubbed: dict[str, float] = {}
        #: When each disk was first seen.
        self._since: dict[str, float] = {}
        self._counts: dict[str, Counts] = {}
        self._period_seconds = 0.0
        self._settled_at = clock.seconds() + SETTLE_SECONDS
        self._begun = False
        self._stopped = False
        self._saving = False
        self._unsaved = False
        self._checkpoint_due = clock.seconds() + CHECKPOINT_SECONDS

    # What is kept.

    def load(self, data: bytes | None) -> None:
        """Know what was kept. What is no such file is named in the log, and made anew."""
        if data is None:
            return
        try:
            value = json.loads(data)
            jobs = [Job.parse(one) for one in value["jobs"]]
            scrubbed, since = (
                {str(root): float(at) for root, at in value[name].items()}
                for name in ("scrubbed", "since")
            )
            following = max([int(value["next"]), *(job.id + 1 for job in jobs)])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.log.error(
                "{file} in the state directory is damaged ({error}): jobs are forgotten, and it "
                "is made anew",
                file=JOBS_FILE,
                error=repr(error),
            )
            return
        self._jobs = {job.id: job for job in jobs}
        self._next, self.scrubbed, self._since = following, scrubbed, since

    def encode(self) -> bytes:
        """All that a restart has to know."""
        value = {
            "next": self._next,
            "scrubbed": self.scrubbed,
            "since": self._since,
            "jobs": [job.encode() for job in self._jobs.values()],
        }
        return json.dumps(value).encode()

    def keep(self) -> None:
        """Have all kept on disk as it is now, once what is being written is written."""
        self._unsaved = True
        if not self._saving and not self._stopped:
            Deferred.fromCoroutine(self._write())

    def _checkpoint(self) -> None:
        if self._clock.seconds() >= self._checkpoint_due:
            self._checkpoint_due = self._clock.seconds() + CHECKPOINT_SECONDS
            self.keep()

    async def _write(self) -> None:
        self._saving = True
        try:
            while self._unsaved:
                self._unsaved = False
                await self._save(self.encode())
        except Busy as error:  # the next checkpoint tries again
            self.log.warn("Jobs cannot be kept: {error}", error=str(error))
        finally:
            self._saving = False

    # What is asked for.

    def scrub(
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
            known = [member.root for member in self._mirrors.members]
            for root in roots:
                if root not in known:
                    raise Refused(
                        f"{root}: in no set: expected a storage root, one of {', '.join(known)}"
                    )
            scopes = [Scope(root, prefix.lower()) for root in dict.fromkeys(roots or known)]
        asked = [self._same(scope) or self._add("scrub", scope) for scope in scopes]
        for job in asked:
            if rate is not None:
                job.rate = rate
        self.resume()
        self.keep()
        return asked

    def pause(self, number: int) -> Job:
        """Have a job rest, also over a restart, until it is resumed. Raises `Refused`."""
        return self._change(number, State.PAUSED)

    def go_on(self, number: int) -> Job:
        """Have a job go on that was paused, or that failed. Raises `Refused`."""
        job = self._known(number)
        if job.state in (State.DONE, State.CANCELLED):
            raise Refused(f"job {number} is {job.state.value}: nothing is left to do")
        if job.state in (State.PAUSED, State.FAILED):
            job.state, job.reason, job.ended = State.WAITING, None, None
            self.resume()
            self.keep()
        return job

    def cancel(self, number: int) -> Job:
        """End a job before it is done. Raises `Refused`."""
        return self._change(number, State.CANCELLED)

    def set_rate(self, number: int, rate: Rate) -> Job:
        """Let a job read so much a second at most. Raises `Refused`."""
        job = self._known(number)
        if job.state.over:
            raise Refused(f"job {number} is {job.state.value}")
        job.rate = rate
        if number in self._runs:
            self._runs[number].renew()
        self.keep()
        return job

    def views(self) -> list[dict[str, Any]]:
        """All jobs, as their users see them; the newest is last."""
        now = self._clock.seconds()
        return [job.view(now) for job in self._jobs.values()]

    def summary(self) -> Work:
        """What everybody may know: the jobs that are not over, or failed, and name no sample."""
        now = self._clock.seconds()
        jobs = [
            {key: value for key, value in job.view(now).items() if key != "errors"}
            for job in self._jobs.values()
            if job.scope.sha is None and job.state not in (State.DONE, State.CANCELLED)
        ]
        return Work(jobs, self.at_risk_total)

    def at_risk(self) -> dict[str, Any]:
        """The samples with fewer good copies than their sets have disks, and why.

        `sets` are those that lack a disk: all their samples have a copy less than they should.
        """
        samples = [
            {
                "sha": str(risk.digest),
                "good": risk.good,
                "wanted": risk.wanted,
                "reason": risk.reason,
            }
            for mirror in self._mirrors.mirrors
            for risk in self._mirrors.repairs.risks(mirror)
        ]
        sets = [
            {
                "roots": [member.root for member in mirror.members],
                "samples": self._lacking(mirror),
                "reason": "; ".join(map(_shortage, filter(_is_short, mirror.members))),
            }
            for mirror in self._mirrors.mirrors
            if any(map(_is_short, mirror.members))
        ]
        return {"total": self.at_risk_total, "samples": samples, "sets": sets}

    async def at_risk_of(self, number: int, after: bytes | None) -> list[dict[str, Any]]:
        """Some samples of a set that lacks a disk, sorted, those behind the sha `after`.

        None after the last. `number` is the set's place among `sets` of `at_risk`. Raises
        `Refused` when they cannot be listed now.
        """
        short = [mirror for mirror in self._mirrors.mirrors if any(map(_is_short, mirror.members))]
        learning = self._mirrors.learning
        if not 0 <= number < len(short) or learning is None:
            raise Refused(f"set {number}: no set with this number lacks a disk now")
        mirror, limit = short[number], _LISTED + (after is not None)
        found = await learning.listed(after or bytes(32), limit, [mirror])
        if found is None:
            raise Refused(f"{mirror}: no complete disk that could list its samples can be read")
        lacking = [member for member in mirror.members if _is_short(member)]
        return [
            {
                "sha": sha.hex(),
                "good": len(mirror.members) - len(lacking),
                "wanted": len(mirror.members),
                "reason": "; ".join(map(_shortage, lacking)),
            }
            for sha, _ in found
            if sha != after
        ]

    @property
    def at_risk_total(self) -> int:
        """How many samples have fewer good copies than they should: all where a disk is away."""
        return sum(
            max(self._lacking(mirror), len(self._mirrors.repairs.risks(mirror)))
            for mirror in self._mirrors.mirrors
        )

    def _lacking(self, mirror: Mirror) -> int:
        """How many samples lack a copy as a disk is away, or was not compared yet; at most."""
        names = self._mirrors.names
        short = [member for member in mirror.members if _is_short(member)]
        if names is None or not short:
            return 0
        compared = [
            (self._mirrors.rebuilds.progress(member) or 0.0) if member.health.readable else 0.0
            for member in short
        ]
        return round(names.samples(mirror) * (1 - min(compared)))

    @property
    def counts(self) -> Mapping[str, Counts]:
        """What the scrubs of each disk have met since the start."""
        return {
            member.root: self._counts.setdefault(member.root, Counts())
            for member in self._mirrors.members
        }

    @property
    def ages_seconds(self) -> Mapping[str, float]:
        """How long ago each disk was scrubbed whole; or was first seen, if it never was."""
        now = self._wall_seconds()
        return {
            root: now - self.scrubbed.get(root, since)
            for root, since in self._since.items()
            if self._place(root) is not None
        }

    @property
    def period_seconds(self) -> float:
        """How long a pass over a disk may take that nobody asked for; 0: there is none."""
        return self._period_seconds

    # What is done.

    def begin(self, scrub_days: float) -> None:
        """The disks' states are known: go on with what is to be done."""
        self._begun = True
        self.follow(scrub_days)

    def follow(self, scrub_days: float) -> None:
        """Scrub every disk once in `scrub_days`, over and over; 0: only when asked.

        The disks may be others than before: what was begun on those goes on here, or is over.
        """
        self._period_seconds = scrub_days * _DAY_SECONDS
        for member in self._mirrors.members:
            self._since.setdefault(member.root, self._wall_seconds())
        for job in [one for one in self._jobs.values() if one.period_seconds is not None]:
            if not self._period_seconds:
                self._end(job, State.CANCELLED, "scrub_days is 0")
                del self._jobs[job.id]
            elif not job.state.over:
                job.period_seconds = self._period_seconds
                if job.id in self._runs:
                    self._runs[job.id].renew()
        for run in list(self._runs.values()):
            if run.mirror is not None and run.mirror not in self._mirrors.mirrors:
                run.job.state = State.WAITING if not run.job.state.over else run.job.state
                run.halt()
        self.resume()
        self.keep()

    def resume(self) -> None:
        """Begin what can be done now; called every now and then."""
        if not self._begun or self._stopped:
            return
        self._begin_passes()
        for job in sorted(self._jobs.values(), key=_turn):
            if job.state in (State.RUNNING, State.WAITING) and job.id not in self._runs:
                self._start(job)
        over = [job for job in self._jobs.values() if job.state.over and job.id not in self._runs]
        for job in over[:-MOST_OVER]:
            del self._jobs[job.id]

    async def stop(self) -> None:
        """Halt all, and keep how far each has come. Takes some seconds at most."""
        for run in list(self._runs.values()):
            run.halt()
        if self._begun and not self._stopped:
            self._stopped = True
            saving = self._save(self.encode()).addErrback(self._not_kept)
            await within(self._clock, _END_SECONDS, saving).addErrback(self._not_kept)
        for pool in self._pools.values():
            pool.stop()

    def _not_kept(self, failure: Failure) -> None:
        self.log.warn("Jobs cannot be kept: {error}", error=str(failure.value))

    def _known(self, number: int) -> Job:
        if number not in self._jobs:
            raise Refused(f"job {number}: there is none with this number; see stor jobs")
        return self._jobs[number]

    def _same(self, scope: Scope) -> Job | None:
        """A job that does what is asked for, and that somebody has asked for."""
        return next(
            (
                job
                for job in self._jobs.values()
                if job.scope == scope and job.period_seconds is None and not job.state.over
            ),
            None,
        )

    def _add(self, kind: str, scope: Scope, period_seconds: float | None = None) -> Job:
        job = Job(self._next, kind, scope, self._wall_seconds(), period_seconds=period_seconds)
        job.state = State.WAITING
        self._next += 1
        self._jobs[job.id] = job
        self.log.info("Job {id}: {kind} {about}", id=job.id, kind=kind, about=str(scope))
        return job

    def _change(self, number: int, state: State) -> Job:
        job = self._known(number)
        dismissed = job.state is State.FAILED and state is State.CANCELLED
        if job.state.over and not dismissed:
            raise Refused(f"job {number} is {job.state.value}")
        self.log.info("Job {id} is {state} by the operator", id=number, state=state.value)
        if state is State.CANCELLED:
            self._end(job, state, "cancelled by the operator")
        else:
            job.state, job.reason = state, None
        if number in self._runs:
            self._runs[number].halt()
        self.keep()
        return job

    def _end(self, job: Job, state: State, reason: str | None) -> None:
        job.state, job.reason, job.ended = state, reason, self._wall_seconds()
        if job.id in self._runs:
            self._runs[job.id].halt()

    def _begin_passes(self) -> None:
        """Have a pass over every disk that has none under way, nor one given up for this time."""
        if not self._period_seconds or self._clock.seconds() < self._settled_at:
            return
        now = self._wall_seconds()
        passing = {
            job.scope.root
            for job in self._jobs.values()
            if job.period_seconds is not None
            and job.state is not State.DONE
            and not (job.state.over and now >= job.began + self._period_seconds)
        }
        for member in self._mirrors.members:
            if member.root not in passing and member.complete and member.health.sound:
                self._add("scrub", Scope(member.root), self._period_seconds)

    def _place(self, root: str | None) -> tuple[Mirror, Member] | None:
        places = (place for mirror in self._mirrors.mirrors for place in mirror.places)
        return next(((p.mirror, p.member) for p in places if p.member.root == root), None)

    def _start(self, job: Job) -> None:
        place = self._place(job.scope.root)
        if place is None and job.scope.root is not None:
            self._end(job, State.CANCELLED, f"no set has {job.scope.root} any more")
            return
        obstacle = None if place is None else self._obstacle(job, place[1])
        if obstacle is not None:
            job.state, job.reason = State.WAITING, obstacle
            return
        job.state, job.reason = State.RUNNING, None
        counts = self._counts.setdefault(job.scope.root or "", Counts())
        run = Run(job, counts, self._clock, self._wall_seconds, self._checkpoint)
        run.mirror = None if place is None else place[0]
        self._runs[job.id] = run
        working = self._scrub_one(run) if place is None else self._scrub_disk(run, *place)
        Deferred.fromCoroutine(working).addBoth(self._ended, run)

    def _obstacle(self, job: Job, member: Member) -> str | None:
        """Why a job cannot go on now."""
        if job.period_seconds is not None and self._clock.seconds() < self._settled_at:
            return "Stor has just started"
        if not member.health.sound:
            return member.fault or f"{member.root}: is not to be read"
        for run in list(self._runs.values()):
            if run.job.scope.root == member.root:
                if run.job.period_seconds is not None and job.period_seconds is None:
                    run.halt()
                return f"job {run.job.id} is at the same disk"
        return None

    async def _scrub_disk(self, run: Run, mirror: Mirror, member: Member) -> None:
        names, job = self._mirrors.names, run.job
        if names is not None and names.known(mirror) and not job.scope.prefix:
            job.samples_known = names.samples(mirror)
        await self._scrub(run, mirror, member).run()

    async def _scrub_one(self, run: Run) -> None:
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
            raise NotKept(f"no disk that can be read has {digest}")
        run.reached("", 1.0)

    def _scrub(self, run: Run, mirror: Mirror, member: Member) -> Scrub:
        repairs, directories = self._mirrors.repairs, self._batch_directories
        return Scrub(run, mirror, member, repairs, self._pool, directories, self._mirrors.learning)

    def _ended(self, outcome: object, run: Run) -> None:
        job = run.job
        del self._runs[job.id]
        again = True
        if job.state is not State.RUNNING:
            pass  # it was halted for what its state says
        elif not isinstance(outcome, Failure):
            self._end(job, State.DONE, None)
            if job.scope.root is not None and not job.scope.prefix:
                self.scrubbed[job.scope.root] = self._wall_seconds()
            self._say_done(job)
        elif outcome.check(Halted):
            job.state = State.WAITING
        elif outcome.check(NotNow, DiskAway, Busy, OSError):
            job.state, job.reason = State.WAITING, str(outcome.value)
            again = False  # at the next look at the disks
        elif outcome.check(NotKept):
            self._end(job, State.FAILED, str(outcome.value))
        else:
            self.log.failure("Job {id}", outcome, id=job.id)
            self._end(job, State.FAILED, repr(outcome.value))
        if not self._stopped:
            self.keep()
            if again:
                self._clock.callLater(0, self.resume)

    def _say_done(self, job: Job) -> None:
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

    def _pool(self, root: str) -> Pool:
        if root not in self._pools:
            self._pools[root] = self._threads(f"jobs {root}")
        return self._pools[root]


def _is_short(member: Member) -> bool:
    """Whether a disk may lack samples, or cannot be read."""
    return not (member.health.readable and member.complete)


def _shortage(member: Member) -> str:
    away = member.fault or f"{member.root}: {member.health.state.value}"
    return f"{member.root}: not complete" if member.health.readable else away


def _turn(job: Job) -> tuple[bool, int]:
    """What somebody has asked for comes first."""
    return job.period_seconds is not None, job.id
