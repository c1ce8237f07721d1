"""How quickly the storages fill, and so when they will be full."""

import json
from collections import deque
from collections.abc import Callable, Mapping

#: Where the state directory has it.
GROWTH_FILE = "growth.json"

#: The rate is that of the last week, as far as it is known: a look every six hours is kept.
WINDOW_SECONDS = 7 * 86400.0
STEP_SECONDS = 6 * 3600.0

#: Less than this says nothing: uploads come by day.
LEAST_SECONDS = 86400.0

#: Free bytes by what they are free on.
Free = Mapping[str, int]


class Growth:
    """What was free, every few hours. When nothing was kept, nothing is known for a day."""

    def __init__(self, wall_seconds: Callable[[], float]) -> None:
        """`wall_seconds` is a clock that goes on while nobody runs."""
        self._wall_seconds = wall_seconds
        self._looks: deque[tuple[float, Free]] = deque()

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return not self._looks or self._wall_seconds() - self._looks[-1][0] >= STEP_SECONDS

    def note(self, free: Free) -> None:
        """Somebody has looked what is free."""
        now = self._wall_seconds()
        self._looks.append((now, dict(free)))
        self._forget(now)

    def bytes_a_day(self, free: Free) -> float | None:
        """How much less is free each day, now that this is; `None` while that is not known.

        What was not there at both ends has no part in it.
        """
        if not self._looks:
            return None
        begun, before = self._looks[0]
        seconds = self._wall_seconds() - begun
        if seconds < LEAST_SECONDS:
            return None
        taken = sum(before[one] - free[one] for one in before.keys() & free.keys())
        return taken * 86400 / seconds

    def encode(self) -> bytes:
        """All of it, to be kept."""
        return json.dumps({"looks": list(self._looks)}).encode()

    def recall(self, data: bytes) -> None:
        """Know what was kept. What cannot be read, or has not been yet, is left out."""
        now = self._wall_seconds()
        try:
            looks = [
                (float(when), {str(one): int(free) for one, free in found.items()})
                for when, found in json.loads(data)["looks"]
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        # A clock that was wrong then, or is now, says nothing.
        self._looks = deque(sorted((look for look in looks if look[0] <= now), key=_when))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._looks and not 0 <= now - self._looks[0][0] <= WINDOW_SECONDS:
            self._looks.popleft()


def _when(look: tuple[float, Free]) -> float:
    return look[0]
