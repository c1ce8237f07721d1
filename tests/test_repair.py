"""Copies that were found missing or bad are put back, whatever happens meanwhile."""

import errno
import gc
import json
import os
import shutil

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from stor.disk.copy import SUMS_ATTRIBUTE
from stor.mirror.health import State
from stor.mirror.repair import RETRY_SECONDS, SETTLED_SECONDS
from tests.conformance import MIB, QuickFiles, descriptors, sample
from tests.support.host import LABELS, member
from tests.support.http import HeldPools, assert_one_line, no_bug_logged
from tests.support.rig import FaultyRig, Rig, digest_of

SIZES = [0, 5000, 3 * MIB]
ERRORS = ("EIO", "ENOSPC", "EROFS", "EACCES", "ENOENT", "short write", "hang")


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def stor(path, sets=(2,), **options):
    """A Stor as it is when it has begun."""
    rig = FaultyRig(path, sets, kind=QuickFiles, **options)
    rig.begin()
    return rig


def notes(rig):
    """What is noted to be repaired, on all disks."""
    return sorted(path for root in rig.roots for path in root.glob(".stor/repair/*"))


def quarantine(rig):
    """What is in quarantine, on all disks."""
    return sorted(
        path for root in rig.roots for path in root.glob(".stor/quarantine/*.dat.????????")
    )


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def assert_whole(rig, content, copies=2):
    """Every copy is good, and as old as the others; nothing is left of the repair."""
    paths = rig.copies(content)
    assert [path.read_bytes() for path in paths] == [content] * copies
    assert len({path.stat().st_mtime_ns for path in paths}) == 1
    assert {oct(path.stat().st_mode) for path in paths} == {oct(0o100644)}
    assert notes(rig) == rig.staged() == []
    assert rig.mirrors.repairs.waiting == 0


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_a_download_that_misses_a_copy_puts_it_back(quick_path, size, lost):
    rig = stor(quick_path)
    content = sample(size)
    rig.put(content)
    modified_ns = rig.copies(content)[0].stat().st_mtime_ns
    rig.clock.advance(1000)
    rig.copies(content)[lost].unlink()
    for _ in range(50):
        assert rig.get(content).body == content
        if len(rig.copies(content)) == 2:
            break
    assert_whole(rig, content)
    assert {path.stat().st_mtime_ns for path in rig.copies(content)} == {modified_ns}
    assert rig.mirrors.repairs.mended_total == 1


@pytest.mark.parametrize("size", [0, 100, 256 * 1024, 256 * 1024 + 1])
def test_a_copy_that_is_lost_again_is_put_back_again(quick_path, size):
    content = sample(size)
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles)
    rig.put(content)
    copies = rig.copies(content)
    for lost in (0, 1, 1, 0):
        copies[lost].unlink()
        for _ in range(20):  # which copy is asked for first is left to chance
            assert rig.get(content).body == content
        assert rig.copies(content) == copies
        rig.clock.advance(SETTLED_SECONDS)


def test_every_copy_has_block_sums_after_a_repair(quick_path):
    content = sample(3 * MIB)
    rig = FaultyRig(quick_path, (3,), kind=QuickFiles)
    rig.put(content)
    right = os.getxattr(rig.copies(content)[0], SUMS_ATTRIBUTE)
    lost, bare, _ = rig.copies(content)
    lost.unlink()
    os.removexattr(bare, SUMS_ATTRIBUTE)
    assert rig.put(content).status == 200
    assert [os.getxattr(copy, SUMS_ATTRIBUTE) for copy in rig.copies(content)] == [right] * 3


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_an_upload_puts_a_missing_copy_back_before_it_is_answered(quick_path, size, lost):
    rig = stor(quick_path, (2, 2))
    content = sample(size)
    paths = json.loads(rig.put(content).body)
    shutil.rmtree(rig.copies(content)[lost].parents[2])
    response = rig.put(content)
    assert response.status == 200
    assert json.loads(response.body) == paths
    assert_whole(rig, content)


