"""How quickly the storages fill, and so when they will be full."""

from collections import deque
from collections.abc import Callable, Mapping

#: The rate is that of the last week, as far as it is known: a look an hour is kept.
WINDOW_SECONDS = 7 * 86400.0
STEP_SECONDS = 3600.0

#: Less than this says nothing: uploads come by day.
LEAST_SECONDS = 86400.0

#: Free bytes by what they are free on.
Free = Mapping[str, int]


class Growth:
    """What was free, hour by hour. After a start nothing is known for a day."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` is the clock."""
        self._seconds = seconds
        self._looks: deque[tuple[float, Free]] = deque()

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return not self._looks or self._seconds() - self._looks[-1][0] >= STEP_SECONDS

    def note(self, free: Free) -> None:
        """Somebody has looked what is free."""
        now = self._seconds()
        self._looks.append((now, dict(free)))
        while now - self._looks[0][0] > WINDOW_SECONDS:
            self._looks.popleft()

    def bytes_a_day(self, free: Free) -> float | None:
        """How much less is free each day, now that this is; `None` while that is not known.

        What was not there at both ends has no part in it.
        """
        if not self._looks:
            return None
        begun, before = self._looks[0]
        seconds = self._seconds() - begun
        if seconds < LEAST_SECONDS:
            return None
        taken = sum(before[one] - free[one] for one in before.keys() & free.keys())
        return taken * 86400 / seconds
