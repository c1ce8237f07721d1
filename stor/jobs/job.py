"""One piece of long work: what it is about, how far it has come, and what it met."""

import enum
from collections import deque
from collections.abc import Mapping
from typing import Any

import attrs

from stor.status import JobStatus, Trouble

#: The most errors that are listed; further ones are only counted.
MOST_ERRORS = 200

#: How far back the speed is measured at least, in seconds; at most half of what was seen.
_SPEED_SECONDS = 600.0
_MOST_POINTS = 256

#: With more disks a job is not named by them.
_MOST_NAMED = 6


class State(enum.Enum):
    """What a job is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    #: For a disk, or for another job at the same disk.
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@attrs.frozen
class Scope:
    """What a job is about: disks, or their samples that begin with `prefix`; or one sample.

    At most one job at a time works at each of `roots`, unless its kind works beside others.
    """

    roots: tuple[str, ...] = ()
    prefix: str = ""
    sha: str | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Scope":
        """Read what `attrs.asdict` has made. Raises `KeyError`, `TypeError`."""
        if "root" in value:  # as it was when a job had one disk at most
            value = {**value, "roots": [value["root"]] if value["root"] else []}
        roots, prefix, sha = value["roots"], value["prefix"], value["sha"]
        texts = [*roots, prefix] if sha is None else [*roots, prefix, sha]
        if not isinstance(roots, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise TypeError(f"scope: {value!r}")
        return cls(tuple(roots), prefix, sha)

    def __str__(self) -> str:
        if self.sha is not None:
            return self.sha
        if len(self.roots) > _MOST_NAMED:
            return f"{len(self.roots)} disks"
        return " ".join([*self.roots, self.prefix]).strip()


@attrs.frozen
class Rate:
    """What a job reads in a second at most; `None`: as much as clients leave it."""

    bytes_per_second: float | None = None
    samples_per_second: float | None = None

    def seconds(self, read_bytes: int, samples: int) -> float:
        """How long this much takes at least."""
        by_bytes = read_bytes / self.bytes_per_second if self.bytes_per_second else 0.0
        by_samples = samples / self.samples_per_second if self.samples_per_second else 0.0
        return max(by_bytes, by_samples)


class Speed:
    """How fast a job is, from what it did lately."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float, int]] = deque()

    def restart(self) -> None:
        """What was seen says nothing of what comes: the job begins to go on, or at another rate."""
        self._points.clear()

    def note(self, seconds: float, share: float, read_bytes: int) -> None:
        """The job has come this far at this time."""
        if not self._points or seconds - self._points[-1][0] >= 1.0:
            self._points.append((seconds, share, read_bytes))
        if len(self._points) > _MOST_POINTS:  # every other one of the older half
            half = _MOST_POINTS // 2
            kept = [point for n, point in enumerate(self._points) if n > half or n % 2 == 0]
            self._points = deque(kept)

    def a_second(self, now_seconds: float) -> tuple[float, float]:
        """What share of the whole a second brings, and how many bytes; 0 while not known."""
        if len(self._points) < 2:
            return 0.0, 0.0
        seen = now_seconds - self._points[0][0]
        begin = now_seconds - max(_SPEED_SECONDS, seen / 2)
        *earlier, last = self._points
        first = next((point for point in earlier if point[0] >= begin), earlier[-1])
        # Until now: a job that stands still has no speed.
        took = now_seconds - first[0]
        return (last[1] - first[1]) / took, (last[2] - first[2]) / took


