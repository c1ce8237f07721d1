"""What is read off a turn."""

from collections.abc import Callable

import attrs

from bench.turn import Turn


@attrs.frozen
class Measure:
    """A figure of a turn: what it is called, and how it is written. `None`: there is none."""

    name: str
    of: Callable[[Turn], float | None]
    form: str

    def written(self, figure: float | None) -> str:
        """The figure as it stands in a table."""
        return "-" if figure is None else f"{figure:{self.form}}"


def _p99_milliseconds(turn: Turn) -> float | None:
    seconds = turn.done.p99_seconds
    return None if seconds is None else seconds * 1e3


RATE = Measure("requests/s", lambda turn: turn.done.requests / turn.done.seconds, ".0f")
SPEED = Measure("MB/s", lambda turn: turn.done.content_bytes / turn.done.seconds / 1e6, ".0f")
P99 = Measure("p99 ms", _p99_milliseconds, ".2f")
CPU = Measure("CPU us/request", lambda turn: turn.cpu_seconds / turn.done.requests * 1e6, ".0f")
CPU_PER_GB = Measure(
    "CPU s/GB", lambda turn: turn.cpu_seconds / turn.done.content_bytes * 1e9, ".2f"
)
#: Less than the server's cores: its clients, or its disks, are what it waits for.
BUSY = Measure("busy cores", lambda turn: turn.cpu_seconds / turn.done.seconds, ".2f")
PSS = Measure("PSS MiB", lambda turn: turn.memory.proportional / 2**20, ".0f")
RSS = Measure("RSS MiB", lambda turn: turn.memory.resident / 2**20, ".0f")
