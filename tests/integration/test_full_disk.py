"""Disks that become full, of bytes and of inodes."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from stor.block_sums import MIN_BLOCK_BYTES, BlockSums
from stor.digest import Digest
from stor.disk.copy import SUMS_ATTRIBUTE
from tests.integration.load import SOAK, Connection
from tests.integration.mounts import Mounts, free_bytes, used
from tests.integration.process import MIB, poll, sha_of, upload_head
from tests.support.http import AUTHORIZED, CHUNKED, chunked
from tests.support.rig import request_bytes

RESERVE_BYTES = 16 * MIB


@pytest.fixture
def mounts(tmp_path):
    with Mounts(tmp_path) as mounts:
        yield mounts


@pytest.fixture(params=["ext4", "tmpfs"] if SOAK else ["ext4"])
def pair(request, mounts):
    """Two disks of 64 MiB."""
    return [getattr(mounts, request.param)(f"disk{number}") for number in range(2)]


def started(start, *sets, **keys):
    pairs = [[str(disk) for disk in of_set] for of_set in sets]
    return start(storage_pairs=pairs, **({"require_mount": True, "reserve_bytes": 0} | keys))


def chunked_head(sha):
    return request_bytes("POST", f"/{sha}", [AUTHORIZED, CHUNKED])


def post_at_once(stor, contents, in_chunks=False):
    """Post all of `contents` at the same time: how often each status, and what else was said."""

    def post(content):
        sha = sha_of(content)
        connection = Connection(stor.port)
        try:
            if in_chunks:
                return connection.exchange(chunked_head(sha), chunked([content]))
            return connection.exchange(upload_head(sha, len(content)), content)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(contents)) as pool:
        answers = list(pool.map(post, contents))
    lines = {answer.body.decode() for answer in answers if answer.status != 201}
    return Counter(answer.status for answer in answers), lines


def random_contents(number, size):
    return [os.urandom(size) for _ in range(number)]


def everything_used(disks):
    return [used(disk.kept) for disk in disks]


def assert_refused(stor, disks, contents, in_chunks=False):
    """All are answered 507, and leave nothing on the disks."""
    before = everything_used(disks)
    statuses, lines = post_at_once(stor, contents, in_chunks)
    assert statuses == {507: len(contents)}
    assert all(line.startswith("no room: ") for line in lines)
    assert stor.staged() == []
    assert everything_used(disks) == before


def fill(directory, leaving=0):
    """Write a file that takes all but `leaving` bytes, synced; returns it."""
    path = directory / "another's"
    with path.open("wb") as file:
        while (left := free_bytes(directory) - leaving) > 0:
            try:
                file.write(bytes(min(left, MIB)))
                file.flush()
            except OSError:
                break
        # What ext4 allocates late would be taken for what an upload has left.
        os.fsync(file.fileno())
    return path


class TestFiftyPostsAtOnce:
    def test_only_201_and_507_and_the_reserve_is_kept(self, pair, start):
        stor = started(start, pair, reserve_bytes=RESERVE_BYTES)
        room = (min(free_bytes(disk.kept) for disk in pair) - RESERVE_BYTES) // (4 * MIB)
        contents = random_contents(50, 4 * MIB)
        statuses, lines = post_at_once(stor, contents)
        print(statuses, [free_bytes(disk.kept) // MIB for disk in pair], "MiB free")
        assert set(statuses) == {201, 507}
        # The blocks of directories and of the file system's own records take a little.
        assert room - 1 <= statuses[201] <= room
        assert all(line.startswith("no room: ") for line in lines)
        assert all(free_bytes(disk.kept) >= RESERVE_BYTES for disk in pair)
        kept = [content for content in contents if stor.copies(sha_of(content))]
        assert len(kept) == statuses[201]
        assert len(stor.samples()) == 2 * len(kept)
        assert all(stor.get(sha_of(content)).body == content for content in kept)
        assert_refused(stor, pair, random_contents(10, 4 * MIB))

    def test_one_full_set_of_two_is_no_error(self, mounts, start):
        full = [mounts.tmpfs("full0"), mounts.tmpfs("full1")]
        roomy = [mounts.tmpfs(f"roomy{number}", mib=256) for number in range(2)]
        for disk in full:
            fill(disk.kept, RESERVE_BYTES + MIB)
        stor = started(start, full, roomy, reserve_bytes=RESERVE_BYTES)
        statuses, _ = post_at_once(stor, random_contents(50, 2 * MIB))
        assert statuses == {201: 50}
        assert len(list(roomy[0].kept.glob("??/??/??/*"))) == 50
        assert not list(full[0].kept.glob("??"))


class TestCutOffUploads:
    def test_give_their_space_back(self, pair, start):
        stor = started(start, pair, reserve_bytes=RESERVE_BYTES)
        stor.put(b"the first sample makes Stor's own directories")
        before = everything_used(pair)
        connections = [Connection(stor.port) for _ in range(8)]
        for number, connection in enumerate(connections):
            content = os.urandom(4 * MIB)
            if number % 2:
                connection.sock.sendall(chunked_head(sha_of(content)))
                connection.sock.sendall(b"%x\r\n" % len(content))
            else:
                connection.sock.sendall(upload_head(sha_of(content), len(content)))
            connection.sock.sendall(content[: 3 * MIB])
        poll(lambda: everything_used(pair)[0][0] > before[0][0] + 16 * MIB, what="their writing")
        for number, connection in enumerate(connections):
            connection.close(reset=number < 4)
        poll(lambda: everything_used(pair) == before, what="the same free space as before")
        assert stor.staged() == []


class TestBodiesOfUnknownLength:
    def test_what_does_not_fit_is_507_and_nothing_is_left(self, pair, start):
        stor = started(start, pair, reserve_bytes=RESERVE_BYTES)
        statuses, lines = post_at_once(stor, random_contents(20, 4 * MIB), in_chunks=True)
        print(statuses)
        assert set(statuses) <= {201, 507}
        assert all(line.startswith("no room: ") for line in lines)
        assert len(stor.samples()) == 2 * statuses[201]
        assert stor.staged() == []
        assert all(free_bytes(disk.kept) >= RESERVE_BYTES for disk in pair)
        for disk in pair:
            fill(disk.kept, RESERVE_BYTES + MIB)
        assert_refused(stor, pair, random_contents(10, 6 * MIB), in_chunks=True)


class TestInodes:
    def test_507_and_nothing_is_left(self, mounts, start):
        disks = [mounts.tmpfs(f"disk{number}", options="nr_inodes=200") for number in range(2)]
        stor = started(start, disks)
        statuses, _ = post_at_once(stor, random_contents(100, 1000))
        print(statuses)
        assert set(statuses) == {201, 507}
        assert statuses[201] > 30
        assert len(stor.samples()) == 2 * statuses[201]
        assert stor.staged() == []
        poll(lambda: stor.put(os.urandom(100)).status == 507, what="the end of all inodes")
        assert_refused(stor, disks, random_contents(20, 1000))
        assert stor.get("status").body == b"OK\n"


class TestFilledByOthers:
    """What Stor knows of a disk's room is up to 15 s old, and others write there too."""

    def test_bytes(self, pair, start):
        stor = started(start, pair)
        sample = os.urandom(300_000)
        assert stor.put(sample).status == 201
        fill(pair[1].kept, 64 * 1024)
        assert_refused(stor, pair, random_contents(4, MIB))
        assert_refused(stor, pair, random_contents(4, MIB), in_chunks=True)
        assert stor.get(sha_of(sample)).body == sample
        assert stor.get("status").body == b"OK\n"

    def test_inodes(self, mounts, start):
        disks = [mounts.tmpfs(f"disk{number}", options="nr_inodes=200") for number in range(2)]
        stor = started(start, disks)
        sample = os.urandom(300_000)
        assert stor.put(sample).status == 201
        for number in range(os.statvfs(disks[1].kept).f_ffree):
            (disks[1].kept / f"another's {number}").touch()
        assert_refused(stor, disks, random_contents(4, 1000))
        assert stor.get(sha_of(sample)).body == sample
        assert stor.get("status").body == b"OK\n"

    def test_before_the_first_start(self, pair, start):
        others = [fill(disk.kept) for disk in pair]
        stor = started(start, pair)
        assert stor.put(b"a sample").status == 507
        for path in others:
            path.unlink()
        assert stor.put(b"a sample").status == 201


def test_a_file_system_with_small_blocks_has_room_for_coarser_block_sums(mounts, start):
    """All attributes of a file have to fit into one block of 1 KiB there."""
    pair = [mounts.ext4(f"small{number}", mib=256, block_bytes=1024) for number in range(2)]
    stor = started(start, pair)
    content = os.urandom(72 * MIB)  # 288 blocks, 1152 bytes of sums
    sha = sha_of(content)
    assert stor.put(content).status == 201
    for path in stor.copies(sha):
        sums = BlockSums.parse(os.getxattr(path, SUMS_ATTRIBUTE), Digest.of(content), len(content))
        assert sums.block_bytes == 2 * MIN_BLOCK_BYTES
    first, second = stor.copies(sha)
    for path, place in ((first, 1000), (second, 50 * MIB)):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ 1]))
    assert stor.get(sha).body == content
    poll(lambda: [path.read_bytes() == content for path in stor.copies(sha)] == [True, True])
    assert stor.get("status").text == "OK\n"
    assert stor.put(os.urandom(300_000)).status == 201
