"""Sets are drained, and evened out, while they are used; whatever comes in between."""

import itertools
import os
import random
from functools import partial
from pathlib import Path

import pytest
from twisted.logger import capturedLogs

from stor.digest import Digest
from stor.disk.identity import KnownDisks
from stor.disk.loading import Loaded
from stor.errors import Gone
from stor.jobs.job import Rate
from stor.jobs.kind import Refused
from stor.jobs.rebalance import _Level, evened
from stor.mirror.move import Moves
from tests.conformance import MIB, QuickFiles, result_of, sample, start
from tests.support.http import no_bug_logged
from tests.support.jobs import KeptJobs, pass_seconds, view, views
from tests.support.pools import HeldPool
from tests.support.rig import FaultyRig, digest_of

CONTENTS = [sample(1000 + n, n) for n in range(12)] + [sample(300_000), sample(MIB, 1), b""]


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def begin(path, sets=(2, 2), **options):
    rig = FaultyRig(path, sets, **{"kind": QuickFiles, **options})
    rig.begin()
    for _ in range(4):
        rig.clock.pump([0] * 20)
        rig.rounds(1)
    return rig


def fill(rig, contents=CONTENTS, only=0):
    """Have samples stored on one set."""
    for number, mirror in enumerate(rig.mirrors.mirrors):
        mirror.draining = "not now" if number != only else None
    for content in contents:
        assert rig.put(content).status == 201
    for mirror in rig.mirrors.mirrors:
        mirror.draining = None


@pytest.fixture
def rig(quick_path):
    rig = begin(quick_path)
    fill(rig)
    rig.probe()
    return rig


def roots(rig, number=0):
    return [member.root for member in rig.mirrors.mirrors[number].members]


def drain(jobs, rig, number=0, **more):
    return result_of(jobs.kinds["drain"].ask(roots(rig, number)[:1], **more))[0]


def run(rig, jobs, pool=None):
    """Let a job go on until nothing more happens."""
    for _ in range(400):
        rig.clock.advance(0)
        if pool is not None:
            pool.release()
    pass_seconds(rig, 3, 0.25)


def on(rig, number, content):
    """On how many disks of a set a sample is, with the right bytes."""
    paths = [member.root + "/" + Digest.of(content).disk_path for member in rig.members]
    files = [path for path in paths[2 * number : 2 * number + 2] if os.path.exists(path)]
    for path in files:
        with open(path, "rb") as file:
            assert file.read() == content
    return len(files)


def assert_drained(rig, contents=CONTENTS):
    for content in contents:
        assert (on(rig, 0, content), on(rig, 1, content)) == (0, 2)
        response = rig.get(content)
        assert (response.status, response.body) == (200, content)


def test_a_drained_set_has_nothing_left_and_can_be_taken_out(rig):
    kept = KeptJobs()
    jobs = kept.begin(rig)
    known = partial(KnownDisks, [roots(rig, 1)])
    assert known(rig.mirrors.known_disks.remembered()).left_out() == roots(rig)
    job = drain(jobs, rig)
    run(rig, jobs)
    assert_drained(rig)
    told = view(jobs)
    assert told["state"] == "done"
    assert told["about"] == " ".join(roots(rig))
    assert told["reason"] == "nothing is left: the set can be taken out of storage_pairs"
    assert (told["samples_done"], told["samples_total"]) == (len(CONTENTS), len(CONTENTS))
    assert told["bytes_done"] == sum(map(len, CONTENTS))
    assert not [name for root in roots(rig) for name in os.listdir(root) if name != ".stor"]
    rig.rounds(2)
    assert known(rig.mirrors.known_disks.remembered()).left_out() == []
    # Nothing new comes there, also after a restart, until somebody cancels it.
    again = KeptJobs(kept.data).begin(rig)
    for seed in range(10):
        rig.put(sample(500, seed))
        assert on(rig, 1, sample(500, seed)) == 2
    assert rig.store.status().sets[0].writable is False
    again.cancel(job.id)
    assert rig.store.status().sets[0].writable is True


