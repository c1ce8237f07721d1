"""A sample being read: from whichever copy is good, and never a wrong byte taken for a whole."""

import errno
import hashlib
from array import array

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from stor.block_sums import BlockSums
from stor.content import READ_SECONDS, SETTLE_SECONDS, Content
from stor.digest import Digest
from stor.errors import Changed, Damaged, Unavailable
from tests.conformance import result_of, sample, start

SAMPLE = sample(10_000)
PIECE_BYTES = 1000
OFFSETS = range(0, len(SAMPLE), PIECE_BYTES)


class FakeSource:
    """A copy with any bytes; reads at the offsets `fails` raise, those at `hangs` never end."""

    def __init__(
        self,
        place="copy",
        data=SAMPLE,
        fails=(),
        hangs=(),
        size=None,
        whole=None,
        proven=False,
        sums=None,
    ):
        self.place = self.storage = place
        self.data = data
        self.size = len(data) if size is None else size
        self.modified_ns = 5 * 10**9
        self.whole = whole
        self.proven = proven
        self.provable = True
        self.sums = sums
        self.fails = fails
        self.hangs = hangs
        self.hanging = None
        self.closed = 0
        self.reads = []

    def read(self, offset, length, hasher):
        assert not self.closed
        self.reads.append(offset)
        if offset in self.hangs:
            self.hanging = Deferred().addCallback(lambda _: self._read(offset, length, hasher))
            return self.hanging
        return execute(self._read, offset, length, hasher)

    def adopt(self, sums):
        self.sums = sums

    def read_checked(self, offset, length):
        assert not self.closed
        self.reads.append(offset)
        if offset in self.hangs:
            self.hanging = Deferred()
            return self.hanging
        return execute(self._read_checked, offset, length)

    def send(self, splice_pipe, offset, length):
        assert not self.closed
        if offset in self.hangs:
            self.hanging = Deferred()
            return self.hanging
        return execute(self._send, splice_pipe, offset, length)

    def close(self):
        self.closed += 1

    def _read_checked(self, offset, length):
        begin, end = self.sums.block(offset)
        if any(begin <= fail < end for fail in self.fails):
            raise OSError(errno.EIO, "Input/output error")
        if not self.sums.fits(begin, self.data[begin:end]):
            raise Damaged(f"{self.place}: a wrong block")
        return self.data[offset : min(end, offset + length)]

    def _send(self, splice_pipe, offset, length):
        if self.sums is not None and not self.proven:
            end = offset + length
            while offset < end:
                data = self._read_checked(offset, end - offset)
                splice_pipe.sent += data
                offset += len(data)
            return True
        if offset in self.fails:
            raise OSError(errno.EIO, "Input/output error")
        if offset >= len(self.data):
            raise Changed(f"{self.place} was changed")
        splice_pipe.sent += self.data[offset : offset + length]
        return True

    def _read(self, offset, length, hasher):
        data = self.data[offset : offset + length]
        if hasher is not None:
            hasher.update(data)
        if offset in self.fails:
            raise OSError(errno.EIO, "Input/output error")
        if len(data) < length:
            raise Damaged(f"{self.place} ends too early")
        whole = hasher is not None and offset + length == self.size
        if whole and hasher.digest() != hashlib.sha256(SAMPLE).digest():
            raise Damaged(f"{self.place} has the wrong hash")
        return data


class FakeCopies:
    """The copies that are left; what is said of those that were tried.

    `beside`: each is kept beside the others, on another disk of the same set.
    """

    def __init__(self, *sources, beside=False):
        self.sources = list(sources)
        self.beside = beside
        self.corrupt = []
        self.suspected = []
        self.twins = 0
        self.closed = 0

    async def next(self):
        return self.sources.pop(0) if self.sources else None

    async def twin(self, source):
        self.twins += 1
        return await self.next() if self.beside else None

    def mark_corrupt(self, source, reason):
        self.corrupt.append(source.place)

    def suspect(self, source):
        self.suspected.append(source.place)

    def close(self):
        self.closed += 1


