"""All samples of a set to the others, so that it can be taken out."""

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.logger import Logger

from stor.disk.leaving import Remains, remove_directories, sync_disk
from stor.disk.walk import first_directories
from stor.errors import NoRoom, Unavailable
from stor.jobs.carry import BATCH_SAMPLES, Carrier
from stor.jobs.job import Job, Rate, Scope, State
from stor.jobs.jobs import Jobs
from stor.jobs.kind import Impossible, Kind, NotNow, Refused
from stor.jobs.run import Run
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.move import Moves
from stor.mirror.placement import on_disk
from stor.quantities import size

#: What a plan goes by where nobody has given a rate: a hard disk, with samples of any size.
PLANNED_BYTES_PER_SECOND = 100_000_000
PLANNED_SAMPLES_PER_SECOND = 200

#: The size of a set is estimated from its first samples by name, this many.
WEIGHED_SAMPLES = 100_000

#: What is said of a set whose drain is over.
_SAID = {
    State.DONE: "it was drained and can be taken out of storage_pairs",
    State.FAILED: "its drain has failed: see stor jobs",
}

#: How many files are named that stay although they are no samples.
_NAMED = 100


class Drains(Kind):
    """Drains of sets. From when one is asked for, its set gets no new samples.

    That holds when it has ended, also over restarts, until the set is taken out of the
    configuration or the job is cancelled.
    """

    log = Logger()
    name = "drain"

    def __init__(self, jobs: Jobs, mirrors: Mirrors, moves: Moves) -> None:
        self._jobs = jobs
        self._mirrors = mirrors
        self._moves = moves
        #: By each root of a set that was drained: nothing that landed there has a higher number.
        self._highest: dict[str, int] = {}
        jobs.take_up(self)

    async def ask(self, roots: Sequence[str], rate: Rate | None = None) -> list[Job]:
        """Drain the sets of these disks: the jobs. Raises `Refused`."""
        sets = self._sets(roots)
        await self._weigh(sets)
        scopes = [Scope(roots_of(mirror)) for mirror in sets]
        asked = self._jobs.ask(self, scopes, rate)
        self._close()
        return asked

    async def plan(self, roots: Sequence[str], rate: Rate | None = None) -> list[dict[str, Any]]:
        """What draining them would take, a set each. Raises `Refused`."""
        weighed = await self._weigh(self._sets(roots))
        return [planned(mirror, samples, taken, rate) for mirror, samples, taken in weighed]

    def due(self) -> None:
        """See `Kind.due`."""
        self._close()
        learning, configured = self._mirrors.learning, {m.root for m in self._mirrors.members}
        for root, number in self._highest.items():
            if root not in configured and learning is not None:
                learning.landed.taken_out(number)

    def changed(self, job: Job) -> None:
        """See `Kind.changed`."""
        self._close()

    def remembered(self, job: Job) -> bool:
        """See `Kind.remembered`."""
        return job.state is not State.CANCELLED and bool(self._jobs.places(job))

    def revocable(self, job: Job) -> bool:
        """See `Kind.revocable`."""
        return self.remembered(job)

    def done(self, job: Job) -> None:
        """See `Kind.done`."""
        learning = self._mirrors.learning
        if learning is not None:
            self._highest.update(dict.fromkeys(job.scope.roots, learning.landed.highest))
        job.reason = "nothing is left: the set can be taken out of storage_pairs"
        self.log.info(
            "{about}: drained, {samples} samples have moved: {reason}",
            about=str(job.scope),
            samples=job.samples_done,
            reason=job.reason,
        )

    def kept(self) -> Mapping[str, Any]:
        """See `Kind.kept`."""
        return {"drained": self._highest}

    def load(self, value: Mapping[str, Any]) -> None:
        """See `Kind.load`."""
        drained = value.get("drained", {})
        self._highest = {str(root): int(number) for root, number in drained.items()}

    async def work(self, run: Run) -> None:
        """See `Kind.work`."""
        job, mirror = run.job, self._jobs.places(run.job)[0].mirror
        carrier = Carrier(run, self._mirrors, self._moves, self._jobs.pool)
        names = self._mirrors.names
        left = 0 if names is None else names.samples(mirror)
        job.samples_known = job.samples_done + left

        def reached(cursor: str) -> None:
            run.reached(cursor, min(1.0, job.samples_done / max(1, job.samples_known or 0)))

        def choose(length: int, samples: int) -> Mirror:
            return self._choose(mirror, length, samples)

        while True:
            whole, before = not job.cursor, job.samples_done
            if whole:
                job.not_mended = 0
                job.troubles.clear()
            await carrier.carry(mirror, choose, reached, job.cursor, least=BATCH_SAMPLES)
            job.cursor = ""  # what is left came behind it
            if mirror.writes:
                raise NotNow(f"{mirror}: an upload that began before has not ended")
            remains = await self._clear(run, mirror)
            if not remains.samples or (whole and job.samples_done == before):
                break
        if remains.samples or job.not_mended or remains.strays:
            for stray in remains.strays[:_NAMED]:
                job.trouble(stray, "it is no sample of Stor's: move it away")
            raise Impossible(
                f"{remains.samples} samples and {len(remains.strays)} other files are left: see "
                "its errors; once they are seen to, stor resume goes on"
            )
        for member in mirror.members:
            self._mirrors.known_disks.emptied(member.root)
        run.reached("", 1.0)

    def _choose(self, source: Mirror, length: int, samples: int) -> Mirror:
        try:
            target = self._mirrors.choose(length, samples, ())
        except (NoRoom, Unavailable) as error:
            raise NotNow(str(error)) from error
        if target is None or target is source:
            raise NotNow(f"no other set has room for {size(length)} more beyond its reserve")
        return target

    async def _clear(self, run: Run, mirror: Mirror) -> Remains:
        """Remove directories that are empty; what of the set is left."""
        remains = Remains()
        for member in mirror.members:
            pool = self._jobs.pool(member.root)
            firsts, unreadable = await pool.run(first_directories, member.disk)
            remains.strays += [f"{member.root}/{one.path}" for one in unreadable]
            for first in firsts:
                await run.turn(member)
                pace = run.pace(member)
                found = await pool.run(remove_directories, member.disk, first, pace)
                remains.samples = max(remains.samples, found.samples)
                remains.strays += found.strays
            await pool.run(sync_disk, member.disk)
        return remains

    def _sets(self, roots: Sequence[str]) -> list[Mirror]:
        """The sets of some disks, which can be drained. Raises `Refused`."""
        self._jobs.require(roots)
        every = self._mirrors.mirrors
        sets = [m for m in every if not set(roots).isdisjoint(roots_of(m))]
        for job in self._jobs.unfinished("rebalance"):
            raise Refused(f"job {job.id} evens out the sets: cancel it first, or wait for its end")
        for mirror in sets:
            held = [member.root for member in mirror.members if member.health.held]
            if held:
                raise Refused(
                    f"{held[0]}: it is read-only, so that nothing can be removed from it: let it "
                    "be written (writable_pairs_regex, .stor/read-only); a set that is drained "
                    "gets no new samples"
                )
        return sets

    async def _weigh(self, sets: Sequence[Mirror]) -> list[tuple[Mirror, int, int]]:
        """The samples and bytes of sets, for which the others have room. Raises `Refused`."""
        takers = [
            mirror
            for mirror in self._mirrors.mirrors
            if mirror.configured_writable and mirror not in sets
        ]
        if not takers:
            raise Refused("no other set could take the samples: none is to be written")
        weighed = [(mirror, *await weigh(self._mirrors, mirror)) for mirror in sets]
        others = [m for m in self._mirrors.mirrors if m.draining and m not in sets]
        needed = sum(taken for _, _, taken in weighed)
        needed += sum([(await weigh(self._mirrors, mirror))[1] for mirror in others])
        room = sum(max(0, self._mirrors.spare_bytes(mirror)) for mirror in takers)
        if needed > room:
            raise Refused(
                f"the other sets lack room: {size(needed)} are needed, {size(room)} are free "
                "there beyond the reserves (reserve_bytes)"
            )
        return weighed

    def _close(self) -> None:
        """Have the sets that are drained get no new samples, and all others."""
        closed = {
            root: f"{_SAID.get(job.state, 'it is being drained')} (job {job.id})"
            for job in self._jobs.of(self)
            if job.state is not State.CANCELLED
            for root in job.scope.roots
        }
        for mirror in self._mirrors.mirrors:
            reasons = [closed[root] for root in roots_of(mirror) if root in closed]
            mirror.draining = reasons[0] if reasons else None


