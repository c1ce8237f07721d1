"""`python -m bench`: measure, and print a table."""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from bench.comparison import Result
from bench.comparisons import COMPARISONS
from bench.cores import Cores
from bench.errors import Failed, Missing
from bench.ground import Ground
from bench.machine import describe, file_system
from bench.programs import Programs
from bench.report import as_json, summary, table
from bench.temporary import SIGNALS, temporary_directory


def main() -> int:
    """0 when all was measured, 1 when something failed, 2 when something is not installed."""
    options = _options()
    for number in SIGNALS:
        signal.signal(number, _end)
    try:
        programs = Programs.find()
    except Missing as error:
        _tell(str(error))
        return 2
    if Cores.one_each().server == Cores.one_each().client:
        _tell("note: only one core, the server and its clients share it")
    names = dict.fromkeys(options.comparisons or COMPARISONS)
    results: dict[str, Result] = {}
    with temporary_directory(options.directory) as directory:
        if file_system(directory) in ("tmpfs", "overlay"):
            _tell("note: syncing costs little on this file system; --directory names another")
        machine = describe(programs, directory)
        for name in names:
            plan = COMPARISONS[name]
            with temporary_directory(str(directory)) as own:
                comparison = plan.build(ground=Ground(own, programs, plan.cores()))
                try:
                    result = comparison.measure(options.rounds, options.seconds, _tell)
                except (Failed, OSError) as error:
                    _tell(f"{comparison.title}: {error}")
                    continue
            results[name] = result
            print(f"{name}: {table(result)}\n", flush=True)
    print(f"{summary(results)}\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if options.json:
        try:
            options.json.write_text(json.dumps(as_json(machine, results), indent=2) + "\n")
        except OSError as error:
            _tell(f"{options.json}: {error.strerror}")
            return 1
    return 0 if len(results) == len(names) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument(
        "comparisons", nargs="*", metavar="COMPARISON", help=f"of {', '.join(COMPARISONS)}; all"
    )
    parser.add_argument("--rounds", type=_count, default=5, help="turns of each contender (5)")
    parser.add_argument("--seconds", type=_count, default=1, help="length of a turn (1)")
    parser.add_argument(
        "--directory", type=_directory, help="where to write: the file system to measure"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every turn, for programs")
    options = parser.parse_args()
    for name in options.comparisons:
        if name not in COMPARISONS:
            parser.error(f"{name}: expected one of {', '.join(COMPARISONS)}")
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text}")
    return number


def _directory(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a directory, found {text}")
    return text


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    _tell("ending, and removing what was written")
    for further in SIGNALS:
        signal.signal(further, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
