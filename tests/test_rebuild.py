"""Rebuilding a disk: in batches with one sync, durable in order, kept over restarts, paced."""

import os
import shutil

import pytest
from twisted.internet.defer import Deferred

from stor.digest import Digest
from stor.disk.copy import SUMS_ATTRIBUTE
from stor.jobs.job import Rate
from stor.jobs.jobs import JOBS_FILE
from stor.jobs.kind import Refused
from stor.jobs.rebuild import Cursor
from stor.jobs.refill import BATCH_BYTES, BATCH_SAMPLES
from stor.status import as_json
from tests.conformance import MIB, QuickFiles, sample, start, without_nameless_files
from tests.durability import (
    JUDGES,
    Recorded,
    assert_recorded_first,
    assert_survives_power_loss,
    history,
)
from tests.support.http import no_bug_logged
from tests.support.jobs import KeptJobs, pass_seconds, scrub, view, views
from tests.support.metrics import Exported
from tests.support.pools import HeldPool, SteppingPool
from tests.support.rig import FaultyRig, Rig, digest_of

SAMPLES = [sample(1000, n) for n in range(40)] + [b"", sample(300_000)]

#: The calls that wait for a disk's platter.
SYNCS = ("sync", "sync_all")


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def place(root, contents=SAMPLES):
    """What the older Stor has left on a disk."""
    for content in contents:
        path = root / digest_of(content).disk_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def half_filled(path, contents=SAMPLES, disks=2, kind=QuickFiles, **options):
    """A set whose first disk holds samples, and whose others are blank: none was compared."""
    place(path / "set0/disk0", contents)
    return FaultyRig(path, (disks,), kind=kind, **options)


def rebuilding(rig, *, kept=None, pool=None, **options):
    """The jobs of a Stor that has just begun, with the one that rebuilds."""
    return (kept or KeptJobs()).begin(rig, pool=pool, **options)


def has(rig, disk, contents=SAMPLES):
    """The samples that a disk has, whole."""
    paths = [(one, rig.roots[disk] / digest_of(one).disk_path) for one in contents]
    return [one for one, path in paths if path.exists() and path.read_bytes() == one]


def steps(rig, pool, number):
    for _ in range(number):
        pool.release(1)
        rig.clock.advance(0)


def step_until(rig, pool, reached):
    for _ in range(10_000):
        if reached():
            return
        steps(rig, pool, 1)
    raise AssertionError("it never came to that")


def copied(rig, least):
    """Whether the second disk has that many samples by now."""
    return lambda: len(has(rig, 1)) >= least


def test_a_batch_costs_four_syncs_however_many_samples_it_has(quick_path, figures):
    """One syncfs(2) and one fsync(2) for bodies and records, and the same for their names."""
    contents = [sample(200, n) for n in range(BATCH_SAMPLES)]
    rig = half_filled(quick_path, contents)
    rig.log.clear()
    jobs = rebuilding(rig, batch_directories=4096)
    assert view(jobs)["state"] == "done"
    assert len(has(rig, 1, contents)) == len(contents)
    calls = [call.name for disk, call in rig.log if disk == "set0/disk1" and call.name in SYNCS]
    whole = [place for place, name in enumerate(calls) if name == "sync_all"]
    assert len(whole) == 2
    assert [calls[place + 1] for place in whole] == ["sync"] * 2  # of the disk's own cache
    assert len(calls) <= 4 + 10  # a new segment of the journal, and the marker, have theirs
    figures["samples rebuilt"] += len(contents)
    figures["syncs for them"] += len(calls)


