"""The journal of a disk: whatever happens to it, it never invents, and never loses what counts."""

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.disk.journal import RECORD_BYTES, SEGMENT_RECORDS, Kind, Position
from tests.support.files import FaultyFiles, RecordingFiles
from tests.support.index import UUID, IndexDisk, append, record

OTHER_UUID = UUID.replace("6d", "7e")


@pytest.fixture
def disk(quick_path):
    return IndexDisk(quick_path / "disk")


def batches(*sizes):
    """Batches of records with the next sequence numbers."""
    first, made = 1, []
    for size in sizes:
        made.append([record(number) for number in range(first, first + size)])
        first += size
    return made


def joined(made):
    return [one for batch in made for one in batch]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=5), st.integers(0, 40))
def test_what_was_appended_is_read_in_order_by_whoever_opens_it(tmp_path_factory, opened, after):
    disk = IndexDisk(tmp_path_factory.mktemp("disk"))
    made = batches(*(size for sizes in opened for size in sizes))
    rest = iter(made)
    for sizes in opened:
        disk.append(*(next(rest) for _ in sizes))
    records, damage = disk.read(after)
    assert damage is None
    assert records == [one for one in joined(made) if one.sequence > after]
    with disk.journal() as (journal, _):
        assert journal.highest == max((one.sequence for one in joined(made)), default=0)


def test_every_field_and_kind_is_kept(disk):
    biggest = 2**64 - 1
    made = [record(number, kind=kind) for number, kind in enumerate(Kind, 1)]
    made.append(made[0]._replace(sequence=biggest, size=biggest, inode=biggest, time_ns=biggest))
    disk.append(made)
    assert disk.read() == (made, None)


def test_a_full_segment_is_followed_by_the_next(disk):
    size = SEGMENT_RECORDS
    made = batches(size - 1, 2, 1, 1)
    ends = disk.append(*made)
    assert [end.segment for end in ends] == [1, 1, 2, 2]
    assert disk.read(after=size - 1) == (joined(made)[size - 1 :], None)


def test_opening_writes_nothing_and_neither_does_reading(disk):
    disk.append(*batches(3, 2))
    before = {path: path.read_bytes() for path in disk.segments()}
    files = RecordingFiles()
    IndexDisk(disk.root, files).read()
    assert {path: path.read_bytes() for path in disk.segments()} == before
    changing = {"create", "write", "open_to_append", "rename", "unlink", "sync", "make_directory"}
    assert not changing & {call.name for call in files.calls}


def test_cut_at_any_byte_the_whole_records_before_the_cut_are_left(disk, quick_path):
    made = batches(2, 1, 3)
    *_, end = disk.append(*made)
    (segment,) = disk.segments()
    content = segment.read_bytes()
    header_bytes = len(content) - 6 * RECORD_BYTES
    for length in range(header_bytes, len(content)):
        segment.write_bytes(content[:length])
        whole = (length - header_bytes) // RECORD_BYTES
        assert disk.read() == (joined(made)[:whole], None)
        with disk.journal() as (journal, _):
            assert journal.end == Position(1, whole)
            assert journal.end < end
    for length in range(header_bytes):
        segment.write_bytes(content[:length])
        records, damage = disk.read()
        assert records == []
        assert "segment 1 has no whole header" in damage


def test_a_flipped_bit_costs_its_record_and_is_told_unless_it_is_at_the_end(disk):
    made = batches(2, 2, 2)
    disk.append(*made)
    (segment,) = disk.segments()
    content = segment.read_bytes()
    header_bytes = len(content) - 6 * RECORD_BYTES
    rng = random.Random(5)
    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << rng.randrange(8)
        segment.write_bytes(flipped)
        records, damage = disk.read()
        hit = (offset - header_bytes) // RECORD_BYTES
        if offset < header_bytes:
            assert (records, damage is None) == ([], False)
        elif hit < 4:  # the last batch says that these are durable
            assert records == joined(made)[:hit] + joined(made)[hit + 1 :]
            assert "record" in damage
        else:
            assert (records, damage) == (joined(made)[:hit], None)


