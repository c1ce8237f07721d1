"""What a figure should be, and whether it is."""

from collections.abc import Mapping

import attrs

from bench.measure import Measure
from bench.series import Series
from bench.turn import Spread


@attrs.frozen
class Verdict:
    """What was asked for, the figure that was found, and whether it is enough."""

    asked: str
    found: Spread | None
    reached: bool

    @property
    def found_words(self) -> tuple[str, str, str]:
        """The median, the extremes, and whether that is enough."""
        if self.found is None:
            return "-", "-", "not measured"
        median, least, most = (f"{figure:.3g}" for figure in attrs.astuple(self.found))
        return median, f"{least}-{most}", "reached" if self.reached else "MISSED"

    @property
    def words(self) -> str:
        """All of it in one line."""
        median, extremes, judgement = self.found_words
        return f"{self.asked}: {median} ({extremes}), {judgement}"


@attrs.frozen
class Target:
    """A bound on the median of a measure: of its ratio to another's, or of itself."""

    measure: Measure
    bound: float
    against: str | None = None
    upper: bool = False

    def judge(self, name: str, table: Mapping[str, Series]) -> Verdict:
        """Whether the series of this name reaches it."""
        mine = table[name]
        if self.against is None:
            found = mine.spread(self.measure)
        else:
            found = mine.ratio(self.measure, table[self.against])
        reached = found is not None and (
            found.median <= self.bound if self.upper else found.median >= self.bound
        )
        return Verdict(self._asked, found, reached)

    @property
    def _asked(self) -> str:
        sign = "<=" if self.upper else ">="
        of = "" if self.against is None else f" of {self.against}"
        return f"{self.measure.name} {sign} {self.bound:g}{of}"


def at_least(measure: Measure, bound: float, against: str | None = None) -> Target:
    """A figure that should not be smaller."""
    return Target(measure, bound, against)


def at_most(measure: Measure, bound: float, against: str | None = None) -> Target:
    """A figure that should not be larger."""
    return Target(measure, bound, against, upper=True)
