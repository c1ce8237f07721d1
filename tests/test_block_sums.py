"""The sums of a sample's blocks: made from any pieces, kept small, and believed only when whole."""

import errno
import hashlib
import os
from array import array
from itertools import pairwise

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.block_sums import (
    MAX_ENCODED_BYTES,
    MIN_BLOCK_BYTES,
    BadSums,
    BlockSummer,
    BlockSums,
)
from stor.digest import Digest
from stor.disk.copy import Copy, OpenCopy, keep_sums, kept_sums
from stor.disk.disk import Disk
from stor.disk.syscalls import Syscalls
from tests.conformance import MIB, sample
from tests.support.files import RecordingFiles
from tests.support.staging import begin, name


def sums_of(data, pieces=()):
    """The sums of `data`, which is given in pieces that end at `pieces`."""
    summer, begin = BlockSummer(), 0
    for end in (*sorted(pieces), len(data)):
        summer.update(data[begin:end])
        begin = end
    return summer.finish(Digest.of(data))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 3 * MIN_BLOCK_BYTES), cuts=st.lists(st.integers(0, 1000), max_size=6))
def test_the_sums_do_not_depend_on_the_pieces_that_a_sample_comes_in(size, cuts):
    data = sample(size)
    sums = sums_of(data, [cut * size // 1000 for cut in cuts])
    blocks = [data[i : i + MIN_BLOCK_BYTES] for i in range(0, size, MIN_BLOCK_BYTES)]
    assert list(sums.sums) == [crc32c(block) for block in blocks]


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 3 * MIN_BLOCK_BYTES),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
    turns=st.lists(st.integers(0, 2), min_size=30, max_size=30),
)
def test_copies_that_are_written_at_once_have_each_byte_summed_once(size, cuts, turns):
    """Whichever of three copies is written first, and whichever stops on the way."""
    data = sample(size)
    ends = sorted({*(cut * size // 1000 for cut in cuts), size})
    pieces = [data[first:end] for first, end in pairwise([0, *ends])]
    summer, done, position = BlockSummer(), [0, 0, 0], [0, 0, 0]
    for copy in [*turns, *([1] * len(pieces))]:
        if done[copy] < len(pieces):
            piece = pieces[done[copy]]
            summer.update(piece, position[copy])
            done[copy] += 1
            position[copy] += len(piece)
    assert summer.finish(Digest.of(data)) == sums_of(data)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9 * MIN_BLOCK_BYTES), times=st.integers(1, 5))
def test_coarser_sums_are_those_of_larger_blocks(size, times):
    data = sample(size)
    sums = sums_of(data)
    for _ in range(times):
        sums = sums.coarser() or sums
    assert len(sums.sums) == -(-size // sums.block_bytes)
    for first in range(0, size, sums.block_bytes):
        assert sums.fits(first, data[first : first + sums.block_bytes])
    assert BlockSums.parse(sums.encode(), Digest.of(data), size) == sums


@settings(max_examples=50, deadline=None)
@given(size=st.integers(MIN_BLOCK_BYTES + 1, 3 * MIN_BLOCK_BYTES), where=st.data())
def test_a_block_with_a_flipped_bit_or_of_another_place_does_not_fit(size, where):
    data = sample(size)
    sums = sums_of(data)
    position = where.draw(st.integers(0, size - 1))
    begin, end = sums.block(position)
    block = bytearray(data[begin:end])
    block[position - begin] ^= 1 << where.draw(st.integers(0, 7))
    assert not sums.fits(begin, bytes(block))
    assert not sums.fits(begin, data[begin : end - 1])
    assert not sums.fits(begin + 1, data[begin + 1 : end])


@pytest.mark.parametrize("blocks", [1, 2, 889, 890, 891, 5000])
def test_the_sums_of_a_sample_of_any_size_fit_beside_it(blocks):
    summer, block = BlockSummer(), bytes(MIN_BLOCK_BYTES)
    for _ in range(blocks):
        summer.update(block)
    made = summer.finish(Digest.of(b"any"))
    assert len(made.encode()) <= MAX_ENCODED_BYTES
    assert len(made.sums) > 889 / 2 or made.block_bytes == MIN_BLOCK_BYTES
    assert made.fits(0, block * min(blocks, made.block_bytes // MIN_BLOCK_BYTES))


DATA = sample(3 * MIN_BLOCK_BYTES)
ENCODED = sums_of(DATA).encode()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda e: b"", "too short"),
        (lambda e: e[:-1], "damaged"),
        (lambda e: e + b"\0", "damaged"),
        (lambda e: e[:9] + bytes([e[9] ^ 1]) + e[10:], "damaged"),
        (lambda e: resealed(bytes([9]) + e[1:-4]), "version 9"),
        (lambda e: resealed(e[:1] + bytes([3]) + e[2:-4]), "2\\^3"),
        (lambda e: resealed(e[:-8]), "one sum for each block"),
        (lambda e: resealed(e[:-4] + bytes(4)), "one sum for each block"),
        (lambda e: sums_of(DATA[1:] + b"x").encode(), "another sample"),
        (lambda e: sums_of(DATA[1:]).encode(), "another sample"),
    ],
)
def test_sums_that_cannot_be_the_samples_are_refused(damage, reason):
    assert BlockSums.parse(ENCODED, Digest.of(DATA), len(DATA)) == sums_of(DATA)
    with pytest.raises(BadSums, match=reason):
        BlockSums.parse(damage(ENCODED), Digest.of(DATA), len(DATA))


def resealed(body):
    """A body with a right sum of itself."""
    return body + crc32c(body).to_bytes(4, "little")


class LittleRoom(Syscalls):
    """A file system that has little room for attributes, or none, as ext4 with blocks of 1 KiB."""

    def __init__(self, room, error=errno.ENOSPC):
        self.room = room
        self.error = error

    def set_attribute(self, fd, name, value):
        if len(value) > self.room:
            raise OSError(self.error, os.strerror(self.error))
        super().set_attribute(fd, name, value)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.E2BIG, errno.ERANGE])
