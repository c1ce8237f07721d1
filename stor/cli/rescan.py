"""`stor rescan`: have disks walked on which files were put by hand."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from stor.cli import configured
from stor.cli.admin_client import NotRunning, Stor, add_command
from stor.cli.waiting import tell
from stor.config import Config
from stor.disk.disk import Disk
from stor.disk.names import ask_for_walk
from stor.disk.probe import probe
from stor.disk.syscalls import Syscalls


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "rescan",
        "have disks walked on which files were put by hand",
        "stor rescan /srv/stor/disk1 --wait",
        _run,
    )
    parser.description = (
        "Have a running Stor walk the disks mounted at ROOT, or all of them, and learn what they "
        "hold: after files were copied there without Stor. It is a job, beside requests. Where no "
        "Stor runs, one that uses the disks later does it, if the configuration is named."
    )
    parser.add_argument("--config", **configured.CONFIG_OPTION)
    parser.add_argument("roots", nargs="*", metavar="ROOT", help="a storage root")
    parser.add_argument("--wait", action="store_true", help="wait for the end, and say how it was")
    parser.set_defaults(asking=partial(_run, parser=parser))


def _run(stor: Stor, given: Any, parser: Any = None) -> int:
    roots = list(map(os.path.normpath, given.roots))
    try:
        jobs = stor.post("rescan", roots=roots)
    except NotRunning:
        if not (given.config or os.environ.get("CONFIG_FILE")):
            raise
        given.configured, given.told = _by_configuration, configured.by_root
        return configured.run(parser, given)
    return tell(stor, jobs, wait=given.wait, as_json=given.json)


def _by_configuration(config: Config, given: Any) -> str:
    return rescan(config, list(map(os.path.normpath, given.roots)), Syscalls())


def rescan(config: Config, targets: Sequence[str], files: Syscalls) -> str:
    """Have the disks at `targets`, or all of them, walked by the Stor that uses them next.

    What was done, a line each. Raises `ConfigError`, `DiskAway`, `OSError`.
    """
    every = [root for roots in config.sets for root in roots]
    configured.require_roots(targets, every)
    forbidden = os.stat("/").st_dev if config.require_mount else None
    for root in targets or every:
        disk = Disk(root, files, forbidden)
        disk.identify(probe(disk).device)
        ask_for_walk(disk)
    return "\n".join(f"{root}: will be walked" for root in targets or every)
