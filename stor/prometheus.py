"""Everything that Prometheus can ask for; docs/metrics.md says what each figure is.

What is counted on the way of a request is counted in plain numbers, in the reactor's thread, and
becomes text when somebody asks. The counters of `prometheus_client` have a lock each, and a dozen
of them would take as long as the answer to a small request; with 200 disks its text takes a fifth
of a second.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import attrs
from prometheus_client import ProcessCollector
from prometheus_client.utils import floatToGoString

from stor import __version__
from stor.paths import printable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: What there are rules for: a counter that begins with its first event has not increased.
_FORESEEN_ERRORS = [
    *(("get", cause) for cause in ("not_found_disk", "not_found_s3", "unavailable", "damaged")),
    *(("post", cause) for cause in ("bad_sha", "no_space", "unavailable", "damaged")),
    *((operation, "malformed_sha") for operation in ("get", "post")),
    *((operation, "internal") for operation in ("get", "post")),
]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DISK_SECONDS = (0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30)
_CACHE_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1)
_BYTES = (0, 4096, 65536, 2**20, 2**24, 2**28, 2**30, 2**32, 2**34)
_ATTEMPTS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)

#: Of these there is one, whoever says it first.
_ONE = ("stor_build_info", "process_start_time_seconds")

#: How many sets of labels are known as text: those of some hundred disks.
_KNOWN_LABELS = 16_384

#: What has been counted stays counted when the process that did has ended.
_LASTING = ("counter", "histogram", "summary")

#: The values of a figure's labels.
Labels = tuple[str, ...]


@attrs.define
class Family:
    """A figure as it is now. Its `samples` are by what follows its name, then by their labels.

    In a bucket of a histogram the labels end with its bound.
    """

    name: str
    what: str
    kind: str
    labels: Sequence[str] = ()
    samples: dict[str, dict[Labels, float]] = attrs.field(factory=dict)

    def add(self, labels: Labels, value: float) -> None:
        """The value for these labels."""
        self.values[labels] = value

    @property
    def values(self) -> dict[Labels, float]:
        """The samples of a gauge or a counter."""
        return self.samples.setdefault("_total" if self.kind == "counter" else "", {})


def gauge(name: str, what: str, value: float | None = None, labels: Sequence[str] = ()) -> Family:
    """A value that comes and goes; without labels `value` is all of it."""
    return _family(name, what, "gauge", value, labels)


def counter(name: str, what: str, value: float | None = None, labels: Sequence[str] = ()) -> Family:
    """A value that only grows; without labels `value` is all of it."""
    return _family(name, what, "counter", value, labels)


def _family(name: str, what: str, kind: str, value: float | None, labels: Sequence[str]) -> Family:
    made = Family(name, what, kind, labels)
    if value is not None:
        made.add((), value)
    return made


class Collector(Protocol):
    """Figures that are read when they are asked for."""

    def collect(self) -> Iterable[Family]:
        """All of them, now. Never waits."""


class Counts(dict[Labels, float]):
    """A counter by its labels: `counts[labels] += 1`."""

    def __init__(
        self, name: str, what: str, labels: Sequence[str] = (), begun: Iterable[Labels] = ()
    ) -> None:
        """`begun` are labels that are counted from 0 on."""
        super().__init__(dict.fromkeys(begun, 0.0))
        self._about = (name, what)
        self._labels = labels

    def __missing__(self, labels: Labels) -> float:
        return 0.0

    def collect(self) -> Iterator[Family]:
        """The figure, now."""
        family = counter(*self._about, labels=self._labels)
        family.values.update(self)
        yield family


class Spread:
    """How many values were up to each of some bounds, and the sum of all."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        #: One for each bound, of the values that no lower one has, and one for all above.
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Spreads(dict[Labels, Spread]):
    """A histogram by its labels, a summary when it has no bounds."""

    def __init__(
        self,
        name: str,
        what: str,
        labels: Sequence[str] = (),
        bounds: Sequence[float] = (),
        begun: Iterable[Labels] = (),
    ) -> None:
        """`begun` are labels that are counted from 0 on."""
        super().__init__()
        self._about = (name, what)
        self._labels = labels
        self._bounds = bounds
        for each in begun:
            self[each]

    def __missing__(self, labels: Labels) -> Spread:
        made = self[labels] = Spread(self._bounds)
        return made

    def collect(self) -> Iterator[Family]:
        """The figure, now."""
        family = Family(*self._about, "histogram" if self._bounds else "summary", self._labels)
        buckets: dict[Labels, float] = {}
        counts: dict[Labels, float] = {}
        totals: dict[Labels, float] = {}
        names = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]
        for labels, spread in self.items():
            if self._bounds:
                for name, count in zip(names, accumulate(spread.counts), strict=True):
                    buckets[*labels, name] = count
            counts[labels] = sum(spread.counts)
            totals[labels] = spread.total
        family.samples = {"_bucket": buckets, "_count": counts, "_sum": totals}
        yield family


