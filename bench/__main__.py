"""`python -m bench`: compare Stor with other servers, and print tables."""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import attrs

from bench.comparison import Curves, Result
from bench.comparisons import COMPARISONS, SWEEPS, Setup
from bench.machine import (
    SIGNALS,
    Missing,
    Programs,
    describe,
    empty_files,
    file_system,
    temporary_directory,
)
from bench.plot import svg
from bench.process import Cores, Failed
from bench.report import as_json, curves_table, summary, table


@attrs.define
class Benchmarks:
    """What was found so far, by name. Each table is printed when it is complete."""

    directory: Path
    programs: Programs
    rounds: int
    seconds: float
    log: Callable[[str], None]
    results: dict[str, Result] = attrs.field(factory=dict)
    sweeps: dict[str, Curves] = attrs.field(factory=dict)
    failed: bool = False

    def measure(self, name: str) -> None:
        """Measure a comparison or a sweep; only empty files stay of what it wrote."""
        own = self.directory / name
        try:
            own.mkdir()
            if name in SWEEPS:
                sweep = SWEEPS[name](Setup(own, self.programs, Cores.one_each()))
                curves = sweep.measure(self.rounds, self.seconds, self.log)
                self.sweeps[name] = curves
                print(f"{name}: {curves_table(curves)}\n", flush=True)
            else:
                plan = COMPARISONS[name]
                comparison = plan.comparison(name, Setup(own, self.programs, plan.cores()))
                result = comparison.measure(self.rounds, self.seconds, self.log)
                self.results[name] = result
                print(f"{table(result)}\n", flush=True)
        except (Failed, OSError) as error:
            self.failed = True
            self.log(f"{name}: {error}")
        finally:
            empty_files(own)


def main() -> int:
    """0 when everything was measured, 1 when something failed, 2 when a program is missing."""
    options = _options()
    for number in SIGNALS:
        signal.signal(number, _end)
    try:
        programs = Programs.find()
    except Missing as error:
        _log(str(error))
        return 2
    if Cores.one_each().server == Cores.one_each().client:
        _log("note: only one core, which the server and its clients share")
    names = options.names or [*COMPARISONS, *(SWEEPS if options.plots else ())]
    with temporary_directory(options.directory) as directory:
        if file_system(directory) in ("tmpfs", "overlay"):
            _log("note: syncing costs little on this file system; choose another with --directory")
        machine = describe(programs, directory)
        benchmarks = Benchmarks(directory, programs, options.rounds, options.seconds, _log)
        for name in dict.fromkeys(names):
            benchmarks.measure(name)
    if benchmarks.results:
        print(f"{summary(benchmarks.results)}\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    try:
        if options.json:
            found = as_json(machine, benchmarks.results, benchmarks.sweeps)
            options.json.write_text(json.dumps(found, indent=2) + "\n")
        if options.plots:
            for name, curves in benchmarks.sweeps.items():
                (options.plots / f"{name}.svg").write_text(svg(curves))
    except OSError as error:
        _log(f"{error.filename}: {error.strerror}")
        return 1
    return 1 if benchmarks.failed else 0


def _options() -> argparse.Namespace:
    known = [*COMPARISONS, *SWEEPS]
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure, of {', '.join(known)}"
    )
    parser.add_argument("--rounds", type=_count, default=5, help="runs of each server (5)")
    parser.add_argument("--seconds", type=_count, default=1, help="length of a run (1)")
    parser.add_argument(
        "--directory", type=_directory, help="where to write: the file system to measure"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, for programs")
    parser.add_argument(
        "--plots", type=_directory, metavar="DIR", help=f"draw {' and '.join(SWEEPS)} there"
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in known:
            parser.error(f"{name}: expected one of {', '.join(known)}")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text}")
    return int(text)


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a directory, found {text}")
    return Path(text)


def _log(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    _log("ending, and removing what was written")
    for further in SIGNALS:
        signal.signal(further, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
