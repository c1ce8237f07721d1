"""The `stor` command, for operators."""

import argparse
import os
import sys
from collections.abc import Sequence

import attrs

from stor import __version__
from stor.config import Config, ConfigError, load
from stor.disk.disk import Disk, DiskAway
from stor.disk.identity import BadMarker, Marker, read_marker, write_marker
from stor.disk.syscalls import Syscalls
from stor.options import endpoint_fault
from stor.paths import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it did what it was asked, 1 when it could not, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="stor", description="Look after a Stor's disks.")
    parser.add_argument("--version", action="version", version=f"Stor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    adopting = commands.add_parser(
        "adopt",
        help="give a replaced disk its place",
        description="Let the disk that is mounted at ROOT take the place of the one that was "
        "there. A running Stor takes it into use within 15 s and copies to it what it lacks.",
    )
    adopting.add_argument("--config", default=os.environ.get("CONFIG_FILE"), metavar="FILE")
    adopting.add_argument("root", metavar="ROOT", help="a storage root of the configuration")
    checking = commands.add_parser(
        "check-config",
        help="say whether a configuration can be used",
        description="Read a configuration and list every fault; the disks are not looked at.",
    )
    checking.add_argument(
        "config", nargs="?", default=os.environ.get("CONFIG_FILE"), metavar="FILE"
    )
    given = parser.parse_args(arguments)
    if not given.config:
        parser.error("no configuration: name a FILE or set $CONFIG_FILE")
    try:
        config = load(given.config, _endpoint_fault, os.environ)
        if given.command == "check-config":
            print(printable(check(config)))
        else:
            print(printable(adopt(config, os.path.normpath(given.root), Syscalls())))
    except ConfigError as error:
        for fault in error.faults:
            print(f"stor: {fault}", file=sys.stderr)
    except (DiskAway, BadMarker) as error:
        print(f"stor: {error}", file=sys.stderr)
    except OSError as error:
        print(f"stor: {error.filename or given.config}: {error.strerror}", file=sys.stderr)
    else:
        return 0
    return 1


def check(config: Config) -> str:
    """What a configuration comes to, and what is to be thought of."""
    roots = sum(map(len, config.sets))
    summary = f"The configuration can be used (sets: {len(config.sets)}, disks: {roots})"
    return "\n".join([*[f"warning: {warning}" for warning in config.warnings], summary])


def _endpoint_fault(description: str) -> str | None:
    # Sockets of the service manager are there for the service alone (sd_listen_fds(3)).
    return None if description.startswith("systemd:") else endpoint_fault(description, None)


def adopt(config: Config, root: str, files: Syscalls) -> str:
    """Write the marker that gives the disk at `root` its place; a line that says what was done.

    Raises `ConfigError` when no set has that root, `DiskAway`, `OSError`.
    """
    roots = next((roots for roots in config.sets if root in roots), None)
    if roots is None:
        known = ", ".join(r for roots in config.sets for r in roots)
        raise ConfigError([f"{root}: expected a storage root of the configuration, one of {known}"])
    forbidden = os.stat("/").st_dev if config.require_mount else None
    markers = {
        other: marker
        for of_set in config.sets
        for other in of_set
        if other != root and (marker := _read(Disk(other, files, forbidden)))
    }
    disk = Disk(root, files, forbidden)
    with disk.entered(probing=True) as root_fd:
        disk.identify(files.fstat(root_fd).st_dev)
    before = _read(disk)
    expected = {m.disks[root] for m in markers.values() if root in m.disks}
    if before is not None and before.uuid in expected:
        return f"{root}: this disk, {before.uuid}, belongs here already; nothing was changed"
    siblings = [markers[other] for other in roots if other in markers]
    marker = before or Marker.new()
    marker = attrs.evolve(
        marker,
        set=siblings[0].set if siblings else marker.set,
        disks={other: m.uuid for other, m in markers.items()} | {root: marker.uuid},
        replaces=tuple(sorted({*marker.replaces, *expected})),
        complete=(),
        adopted=True,
    )
    write_marker(disk, marker)
    others = ", ".join(other for other in roots if other != root) or "nothing, it is a set of one"
    return f"{root}: adopted as {marker.uuid}; what it lacks is copied from {others}"


def _read(disk: Disk) -> Marker | None:
    """The marker of a disk, `None` when it cannot be had."""
    try:
        with disk.entered(probing=True) as root_fd:
            return read_marker(disk, root_fd)
    except (DiskAway, BadMarker, OSError):
        return None
