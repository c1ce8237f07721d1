"""The jobs by which the index learns what a disk holds: its first walk, and every further one."""

from collections.abc import Sequence
from functools import partial

from stor.jobs.job import Job, Scope, State
from stor.jobs.jobs import Jobs
from stor.jobs.kind import Kind, NotNow, Refused
from stor.jobs.run import Halted, Run
from stor.mirror.mirrors import Mirrors
from stor.mirror.walking import NotKnown

#: The cursor of a walk that somebody has asked for: all of the disk is walked, whatever is known.
_FROM_THE_BEGINNING = "from the beginning"


class Walks(Kind):
    """Walks each disk of which the index does not know every name: a job a disk, by itself.

    How far it has come stands on the disk, beside what it has found. It goes on beside other jobs:
    until it is done each miss costs the disk a look.
    """

    name = "walk"
    beside_others = True

    def __init__(self, jobs: Jobs, mirrors: Mirrors) -> None:
        """`jobs` has it from now on; nothing is walked before they begin."""
        self._jobs = jobs
        self._mirrors = mirrors
        jobs.take_up(self)

    def ask(self, roots: Sequence[str] = ()) -> list[Job]:
        """Walk these disks, or all of them, from the beginning: the jobs. Raises `Refused`."""
        if self._mirrors.learning is None:
            raise Refused("there is no index that could learn anything")
        self._jobs.require(roots)
        known = [member.root for member in self._mirrors.members]
        asked = list(dict.fromkeys(roots or known))
        for job in self._live():
            if job.scope.roots[0] in asked:
                self._jobs.again(job)
                job.cursor = _FROM_THE_BEGINNING
        jobs = [self._of(root) or self._jobs.add(self, Scope((root,))) for root in asked]
        for job in jobs:
            job.cursor = _FROM_THE_BEGINNING
        self._jobs.resume()
        self._jobs.keep()
        return jobs

    def due(self) -> None:
        """Walk what is not known; see `Kind.due`."""
        learning = self._mirrors.learning
        if learning is None or learning.broken is not None:
            return
        learning.walks_by_itself = False
        unknown = {member.root for member in learning.unwalked()}
        for job in self._live():
            place = self._jobs.places(job)
            names = place[0].member.names if place else None
            asked = job.cursor == _FROM_THE_BEGINNING
            if job.state is State.WAITING and names is not None and names.known and not asked:
                self._jobs.end(job, State.DONE, None)
        for root in sorted(unknown - {job.scope.roots[0] for job in self._live()}):
            self._jobs.add(self, Scope((root,)))

    def obstacle(self, job: Job) -> str | None:
        """See `Kind.obstacle`."""
        learning = self._mirrors.learning
        if learning is None or learning.broken is not None:
            return "the index is not used"
        for place in self._jobs.places(job):
            member = place.member
            if not member.health.sound:
                return member.fault or f"{member.root}: is not to be read"
            if not learning.learns(member):
                return f"{member.root}: what it knows of its names is read first"
        return None

    def lasting(self, job: Job) -> str | None:
        """See `Kind.lasting`."""
        if job.state.over:
            return None
        return (
            "until all names of a disk are known, each sample that nobody has costs it a look; to "
            f"have it rest: stor pause {job.id}"
        )

    async def work(self, run: Run) -> None:
        """See `Kind.work`."""
        job, learning = run.job, self._mirrors.learning
        places = self._jobs.places(job)
        if learning is None or not places:
            raise NotNow("there is nothing to walk")
        member, mirror = places[0].member, places[0].mirror
        anew = job.cursor == _FROM_THE_BEGINNING
        if anew:
            job.samples_done, job.share = 0, 0.0

        def walked(samples: int, share: float) -> None:
            run.did(samples, 0)
            if not run.halted:
                run.reached("", share)

        try:
            turn, pace = partial(run.turn, member), run.pace(member)
            await learning.walk(member, mirror, turn, pace, walked, anew=anew)
        except NotKnown as error:
            raise NotNow(str(error)) from error
        if run.halted:
            raise Halted
        run.reached("", 1.0)

    def _live(self) -> list[Job]:
        return [job for job in self._jobs.of(self) if not job.state.over]

    def _of(self, root: str) -> Job | None:
        return next((job for job in self._live() if job.scope.roots == (root,)), None)
