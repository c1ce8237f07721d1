"""`stor pause`, `resume`, `cancel` and `rate`: change a job."""

import argparse
import re
from typing import Any

from stor.cli.admin_client import Stor, add_command, job_line, show, show_lines

_WHAT = {
    "pause": "have a job rest until it is resumed",
    "resume": "have a job go on that was paused, or that failed",
    "cancel": "end a job before it is done",
    "rate": "limit how fast a job reads",
}


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    for name, what in _WHAT.items():
        example = f"stor {name} 3" + (" 50" if name == "rate" else "")
        parser = add_command(commands, name, what, example, _run)
        parser.add_argument("job", type=_number, metavar="JOB", help="its number, as in stor jobs")
        if name == "rate":
            parser.add_argument(
                "megabytes",
                type=_megabytes_or_none,
                metavar="MB",
                help="MB a second; none: as much as clients leave",
            )
            parser.add_argument(
                "--samples", type=_above_0, metavar="N", help="read at most N samples a second"
            )


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise argparse.ArgumentTypeError(f"expected the number of a job, found {text}")
    return int(text)


def megabytes(text: str) -> float:
    """Bytes a second, from MB. Raises `argparse.ArgumentTypeError`."""
    return _above_0(text) * 1e6


def _megabytes_or_none(text: str) -> float | None:
    return None if text == "none" else megabytes(text)


def _above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(
            f"expected a number above 0, found {text}; to have a job rest: stor pause JOB"
        )
    return number


def _run(stor: Stor, given: Any) -> int:
    order: dict[str, Any] = {"job": given.job}
    if given.command == "rate":
        order["rate"] = {"bytes_per_second": given.megabytes, "samples_per_second": given.samples}
    job = stor.post(given.command, **order)
    if given.json:
        show(job)
    else:
        show_lines([job_line(job)])
    return 0
