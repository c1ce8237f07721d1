"""One contender's part of a round, and all its turns."""

import statistics
from collections.abc import Iterable

import attrs

from bench.contender import Contender
from bench.usage import Memory, cpu_seconds, memory
from bench.workload import Done


@attrs.frozen
class Turn:
    """What was done, what it cost, and the memory in use at its end."""

    done: Done
    cpu_seconds: float
    memory: Memory

    @classmethod
    def of(cls, contender: Contender, seconds: float) -> "Turn":
        """Let a contender work for so long. Raises `Failed`, `OSError`."""
        before = cpu_seconds(contender.pid)
        done = contender.run(seconds)
        return cls(done, cpu_seconds(contender.pid) - before, memory(contender.pid))


@attrs.frozen
class Spread:
    """What several figures have in common."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Iterable[float | None]) -> "Spread | None":
        """The spread of figures; `None` where there are none."""
        ordered = sorted(figure for figure in figures if figure is not None)
        return cls(statistics.median(ordered), ordered[0], ordered[-1]) if ordered else None
