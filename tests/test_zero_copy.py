"""The way past memory: what gets to the socket, and what no longer does."""

import os
import socket

import pytest
from twisted.internet.defer import Deferred

from stor.zero_copy import PIPE_BYTES, SplicePipes
from tests.conformance import sample
from tests.support.http import descriptors

DATA = sample(3 * PIPE_BYTES + 17)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        yield opened.fileno()


def fill(splice_pipe, file, offset, length=PIPE_BYTES):
    splice_pipe.level += os.splice(file, splice_pipe.inlet, length, offset_src=offset)


def taken(sock):
    received = bytearray()
    try:
        while data := sock.recv(PIPE_BYTES):
            received += data
    except BlockingIOError:
        pass
    return bytes(received)


def test_a_file_gets_to_the_socket_in_order(ends, file):
    ours, theirs = ends
    splice_pipe = SplicePipes().take(ours.fileno())
    splice_pipe.release()
    received, offset = b"", 0
    while len(received) < len(DATA):
        if splice_pipe.flush() and offset < len(DATA):
            fill(splice_pipe, file, offset)
            offset += splice_pipe.level
        received += taken(theirs)
    assert received == DATA
    assert (splice_pipe.level, splice_pipe.newly_sent(), splice_pipe.newly_sent()) == (
        0,
        len(DATA),
        0,
    )
    splice_pipe.close()


def test_nothing_is_sent_before_it_is_released(ends, file):
    ours, theirs = ends
    splice_pipe = SplicePipes().take(ours.fileno())
    fill(splice_pipe, file, 0, 1000)
    assert not splice_pipe.flush()
    assert taken(theirs) == b""
    ours.send(b"head")
    splice_pipe.release()
    assert splice_pipe.flush()
    assert taken(theirs) == b"head" + DATA[:1000]
    splice_pipe.close()


def test_a_fill_that_comes_after_the_end_sends_nothing_and_is_waited_for(ends, file):
    ours, theirs = ends
    before = descriptors()
    splice_pipes = SplicePipes()
    splice_pipe = splice_pipes.take(ours.fileno())
    splice_pipe.release()
    filling = Deferred()
    splice_pipe.lend(filling)
    splice_pipe.close()
    assert splice_pipes.open == 0
    fill(splice_pipe, file, 0)  # the disk hung, and answers now
    assert not splice_pipe.flush()
    assert taken(theirs) == b""
    assert splice_pipe.newly_sent() == 0
    filling.callback(True)
    assert descriptors() == before
    splice_pipe.close()


def test_a_client_that_is_gone_is_no_error_of_the_disk(ends, file):
    ours, theirs = ends
    splice_pipe = SplicePipes().take(ours.fileno())
    splice_pipe.release()
    theirs.close()
    fill(splice_pipe, file, 0)
    assert not splice_pipe.flush()
    assert splice_pipe.newly_sent() == 0
    splice_pipe.close()


def test_they_are_bounded(ends):
    ours, _ = ends
    before = descriptors()
    splice_pipes = SplicePipes(limit=2)
    taken_ones = [splice_pipes.take(ours.fileno()) for _ in range(3)]
    assert [splice_pipe is not None for splice_pipe in taken_ones] == [True, True, False]
    for splice_pipe in taken_ones[:2]:
        splice_pipe.close()
    assert splice_pipes.take(-1) is None
    assert (splice_pipes.open, descriptors()) == (0, before)