@pytest.mark.parametrize("files", [QuickFiles, without_nameless_files])
@pytest.mark.parametrize("shared", [True, False])
def test_a_copy_is_durable_when_it_is_told_of(tmp_path, files, shared):
    """Bodies and records, a sync, names, a sync; and no copy counts as put back before."""

    class Kind:
        def __call__(self, label, log):
            its = files(label, log)
            if not shared:
                its.type_of = lambda fd: 0x65735546  # FUSE
            return its

    place(tmp_path / "set0/disk0")
    stor = Recorded(tmp_path, 2, Kind())
    log, repairs = stor.log, stor.rig.mirrors.repairs
    put_back = repairs.put_back

    def told(digest, mirror, good, on):
        log.append(("", Answer(digest, len(by_digest[digest]))))
        put_back(digest, mirror, good, on)

    by_digest = {digest_of(content): content for content in SAMPLES}
    repairs.put_back = told
    KeptJobs().begin(stor.rig)
    events = history(stor.log)
    assert sum(event.kind == "answer" for event in events) == len(SAMPLES)
    for judge in [*JUDGES, assert_recorded_first]:
        judge(events, ["set0/disk1"])
    assert any(event.kind == "sync_all" for event in events) == shared


class Answer:
    """What `history` takes for the answer to a client."""

    name = "answer"

    def __init__(self, digest, size):
        self.path, self.args = digest.disk_path, [None, b"x" * size]


class Stepping(QuickFiles):
    """Lets a test go on after a name was made, before that is synced."""

    pause = staticmethod(lambda: None)

    def name(self, *args):
        super().name(*args)
        self.pause()


@pytest.mark.parametrize("copied_step", range(3))
def test_nobody_relies_on_a_name_that_is_not_durable_yet(tmp_path, copied_step):
    """A client stores what is just being copied: 200 comes after the sync of its name."""
    held = SteppingPool()
    place(tmp_path / "set0/disk0", SAMPLES[:1])
    stor = Recorded(tmp_path, 2, Stepping)
    files = stor.rig.members[1].disk.files
    KeptJobs().begin(stor.rig, pool=held)
    files.pause = held.pause
    while not has(stor.rig, 1, SAMPLES[:1]):
        held.release(1)
    held.release(copied_step)
    answers = [start(stor.put(SAMPLES[0]))]
    while held.held:
        held.release(1)
        stor.rig.clock.advance(0)
    ((_, created),) = answers[0]
    assert not created
    assert_survives_power_loss(history(stor.log), ["set0/disk1"])


def test_samples_are_read_and_written_in_the_order_in_which_they_lie(quick_path):
    rig = half_filled(quick_path, [sample(100, n) for n in range(300)])
    names = {}
    for path in rig.roots[0].glob("??/??/??/*"):
        names[str(path.relative_to(rig.roots[0]))] = path.stat().st_ino
    rebuilding(rig, batch_directories=4096)
    calls = [(disk, call.name, call.path) for disk, call in rig.log if call.path in names]
    for label, call in (("set0/disk0", "open_to_read"), ("set0/disk1", "name")):
        order = [names[path] for disk, name, path in calls if (disk, name) == (label, call)]
        assert len(order) == 300
        assert order == sorted(order)


def test_the_samples_with_one_copy_left_come_first(quick_path):
    rig = half_filled(quick_path, disks=3)
    place(rig.roots[1], SAMPLES[:20])
    jobs = rebuilding(rig, batch_directories=1)
    assert view(jobs)["state"] == "done"
    third = [call.path for disk, call in rig.log if (disk, call.name) == ("set0/disk2", "name")]
    names = [digest_of(content).disk_path for content in SAMPLES]
    order = [names.index(path) >= 20 for path in third if path in names]
    assert order == sorted(order, reverse=True)
    assert len(order) == len(SAMPLES)
    assert [member.complete for member in rig.members] == [True] * 3


def test_a_large_sample_is_streamed_and_never_leaves_more_than_a_batch_unsynced(quick_path):
    large, small = sample(3 * BATCH_BYTES + 12345), sample(1000)
    rig = half_filled(quick_path, [large, small])
    jobs = rebuilding(rig)
    assert (view(jobs)["state"], view(jobs)["mended"]) == ("done", 2)
    assert view(jobs)["bytes_done"] == len(large) + len(small)
    assert len(has(rig, 1, [large, small])) == 2
    unsynced = worst = 0
    for disk, call in rig.log:
        if disk == "set0/disk1" and call.name == "write":
            unsynced += len(call.args[-1])
            worst = max(worst, unsynced)
        elif disk == "set0/disk1" and call.name in SYNCS:
            unsynced = 0
    assert BATCH_BYTES / 2 < worst <= BATCH_BYTES
    path = rig.roots[1] / digest_of(large).disk_path
    assert os.getxattr(path, SUMS_ATTRIBUTE)


