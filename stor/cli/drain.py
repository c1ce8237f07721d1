"""`stor drain`: all samples of a set to the others, so that it can be taken out."""

import os
from typing import Any

from stor.cli.admin_client import Stor, add_command, show, show_lines
from stor.cli.change import megabytes
from stor.cli.waiting import plan_lines, tell


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "drain",
        "move all samples of a set to the others, so that it can be taken out",
        "stor drain /srv/stor/disk1 --dry-run",
        _run,
    )
    parser.add_argument(
        "roots", nargs="+", metavar="ROOT", help="a disk of the set; all of its disks are drained"
    )
    add_moving(parser)


def add_moving(parser: Any) -> None:
    """Add the options of commands that move samples."""
    parser.add_argument(
        "--dry-run", action="store_true", help="only say how many samples, bytes and hours it takes"
    )
    parser.add_argument(
        "--rate", type=megabytes, metavar="MB", help="move at most MB megabytes a second"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end, and say how it was")


def ask(stor: Stor, name: str, given: Any, order: dict[str, Any]) -> int:
    """Have samples moved, or say what that takes; the exit status."""
    if given.rate is not None:
        order["rate"] = {"bytes_per_second": given.rate}
    if given.dry_run:
        plans = stor.post(name, dry_run=True, **order)
        if given.json:
            show(plans)
        else:
            show_lines(plan_lines(plans))
        return 0
    return tell(stor, stor.post(name, **order), wait=given.wait, as_json=given.json)


def _run(stor: Stor, given: Any) -> int:
    roots = [os.path.normpath(root) for root in given.roots]
    return ask(stor, "drain", given, {"roots": roots})