@pytest.mark.parametrize("good", [0, 1, 2])
def test_one_good_copy_of_three_is_enough(quick_path, good):
    rig = stor(quick_path, (3,))
    content = sample(3 * MIB)
    rig.put(content)
    for index, path in enumerate(rig.copies(content)):
        if index != good:
            damage(path)
    rig.mirrors.repairs.report(digest_of(content), rig.mirrors.mirrors[0])
    assert_whole(rig, content, 3)
    assert len(quarantine(rig)) == 2


def test_a_hundred_samples(quick_path):
    rig = stor(quick_path, (2, 2))
    contents = [sample(1000, n) for n in range(100)]
    for n, content in enumerate(contents):
        rig.put(content)
        rig.copies(content)[n % 2].unlink()
    for content in contents:
        rig.mirrors.repairs.report(digest_of(content), _mirror_of(rig, content))
    for content in contents:
        assert_whole(rig, content)
    assert rig.mirrors.repairs.mended_total == 100


def _mirror_of(rig, content):
    root = str(rig.copies(content)[0].parents[3])
    return next(m for m in rig.mirrors.mirrors if root in {member.root for member in m.members})


def test_one_repair_at_a_time_on_each_mirror(quick_path):
    first = stor(quick_path, (2, 2))
    contents = [sample(1000, n) for n in range(20)]
    for content in contents:
        first.put(content)
        first.copies(content)[0].unlink()
    workers = HeldPools()
    rig = Rig(quick_path, (2, 2), worker=workers)
    for content in contents:
        rig.mirrors.repairs.report(digest_of(content), _mirror_of(rig, content))
    held = {id(m): [m._workers.readers, m._workers.writers] for m in rig.members}
    most = 0
    while workers.held:
        for mirror in rig.mirrors.mirrors:
            reading = sum(len(held[id(m)][0].held) for m in mirror.members)
            most = max(most, reading)
            assert reading <= 1
        workers.step()
    assert most == 1
    for content in contents:
        assert_whole(rig, content)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_what_cannot_be_repaired_now_is_repaired_later(quick_path, error):
    rig = stor(quick_path)
    content = sample(5000)
    rig.put(content)
    lost, good = rig.copies(content)
    lost.unlink()
    rig.disks["set0/disk0"].fail_always("write", error)
    while not rig.mirrors.repairs.waiting:
        assert rig.get(content).body == content
    assert [path.name for path in notes(rig)] == [str(digest_of(content))] * 2
    for _ in range(3):
        rig.rounds(1)
        assert rig.get(content).body == content
        assert rig.mirrors.repairs.waiting == 1
    assert good.read_bytes() == content
    rig.heal()
    rig.clock.advance(RETRY_SECONDS)
    rig.rounds(1)
    assert_whole(rig, content)


def test_what_is_to_be_repaired_outlives_the_process(quick_path):
    contents = [sample(1000, n) for n in range(10)]
    first = stor(quick_path)
    for content in contents:
        first.put(content)
        first.copies(content)[1].unlink()
    first.disks["set0/disk1"].fail_always("write", errno.ENOSPC)
    for content in contents:
        first.mirrors.repairs.report(digest_of(content), first.mirrors.mirrors[0])
    assert first.mirrors.repairs.waiting == 10
    assert len(notes(first)) == 20
    (first.roots[0] / ".stor/repair/README").write_bytes(b"not a note")
    rig = stor(quick_path)
    (first.roots[0] / ".stor/repair/README").unlink()
    for content in contents:
        assert_whole(rig, content)
    assert stor(quick_path).mirrors.repairs.mended_total == 0


def test_an_upload_over_a_copy_that_cannot_be_put_back_says_so(quick_path):
    rig = stor(quick_path)
    content = sample(5000)
    rig.put(content)
    rig.copies(content)[0].unlink()
    rig.disks["set0/disk0"].fail_always("write", errno.ENOSPC)
    assert_one_line(rig.put(content), 507)
    rig.heal()
    rig.disks["set0/disk0"].fail_always("write", errno.EIO)
    assert_one_line(rig.put(content), 503)
    rig.heal()
    assert rig.put(content).status == 200
    assert_whole(rig, content)


