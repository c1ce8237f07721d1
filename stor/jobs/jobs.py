"""The long work of a Stor, of whatever kind: queued, running and finished."""

import json
from collections.abc import Callable, Iterable, Mapping

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.disk.disk import DiskAway
from stor.jobs.job import Job, Rate, Scope, State
from stor.jobs.kind import Impossible, Kind, NotNow, Refused
from stor.jobs.run import Halted, Run
from stor.mirror.mirror import Place
from stor.mirror.mirrors import Mirrors
from stor.status import JobStatus
from stor.threads import Busy, Pool, within

#: The file in the state directory.
JOBS_FILE = "jobs.json"

#: How far jobs have come is kept this often, all of them at once.
CHECKPOINT_SECONDS = 10.0

#: How many finished jobs are remembered.
MOST_OVER = 100

#: A pass that nobody asked for begins no earlier after a start: then there is other work to do.
SETTLE_SECONDS = 300.0

#: How long the end of Stor waits for what is kept of the jobs.
_END_SECONDS = 2.0


class Jobs:
    """The jobs of one Stor, in the process that writes.

    At most one works at a disk, but for kinds that work beside others; which comes first, its kind
    says. What a job is about, and how its work is done, is its kind's.
    """

    log = Logger()

    def __init__(
        self,
        mirrors: Mirrors,
        clock: IReactorTime,
        wall_seconds: Callable[[], float],
        threads: Callable[[str], Pool],
        save: Callable[[bytes], Deferred[None]],
    ) -> None:
        """`threads` gives a pool of one thread with a name; `save` keeps all durably."""
        self._mirrors = mirrors
        self._clock = clock
        self.wall_seconds = wall_seconds
        self._threads = threads
        self._save = save
        self._pools: dict[str, Pool] = {}
        self._kinds: dict[str, Kind] = {}
        self._jobs: dict[int, Job] = {}
        self._next = 1
        self._runs: dict[int, Run] = {}
        self._settled_at = clock.seconds() + SETTLE_SECONDS
        self._begun = False
        self._stopped = False
        self._saving = False
        self._unsaved = False
        self._checkpoint_due = clock.seconds() + CHECKPOINT_SECONDS

    # What kinds ask of it.

    def take_up(self, kind: Kind) -> None:
        """Jobs of another kind are known, too. To be called before `load`."""
        self._kinds[kind.name] = kind

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """All kinds, by their names."""
        return self._kinds

    @property
    def settled(self) -> bool:
        """Whether the start is long enough ago for work that nobody waits for."""
        return self._clock.seconds() >= self._settled_at

    def of(self, kind: Kind) -> list[Job]:
        """The jobs of a kind, the newest last."""
        return [job for job in self._jobs.values() if job.kind == kind.name]

    def unfinished(self, name: str) -> list[Job]:
        """The jobs of the kind of this name that are not over."""
        return [job for job in self._jobs.values() if job.kind == name and not job.state.over]

    def require(self, roots: Iterable[str]) -> None:
        """Raises `Refused` when a disk is in no set."""
        known = [member.root for member in self._mirrors.members]
        for root in roots:
            if root not in known:
                expected = f"expected a storage root, one of {', '.join(known)}"
                raise Refused(f"{root}: in no set: {expected if known else 'there are no disks'}")

    def ask(self, kind: Kind, scopes: Iterable[Scope], rate: Rate | None = None) -> list[Job]:
        """Have done what somebody asks for: a job for each scope, or the one that does it already.

        They begin at once if they can.
        """
        asked = [self._same(kind, scope) or self.add(kind, scope) for scope in scopes]
        for job in asked:
            if rate is not None:
                job.rate = rate
        self.resume()
        self.keep()
        return asked

    def add(self, kind: Kind, scope: Scope, period_seconds: float | None = None) -> Job:
        """One more job, which begins with the next `resume`; with a period nobody asked for it."""
        job = Job(self._next, kind.name, scope, self.wall_seconds(), period_seconds=period_seconds)
        job.state = State.WAITING
        self._next += 1
        self._jobs[job.id] = job
        self.log.info("Job {id}: {kind} {about}", id=job.id, kind=kind.name, about=str(scope))
        return job

    def end(self, job: Job, state: State, reason: str | None) -> None:
        """A job is over, wherever it is."""
        job.state, job.reason, job.ended = state, reason, self.wall_seconds()
        if job.id in self._runs:
            self._runs[job.id].halt()

    def again(self, job: Job) -> None:
        """A job that is not over goes on once more, from what its cursor says then."""
        job.state, job.reason = State.WAITING, None
        if job.id in self._runs:
            self._runs[job.id].halt()

    def forget(self, job: Job) -> None:
        """There was no such job. It is over."""
        self._jobs.pop(job.id, None)

    def renew(self, job: Job) -> None:
        """A job is to be done at another pace from now on."""
        if job.id in self._runs:
            self._runs[job.id].renew()

    def places(self, job: Job) -> list[Place]:
        """The disks that a job is about, as far as they are in a set, in the job's order."""
        every = {p.member.root: p for mirror in self._mirrors.mirrors for p in mirror.places}
        return [every[root] for root in job.scope.roots if root in every]

    def pool(self, root: str) -> Pool:
        """The thread for long work at a disk; what it does holds no client up."""
        if root not in self._pools:
            self._pools[root] = self._threads(f"jobs {root}")
        return self._pools[root]

    # What is kept.

    def load(self, data: bytes | None) -> None:
        """Know what was kept. What is no such file is named in the log, and made anew."""
        if data is None:
            return
        try:
            value = json.loads(data)
            jobs = [Job.parse(one) for one in value["jobs"]]
            following = max([int(value["next"]), *(job.id + 1 for job in jobs)])
            for kind in self._kinds.values():
                kind.load(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.log.error(
                "{file} in the state directory is damaged ({error}): jobs are forgotten, and it "
                "is made anew",
                file=JOBS_FILE,
                error=repr(error),
            )
            return
        for job in jobs:
            if job.kind in self._kinds:
                self._jobs[job.id] = job
            else:
                self.log.warn(
                    "Job {id}: this version knows no {kind}: it is forgotten",
                    id=job.id,
                    kind=job.kind,
                )
        self._next = following

    def encode(self) -> bytes:
        """All that a restart has to know."""
        value = {"next": self._next, "jobs": [job.encode() for job in self._jobs.values()]}
        for kind in self._kinds.values():
            value.update(kind.kept())
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
            job.moved = self._clock.seconds()
            self.resume()
            self.keep()
        return job

    def cancel(self, number: int) -> Job:
        """End a job before it is done. Raises `Refused`."""
        return self._change(number, State.CANCELLED)

    def set_rate(self, number: int, rate: Rate) -> Job:
        """Limit how much a job reads a second. Raises `Refused`."""
        job = self._known(number)
        if job.state.over:
            raise Refused(f"job {number} is {job.state.value}")
        job.rate = rate
        self.renew(job)
        self.keep()
        return job

    def status(self) -> list[JobStatus]:
        """All jobs, as their users see them; the newest is last."""
        now = self._clock.seconds()
        return [job.status(now) for job in self._jobs.values()]

    def summary(self) -> list[JobStatus]:
        """What everybody may know: those that are not over, or failed, and name no sample."""
        now = self._clock.seconds()
        return [
            attrs.evolve(job.status(now), errors=None)
            for job in self._jobs.values()
            if job.scope.sha is None and job.state not in (State.DONE, State.CANCELLED)
        ]

    # What is done.

    def begin(self) -> None:
        """The disks' states are known: go on with what is to be done."""
        self._begun = True
        self.follow()

    def follow(self) -> None:
        """The disks may be others than before: what was begun on those goes on here, or is over."""
        for run in list(self._runs.values()):
            if any(mirror not in self._mirrors.mirrors for mirror in run.mirrors):
                run.job.state = State.WAITING if not run.job.state.over else run.job.state
                run.halt()
        self.resume()
        self.keep()

    def resume(self) -> None:
        """Begin what can be done now; called every now and then."""
        if not self._begun or self._stopped:
            return
        for kind in self._kinds.values():
            kind.due()
        for job in sorted(self._jobs.values(), key=self._turn):
            if job.moved is None:
                job.moved = self._clock.seconds()
            if job.state in (State.RUNNING, State.WAITING) and job.id not in self._runs:
                self._start(job)
        over = [job for job in self._jobs.values() if job.state.over and job.id not in self._runs]
        for job in over[:-MOST_OVER]:
            if not self._kinds[job.kind].remembered(job):
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

    def _same(self, kind: Kind, scope: Scope) -> Job | None:
        """A job that does what is asked for, and that somebody has asked for."""
        return next(
            (
                job
                for job in self.of(kind)
                if job.scope == scope and job.period_seconds is None and not job.state.over
            ),
            None,
        )

    def _turn(self, job: Job) -> tuple[int, int]:
        """Which of several jobs comes first."""
        return self._kinds[job.kind].turn(job), job.id

    def _change(self, number: int, state: State) -> Job:
        job = self._known(number)
        kind = self._kinds[job.kind]
        over = job.state is State.FAILED or (job.state is State.DONE and kind.revocable(job))
        dismissed = over and state is State.CANCELLED
        if job.state.over and not dismissed:
            raise Refused(f"job {number} is {job.state.value}")
        lasting = self._kinds[job.kind].lasting(job) if state is State.CANCELLED else None
        if lasting is not None:
            raise Refused(f"job {number} cannot be cancelled: {lasting}")
        self.log.info("Job {id} is {state} by the operator", id=number, state=state.value)
        if state is State.CANCELLED:
            self.end(job, state, "cancelled by the operator")
        else:
            job.state, job.reason = state, None
        if number in self._runs:
            self._runs[number].halt()
        kind.changed(job)
        self.keep()
        return job

    def _start(self, job: Job) -> None:
        kind, places = self._kinds[job.kind], self.places(job)
        known = [place.member.root for place in places]
        gone = [root for root in job.scope.roots if root not in known]
        if gone:
            self.end(job, State.CANCELLED, f"no set has {', '.join(gone)} any more")
            return
        obstacle = kind.obstacle(job)
        if obstacle is None and (obstacle := self._other(job)) is not None:
            job.moved = self._clock.seconds()  # it has to wait for its turn
        if obstacle is not None:
            job.state, job.reason = State.WAITING, obstacle
            return
        job.state, job.reason = State.RUNNING, None
        run = Run(job, kind.counts(job), self._clock, self.wall_seconds, self._checkpoint)
        run.mirrors = tuple({place.mirror for place in places})
        self._runs[job.id] = run
        Deferred.fromCoroutine(kind.work(run)).addBoth(self._ended, run)

    def _other(self, job: Job) -> str | None:
        """Which jobs keep another from its disks; they are halted if the other comes first."""
        kind, roots = self._kinds[job.kind], set(job.scope.roots)
        others = [] if kind.beside_others else list(self._runs.values())
        keeping = None
        for run in others:
            its = self._kinds[run.job.kind]
            if not its.beside_others and not roots.isdisjoint(run.job.scope.roots):
                keeping = keeping or f"job {run.job.id} is at the same disk"
                if its.turn(run.job) > kind.turn(job):
                    run.halt()
        return keeping

    def _ended(self, outcome: object, run: Run) -> None:
        job = run.job
        del self._runs[job.id]
        # Else at the next look at the disks: what cannot go on now is not tried over and over.
        again = not isinstance(outcome, Failure) or outcome.check(Halted) is not None
        if job.state is not State.RUNNING:
            pass  # it was halted for what its state says
        elif not isinstance(outcome, Failure):
            self.end(job, State.DONE, None)
            self._kinds[job.kind].done(job)
        elif outcome.check(Halted):
            job.state = State.WAITING
        elif outcome.check(NotNow, DiskAway, Busy, OSError):
            job.state, job.reason = State.WAITING, str(outcome.value)
        elif outcome.check(Impossible):
            self.end(job, State.FAILED, str(outcome.value))
        else:
            self.log.failure("Job {id}", outcome, id=job.id)
            self.end(job, State.FAILED, repr(outcome.value))
        if not self._stopped:
            self.keep()
            if again:
                self._clock.callLater(0, self.resume)
