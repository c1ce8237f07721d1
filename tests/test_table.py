"""The table of a host: never a false "no", and what is damaged is never believed."""

import errno
import os
import random
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import count

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.disk.syscalls import Syscalls
from stor.index.memory import create
from stor.index.merge import Plan, make
from stor.index.recent import Recent
from stor.index.table import Contents, Keys, Table, TableDamaged, TableDisk, load, save
from tests.conformance import descriptors
from tests.support.files import FaultyFiles, RecordingFiles
from tests.support.index import UUID, sha

SECRET = bytes(range(32))
KEYS = Keys(SECRET)
SETS = tuple(UUID[:-4] + f"{number:04x}" for number in range(3))


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = descriptors()
    yield
    assert descriptors() == before


class Memory:
    """Recent names and tables made from them, one after the other."""

    def __init__(self, keys=KEYS, least_bits=0):
        self.keys, self.least_bits = keys, least_bits
        self.recent_fd = Recent.create(bytes(32))
        self.recent = Recent(self.recent_fd)
        self.fds = [create("old"), create("new")]
        self.table = None
        self.taken = 0

    def make(self, sequence=7):
        """The next table, of all that was added; the one before is its old one."""
        old = self.table
        old_fd, new_fd = self.fds
        plan = Plan(
            recent_fd=self.recent_fd,
            new_fd=new_fd,
            first=self.taken,
            recent=self.recent.published,
            sequence=sequence,
            generation=1 if old is None else old.contents.generation + 1,
            sets=SETS,
            old_fd=None if old is None else old_fd,
            least_bits=self.least_bits,
        )
        contents = make(plan, self.keys)
        self.taken = plan.recent
        self.fds.reverse()
        if old is not None:
            old.close()
        self.table = Table(new_fd, self.keys)
        assert self.table.contents == contents
        return self.table

    def add(self, number, set_number=0, *, held=True):
        self.recent.add(sha(number), set_number, held=held)

    def close(self):
        if self.table is not None:
            self.table.close()
        self.recent.close()
        for fd in (self.recent_fd, *self.fds):
            os.close(fd)


@contextmanager
def opened(**options):
    memory = Memory(**options)
    try:
        yield memory
    finally:
        memory.close()


def names_of(table):
    return {one.uuid: one.names for one in table.contents.sets}


events = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.booleans()), max_size=80)


@settings(max_examples=100, deadline=None)
@given(st.lists(events, min_size=1, max_size=5), st.sampled_from([0, 3, 16]))
def test_a_table_has_what_was_put_in_and_not_taken_out(rounds, least_bits):
    held = set()
    with opened(least_bits=least_bits) as memory:
        for happened in rounds:
            for number, set_number, holds in happened:
                memory.add(number, set_number, held=holds)
                (held.add if holds else held.discard)((number, set_number))
            table = memory.make()
            for number in range(41):
                sets = {set_number for name, set_number in held if name == number}
                assert set(table.sets_of(sha(number))) == sets
            assert table.contents.entries == len(held)
            assert table.contents.sequence == 7
            expected = Counter(SETS[set_number] for _, set_number in held)
            assert names_of(table) == {uuid: expected[uuid] for uuid in SETS}


@pytest.mark.parametrize("least_bits", [0, 16])
def test_a_table_that_grows_a_thousandfold_never_denies_a_name(least_bits):
    with opened(least_bits=least_bits) as memory:
        added, numbers = 0, count()
        for size in (0, 1, 15, 1, 200, 800, 1, 5000, 20_000, 3):
            for number in (next(numbers) for _ in range(size)):
                memory.add(number, number % 3)
            added += size
            table = memory.make()
            assert all(number % 3 in table.sets_of(sha(number)) for number in range(added))
            assert table.contents.entries <= added
            assert not table.contents.entries > 64 << table.contents.bucket_bits
        wrong = sum(bool(table.sets_of(sha(-number % 2**40))) for number in range(1, 20_000))
        assert wrong <= 2
        if least_bits:
            assert not table.contents.worn
            assert table.contents.length - 16384 < 7 * added + 300_000


