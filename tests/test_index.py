"""The index as a whole: no process denies a name that a set holds, whatever becomes of tables."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stor.disk.base import Base
from stor.disk.journal import Kind
from stor.disk.syscalls import Syscalls
from stor.index.index import Index, IndexWriter, Shared, host_secret
from stor.index.merge import DiskSource, Merge, MergeFailed, extend, make
from stor.index.recent import READERS_LIMIT
from stor.index.table import HEADER_BYTES, SETS_LIMIT, Keys, TableDamaged
from tests.conformance import descriptors
from tests.support.index import UUID, IndexDisk, record, sha

KEYS = Keys(bytes(range(32)))
SETS = [UUID[:-4] + f"{number:04x}" for number in range(3)]
NAMES = 12


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = descriptors()
    yield
    assert descriptors() == before


class Machine(RuleBasedStateMachine):
    """A writer that may be replaced, readers that come, go and lag, tables that fail or come."""

    def __init__(self):
        super().__init__()
        self.shared = Shared.create()
        self.writer = IndexWriter(self.shared, KEYS)
        for uuid in SETS:
            self.writer.number(uuid)
        self.readers = {}
        self.held = set()
        self.complete = set()
        self.plan = None

    @rule(number=st.integers(0, NAMES - 1), set_number=st.integers(0, 2))
    def add(self, number, set_number):
        new = self.writer.add(sha(number), set_number)
        assert new == ((number, set_number) not in self.held)
        self.held.add((number, set_number))

    @rule(number=st.integers(0, NAMES - 1), set_number=st.integers(0, 2))
    def remove(self, number, set_number):
        gone = self.writer.remove(sha(number), set_number)
        assert gone == ((number, set_number) in self.held)
        self.held.discard((number, set_number))

    @rule(set_number=st.integers(0, 2), complete=st.booleans())
    def judge(self, set_number, complete):
        self.writer.set_complete(set_number, complete)
        (self.complete.add if complete else self.complete.discard)(set_number)

    @rule(anew=st.booleans())
    def begin(self, anew):
        # Without disks, a table that is made anew has recent names only.
        plan = self.writer.plan(1, anew=anew and self.writer.contents is None, keep=False)
        self.plan = plan or self.plan

    @rule(end=st.sampled_from(["made", "killed", "half"]))
    def finish(self, end):
        plan, self.plan = self.plan, None
        if plan is None or plan.generation != generation(self.writer) + 1:
            return
        if end == "killed":
            os.ftruncate(plan.new_fd, 0)
            os.pwrite(plan.new_fd, b"half", 0)
        else:
            make(attrs.evolve(plan, least_bits=0), KEYS)
            if end == "half":
                os.ftruncate(plan.new_fd, HEADER_BYTES)
        if end == "made":
            self.writer.install()
        else:
            with pytest.raises(TableDamaged):
                self.writer.install()

    @rule()
    def settle(self):
        behind = any(generation(r) < generation(self.writer) for r in self.readers.values())
        assert self.writer.settle() == (not behind)

    @rule(reader=st.integers(0, 2))
    def come_or_go(self, reader):
        if reader in self.readers:
            self.readers.pop(reader).close()
            self.shared.leave(reader)
        else:
            self.readers[reader] = Index(self.shared, KEYS, reader)

    @rule(reader=st.integers(0, 2), number=st.integers(0, NAMES - 1))
    def ask(self, reader, number):
        if reader in self.readers:
            self.check(self.readers[reader], number)

    @rule()
    def replace_writer(self):
        self.writer.close()
        self.plan = None
        self.writer = IndexWriter(self.shared, KEYS)

    @invariant()
    def writer_knows(self):
        for number in range(NAMES):
            self.check(self.writer, number)
        for set_number in range(3):
            names = sum(its == set_number for _, its in self.held)
            assert self.writer.names(set_number) == names
        assert list(self.writer.sets) == SETS

    def check(self, index, number):
        sets, complete = index.find(sha(number))
        assert set(sets) == {its for name, its in self.held if name == number}
        assert complete == (self.complete if index.contents else set())

    def teardown(self):
        for index in (self.writer, *self.readers.values()):
            index.close()
        self.shared.close()


def generation(index):
    return 0 if index.contents is None else index.contents.generation


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@contextmanager
def writer(path=None, keys=KEYS):
    shared = Shared.create()
    index = IndexWriter(shared, keys, path)
    try:
        yield index
    finally:
        index.close()
        shared.close()


def made(index, disks=(), **options):
    """Make a table in a child process, and use it."""
    plan = index.plan(options.pop("sequence", 1), disks, **options)
    saved = Merge(plan, KEYS).wait()
    index.install()
    return saved


def test_a_table_that_a_child_made_and_kept_is_loaded_at_the_next_start(quick_path):
    path = str(quick_path / "table")
    with writer(path) as index:
        numbers = [index.number(uuid) for uuid in SETS]
        for number in range(200):
            index.add(sha(number), numbers[number % 3])
        assert made(index, sequence=17) is None
        assert index.lock() in (True, False)
        assert index.recent_names == 0
        names = [index.names(number) for number in numbers]
    with writer(path) as index:
        assert list(index.sets) == SETS
        index.add(sha(1000), 2)
        assert index.find(sha(1)).sets == ()
        index.load()
        index.install()
        assert index.contents.sequence == 17
        assert [index.number(uuid) for uuid in reversed(SETS)] == [2, 1, 0]
        for number in range(200):
            assert index.find(sha(number)).sets == (number % 3,)
        assert index.find(sha(1000)).sets == (2,)
        assert [index.names(number) for number in range(3)] == [*names[:2], names[2] + 1]
        index.add(sha(1001), 0)
        made(index, sequence=18)
        assert index.find(sha(1001)).sets == (0,)
        assert index.find(sha(1)).sets == (1,)
    with writer(path) as index:
        assert index.load().sequence == 18


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "another host's", "header"])
def test_a_table_that_cannot_be_used_makes_no_set_complete(quick_path, damage):
    path = quick_path / "table"
    with writer(str(path)) as index:
        index.add(sha(1), index.number(SETS[0]))
        made(index)
    content = bytearray(path.read_bytes())
    keys = KEYS
    if damage == "missing":
        path.unlink()
    elif damage == "another host's":
        keys = Keys(bytes(32))
    else:
        content[100 if damage == "header" else -5] ^= 1
        path.write_bytes(content[:-1] if damage == "cut" else content)
    with writer(str(path), keys) as index:
        with pytest.raises((TableDamaged, FileNotFoundError)):
            index.load()
        index.set_complete(index.number(SETS[0]), True)
        assert index.find(sha(1)) == ((), frozenset())


def test_a_state_directory_that_is_full_or_gone_costs_the_file_only(quick_path):
    path = str(quick_path / "none" / "table")
    with writer(path) as index:
        index.add(sha(1), index.number(SETS[0]))
        assert made(index) == f"{path}: No such file or directory"
        assert index.find(sha(1)).sets == (0,)


def disk_source(disk, set_number):
    return DiskSource(str(disk.root), UUID, disk.root.stat().st_dev, set_number)


def test_a_table_is_made_from_the_disks_in_child_processes(quick_path):
    disks = [IndexDisk(quick_path / str(number)) for number in range(3)]
    # Two of a set, which each lack something, and one of another set.
    disks[0].append([record(number) for number in range(1, 100)])
    disks[1].append([record(number) for number in range(50, 150)], [record(150, 60, Kind.LEFT)])
    disks[2].append([record(number) for number in range(140, 200)])
    sources = [
        disk_source(disk, set_number) for disk, set_number in zip(disks, (0, 0, 1), strict=True)
    ]
    for disk, source in zip(disks, sources, strict=True):
        with disk.journal() as (journal, root_fd):
            journal.rotate(root_fd)
        Merge(source, KEYS).wait()
        with disk.disk.entered() as root_fd:
            assert Base.open(disk.disk, UUID, root_fd).covered == 1
    with writer() as index:
        for uuid in SETS[:2]:
            index.number(uuid)
        index.add(sha(1000), 1)
        parts = []
        plan = index.plan(5, sources[:2], keep=False)
        Merge(plan, KEYS).wait(parts.append)
        assert parts == sorted(parts)
        index.install()
        held = {number: {0} for number in range(1, 150)} | {1000: {1}}
        for number in range(1001):
            assert set(index.find(sha(number)).sets) == held.get(number, set())
        assert (index.names(0), index.names(1)) == (149, 1)
        # The other set comes back: its names are added to the table that there is.
        made(index, sources[2:], keep=False)
        for number in range(140, 200):
            held.setdefault(number, set()).add(1)
        for number in range(1001):
            assert set(index.find(sha(number)).sets) == held.get(number, set())
        assert (index.names(0), index.names(1)) == (149, 61)


def test_a_child_imports_nothing_of_the_current_directory(tmp_path, monkeypatch):
    planted = tmp_path / "planted"
    for name in ("stor", "json", "bisect", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(planted)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with writer() as index:
        index.add(sha(1), index.number(SETS[0]))
        made(index)
        Merge(index.plan(1), KEYS).wait()
        index.install()
        assert index.find(sha(1)).sets == (0,)
    assert not planted.exists()


def test_a_child_may_be_killed_at_any_time(quick_path):
    path = quick_path / "table"
    with writer(str(path)) as index:
        index.add(sha(1), index.number(SETS[0]))
        made(index)
        kept = path.read_bytes()
        for number in range(3000):
            index.add(sha(number), 0)
        merge = Merge(index.plan(1), KEYS)
        merge.kill()
        with pytest.raises(MergeFailed, match="exit status -9"):
            merge.wait()
        with pytest.raises(TableDamaged):
            index.install()
        assert path.read_bytes() == kept
        for _ in range(3):
            merge = Merge(index.plan(1), KEYS)
            with suppress(MergeFailed):  # it may be done before it is hit
                merge.wait(lambda part, merge=merge: merge.kill())
            assert index.find(sha(1)).sets == index.find(sha(2999)).sets == (0,)
            with writer(str(path)) as another:
                another.load()
        made(index)
        assert index.recent_names == 0
        assert index.find(sha(2999)).sets == (0,)


def test_damage_on_a_disk_fails_the_table_and_is_named(quick_path):
    disk = IndexDisk(quick_path / "disk")
    disk.append([record(number) for number in range(1, 300)])
    with disk.journal() as (journal, root_fd):
        journal.rotate(root_fd)
    extend(disk_source(disk, 0))
    (path,) = disk.path.glob("base-*")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with writer() as index:
        index.number(SETS[0])
        plan = index.plan(1, [disk_source(disk, 0)], keep=False)
        with pytest.raises(MergeFailed, match="the base of the index is damaged: block 1"):
            Merge(plan, KEYS).wait()
        source = attrs.evolve(disk_source(disk, 0), device=1)
        plan = index.plan(1, [source], keep=False)
        with pytest.raises(MergeFailed, match="another file system is mounted"):
            Merge(plan, KEYS).wait()


def test_journals_of_a_set_are_replayed(quick_path):
    one = [record(1), record(2), record(3), record(6, 3, Kind.LEFT), record(7, 9, Kind.LEFT)]
    other = [record(2), record(3), record(8, 2, Kind.LEFT), record(9, 9, Kind.LEFT)]
    with writer() as index:
        index.number(SETS[0])
        index.add(sha(9), 0)
        assert index.replay(0, [one, other], all_disks=False) == 3
        assert index.find(sha(9)).sets == (0,)
        assert index.replay(0, [one, other], all_disks=True) == 1
        found = [number for number in range(10) if index.find(sha(number)).sets]
        assert found == [1, 2, 3]


def test_a_reader_that_lags_behind_denies_nothing():
    """It is asked after two tables; meanwhile neither what it needs nor its table is given back."""
    shared = Shared.create()
    index, reader = IndexWriter(shared, KEYS), Index(shared, KEYS, 0)
    index.add(sha(1), index.number(SETS[0]))
    made(index, keep=False)
    assert not index.settle()
    assert index.plan(1) is None
    index.add(sha(2), 0)
    assert index.find(sha(1)).sets == index.find(sha(2)).sets == (0,)
    late = Index(shared, KEYS, 1)
    for its in (reader, late):
        assert its.find(sha(1)).sets == its.find(sha(2)).sets == (0,)
    assert index.settle()
    for its in (index, reader, late):
        its.close()
    shared.close()


def test_what_was_added_twice_is_told_once():
    with writer() as index:
        index.number(SETS[0])
        assert index.add(sha(1), 0)
        assert not index.add(sha(1), 0)
        assert index.remove(sha(1), 0)
        assert not index.remove(sha(1), 0)


def test_there_are_numbers_for_some_hundred_sets():
    with writer() as index:
        uuids = [UUID[:-4] + f"{number:04x}" for number in range(SETS_LIMIT)]
        assert [index.number(uuid) for uuid in uuids] == list(range(SETS_LIMIT))
        with pytest.raises(ValueError, match="512 sets, that is the limit"):
            index.number(UUID.replace("6d", "7e"))
        index.add(sha(1), SETS_LIMIT - 1)
        made(index, keep=False)
        assert index.find(sha(1)).sets == (SETS_LIMIT - 1,)
    assert READERS_LIMIT >= 200


def test_the_secret_is_made_once_and_only_for_its_owner(quick_path):
    path = quick_path / "secret"
    secret = host_secret(str(path), Syscalls())
    assert len(secret) == 32
    assert host_secret(str(path), Syscalls()) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(secret[:-1])
    other = host_secret(str(path), Syscalls())
    assert len(other) == 32
    assert other != secret


def test_a_merge_that_nobody_waits_for_any_more_ends_without_a_word(tmp_path):
    """Stor has ended: in its log there is no traceback of a child's."""
    reading, writing = os.pipe()
    os.close(reading)
    source = {"root": str(tmp_path / "none"), "uuid": "", "device": 0}
    order = json.dumps([DiskSource.__name__, "00" * 16, source])
    ended = subprocess.run(
        [sys.executable, "-m", "stor.index.merge"],
        input=f"{order}\n",
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")
