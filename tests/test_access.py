"""What is said of requests that are over, and when."""

import pytest
from twisted.internet.task import Clock

from stor.http.access import Afterwards, Served


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


def served(path):
    return Served("192.0.2.1", "GET", path, 200, 4096, 0, 0.0, "done")


def test_requests_are_told_of_in_order_when_the_turn_is_over(clock, told):
    afterwards = Afterwards(clock.callLater, told.append)
    for turn in (["/a", "/b"], ["/c"]):
        told.clear()
        for path in turn:
            afterwards(served(path))
        assert told == []
        clock.advance(0)
        assert told == [served(path) for path in turn]
    assert clock.getDelayedCalls() == []


def test_at_the_end_none_is_left_untold(clock, told):
    afterwards = Afterwards(clock.callLater, told.append)
    afterwards(served("/a"))
    afterwards.tell()
    assert told == [served("/a")]
    clock.advance(0)
    assert len(told) == 1