@pytest.mark.parametrize("size", [1000, BATCH_BYTES + MIB])
def test_a_damaged_source_is_copied_nowhere_and_noted(quick_path, size):
    """As ever: the disk is complete but for that name, which is tried again."""
    bad = sample(size, "bad")
    rig = half_filled(quick_path, [bad, *SAMPLES])
    path = rig.roots[0] / digest_of(bad).disk_path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    jobs = rebuilding(rig)
    job = view(jobs)
    assert (job["state"], job["not_mended"], job["mended"]) == ("done", 1, len(SAMPLES))
    assert job["errors"][0]["about"] == str(digest_of(bad))
    assert len(has(rig, 1)) == len(SAMPLES)
    assert not (rig.roots[1] / digest_of(bad).disk_path).exists()
    assert all(member.complete for member in rig.members)
    assert all(digest_of(bad) in member.noted for member in rig.members)


def test_of_two_givers_the_good_one_is_taken_where_the_other_is_damaged(quick_path):
    rig = half_filled(quick_path, disks=3)
    place(rig.roots[1])
    for content in SAMPLES[:5]:
        (rig.roots[0] / digest_of(content).disk_path).write_bytes(b"damaged")
    jobs = rebuilding(rig)
    assert (view(jobs)["state"], view(jobs)["not_mended"]) == ("done", 0)
    for disk in range(3):
        assert len(has(rig, disk)) == len(SAMPLES)


def test_what_is_stored_meanwhile_is_on_all_disks(quick_path):
    rig, pool = half_filled(quick_path), HeldPool()
    jobs = rebuilding(rig, pool=pool)
    new = [sample(500, f"new {n}") for n in range(30)]
    for content in [*new, *SAMPLES[:10]]:  # some of which are about to be copied
        steps(rig, pool, 3)
        assert rig.put(content).status in (200, 201)
    step_until(rig, pool, lambda: view(jobs)["state"] == "done")
    for disk in (0, 1):
        assert len(has(rig, disk, [*new, *SAMPLES])) == len(new) + len(SAMPLES)
    assert rig.staged() == []


@pytest.mark.parametrize("batch_directories", [1, 7, 4096])
def test_a_rebuild_that_is_killed_goes_on_and_ends_right(quick_path, batch_directories, figures):
    """Part K: killed in the middle, 20 times, with only what was kept at the last checkpoint."""
    kept, contents = KeptJobs(), [sample(300, n) for n in range(200)]
    rig = half_filled(quick_path, contents)
    # Every name that the process has given before it was killed has the right bytes.
    for killed in range(20):
        pool = HeldPool()
        rig = FaultyRig(quick_path, (2,), kind=QuickFiles)
        jobs = rebuilding(rig, kept=kept, pool=pool, batch_directories=batch_directories)
        steps(rig, pool, 11 * (killed + 1))
        if view(jobs)["state"] == "done":
            break
        jobs.keep()
        there = list(rig.roots[1].glob("??/??/??/*"))
        assert all(str(Digest.of(p.read_bytes())) == p.stem.lower() for p in there)
        figures["rebuilds killed"] += 1
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles)
    jobs = rebuilding(rig, kept=kept, batch_directories=batch_directories)
    assert view(jobs)["state"] == "done"
    assert len(views(jobs)) == 1
    assert all(member.complete for member in rig.members)
    assert len(has(rig, 1, contents)) == len(contents)
    assert rig.staged() == []