class Forgetful(QuickFiles):
    """A disk on which, once it is told so, the first sample can be opened and none after it."""

    allowed = None

    def open_to_read(self, path, directory_fd=None):
        if self.allowed is not None and path.endswith(".dat"):
            if not self.allowed:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self.allowed -= 1
        return super().open_to_read(path, directory_fd)


def test_an_upload_is_not_answered_200_while_a_disk_that_is_online_has_not_said_what_it_has(
    quick_path,
):
    """No memory twice in a row, in the examination of a copy that looked bad."""
    rig = FaultyRig(quick_path, (2,), kind=Forgetful)
    rig.begin()
    content = sample(5000)
    rig.put(content)
    damage(rig.copies(content)[1])
    rig.disks["set0/disk1"].allowed = 1
    response = rig.put(content)
    assert_one_line(response, 503)
    assert rig.members[1].root in response.text
    assert rig.members[1].health.state is State.ONLINE
    assert notes(rig)
    rig.disks["set0/disk1"].allowed = None
    rig.rounds(3)
    assert len(json.loads(rig.put(content).body)) == 2
    assert_whole(rig, content)


_NONE_ANSWERED = (
    "no good copy of DIGEST is left on any disk that answered; disk0, disk1, disk2 did not answer"
)


def errors_of_a_repair(rig, content):
    """What a repair says as an error, with each disk as `diskN`."""
    with capturedLogs() as logs:
        rig.mirrors.repairs.report(digest_of(content), rig.mirrors.mirrors[0])
    said = [formatEvent(event) for event in logs if event["log_level"] is LogLevel.error]
    below = f"{rig.roots[0].parent}/"
    return [line.replace(below, "").replace(str(digest_of(content)), "DIGEST") for line in said]


@pytest.mark.parametrize("how", ["away", "refuses", "too busy"])
@pytest.mark.parametrize(
    ("silent", "said"),
    [
        ((), "no good copy of DIGEST is left on disk0, disk1, disk2"),
        ((0,), "no good copy of DIGEST is left on disk1, disk2; disk0 did not answer"),
        ((2,), "no good copy of DIGEST is left on disk0, disk1; disk2 did not answer"),
        ((0, 2), "no good copy of DIGEST is left on disk1; disk0, disk2 did not answer"),
        ((0, 1, 2), _NONE_ANSWERED),
    ],
)
def test_only_disks_that_answered_are_said_to_have_no_good_copy(quick_path, silent, said, how):
    rig = stor(quick_path, (3,))
    content = sample(5000)
    rig.put(content)
    for path in rig.copies(content):
        damage(path)
    for index in silent:
        files, health = rig.disks[f"set0/disk{index}"], rig.members[index].health
        if how == "away":
            health.probe_failed("gone")
        else:
            error = errno.EACCES if how == "refuses" else errno.EMFILE
            files.fail_always("open_to_read", error)
    assert errors_of_a_repair(rig, content) == [said]


def test_a_disk_that_cannot_open_its_good_copy_again_is_said_not_to_have_answered(quick_path):
    """Whichever call of a repair fails on it."""
    content = sample(5000)
    said = set()
    for n in range(len(_repair_calls(quick_path / "counted", content))):
        rig = stor(quick_path / str(n))
        rig.put(content)
        damage(rig.copies(content)[1])
        rig.disks["set0/disk0"].fail_at(n, errno.EACCES)
        said.update(errors_of_a_repair(rig, content))
    assert said == {"no good copy of DIGEST is left on disk1; disk0 did not answer"}


def _repair_calls(path, content):
    rig = stor(path)
    rig.put(content)
    damage(rig.copies(content)[1])
    calls = rig.disks["set0/disk0"].calls
    calls.clear()
    errors_of_a_repair(rig, content)
    return calls


def test_without_a_good_copy_nothing_is_moved(quick_path):
    rig = stor(quick_path)
    content = sample(5000)
    rig.put(content)
    for path in rig.copies(content):
        damage(path)
    before = [path.read_bytes() for path in rig.copies(content)]
    for _ in range(3):
        assert_one_line(rig.get(content), 500)
        rig.rounds(3)
        rig = stor(quick_path)
    assert [path.read_bytes() for path in rig.copies(content)] == before
    assert quarantine(rig) == []
    assert len(notes(rig)) == 2


