"""A scrub finds every copy that is bad, unreadable or missing, and puts it back."""

import errno
import itertools
import os
import shutil
from contextlib import suppress

import pytest

from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.disk.copy import SUMS_ATTRIBUTE
from stor.disk.syscalls import Syscalls
from stor.disk.verification import PART_BYTES
from tests.conformance import MIB, QuickFiles, descriptors, sample
from tests.support.http import HeldPools, no_bug_logged
from tests.support.jobs import KeptJobs, scrub, view, views
from tests.support.pools import HeldPool
from tests.support.rig import FaultyRig, digest_of
from tests.test_corruption import DAMAGES

SIZES = (0, 5, 100_000, 262_145, 3 * MIB)


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def stor(path, sets=(2,), **options):
    """A Stor as it is when it has begun, whose disks are complete."""
    rig = FaultyRig(path, sets, kind=QuickFiles, **options)
    rig.begin()
    return rig


def fill(rig, sizes=SIZES, seeds=(0,)):
    """Samples of these sizes."""
    contents = list(dict.fromkeys(sample(size, seed) for size in sizes for seed in seeds))
    for content in contents:
        assert rig.put(content).status == 201
    return contents


def alike(count):
    """Samples whose names begin alike."""
    contents = (sample(50, number) for number in itertools.count())
    chosen = (content for content in contents if str(digest_of(content)).startswith("77"))
    return list(itertools.islice(chosen, count))


def scrubbed(rig, *, batch_directories=1, **what):
    """Scrub all disks, or what is asked for: the jobs that did, all of them done."""
    jobs = KeptJobs().begin(rig, batch_directories=batch_directories)
    scrub(jobs, **what)
    for _ in range(20):
        rig.clock.advance(1)
    seen = views(jobs)
    assert [one["state"] for one in seen] == ["done"] * len(seen)
    return seen


def total(views, name):
    return sum(view[name] for view in views)


def assert_whole(rig, contents):
    for content in contents:
        assert [path.read_bytes() for path in rig.copies(content)] == [content] * 2
    assert rig.mirrors.repairs.waiting == 0
    assert not [
        risk for mirror in rig.mirrors.mirrors for risk in rig.mirrors.repairs.risks(mirror)
    ]


def test_a_scrub_of_what_is_right_reads_each_copy_once_and_changes_nothing(quick_path):
    rig = stor(quick_path, (2, 2))
    contents = fill(rig, seeds=range(4))
    before = {path: path.stat().st_ctime_ns for path in rig.samples()}
    with_descriptors = descriptors()
    views = scrubbed(rig)
    assert [view["about"] for view in views] == [member.root for member in rig.members]
    assert total(views, "samples_done") == 2 * len(contents)
    assert total(views, "bytes_done") == 2 * sum(map(len, contents))
    assert [view["samples_total"] for view in views] == [view["samples_done"] for view in views]
    for name in ("bad", "missing", "mended", "not_mended"):
        assert total(views, name) == 0
    assert {path: path.stat().st_ctime_ns for path in rig.samples()} == before
    assert descriptors() == with_descriptors


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_found_and_mended(quick_path, damage, size):
    rig = stor(quick_path)
    (content,) = fill(rig, (size,))
    first, second = rig.copies(content)
    DAMAGES[damage](first, second)
    views = scrubbed(rig, roots=[rig.members[0].root])
    assert total(views, "bad") + total(views, "missing") == 1
    assert (total(views, "mended"), total(views, "not_mended")) == (1, 0)
    assert_whole(rig, [content])


@pytest.mark.parametrize("asked", ["all", "one"])
def test_what_somebody_has_put_on_the_disks_by_hand_is_taken_in(quick_path, asked):
    rig = stor(quick_path)
    rig.rounds(2)
    by_hand = [sample(1000, seed) for seed in range(3)]
    names, (mirror,) = rig.mirrors.names, rig.mirrors.mirrors
    assert names.known(mirror)
    for content in by_hand:
        for root in rig.roots:
            path = root / digest_of(content).disk_path
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    assert [names.held(digest_of(content)) for content in by_hand] == [False] * 3
    what = {"sha": str(digest_of(by_hand[0]))} if asked == "one" else {}
    views = scrubbed(rig, **what)
    assert total(views, "bad") + total(views, "missing") == 0
    assert names.held(digest_of(by_hand[0])) is True
    rig.rounds(2)
    assert names.known(mirror)
    assert [names.held(digest_of(content)) for content in by_hand] == [True] * 3
    again = stor(quick_path)
    again.rounds(2)
    assert [again.mirrors.names.held(digest_of(content)) for content in by_hand] == [True] * 3


