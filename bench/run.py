"""Measuring what was asked for, one after the other."""

from collections.abc import Callable
from pathlib import Path

import attrs

from bench.comparison import Result
from bench.comparisons import COMPARISONS
from bench.cores import Cores
from bench.errors import Failed
from bench.ground import Ground
from bench.plot import svg
from bench.programs import Programs
from bench.report import curves_table, table
from bench.sweep import Curves
from bench.sweeps import SWEEPS
from bench.temporary import empty_files


@attrs.define
class Run:
    """What was found so far, by name. Each table is printed when it is there."""

    directory: Path
    programs: Programs
    rounds: int
    seconds: float
    tell: Callable[[str], None]
    results: dict[str, Result] = attrs.field(factory=dict)
    sweeps: dict[str, Curves] = attrs.field(factory=dict)
    failed: bool = False

    def measure(self, name: str) -> None:
        """Measure a comparison or a sweep; of what it wrote only empty files stay."""
        own = self.directory / name
        try:
            own.mkdir()
            if name in SWEEPS:
                self._sweep(name, own)
            else:
                self._compare(name, own)
        except (Failed, OSError) as error:
            self.failed = True
            self.tell(f"{name}: {error}")
        finally:
            empty_files(own)

    def draw(self, directory: Path) -> None:
        """Write a picture of each sweep. Raises `OSError`."""
        for name, curves in self.sweeps.items():
            (directory / f"{name}.svg").write_text(svg(curves))

    def _compare(self, name: str, own: Path) -> None:
        plan = COMPARISONS[name]
        comparison = plan.comparison(name, Ground(own, self.programs, plan.cores()))
        result = comparison.measure(self.rounds, self.seconds, self.tell)
        self.results[name] = result
        print(f"{table(result)}\n", flush=True)

    def _sweep(self, name: str, own: Path) -> None:
        sweep = SWEEPS[name](Ground(own, self.programs, Cores.one_each()))
        curves = sweep.measure(self.rounds, self.seconds, self.tell)
        self.sweeps[name] = curves
        print(f"{name}: {curves_table(curves)}\n", flush=True)
