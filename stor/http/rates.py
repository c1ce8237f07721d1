"""How much is asked for and stored at the moment."""

from collections.abc import Callable

import attrs

from stor.http.access import Served

#: Rates are those of the last minute, in steps of a few seconds.
WINDOW_SECONDS = 60
_STEP_SECONDS = 5


@attrs.define
class Step:
    """What a few seconds have brought."""

    gets: int = 0
    posts: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@attrs.frozen
class PerSecond:
    """Rates a second over the last minute; requests for samples alone."""

    gets: float
    posts: float
    sent_bytes: float
    received_bytes: float


class Rates:
    """Counts requests for samples by the time when they were over."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` is the clock."""
        self._seconds = seconds
        self._begun = seconds()
        self._steps: dict[int, Step] = {}

    def served(self, served: Served) -> None:
        """A request is over."""
        if served.route != "sample":
            return
        number = int(self._seconds()) // _STEP_SECONDS
        step = self._steps.get(number)
        if step is None:
            self._steps[number] = step = Step()
            self._forget(number)
        if served.method in ("GET", "HEAD"):
            step.gets += 1
        else:
            step.posts += 1
        step.sent_bytes += served.sent_bytes
        step.received_bytes += served.received_bytes

    def now(self) -> PerSecond:
        """The rates, at this moment."""
        now = self._seconds()
        self._forget(int(now) // _STEP_SECONDS)
        steps = self._steps.values()
        seconds = min(max(now - self._begun, 1.0), float(WINDOW_SECONDS))
        return PerSecond(
            sum(step.gets for step in steps) / seconds,
            sum(step.posts for step in steps) / seconds,
            sum(step.sent_bytes for step in steps) / seconds,
            sum(step.received_bytes for step in steps) / seconds,
        )

    def _forget(self, number: int) -> None:
        oldest = number - WINDOW_SECONDS // _STEP_SECONDS
        self._steps = {n: step for n, step in self._steps.items() if n > oldest}