@pytest.mark.parametrize("disks", [[0], [1], [0, 1]])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("elsewhere", ["whole", "a copy is missing", "bad"])
def test_a_sample_that_another_set_has_whole_is_taken_off_and_put_back_nowhere(
    quick_path, disks, known, elsewhere
):
    """As a disk brings it back that was away for longer than journals reach."""
    rig = stor(quick_path, (2, 2))
    first = rig.mirrors.mirrors[0]
    first.draining = "these go to the other"
    contents = fill(rig, (50, 100_000, 3 * MIB))
    first.draining = None
    rig.rounds(2)
    theirs = [rig.copies(content) for content in contents]
    for content in contents:
        for disk in disks:
            path = rig.roots[disk] / digest_of(content).disk_path
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        if known:
            rig.mirrors.learning.stored(digest_of(content), first)
    for copies in theirs:
        if elsewhere == "a copy is missing":
            copies[0].unlink()
        elif elsewhere == "bad":
            for path in copies:
                path.write_bytes(b"bad")
    views = scrubbed(rig, roots=[first.members[0].root, first.members[1].root])
    ours = [path for path in rig.samples() if "/set0/" in str(path)]
    if elsewhere == "bad":
        assert len(ours) == 2 * len(contents)
        assert total(views, "duplicates") == 0
    else:
        assert not ours
        assert total(views, "duplicates") == len(contents)
        assert [path.exists() for copies in theirs for path in copies] == [True] * 6
        assert rig.mirrors.learning.wrong_total == 0
    for content in contents:
        assert rig.get(content).body == content


def lose(path):
    path.unlink()


def lose_with_directories(path):
    shutil.rmtree(path.parents[2])


@pytest.mark.parametrize("losing", [lose, lose_with_directories])
@pytest.mark.parametrize("scrubbed_disk", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_a_copy_that_is_missing_is_put_back_whichever_disk_is_scrubbed(
    quick_path, size, scrubbed_disk, losing
):
    rig = stor(quick_path)
    contents = fill(rig, (70, size, 80))
    losing(rig.copies(contents[1])[0])
    (job,) = scrubbed(rig, roots=[rig.members[scrubbed_disk].root])
    assert (job["missing"], job["bad"], job["mended"]) == (1, 0, 1)
    assert_whole(rig, contents)


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_copy_that_cannot_be_read_is_put_back(quick_path, size):
    rig = stor(quick_path)
    contents = fill(rig, (size,), seeds=range(2))
    path = rig.copies(contents[0])[0].relative_to(rig.roots[0])
    rig.disks["set0/disk0"].fail_file(str(path), errno.EIO)
    jobs = KeptJobs().begin(rig)
    scrub(jobs, roots=[rig.members[0].root])
    (job,) = views(jobs)
    assert (job["state"], job["bad"], job["not_mended"]) == ("done", 1, 1)
    (risk,) = rig.mirrors.repairs.risks(rig.mirrors.mirrors[0])
    assert (risk.digest, risk.good) == (digest_of(contents[0]), 1)
    assert rig.members[0].root in risk.reason
    rig.disks["set0/disk0"].heal()
    rig.rounds(3)
    assert_whole(rig, contents)


def test_two_scrubs_of_a_set_at_once_count_a_missing_copy_once(quick_path):
    contents = fill(stor(quick_path), (70, 80, 90))
    workers = HeldPools()
    three = lambda label: (workers(), workers(), workers())  # noqa: E731
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles, workers=three)
    rig.probe()
    for _ in range(20):
        workers.release()
        rig.clock.advance(0.1)
    rig.copies(contents[1])[0].unlink()
    jobs = KeptJobs().begin(rig, pool=workers())
    scrub(jobs)
    for _ in range(600):  # what one does waits for what the other does
        workers.step()
        rig.clock.advance(0.1)
    seen = views(jobs)
    assert [one["state"] for one in seen] == ["done"] * 2
    assert (total(seen, "missing"), total(seen, "mended")) == (1, 1)
    assert_whole(rig, contents)


def test_what_is_bad_on_all_disks_is_told_and_stays_at_risk_until_it_is_posted_again(quick_path):
    rig = stor(quick_path)
    contents = fill(rig, (5000,), seeds=range(3))
    for copy in rig.copies(contents[1]):
        DAMAGES["first bit"](copy, None)
    views = scrubbed(rig, roots=[rig.members[0].root])
    (job,) = views
    assert (job["bad"], job["mended"], job["not_mended"]) == (1, 0, 1)
    (error,) = job["errors"]
    assert error["about"] == str(digest_of(contents[1]))
    assert f"no good copy of {digest_of(contents[1])} is left" in error["reason"]
    (risk,) = rig.mirrors.repairs.risks(rig.mirrors.mirrors[0])
    assert (risk.digest, risk.good, risk.wanted) == (digest_of(contents[1]), 0, 2)
    assert rig.put(contents[1]).status == 201
    rig.rounds(2)
    assert_whole(rig, contents)