def roots_of(mirror: Mirror) -> tuple[str, ...]:
    """The roots of a set, in its order."""
    return tuple(member.root for member in mirror.members)


async def weigh(mirrors: Mirrors, mirror: Mirror) -> tuple[int, int]:
    """How many samples a set has, and what they take on a disk. Raises `Refused`."""
    learning = mirrors.learning
    if learning is None or not mirrors.indexed or not learning.known(mirror):
        raise Refused(
            f"{mirror}: what it holds is not known yet (indexed in the JSON of /status): try again "
            "when it is"
        )
    samples = learning.samples(mirror)
    listed = await learning.listed(bytes(32), WEIGHED_SAMPLES, [mirror])
    if listed is None:
        raise Refused(f"{mirror}: no complete disk of it can be read")
    block = mirror.block_bytes
    taken = sum(on_disk(one, block) for _, one in listed)
    if len(listed) == WEIGHED_SAMPLES:  # names are spread evenly
        taken = taken * max(samples, len(listed)) // len(listed)
    return samples, taken


def planned(mirror: Mirror, samples: int, taken: int, rate: Rate | None) -> dict[str, Any]:
    """What it takes to move samples from a set: these, of `taken` bytes."""
    pace = PLANNED_BYTES_PER_SECOND
    seconds = max(taken / pace, samples / PLANNED_SAMPLES_PER_SECOND)
    if rate is not None:
        seconds = max(seconds, rate.seconds(taken, samples))
    return {
        "roots": list(roots_of(mirror)),
        "samples": samples,
        "bytes": taken,
        "hours": round(seconds / 3600, 2),
    }
