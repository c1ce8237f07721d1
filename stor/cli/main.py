"""The `stor` command: for operators, and for those who store and fetch files."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from stor import __version__
from stor.client import command
from stor.paths import printable
from stor.standard import hold_standard


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a call; so do the parsers of the commands."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        _, _, name = self.prog.partition(" ")
        about = f"{name}: " if name else ""
        line = printable(f"stor: {about}{message}; see {self.prog} --help")
        self.exit(2, line.replace("\n", "\\n") + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what it was asked, 1 when it could not, 2 for a wrong call."""
    hold_standard()
    parser = _Parser(prog="stor", description="Store and fetch files; look after a Stor's disks.")
    parser.add_argument("--version", action="version", version=f"Stor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_others = _add_operators(commands)
    command.add_commands(commands)
    given = parser.parse_args(arguments)
    if given.command in command.COMMANDS:
        return command.run(given)
    try:
        status = run_others(parser, given)
        sys.stdout.flush()
    except OSError as error:  # of what is printed: each command tells of all others
        if not isinstance(error, BrokenPipeError):  # whoever reads has seen enough
            print(f"stor: standard output: {error.strerror}", file=sys.stderr)
        # What is left in the buffer is not tried again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _add_operators(commands: Any) -> Callable[[argparse.ArgumentParser, argparse.Namespace], int]:
    """Add the commands for operators, and how they are run.

    Where the command is installed without the server, what these need is not there: then there are
    none.
    """
    try:
        from stor.cli import (  # noqa: PLC0415 - see above
            admin_client,
            adopt,
            at_risk,
            change,
            check_config,
            configured,
            drain,
            explain,
            jobs,
            rebalance,
            rescan,
            scrub,
            status,
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stor"):
            raise
        return lambda parser, given: 2

    rooms = (status, jobs, scrub, drain, rebalance, change, at_risk, explain, adopt, rescan)
    for room in (*rooms, check_config):
        room.add(commands)

    def run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
        if hasattr(given, "configured"):
            return configured.run(parser, given)
        return admin_client.run(parser, given)

    return run
