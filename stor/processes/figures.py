"""The figures of several processes as those of one Stor."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.samples import Sample

#: Of these there is one, whoever says it first.
_ONE = ("stor_build_info", "process_start_time_seconds")

#: What has been counted stays counted when the process that did has ended.
_LASTING = ("counter", "histogram", "summary")

#: A figure for the way between processes: its name, what it is, its type and its samples, each with
#: name, labels and value.
Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]


def families(metrics: Iterable[Metric]) -> list[Family]:
    """Figures for the way to another process."""
    return [
        (
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in metrics
    ]


def lasting(part: Iterable[Family]) -> list[Family]:
    """Those that stay when their process has ended."""
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


class Collected:
    """Figures as `prometheus_client.generate_latest` asks for them."""

    def __init__(self, part: Iterable[Family]) -> None:
        self._families = list(part)

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        for name, what, kind, samples in self._families:
            metric = Metric(name, what, kind)
            metric.samples = [Sample(*sample) for sample in samples]
            yield metric
