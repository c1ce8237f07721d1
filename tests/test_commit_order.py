"""No sample is acknowledged before every copy of it would outlive a power failure."""

import errno
import os
import random
from itertools import count
from posixpath import dirname

import pytest
from twisted.python.failure import Failure

from stor.digest import Digest
from tests.conformance import (
    MIB,
    QuickFiles,
    every_order,
    neighbours,
    put,
    release,
    result_of,
    sample,
    start,
    without_nameless_files,
)
from tests.durability import (
    JUDGES,
    Recorded,
    assert_durable_order,
    assert_recorded_first,
    assert_survives_power_loss,
    history,
)
from tests.support.pools import HeldPool, SteppingPool
from tests.support.rig import AUTHORIZATION, request_bytes

BODIES = {
    "empty": b"",
    "small": sample(5000),
    "one piece": sample(100_000),
    "large": sample(3 * MIB),
}
FILES = {"nameless": QuickFiles, "named": without_nameless_files}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("disks", [1, 2, 3])
@pytest.mark.parametrize("directories", ["fresh", "by hand", "in use"])
def test_a_sample_is_durable_on_every_disk_when_it_is_answered(
    tmp_path, kind, body, disks, directories
):
    held, content = HeldPool(), BODIES[body]
    stor = Recorded(tmp_path, disks, FILES[kind], held)
    if directories == "by hand":
        for root in stor.rig.roots:
            (root / dirname(Digest.of(content).disk_path)).mkdir(parents=True)
    elif directories == "in use":
        first = start(put(stor.rig.store, content))
        held.release()
        assert first
        for path in stor.rig.copies(content):
            path.unlink()
        stor.log.clear()

    answer = start(stor.put(content))
    while held.held:
        assert not answer
        held.release(1)
    assert answer[0][1]
    stor.judge()


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_jobs_makes_no_difference(tmp_path, seed):
    rng, held = random.Random(seed), HeldPool()
    stor = Recorded(tmp_path, 3, worker=held)
    start(stor.put(sample(2 * MIB)))
    while held.held:
        release(held, rng.randrange(len(held.held)))
    stor.judge()


def test_no_201_is_sent_before_everything_is_synced(tmp_path):
    held, content = HeldPool(), sample(MIB + 1)
    stor = Recorded(tmp_path, 2, worker=held)
    connection = stor.rig.connect()
    path, headers = f"/{Digest.of(content)}", [("Authorization", AUTHORIZATION)]
    connection.send(request_bytes("POST", path, headers, content))
    while held.held:
        assert not connection.received
        held.release(1)
        connection.settle()
        if connection.received:
            stor.answered(content)
    assert connection.responses(["POST"])[0].status == 201
    stor.judge()


def test_directories_that_nobody_is_known_to_have_synced_are_synced(tmp_path):
    content = sample(1000)
    stor = Recorded(tmp_path, 2)
    for root in stor.rig.roots:
        (root / dirname(Digest.of(content).disk_path)).mkdir(parents=True)
    result_of(stor.put(content))
    events = stor.judge()
    for disk in stor.disks:
        synced = {e.subject for e in events if (e.kind, e.disk) == ("sync", disk)}
        assert synced > {".", *Digest.of(content).directories}


class Stepping(QuickFiles):
    """Lets a test interrupt a job between mkdir and link, and between link and fsync."""

    pause = staticmethod(lambda: None)

    def name(self, *args):
        self.pause()
        super().name(*args)
        self.pause()


def stepping(path, files=Stepping):
    """A Stor of one disk, all that its threads can be interrupted at, and the disk's calls."""
    held = SteppingPool()
    stor = Recorded(path, 1, files, held)
    calls = stor.rig.members[0].disk.files
    calls.pause = held.pause
    return stor, held, calls


@pytest.mark.parametrize("digits", [2, 4, 6])
def test_a_directory_that_another_upload_made_is_synced_in_every_order(tmp_path, digits):
    numbers = count()

    def scenario(choose):
        stor, held, _ = stepping(tmp_path / str(next(numbers)))
        answers = [start(stor.put(content)) for content in neighbours(digits)]
        while held.held:
            release(held, choose(len(held.held)))
        assert all(answers)
        stor.judge(answers=2)

    assert every_order(scenario) > 100