@attrs.define(eq=False)
class Job:
    """One piece of long work. What it says of itself survives a restart.

    `cursor` is in its kind's own words; all before it is done. `share` is how much of the whole
    that is, from 0 to 1. `period_seconds` is the time that a pass which nobody asked for may take.
    `began` and `ended` are seconds since the epoch. `reason` says why it waits, or how it ended.
    """

    id: int
    kind: str
    scope: Scope
    began: float
    state: State = State.RUNNING
    reason: str | None = None
    cursor: str = ""
    share: float = 0.0
    samples_done: int = 0
    bytes_done: int = 0
    samples_known: int | None = None
    #: Copies that were bad or could not be read, and those that were not there.
    bad: int = 0
    missing: int = 0
    #: Samples that are whole again, and those that are not.
    mended: int = 0
    not_mended: int = 0
    #: Samples that were taken off a set, as another one has them, too.
    duplicates: int = 0
    troubles: list[Trouble] = attrs.field(factory=list)
    rate: Rate = attrs.field(factory=Rate)
    period_seconds: float | None = None
    ended: float | None = None
    #: When it last came on, or had a good reason not to, by the clock that measures its speed.
    moved: float | None = None
    speed: Speed = attrs.field(factory=Speed)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Job":
        """Read what `encode` made. Raises `KeyError`, `TypeError`, `ValueError`."""
        value = {"duplicates": 0, **value}  # a Stor before it took them off has not counted them
        job = cls(
            int(value["id"]),
            str(value["kind"]),
            Scope.parse(value["scope"]),
            float(value["began"]),
            State(value["state"]),
        )
        for name, kinds in _KEPT.items():
            if not isinstance(value[name], kinds):
                raise TypeError(f"{name}: {value[name]!r}")
            setattr(job, name, value[name])
        job.rate = Rate(**value["rate"])
        job.troubles = [Trouble(**one) for one in value["troubles"]]
        return job

    def encode(self) -> dict[str, Any]:
        """All that a restart has to know, for JSON."""
        return {
            "id": self.id,
            "kind": self.kind,
            "scope": attrs.asdict(self.scope),
            "began": self.began,
            "state": self.state.value,
            "rate": attrs.asdict(self.rate),
            "troubles": [attrs.asdict(one) for one in self.troubles],
            **{name: getattr(self, name) for name in _KEPT},
        }

    def trouble(self, about: str, reason: str) -> None:
        """Something could not be put right."""
        trouble = Trouble(about, reason)
        if len(self.troubles) < MOST_ERRORS and trouble not in self.troubles:
            self.troubles.append(trouble)

    def status(self, now_seconds: float) -> JobStatus:
        """The job as its users see it; `now_seconds` is of the clock that measures its speed."""
        running = self.state is State.RUNNING
        stalled = 0.0
        if self.moved is not None and self.state in (State.RUNNING, State.WAITING):
            stalled = now_seconds - self.moved
        shares, read = self.speed.a_second(now_seconds) if running else (0.0, 0.0)
        samples_total, bytes_total = self._totals()
        return JobStatus(
            id=self.id,
            kind=self.kind,
            about=str(self.scope),
            state=self.state.value,
            reason=self.reason,
            continuous=self.period_seconds is not None,
            done=round(self.share, 6),
            samples_done=self.samples_done,
            samples_total=samples_total,
            bytes_done=self.bytes_done,
            bytes_total=bytes_total,
            bytes_per_second=round(read),
            eta_seconds=round((1 - self.share) / shares) if shares else None,
            bad=self.bad,
            missing=self.missing,
            mended=self.mended,
            not_mended=self.not_mended,
            duplicates=self.duplicates,
            bytes_per_second_limit=self.rate.bytes_per_second,
            samples_per_second_limit=self.rate.samples_per_second,
            began=self.began,
            ended=self.ended,
            stalled_seconds=round(stalled),
            errors=tuple(self.troubles),
        )

    def _totals(self) -> tuple[int | None, int | None]:
        """Samples and bytes in all, as far as that can be said: names are spread evenly."""
        if self.state is State.DONE:
            return self.samples_done, self.bytes_done
        if not self.share:
            return self.samples_known, None
        samples = round(self.samples_done / self.share)
        known = self.samples_known
        return samples if known is None else known, round(self.bytes_done / self.share)


#: What is kept of a job as it is, and its types.
_KEPT: dict[str, tuple[type, ...]] = {
    "reason": (str, type(None)),
    "cursor": (str,),
    "share": (float, int),
    "samples_done": (int,),
    "bytes_done": (int,),
    "samples_known": (int, type(None)),
    "bad": (int,),
    "missing": (int,),
    "mended": (int,),
    "not_mended": (int,),
    "duplicates": (int,),
    "period_seconds": (float, int, type(None)),
    "ended": (float, int, type(None)),
}
