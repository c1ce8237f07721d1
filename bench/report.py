"""A result for people, and for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from bench.comparison import Result, Series, Spread

_HEADINGS = ("", "requests/s", "min-max", "of limit", "min-max", "CPU us/request", "RSS MiB")


def table(result: Result) -> str:
    """Lines to print."""
    limit = result.limit
    rows = [_HEADINGS, *(_row(series, limit) for series in result.series)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [f"{result.title}; the limit is {limit.name}"]
    for name, *figures in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def as_json(machine: Mapping[str, str], results: Sequence[Result]) -> dict[str, Any]:
    """The same, every turn included, for `json.dump`."""
    return {
        "machine": dict(machine),
        "comparisons": [
            {
                "title": result.title,
                "limit": result.limit.name,
                "contenders": [_picture(series, result.limit) for series in result.series],
            }
            for result in results
        ],
    }


def _row(series: Series, limit: Series) -> tuple[str, ...]:
    rate, ratio = series.rate, series.ratio(limit)
    return (
        series.name,
        f"{rate.median:.0f}",
        _range(rate, ".0f"),
        f"{ratio.median:.3f}",
        _range(ratio, ".3f"),
        f"{series.cpu_seconds_per_request * 1e6:.0f}",
        f"{series.resident_bytes / 2**20:.0f}",
    )


def _range(spread: Spread, form: str) -> str:
    return f"{spread.least:{form}}-{spread.most:{form}}"


def _picture(series: Series, limit: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "requests_per_second": attrs.asdict(series.rate),
        "ratio_to_limit": attrs.asdict(series.ratio(limit)),
        "cpu_seconds_per_request": series.cpu_seconds_per_request,
        "resident_bytes": series.resident_bytes,
        "turns": [attrs.asdict(turn) for turn in series.turns],
    }
