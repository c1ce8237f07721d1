"""Copies that need not be read again to be sent: which, and for how long."""

import errno
import hashlib
import os
import socket

import pytest
from twisted.internet.task import Clock

from stor.digest import Digest
from stor.disk.disk import Disk
from stor.disk.verified import FRESH_SECONDS, Mark, Verified, VerifiedSmall
from stor.errors import Damaged
from stor.zero_copy import PIPE_BYTES, SplicePipes
from tests.conformance import sample
from tests.support.files import FaultyFiles

LARGE = sample(2 * PIPE_BYTES + 5)
DIGEST = Digest.of(LARGE)
MARK = Mark(1, 2, 3, 4, 5)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / DIGEST.disk_path
    path.parent.mkdir(parents=True)
    path.write_bytes(LARGE)
    disk = Disk(str(tmp_path), FaultyFiles())
    disk.identify(tmp_path.stat().st_dev)
    return disk


@pytest.fixture
def path(disk):
    return f"{disk.root}/{DIGEST.disk_path}"


def proven(disk):
    opened = disk.open(DIGEST)
    opened.close()
    return opened.proven


def sent_by(opened, meanwhile=lambda: None):
    """What a client gets that takes everything, and what was raised at the end of it.

    `meanwhile` is called once the first part has been sent.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    received, error = b"", None
    with ours, theirs:
        splice_pipe = SplicePipes().take(ours.fileno())
        splice_pipe.release()
        offset = 0
        while offset < len(LARGE) and error is None:
            try:
                assert opened.send(splice_pipe, offset, len(LARGE) - offset)
            except (Damaged, OSError) as raised:
                error = raised
            sent = splice_pipe.newly_sent()
            first = sent > 0 and offset == 0
            offset += sent
            while sent:
                data = theirs.recv(sent)
                received += data
                sent -= len(data)
            if first:
                meanwhile()
        splice_pipe.close()
    return received, error


def test_it_forgets_in_time():
    clock = Clock()
    verified = Verified(clock.seconds)
    verified.add(DIGEST, MARK)
    clock.advance(FRESH_SECONDS - 1)
    assert verified.knows(DIGEST, MARK)
    clock.advance(2)
    assert not verified.knows(DIGEST, MARK)


@pytest.mark.parametrize("field", Mark._fields)
def test_another_mark_is_another_file(field):
    verified = Verified()
    verified.add(DIGEST, MARK)
    assert verified.knows(DIGEST, MARK)
    assert not verified.knows(DIGEST, MARK._replace(**{field: 99}))


def test_it_is_bounded():
    verified = Verified(limit=3)
    digests = [Digest.of(bytes([n])) for n in range(5)]
    for digest in digests:
        verified.add(digest, MARK)
    assert [verified.knows(digest, MARK) for digest in digests] == [False] * 2 + [True] * 3


def test_one_that_was_read_whole_is_proven(disk):
    assert not proven(disk)
    disk.verify(DIGEST)
    assert proven(disk)


def test_one_that_gave_only_a_part_is_not(disk):
    hasher = hashlib.sha256(LARGE[:PIPE_BYTES])
    opened = disk.open(DIGEST)
    opened.read(PIPE_BYTES, len(LARGE) - PIPE_BYTES, hasher)
    opened.close()
    assert not proven(disk)


def test_one_that_is_wrong_is_not(disk, path):
    with open(path, "r+b") as file:
        file.write(b"x")
    with pytest.raises(Damaged):
        disk.verify(DIGEST)
    assert not proven(disk)


def test_one_that_was_written_to_is_not_whatever_its_time_says(disk, path):
    disk.verify(DIGEST)
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(LARGE[:1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not proven(disk)


@pytest.fixture
def opened(disk):
    disk.verify(DIGEST)
    opened = disk.open(DIGEST)
    yield opened
    opened.close()


def test_it_is_exact(opened):
    assert sent_by(opened) == (LARGE, None)


class Reading:
    """A disk as a process sees it that only reads, and its copy, of which that has read all."""

    def __init__(self, disk):
        self.disk = Disk(disk.root, FaultyFiles(), keeps_sums=False)
        self.disk.identify(os.stat(disk.root).st_dev)
        first = self.disk.open(DIGEST)
        assert first.read(0, len(LARGE), hashlib.sha256()) == LARGE
        first.close()
        self.made = first.made_sums

    def opened(self):
        opened = self.disk.open(DIGEST)
        assert (opened.proven, opened.sums) == (True, None)
        return opened


def sums_on(disk):
    opened = disk.open(DIGEST)
    opened.close()
    return opened.own_sums


def test_sums_that_one_process_makes_another_keeps(disk):
    reading = Reading(disk)
    assert sums_on(disk) is None
    disk.keep_sums(reading.made)
    assert sums_on(disk) == reading.made.sums
    assert proven(disk)
    again = disk.open(DIGEST)
    again.close()
    assert again.made_sums is None


def overwritten(path):
    with open(path, "r+b") as file:
        file.write(LARGE[:1])


def replaced(path):
    with open(f"{path}.new", "wb") as file:
        file.write(LARGE)
    os.rename(f"{path}.new", path)


@pytest.mark.parametrize("change", [overwritten, replaced, os.unlink])
def test_sums_of_a_file_that_is_another_by_now_are_not_kept(disk, path, change):
    reading = Reading(disk)
    change(path)
    disk.keep_sums(reading.made)
    assert not os.path.exists(path) or sums_on(disk) is None


def test_sums_that_are_kept_while_the_copy_is_sent_end_nothing(disk):
    reading = Reading(disk)
    opened = reading.opened()
    assert sent_by(opened, lambda: disk.keep_sums(reading.made)) == (LARGE, None)
    opened.close()


@pytest.mark.parametrize("place", [0, PIPE_BYTES - 1, PIPE_BYTES])
def test_a_change_that_sums_hide_ends_the_answer(disk, path, place):
    reading = Reading(disk)
    opened = reading.opened()
    times = os.stat(path)

    def meanwhile():
        disk.keep_sums(reading.made)
        with open(path, "r+b") as file:
            os.pwrite(file.fileno(), bytes([LARGE[place] ^ 1]), place)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    received, error = sent_by(opened, meanwhile)
    opened.close()
    assert len(received) <= PIPE_BYTES  # what was in the pipe
    assert isinstance(error, Damaged)


def test_two_that_read_all_of_it_at_once_do_not_undo_what_is_known(disk):
    first, second = disk.open(DIGEST), disk.open(DIGEST)
    for opened in (first, second):
        opened.read(0, len(LARGE), hashlib.sha256())
        opened.close()
    assert proven(disk)


def test_what_was_changed_while_it_was_read_is_not_known_to_be_right(disk, path):
    opened = disk.open(DIGEST)
    hasher = hashlib.sha256()
    opened.read(0, PIPE_BYTES, hasher)
    with open(path, "r+b") as file:
        file.write(b"x")
    opened.read(PIPE_BYTES, len(LARGE) - PIPE_BYTES, hasher)
    opened.close()
    assert not proven(disk)


@pytest.mark.parametrize("n", range(3))
def test_an_error_says_how_far_it_got(disk, opened, n):
    disk.files.fail_at(2 * n, errno.EIO)  # after each splice comes a look at the file
    received, error = sent_by(opened)
    assert (disk.files.failed, error.errno) == ("splice", errno.EIO)
    assert LARGE.startswith(received)
    assert len(received) <= n * PIPE_BYTES


@pytest.mark.parametrize("size", [0, PIPE_BYTES, len(LARGE) - 1])
def test_one_that_was_cut_sends_nothing_more(opened, path, size):
    os.truncate(path, size)
    received, error = sent_by(opened)
    assert received == b""
    assert isinstance(error, Damaged)


def test_where_it_cannot_be_done_it_says_so(disk, opened):
    disk.files.fail_always("splice", errno.EINVAL)
    splice_pipe = SplicePipes().take(0)
    assert opened.send(splice_pipe, 0, 10) is False
    splice_pipe.close()


class TestSmallCopies:
    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def verified(self, clock):
        """Of files that have not changed for long."""
        return VerifiedSmall(clock.seconds, lambda: 10**18, limit=100)

    def test_a_copy_is_known_by_all_that_tells_its_file_from_another(self, verified):
        verified.add(DIGEST, MARK)
        assert verified.knows(DIGEST, MARK)
        assert not verified.knows(Digest.of(b"another"), MARK)
        for field in Mark._fields:
            assert not verified.knows(DIGEST, MARK._replace(**{field: 9}))

    def test_it_is_forgotten_in_time(self, verified, clock):
        verified.add(DIGEST, MARK)
        clock.advance(FRESH_SECONDS / 2)
        assert verified.knows(DIGEST, MARK)
        clock.advance(FRESH_SECONDS / 2)
        assert not verified.knows(DIGEST, MARK)

    def test_it_is_forgotten_when_nobody_has_asked_meanwhile(self, verified, clock):
        verified.add(DIGEST, MARK)
        clock.advance(FRESH_SECONDS)
        assert not verified.knows(DIGEST, MARK)

    def test_the_latest_are_remembered_and_no_more_than_twice_the_limit(self, verified):
        marks = [MARK._replace(inode=number) for number in range(1000)]
        for mark in marks:
            verified.add(DIGEST, mark)
        known = [verified.knows(DIGEST, mark) for mark in marks]
        assert 100 <= sum(known) <= 200
        assert all(known[-100:])

    def test_a_file_that_has_just_changed_may_change_unseen(self):
        verified = VerifiedSmall(now_ns=lambda: MARK.changed_ns + 10**9)
        verified.add(DIGEST, MARK)
        assert not verified.knows(DIGEST, MARK)
