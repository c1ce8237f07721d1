"""Uploads that wait at the same time share one sync of a disk, and lose nothing by it."""

import errno
import random
import shutil
import subprocess
from functools import partial

import pytest

from stor.disk.syscalls import Syscalls
from stor.errors import NoRoom, Unavailable
from stor.mirror.group_commit import (
    REST_SECONDS,
    STUCK_SECONDS,
    UNWRITTEN_BYTES,
    WAITING_LIMIT,
    Alone,
    GroupCommit,
    Step,
    reports_errors,
    unwritten_bytes,
)
from stor.mirror.small_writes import SMALL_BYTES
from stor.threads import Busy
from tests.conformance import (
    QuickFiles,
    descriptors,
    neighbours,
    release,
    result_of,
    sample,
    start,
    without_nameless_files,
)
from tests.durability import JUDGES, Recorded, history
from tests.support.pools import HeldPool, InlineOutcomes, InlinePool

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT)
#: No small body: those have rounds of their own.
SIZE = SMALL_BYTES + 1
CONTENTS = [*neighbours(4, SIZE), *(sample(SIZE, n) for n in range(3))]


class Shared(Recorded):
    """A Stor whose uploads share syncs; what they do waits until the test releases it."""

    def __init__(self, path, disks=2, files=QuickFiles, sets=1):
        self.held, self.unwritten = HeldPool(), 0
        super().__init__(path, disks, files, sets=sets, commits=self._commits)

    def _commits(self, disk):
        return GroupCommit(
            Alone(disk, InlinePool()),
            self.held,
            lambda: self.unwritten,
            InlineOutcomes(),
            lambda: self.rig.clock.seconds(),  # noqa: PLW0108 the rig comes later
        )

    def put_all(self, contents=CONTENTS, choose=lambda jobs: 0):
        """Put all contents at once: what becomes of each."""
        answers = [start(self.put(content)) for content in contents]
        while self.held.held:
            release(self.held, choose(len(self.held.held)))
        return [answer for (answer,) in answers]

    def called(self, name):
        """How often a system call was made, on all disks."""
        return sum(call.name == name for _, call in self.log)


@pytest.mark.parametrize("files", [QuickFiles, without_nameless_files])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("disks", [1, 2, 3])
def test_uploads_that_share_a_sync_are_durable_when_they_are_answered(tmp_path, files, seed, disks):
    stor = Shared(tmp_path, disks, files)
    answers = stor.put_all(choose=random.Random(seed).randrange)
    assert [created for _, created in answers] == [True] * len(CONTENTS)
    stor.judge(answers=len(CONTENTS))
    assert stor.called("sync_all") > 0


def test_a_group_costs_one_sync_each_time(tmp_path):
    stor = Shared(tmp_path, 1)
    stor.put_all([sample(SIZE, n) for n in range(100)])
    # The first one was alone; the others are staged together, and named together.
    assert stor.called("sync_all") == 2
    assert stor.called("sync") <= 2 * 5 + stor.called("sync_all")


def test_one_alone_syncs_what_is_its_own(tmp_path):
    stor = Shared(tmp_path)
    stor.put_all(CONTENTS[:1])
    assert stor.called("sync_all") == 0
    assert sum(event.kind == "sync" for event in history(stor.log)) == 2 * 5


def test_a_large_one_does_not_have_others_wait_for_its_bytes(tmp_path):
    stor = Shared(tmp_path)
    large, small = sample(3_000_000), sample(SIZE)
    answers = [start(stor.put(large)), start(stor.put(small))]
    events = history(stor.log)
    written = {event.subject for event in events if event.kind == "write"}
    assert sum(event.size for event in events if event.kind == "write") == 2 * len(large)
    assert {event.subject for event in events if event.kind == "sync"} >= written
    stor.held.release()
    assert all(answers)
    stor.judge(answers=2)


def test_nothing_is_shared_while_others_have_much_to_write(tmp_path):
    stor = Shared(tmp_path)
    stor.unwritten = UNWRITTEN_BYTES + 1
    stor.put_all()
    assert stor.called("sync_all") == 0
    stor.judge(answers=len(CONTENTS))
    # For a while it is not even looked whether they still have.
    stor.unwritten = 0
    stor.put_all([sample(SIZE, n) for n in range(10, 15)])
    assert stor.called("sync_all") == 0
    stor.rig.clock.advance(REST_SECONDS)
    stor.put_all([sample(SIZE, n) for n in range(20, 25)])
    assert stor.called("sync_all") > 0