class DiskMeter:
    """What one disk does; the disk's `Member` tells it."""

    def __init__(
        self,
        root: str,
        seconds: Spreads,
        of_all: Spreads,
        refused: Counts,
        damaged: Counts,
        restored: Counts,
    ) -> None:
        """`seconds` are its own, `of_all` those of all disks."""
        kinds = ("read", "write", "job", "release")
        self._own = {kind: seconds[root, kind].observe for kind in kinds}
        self._all = {kind: of_all[kind,].observe for kind in kinds}
        self._root = root
        self._refused, self._damaged, self._restored = refused, damaged, restored
        for counts in (refused, damaged, restored):
            counts[root,] += 0

    def did(self, kind: str, seconds: float) -> None:
        """An operation of a kind (`read`, `write`, `job`, `release`) has ended, well or badly."""
        self._own[kind](seconds)
        self._all[kind](seconds)

    def refused(self) -> None:
        """An operation was not begun, because too many were waiting."""
        self._refused[self._root,] += 1

    def damaged(self) -> None:
        """A copy was found to be bad."""
        self._damaged[self._root,] += 1

    def restored(self) -> None:
        """A copy that was missing or bad was put back."""
        self._restored[self._root,] += 1


class Figures:
    """The figures of one Stor, in a registry of their own."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)
        self._collectors: list[Collector] = []
        self._make_of_requests()
        self._make_of_samples()
        self._disk_seconds = Spreads(
            "stor_disk_operation_seconds",
            "Operations on a disk, from being asked for to their end.",
            ["root", "kind"],
        )
        # Of each disk it would be most of all lines, with hundreds of disks.
        self._all_disks_seconds = Spreads(
            "stor_disk_operation_duration_seconds",
            "The same of all disks.",
            ["kind"],
            _DISK_SECONDS,
        )
        self._disk_refused = Counts(
            "stor_disk_operations_refused",
            "Operations that were not begun because too many were waiting for the disk.",
            ["root"],
        )
        self._disk_damaged = Counts(
            "stor_disk_damaged_copies",
            "Copies that were found to be bad: not the bytes of their name.",
            ["root"],
        )
        self._disk_restored = Counts(
            "stor_disk_restored_copies", "Copies that were missing or bad and put back.", ["root"]
        )
        self.watch(self)

    def watch(self, collector: Collector) -> None:
        """Give the figures of `collector`, too, from now on."""
        self._collectors.append(collector)

    def families(self) -> list[Family]:
        """All figures, to be added up with those of other processes."""
        return [family for one in self._collectors for family in one.collect()]

    def disk(self, root: str) -> DiskMeter:
        """The meter of one disk."""
        return DiskMeter(
            root,
            self._disk_seconds,
            self._all_disks_seconds,
            self._disk_refused,
            self._disk_damaged,
            self._disk_restored,
        )

    def collect(self) -> Iterator[Family]:
        """See `Collector.collect`."""
        for metric in self._process.collect():
            family = Family(metric.name, metric.documentation, metric.type)
            for sample in metric.samples:
                family.add((), sample.value)
            yield family
        build = gauge("stor_build_info", "1, by Stor's version.", labels=["version"])
        build.add((__version__,), 1)
        yield build
        for own in vars(self).values():
            if isinstance(own, Counts | Spreads):
                yield from own.collect()

    def _make_of_requests(self) -> None:
        self.requests = Counts(
            "stor_http_requests",
            "Requests that are over, by status; 0 when the client went away before its answer.",
            ["route", "method", "status"],
        )
        self.cut = Counts(
            "stor_http_requests_cut",
            "Requests whose client got less than the whole answer.",
            ["method"],
        )
        self.request_seconds = Spreads(
            "stor_http_request_duration_seconds",
            "Requests, from the end of their headers to the end of the answer.",
            ["method"],
            _SECONDS,
        )
        self.sent_bytes = Spreads(
            "stor_http_response_size_bytes",
            "Bodies that were sent, as far as they were.",
            ["method"],
            _BYTES,
        )
        self.received_bytes = Spreads(
            "stor_http_request_size_bytes",
            "Bodies that were received, as far as they were; none is not counted.",
            ["method"],
            _BYTES,
        )
        self.errors = Counts(
            "stor_http_request_errors",
            "Requests for samples that failed, by why; get and post as for statsd.",
            ["operation", "cause"],
            _FORESEEN_ERRORS,
        )
        self.healthchecks = Counts("stor_healthchecks", "Requests for /status.", begun=[()])

    def _make_of_samples(self) -> None:
        self.served_seconds = Spreads(
            "stor_samples_served_duration_seconds",
            "GET and HEAD that were answered from a storage, to the last byte.",
            ["storage"],
        )
        self.served_bytes = Counts(
            "stor_samples_served_bytes", "What of samples was sent in those answers.", ["storage"]
        )
        self.stored = Counts(
            "stor_samples_stored",
            "POSTs that were answered well: write, or duplicate when it was stored before.",
            ["result"],
            [("write",), ("duplicate",)],
        )
        self.lookup_seconds = Spreads(
            "stor_lookup_duration_seconds",
            "Looking for a sample, until it is found or given up.",
            bounds=_SECONDS,
            begun=[()],
        )
        self.lookup_attempts = Spreads(
            "stor_lookup_attempts",
            "How many places were asked for a sample.",
            bounds=_ATTEMPTS,
            begun=[()],
        )
        self.cache = Counts(
            "stor_cache_requests",
            "Lookups in the location cache.",
            ["result"],
            [("hit",), ("miss",)],
        )
        self.cache_seconds = Spreads(
            "stor_cache_duration_seconds",
            "Lookups in the location cache, however they ended.",
            bounds=_CACHE_SECONDS,
            begun=[()],
        )


def lasting(part: Iterable[Family]) -> list[Family]:
    """Those figures that stay when their process has ended."""
    return [family for family in part if family.kind in _LASTING]


def summed(parts: Iterable[Iterable[Family]]) -> list[Family]:
    """The figures of several processes as one's: what has the same name and labels is added up."""
    found: dict[str, Family] = {}
    for part in parts:
        for family in part:
            known = found.get(family.name)
            if known is None:
                copied = {suffix: dict(values) for suffix, values in family.samples.items()}
                found[family.name] = attrs.evolve(family, samples=copied)
            elif family.name not in _ONE:
                for suffix, values in family.samples.items():
                    sums = known.samples.setdefault(suffix, {})
                    for labels, value in values.items():
                        sums[labels] = sums.get(labels, 0) + value
    return list(found.values())


def exposition(families: Iterable[Family]) -> bytes:
    """Figures in the text format of Prometheus, version 0.0.4."""
    lines: list[str] = []
    for family in families:
        name, labels = family.name, tuple(family.labels)
        full = f"{name}_total" if family.kind == "counter" else name
        lines.append(f"# HELP {full} {_escaped(family.what)}\n# TYPE {full} {family.kind}\n")
        for suffix, samples in family.samples.items():
            begin = name + suffix
            lines += [
                f"{begin}{_labelled(labels, values)} {value}\n" for values, value in samples.items()
            ]
    return "".join(lines).encode()


@lru_cache(_KNOWN_LABELS)
def _labelled(labels: Labels, values: Labels) -> str:
    """Labels as they stand behind a name; the bound of a bucket is the last one."""
    pairs = [
        f'{label}="{_quoted(value)}"' for label, value in zip((*labels, "le"), values, strict=False)
    ]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(label: str) -> str:
    return _escaped(printable(label)).replace('"', '\\"')