class Failing(Stepping):
    """Fails the next `times` calls `call` for `path`."""

    call, path, times = "", None, 0

    def _before(self, name, args):
        if self.times and name == self.call and self._path(name, args) == self.path:
            self.times -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_upload_that_fails_takes_no_directory_of_another_one_along(tmp_path):
    failing, lasting = neighbours(4)
    numbers = count()

    def scenario(choose):
        stor, held, files = stepping(tmp_path / str(next(numbers)), Failing)
        files.call, files.path, files.times = "sync", Digest.of(failing).directories[-1], 1
        fails = start(put(stor.rig.store, failing))
        lasts = start(stor.put(lasting))
        while held.held:
            release(held, choose(len(held.held)))
        assert isinstance(fails[0].value, Exception)
        assert lasts[0][1]
        stor.judge()
        assert not stor.rig.copies(failing)
        assert not (stor.rig.roots[0] / Digest.of(failing).directories[-1]).exists()

    assert every_order(scenario) > 100


def test_two_uploads_of_one_sample_are_both_durable_in_every_order(tmp_path):
    numbers = count()

    def scenario(choose):
        stor, held, _ = stepping(tmp_path / str(next(numbers)))
        answers = [start(stor.put(b"content")) for _ in range(2)]
        while held.held:
            release(held, choose(len(held.held)))
        assert sorted(created for ((_, created),) in answers) == [False, True]
        stor.judge(answers=2)

    assert every_order(scenario) > 5


@pytest.mark.parametrize("call", ["name", "sync"])
def test_what_one_upload_undoes_was_never_another_ones_answer(tmp_path, call):
    digest, numbers = Digest.of(b"content"), count()

    def scenario(choose):
        stor, held, files = stepping(tmp_path / str(next(numbers)), Failing)
        files.call, files.times = call, 1
        files.path = digest.disk_path if call == "name" else digest.directories[-1]
        answers = [start(stor.put(b"content")) for _ in range(2)]
        while held.held:
            release(held, choose(len(held.held)))
        acknowledged = [one for one in answers if not isinstance(one[0], Failure)]
        assert len(acknowledged) == 1
        stor.judge(answers=1)
        assert stor.rig.copies(b"content")

    assert every_order(scenario) > 5


@pytest.mark.parametrize("seed", range(100))
def test_what_one_upload_undoes_on_a_pair_was_never_another_ones_answer(tmp_path, seed):
    rng, held = random.Random(seed), HeldPool()
    stor = Recorded(tmp_path, 2, Failing, held)
    files = stor.rig.members[seed % 2].disk.files
    files.call, files.path, files.times = "name", Digest.of(b"content").disk_path, 1
    answers = [start(stor.put(b"content")) for _ in range(3)]
    while held.held:
        release(held, rng.randrange(len(held.held)))
    acknowledged = [one for one in answers if not isinstance(one[0], Failure)]
    assert len(acknowledged) >= 2
    stor.judge(answers=len(acknowledged))
    assert len(stor.rig.copies(b"content")) == 2


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("jobs", range(24))
def test_a_copy_that_is_put_back_is_durable_when_the_sample_counts_as_stored(tmp_path, jobs, lost):
    held = SteppingPool()
    stor = Recorded(tmp_path, 2, Stepping, held)
    digest, disk = Digest.of(b"content"), stor.rig.members[lost].disk
    start(put(stor.rig.store, b"content"))
    held.release()
    with disk.entered() as root_fd:
        disk.files.unlink(digest.disk_path, root_fd)
        disk.sync_directory(digest.directories[-1], root_fd)
    for member in stor.rig.members:
        member.disk.files.pause = held.pause
    answers = [start(stor.put(b"content"))]
    held.release(jobs)
    # Another one comes while the copy is being put back; its jobs are done first.
    answers.append(start(stor.put(b"content")))
    while held.held:
        release(held, -1)
    assert [created for ((_, created),) in answers] == [False, False]
    assert_survives_power_loss(history(stor.log), stor.disks)
    assert len(stor.rig.copies(b"content")) == 2


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("size", [5000, MIB + 1])
def test_what_takes_a_bad_copys_place_is_durable_when_it_is_answered(tmp_path, size, exchanges):
    stor, content = Recorded(tmp_path, 2), sample(size)
    result_of(put(stor.rig.store, content))
    for path in stor.rig.copies(content):
        path.write_bytes(b"bad")
    for member in stor.rig.members:
        if not exchanges:
            member.disk.files.fail_always("exchange", errno.EINVAL)
    stor.log.clear()
    assert result_of(stor.put(content))[1]
    stor.judge()
    assert [path.read_bytes() for path in stor.rig.copies(content)] == [content] * 2


