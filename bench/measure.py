"""What was measured: runs, the figures taken from them, and the targets for those figures."""

import statistics
from collections.abc import Callable, Iterable, Mapping

import attrs

from bench.process import Memory


@attrs.frozen
class Done:
    """What was done, in which time. Every answer was right: anything else raises `Failed`.

    `content_bytes` of samples were moved; `p99_seconds` is the 99th percentile of the latencies.
    """

    requests: int
    seconds: float
    content_bytes: int = 0
    p99_seconds: float | None = None


@attrs.frozen
class Run:
    """What was done, what it cost, and the memory in use at its end."""

    done: Done
    cpu_seconds: float
    memory: Memory


@attrs.frozen
class Measure:
    """A figure of a run, its name and its format. `None`: there is no such figure."""

    name: str
    of: Callable[[Run], float | None]
    form: str

    def text(self, figure: float | None) -> str:
        """The figure as a table shows it."""
        return "-" if figure is None else f"{figure:{self.form}}"


def _p99_milliseconds(run: Run) -> float | None:
    seconds = run.done.p99_seconds
    return None if seconds is None else seconds * 1e3


RATE = Measure("requests/s", lambda run: run.done.requests / run.done.seconds, ".0f")
SPEED = Measure("MB/s", lambda run: run.done.content_bytes / run.done.seconds / 1e6, ".0f")
P99 = Measure("p99 ms", _p99_milliseconds, ".2f")
CPU = Measure("CPU us/request", lambda run: run.cpu_seconds / run.done.requests * 1e6, ".0f")
CPU_PER_GB = Measure("CPU s/GB", lambda run: run.cpu_seconds / run.done.content_bytes * 1e9, ".2f")
#: Less than the server's cores: it waited for its clients or its disks.
BUSY = Measure("busy cores", lambda run: run.cpu_seconds / run.done.seconds, ".2f")
PSS = Measure("PSS MiB", lambda run: run.memory.proportional / 2**20, ".0f")
RSS = Measure("RSS MiB", lambda run: run.memory.resident / 2**20, ".0f")


@attrs.frozen
class Spread:
    """The median and the extremes of several figures."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Iterable[float | None]) -> "Spread | None":
        """The spread of figures; `None` when there are none."""
        ordered = sorted(figure for figure in figures if figure is not None)
        return cls(statistics.median(ordered), ordered[0], ordered[-1]) if ordered else None


@attrs.define
class Series:
    """All runs of one subject, in the order of the rounds."""

    name: str
    runs: list[Run] = attrs.field(factory=list)

    def spread(self, measure: Measure) -> Spread | None:
        """A figure over all rounds."""
        return Spread.of(measure.of(run) for run in self.runs)

    def ratio(self, measure: Measure, other: "Series") -> Spread | None:
        """A figure divided by another's, round by round: noise that outlasts a round cancels."""
        pairs = zip(self.runs, other.runs, strict=True)
        figures = [(measure.of(mine), measure.of(its)) for mine, its in pairs]
        return Spread.of(mine / its for mine, its in figures if mine is not None and its)


@attrs.frozen
class Verdict:
    """A target, the figure that was found, and whether it is good enough."""

    target: str
    found: Spread | None
    reached: bool

    @property
    def columns(self) -> tuple[str, str, str]:
        """The median, the extremes, and whether the target was reached."""
        if self.found is None:
            return "-", "-", "not measured"
        median, least, most = (f"{figure:.3g}" for figure in attrs.astuple(self.found))
        return median, f"{least}-{most}", "reached" if self.reached else "MISSED"

    @property
    def text(self) -> str:
        """All of it in one line."""
        median, extremes, outcome = self.columns
        return f"{self.target}: {median} ({extremes}), {outcome}"


@attrs.frozen
class Target:
    """A bound on the median of a measure, or of its ratio to another subject's."""

    measure: Measure
    bound: float
    reference: str | None = None
    upper: bool = False

    def verdict(self, name: str, table: Mapping[str, Series]) -> Verdict:
        """Whether the series of this name reaches it."""
        mine = table[name]
        if self.reference is None:
            found = mine.spread(self.measure)
        else:
            found = mine.ratio(self.measure, table[self.reference])
        reached = found is not None and (
            found.median <= self.bound if self.upper else found.median >= self.bound
        )
        sign = "<=" if self.upper else ">="
        of = "" if self.reference is None else f" of {self.reference}"
        return Verdict(f"{self.measure.name} {sign} {self.bound:g}{of}", found, reached)


def at_least(measure: Measure, bound: float, reference: str | None = None) -> Target:
    """A figure that should not be smaller."""
    return Target(measure, bound, reference)


def at_most(measure: Measure, bound: float, reference: str | None = None) -> Target:
    """A figure that should not be larger."""
    return Target(measure, bound, reference, upper=True)


def percentile(figures: Iterable[float], part: float) -> float | None:
    """The figure that this part of all figures does not exceed; `None` when there are none."""
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None