def test_damage_in_a_segment_that_is_followed_by_another_is_told_wherever_it_is(disk):
    made = batches(3)
    disk.append(*made)
    disk.append([record(4)])
    content = disk.segments()[0].read_bytes()
    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1
        disk.segments()[0].write_bytes(flipped)
        records, damage = disk.read()
        assert set(records) <= {*joined(made), record(4)}
        assert record(4) in records
        assert damage
    disk.segments()[0].write_bytes(content[:-1])
    assert "segment 1 has 2 good records of 3" in disk.read()[1]
    disk.segments()[0].unlink()
    assert disk.read()[0] == [record(4)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_loss_of_power_leaves_what_was_synced_and_nothing_that_was_never_written(
    tmp_path_factory, data
):
    """What was not synced is lost in any pattern; then all goes on, and power is lost again."""
    disk = IndexDisk(tmp_path_factory.mktemp("disk"))
    written, durable, sequence = set(), set(), 0
    for _ in range(data.draw(st.integers(1, 4))):
        with disk.journal() as (journal, root_fd):
            kept_bytes = 0
            for size in data.draw(st.lists(st.integers(1, 4), max_size=4)):
                batch = [record(sequence + number) for number in range(1, size + 1)]
                sequence += size
                written |= set(batch)
                position = journal.append(batch, root_fd)
                if data.draw(st.booleans(), label="synced"):
                    journal.sync(root_fd)
                    journal.synced(position)
                    durable |= {one for one in written if one in set(journal.records(root_fd))}
                    kept_bytes = disk.segments()[-1].stat().st_size
        if disk.segments() and kept_bytes:
            path = disk.segments()[-1]
            kept = bytearray(path.read_bytes())
            for offset in range(kept_bytes, len(kept)):
                if data.draw(st.integers(0, 40), label="hit") == 0:
                    kept[offset : offset + RECORD_BYTES] = bytes(RECORD_BYTES)
                    del kept[max(kept_bytes, data.draw(st.integers(kept_bytes, len(kept)))) :]
                    break
            path.write_bytes(kept)
        records, damage = disk.read()
        assert damage is None
        assert durable <= set(records) <= written
        assert len(set(records)) == len(records)


def test_records_of_another_disk_or_segment_are_none(disk, quick_path):
    disk.append(*batches(2))
    with disk.journal(uuid=OTHER_UUID) as (journal, root_fd):
        assert list(journal.records(root_fd)) == []
        assert f"segment 1 is another's: 1 of {UUID}" in journal.damage
    other = IndexDisk(quick_path / "other")
    with other.journal(uuid=OTHER_UUID) as (journal, root_fd):
        append(journal, root_fd, [record(7), record(8)])
    ours, others = (path.segments()[0].read_bytes() for path in (disk, other))
    disk.segments()[0].write_bytes(ours[: -2 * RECORD_BYTES] + others[-2 * RECORD_BYTES :])
    assert disk.read()[0] == []
    disk.segments()[0].write_bytes(ours)
    disk.segments()[0].rename(disk.path / "journal-000000000002")
    assert disk.read()[0] == []


def test_another_version_is_told(disk):
    disk.append(*batches(1))
    content = bytearray(disk.segments()[0].read_bytes())
    content[8] += 1
    disk.segments()[0].write_bytes(content)
    assert "the header of segment 1 is damaged" in disk.read()[1]


@pytest.mark.parametrize("missing", [2, 3])
def test_a_segment_that_is_missing_is_told(disk, missing):
    for number in range(1, 5):
        disk.append([record(number)])
    (disk.path / f"journal-{missing:012}").unlink()
    records, damage = disk.read()
    assert f"segment {missing} is missing" in damage
    assert [one.sequence for one in records] == [n for n in range(1, 5) if n != missing]


def test_a_journal_that_ends_before_what_the_base_covers_is_told(disk):
    disk.append(*batches(2))
    with disk.journal(covered=1) as (journal, _):
        assert journal.damage is None
    with disk.journal(covered=3) as (journal, root_fd):
        assert "it ends with segment 1, the base covers 3" in journal.damage
        assert append(journal, root_fd, [record(9)]) == Position(4, 1)
    for path in disk.segments():
        path.unlink()
    with disk.journal(covered=4) as (journal, _):
        assert "it ends with segment 0, the base covers 4" in journal.damage


def test_whatever_call_fails_nothing_is_invented_and_what_counted_stays(quick_path):
    hit = 0
    while True:
        files = FaultyFiles()
        disk = IndexDisk(quick_path / str(hit), files)
        written, durable = set(), set()
        with disk.journal() as (journal, root_fd):
            append(journal, root_fd, [record(1)])
            durable.add(record(1))
            files.fail_at(hit, errno.EIO)
            for sequence in range(2, 6):
                batch = [record(sequence), record(sequence + 10)]
                written |= set(batch)
                try:
                    if sequence == 3:
                        journal.rotate(root_fd)
                    position = journal.append(batch, root_fd)
                    journal.sync(root_fd)
                except OSError:
                    journal.failed()
                    continue
                journal.synced(position)
                durable |= set(batch)
        records, damage = IndexDisk(disk.root).read()
        assert damage is None
        assert durable <= set(records) <= durable | written
        if files.failed is None:
            break
        hit += 1
    assert hit > 20


def test_half_a_write_is_followed_by_nothing(quick_path):
    files = FaultyFiles()
    disk = IndexDisk(quick_path / "disk", files)
    with disk.journal() as (journal, root_fd):
        append(journal, root_fd, [record(1)])
        files.fail_always("write", errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            journal.append([record(2)], root_fd)
        files.heal()
        with disk.segments()[0].open("ab") as segment:
            segment.write(b"half a record")
        append(journal, root_fd, [record(3)])
        assert journal.damage is None
    assert disk.read() == ([record(1), record(3)], None)


def test_what_was_appended_behind_lost_records_does_not_count(disk):
    with disk.journal() as (journal, root_fd):
        append(journal, root_fd, [record(1)])
        first = journal.append([record(2)], root_fd)
        second = journal.append([record(3)], root_fd)
        journal.failed()
        for position in (second, first):
            with pytest.raises(OSError, match="lost"):
                journal.synced(position)
        assert journal.durable == Position(1, 1)
        append(journal, root_fd, [record(4)])
        assert list(journal.records(root_fd)) == [record(1), record(4)]
    assert disk.read() == ([record(1), record(4)], None)


@pytest.mark.parametrize("length", [0, 100, 300])
def test_a_segment_that_somebody_else_has_changed_is_told_and_left(disk, length):
    with disk.journal() as (journal, root_fd):
        append(journal, root_fd, [record(1)])
        with disk.segments()[0].open("r+b") as segment:
            segment.truncate(length)
        append(journal, root_fd, [record(2)])
        assert "segment 1 has" in journal.damage
    assert record(2) in disk.read()[0]


def test_a_segment_has_its_name_once_its_header_is_durable(quick_path):
    files = RecordingFiles()
    disk = IndexDisk(quick_path / "disk", files)
    disk.append([record(1)])
    calls = [(call.name, call.path) for call in files.calls]
    new, index = ".stor/index/journal.new", ".stor/index"
    rename = next(n for n, call in enumerate(files.calls) if call.name == "rename")
    assert calls.index(("create", new)) < calls.index(("sync", new)) < rename
    appended = calls.index(("open_to_append", ".stor/index/journal-000000000001"))
    assert ("sync", index) in calls[rename:appended]


def test_records_are_durable_before_they_are_said_to_be_and_before_another_segment(quick_path):
    files = RecordingFiles()
    disk = IndexDisk(quick_path / "disk", files)
    with disk.journal() as (journal, root_fd):
        append(journal, root_fd, [record(1)])
        segment = ".stor/index/journal-000000000001"
        assert [call.name for call in files.calls if call.path == segment][-2:] == ["sync", "close"]
        journal.append([record(2)], root_fd)
        files.calls.clear()
        journal.rotate(root_fd)
    calls = [(call.name, call.path) for call in files.calls]
    assert calls.index(("sync", segment)) < calls.index(("create", ".stor/index/journal.new"))


def test_old_segments_are_removed_once_the_base_covers_them(disk):
    for number in range(1, 6):
        disk.append([record(number)])
    with disk.journal() as (journal, root_fd):
        for before_ns, covered, first in ((0, 5, 1), (2**63, 0, 1), (2**63, 2, 3), (2**63, 9, 5)):
            journal.remove(before_ns, covered, root_fd)
            assert journal.first == first
            assert len(disk.segments()) == 6 - first
        assert journal.stored_bytes(root_fd) == disk.segments()[0].stat().st_size
    assert disk.read(covered=4) == ([record(5)], None)


def test_how_far_a_journal_reaches_back(disk):
    with disk.journal() as (journal, root_fd):
        assert journal.reaches(0, root_fd)
    for number in range(1, 6):
        disk.append([record(number * 10)])
    with disk.journal(covered=4) as (journal, root_fd):
        assert journal.reaches(0, root_fd)
        journal.remove(2**63, 2, root_fd)
        assert not journal.reaches(19, root_fd)
        assert journal.reaches(20, root_fd)
    for path in disk.segments():
        path.unlink()
    with disk.journal(covered=5) as (journal, root_fd):
        assert not journal.reaches(1000, root_fd)


def test_sequence_numbers_need_not_come_in_order(disk):
    for number in (3, 1, 7, 2, 9, 8):
        disk.append([record(number)])
    assert [one.sequence for one in disk.read(after=2)[0]] == [3, 7, 9, 8]
    assert [one.sequence for one in disk.read(after=7)[0]] == [9, 8]
