"""Curves as a picture: SVG, with both axes logarithmic."""

import math
from collections.abc import Iterable, Sequence
from html import escape

import attrs

from bench.comparison import Curve, Curves
from bench.measure import RATE

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 130, 50, 60
_COLOURS = ("#c0392b", "#2c7a4b", "#2c5fa8", "#8e6bb0")
_STYLE = "font-family: sans-serif; font-size: 13px"


@attrs.frozen
class _Scale:
    """A logarithmic axis: from figures to places on the picture."""

    least: float
    most: float
    begin: float
    end: float

    def __call__(self, figure: float) -> float:
        """Where a figure is."""
        part = math.log(figure / self.least) / math.log(self.most / self.least)
        return self.begin + part * (self.end - self.begin)


def svg(curves: Curves) -> str:
    """Requests a second: medians joined by lines, extremes as bars, the first server thickest.

    Takes curves of at least two values each.
    """
    values = list(curves.curves[0].points)
    rates = [rate for curve in curves.curves for _, *three in _figures(curve) for rate in three]
    x = _Scale(min(values), max(values), _LEFT, _WIDTH - _RIGHT)
    y = _Scale(*_decades(rates), _HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'style="{_STYLE}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 25, f"{RATE.name}: {curves.title}", "start"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 15, curves.axis, "middle"),
        *_grid(y),
        *(_text(x(value), _HEIGHT - 38, curves.tick(value), "middle") for value in values),
    ]
    for number, curve in enumerate(curves.curves):
        lines += _drawn(curve, x, y, _COLOURS[number % len(_COLOURS)], 3 if number == 0 else 1.5)
    lines += _names(curves.curves, y)
    return "\n".join([*lines, "</svg>", ""])


def _figures(curve: Curve) -> Iterable[tuple[int, float, float, float]]:
    for value, series in curve.points.items():
        spread = series.spread(RATE)
        if spread is not None:
            yield value, spread.median, spread.least, spread.most


def _decades(rates: Sequence[float]) -> tuple[float, float]:
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _grid(y: _Scale) -> Iterable[str]:
    rate = y.least
    while rate <= y.most:
        for part in range(1, 10):
            if rate * part <= y.most:
                colour = "#cccccc" if part == 1 else "#eeeeee"
                yield _line(_LEFT, y(rate * part), _WIDTH - _RIGHT, y(rate * part), colour, 1)
        yield _text(_LEFT - 8, y(rate) + 4, f"{rate:,.0f}", "end")
        rate *= 10


def _drawn(curve: Curve, x: _Scale, y: _Scale, colour: str, width: float) -> Iterable[str]:
    points = " ".join(f"{x(value):.1f},{y(median):.1f}" for value, median, _, _ in _figures(curve))
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    for value, median, least, most in _figures(curve):
        yield f'<circle cx="{x(value):.1f}" cy="{y(median):.1f}" r="{width + 1}" fill="{colour}"/>'
        yield _line(x(value), y(least), x(value), y(most), colour, 1)


def _names(curves: Sequence[Curve], y: _Scale) -> Iterable[str]:
    """Each beside the end of its curve, without overlap."""
    ends = []
    for number, curve in enumerate(curves):
        *_, (_, median, _, _) = _figures(curve)
        ends.append((y(median), curve.name, _COLOURS[number % len(_COLOURS)]))
    lowest = -math.inf
    for place, name, colour in sorted(ends):
        lowest = max(place, lowest + 16)
        yield _text(_WIDTH - _RIGHT + 12, lowest + 4, name, "start", colour)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
