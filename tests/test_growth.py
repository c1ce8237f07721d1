"""How quickly the storages fill."""

import pytest
from twisted.internet.task import Clock

from stor.growth import Growth

HOUR, DAY = 3600, 86400


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def growth(clock):
    return Growth(clock.seconds)


def let_pass(clock, growth, hours, free):
    """Come by every half hour, while `free(hour)` is free."""
    for _ in range(hours * 2):
        clock.advance(HOUR / 2)
        if growth.due:
            growth.note(free(clock.seconds() / HOUR))


def test_nothing_is_known_for_a_day(clock, growth):
    assert growth.bytes_a_day({"a": 1}) is None
    let_pass(clock, growth, 24, lambda hour: {"a": 1000 - hour})
    assert growth.bytes_a_day({"a": 976}) is None
    let_pass(clock, growth, 2, lambda hour: {"a": 1000 - hour})
    assert growth.bytes_a_day({"a": 974}) == pytest.approx(24, rel=0.15)


def test_the_rate_is_that_of_the_last_week(clock, growth):
    let_pass(clock, growth, 240, lambda hour: {"a": 10**6 - 1000 * hour})
    end = 10**6 - 240_000
    let_pass(clock, growth, 170, lambda hour: {"a": end - (hour - 240)})
    assert growth.bytes_a_day({"a": end - 170}) == pytest.approx(24, rel=0.15)


def test_a_set_that_came_or_went_has_no_part_in_it(clock, growth):
    let_pass(clock, growth, 30, lambda hour: {"a": 1000, "gone": 5 * 10**6})
    free = {"a": 1000 - 100, "new": 10**9}
    let_pass(clock, growth, 30, lambda hour: free)
    assert growth.bytes_a_day(free) == pytest.approx(100 / 60 * 24, rel=0.15)


def test_what_becomes_free_counts_against_what_is_taken(clock, growth):
    let_pass(clock, growth, 30, lambda hour: {"a": 1000, "b": 1000})
    assert growth.bytes_a_day({"a": 900, "b": 1200}) < 0


def test_what_was_kept_is_known_after_the_next_start(clock, growth):
    let_pass(clock, growth, 60, lambda hour: {"a": 10_000 - 10 * hour})
    again = Growth(clock.seconds)
    again.recall(growth.encode())
    assert again.bytes_a_day({"a": 9400}) == growth.bytes_a_day({"a": 9400})
    clock.advance(8 * DAY)
    late = Growth(clock.seconds)
    late.recall(growth.encode())
    assert late.bytes_a_day({"a": 1}) is None
    early = Growth(lambda: 5.0)
    early.recall(growth.encode())
    assert early.bytes_a_day({"a": 1}) is None
    assert early.due


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"looks": 1}', b'{"looks": [[1]]}', b'{"looks": [["a", {}]]}',
     b'{"looks": [[1, {"a": null}]]}', b"\xff"],
)  # fmt: skip
def test_what_is_damaged_is_as_good_as_nothing(growth, data):
    growth.recall(data)
    assert growth.bytes_a_day({"a": 1}) is None
    assert growth.due