@pytest.mark.parametrize(("room", "blocks"), [(1000, 12), (50, 6), (40, 3), (28, 1), (27, None)])
def test_block_sums_are_coarser_where_there_is_less_room_for_them(tmp_path, room, blocks, error):
    content = sample(12 * MIN_BLOCK_BYTES)
    path = tmp_path / "copy"
    path.write_bytes(content)
    summer = BlockSummer()
    summer.update(content)
    fd = os.open(path, os.O_RDONLY)
    keep_sums(LittleRoom(room, error), fd, summer.finish(Digest.of(content)))
    kept = kept_sums(Syscalls(), fd, Digest.of(content), len(content))
    os.close(fd)
    assert (kept and len(kept.sums)) == blocks


@pytest.mark.parametrize(
    "error", [errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EROFS, errno.EIO]
)
def test_a_file_system_that_keeps_no_attributes_keeps_samples_without_sums(tmp_path, error):
    files = LittleRoom(0, error)
    disk = Disk(str(tmp_path), files)
    disk.identify(tmp_path.stat().st_dev)
    content = sample(300_000)
    staged = begin(disk, None)
    staged.write([content])
    staged.seal(Digest.of(content), 10**9)
    staged.sync()
    name(staged, Digest.of(content))
    staged.close()
    opened = disk.open(Digest.of(content))
    assert opened.sums is None
    assert opened.read(0, len(content), hashlib.sha256()) == content
    assert opened.proven
    opened.close()


def test_a_part_in_the_middle_of_a_very_large_sample_reads_its_own_blocks_and_no_others(tmp_path):
    size, begin = 10 * 2**30, 5 * 2**30 + 12_345
    files = RecordingFiles()
    with open(tmp_path / "copy", "wb") as file:
        file.truncate(size)
    summer = BlockSummer()
    summer.update(bytes(MIB))
    block = summer.finish(Digest.of(b"any")).coarser().coarser()
    sums = BlockSums(block.digest, size, MIB, array("I", block.sums * (size // MIB)))
    while len(sums.encode()) > MAX_ENCODED_BYTES:
        sums = sums.coarser()
    root_fd = files.open_directory(str(tmp_path))
    fd = files.open_to_read("copy", root_fd)
    files.close(root_fd)
    copy = OpenCopy(files, sums.digest, Copy("copy", size, 0, ""), fd, sums=sums)
    given = b""
    while len(given) < MIB:
        given += copy.read_checked(begin + len(given), MIB - len(given))
    copy.close()
    assert given == bytes(MIB)
    reads = [call.args[1:] for call in files.calls if call.name == "read"]
    assert max(length for length, _ in reads) <= 2 * MIB
    touched = {offset // sums.block_bytes for _, offset in reads}
    assert len(touched) <= 3