class Reading:
    """A sample that is read from the first of `sources` on."""

    def __init__(self, *sources, beside=False):
        self.sources = sources
        self.copies = FakeCopies(*sources[1:], beside=beside)
        self.clock = Clock()
        self.content = Content(Digest.of(SAMPLE), sources[0], self.copies, self.clock)
        self.given = b""

    def read(self, length=PIECE_BYTES):
        """The next part; it is added to what was given."""
        length = min(length, len(SAMPLE) - len(self.given))
        self.given += result_of(self.content.read(len(self.given), length))

    def read_all(self, length=PIECE_BYTES):
        """What the whole of it is."""
        while len(self.given) < len(SAMPLE):
            self.read(length)
        return self.given

    def close(self):
        """Close it; every copy that was ever used is closed, once."""
        self.content.close()
        unused = self.copies.sources
        assert [source.closed for source in self.sources if source not in unused] == [1] * (
            len(self.sources) - len(unused)
        )
        assert self.copies.closed == 1


@pytest.mark.parametrize("length", [1, 999, 1000, 9999, 10_000, 20_000])
def test_a_good_copy_is_read_from_the_first_byte_to_the_last(length):
    reading = Reading(FakeSource(), FakeSource())
    assert reading.read_all(length) == SAMPLE
    reading.close()
    assert (reading.copies.corrupt, reading.copies.suspected) == ([], [])
    assert reading.sources[1].reads == []


def test_the_first_copy_says_size_and_time():
    content = Reading(FakeSource(whole=SAMPLE)).content
    assert (content.size, content.modified_ns, content.whole) == (10_000, 5 * 10**9, SAMPLE)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_read_error_at_byte_k_goes_on_at_byte_k_from_the_next_copy(offset):
    bad, good = FakeSource("bad", fails=[offset]), FakeSource("good")
    reading = Reading(bad, good)
    assert reading.read_all() == SAMPLE
    assert bad.reads == [k for k in OFFSETS if k <= offset]
    assert good.reads == [k for k in OFFSETS if k >= offset]
    assert reading.copies.suspected == ["bad"]
    assert reading.copies.corrupt == []
    reading.close()


def test_every_part_can_come_from_another_copy():
    copies = [FakeSource(f"copy {k}", fails=[k + PIECE_BYTES]) for k in OFFSETS]
    reading = Reading(*copies)
    assert reading.read_all() == SAMPLE
    assert reading.copies.suspected == [copy.place for copy in copies[:-1]]
    reading.close()


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_hung_read_is_left_for_the_next_copy(offset):
    hung, good = FakeSource("hung", hangs=[offset]), FakeSource("good")
    reading = Reading(hung, good)
    while len(reading.given) < offset:
        reading.read()
    answer = start(reading.content.read(offset, PIECE_BYTES))
    reading.clock.advance(READ_SECONDS - 0.1)
    assert not answer
    reading.clock.advance(0.1)
    assert answer == [SAMPLE[offset : offset + PIECE_BYTES]]
    reading.given += answer[0]
    # What comes too late changes nothing, not even the hash.
    hung.data = bytes(len(SAMPLE))
    hung.hanging.addErrback(lambda late: late.trap(Damaged)).callback(None)
    assert reading.read_all() == SAMPLE
    assert reading.copies.suspected == ["hung"]
    reading.close()


def flipped(place):
    data = bytearray(SAMPLE)
    data[place] ^= 1
    return bytes(data)


@pytest.mark.parametrize("place", [0, 1, 5000, 8999, 9000, 9999])
def test_with_a_wrong_hash_the_last_part_is_withheld(place):
    reading = Reading(FakeSource("bad", flipped(place)), FakeSource("good"))
    with pytest.raises(Damaged):
        reading.read_all()
    assert len(reading.given) == 9000
    assert reading.copies.corrupt == ["bad"]
    reading.close()


def test_every_copy_that_gave_a_part_of_a_wrong_whole_is_condemned():
    first = FakeSource("first", flipped(0), fails=[3000])
    second, third = FakeSource("second", fails=[6000]), FakeSource("third")
    reading = Reading(first, second, third)
    with pytest.raises(Damaged):
        reading.read_all()
    assert sorted(reading.copies.corrupt) == ["first", "second", "third"]
    assert len(reading.given) == 9000


