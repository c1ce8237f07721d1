"""All turns of one contender."""

import attrs

from bench.measure import Measure
from bench.turn import Spread, Turn


@attrs.define
class Series:
    """Its turns, in the order of the rounds."""

    name: str
    turns: list[Turn] = attrs.field(factory=list)

    def spread(self, measure: Measure) -> Spread | None:
        """A figure over all rounds."""
        return Spread.of(measure.of(turn) for turn in self.turns)

    def ratio(self, measure: Measure, other: "Series") -> Spread | None:
        """A figure as a part of another's, round by round: noise that lasts longer cancels."""
        pairs = zip(self.turns, other.turns, strict=True)
        figures = [(measure.of(mine), measure.of(its)) for mine, its in pairs]
        return Spread.of(mine / its for mine, its in figures if mine is not None and its)
