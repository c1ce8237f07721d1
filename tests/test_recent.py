"""Recent names in shared memory: every process knows each from the moment it was told."""

import gc
import os
import random
import struct
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.index.recent import Recent, RecentDamaged, applied, named, reader_offset
from tests.conformance import descriptors
from tests.support.index import UUID, sha

NAMES, END = 30_000, b"\xff" * 32
OTHER_UUID = UUID.replace("6d", "7e")


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    gc.collect()  # what earlier tests have left is not this one's
    before = descriptors()
    yield
    assert descriptors() == before


@contextmanager
def processes(readers=1):
    """The writer, and some that read."""
    fd = Recent.create(bytes(32))
    known = [Recent(fd), *(Recent(fd, number) for number in range(readers))]
    try:
        yield fd, *known
    finally:
        for recent in known:
            recent.close()
        os.close(fd)


happenings = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=30)


@settings(deadline=None)
@given(happenings)
def test_a_reader_knows_what_the_writer_has_told(happened):
    with processes() as (fd, writer, reader):
        told = {}
        for number, set_number, held in happened:
            writer.add(sha(number), set_number, held=held)
            told.setdefault(number, []).append(set_number << 1 | held)
            assert reader.refresh()
            assert not reader.refresh()
            for name in range(10):
                expected = tuple(told.get(name, ()))
                assert reader.events(sha(name)) == writer.events(sha(name)) == expected
        for set_number in range(4):
            gain = sum(1 if held else -1 for _, its, held in happened if its == set_number)
            assert reader.gained(set_number) == writer.gained(set_number) == gain
        assert [(one.sha, one.set_number, one.held) for one in named(fd, 0, len(happened))] == [
            (sha(number), set_number, held) for number, set_number, held in happened
        ]


def test_events_are_applied_in_their_order_the_newest_set_first():
    held, left = 1, 0
    assert applied([], (3,)) == (3,)
    assert applied([5 << 1 | held], (3,)) == (5, 3)
    assert applied([5 << 1 | held, 3 << 1 | left], (3,)) == (5,)
    assert applied([3 << 1 | left, 3 << 1 | held, 3 << 1 | held], ()) == (3,)
    assert applied([7 << 1 | left], (3, 7)) == (3,)


def test_the_memory_grows_and_is_given_back():
    with processes() as (fd, writer, reader):
        for number in range(140_000):
            writer.add(number.to_bytes(32, "big"), 1, held=True)
        held = os.fstat(fd).st_blocks
        assert reader.refresh()
        assert reader.names == 140_000
        assert reader.events((139_999).to_bytes(32, "big")) == (3,)
        recent = writer.begin_table()
        writer.add(sha(1), 1, held=True)
        writer.publish_table(1)
        writer.uses(1, recent)
        writer.drop(recent)
        assert os.fstat(fd).st_blocks < held / 2
        assert writer.names == 1
        late = Recent(fd, 5)
        assert late.names == 1
        assert late.generation == 1
        late.close()
        reader.refresh()
        reader.uses(1, recent)
        assert (reader.names, reader.events(sha(1))) == (1, (3,))


def test_what_is_known_of_sets_outlives_what_is_dropped():
    with processes() as (fd, writer, reader):
        assert writer.add_set(UUID) == 0
        assert writer.add_set(OTHER_UUID) == 1
        writer.set_complete(1, True)
        for generation in (1, 2, 3):
            writer.add(sha(generation), 0, held=True)
            recent = writer.begin_table()
            writer.publish_table(generation)
            writer.uses(generation, recent)
            writer.drop(recent)
        for recent in (reader, late := Recent(fd, 7), again := Recent(fd)):
            recent.refresh()
            assert recent.sets == [UUID, OTHER_UUID]
            assert recent.complete == {1}
            assert recent.generation == 3
        late.close()
        again.close()
        writer.set_complete(1, False)
        reader.refresh()
        assert reader.complete == frozenset()


def test_a_set_is_not_complete_until_that_is_told():
    with processes() as (_, writer, reader):
        for call in (lambda: writer.add_set(UUID), lambda: writer.add(sha(1), 0, held=True)):
            call()
            reader.refresh()
            assert reader.complete == writer.complete == frozenset()


def test_a_table_counts_as_used_once_every_living_reader_has_said_so():
    with processes(2) as (fd, writer, one, other):
        assert not writer.confirmed(1)
        one.uses(1, 0)
        assert not writer.confirmed(1)
        other.uses(2, 0)
        assert writer.confirmed(1)
        assert not writer.confirmed(2)
        os.pwrite(fd, bytes(8), reader_offset(0))
        assert writer.confirmed(2)
        begun = Recent(fd, 255)
        assert not writer.confirmed(2)
        begun.uses(2, 0)
        assert writer.confirmed(2)
        begun.close()


def test_the_next_writer_goes_on_where_the_last_one_ended():
    with processes() as (fd, writer, reader):
        writer.add(sha(1), 0, held=True)
        # What the last one had begun to write.
        os.pwrite(fd, b"half a record", 65536 + 48)
        again = Recent(fd)
        assert again.events(sha(1)) == (1,)
        again.add(sha(2), 0, held=True)
        reader.refresh()
        assert reader.events(sha(2)) == again.events(sha(2)) == (1,)
        again.close()


@pytest.mark.parametrize("place", [0, 31, 32, 40, 47])
def test_a_record_that_is_not_whole_is_not_believed(place):
    with processes() as (fd, writer, reader):
        writer.add(sha(1), 0, held=True)
        flipped = os.pread(fd, 1, 65536 + place)[0] ^ 1
        os.pwrite(fd, bytes([flipped]), 65536 + place)
        with pytest.raises(RecentDamaged, match="recent name 0 is damaged"):
            reader.refresh()


def test_memory_of_another_version_is_refused():
    fd = Recent.create(bytes(32))
    os.pwrite(fd, struct.pack("=Q", 1), 0)
    with pytest.raises(RecentDamaged, match="another version"):
        Recent(fd)
    os.close(fd)


def test_a_reader_in_another_process_never_sees_half_of_anything():
    """It asks as often as it can, while the writer tells, makes tables and drops names."""
    with processes(0) as (fd, writer):
        child = os.fork()
        if not child:
            status = 1
            try:
                reader = Recent(fd, 0)
                sizes = set()
                while writer_tells(reader):
                    sizes.add(reader.names)
                status = 0 if len(sizes) > 3 else 2
            finally:
                os._exit(status)
        rng = random.Random(1)
        for number in range(NAMES):
            writer.add(number.to_bytes(32, "big"), number % 7, held=True)
            if rng.randrange(3000) == 0:
                writer.begin_table()
        writer.add(END, 0, held=True)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def writer_tells(reader):
    """Whether it goes on, once all that it has told was found right."""
    before = reader.names
    if reader.refresh():
        for number in range(before, min(NAMES, reader.names)):
            assert reader.events(number.to_bytes(32, "big")) == (number % 7 << 1 | 1,)
    return not reader.events(END)