@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_a_copy_that_is_wrong_in_its_only_read_is_left_for_the_next(place):
    reading = Reading(FakeSource("bad", flipped(place)), FakeSource("good"))
    assert reading.read_all(len(SAMPLE)) == SAMPLE
    assert reading.copies.corrupt == ["bad"]
    reading.close()


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_copy_that_was_read_whole_already_goes_on_as_any_other(offset):
    reading = Reading(FakeSource("bad", fails=[offset]), FakeSource("good", whole=SAMPLE))
    assert reading.read_all() == SAMPLE
    assert (reading.copies.corrupt, reading.sources[1].reads) == ([], [])
    reading.close()


def test_a_good_whole_tells_that_a_part_given_out_before_was_bad():
    bad = FakeSource("bad", flipped(0), fails=[3000])
    reading = Reading(bad, FakeSource("good", whole=SAMPLE))
    with pytest.raises(Damaged):
        reading.read_all()
    assert len(reading.given) == 9000
    assert reading.copies.corrupt == ["bad"]
    reading.close()


def test_a_copy_that_ends_too_early_is_left_for_the_next():
    reading = Reading(FakeSource("short", SAMPLE[:5500], size=len(SAMPLE)), FakeSource("good"))
    assert reading.read_all() == SAMPLE
    assert reading.copies.corrupt == ["short"]
    reading.close()


@pytest.mark.parametrize("size", [0, 1, 9999, 10_001])
def test_a_copy_of_another_size_is_passed_over(size):
    other = FakeSource("other", bytes(size))
    reading = Reading(FakeSource("bad", fails=[4000]), other, FakeSource("good"))
    assert reading.read_all() == SAMPLE
    assert other.reads == []
    reading.close()


@pytest.mark.parametrize("offset", OFFSETS)
def test_with_no_copy_that_can_be_read_it_is_unavailable(offset):
    reading = Reading(FakeSource("one", fails=[0]), FakeSource("two", fails=[offset]))
    with pytest.raises(Unavailable):
        reading.read_all()
    assert reading.given == SAMPLE[:offset]
    with pytest.raises(Damaged):
        result_of(reading.content.read(offset, PIECE_BYTES))
    reading.close()


def test_with_nothing_but_damaged_copies_it_is_damaged():
    copies = [FakeSource(str(k), flipped(k)) for k in range(3)]
    reading = Reading(*copies)
    with pytest.raises(Damaged):
        reading.read_all(len(SAMPLE))
    assert reading.copies.corrupt == ["0", "1", "2"]
    reading.close()


def test_closing_twice_closes_once():
    reading = Reading(FakeSource())
    reading.read()
    reading.content.close()
    reading.content.close()
    assert reading.sources[0].closed == 1


def part(*sources, beside=True):
    reading = Reading(*sources, beside=beside)
    reading.content.take_part(len(SAMPLE))
    return reading


def read_part(reading, offset, length):
    return result_of(reading.content.read(offset, length))


def test_a_part_is_compared_with_another_copy():
    reading = part(FakeSource("one"), FakeSource("two"))
    for offset, length in [(5000, 100), (9990, 10), (0, 1), (0, 10_000)]:
        assert read_part(reading, offset, length) == SAMPLE[offset : offset + length]
    assert reading.sources[0].reads == reading.sources[1].reads == [5000, 9990, 0, 0]
    assert reading.copies.twins == 1
    reading.close()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_part_that_differs_between_copies_is_that_of_the_right_one(bad):
    copies = [FakeSource("one"), FakeSource("two")]
    copies[bad].data = flipped(5000)
    reading = part(*copies)
    assert read_part(reading, 0, 5000) == SAMPLE[:5000]
    assert read_part(reading, 5000, 1) == SAMPLE[5000:5001]
    assert copies[1 - bad].place not in reading.copies.corrupt
    assert reading.copies.suspected
    reading.close()


