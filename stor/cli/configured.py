"""What the commands have in common that go by the configuration of a Stor."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from stor.config import ConfigError, load
from stor.disk.disk import DiskAway
from stor.disk.identity import BadMarker
from stor.options import endpoint_fault
from stor.paths import printable

#: How a command is told of the configuration.
CONFIG_OPTION: dict[str, Any] = {"metavar": "FILE"}


def require_roots(targets: Sequence[str], roots: Iterable[str]) -> None:
    """Raise `ConfigError` for a target that is none of the roots."""
    for root in targets:
        if root not in roots:
            known = ", ".join(roots)
            fault = f"{root}: expected a storage root of the configuration, one of {known}"
            raise ConfigError([fault])


def run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Do what was asked with the configuration that was named; the exit status."""
    path = given.config or os.environ.get("CONFIG_FILE")
    if not path:
        parser.error("no configuration: name a FILE or set $CONFIG_FILE")
    try:
        config = load(path, _endpoint_fault, os.environ)
        print(printable(given.configured(config, given)))
    except ConfigError as error:
        for fault in error.faults:
            print(f"stor: {fault}", file=sys.stderr)
    except (DiskAway, BadMarker) as error:
        print(f"stor: {error}", file=sys.stderr)
    except OSError as error:
        print(f"stor: {error.filename or path}: {error.strerror}", file=sys.stderr)
    else:
        return 0
    return 1


def _endpoint_fault(description: str) -> str | None:
    # Sockets of the service manager are there for the service alone (sd_listen_fds(3)).
    return None if description.startswith("systemd:") else endpoint_fault(description, None)
