"""`stor rebalance`: samples from the fullest sets to the emptiest."""

from typing import Any

from stor.cli.admin_client import Stor, add_command
from stor.cli.drain import add_moving, ask


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "rebalance",
        "move samples from the fullest sets to the emptiest, until they are about as full",
        "stor rebalance --dry-run",
        _run,
    )
    add_moving(parser)


def _run(stor: Stor, given: Any) -> int:
    return ask(stor, "rebalance", given, {})