def test_it_takes_less_than_7_bytes_a_name(quick_path):
    for entries in (10**6, 3 * 10**7, 10**8, 3 * 10**8, 10**9):
        bits = ((entries - 1) // 16).bit_length()
        contents = Contents(1, entries, 0, 0, bits, 0, ())
        assert contents.length < 7 * entries


#: Two made-up samples with one key, as far as a table of one bucket knows it.
COLLIDING = 214_245, 1_197_452


def test_who_knows_the_secret_can_make_a_sample_that_seems_to_be_there_and_nobody_else():
    one, other = COLLIDING
    assert KEYS.key(sha(one)) >> 25 == KEYS.key(sha(other)) >> 25
    for keys, seems in ((KEYS, (2,)), (Keys(SECRET[::-1]), ())):
        with opened(keys=keys) as memory:
            memory.add(one, 2)
            table = memory.make()
            assert table.sets_of(sha(one)) == (2,)
            assert table.sets_of(sha(other)) == seems


@pytest.fixture
def kept(quick_path):
    """A table that was kept, with its bytes."""
    path = str(quick_path / "table")
    with opened() as memory:
        for number in range(500):
            memory.add(number, number % 3)
        memory.make()
        save(memory.fds[0], path, Syscalls())
        yield path, memory.table, memory.fds[0]


def test_a_table_that_was_kept_is_the_same(kept):
    path, table, _ = kept
    fd = create("loaded")
    contents = load(path, fd, KEYS, 5, 17)
    loaded = Table(fd, KEYS)
    assert contents == loaded.contents
    assert (contents.generation, contents.recent) == (5, 17)
    assert (contents.sequence, contents.sets) == (table.contents.sequence, table.contents.sets)
    for number in range(600):
        assert loaded.sets_of(sha(number)) == table.sets_of(sha(number))
    assert not os.path.exists(f"{path}.new")
    loaded.close()
    os.close(fd)


def loads(path, keys=KEYS):
    fd = create("loaded")
    try:
        load(path, fd, keys, 1, 0)
        Table(fd, keys).close()
    finally:
        os.close(fd)


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty"])
def test_every_damage_to_a_table_is_found_when_it_is_loaded(kept, damage, figures):
    path, _, _ = kept
    with open(path, "rb") as file:
        content = file.read()
    rng = random.Random(1)
    places = [*range(200), *(rng.randrange(len(content)) for _ in range(300))]
    for place in places if damage in ("flipped", "cut") else places[:1]:
        data = bytearray(content)
        if damage == "flipped":
            data[place] ^= 1 << rng.randrange(8)
        elif damage == "cut":
            del data[place:]
        elif damage == "longer":
            data += bytes(8)
        else:
            data.clear()
        with open(path, "wb") as file:
            file.write(data)
        with pytest.raises(TableDamaged):
            loads(path)
        figures["damages to a table, each found"] += 1


def test_a_table_that_is_missing_or_another_hosts_is_not_loaded(kept, quick_path):
    path, _, _ = kept
    with pytest.raises(FileNotFoundError):
        loads(str(quick_path / "none"))
    with pytest.raises(TableDamaged, match="another host's"):
        loads(path, Keys(SECRET[::-1]))


def test_a_table_that_cannot_be_kept_leaves_the_one_before(kept, quick_path):
    path, _, memory = kept
    hit = 0
    while True:
        files = FaultyFiles()
        files.fail_at(hit, errno.ENOSPC)
        with suppress(OSError):
            save(memory, path, files)
        loads(path)
        if files.failed is None:
            break
        hit += 1
    assert hit > 8
    with pytest.raises(FileNotFoundError):
        save(memory, str(quick_path / "none" / "table"), Syscalls())


def test_a_table_is_kept_once_it_is_durable(kept):
    path, _, memory = kept
    files = RecordingFiles()
    save(memory, path, files)
    calls = [(call.name, call.path) for call in files.calls]
    rename = calls.index(("rename", "table"))
    assert calls.index(("write", "table.new")) < calls.index(("sync", "table.new")) < rename
    assert ("sync", os.path.dirname(path)) in calls[rename:]


def test_half_a_table_is_none():
    with opened() as memory:
        for number in range(100):
            memory.add(number)
        memory.make()
        data = os.pread(memory.fds[0], 10**6, 0)
        for end in (0, 100, 16383, 16384, len(data) - 1):
            os.ftruncate(memory.fds[1], 0)
            os.pwrite(memory.fds[1], data[:end], 0)
            with pytest.raises(TableDamaged):
                Table(memory.fds[1], KEYS)
        os.ftruncate(memory.fds[1], 0)
        os.pwrite(memory.fds[1], data[16384:], 16384)
        with pytest.raises(TableDamaged):
            Table(memory.fds[1], KEYS)


def test_a_secret_has_32_bytes():
    with pytest.raises(ValueError, match="31 bytes, not 32"):
        Keys(bytes(31))


DISK = TableDisk("b4ff5ea8-6ab2-4f2f-b5c5-5f32cbe07b0e", journal=7, highest=100, set_number=1)


@pytest.mark.parametrize(
    ("sequence", "changes", "known"),
    [
        (90, {}, 89),
        (90, {"highest": 5000}, 89),
        # Another host has put more on it, with numbers of its own.
        (2000, {"highest": 1500}, 100),
        (101, {}, 100),
        # The disk was set back; it has another journal, or none that can be told from others.
        (90, {"highest": 99}, None),
        (90, {"journal": 8}, None),
        (90, {"journal": 0}, None),
        (90, {"set_number": 0}, None),
        (90, {"uuid": "00000000-6ab2-4f2f-b5c5-5f32cbe07b0e"}, None),
    ],
)
def test_a_table_says_what_it_has_of_a_disk(sequence, changes, known):
    contents = Contents(1, 0, sequence, 0, 16, 0, (), (DISK,))
    header = contents.encode(KEYS.host, 0)
    assert Contents.parse(header, KEYS.host) == (contents, 0)
    assert contents.known(attrs.evolve(DISK, **changes)) == known


def test_a_disk_whose_journal_cannot_be_told_from_others_is_in_no_table():
    disk = attrs.evolve(DISK, journal=0)
    assert Contents(1, 0, 90, 0, 16, 0, (), (disk,)).known(disk) is None
