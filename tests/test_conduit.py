"""The way past memory: what gets to the socket, and what no longer does."""

import os
import socket

import pytest
from twisted.internet.defer import Deferred

from stor.conduit import PIPE_BYTES, Conduits
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


def fill(conduit, file, offset, length=PIPE_BYTES):
    conduit.level += os.splice(file, conduit.inlet, length, offset_src=offset)


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
    conduit = Conduits().take(ours.fileno())
    conduit.release()
    received, offset = b"", 0
    while len(received) < len(DATA):
        if conduit.flush() and offset < len(DATA):
            fill(conduit, file, offset)
            offset += conduit.level
        received += taken(theirs)
    assert received == DATA
    assert (conduit.level, conduit.newly_sent(), conduit.newly_sent()) == (0, len(DATA), 0)
    conduit.close()


def test_nothing_is_sent_before_it_is_released(ends, file):
    ours, theirs = ends
    conduit = Conduits().take(ours.fileno())
    fill(conduit, file, 0, 1000)
    assert not conduit.flush()
    assert taken(theirs) == b""
    ours.send(b"head")
    conduit.release()
    assert conduit.flush()
    assert taken(theirs) == b"head" + DATA[:1000]
    conduit.close()


def test_a_fill_that_comes_after_the_end_sends_nothing_and_is_waited_for(ends, file):
    ours, theirs = ends
    before = descriptors()
    conduits = Conduits()
    conduit = conduits.take(ours.fileno())
    conduit.release()
    filling = Deferred()
    conduit.lend(filling)
    conduit.close()
    assert conduits.open == 0
    fill(conduit, file, 0)  # the disk hung, and answers now
    assert not conduit.flush()
    assert taken(theirs) == b""
    assert conduit.newly_sent() == 0
    filling.callback(True)
    assert descriptors() == before
    conduit.close()


def test_a_client_that_is_gone_is_no_error_of_the_disk(ends, file):
    ours, theirs = ends
    conduit = Conduits().take(ours.fileno())
    conduit.release()
    theirs.close()
    fill(conduit, file, 0)
    assert not conduit.flush()
    assert conduit.newly_sent() == 0
    conduit.close()


def test_they_are_bounded(ends):
    ours, _ = ends
    before = descriptors()
    conduits = Conduits(limit=2)
    taken_ones = [conduits.take(ours.fileno()) for _ in range(3)]
    assert [conduit is not None for conduit in taken_ones] == [True, True, False]
    for conduit in taken_ones[:2]:
        conduit.close()
    assert conduits.take(-1) is None
    assert (conduits.open, descriptors()) == (0, before)
