"""The index's walks as jobs: shown, paused, kept over restarts, asked for."""

import errno

import pytest
from twisted.internet.defer import Deferred

from stor.jobs.job import Rate
from stor.jobs.kind import Refused
from tests.conformance import QuickFiles, sample
from tests.support.http import no_bug_logged
from tests.support.jobs import KeptJobs, pass_seconds, view, views
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import FaultyRig, digest_of
from tests.test_rebuild import place

SAMPLES = [sample(100, n) for n in range(300)]


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Threads:
    """The threads that learn names are a test's to release; all others do their work at once."""

    def __init__(self):
        self.held = HeldPool()

    def __call__(self, name):
        return self.held if name.startswith("names /") else InlinePool()


def older(path, threads, kept=None, contents=SAMPLES):
    """A set of one disk that the older Stor has filled, just begun: the rig and its jobs."""
    place(path / "set0/disk0", contents)
    return begun(path, threads, kept)


def begun(path, threads, kept=None):
    rig = FaultyRig(path, (1,), kind=QuickFiles, learner=threads)
    jobs = (kept or KeptJobs()).begin(rig)
    Deferred.fromCoroutine(rig.mirrors.probe())
    jobs.resume()
    return rig, jobs


def release(rig, jobs, threads, until):
    for _ in range(3000):
        if until():
            return
        threads.held.release(1)
        rig.clock.advance(0.1)
        jobs.resume()
    raise AssertionError("it never came to that")


def walk(jobs):
    return [one for one in views(jobs) if one["kind"] == "walk"][-1:]


def known(rig):
    mirror = rig.mirrors.mirrors[0]
    return lambda: rig.mirrors.names.known(mirror)


def test_the_first_walk_is_a_job_with_progress(quick_path):
    threads = Threads()
    rig, jobs = older(quick_path, threads)
    release(rig, jobs, threads, lambda: any(one["samples_done"] > 100 for one in walk(jobs)))
    (job,) = walk(jobs)
    assert (job["kind"], job["about"], job["state"]) == ("walk", rig.members[0].root, "running")
    assert job["done"] == pytest.approx(job["samples_done"] / len(SAMPLES), abs=0.1)
    assert job["samples_total"] == pytest.approx(len(SAMPLES), rel=0.2)
    release(rig, jobs, threads, known(rig))
    release(rig, jobs, threads, lambda: walk(jobs)[0]["state"] == "done")
    # But for what was walked in a moment, before it was a job.
    assert len(SAMPLES) * 0.8 < walk(jobs)[0]["samples_done"] <= len(SAMPLES)
    assert rig.mirrors.names.samples(rig.mirrors.mirrors[0]) == len(SAMPLES)


def test_a_walk_is_paused_and_goes_on_where_it_was_after_a_restart(quick_path):
    threads, kept = Threads(), KeptJobs()
    rig, jobs = older(quick_path, threads, kept)
    release(rig, jobs, threads, lambda: any(one["samples_done"] > 100 for one in walk(jobs)))
    number = walk(jobs)[0]["id"]
    with pytest.raises(Refused, match=f"cannot be cancelled: .* stor pause {number}"):
        jobs.cancel(number)
    jobs.pause(number)
    for _ in range(50):
        threads.held.release(1)
        pass_seconds(rig, 10)
        jobs.resume()
    assert walk(jobs)[0]["state"] == "paused"
    assert not known(rig)()
    Deferred.fromCoroutine(jobs.stop())
    done = walk(jobs)[0]["samples_done"]
    assert done < len(SAMPLES)

    threads = Threads()
    again, jobs = begun(quick_path, threads, kept)
    for _ in range(50):
        threads.held.release(1)
        pass_seconds(again, 10)
    assert walk(jobs)[0]["state"] == "paused"
    jobs.set_rate(number, Rate())
    jobs.go_on(number)
    release(again, jobs, threads, known(again))
    release(again, jobs, threads, lambda: walk(jobs)[0]["state"] == "done")
    assert len(SAMPLES) * 0.6 < walk(jobs)[0]["samples_done"] <= len(SAMPLES)  # none twice


def fails(rig):
    """Every call on the disk fails; what heals it."""
    disk = rig.disks["set0/disk0"]
    disk.fail_always("*", errno.EIO)
    return disk.heal


def is_lost(rig):
    """Nothing is mounted at its root; what brings it back."""
    root = rig.roots[0]
    away = root.rename(root.with_name("away"))
    return lambda: away.rename(root)


@pytest.mark.parametrize("trouble", [fails, is_lost])
def test_the_first_walk_waits_for_a_disk_in_trouble_and_learns_every_name(quick_path, trouble):
    threads = Threads()
    rig, jobs = older(quick_path, threads)
    release(rig, jobs, threads, lambda: any(one["samples_done"] > 100 for one in walk(jobs)))
    over = trouble(rig)
    for _ in range(20):
        threads.held.release(1)
        rig.probe()
        rig.clock.advance(1)
        jobs.resume()
    assert walk(jobs)[0]["state"] == "waiting"
    assert not known(rig)()
    assert walk(jobs)[0]["samples_done"] < len(SAMPLES)
    over()
    for _ in range(30):
        threads.held.release(1)
        rig.probe()
        rig.clock.advance(1)
    release(rig, jobs, threads, known(rig))
    release(rig, jobs, threads, lambda: walk(jobs)[-1]["state"] == "done")
    assert rig.mirrors.names.samples(rig.mirrors.mirrors[0]) == len(SAMPLES)


def test_a_walk_that_is_asked_for_finds_what_was_put_there_by_hand(quick_path):
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles)
    jobs = KeptJobs().begin(rig)
    rig.rounds(2)
    assert known(rig)()
    assert walk(jobs) == []
    new = sample(500, "by hand")
    for root in rig.roots:
        place(root, [new])
    assert rig.get(new).status == 404
    asked = jobs.kinds["walk"].ask([rig.members[0].root])
    assert [job.kind for job in asked] == ["walk"]
    pass_seconds(rig, 5)
    assert view(jobs)["state"] == "done"
    assert rig.get(new).body == new


def test_a_walk_that_is_asked_for_in_the_middle_of_one_begins_anew(quick_path):
    threads = Threads()
    rig, jobs = older(quick_path, threads)
    release(rig, jobs, threads, lambda: any(one["samples_done"] > 200 for one in walk(jobs)))
    late = next(one for one in (sample(9, n) for n in range(9999)) if str(digest_of(one)) < "01")
    place(rig.roots[0], [late])
    first = walk(jobs)[0]["id"]
    assert [job.id for job in jobs.kinds["walk"].ask()] == [first]
    release(rig, jobs, threads, lambda: known(rig)() and walk(jobs)[0]["state"] == "done")
    assert walk(jobs)[0]["samples_done"] == len(SAMPLES) + 1
    assert rig.get(late).body == late


def test_a_root_that_is_in_no_set_is_refused(quick_path):
    rig = FaultyRig(quick_path, (1,), kind=QuickFiles)
    with pytest.raises(Refused, match="/nowhere: in no set: expected a storage root"):
        KeptJobs().begin(rig).kinds["walk"].ask(["/nowhere"])