@pytest.mark.parametrize("call", ["write", "set_modified", "sync", "name"])
def test_an_upload_that_moves_to_another_set_is_durable_there(tmp_path, call):
    stor = Recorded(tmp_path, 2, sets=2)
    for member in stor.rig.mirrors.mirrors[0].members:
        member.disk.files.fail_always(call, errno.EIO)
    result_of(stor.put(sample(2 * MIB)))
    stor.judge(disks=["set1/disk0", "set1/disk1"])
    assert len(stor.rig.samples()) == 2


@pytest.fixture(params=FILES)
def fresh(request, tmp_path):
    """The history of an upload to a pair whose directories are all new, and its disks."""
    stor = Recorded(tmp_path, 2, FILES[request.param])
    result_of(stor.put(sample(1000)))
    return stor.judge(), stor.disks


def moved(events, event, place):
    """The same events, but `event` comes before the one that is at `place`."""
    place -= events.index(event) < place
    rest = [other for other in events if other is not event]
    return [*rest[:place], event, *rest[place:]]


def refused(events, disks, judges=JUDGES):
    for judge in judges:
        with pytest.raises(AssertionError):
            judge(events, disks)


def test_the_judges_miss_no_sync_that_is_left_out(fresh):
    events, disks = fresh
    syncs = [place for place, event in enumerate(events) if event.kind == "sync"]
    assert len(syncs) == 2 * 5  # the file and four directories, on each disk
    for place in syncs:
        refused(events[:place] + events[place + 1 :], disks)


def test_no_sync_of_a_journal_can_be_left_out(fresh):
    events, disks = fresh
    for disk in disks:
        synced = [
            place
            for place, event in enumerate(events)
            if (event.kind, event.disk) == ("journal sync", disk)
        ]
        named = [i for i, event in enumerate(events) if event.kind == "name"]
        (last,) = [place for place in synced if place < named[0]][-1:]
        refused(events[:last] + events[last + 1 :], disks, [assert_recorded_first])
        refused(moved(events, events[last], named[-1] + 1), disks, [assert_recorded_first])


def test_the_judges_refuse_an_answer_before_any_sync(fresh):
    events, disks = fresh
    for place, event in enumerate(events):
        if event.kind == "sync":
            refused(moved(events, events[-1], place), disks)


def test_the_judges_refuse_a_name_before_its_file_is_synced(fresh):
    events, disks = fresh
    for name in [event for event in events if event.kind == "name"]:
        synced = [i for i, e in enumerate(events) if (e.kind, e.subject) == ("sync", name.subject)]
        refused(moved(events, name, synced[0]), disks)


def test_the_judges_refuse_a_file_that_is_changed_after_its_sync(fresh):
    events, disks = fresh
    for change in [event for event in events if event.kind in ("write", "set_modified")]:
        names = [i for i, e in enumerate(events) if e.kind == "name" and e.disk == change.disk]
        refused(moved(events, change, names[0]), disks)


def test_the_order_refuses_a_name_before_the_other_copy_is_synced(fresh):
    events, disks = fresh
    names = [event for event in events if event.kind == "name"]
    synced = [i for i, e in enumerate(events) if e.kind == "sync" and "file" in e.subject]
    refused(moved(events, names[0], synced[-1]), disks, [assert_durable_order])


def test_the_judges_refuse_a_copy_that_is_missing_on_one_disk(fresh):
    events, disks = fresh
    for disk in disks:
        refused([event for event in events if event.disk != disk], disks)