def test_a_restart_repeats_no_copy_and_no_directory_that_is_done(quick_path):
    kept, pool = KeptJobs(), HeldPool()
    rig = half_filled(quick_path)
    first = rebuilding(rig, kept=kept, pool=pool)
    step_until(rig, pool, copied(rig, 20))
    steps(rig, pool, 6)
    Deferred.fromCoroutine(first.stop())
    steps(rig, pool, 5)
    done = len(has(rig, 1))
    share = view(first)["done"]
    assert 0.3 < share < 1
    again = FaultyRig(quick_path, (2,), kind=QuickFiles)
    begin = len(again.log)
    jobs = rebuilding(again, kept=kept)
    assert view(jobs)["state"] == "done"
    names = {digest_of(content).disk_path for content in SAMPLES}
    read = [call.path for disk, call in again.log[begin:] if call.name == "open_to_read"]
    assert len([path for path in read if path in names]) == len(SAMPLES) - done
    listed = [c.path for d, c in again.log[begin:] if c.name == "list_inodes" and d.endswith("0")]
    assert 0 < sum(len(path or "") == 8 for path in listed) <= len(SAMPLES) - done + 2


def test_what_somebody_may_have_changed_is_compared_anew(quick_path):
    """A copy that goes away behind the cursor, while no Stor runs, is missed all the same."""
    kept, pool = KeptJobs(), HeldPool()
    rig = half_filled(quick_path, strange := SAMPLES)
    jobs = rebuilding(rig, kept=kept, pool=pool)
    step_until(rig, pool, copied(rig, 20))
    steps(rig, pool, 10)
    jobs.keep()
    assert Cursor.parse(kept.jobs[0]["cursor"], "others").first == ""
    shutil.rmtree(rig.roots[1] / ".stor/index")
    (lost,) = has(rig, 1)[:1]
    (rig.roots[1] / digest_of(lost).disk_path).unlink()
    again = FaultyRig(quick_path, (2,), kind=QuickFiles)
    assert view(rebuilding(again, kept=kept))["state"] == "done"
    assert len(has(again, 1, strange)) == len(strange)


def look(rig, jobs):
    """The disks are looked at, whatever the time."""
    Deferred.fromCoroutine(rig.mirrors.probe())
    jobs.resume()


def test_a_source_that_is_lost_in_the_middle_is_waited_for(quick_path):
    rig, pool = half_filled(quick_path), HeldPool()
    jobs = rebuilding(rig, pool=pool)
    step_until(rig, pool, copied(rig, 10))
    rig.roots[0].rename(rig.roots[0].with_name("away"))
    steps(rig, pool, 10)
    look(rig, jobs)
    job = view(jobs)
    assert job["state"] == "waiting"
    assert rig.members[0].root in job["reason"]
    assert not rig.members[1].complete
    rig.roots[0].with_name("away").rename(rig.roots[0])
    look(rig, jobs)
    assert view(jobs)["state"] == "running", "as soon as the disk is back"
    step_until(rig, pool, lambda: view(jobs)["state"] == "done")
    assert len(has(rig, 1)) == len(SAMPLES)


def test_a_target_that_is_held_read_only_is_waited_for(quick_path):
    rig, pool = half_filled(quick_path), HeldPool()
    jobs = rebuilding(rig, pool=pool)
    step_until(rig, pool, copied(rig, 10))
    (rig.roots[1] / ".stor/read-only").touch()
    rig.probe()
    step_until(rig, pool, lambda: view(jobs)["state"] == "waiting")
    assert view(jobs)["reason"] == f"{rig.members[1].root}: samples could not be put there"
    assert [member.complete for member in rig.members] == [True, False]
    assert len(has(rig, 1)) < len(SAMPLES)
    (rig.roots[1] / ".stor/read-only").unlink()
    rig.rounds(2)
    jobs.resume()
    step_until(rig, pool, lambda: view(jobs)["state"] == "done")
    assert rig.members[1].complete
    assert len(has(rig, 1)) == len(SAMPLES)


