"""Looking at many disks in one go, from a thread that belongs to none of them.

Most looks end in the kernel's caches within microseconds, where a hop to a disk's own thread and
back takes many times as long. So a scout looks at one disk after the other and comes back once.
"""

import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.copy import Copy
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror, Place
from stor.threads import Busy, Pool

#: A scout that stays longer at one disk is not waited for, nor one that waits longer to be
#: sent while no other gets on.
PATIENCE_SECONDS = 0.25

#: Nor is one that is under way for longer, however well it gets on.
TOUR_SECONDS = 1.0

#: The disks of a mirror that had to be read from are left to their own threads for so long: those
#: wait for many disks at once.
COLD_SECONDS = 1.0

#: A look that takes less came from the kernel's caches, whatever else the thread waited for.
_CACHED_SECONDS = 0.001


class Report(NamedTuple):
    """What a disk said: the copy by its name, `None` when there is none, or what went wrong."""

    place: Place
    outcome: Copy | Failure | None
    seconds: float


@attrs.define(eq=False)
class _Tour:
    """One scout's way from disk to disk: its thread adds to `reports`, the reactor takes them."""

    places: Sequence[Place]
    digest: Digest
    until_found: bool
    ended: Deferred[list[Report]] = attrs.field(factory=Deferred)
    reports: list[Report] = attrs.field(factory=list)
    #: Where the scout is, and since when; at first it waits to be sent.
    standing: Place | None = None
    since: float = 0.0
    sent: bool = False
    cold: Mirror | None = None
    over: bool = False
    #: What the reactor has taken.
    given_up: bool = False
    counted: int = 0
    timer: IDelayedCall | None = None


def device_reads() -> int:
    """How much the calling thread has had read from devices (getrusage(2), `ru_inblock`)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


class Scouts:
    """A few threads that look at all disks, never two of them at one disk at a time.

    A disk that hangs holds one scout until it answers, and the others pass by it. With no scout
    left, and for what a scout does not report, there are the disks' own threads.
    """

    log = Logger()

    def __init__(
        self,
        worker: Pool,
        scouts: int,
        clock: IReactorTime,
        device_reads: Callable[[], int] = device_reads,
    ) -> None:
        """`worker` has as many threads as there are `scouts`."""
        self._worker = worker
        self._scouts = scouts
        self._clock = clock
        self._device_reads = device_reads
        #: Which scout is where. Its threads rely on `setdefault` being one step for all of them.
        self._occupied: dict[Member, _Tour] = {}
        self._lost: set[_Tour] = set()
        #: When any scout was done with a disk last.
        self._moved = 0.0
        self._cold: dict[Mirror, float] = {}

    def sweep(
        self, places: Sequence[Place], digest: Digest, *, until_found: bool
    ) -> Deferred[list[Report]]:
        """Look for the sample in these places, in their order; not all have to be reported.

        Never fails, and never waits for one disk for longer than `PATIENCE_SECONDS`. What is
        reported has been counted by the disk's member.
        """
        if self._cold:
            now = self._clock.seconds()
            self._cold = {mirror: until for mirror, until in self._cold.items() if until > now}
            places = [place for place in places if place.mirror not in self._cold]
        if len(places) < 2 or len(self._lost) >= self._scouts:
            return succeed([])
        begun = self._clock.seconds()
        tour = _Tour(places, digest, until_found, since=begun)
        self._worker.run(self._walk, tour).addBoth(self._back, tour)
        if not tour.ended.called:
            tour.timer = self._clock.callLater(PATIENCE_SECONDS, self._look_after, tour, begun)
        return tour.ended

    def lost_at(self, member: Member) -> bool:
        """Whether a scout that was given up has not come back from this disk yet."""
        if not self._lost:  # which is asked for every disk
            return False
        return any(t.standing is not None and t.standing.member is member for t in self._lost)

    def _walk(self, tour: _Tour) -> None:
        """Go from disk to disk; in a scout's thread."""
        reads = self._device_reads()
        tour.sent, tour.since = True, self._clock.seconds()
        passed = [place for place in tour.places if not self._visit(tour, place, reads)]
        for place in passed:  # the other scout has gone on, unless the disk hangs
            self._visit(tour, place, reads)

    def _visit(self, tour: _Tour, place: Place, reads: int) -> bool:
        """Look at one disk unless the tour is over; `False` when another scout is there."""
        if tour.over:
            return True
        member = place.member
        if self._occupied.setdefault(member, tour) is not tour:
            return False
        tour.standing, begun = place, tour.since
        outcome: Copy | Failure | None
        try:
            outcome = member.disk.look(tour.digest)
        except BaseException:
            outcome = Failure()
        self._moved = tour.since = self._clock.seconds()
        seconds = tour.since - begun
        del self._occupied[member]
        tour.standing = None
        tour.reports.append(Report(place, outcome, seconds))
        if tour.until_found and isinstance(outcome, Copy):
            tour.over = True
        elif seconds > _CACHED_SECONDS and self._device_reads() != reads:
            tour.cold, tour.over = place.mirror, True
        return True

    def _look_after(self, tour: _Tour, begun: float) -> None:
        """Wait on as long as the scout gets on, or others do while it waits to be sent."""
        now = self._clock.seconds()
        since = tour.since if tour.sent else max(tour.since, self._moved)
        end = min(since + PATIENCE_SECONDS, begun + TOUR_SECONDS)
        if end > now:
            tour.timer = self._clock.callLater(end - now, self._look_after, tour, begun)
            return
        tour.given_up = tour.over = True
        self._lost.add(tour)
        tour.ended.callback(self._count(tour))

    def _back(self, outcome: object, tour: _Tour) -> None:
        """The scout is back, or was not sent because too many tours wait for one."""
        if isinstance(outcome, Failure) and not outcome.check(Busy):
            self.log.failure("Looking for {digest}", outcome, digest=tour.digest)
        self._lost.discard(tour)
        if tour.timer is not None and tour.timer.active():
            tour.timer.cancel()
        if tour.cold is not None:
            self._cold[tour.cold] = self._clock.seconds() + COLD_SECONDS
        reports = self._count(tour)
        if not tour.given_up:
            tour.ended.callback(reports)

    def _count(self, tour: _Tour) -> list[Report]:
        """The reports that have come in by now and were not counted before."""
        reports = tour.reports[tour.counted :]
        tour.counted += len(reports)
        for report in reports:
            report.place.member.looked(tour.digest, report.outcome, report.seconds)
        return reports
