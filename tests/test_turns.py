"""Turns among real processes."""

import os
import signal

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from stor.digest import Digest
from stor.errors import Unavailable
from stor.processes.turns import PATIENCE_SECONDS, RETRY_SECONDS, ProcessTurns
from tests.conformance import result_of

SAMPLE, OTHER = Digest.of(b"one"), Digest.of(b"another")


@pytest.fixture
def shared():
    fd = ProcessTurns.make(2)
    yield fd
    os.close(fd)


@pytest.fixture
def holder(shared):
    """Another process, which has the turn with `SAMPLE` until it is killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        mine = ProcessTurns(shared, 1, 2, Clock())
        Deferred.fromCoroutine(mine.take(SAMPLE))
        os.write(writing, b"!")
        signal.pause()
    assert os.read(reading, 1) == b"!"
    for fd in (reading, writing):
        os.close(fd)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def turns(shared):
    return ProcessTurns(shared, 0, 2, Clock())


def test_one_process_at_a_time_and_the_next_when_it_ends(turns, holder):
    waiting = Deferred.fromCoroutine(turns.take(SAMPLE))
    assert not waiting.called
    result_of(Deferred.fromCoroutine(turns.take(OTHER)))  # which is nobody's
    turns._clock.advance(RETRY_SECONDS)
    assert not waiting.called
    os.kill(holder, signal.SIGKILL)
    os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    turns._clock.advance(RETRY_SECONDS)
    result_of(waiting)


def test_who_waits_too_long_is_told_to_come_again(turns, holder):
    waiting = Deferred.fromCoroutine(turns.take(SAMPLE))
    turns._clock.pump([RETRY_SECONDS] * int(PATIENCE_SECONDS / RETRY_SECONDS + 2))
    with pytest.raises(Unavailable, match="does not get on"):
        result_of(waiting)
