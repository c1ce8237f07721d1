"""The daily drill: a copy is damaged, served right, mended and cleared away; or that is said."""

import errno
import json

import pytest
from twisted.logger import LogLevel, capturedLogs, formatEvent

from stor.jobs.drills import MEND_SECONDS, PERIOD_SECONDS
from stor.jobs.jobs import SETTLE_SECONDS
from tests.conformance import QuickFiles
from tests.support.jobs import KeptJobs, pass_seconds, views
from tests.support.metrics import Exported
from tests.support.rig import FaultyRig


def stor(path, sets=(2, 1), kept=None):
    """A Stor that has begun, and its jobs once they are settled."""
    rig = FaultyRig(path, sets, kind=QuickFiles)
    rig.begin()
    kept = kept or KeptJobs()
    jobs = kept.begin(rig, drill_seconds=PERIOD_SECONDS)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    return rig, jobs, kept


def drills(jobs):
    return [one for one in views(jobs) if one["kind"] == "drill"]


def figures(rig):
    """All that a drill is not to change."""
    exported = Exported(rig.request("GET", "/metrics").text)
    names = (
        "stor_disk_damaged_copies",
        "stor_disk_restored_copies",
        "stor_disk_quarantined_copies",
    )
    roots = [member.root for member in rig.members]
    counted = [exported.value(f"{name}_total", root=root) for name in names for root in roots]
    samples = [rig.mirrors.names.samples(mirror) for mirror in rig.mirrors.mirrors]
    return counted, samples, rig.mirrors.repairs.mended_total, rig.mirrors.learning.landed.end


def test_each_set_with_two_copies_is_tried_once_a_day_and_nothing_stays(quick_path):
    rig, jobs, kept = stor(quick_path, (2, 1, 3))
    assert rig.put(b"a sample").status == 201
    before, held = figures(rig)[:3], rig.samples()
    with capturedLogs() as events:
        jobs.resume()
        pass_seconds(rig, 30)
    assert [one["state"] for one in drills(jobs)] == ["done", "done"]
    assert not [event for event in events if event["log_level"] > LogLevel.info]
    assert figures(rig)[:3] == before
    assert rig.samples() == held
    for root in rig.roots:
        assert not list(root.glob(".stor/quarantine/*"))
        assert not list(root.glob(".stor/repair/*"))
    assert rig.mirrors.repairs.waiting == 0
    pass_seconds(rig, PERIOD_SECONDS / 2, 600)
    jobs.resume()
    assert len(kept.work.drills.outcomes) == 2
    first = drills(jobs)
    pass_seconds(rig, PERIOD_SECONDS / 2, 600)
    jobs.resume()
    pass_seconds(rig, 30)
    again = drills(jobs)
    assert [one["state"] for one in again] == ["done", "done"]
    assert {one["id"] for one in again}.isdisjoint(one["id"] for one in first)
    assert KeptJobs(jobs.encode()).begin(rig).kinds["drill"].outcomes.keys() == set(
        rig.mirrors.mirrors[::2]
    )


def test_what_was_tried_by_a_clock_that_was_years_ahead_is_tried_again(quick_path):
    rig, jobs, _ = stor(quick_path, (2,))
    jobs.resume()
    pass_seconds(rig, 30)
    value = json.loads(jobs.encode())
    value["drills"] = {key: [at + 1e9, fault] for key, (at, fault) in value["drills"].items()}
    kept = KeptJobs(json.dumps(value).encode())
    jobs = kept.begin(rig, drill_seconds=PERIOD_SECONDS)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    pass_seconds(rig, 30)
    (outcome,) = kept.work.drills.outcomes.values()
    assert outcome.at <= rig.wall_seconds()


def test_a_set_that_does_not_mend_is_an_error_a_warning_and_a_figure(quick_path):
    rig, jobs, kept = stor(quick_path, (2,))
    for files in rig.disks.values():
        files.fail_always("exchange", errno.EPERM)
    rig.reconfigure(work=kept.work.summary)
    with capturedLogs() as events:
        jobs.resume()
        pass_seconds(rig, MEND_SECONDS + 5)
    (job,) = drills(jobs)
    assert job["state"] == "failed"
    assert job["reason"].endswith(": a damaged copy was not mended")
    errors = [formatEvent(event) for event in events if event["log_level"] is LogLevel.error]
    assert [line for line in errors if line.startswith("Drill on ")] == errors
    (warning,) = [line for line in rig.store.status().warnings if "drill" in line]
    assert "the daily drill failed, damage may not be mended" in warning
    assert rig.request("GET", "/status").status == 200
    assert kept.work.drills.outcomes[rig.mirrors.mirrors[0]].fault == job["reason"]
    assert rig.samples() == []


@pytest.mark.parametrize("away", [True, False])
def test_a_set_that_is_not_whole_is_not_tried(quick_path, away):
    rig, jobs, _ = stor(quick_path, (2,))
    if away:
        rig.roots[0].rename(quick_path / "away")
    else:
        (rig.roots[0] / ".stor/read-only").touch()
    rig.probe()
    jobs.resume()
    assert drills(jobs) == []
