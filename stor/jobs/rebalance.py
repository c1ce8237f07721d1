"""Samples from the fullest sets to the emptiest, until all are about as full."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.logger import Logger

from stor.jobs.carry import Carrier
from stor.jobs.drain import planned, roots_of, weigh
from stor.jobs.job import Job, Rate, Scope
from stor.jobs.jobs import Jobs
from stor.jobs.kind import Kind, NotNow, Refused
from stor.jobs.run import Run
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.move import Moves
from stor.threads import settle

#: Sets whose fill differs by no more are left alone; and so far it is brought down.
ENOUGH = 0.05
EVEN = 0.02

#: So many times what was planned is moved at most.
MOST = 2

#: The steps of a plan, for each set.
_STEPS = 1000


@attrs.define
class _Level:
    """How full a set is."""

    mirror: Mirror
    used: float
    total: float
    given: float = 0.0

    @property
    def fill(self) -> float:
        return self.used / self.total if self.total else 0.0


class Rebalances(Kind):
    """One job for all sets that may be written; what is read-only neither gives nor takes."""

    log = Logger()
    name = "rebalance"

    def __init__(self, jobs: Jobs, mirrors: Mirrors, moves: Moves) -> None:
        self._jobs = jobs
        self._mirrors = mirrors
        self._moves = moves
        jobs.take_up(self)

    async def ask(self, rate: Rate | None = None) -> list[Job]:
        """Even out the sets: the job. Raises `Refused`."""
        await self.plan(rate)
        roots = [root for mirror in self._sets() for root in roots_of(mirror)]
        return self._jobs.ask(self, [Scope(tuple(roots))], rate)

    async def plan(self, rate: Rate | None = None) -> list[dict[str, Any]]:
        """What that would take, for each set that gives. Raises `Refused`."""
        for job in self._jobs.unfinished("drain"):
            raise Refused(f"job {job.id} drains {job.scope}: wait for its end, or cancel it first")
        if len(self._sets()) < 2:
            raise Refused("there are no two sets that may be written: nothing can be evened out")
        plans = []
        for level in evened(self._levels()):
            if level.given:
                samples, taken = await weigh(self._mirrors, level.mirror)
                part = min(1.0, level.given / taken) if taken else 0.0
                moved = min(round(level.given), taken)
                plans.append(planned(level.mirror, round(samples * part), moved, rate))
        return plans

    def done(self, job: Job) -> None:
        """See `Kind.done`."""
        levels = self._levels()
        if levels:
            low, high = min(one.fill for one in levels), max(one.fill for one in levels)
            job.reason = f"the sets are from {low:.1%} to {high:.1%} full"
        self.log.info(
            "Rebalanced: {samples} samples have moved; {reason}",
            samples=job.samples_done,
            reason=job.reason or "no set may be written",
        )

    async def work(self, run: Run) -> None:
        """See `Kind.work`."""
        job = run.job
        carrier = Carrier(run, self._mirrors, self._moves, self._jobs.pool)
        await self._renew()
        if not job.cursor:
            # In bytes: what is to be moved in all, which its share is of.
            job.cursor = str(round(sum(one.given for one in evened(self._levels()))))
        all_bytes = int(job.cursor) if job.cursor.isdecimal() else 0

        def reached(cursor: str) -> None:
            run.reached(job.cursor, min(1.0, job.bytes_done / all_bytes) if all_bytes else 0.0)

        # Clients fill sets, too: what they do is not evened out for ever.
        while job.bytes_done < MOST * all_bytes:
            source, target = extremes(self._levels())
            if source.fill - target.fill <= EVEN:
                break
            before = job.samples_done
            pair = _Pair(self._mirrors, self._levels, source.mirror, target.mirror)
            await carrier.carry(source.mirror, pair.choose, reached, wanted=pair.wanted)
            await self._renew()
            if job.samples_done == before:
                break  # what is left there cannot be moved, or is none of Stor's
        run.reached(job.cursor, 1.0)

    def _sets(self) -> list[Mirror]:
        """Those that give and take."""
        return [mirror for mirror in self._mirrors.mirrors if mirror.configured_writable]

    def _levels(self) -> list[_Level]:
        levels = []
        for mirror in self._sets():
            rooms = [m.health.room for m in mirror.members if m.health.room.total_bytes]
            if len(rooms) == len(mirror.members):
                total = min(room.total_bytes for room in rooms)
                levels.append(_Level(mirror, total - min(r.free_bytes for r in rooms), total))
        return levels

    async def _renew(self) -> None:
        await settle([m.renew_room() for mirror in self._sets() for m in mirror.members])


class _Pair:
    """Two sets of which one gives to the other, as long as that evens out anything."""

    def __init__(
        self,
        mirrors: Mirrors,
        levels: Callable[[], list[_Level]],
        source: Mirror,
        target: Mirror,
    ) -> None:
        self._mirrors = mirrors
        self._levels = levels
        self._source = source
        self._target = target

    def choose(self, length: int, samples: int) -> Mirror:
        """See `Carrier.carry`."""
        if not self._target.prompt:
            raise NotNow(f"{self._target}: is not to be written now")
        if not self._mirrors.fits(self._target, length, samples):
            raise NotNow(f"{self._target}: has no room beyond its reserve")
        return self._target

    async def wanted(self) -> int:
        """How many bytes are to go from one to the other; 0: another pair is to go on, or none."""
        members = (*self._source.members, *self._target.members)
        await settle([member.renew_room() for member in members])
        levels = {one.mirror: one for one in self._levels()}
        if self._source not in levels or self._target not in levels:
            return 0
        high, low = levels[self._source], levels[self._target]
        fills = [one.fill for one in levels.values()]
        # Not at once when another is the fullest: each time its disk is gone over anew.
        others = max(fills) - high.fill, low.fill - min(fills)
        gap = high.fill - low.fill
        if gap <= EVEN or max(others) > EVEN / 2:
            return 0
        return max(1, round(gap / (1 / high.total + 1 / low.total)))


def extremes(levels: Sequence[_Level]) -> tuple[_Level, _Level]:
    """The fullest and the emptiest. Raises `NotNow`: there are none."""
    if not levels:
        raise NotNow("how full the sets are is not known yet")
    return max(levels, key=_fill), min(levels, key=_fill)


def evened(levels: Sequence[_Level]) -> list[_Level]:
    """What each set is to give, until they differ by no more than `EVEN`."""
    if len(levels) < 2:
        return []
    source, target = extremes(levels)
    if source.fill - target.fill <= ENOUGH:
        return []
    step = min(one.total for one in levels) / _STEPS
    while source.fill - target.fill > EVEN:
        source.used -= step
        source.given += step
        target.used += step
        target.given = max(0.0, target.given - step)
        source, target = extremes(levels)
    return list(levels)


def _fill(level: _Level) -> float:
    return level.fill