def test_a_part_of_the_only_copy_is_given_to_its_end_when_all_of_it_is_right():
    reading = Reading(FakeSource())
    reading.content.take_part(7300)
    assert read_part(reading, 7000, 200) == SAMPLE[7000:7200]
    assert reading.sources[0].reads == [7000]
    assert read_part(reading, 7200, 100) == SAMPLE[7200:7300]
    assert reading.sources[0].reads == [7000, 7200, 0]
    reading.close()


@pytest.mark.parametrize("place", [0, 7250, 9999])
def test_a_part_of_the_only_copy_is_not_given_to_its_end_when_the_copy_is_wrong(place):
    reading = Reading(FakeSource("bad", flipped(place)))
    reading.content.take_part(7300)
    read_part(reading, 7000, 200)
    with pytest.raises(Damaged):
        read_part(reading, 7200, 100)
    assert reading.copies.corrupt == ["bad"]
    reading.close()


def test_another_copy_that_cannot_be_read_says_nothing():
    reading = part(FakeSource("one"), FakeSource("two", fails=[10]), FakeSource("three"))
    assert read_part(reading, 10, 90) == SAMPLE[10:100]
    assert read_part(reading, 100, 90) == SAMPLE[100:190]
    assert reading.copies.suspected == ["two"]
    assert reading.sources[2].reads == [10, 100]
    reading.close()


def test_a_part_goes_on_with_the_copy_it_was_compared_with():
    reading = part(FakeSource("one", fails=[200]), FakeSource("two"))
    assert read_part(reading, 100, 100) + read_part(reading, 200, 100) == SAMPLE[100:300]
    assert reading.copies.suspected == ["one"]
    reading.close()


class FakeConduit:
    """What was sent, and by whom it was lent."""

    def __init__(self):
        self.sent = b""
        self.lent = []

    def lend(self, filling):
        self.lent.append(filling)


class Passing(Reading):
    """A sample that is sent unread where that can be done."""

    def pass_or_read(self, length=PIECE_BYTES):
        offset = len(self.given)
        self.given += passed_or_read(self.content, offset, min(length, len(SAMPLE) - offset))

    def all(self):
        idle = 0
        while len(self.given) < len(SAMPLE):
            before = len(self.given)
            self.pass_or_read()
            idle = 0 if len(self.given) > before else idle + 1
            assert idle < 4, f"what has failed at byte {before} is tried again and again"
        return self.given


def passed_or_read(content, offset, length):
    """Up to `length` bytes from `offset`, past memory where that can be done."""
    if not content.sendable:
        return result_of(content.read(offset, length))
    splice_pipe = FakeConduit()
    result_of(content.send(splice_pipe, offset, length))
    return splice_pipe.sent


def test_a_proven_copy_is_not_read():
    reading = Passing(FakeSource(proven=True), FakeSource())
    assert reading.all() == SAMPLE
    assert reading.sources[0].reads == []
    reading.close()


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("proven", [True, False])
def test_an_error_at_byte_k_of_a_proven_copy_goes_on_at_byte_k(offset, proven):
    bad = FakeSource("bad", fails=[offset], proven=True)
    good = FakeSource("good", proven=proven)
    reading = Passing(bad, good)
    assert reading.all() == SAMPLE
    assert reading.copies.suspected == ["bad"]
    assert reading.copies.corrupt == []
    # What is read is hashed from the first byte on.
    rest = [k for k in OFFSETS if k >= offset]
    assert good.reads == ([] if proven else [0, *rest] if offset else rest)
    reading.close()


@pytest.mark.parametrize("place", [0, 4999, 5000, 8999, 9999])
def test_after_a_proven_copy_another_is_verified_as_a_whole(place):
    bad = FakeSource("bad", flipped(place))
    reading = Passing(FakeSource("good", fails=[5000], proven=True), bad)
    with pytest.raises(Damaged):
        reading.all()
    assert len(reading.given) == 9000
    assert reading.copies.corrupt == ["bad"]
    reading.close()


def test_an_error_while_the_hash_is_made_up_for_goes_on_with_the_next():
    first = FakeSource("first", fails=[5000], proven=True)
    second, third = FakeSource("second", fails=[0]), FakeSource("third")
    reading = Passing(first, second, third)
    assert reading.all() == SAMPLE
    assert reading.copies.suspected == ["first", "second"]
    reading.close()


