"""Contenders taking turns, and the rounds that come of it."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import attrs

from bench.contender import Contender
from bench.measure import BUSY, CPU, P99, PSS, RATE, RSS, Measure
from bench.series import Series
from bench.target import Target, Verdict
from bench.turn import Turn

WARM_UP_SECONDS = 0.5


@attrs.frozen
class Result:
    """What a comparison has found: the first series is Stor's, ratios are to that of `against`.

    The first of `measures` is the one that is compared.
    """

    title: str
    series: Sequence[Series]
    against: str
    measures: Sequence[Measure]
    verdicts: Sequence[Verdict]

    @property
    def yardstick(self) -> Series:
        """The series that the others are compared with."""
        return next(series for series in self.series if series.name == self.against)


@attrs.frozen
class Comparison:
    """Stor, the first of the contenders, beside others."""

    title: str
    contenders: Sequence[Contender]
    against: str
    targets: Sequence[Target] = ()
    measures: Sequence[Measure] = (RATE, P99, CPU, BUSY, PSS, RSS)

    def measure(self, rounds: int, seconds: float, tell: Callable[[str], None]) -> Result:
        """Let every contender have a turn in each round. Raises `Failed`; no process is left."""
        first = self.measures[0]
        tell(self.title)
        with ExitStack() as running:
            for contender in self.contenders:
                tell(f"starting {contender.name}")
                running.callback(contender.stop)
                contender.start()
                contender.run(WARM_UP_SECONDS)
            series = [Series(contender.name) for contender in self.contenders]
            for number in range(1, rounds + 1):
                for contender, its in zip(self.contenders, series, strict=True):
                    # Nobody's turn is to be spent on what others have left to be written.
                    os.sync()
                    turn = Turn.of(contender, seconds)
                    its.turns.append(turn)
                    figure = f"{first.written(first.of(turn))} {first.name}"
                    tell(f"round {number} of {rounds}: {contender.name}: {figure}")
        table = {its.name: its for its in series}
        verdicts = [target.judge(series[0].name, table) for target in self.targets]
        return Result(self.title, series, self.against, self.measures, verdicts)
