"""All long work of a Stor, put together: its jobs, their kinds, and what has too few copies."""

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from stor.jobs.at_risk import AtRisk
from stor.jobs.drain import Drains
from stor.jobs.drills import PERIOD_SECONDS, Drills
from stor.jobs.jobs import Jobs
from stor.jobs.rebalance import Rebalances
from stor.jobs.rebuilds import Rebuilds
from stor.jobs.scrub import BATCH_DIRECTORIES
from stor.jobs.scrubs import Scrubs
from stor.jobs.walks import Walks
from stor.mirror.mirrors import Mirrors
from stor.mirror.move import Moves
from stor.status import Work
from stor.threads import Pool


class LongWork:
    """The jobs of one Stor, in the process that writes; a kind each is asked by its name here."""

    def __init__(
        self,
        mirrors: Mirrors,
        clock: IReactorTime,
        wall_seconds: Callable[[], float],
        threads: Callable[[str], Pool],
        save: Callable[[bytes], Deferred[None]],
        batch_directories: int = BATCH_DIRECTORIES,
        drill_seconds: float = PERIOD_SECONDS,
    ) -> None:
        """See `Jobs`, `Scrubs` and `Drills`."""
        self.jobs = Jobs(mirrors, clock, wall_seconds, threads, save)
        self.scrubs = Scrubs(self.jobs, mirrors, batch_directories)
        self.walks = Walks(self.jobs, mirrors)
        self.rebuilds = Rebuilds(self.jobs, mirrors, clock, batch_directories)
        moves = Moves(mirrors)
        self.drains = Drains(self.jobs, mirrors, moves)
        self.rebalances = Rebalances(self.jobs, mirrors, moves)
        self.drills = Drills(self.jobs, mirrors, drill_seconds)
        self.at_risk = AtRisk(mirrors, lambda: self.rebuilds.compared)

    def begin(self, scrub_days: float) -> None:
        """The disks' states are known: go on with what is to be done."""
        self.scrubs.follow(scrub_days)
        self.jobs.begin()

    def follow(self, scrub_days: float) -> None:
        """Go on as another configuration says. The disks may be others than before."""
        self.scrubs.follow(scrub_days)
        self.jobs.follow()

    def summary(self) -> Work:
        """What everybody may know."""
        rebuilds = self.rebuilds
        return Work(
            self.jobs.summary(),
            self.at_risk.total,
            [*rebuilds.warnings, *self.drills.warnings],
            rebuilds.compared,
            rebuilds.running,
        )
