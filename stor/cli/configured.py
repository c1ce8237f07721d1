"""What the commands have in common that go by the configuration of a Stor."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stor.config import Config, ConfigError, load
from stor.disk.disk import DiskAway
from stor.disk.identity import BadMarker
from stor.options import endpoint_fault
from stor.paths import printable

#: How a command is told of the configuration.
CONFIG_OPTION: dict[str, Any] = {"metavar": "FILE"}


def add_command(
    commands: Any,
    name: str,
    what: str,
    example: str,
    run: Callable[[Config, Any], str],
    told: Callable[[Config, str], Any],
) -> Any:
    """Add a command to a parser's; `example` shows how it is called.

    `run` gives what is said, `told` makes of that what JSON has.
    """
    parser = commands.add_parser(name, help=what, epilog=f"Example: {example}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(configured=run, told=told)
    return parser


def by_root(config: Config, said: str) -> list[dict[str, str]]:
    """For JSON: what was said of each disk, a line each."""
    lines = [line.partition(": ") for line in said.splitlines()]
    return [{"root": root, "says": says} for root, _, says in lines]


def require_roots(targets: Sequence[str], roots: Iterable[str]) -> None:
    """Raise `ConfigError` for a target that is none of the roots."""
    for root in targets:
        if root not in roots:
            known = f"one of {', '.join(roots)}" if roots else "which has none"
            fault = f"{root}: expected a storage root of the configuration, {known}"
            raise ConfigError([fault])


def run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Do what was asked with the configuration that was named; the exit status."""
    path = given.config or os.environ.get("CONFIG_FILE")
    if not path:
        parser.error("no configuration: name a FILE or set $CONFIG_FILE")
    try:
        config = load(path, _endpoint_fault, os.environ)
        said = given.configured(config, given)
    except ConfigError as error:
        if given.json:
            print(json.dumps({"faults": error.faults}))
        for fault in error.faults:
            print(f"stor: {fault}", file=sys.stderr)
    except (DiskAway, BadMarker) as error:
        print(f"stor: {error}", file=sys.stderr)
    except OSError as error:
        print(f"stor: {error.filename or path}: {error.strerror}", file=sys.stderr)
    else:
        print(json.dumps(given.told(config, said)) if given.json else printable(said))
        return 0
    return 1


def _endpoint_fault(description: str) -> str | None:
    # Sockets of the service manager are there for the service alone (sd_listen_fds(3)).
    return None if description.startswith("systemd:") else endpoint_fault(description, None)
