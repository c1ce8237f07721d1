"""A result for people, and for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from bench.comparison import Curves, Result
from bench.measure import RATE, Measure, Series, Spread


def table(result: Result) -> str:
    """Lines to print: what was measured, and the targets."""
    first, *others = result.measures
    headings = (
        *("", first.name, "min-max", "ratio", "min-max"),
        *(measure.name for measure in others),
    )
    rows = [_row(series, result) for series in result.series]
    targets = [f"target: {verdict.text}" for verdict in result.verdicts]
    return "\n".join(
        [f"{result.title}; ratios to {result.reference}", *columns([headings, *rows]), *targets]
    )


def curves_table(curves: Curves) -> str:
    """The medians of a sweep, to print."""
    headings = (curves.axis, *(curve.name for curve in curves.curves))
    rows = [
        (curves.tick(value), *(_median(curve.points[value], RATE) for curve in curves.curves))
        for value in curves.curves[0].points
    ]
    return "\n".join([f"{RATE.name}: {curves.title}", *columns([headings, *rows])])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, the first to the left."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return lines


def summary(results: Mapping[str, Result]) -> str:
    """All targets, missed ones first."""
    verdicts = [(name, verdict) for name, result in results.items() for verdict in result.verdicts]
    verdicts.sort(key=lambda pair: pair[1].reached)
    reached = sum(verdict.reached for _, verdict in verdicts)
    rows = [(name, verdict.target, *verdict.columns) for name, verdict in verdicts]
    headings = ("", "target", "found", "min-max", "")
    return "\n".join([f"{reached} of {len(verdicts)} targets reached", *columns([headings, *rows])])


def as_json(
    machine: Mapping[str, str], results: Mapping[str, Result], sweeps: Mapping[str, Curves]
) -> dict[str, Any]:
    """The same with every run, for `json.dump`."""
    return {
        "machine": dict(machine),
        "comparisons": {name: _comparison(result) for name, result in results.items()},
        "sweeps": {name: _sweep(curves) for name, curves in sweeps.items()},
    }


def _row(series: Series, result: Result) -> tuple[str, ...]:
    first, *others = result.measures
    spread, ratio = series.spread(first), series.ratio(first, result.reference_series)
    figures = [_median(series, measure) for measure in others]
    return (
        series.name,
        _median(series, first),
        _range(spread, first.form),
        "-" if ratio is None else f"{ratio.median:.3f}",
        _range(ratio, ".3f"),
        *figures,
    )


def _median(series: Series, measure: Measure) -> str:
    spread = series.spread(measure)
    return measure.text(None if spread is None else spread.median)


def _range(spread: Spread | None, form: str) -> str:
    return "-" if spread is None else f"{spread.least:{form}}-{spread.most:{form}}"


def _comparison(result: Result) -> dict[str, Any]:
    return {
        "title": result.title,
        "reference": result.reference,
        "targets": [attrs.asdict(verdict) for verdict in result.verdicts],
        "subjects": [
            {
                "name": series.name,
                "figures": {m.name: _spread(series.spread(m)) for m in result.measures},
                "ratios": {
                    m.name: _spread(series.ratio(m, result.reference_series))
                    for m in result.measures
                },
                "runs": [attrs.asdict(run) for run in series.runs],
            }
            for series in result.series
        ],
    }


def _sweep(curves: Curves) -> dict[str, Any]:
    return {
        "title": curves.title,
        "axis": curves.axis,
        "servers": {
            curve.name: {
                value: [attrs.asdict(run) for run in series.runs]
                for value, series in curve.points.items()
            }
            for curve in curves.curves
        },
    }


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else attrs.asdict(spread)