@pytest.mark.parametrize("size", [5000, 3 * MIB])
def test_a_bad_copy_whose_good_one_is_away_is_repaired_when_that_comes_back(quick_path, size):
    rig = stor(quick_path)
    content = sample(size)
    rig.put(content)
    bad, good = rig.copies(content)
    damage(bad)
    rig.roots[1].rename(quick_path / "away")
    rig.probe()
    rig.get(content)  # a large one is cut, the first time
    assert_one_line(rig.get(content), 503)
    rig.rounds(3)
    assert bad.exists()
    (quick_path / "away").rename(rig.roots[1])
    rig.rounds(3)
    assert_whole(rig, content)
    assert good.read_bytes() == content


@pytest.mark.parametrize("size", [5000, 3 * MIB])
def test_what_is_posted_while_a_disk_is_away_is_on_that_disk_when_it_is_back(quick_path, size):
    rig = stor(quick_path)
    content = sample(size)
    rig.put(content)
    for path in rig.copies(content):
        damage(path)
    rig.roots[1].rename(quick_path / "away")
    rig.probe()
    rig.mirrors.repairs.report(digest_of(content), rig.mirrors.mirrors[0])
    rig.clock.advance(RETRY_SECONDS)
    response = rig.put(content)
    assert response.status == 201
    assert len(json.loads(response.body)) == 1
    (quick_path / "away").rename(rig.roots[1])
    rig.rounds(3)
    assert_whole(rig, content)


@pytest.mark.parametrize("state", [State.SUSPECT, State.READ_ONLY])
def test_a_disk_that_is_not_to_be_written_gets_its_copy_when_it_is(quick_path, state):
    rig = stor(quick_path)
    content = sample(5000)
    rig.put(content)
    rig.copies(content)[0].unlink()
    lacking, mark = member(rig, "set0/disk0"), rig.roots[0] / ".stor/read-only"
    if state is State.SUSPECT:
        for _ in range(3):
            lacking.health.operation_failed("a test")
    else:
        mark.touch()
        rig.probe()
    assert lacking.health.state is state
    rig.copies(content)[0].rename(quick_path / "aside")
    rig.get(content)
    (quick_path / "aside").rename(rig.roots[1] / digest_of(content).disk_path)
    rig.mirrors.repairs.report(digest_of(content), rig.mirrors.mirrors[0])
    assert len(rig.copies(content)) == 1
    mark.unlink(missing_ok=True)
    rig.rounds(3)
    assert_whole(rig, content)


class Unreadable(QuickFiles):
    """A disk on which one file, by its inode, has bad sectors."""

    bad = None

    def _before(self, name, args):
        if name == "read" and self.bad == os.fstat(args[0]).st_ino:
            self._raise(name, args, errno.EIO)
        return super()._before(name, args)


@pytest.mark.parametrize("size", [5000, 300_000, 3 * MIB])
@pytest.mark.parametrize("change", [-1, 1])
def test_an_upload_helps_where_one_copy_cannot_be_read_and_the_other_is_bad(
    quick_path, size, change
):
    rig = FaultyRig(quick_path, (2,), kind=Unreadable)
    content = sample(size)
    rig.put(content)
    unreadable, bad = rig.copies(content)
    rig.disks["set0/disk0"].bad = unreadable.stat().st_ino
    os.truncate(bad, size + change)
    # All blocks of one that is only too long are good.
    assert rig.put(content).status == (200 if size > 256 * 1024 and change > 0 else 201)
    assert_whole(rig, content)
    assert len(quarantine(rig)) == 2


@pytest.mark.parametrize("unreadable", [0, 1])
def test_an_upload_puts_back_a_copy_that_cannot_be_read(quick_path, unreadable):
    rig = FaultyRig(quick_path, (2,), kind=Unreadable)
    content = sample(5000)
    rig.put(content)
    rig.disks[LABELS[unreadable]].bad = rig.copies(content)[unreadable].stat().st_ino
    assert rig.put(content).status == 200
    assert_whole(rig, content)
    assert len(quarantine(rig)) == 1


