"""The line that says how far it is."""

import io

import pytest
from twisted.internet.task import Clock

from stor.client.progress import Progress, Total, human


class Watched:
    def __init__(self, total=None, width=80):
        self.clock, self.screen = Clock(), io.StringIO()
        self.total = total or Total()
        self.progress = Progress(self.screen, self.clock, lambda: width, self.total)

    def shown(self):
        """The last line that was drawn, as the terminal shows it."""
        return self.screen.getvalue().rpartition("\r")[2].removesuffix("\x1b[K")

    def pass_seconds(self, seconds):
        self.clock.pump([0.25] * (seconds * 4))


def test_it_says_files_bytes_and_rate():
    watched = Watched()
    watched.progress.done(3)
    watched.progress.moved(6_000_000)
    watched.pass_seconds(2)
    assert watched.shown() == "3 files, 6.00 MB, 3.00 MB/s" or "3 MB/s" in watched.shown()


def test_with_a_known_total_it_says_how_long_it_takes():
    watched = Watched(Total(100, final=True))
    for _ in range(20):
        watched.progress.done(1)
        watched.progress.moved(1000)
        watched.pass_seconds(1)
    assert watched.shown().startswith("20 of 100 files, 20 kB, ")
    assert watched.shown().endswith("1:20 left")


def test_the_rate_is_of_late():
    watched = Watched()
    watched.progress.moved(10**9)
    watched.pass_seconds(1)
    watched.pass_seconds(20)
    assert watched.shown() == "0 files, 1 GB, 0 B/s"


@pytest.mark.parametrize("width", [1, 2, 10, 80])
def test_it_is_one_line_however_narrow_the_terminal(width):
    watched = Watched(width=width)
    watched.pass_seconds(1)
    assert len(watched.shown()) <= max(width - 1, 1)


def test_it_makes_way_for_other_text_and_draws_no_more_once_closed():
    watched = Watched()
    watched.pass_seconds(1)
    watched.progress.clear()
    assert watched.shown() == ""
    watched.progress.done(1)
    watched.progress.close()
    assert watched.shown().startswith("1 files")
    assert watched.screen.getvalue().endswith("\n")
    assert not watched.clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (123_456, "123 kB"),
        (999_999, "1 MB"),
        (5 * 10**15, "5 PB"),
        (10**19, "10000 PB"),
    ],
)
def test_bytes_are_for_people(count, text):
    assert human(count) == text
