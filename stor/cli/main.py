"""The `stor` command: for operators, and for those who store and fetch files."""

import argparse
from collections.abc import Sequence

from stor import __version__
from stor.cli import (
    admin,
    adopt,
    at_risk,
    change,
    check_config,
    configured,
    explain,
    jobs,
    rescan,
    scrub,
    status,
)
from stor.client import command
from stor.descriptors import hold_standard


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what it was asked, 1 when it could not, 2 for a wrong call."""
    hold_standard()
    parser = argparse.ArgumentParser(
        prog="stor", description="Store and fetch files; look after a Stor's disks."
    )
    parser.add_argument("--version", action="version", version=f"Stor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (status, jobs, scrub, change, at_risk, explain, adopt, rescan, check_config):
        room.add(commands)
    command.add_commands(commands)
    given = parser.parse_args(arguments)
    if given.command in command.COMMANDS:
        return command.run(given)
    if hasattr(given, "configured"):
        return configured.run(parser, given)
    return admin.run(given)