def test_nothing_is_shared_on_a_file_system_that_is_not_known(tmp_path):
    class Fuse(QuickFiles):
        def type_of(self, fd):
            return 0x65735546

    stor = Shared(tmp_path, files=Fuse)
    stor.put_all()
    assert stor.called("sync_all") == 0
    stor.judge(answers=len(CONTENTS))


def test_the_disks_own_cache_is_flushed_after_a_shared_sync(tmp_path):
    stor = Shared(tmp_path, 1)
    stor.put_all()
    calls = [call for _, call in stor.log]
    for place, call in enumerate(calls):
        if call.name == "sync_all":
            assert calls[place + 1].name == "sync"
            assert calls[place + 1].args == call.args


@pytest.mark.parametrize("jobs", range(4))
def test_nobody_joins_a_group_that_hangs(tmp_path, jobs):
    stor = Shared(tmp_path, 1)
    stuck = [start(stor.put(content)) for content in CONTENTS]
    stor.held.release(jobs)
    assert not any(stuck)
    stor.rig.clock.advance(STUCK_SECONDS + 0.1)
    later = [start(stor.put(sample(SIZE, n))) for n in range(10, 13)]
    assert all(later)
    stor.held.release()
    assert all(stuck)
    stor.judge(answers=len(stuck) + len(later))


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("error", ERRORS)
def test_a_fault_at_any_call_loses_nothing(quick_path, error, sets, figures):
    def trial(n, disk):
        stor = Shared(quick_path / f"{sets} {disk} {n}", sets=sets)
        files = stor.rig.members[disk].disk.files
        before = len(files.calls)
        if n is not None:
            files.fail_at(n, error)
        answers = stor.put_all()
        return stor, files, answers, len(files.calls) - before

    opened = descriptors()
    for disk in range(2):
        calls = trial(None, disk)[-1]
        for n in range(0, calls, 3):
            stor, files, answers, _ = trial(n + (errno.EIO + error) % 3, disk)
            files.heal()
            kept = [c for c, a in zip(CONTENTS, answers, strict=True) if isinstance(a, tuple)]
            for answer in answers:
                assert isinstance(answer, tuple) or answer.check(NoRoom, Unavailable)
            events, disks = history(stor.log), stor.disks
            homes = [disks[:2], disks[2:]]
            for content in CONTENTS:
                copies = stor.rig.copies(content)
                assert [path.read_bytes() for path in copies] == [content] * len(copies)
                assert len(copies) == (2 if content in kept else 0)
            assert files.failed is None or sets == 1 or len(kept) == len(CONTENTS)
            if sets == 1:
                for judge in JUDGES:
                    judge(events, homes[0])
            assert not stor.rig.staged()
            assert all(mirror.reserved.total() == (0, 0) for mirror in stor.rig.mirrors.mirrors)
            assert descriptors() == opened
            stor.rig.probe()
            again = stor.put_all()
            assert [created for _, created in again] == [c not in kept for c in CONTENTS]
            shutil.rmtree(quick_path)
            quick_path.mkdir()
            figures["uploads that share a sync, with one fault"] += 1


class Opening(QuickFiles):
    """Knows when each directory that is open was opened."""

    def __init__(self, *args):
        super().__init__(*args)
        self.opened = {}
        self.watched = []

    def open_directory(self, *args):
        fd = super().open_directory(*args)
        self.opened[fd] = len(self.calls)
        return fd

    def sync_all(self, fd):
        self.watched.append(self.opened[fd])
        super().sync_all(fd)


def steps_on(stor, dos):
    """What becomes of steps that all wait at the same time; all but the first two share a sync."""
    commits, outcomes = stor.rig.members[0]._workers.commits, {}
    for place, do in enumerate(dos):
        outcome = commits.run(Step(lambda root_fd, do=do: do(), lambda root_fd: None))
        outcome.addBoth(partial(outcomes.__setitem__, place))
    stor.held.release()
    return [outcomes[place] for place in range(len(dos))]


def test_a_sync_that_fails_fails_all_that_relied_on_it(tmp_path):
    stor = Shared(tmp_path, 1)
    stor.rig.members[0].disk.files.fail_always("sync_all", errno.EIO)
    first, second, *others = steps_on(stor, [lambda: "done"] * 5)
    assert (first, second) == ("done", "done")
    assert [failure.check(OSError) for failure in others] == [OSError] * 3


