"""Contenders taking turns, and the rounds that come of it."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import attrs

from bench.contender import Contender
from bench.process import cpu_seconds, resident_bytes
from bench.workload import Done

WARM_UP_SECONDS = 1.0


@attrs.frozen
class Spread:
    """What several figures have in common."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> "Spread":
        """The spread of at least one figure."""
        ordered = sorted(figures)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@attrs.frozen
class Turn:
    """One contender's part of a round."""

    done: Done
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.done.requests / self.done.seconds


@attrs.define
class Series:
    """All turns of one contender, and the memory it had in use after the last."""

    name: str
    turns: list[Turn] = attrs.field(factory=list)
    resident_bytes: int = 0

    @property
    def rate(self) -> Spread:
        """Requests a second."""
        return Spread.of(turn.rate for turn in self.turns)

    @property
    def cpu_seconds_per_request(self) -> float:
        """What one request costs the server, over all turns."""
        requests = sum(turn.done.requests for turn in self.turns)
        return sum(turn.cpu_seconds for turn in self.turns) / max(1, requests)

    def ratio(self, other: "Series") -> Spread:
        """The rate as a part of another's, round by round: noise that lasts longer cancels."""
        pairs = zip(self.turns, other.turns, strict=True)
        return Spread.of(mine.rate / its.rate for mine, its in pairs)


@attrs.frozen
class Result:
    """What a comparison has found; the first series is the one that the others are a measure of."""

    title: str
    series: Sequence[Series]

    @property
    def limit(self) -> Series:
        """The fastest of the others."""
        return max(self.series[1:], key=lambda series: series.rate.median)


@attrs.frozen
class Comparison:
    """Stor, the first of the contenders, beside others."""

    title: str
    contenders: Sequence[Contender]

    def measure(self, rounds: int, seconds: float, tell: Callable[[str], None]) -> Result:
        """Let every contender have a turn in each round. Raises `Failed`; no process is left."""
        with ExitStack() as running:
            for contender in self.contenders:
                tell(f"{self.title}: starting {contender.name}")
                running.callback(contender.stop)
                contender.start()
                contender.run(WARM_UP_SECONDS)
            table = [Series(contender.name) for contender in self.contenders]
            for number in range(1, rounds + 1):
                for contender, series in zip(self.contenders, table, strict=True):
                    before = cpu_seconds(contender.pid)
                    done = contender.run(seconds)
                    turn = Turn(done, cpu_seconds(contender.pid) - before)
                    series.turns.append(turn)
                    tell(f"round {number} of {rounds}: {contender.name}: {turn.rate:.0f}/s")
            for contender, series in zip(self.contenders, table, strict=True):
                series.resident_bytes = resident_bytes(contender.pid)
            return Result(self.title, table)