def set_sums(path, value):
    os.setxattr(path, SUMS_ATTRIBUTE, value)


def sums_of(content, named=None):
    """The block sums of a content, said to be those of another sample."""
    summer = BlockSummer()
    summer.update(content)
    return summer.finish(Digest.of(content if named is None else named)).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path, content: os.removexattr(path, SUMS_ATTRIBUTE),
        lambda path, content: set_sums(path, b"nothing of the kind"),
        lambda path, content: set_sums(path, sums_of(bytes(len(content)))),
        lambda path, content: set_sums(path, sums_of(bytes(len(content)), content)),
    ],
    ids=["none", "garbage", "another sample's", "wrong ones of this sample"],
)
def test_block_sums_that_are_missing_or_wrong_are_written_and_the_copy_stays(quick_path, spoil):
    rig = stor(quick_path)
    (content,) = fill(rig, (3 * MIB,))
    path = rig.copies(content)[0]
    with suppress(OSError):
        os.getxattr(path, SUMS_ATTRIBUTE)
    spoil(path, content)
    inode = path.stat().st_ino
    (job,) = scrubbed(rig, roots=[rig.members[0].root])
    assert (job["bad"], job["mended"]) == (0, 0)
    assert os.getxattr(path, SUMS_ATTRIBUTE) == sums_of(content)
    assert path.stat().st_ino == inode


def test_a_prefix_and_a_sha_are_read_and_nothing_else(quick_path):
    rig = stor(quick_path)
    contents = fill(rig, (5000,), seeds=range(40))
    for content in contents:
        DAMAGES["last bit"](rig.copies(content)[0], None)
    prefix = str(digest_of(contents[0]))[:1]
    meant = [content for content in contents if str(digest_of(content)).startswith(prefix)]
    views = scrubbed(rig, prefix=prefix, roots=[rig.members[0].root])
    assert total(views, "samples_done") == total(views, "mended") == len(meant)
    other = next(content for content in contents if content not in meant)
    (job,) = scrubbed(rig, sha=str(digest_of(other)).upper())
    assert (job["about"], job["mended"]) == (str(digest_of(other)), 1)
    assert_whole(rig, [*meant, other])
    left = [content for content in contents if content not in [*meant, other]]
    assert all(rig.copies(content)[0].read_bytes() != content for content in left)


def test_a_sample_that_nobody_has_is_a_job_that_fails(quick_path):
    rig = stor(quick_path)
    jobs = KeptJobs().begin(rig)
    scrub(jobs, sha="ab" * 32)
    job = view(jobs)
    assert job["state"] == "failed"
    assert job["reason"] == f"no disk that can be read has {'ab' * 32}"


def test_a_disk_that_is_not_complete_is_read_and_not_filled(quick_path):
    """What it lacks is copied by the comparison of its set; a scrub would do it one by one."""
    rig = stor(quick_path)
    contents = fill(rig, (5000,), seeds=range(3))
    second = stor(quick_path, read_only=[(0, 0)])  # so that the comparison waits
    second.mirrors.known_disks.told(second.members[0].root, complete=False)
    second.copies(contents[0])[0].unlink()
    jobs = KeptJobs().begin(second)
    scrub(jobs, [second.members[0].root])
    rebuild, job = views(jobs)
    assert (rebuild["state"], job["state"]) == ("waiting", "done")
    assert (job["samples_done"], job["missing"]) == (2, 0)


def test_what_is_in_memory_does_not_hide_what_the_disk_has(quick_path):
    """Before a copy is read, what the kernel has of it is dropped, and after it again."""
    rig = stor(quick_path)
    (content,) = fill(rig, (3 * MIB,))
    rig.log.clear()
    scrubbed(rig, roots=[rig.members[0].root])
    path = str(rig.copies(content)[0].relative_to(rig.roots[0]))
    calls = [call.name for label, call in rig.log if call.path == path and label == "set0/disk0"]
    reads = [n for n, name in enumerate(calls) if name == "read"]
    assert len(reads) == 3 * MIB // PART_BYTES
    assert calls.index("forget_cached") < reads[0]
    assert calls[reads[-1] :].count("forget_cached") == 1


def samples_read(rig, label="set0/disk0"):
    """Which samples were opened on a disk, in this order."""
    return [
        call.path[-68:-4]
        for where, call in rig.log
        if where == label and call.name == "open_to_read" and call.path.endswith(".dat")
    ]


def test_copies_are_read_in_the_order_in_which_they_lie(quick_path):
    rig = stor(quick_path)
    fill(rig, (50,), seeds=range(300))
    rig.log.clear()
    scrubbed(rig, batch_directories=1000, roots=[rig.members[0].root])
    read = samples_read(rig)
    inodes = [(rig.roots[0] / Digest.parse(name).disk_path).stat().st_ino for name in read]
    assert len(read) == 300
    assert inodes == sorted(inodes)


