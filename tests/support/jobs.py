"""Jobs on a rig: kept in memory as the state directory would, with threads that a test controls."""

import json

from twisted.internet.defer import succeed

from stor.jobs.long_work import LongWork
from stor.status import as_json
from tests.support.pools import InlinePool

DAY = 86400.0


class KeptJobs:
    """What a state directory has kept, over several Stors."""

    def __init__(self, data=None):
        self.data = data
        self.work = None

    def begin(self, rig, *, pool=None, scrub_days=0, batch_directories=1, drill_seconds=0):
        """The jobs of one more Stor, which has looked at its disks."""
        pool = pool or InlinePool()
        work = LongWork(
            rig.mirrors,
            rig.clock,
            rig.wall_seconds,
            lambda name: pool,
            self._save,
            batch_directories,
            drill_seconds,
        )
        self.work = work
        work.jobs.load(self.data)
        work.begin(scrub_days)
        return work.jobs

    def _save(self, data):
        self.data = data
        return succeed(None)

    @property
    def jobs(self):
        return json.loads(self.data)["jobs"]


def scrub(jobs, *what, **more):
    """Ask for scrubs: the jobs."""
    return jobs.kinds["scrub"].ask(*what, **more)


def follow(jobs, scrub_days):
    """Go on as a configuration with these `scrub_days` says."""
    jobs.kinds["scrub"].follow(scrub_days)
    jobs.follow()


def view(jobs, number=None):
    """One job as its users see it; by default the newest."""
    seen = views(jobs)
    return seen[-1] if number is None else next(v for v in seen if v["id"] == number)


def views(jobs):
    """All jobs as their users see them, the newest last."""
    return [as_json(job) for job in jobs.status()]


def pass_seconds(rig, seconds, step=1.0):
    """Let time pass for the clock, in steps."""
    end = rig.clock.seconds() + seconds
    while rig.clock.seconds() < end:
        rig.clock.advance(step)
