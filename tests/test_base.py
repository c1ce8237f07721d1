"""The sorted base of a disk: what its journal told, whatever was merged, cut off or damaged."""

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.disk.base import Base, BaseDamaged, Entry
from stor.disk.journal import Kind
from tests.conformance import QuickFiles
from tests.support.files import FaultyFiles, RecordingFiles
from tests.support.index import UUID, IndexDisk, append, record, sha


@pytest.fixture
def disk(quick_path):
    return IndexDisk(quick_path / "disk")


def extend(disk, **options):
    """Take all that the journal has into the base."""
    with disk.journal(opened(disk)[0].covered) as (journal, root_fd):
        journal.rotate(root_fd)
        base = Base.open(disk.disk, UUID, root_fd)
        base.extend(journal, root_fd, **options)
        return base


def opened(disk):
    """The base, opened anew, with all its entries."""
    with disk.disk.entered() as root_fd:
        base = Base.open(disk.disk, UUID, root_fd)
        return base, list(base.entries_from(b"", root_fd))


def files_of(disk):
    return sorted(disk.path.glob("base-*"))


def expected(records):
    """The entries that are left when all of `records` happened."""
    held = {}
    for one in records:
        held[one.sha] = one
        if one.kind.is_gone:
            del held[one.sha]
    return [Entry(one.sha, one.size, one.inode) for _, one in sorted(held.items())]