def test_a_scrub_that_is_killed_anywhere_goes_on_and_reads_every_sample(quick_path):
    """At each step the process ends without a word; another one goes on from what was kept."""
    contents = fill(stor(quick_path), (50,), seeds=range(20))
    names = {str(digest_of(content)).upper() for content in contents}
    step = 0
    while True:
        step += 1
        kept, pool, rig = KeptJobs(), HeldPool(), stor(quick_path)
        jobs = kept.begin(rig, pool=pool)
        scrub(jobs, roots=[rig.members[0].root])
        for _ in range(step):
            pool.release(1)
            rig.clock.advance(11)  # so that every step is kept
        if not pool.held:
            break
        before = samples_read(rig)
        following = stor(quick_path)
        again = KeptJobs(kept.data).begin(following)
        following.clock.advance(0)
        after = samples_read(following)
        (job,) = views(again)
        assert job["state"] == "done"
        assert set(before) | set(after) == names
        # The sample that was under way may be read again, and no other.
        assert len(set(before) & set(after)) <= 1
        assert job["samples_done"] == len(names)
    assert step > len(names)


def test_a_batch_that_is_another_after_a_restart_is_read_from_its_beginning(quick_path):
    """A directory that went draws one into the batch whose sample has a lower inode."""
    rig = stor(quick_path)
    contents = alike(6)
    paths = [[root / digest_of(content).disk_path for content in contents] for root in rig.roots]
    for of_disk in paths:
        for path in of_disk:
            path.parent.mkdir(parents=True)
        for path, content in reversed(list(zip(of_disk, contents, strict=True))):
            path.write_bytes(content)
    kept, pool = KeptJobs(), HeldPool()
    jobs = kept.begin(rig, pool=pool, batch_directories=4)
    scrub(jobs, roots=[rig.members[0].root])
    while view(jobs)["samples_done"] < 4:
        pool.release(1)
        rig.clock.advance(11)
    for of_disk in paths:
        shutil.rmtree(of_disk[0].parent)
    following = stor(quick_path)
    again = KeptJobs(kept.data).begin(following, batch_directories=4)
    following.clock.advance(0)
    assert view(again)["state"] == "done"
    left = {str(digest_of(content)).upper() for content in contents[1:]}
    assert set(samples_read(rig)) | set(samples_read(following)) >= left


def test_a_killed_scrub_mends_each_damage_once_and_counts_it_once(quick_path):
    contents = fill(stor(quick_path), (50,), seeds=range(6))
    for step in range(1, 30):
        rig = stor(quick_path)
        for content in contents:
            DAMAGES["first bit"](rig.copies(content)[0], None)
        kept, pool = KeptJobs(), HeldPool()
        jobs = kept.begin(rig, pool=pool)
        scrub(jobs, roots=[rig.members[0].root])
        for _ in range(step):
            pool.release(1)
            rig.clock.advance(11)
        following = stor(quick_path)
        again = KeptJobs(kept.data).begin(following)
        following.clock.advance(0)
        (job,) = views(again)
        assert (job["state"], job["bad"], job["mended"]) == ("done", 6, 6)
        assert_whole(following, contents)


def test_a_large_copy_is_read_in_parts_so_that_clients_come_between(quick_path):
    rig = stor(quick_path)
    (content,) = fill(rig, (5 * MIB,))
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    scrub(jobs, roots=[rig.members[0].root])
    parts = 0
    while pool.held:
        before = view(jobs)["bytes_done"]
        pool.release(1)
        rig.clock.advance(0)
        assert view(jobs)["bytes_done"] - before <= PART_BYTES
        parts += view(jobs)["bytes_done"] > before
        assert rig.get(content).body == content
    assert parts == 5
    assert isinstance(rig.disks["set0/disk0"], Syscalls)


def test_a_thousand_damages_and_losses_that_nobody_met_are_all_found_by_one_scrub(quick_path):
    rig = stor(quick_path)
    contents = fill(rig, (200,), seeds=range(1000))
    ways = [*DAMAGES.values(), lambda path, other: path.unlink()]
    for number, content in enumerate(contents):
        way, disk = ways[number % len(ways)], number // len(ways) % 2
        copies = rig.copies(content)
        way(copies[disk], copies[1 - disk])
    views = scrubbed(rig, batch_directories=4096)
    assert total(views, "bad") + total(views, "missing") == len(contents)
    assert (total(views, "mended"), total(views, "not_mended")) == (len(contents), 0)
    assert_whole(rig, contents)
    again = scrubbed(rig, batch_directories=4096)
    assert total(again, "bad") + total(again, "missing") == 0
    assert total(again, "samples_done") == 2 * len(contents)