@pytest.mark.parametrize("size", [5000, 3 * MIB])
def test_a_copy_that_cannot_be_read_twice_counts_as_bad(quick_path, size):
    rig = FaultyRig(quick_path, (2,), kind=Unreadable)
    content = sample(size)
    rig.put(content)
    bad = rig.copies(content)[1]
    rig.disks["set0/disk1"].bad = bad.stat().st_ino
    while not quarantine(rig):
        assert rig.get(content).body == content
    assert_whole(rig, content)
    (kept,) = quarantine(rig)
    assert kept.read_bytes() == content
    assert "Input/output error" in kept.with_name(f"{kept.name}.reason").read_text()


class Mending:
    """A repair that is begun on a pair with one bad copy, and what is true in the end."""

    def __init__(self, path, size, fault=None):
        self.rig = FaultyRig(path, (2,), kind=QuickFiles, threads=fault == "hang")
        self.path, self.content, self.fault = path, sample(size), fault
        assert self.rig.put(self.content).status == 201
        self.good, self.bad = self.rig.copies(self.content)
        damage(self.bad)
        self.damaged = self.bad.read_bytes()
        gc.collect()  # what earlier tests have left is not this one's
        gc.freeze()  # nor is it looked through again
        self.descriptors = descriptors()
        for files in self.rig.disks.values():
            files.calls.clear()

    def arm(self, label, n):
        if self.fault == "hang":
            self.rig.hang(label, n)
        elif self.fault == "short write":
            self.rig.disks[label].short_write_at(n)
        else:
            self.rig.disks[label].fail_at(n, getattr(errno, self.fault))

    def run(self):
        self.rig.mirrors.repairs.report(digest_of(self.content), self.rig.mirrors.mirrors[0])

    def assert_mended(self):
        assert self.good.read_bytes() == self.content
        assert not self.bad.exists() or self.bad.read_bytes() in (self.damaged, self.content)
        self.rig.heal()
        self.rig.rounds(4)
        for _ in range(10):  # a repair that was told of no good copy goes on when one is seen
            self.rig.get(self.content)
        # Forgetting a repair may have failed; then the next start finds nothing to do.
        self.rig = stor(self.path)
        assert self.rig.mirrors.repairs.mended_total == 0
        assert_whole(self.rig, self.content)
        assert [path.read_bytes() for path in quarantine(self.rig)] == [self.damaged]
        assert descriptors() == self.descriptors


@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.parametrize("size", [5000, 300_000])
def test_every_call_of_a_repair_may_fail(quick_path, size, fault, figures):
    whole = Mending(quick_path / "whole", size)
    whole.run()
    whole.assert_mended()
    for label in LABELS[:2]:
        counted = Mending(quick_path / label, size)
        counted.run()
        for n in range(len(counted.rig.disks[label].calls)):
            path = quick_path / f"{label}-{n}"
            mending = Mending(path, size, fault)
            mending.arm(label, n)
            mending.run()
            try:
                mending.assert_mended()
            except BaseException as error:
                error.add_note(f"{fault} at call {n} of {label}: {mending.rig.disks[label].failed}")
                raise
            shutil.rmtree(path)
            figures["repairs with one fault"] += 1


def test_a_repair_that_the_service_begins_with_is_not_waited_for(quick_path):
    """The notes of a disk are read at the start; the repairs go on beside the requests."""
    content = sample(5000)
    first = stor(quick_path)
    first.put(content)
    first.copies(content)[0].unlink()
    first.disks["set0/disk0"].fail_always("write", errno.ENOSPC)
    first.mirrors.repairs.report(digest_of(content), first.mirrors.mirrors[0])
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles, threads=True)
    rig.hang("set0/disk0", 4)
    begun = []
    Deferred.fromCoroutine(rig.mirrors.begin()).addBoth(begun.append)
    rig.clock.advance(10)
    assert begun == [None]
    rig.heal()
    rig.rounds(2)
    assert_whole(rig, content)