def test_a_proven_copy_that_hangs_is_left_for_the_next():
    hung = FakeSource("hung", hangs=[3000], proven=True)
    reading = Passing(hung, FakeSource("good"))
    for _ in range(3):
        reading.pass_or_read()
    splice_pipe = FakeConduit()
    answer = start(reading.content.send(splice_pipe, 3000, PIECE_BYTES))
    reading.clock.advance(READ_SECONDS)
    assert answer == [False]
    assert splice_pipe.lent == [hung.hanging]
    assert reading.all() == SAMPLE
    hung.hanging.callback(True)
    reading.close()


def test_a_file_that_is_changed_before_anything_of_it_is_sent_is_left_for_the_next():
    reading = Passing(FakeSource("cut", b"", size=len(SAMPLE), proven=True), FakeSource("good"))
    assert reading.all() == SAMPLE
    assert reading.copies.suspected == ["cut"]
    reading.close()


def test_a_file_that_is_changed_later_saves_nothing():
    cut = FakeSource("cut", SAMPLE[:5000], size=len(SAMPLE), proven=True)
    reading = Passing(cut, FakeSource("good"))
    with pytest.raises(Damaged):
        reading.all()
    assert reading.given == SAMPLE[:5000]
    assert reading.copies.suspected == ["cut"]
    reading.close()


def test_a_client_that_is_gone_is_read_nothing_for():
    reading = Passing(FakeSource("bad", fails=[9000], proven=True), FakeSource("good"))
    while len(reading.given) < 9000:
        reading.pass_or_read()
    reading.pass_or_read()
    reading.content.give_up()
    with pytest.raises((Damaged, Unavailable)):
        reading.pass_or_read()
    assert reading.sources[1].reads == []
    reading.close()


@pytest.mark.parametrize("place", [0, 999, 5000, 9000, 9999])
@pytest.mark.parametrize("bad", [0, 1])
def test_where_two_copies_differ_the_right_one_goes_on(place, bad):
    copies = [FakeSource("one"), FakeSource("two")]
    copies[bad].data = flipped(place)
    reading = Reading(*copies, beside=True)
    assert reading.read_all() == SAMPLE
    assert copies[1 - bad].place not in reading.copies.corrupt
    assert reading.copies.suspected
    reading.close()


def test_where_two_copies_differ_and_both_are_wrong_nothing_more_is_given():
    reading = Reading(
        FakeSource("one", flipped(5000)), FakeSource("two", flipped(5001)), beside=True
    )
    with pytest.raises(Damaged):
        reading.read_all()
    assert reading.given == SAMPLE[:5000]
    assert sorted(reading.copies.corrupt) == ["one", "two"]
    reading.close()


def test_nobody_waits_long_for_a_first_byte_that_is_in_doubt():
    one, two = FakeSource("one", SAMPLE[:-1], hangs=[0]), FakeSource("two", hangs=[0])
    reading = Reading(one, two, beside=True)
    asked = start(reading.content.prepare())
    reading.clock.advance(SETTLE_SECONDS)
    asked[0].trap(Unavailable)
    assert reading.copies.suspected == ["one"]


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 5000, 9999, 10_001])
@pytest.mark.parametrize("summed", [True, False])
def test_of_two_copies_that_differ_in_size_the_right_one_is_promised(cut, size, summed):
    copies = [FakeSource("one"), FakeSource("two")]
    copies[cut].data = (SAMPLE + b"x")[:size]
    copies[cut].size = size
    copies[1 - cut].sums = SUMS if summed else None
    reading = Reading(*copies, beside=True)
    result_of(reading.content.prepare())
    assert reading.content.size == len(SAMPLE)
    assert reading.content.place == copies[1 - cut].place
    assert reading.read_all() == SAMPLE
    reading.close()


BLOCKS = range(0, len(SAMPLE), 1500)


SUMS = BlockSums(
    Digest.of(SAMPLE),
    len(SAMPLE),
    1500,
    array("I", [crc32c(SAMPLE[b : b + 1500]) for b in BLOCKS]),
)


