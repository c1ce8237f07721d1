"""What every store promises, as tests to inherit; and how tests drive a store.

A subclass of `StoreConformance` has a fixture `holding`: a function from contents to a store that
holds these samples and no others.
"""

import errno
import os
import random
from contextlib import suppress
from functools import cache, lru_cache
from itertools import count

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.errors import NotFound
from tests.support.files import FaultyFiles

MIB = 1024 * 1024
SIZES = (
    *(0, 1, 4095, 4096, 65535, 65536, 99999, 100000, 100001),
    *(262144, 262145, MIB - 1, MIB, MIB + 1),
)
PIECE_BYTES = 256 * 1024


def start(awaitable):
    """A list that will have one element, what `awaitable` returns or a `Failure`."""
    outcomes = []
    ensureDeferred(awaitable).addBoth(outcomes.append)
    return outcomes


def result_of(awaitable):
    """What `awaitable` returns or raises; it has ended, or this fails."""
    outcomes = start(awaitable)
    assert outcomes, "it still waits for something"
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome


@lru_cache(maxsize=100)
def sample(size, seed=0):
    """`size` bytes that look like nothing, the same ones each time."""
    return random.Random(f"{size} {seed}").randbytes(size)


@cache
def neighbours(digits, size=0):
    """Two contents of `size` bytes at least whose names begin with the same hexadecimal digits."""
    seen = {}
    for number in count():
        content = str(number).encode().ljust(size, b".")
        other = seen.setdefault(str(Digest.of(content))[:digits], content)
        if other != content:
            return other, content
    return None


def pieces(content, piece_bytes=PIECE_BYTES):
    """`content` cut up; one empty piece when it is empty."""
    return [content[i : i + piece_bytes] for i in range(0, len(content), piece_bytes)] or [b""]


async def put(store, content, *, length_known=True, piece_bytes=PIECE_BYTES):
    """Store `content` as an upload does: its paths, and whether this made it."""
    incoming = store.expect(Digest.of(content), len(content) if length_known else None)
    try:
        stored = await incoming.stored()
        if stored is not None:
            return stored, False
        await incoming.begin()
        *body, last = pieces(content, piece_bytes)
        for piece in body:
            await incoming.add([piece], last=False)
        await incoming.add([last], last=True)
        return await incoming.commit()
    finally:
        await incoming.leave()


async def read(store, digest, begin=0, end=None, piece_bytes=PIECE_BYTES):
    """The bytes of a sample from `begin` to `end`, as a download reads them."""
    content = await store.open(digest)
    try:
        end = content.size if end is None else end
        if content.whole is not None:
            return content.whole[begin:end]
        if (begin, end) != (0, content.size):
            content.take_part(end)
        return await read_on(content, begin, end, piece_bytes)
    finally:
        content.close()


async def read_on(content, begin, end, piece_bytes=PIECE_BYTES):
    """The bytes from `begin` to `end` of a sample that is open."""
    data = bytearray()
    while begin + len(data) < end:
        offset = begin + len(data)
        data += await content.read(offset, min(piece_bytes, end - offset))
    return bytes(data)


def descriptors():
    """How many files and directories the process has open, but for the memory of indexes."""
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the directory that is being listed
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(t.startswith("/") and not t.startswith("/memfd:stor-") for t in targets)


class QuickFiles(FaultyFiles):
    """Notes what is synced instead of waiting for it, on what it says is an ext4."""

    def sync(self, fd):
        self._before("sync", (fd,))
        os.fstat(fd)
        self._record("sync", (fd,), None)

    def type_of(self, fd):
        super().type_of(fd)
        return 0xEF53

    def sync_all(self, fd):
        self._before("sync_all", (fd,))
        os.fstat(fd)
        self._record("sync_all", (fd,), None)


def without_nameless_files(label="", log=None):
    """The system calls of a file system that has no O_TMPFILE."""
    files = QuickFiles(label, log)
    files.fail_always("open_nameless", errno.EOPNOTSUPP)
    return files


