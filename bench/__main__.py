"""`python -m bench`: measure, and print tables."""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from bench.comparisons import COMPARISONS
from bench.cores import Cores
from bench.errors import Missing
from bench.machine import describe, file_system
from bench.programs import Programs
from bench.report import as_json, summary
from bench.run import Run
from bench.sweeps import SWEEPS
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
    names = options.names or [*COMPARISONS, *(SWEEPS if options.plots else ())]
    with temporary_directory(options.directory) as directory:
        if file_system(directory) in ("tmpfs", "overlay"):
            _tell("note: syncing costs little on this file system; --directory names another")
        machine = describe(programs, directory)
        run = Run(directory, programs, options.rounds, options.seconds, _tell)
        for name in dict.fromkeys(names):
            run.measure(name)
    if run.results:
        print(f"{summary(run.results)}\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    try:
        if options.json:
            picture = as_json(machine, run.results, run.sweeps)
            options.json.write_text(json.dumps(picture, indent=2) + "\n")
        if options.plots:
            run.draw(options.plots)
    except OSError as error:
        _tell(f"{error.filename}: {error.strerror}")
        return 1
    return 1 if run.failed else 0


def _options() -> argparse.Namespace:
    known = [*COMPARISONS, *SWEEPS]
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure, of {', '.join(known)}"
    )
    parser.add_argument("--rounds", type=_count, default=5, help="turns of each contender (5)")
    parser.add_argument("--seconds", type=_count, default=1, help="length of a turn (1)")
    parser.add_argument(
        "--directory", type=_directory, help="where to write: the file system to measure"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every turn, for programs")
    parser.add_argument(
        "--plots", type=_directory, metavar="DIR", help=f"draw {' and '.join(SWEEPS)} there"
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in known:
            parser.error(f"{name}: expected one of {', '.join(known)}")
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text}")
    return number


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a directory, found {text}")
    return Path(text)


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    _tell("ending, and removing what was written")
    for further in SIGNALS:
        signal.signal(further, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
