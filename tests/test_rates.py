"""Rates are those of the last minute."""

import pytest
from twisted.internet.task import Clock

from stor.http.access import PerSecond, Rates, Served

NOTHING = PerSecond(0, 0, 0, 0)


def over(method, sent=0, received=0, route="sample"):
    return Served("-", method, "/x", 200, sent, received, 0.0, "done", route=route)


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(1_000_000)
    return clock


def test_a_steady_load_has_its_rate(clock):
    rates = Rates(clock.seconds)
    for _ in range(300):
        rates.served(over("GET", sent=100))
        rates.served(over("HEAD"))
        rates.served(over("PUT", sent=10, received=1000))
        clock.advance(1)
    found = rates.now()
    assert found.gets == pytest.approx(2, rel=0.1)
    assert found.posts == pytest.approx(1, rel=0.1)
    assert found.sent_bytes == pytest.approx(110, rel=0.1)
    assert found.received_bytes == pytest.approx(1000, rel=0.1)


def test_the_first_seconds_count_as_what_they_are(clock):
    rates = Rates(clock.seconds)
    for _ in range(10):
        rates.served(over("GET"))
    clock.advance(10)
    assert rates.now().gets == 1


def test_after_a_minute_nothing_is_left(clock):
    rates = Rates(clock.seconds)
    rates.served(over("GET", sent=10**9))
    clock.advance(66)
    assert rates.now() == NOTHING


def test_only_samples_count(clock):
    rates = Rates(clock.seconds)
    rates.served(over("GET", route="status"))
    assert rates.now() == NOTHING