@st.composite
def damages(draw):
    """Two copies with sums, each block of which is good on one of them at least."""
    copies = [bytearray(SAMPLE), bytearray(SAMPLE)]
    fails = [set(), set()]
    for begin in BLOCKS:
        bad, how = draw(
            st.sampled_from([(0, "flip"), (1, "flip"), (0, "fail"), (1, "fail"), (0, "")])
        )
        at = draw(st.integers(begin, min(begin + 1500, len(SAMPLE)) - 1))
        if how == "flip":
            copies[bad][at] ^= 1
        elif how == "fail":
            fails[bad].add(at)
    return [FakeSource(str(i), bytes(copies[i]), fails=fails[i], sums=SUMS) for i in (0, 1)]


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(
    damages(),
    st.integers(0, 9999),
    st.integers(1, 10_000),
    st.integers(1, 3000),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_each_block_that_is_good_on_one_copy_is_given(
    copies, begin, length, step, part, lacks, passed
):
    if lacks:  # the sums of one copy are good for both
        copies[0].sums = None
    end = min(begin + length, len(SAMPLE)) if part else len(SAMPLE)
    begin = begin if part else 0
    reading = Reading(*copies, beside=True)
    result_of(reading.content.prepare())
    if part:
        reading.content.take_part(end)
    given, turns = b"", 0
    while begin + len(given) < end:
        offset = begin + len(given)
        wanted = min(step, end - offset)
        turns += 1
        assert turns <= 2 * (len(given) + 1)  # every other turn gives something
        if passed:
            given += passed_or_read(reading.content, offset, wanted)
        else:
            given += result_of(reading.content.read(offset, wanted))
    assert given == SAMPLE[begin:end]
    assert reading.copies.corrupt == []
    reading.close()


@pytest.mark.parametrize("passed", [False, True], ids=["read", "passed"])
@pytest.mark.parametrize("place", [0, 1499, 1500, 9999])
def test_a_block_that_is_wrong_on_both_copies_ends_the_answer_before_it(place, passed):
    reading = Passing(*[FakeSource(k, flipped(place), sums=SUMS) for k in "ab"], beside=True)
    with pytest.raises(Damaged):
        reading.all() if passed else reading.read_all(500)
    assert reading.given == SAMPLE[: place - place % 1500]
    assert sorted(reading.copies.corrupt) == ["a", "b"]
    reading.close()


def test_a_copy_without_sums_is_checked_by_those_of_the_copy_that_failed():
    reading = Reading(
        FakeSource("bad", flipped(4000), sums=SUMS),
        FakeSource("s3", flipped(9000)),
        FakeSource("c"),
    )
    assert reading.read_all() == SAMPLE
    assert reading.copies.suspected == ["bad", "s3"]
    reading.close()


COPY = st.builds(
    lambda data, fails, damage: FakeSource(
        data=data if damage is None else flipped(damage), fails=fails
    ),
    st.sampled_from([SAMPLE] * 4 + [SAMPLE[:-1], SAMPLE + b"\0", b""]),
    st.sets(st.sampled_from(OFFSETS), max_size=3),
    st.none() | st.integers(0, len(SAMPLE) - 1),
)


@settings(derandomize=True, deadline=None, database=None, max_examples=500)
@given(st.lists(COPY, max_size=5))
def test_whatever_the_copies_are_like_a_whole_is_the_sample(others):
    reading = Reading(FakeSource(fails=[3000]), *others)
    try:
        reading.read_all()
    except (Damaged, Unavailable):
        assert len(reading.given) < len(SAMPLE)
    else:
        assert reading.given == SAMPLE
    reading.close()


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(st.lists(COPY, max_size=5), st.integers(0, 5))
def test_read_errors_alone_never_cost_the_answer_while_one_copy_is_good(others, place):
    for copy in others:
        copy.data, copy.size = SAMPLE, len(SAMPLE)
    copies = [*others[:place], FakeSource(), *others[place:]]
    reading = Reading(*copies)
    assert reading.read_all() == SAMPLE
    reading.close()