def test_a_torn_file_of_jobs_costs_nothing_but_the_way(quick_path):
    kept, pool = KeptJobs(), HeldPool()
    rig = half_filled(quick_path)
    jobs = rebuilding(rig, kept=kept, pool=pool)
    step_until(rig, pool, copied(rig, 20))
    jobs.keep()
    kept.data = kept.data[:-7]
    again = FaultyRig(quick_path, (2,), kind=QuickFiles)
    jobs = rebuilding(again, kept=kept)
    assert view(jobs)["state"] == "done"
    assert len(has(again, 1)) == len(SAMPLES)
    assert JOBS_FILE == "jobs.json"


def test_it_is_paused_and_resumed_and_cannot_be_cancelled(quick_path):
    rig, pool = half_filled(quick_path), HeldPool()
    jobs = rebuilding(rig, pool=pool)
    number = view(jobs)["id"]
    step_until(rig, pool, copied(rig, 5))
    with pytest.raises(Refused, match=f"cannot be cancelled: .* stor pause {number}"):
        jobs.cancel(number)
    jobs.pause(number)
    steps(rig, pool, 50)
    done = len(has(rig, 1))
    pass_seconds(rig, 600, 20)
    jobs.resume()
    steps(rig, pool, 50)
    assert len(has(rig, 1)) == done < len(SAMPLES)
    jobs.go_on(number)
    step_until(rig, pool, lambda: view(jobs)["state"] == "done")
    assert len(has(rig, 1)) == len(SAMPLES)


def test_a_rate_is_kept(quick_path):
    contents = [sample(10_000, n) for n in range(32)]
    rig = half_filled(quick_path, contents)
    kept, pool = KeptJobs(), HeldPool()
    jobs = rebuilding(rig, kept=kept, pool=pool, batch_directories=4096)
    jobs.set_rate(view(jobs)["id"], Rate(bytes_per_second=32_000))
    began = rig.clock.seconds()
    while view(jobs)["state"] != "done":
        pool.release()
        rig.clock.advance(0.01)
    assert rig.clock.seconds() - began == pytest.approx(10, rel=0.2)


def test_a_rebuild_comes_before_a_scrub_and_takes_its_disk(quick_path):
    rig, pool = half_filled(quick_path), HeldPool()
    jobs = rebuilding(rig, pool=pool)
    jobs.pause(view(jobs)["id"])
    steps(rig, pool, 5)
    scrub(jobs, [rig.members[0].root])
    steps(rig, pool, 3)
    assert {one["kind"]: one["state"] for one in views(jobs)} == {
        "rebuild": "paused",
        "scrub": "running",
    }
    jobs.go_on(1)
    steps(rig, pool, 3)
    assert {one["kind"]: one["state"] for one in views(jobs)} == {
        "rebuild": "running",
        "scrub": "waiting",
    }
    step_until(rig, pool, lambda: {one["state"] for one in views(jobs)} == {"done"})


def test_how_far_it_is_stands_in_the_status_and_in_the_metrics(quick_path):
    rig, pool, kept = half_filled(quick_path), HeldPool(), KeptJobs()
    rebuilding(rig, kept=kept, pool=pool)
    rig.reconfigure(work=kept.work.summary)
    step_until(rig, pool, copied(rig, 20))
    steps(rig, pool, 8)
    status = rig.store.status()
    (job,) = map(as_json, status.work.jobs)
    roots = " ".join(member.root for member in rig.members)
    assert (job["kind"], job["about"], job["state"]) == ("rebuild", roots, "running")
    blank = as_json(status.sets[0].disks[1])
    assert (blank["complete"], blank["compared"]) == (False, round(job["done"], 3))
    assert f"{job['done']:.0%} compared" in " ".join(status.warnings)
    exported = Exported(rig.request("GET", "/metrics").text)
    assert exported.value("stor_disk_rebuilding", root=rig.members[1].root) == 1
    ratio = exported.value("stor_disk_complete_ratio", root=rig.members[1].root)
    assert ratio == pytest.approx(job["done"], abs=0.001)
    assert 0 < status.work.at_risk < len(SAMPLES)


def test_nobody_has_a_job_where_all_disks_are_complete(tmp_path):
    rig = Rig(tmp_path, (2, 2))
    rig.rounds(3)
    assert rig.work.jobs.status() == []
