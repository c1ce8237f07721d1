"""What a Stor is asked for about itself costs in proportion to its sets, whatever their state."""

import sys

import pytest

from tests.conformance import sample
from tests.support.jobs import KeptJobs
from tests.support.pools import HeldPool
from tests.support.rig import Rig, digest_of


class Calls:
    """Counts the calls of Python functions."""

    def __enter__(self):
        self.number = 0
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, argument):
        self.number += event == "call"


def compared(path, sets):
    """A Stor whose disks were not compared yet, with a job for each set that begins to."""
    for number in range(sets):
        content = sample(100, number)
        stored = path / f"set{number}/disk0" / digest_of(content).disk_path
        stored.parent.mkdir(parents=True)
        stored.write_bytes(content)
    rig, kept, pool = Rig(path, (2,) * sets), KeptJobs(), HeldPool()
    kept.begin(rig, pool=pool)
    rig.reconfigure(work=kept.work.summary)
    rig.clock.advance(0)
    return rig, kept


#: What is asked, and how.
QUESTIONS = {
    "status": lambda rig, kept: rig.request("GET", "/status"),
    "metrics": lambda rig, kept: rig.request("GET", "/metrics"),
    "page": lambda rig, kept: rig.request("GET", "/", [("Accept", "text/html")]),
    "at risk": lambda rig, kept: kept.work.at_risk.view(),
    "jobs": lambda rig, kept: kept.work.jobs.status(),
    "a look at the disks": lambda rig, kept: rig.probe(),
    "a minute": lambda rig, kept: rig.clock.pump([1.0] * 60),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_ten_times_the_sets_cost_at_most_ten_times_the_calls(tmp_path, question):
    taken = []
    for sets in (4, 40):
        rig, kept = compared(tmp_path / str(sets), sets)
        assert len(rig.store.status().warnings) == 2 * sets
        QUESTIONS[question](rig, kept)
        with Calls() as calls:
            QUESTIONS[question](rig, kept)
        taken.append(calls.number)
    few, many = taken
    assert many <= 11 * few, taken
