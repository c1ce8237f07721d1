"""Everything that Prometheus can ask for; docs/metrics.md says what each figure is.

What is counted on the way of a request is counted in plain numbers, in the reactor's thread, and
becomes what `prometheus_client` writes when somebody asks: its own counters have a lock each, and
a dozen of them would take as long as the answer to a small request.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.samples import Sample
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

#: What has been counted stays counted when the process that did has ended.
_LASTING = ("counter", "histogram", "summary")

#: A figure for the way between processes: its name, what it is, its type and its samples, each with
#: name, labels and value.
Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]

#: The values of a figure's labels.
Labels = tuple[str, ...]


class Collector(Protocol):
    """Figures that are read when they are asked for."""

    def collect(self) -> Iterable[Metric]:
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

    def collect(self) -> Iterator[Metric]:
        """The figure, now."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, value in self.items():
            family.add_metric(labels, value)
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

    def collect(self) -> Iterator[Metric]:
        """The figure, now."""
        if not self._bounds:
            summary = SummaryMetricFamily(*self._about, labels=self._labels)
            for labels, spread in self.items():
                summary.add_metric(labels, sum(spread.counts), spread.total)
            yield summary
            return
        histogram = HistogramMetricFamily(*self._about, labels=self._labels)
        names = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]
        for labels, spread in self.items():
            buckets = list(zip(names, accumulate(spread.counts), strict=True))
            histogram.add_metric(labels, buckets, spread.total)
        yield histogram


class DiskMeter:
    """What one disk does; the disk's `Member` tells it."""

    def __init__(
        self, root: str, seconds: Spreads, refused: Counts, damaged: Counts, restored: Counts
    ) -> None:
        kinds = ("read", "write", "job", "release")
        self._observe = {kind: seconds[root, kind].observe for kind in kinds}
        self._root = root
        self._refused, self._damaged, self._restored = refused, damaged, restored
        for counts in (refused, damaged, restored):
            counts[root,] += 0

    def did(self, kind: str, seconds: float) -> None:
        """An operation of a kind (`read`, `write`, `job`, `release`) has ended, well or badly."""
        self._observe[kind](seconds)

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
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        #: How many connections are open.
        self.connections: Callable[[], int] = lambda: 0
        self._make_of_requests()
        self._make_of_samples()
        self._disk_seconds = Spreads(
            "stor_disk_operation_duration_seconds",
            "Operations on a disk, from being asked for to their end.",
            ["root", "kind"],
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
        self._registry.register(collector)

    def families(self) -> list[Family]:
        """All figures, to be added up with those of other processes."""
        return [
            (
                metric.name,
                metric.documentation,
                metric.type,
                [(sample.name, sample.labels, sample.value) for sample in metric.samples],
            )
            for metric in self._registry.collect()
        ]

    def disk(self, root: str) -> DiskMeter:
        """The meter of one disk."""
        return DiskMeter(
            root,
            self._disk_seconds,
            self._disk_refused,
            self._disk_damaged,
            self._disk_restored,
        )

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        build = GaugeMetricFamily("stor_build_info", "1, by Stor's version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield GaugeMetricFamily(
            "stor_http_connections", "Connections that are open.", self.connections()
        )
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
    return [family for family in part if family[2] in _LASTING]


def summed(parts: Iterable[Iterable[Family]]) -> list[Family]:
    """The figures of several processes as one's: what has the same name and labels is added up."""
    found: dict[str, tuple[str, str, dict[tuple[object, ...], float]]] = {}
    for part in parts:
        for name, what, kind, samples in part:
            known = name in found
            _, _, values = found.setdefault(name, (what, kind, {}))
            if known and name in _ONE:
                continue
            for sample, labels, value in samples:
                key = (sample, *labels.items())
                values[key] = values.get(key, 0.0) + value
    return [
        (name, what, kind, [(str(key[0]), dict(key[1:]), value) for key, value in values.items()])  # type: ignore[arg-type]
        for name, (what, kind, values) in found.items()
    ]


def exposition(families: Iterable[Family]) -> bytes:
    """Figures in the text format of Prometheus."""
    return generate_latest(_Collected(list(families)))


class _Collected:
    """Figures as `prometheus_client.generate_latest` asks for them."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        for name, what, kind, samples in self._families:
            metric = Metric(name, what, kind)
            metric.samples = [
                Sample(sample, {label: printable(text) for label, text in labels.items()}, value)
                for sample, labels, value in samples
            ]
            yield metric