def test_a_set_that_is_being_drained_gets_nothing_new_whatever_becomes_of_the_job(rig):
    kept, pool = KeptJobs(), HeldPool()
    jobs = kept.begin(rig, pool=pool)
    job = drain(jobs, rig)
    assert not rig.mirrors.mirrors[0].takes_samples
    jobs.pause(job.id)
    run(rig, jobs, pool)
    for mirror in rig.mirrors.mirrors:
        mirror.draining = None
    again = KeptJobs(kept.data).begin(rig, pool=pool)
    assert view(again)["state"] == "paused"
    assert not rig.mirrors.mirrors[0].takes_samples
    again.cancel(job.id)
    assert rig.mirrors.mirrors[0].takes_samples


REFUSED = {
    "a root in no set": (["/nowhere"], {}, "/nowhere: in no set: expected a storage root, one of"),
    "no other set": ([0, 1], {}, "no other set could take the samples: none is to be written"),
    "a set that is read-only": ([0], {"read_only": [(0, 1)]}, "disk1: it is read-only, so that"),
    "the others are read-only": ([0], {"read_only": [(1, 0)]}, "no other set could take"),
    "no room": ([0], {"reserve_bytes": 2**60}, "the other sets lack room: .* are needed, 0 B are"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drained_is_refused_in_one_line(quick_path, case):
    asked, options, reason = REFUSED[case]
    fill(begin(quick_path))
    rig = begin(quick_path, **options)
    jobs = KeptJobs().begin(rig)
    names = [roots(rig, one)[0] if isinstance(one, int) else one for one in asked]
    for order in (jobs.kinds["drain"].ask, jobs.kinds["drain"].plan):
        with pytest.raises(Refused, match=reason) as refused:
            result_of(order(names))
        assert "\n" not in str(refused.value)
    assert not jobs.status()
    assert not any(mirror.draining for mirror in rig.mirrors.mirrors)


def test_a_drain_and_a_rebalance_contradict_each_other(rig):
    jobs = KeptJobs().begin(rig, pool=HeldPool())
    job = drain(jobs, rig)
    with pytest.raises(Refused, match=f"job {job.id} drains .*: wait for its end, or cancel"):
        result_of(jobs.kinds["rebalance"].ask())
    jobs.cancel(job.id)
    (job,) = result_of(jobs.kinds["rebalance"].ask())
    with pytest.raises(Refused, match=f"job {job.id} evens out the sets: cancel it first"):
        drain(jobs, rig)


def test_a_dry_run_says_what_it_takes_and_does_nothing(rig):
    jobs = KeptJobs().begin(rig)
    plan = jobs.kinds["drain"].plan
    (one,) = result_of(plan(roots(rig)))
    taken = sum(-(-len(content) // 4096) * 4096 for content in CONTENTS)
    assert one == {"roots": roots(rig), "samples": 15, "bytes": taken, "hours": 0.0}
    (slow,) = result_of(plan(roots(rig), Rate(bytes_per_second=100)))
    assert slow["hours"] == round(taken / 100 / 3600, 2)
    assert not jobs.status()
    assert not rig.mirrors.mirrors[0].draining


@pytest.mark.parametrize("seed", range(20))
def test_a_drain_that_is_killed_anywhere_goes_on(quick_path, seed):
    rng, kept = random.Random(seed), KeptJobs()
    rig = begin(quick_path)
    fill(rig)
    held, pool = HeldPool(), HeldPool()
    first = begin(quick_path, worker=lambda: held) if seed % 2 else rig
    jobs = kept.begin(first, pool=pool)
    asked = start(jobs.kinds["drain"].ask(roots(first)))
    steps = rng.randrange(5, 60)
    for _ in range(steps):
        held.release(1)
        pool.release(1)
        first.clock.advance(0.01)
    assert asked
    kept = KeptJobs(kept.data)
    for content in CONTENTS:
        assert 2 in (on(first, 0, content), on(first, 1, content))
    second = begin(quick_path)
    jobs = kept.begin(second)
    if not jobs.status():
        drain(jobs, second)
    run(second, jobs)
    assert view(jobs)["state"] == "done"
    assert_drained(second)
    assert not second.staged()


def test_what_cannot_be_moved_is_named_and_the_job_fails_and_goes_on(rig):
    bad = CONTENTS[3]
    for path in rig.copies(bad):
        path.write_bytes(b"rotten")
    jobs = KeptJobs().begin(rig)
    job = drain(jobs, rig)
    run(rig, jobs)
    told = view(jobs)
    assert told["state"] == "failed"
    assert told["reason"].startswith("1 samples and 0 other files are left: see its errors")
    assert [error["about"] for error in told["errors"]] == [str(digest_of(bad))]
    assert "no good copy" in told["errors"][0]["reason"]
    assert not rig.mirrors.mirrors[0].takes_samples
    # Posted again it is good again, wherever; then the job goes on.
    assert rig.put(bad).status in (200, 201)
    jobs.go_on(job.id)
    run(rig, jobs)
    assert view(jobs)["state"] == "done"
    assert_drained(rig)


def test_a_file_that_is_no_sample_is_named(rig):
    path = rig.roots[0] / "AA" / "BB" / "CC"
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("mine")
    jobs = KeptJobs().begin(rig)
    drain(jobs, rig)
    run(rig, jobs)
    assert view(jobs)["state"] == "failed"
    assert [e["about"] for e in view(jobs)["errors"]] == [f"{path}/notes.txt"]
    assert_drained(rig)


def test_one_bad_copy_is_kept_aside_and_the_other_moves(rig):
    bad = CONTENTS[3]
    rig.copies(bad)[0].write_bytes(b"rotten")
    jobs = KeptJobs().begin(rig)
    drain(jobs, rig)
    run(rig, jobs)
    assert view(jobs)["state"] == "done"
    assert_drained(rig)


@pytest.mark.parametrize("of_set", [0, 1])
def test_a_disk_that_is_lost_in_the_middle_is_waited_for(rig, of_set):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    drain(jobs, rig)
    for _ in range(6):
        pool.release(1)
        rig.clock.advance(0)
    member = rig.mirrors.mirrors[of_set].members[1]
    member.health.probe_failed("unplugged")
    run(rig, jobs, pool)
    assert view(jobs)["state"] == "waiting"
    assert "unplugged" in view(jobs)["reason"]
    for content in CONTENTS:
        assert rig.get(content).body == content
    member.probe()
    jobs.resume()
    run(rig, jobs, pool)
    assert view(jobs)["state"] == "done"
    assert_drained(rig)


def test_what_an_upload_brings_that_began_before_goes_too(rig):
    late = sample(5000, 99)
    incoming = rig.store.expect(Digest.of(late), len(late))
    rig.mirrors.mirrors[1].draining = "they go to the other"
    assert result_of(incoming.stored()) is None
    result_of(incoming.begin())
    jobs = KeptJobs().begin(rig)
    drain(jobs, rig)
    run(rig, jobs)
    assert view(jobs)["state"] == "waiting"
    assert "an upload that began before has not ended" in view(jobs)["reason"]
    result_of(incoming.add([late], last=True))
    assert result_of(incoming.commit())[1]
    result_of(incoming.leave())
    assert on(rig, 0, late) == 2
    jobs.resume()
    run(rig, jobs)
    assert view(jobs)["state"] == "done"
    assert (on(rig, 0, late), on(rig, 1, late)) == (0, 2)


def test_a_follower_is_told_that_it_is_behind_what_a_set_had_that_was_taken_out(quick_path):
    kept, rig = KeptJobs(), begin(quick_path)
    fill(rig, CONTENTS[:4], only=1)
    jobs = kept.begin(rig)
    landed = rig.mirrors.learning.landed
    end = landed.end
    assert len(result_of(landed.after(0, 10, rig.mirrors.mirrors)).records) == 4
    drain(jobs, rig, 1)
    run(rig, jobs)
    assert view(jobs)["state"] == "done"
    later = begin(quick_path)
    KeptJobs(kept.data).begin(later)
    told = result_of(later.mirrors.learning.landed.after(0, 10, later.mirrors.mirrors))
    assert len(told.records) == 4
    alone = begin(quick_path, (2,))
    KeptJobs(kept.data).begin(alone)
    landed = alone.mirrors.learning.landed
    with pytest.raises(Gone):
        result_of(landed.after(end - 1, 10, alone.mirrors.mirrors))
    alone.put(b"new")
    # Who had read to the end goes on.
    (new,) = result_of(landed.after(end, 10, alone.mirrors.mirrors)).records
    assert new.sha == digest_of(b"new").raw


def test_a_rate_is_kept(rig):
    jobs = KeptJobs().begin(rig)
    drain(jobs, rig, rate=Rate(samples_per_second=1.0))
    begun = rig.clock.seconds()
    while view(jobs)["state"] != "done" and rig.clock.seconds() < begun + 60:
        rig.clock.advance(0.05)
    assert 13 <= rig.clock.seconds() - begun <= 20


class Sized(QuickFiles):
    """Disks of a size, by the number of their set; what is free follows from their samples."""

    sizes = (0, 0, 0)

    def fstatvfs(self, fd):
        status = list(super().fstatvfs(fd)[:10])
        root = os.readlink(f"/proc/self/fd/{fd}").partition("/.stor")[0].partition(" (")[0]
        label = root[root.index("/set") + 1 :][:10]
        root = root[: root.index("/set") + 11]
        blocks = self.sizes[int(label[3])] // 4096
        used = 0
        for directory, _, names in os.walk(root):
            if "/.stor" not in directory:
                files = [os.path.getsize(os.path.join(directory, name)) for name in names]
                used += sum(-(-size // 4096) for size in files)
        free = blocks - used
        low = Sized.least.get(label, free)
        Sized.least[label] = min(low, free)
        status[1], status[2], status[3], status[4] = 4096, blocks, free, free
        return os.statvfs_result(status)


def test_a_rebalance_brings_the_fill_of_sets_together(quick_path):
    Sized.sizes, Sized.least = (2_000_000, 4_000_000, 4_000_000), {}
    rig = begin(quick_path, (2, 2, 2), kind=Sized, reserve_bytes=100_000)
    contents = [sample(9000, n) for n in range(120)]
    fill(rig, contents)
    rig = begin(quick_path, (2, 2, 2), kind=Sized, reserve_bytes=100_000, read_only=[(2, 0)])
    rig.probe()
    jobs = KeptJobs().begin(rig)
    (plan,) = result_of(jobs.kinds["rebalance"].plan())
    assert plan["roots"] == roots(rig)
    (job,) = result_of(jobs.kinds["rebalance"].ask())
    run(rig, jobs)
    told = view(jobs)
    assert told["state"] == "done"
    assert told["samples_done"] == pytest.approx(plan["samples"], rel=0.1)
    counts = [len([p for p in rig.samples() if f"/set{n}/disk0/" in str(p)]) for n in range(3)]
    assert sum(counts) == 120
    assert counts[2] == 0  # read-only: it takes nothing
    fills = [counts[n] * 12288 / Sized.sizes[n] for n in (0, 1)]
    assert abs(fills[0] - fills[1]) <= 0.03
    assert told["reason"].startswith("the sets are from ")
    for content in contents:
        assert rig.get(content).body == content
    assert not result_of(jobs.kinds["rebalance"].plan())
    assert job.id == told["id"]


def test_a_rebalance_of_sets_that_hold_less_than_a_batch_ends_at_two_percent(quick_path):
    Sized.sizes, Sized.least = (800_000, 800_000), {}
    rig = begin(quick_path, kind=Sized, reserve_bytes=1000)
    many = (sample(3000, n) for n in itertools.count())
    # They lie below one directory, so that a walk comes upon all of them at once.
    alike = (content for content in many if str(digest_of(content)).startswith("77"))
    contents = [*itertools.islice(alike, 100), sample(200_000)]
    fill(rig, contents)
    rig.probe()
    jobs = KeptJobs().begin(rig)
    result_of(jobs.kinds["rebalance"].ask())
    run(rig, jobs)
    assert view(jobs)["state"] == "done"
    used = [0, 0]
    for path in rig.samples():
        if path.parts[-5] == "disk0":
            used[int(path.parts[-6][-1])] += -(-path.stat().st_size // 4096) * 4096
    assert abs(used[0] - used[1]) <= 0.02 * 800_000
    assert sum(used) == 100 * 4096 + 49 * 4096
    for content in contents:
        assert rig.get(content).body == content


def test_what_is_about_as_full_is_left_alone(rig):
    jobs = KeptJobs().begin(rig)
    assert result_of(jobs.kinds["rebalance"].plan()) == []
    result_of(jobs.kinds["rebalance"].ask())
    run(rig, jobs)
    assert (view(jobs)["state"], view(jobs)["samples_done"]) == ("done", 0)


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_ends_and_brings_all_fills_within_two_percent(seed):
    rng = random.Random(seed)
    levels = []
    for number in range(rng.randrange(2, 9)):
        total = rng.randrange(10**9, 10**13)
        levels.append(_Level(number, total * rng.random(), total))
    used = sum(level.used for level in levels)
    before = [level.fill for level in levels]
    plan = evened(levels)
    assert bool(plan) == (max(before) - min(before) > 0.05)
    if plan:
        assert max(one.fill for one in plan) - min(one.fill for one in plan) <= 0.02
        assert sum(one.used for one in plan) == pytest.approx(used)


@pytest.mark.parametrize("kept", ["disk0", "disk1", "both"])
@pytest.mark.parametrize("how", ["scrub", "rebuild", "drain"])
def test_what_has_left_and_stayed_on_a_disk_is_removed_and_put_back_nowhere(quick_path, kept, how):
    """A disk that was away, or a crash before the copies were removed."""
    rig = begin(quick_path)
    fill(rig)
    disks = ("disk0", "disk1") if kept == "both" else (kept,)
    stayed = {p: p.read_bytes() for p in rig.samples() if p.parts[-5] in disks}
    moves, (first, second) = Moves(rig.mirrors), rig.mirrors.mirrors
    loaded = [Loaded(digest_of(content), content, 10**18) for content in CONTENTS]
    assert len(result_of(moves.move(first, second, loaded)).moved) == len(CONTENTS)
    for path, content in stayed.items():
        path.write_bytes(content)
    rig = begin(quick_path)
    if how == "rebuild":  # the other disk has lost what it knew of its names
        other = rig.members[1 if kept == "disk0" else 0]
        Path(other.root, ".stor/index/proof.json").write_bytes(b"torn")
        rig = begin(quick_path)
    jobs = KeptJobs().begin(rig)
    if how == "drain":
        drain(jobs, rig)
    elif how == "scrub":
        jobs.kinds["scrub"].ask(roots(rig))
    run(rig, jobs)
    rig.rounds(3)
    run(rig, jobs)
    left = [path for path in rig.samples() if "/set0/" in str(path)]
    if how == "rebuild":
        assert {path.parts[-5] for path in left} <= set(disks)
        return
    assert not left
    assert_drained(rig)
    assert {one["state"] for one in views(jobs) if one["kind"] == how} == {"done"}
    assert not any(one["missing"] or one["bad"] for one in views(jobs))
    assert rig.mirrors.learning.wrong_total == 0


def test_jobs_are_logged_in_one_line_when_they_end(rig):
    with capturedLogs() as logs:
        jobs = KeptJobs().begin(rig)
        drain(jobs, rig)
        run(rig, jobs)
    said = [event for event in logs if "drained" in str(event.get("log_format"))]
    assert len(said) == 1