def test_a_sync_watches_for_errors_before_anything_is_done(tmp_path):
    stor = Shared(tmp_path, 1, Opening)
    files, done = stor.rig.members[0].disk.files, []
    files.watched.clear()  # the disk was synced once before it was used
    steps_on(stor, [lambda: done.append(len(files.calls))] * 5)
    (watched,) = files.watched
    assert watched <= min(done[2:])


def test_a_step_that_fails_does_not_fail_the_others(tmp_path):
    def fail():
        raise OSError(errno.EIO, "this one")

    stor = Shared(tmp_path, 1)
    first, second, third, failed, fifth = steps_on(
        stor, [lambda: 1, lambda: 2, lambda: 3, fail, lambda: 5]
    )
    assert failed.check(OSError)
    assert (first, second, third, fifth) == (1, 2, 3, 5)


def test_who_waits_is_told_in_the_reactor_s_own_time(tmp_path):
    disk, held, told, calls = Shared(tmp_path, 1).rig.members[0].disk, HeldPool(), [], []

    class Kept:
        def put(self, tell, outcome, *, last):
            assert last
            calls.append((tell, outcome))

    commits = GroupCommit(Alone(disk, InlinePool()), held, lambda: 0, Kept())
    for n in range(5):
        step = Step(lambda root_fd, n=n: n, lambda root_fd: None)
        commits.run(step).addCallback(told.append)
    held.release()
    assert told == []
    for tell, outcome in calls:
        tell(outcome)
    assert sorted(told) == [0, 1, 2, 3, 4]


def test_too_many_are_refused(tmp_path):
    stor = Shared(tmp_path, 1)
    commits = stor.rig.members[0]._workers.commits
    step = Step(lambda root_fd: None, lambda root_fd: None)
    outcomes = [commits.run(step) for _ in range(WAITING_LIMIT + 2)]
    with pytest.raises(Busy):
        result_of(commits.run(step))
    stor.held.release()
    assert all(outcome.called for outcome in outcomes)


def test_the_judges_miss_no_shared_sync_that_is_left_out(tmp_path):
    stor = Shared(tmp_path)
    stor.put_all([sample(SIZE, n) for n in range(4)])
    events = stor.judge(answers=4)
    shared = [place for place, event in enumerate(events) if event.kind == "sync_all"]
    assert shared
    for place in shared:
        for judge in JUDGES:
            with pytest.raises(AssertionError):
                judge(events[:place] + events[place + 1 :], stor.disks)


def test_a_sync_of_everything_says_what_the_kernel_says(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        Syscalls().sync_all(file.fileno())
        fd = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Syscalls().sync_all(fd)


def test_the_type_of_a_file_system_is_that_of_stat(tmp_path):
    told = subprocess.check_output(["stat", "--file-system", "--format=%t", tmp_path], text=True)
    fd = Syscalls().open_directory(str(tmp_path))
    assert Syscalls().type_of(fd) == int(told, 16)
    Syscalls().close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Syscalls().type_of(fd)


def test_what_waits_to_be_written_is_counted(tmp_path):
    (tmp_path / "meminfo").write_text(
        "MemFree:  9 kB\nDirty:   40 kB\nWriteback:  2 kB\nWritebackTmp:  7 kB\n"
    )
    for node in range(2):
        (tmp_path / f"node{node}").write_text(
            f"Node {node} Dirty:   30 kB\nNode {node} Writeback:   1 kB\n"
        )
    proc, nodes, nobody = (str(tmp_path / name) for name in ("meminfo", "node*", "nobody"))
    assert unwritten_bytes([proc, nodes]) == 42 * 1024
    assert unwritten_bytes([nobody, nodes]) == 62 * 1024
    assert unwritten_bytes([nobody]) is None
    assert 0 <= unwritten_bytes() < 2**50


def test_nothing_is_shared_where_nobody_knows_what_waits_to_be_written(tmp_path):
    stor = Shared(tmp_path)
    stor.unwritten = None
    stor.put_all()
    assert stor.called("sync_all") == 0
    stor.judge(answers=len(CONTENTS))


@pytest.mark.parametrize(
    ("release", "does"),
    [
        ("6.1.0-18-amd64", True),
        ("5.8.0", True),
        ("5.7.19", False),
        ("4.19.0-26", False),
        ("10.0", True),
    ],
)
def test_a_kernel_that_does_not_tell_of_lost_writes_shares_no_sync(release, does):
    assert reports_errors(release) is does