@pytest.mark.parametrize("count", [0, 1, 83, 84, 85, 5000])
def test_inodes_are_those_of_the_latest_records(disk, count):
    """In the base, in several of its files, and in the journal alone; asked for in any density."""
    records = [record(n) for n in range(1, count + 1)]
    moved = [record(count + n, n)._replace(inode=n + 10**6) for n in range(1, count // 10 + 1)]
    new = [record(10**6 + n) for n in range(1, 10)]
    for batch in (records, moved):
        if batch:
            disk.append(*([one] for one in batch) if count < 100 else (batch,))
            extend(disk)
    disk.append(new)
    expected = {one.sha: one.inode for one in [*records, *moved, *new]}
    rng = random.Random(count)
    absent = [sha(10**9 + n) for n in range(50)]
    with disk.journal(opened(disk)[0].covered) as (journal, root_fd):
        base = Base.open(disk.disk, UUID, root_fd)
        for asked in (0, 1, 20, len(expected)):
            shas = sorted(rng.sample(sorted(expected), min(asked, len(expected))) + absent)
            found = base.inodes(shas, journal, root_fd)
            assert found == [expected.get(one, 0) for one in shas]
        assert base.damage is None


def test_a_lookup_of_few_inodes_reads_few_blocks(disk):
    disk.append([record(n) for n in range(1, 40_001)])
    extend(disk)
    reads = []

    class Counting(QuickFiles):
        def read(self, fd, length, offset):
            reads.append(length)
            return super().read(fd, length, offset)

    counting = IndexDisk(disk.root, Counting())
    with counting.journal(opened(disk)[0].covered) as (journal, root_fd):
        base = Base.open(counting.disk, UUID, root_fd)
        reads.clear()
        shas = sorted(sha(n) for n in range(1, 40_001, 400))
        assert all(base.inodes(shas, journal, root_fd))
    assert len(reads) < 3 * len(shas)


NAMES = 25
happenings = st.lists(
    st.tuples(st.integers(0, NAMES - 1), st.sampled_from(list(Kind))), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(st.lists(happenings, max_size=6))
def test_it_is_what_happened_however_it_was_merged(tmp_path_factory, rounds):
    disk = IndexDisk(tmp_path_factory.mktemp("disk"))
    records = []
    for happened in rounds:
        made = [
            record(len(records) + number, name, kind)
            for number, (name, kind) in enumerate(happened, 1)
        ]
        records += made
        disk.append(*([one] for one in made))
        extend(disk)
        base, entries = opened(disk)
        assert base.damage is None
        assert entries == expected(records)
        assert base.highest == len(records)
    with disk.disk.entered() as root_fd:
        base, entries = opened(disk)
        assert [name for names in base.names(root_fd) for name in names] == [e.sha for e in entries]
        for number in range(NAMES):
            found = [entry for entry in entries if entry.sha == sha(number)]
            assert base.find(sha(number), root_fd) == (found[0] if found else None)
            begin = sha(number)
            assert list(base.entries_from(begin, root_fd)) == [e for e in entries if e.sha >= begin]


def test_many_blocks_and_segments_are_found_and_listed_from_anywhere(disk):
    made = [record(number) for number in range(1, 3001)]
    for begin in range(0, 3000, 500):
        disk.append(made[begin : begin + 500])
    extend(disk)
    assert opened(disk)[1] == expected(made)
    with disk.disk.entered() as root_fd:
        base, entries = opened(disk)
        for number in (*range(0, 3000, 97), 2999):
            assert base.find(entries[number].sha, root_fd) == entries[number]
            begin = entries[number].sha + b"\0"
            assert list(base.entries_from(begin, root_fd)) == entries[number + 1 :]
        assert base.find(sha(10_000), root_fd) is None
        assert base.find(bytes(32), root_fd) is None
        assert base.find(b"\xff" * 32, root_fd) is None


def test_what_came_since_is_listed_from_the_journal(disk):
    made = [record(number) for number in range(1, 30)]
    disk.append(made[:20])
    extend(disk)
    made += [record(30, 3, Kind.LEFT), record(31, 4)]
    disk.append(made[20:25])
    disk.append(made[25:])
    base, entries = opened(disk)
    with disk.journal(base.covered) as (journal, root_fd):
        assert entries == expected(made[:20])
        for begin in (b"", sha(5), sha(25), b"\xff" * 32):
            listed = [entry for entry in expected(made) if entry.sha >= begin]
            assert list(base.entries_from(begin, root_fd, journal)) == listed
    fresh = Base(disk.disk, UUID)
    with disk.journal() as (journal, root_fd):
        assert list(fresh.entries_from(b"", root_fd, journal)) == expected(made)


def test_files_stay_few_and_samples_are_rewritten_few_times(disk):
    written = []
    for number in range(64):
        disk.append([record(number * 100 + n) for n in range(1, 101)])
        extend(disk, pace=written.append)
    assert opened(disk)[0].entries == 6400
    assert len(files_of(disk)) <= 10
    assert sum(written) < 64 * 100 * 48 * 15


def test_who_has_opened_the_base_reads_on_while_it_is_extended(disk):
    disk.append([record(1)])
    extend(disk)
    with disk.disk.entered() as root_fd:
        base, entries = opened(disk)
        for sequence in range(2, 4):
            disk.append([record(sequence)])
        extend(disk)
        assert list(base.entries_from(b"", root_fd)) == entries
        assert opened(disk)[1] == expected([record(n) for n in range(1, 4)])


@pytest.mark.parametrize("name", ["cut", "flipped", "empty", "longer"])
def test_every_damage_to_a_file_is_told(disk, name):
    made = [record(number) for number in range(1, 301)]
    disk.append(made)
    extend(disk)
    (path,) = files_of(disk)
    content = path.read_bytes()
    rng = random.Random(3)
    entries_bytes = 300 * 48
    for _ in range(1 if name == "empty" else 300):
        data = bytearray(content)
        if name == "cut":
            del data[rng.randrange(len(data)) :]
        elif name == "longer":
            data += bytes(rng.randrange(1, 9000))
        elif name == "empty":
            data.clear()
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        base, entries = opened(disk)
        assert set(entries) <= set(expected(made))
        assert base.damage is not None or entries == expected(made)
        if name != "flipped":
            assert base.damage is not None
    assert entries_bytes < len(content)


def test_damage_is_not_merged_away_before_it_is_known_to_be_told(disk):
    disk.append([record(number) for number in range(1, 301)])
    extend(disk)
    (path,) = files_of(disk)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    disk.append([record(number) for number in range(301, 601)])
    for _ in range(2):
        with pytest.raises(BaseDamaged, match=r"block 1 of .*base-"):
            extend(disk)
        assert files_of(disk) == [path]
    extend(disk, despite_damage=True)
    base, entries = opened(disk)
    assert base.damage is None
    assert set(expected([record(n) for n in range(301, 601)])) < set(entries)


def test_damage_to_the_journal_is_not_merged_away_either(disk):
    disk.append([record(1)])
    disk.append([record(2)])
    content = bytearray(disk.segments()[0].read_bytes())
    content[-10] ^= 1
    disk.segments()[0].write_bytes(content)
    with pytest.raises(BaseDamaged, match="segment 1 has 0 good records of 1"):
        extend(disk)
    extend(disk, despite_damage=True)
    assert opened(disk)[1] == expected([record(2)])


def test_a_file_of_another_disk_or_range_is_told(disk, quick_path):
    disk.append([record(1)])
    extend(disk)
    with disk.disk.entered() as root_fd:
        base = Base.open(disk.disk, UUID.replace("6d", "7e"), root_fd)
        assert f"another disk's, {UUID}" in base.damage
        assert list(base.entries_from(b"", root_fd)) == []
    files_of(disk)[0].rename(disk.path / "base-000000000001-000000000002")
    assert "base-000000000001-000000000002 is" in opened(disk)[0].damage
    files_of(disk)[0].rename(disk.path / "base-000000000002-000000000002")
    assert "segments 1 to 1 are in none of its files" in opened(disk)[0].damage


def test_whatever_call_fails_the_base_is_the_one_before_or_the_one_after(quick_path):
    hit = 0
    while True:
        files = FaultyFiles()
        disk = IndexDisk(quick_path / str(hit), files)
        made = [record(number) for number in range(1, 5)]
        disk.append(made[:3])
        extend(disk)
        disk.append(made[3:])
        with disk.journal(1) as (journal, root_fd):
            journal.rotate(root_fd)
            base = Base.open(disk.disk, UUID, root_fd)
            files.fail_at(hit, errno.EIO)
            try:
                base.extend(journal, root_fd)
            except OSError:
                assert files.failed
            done = files.failed is None
            files.heal()
        base, entries = opened(disk)
        assert base.damage is None
        assert entries in (expected(made[:3]), expected(made))
        extend(disk)
        assert opened(disk)[1] == expected(made)
        if done:
            break
        hit += 1
    assert hit > 15


def test_a_file_has_its_name_once_it_is_durable(quick_path):
    files = RecordingFiles()
    disk = IndexDisk(quick_path / "disk", files)
    disk.append([record(1)])
    files.calls.clear()
    extend(disk)
    calls = [(call.name, call.path) for call in files.calls]
    new, name = ".stor/index/base.new", ".stor/index/base-000000000001-000000000001"
    written = max(n for n, call in enumerate(calls) if call == ("write", new))
    synced = max(n for n, call in enumerate(calls) if call == ("sync", new))
    assert written < synced < calls.index(("rename", name))
    assert ("sync", ".stor/index") in calls[calls.index(("rename", name)) :]


def test_memory_is_flat(disk):
    """What waits to be written never is more than 8 MiB; the rest is in chunks."""
    pauses = []
    with disk.journal() as (journal, root_fd):
        for begin in range(0, 100_000, 20_000):
            append(journal, root_fd, [record(begin + number) for number in range(1, 20_001)])
    extend(disk, pace=pauses.append)
    assert max(pauses) <= 8 * 1024 * 1024