def release(held, index):
    """Do one job of a `HeldPool`, not the oldest but the one at `index`."""
    held.held.rotate(-index)
    held.release(1)


def every_order(scenario):
    """Run `scenario(choose)` once for every way its `choose(n)`, 0 to n - 1, can turn out.

    The number of ways.
    """
    path, ways = [], 0
    while True:
        taken = []

        def choose(n, path=path, taken=taken):
            choice = path[len(taken)] if len(taken) < len(path) else 0
            taken.append((choice, n))
            return choice

        scenario(choose)
        ways += 1
        while taken and taken[-1][0] == taken[-1][1] - 1:
            taken.pop()
        if not taken:
            return ways
        path = [choice for choice, _ in taken]
        path[-1] += 1


class StoreConformance:
    """What is promised of every store, also of one that nothing can be written to."""

    @pytest.mark.parametrize("size", SIZES)
    def test_a_sample_is_read_as_it_was_stored(self, holding, size):
        content = sample(size)
        store = holding([content])
        assert result_of(read(store, Digest.of(content))) == content

    @pytest.mark.parametrize("size", SIZES)
    def test_find_says_what_open_says(self, holding, size):
        digest = Digest.of(sample(size))
        store = holding([sample(size)])
        found = result_of(store.find(digest))
        content = result_of(store.open(digest))
        content.close()
        assert (found.size, found.modified_ns) == (size, content.modified_ns)
        assert (content.digest, content.size) == (digest, size)

    @pytest.mark.parametrize("size", SIZES)
    def test_any_part_can_be_read(self, holding, size):
        content = sample(size)
        store = holding([content])
        edges = sorted({0, 1, size // 3, size - 1, size} & set(range(size + 1)))
        for begin in edges:
            for end in edges:
                part = result_of(read(store, Digest.of(content), begin, max(begin, end)))
                assert part == content[begin:end]

    @pytest.mark.parametrize("piece_bytes", [5003, 65536, PIECE_BYTES, 2 * MIB])
    def test_the_size_of_the_pieces_makes_no_difference(self, holding, piece_bytes):
        content = sample(MIB + 1)
        store = holding([content])
        data = result_of(read(store, Digest.of(content), piece_bytes=piece_bytes))
        assert data == content

    def test_an_absent_sample_is_not_found(self, holding):
        content = sample(1000)
        store = holding([content])
        digest = Digest.of(content)
        neighbours = [
            Digest(bytes([digest.raw[0] ^ 0x80, *digest.raw[1:]])),
            Digest(bytes([*digest.raw[:-1], digest.raw[-1] ^ 1])),
            Digest(bytes(32)),
        ]
        for absent in neighbours:
            with pytest.raises(NotFound):
                result_of(store.find(absent))
            with pytest.raises(NotFound):
                result_of(store.open(absent))

    def test_an_empty_store_has_not_even_the_empty_sample(self, holding):
        store = holding([])
        with pytest.raises(NotFound):
            result_of(store.open(Digest.of(b"")))

    def test_many_samples_are_told_apart(self, holding):
        contents = [sample(n, seed=n) for n in range(50)]
        store = holding(contents)
        for content in contents:
            assert result_of(read(store, Digest.of(content))) == content

    @pytest.mark.parametrize("size", [1000, MIB])
    def test_readers_do_not_disturb_each_other(self, holding, size):
        content = sample(size)
        store = holding([content])
        first, second = (result_of(store.open(Digest.of(content))) for _ in range(2))
        if first.whole is None:
            data = result_of(first.read(0, 1000))
            assert result_of(read_on(second, 0, size)) == content
            second.close()
            data += result_of(read_on(first, 1000, size))
            first.close()
            assert data == content
        else:
            assert first.whole == second.whole == content

    @pytest.mark.parametrize("size", [1000, MIB])
    def test_a_closed_sample_holds_nothing(self, holding, size):
        store = holding([sample(size)])
        before = descriptors()
        for read_first in (False, True):
            content = result_of(store.open(Digest.of(sample(size))))
            if read_first and content.whole is None:
                result_of(content.read(0, 500))
            content.close()
            content.close()
        assert descriptors() == before


class WritableStoreConformance(StoreConformance):
    """What is promised of a store that takes new samples."""

    @pytest.mark.parametrize("size", SIZES)
    def test_what_is_put_is_there(self, holding, size):
        store, content = holding([]), sample(size)
        paths, created = result_of(put(store, content))
        assert created
        assert paths
        assert result_of(read(store, Digest.of(content))) == content
        assert result_of(store.find(Digest.of(content))).size == size

    @pytest.mark.parametrize("length_known", [True, False])
    @pytest.mark.parametrize("size", [0, 4096, 262145, MIB + 1])
    def test_what_is_put_again_is_stored_already(self, holding, size, length_known):
        store, content = holding([]), sample(size)
        paths, _ = result_of(put(store, content, length_known=length_known))
        assert result_of(put(store, content, length_known=length_known)) == (paths, False)
        assert result_of(read(store, Digest.of(content))) == content

    def test_what_the_store_holds_is_stored_already(self, holding):
        store = holding([sample(5000)])
        _, created = result_of(put(store, sample(5000)))
        assert not created

    @pytest.mark.parametrize("piece_bytes", [5003, 65536, PIECE_BYTES, 2 * MIB])
    def test_the_size_of_what_is_added_makes_no_difference(self, holding, piece_bytes):
        store, content = holding([]), sample(MIB + 1)
        result_of(put(store, content, piece_bytes=piece_bytes))
        assert result_of(read(store, Digest.of(content))) == content

    def test_an_absent_sample_is_not_stored(self, holding):
        incoming = holding([sample(1)]).expect(Digest.of(sample(2)), 2)
        assert result_of(incoming.stored()) is None
        result_of(incoming.leave())

    @pytest.mark.parametrize("size", [0, 1000, 3 * MIB])
    def test_nothing_is_there_before_the_commit(self, holding, size):
        store, content = holding([]), sample(size)
        digest = Digest.of(content)

        def absent():
            with pytest.raises(NotFound):
                result_of(store.open(digest))

        incoming = store.expect(digest, size)
        result_of(incoming.stored())
        absent()
        result_of(incoming.begin())
        absent()
        result_of(incoming.add([content], last=True))
        absent()
        result_of(incoming.commit())
        assert result_of(read(store, digest)) == content
        result_of(incoming.leave())
        assert result_of(read(store, digest)) == content

    @pytest.mark.parametrize("steps", range(5))
    @pytest.mark.parametrize("size", [1000, 3 * MIB])
    def test_what_is_left_before_the_commit_is_gone(self, holding, size, steps):
        store, content = holding([]), sample(size)
        before = descriptors()
        incoming = store.expect(Digest.of(content), size)
        todo = [
            incoming.stored,
            incoming.begin,
            lambda: incoming.add([content[:500]], last=False),
            lambda: incoming.add([content[500:]], last=True),
        ]
        for step in todo[:steps]:
            result_of(step())
        result_of(incoming.leave())
        result_of(incoming.leave())
        assert descriptors() == before
        with pytest.raises(NotFound):
            result_of(store.find(Digest.of(content)))
        assert result_of(put(store, content))[1]

    def test_uploads_of_other_samples_do_not_meet(self, holding):
        store = holding([])
        contents = [sample(1000, seed=n) for n in range(10)]
        uploads = [store.expect(Digest.of(content), 1000) for content in contents]
        for upload in uploads:
            assert result_of(upload.stored()) is None
            result_of(upload.begin())
        for begin in (0, 500):
            for upload, content in zip(uploads, contents, strict=True):
                result_of(upload.add([content[begin : begin + 500]], last=begin == 500))
        for upload in reversed(uploads):
            assert result_of(upload.commit())[1]
            result_of(upload.leave())
        for content in contents:
            assert result_of(read(store, Digest.of(content))) == content
