"""`stor rescan`: have disks walked on which files were put by hand."""

import os
from collections.abc import Sequence
from typing import Any

from stor.cli.configured import CONFIG_OPTION, require_roots
from stor.config import Config
from stor.disk.disk import Disk
from stor.disk.names import ask_for_walk
from stor.disk.probe import probe
from stor.disk.syscalls import Syscalls


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser(
        "rescan",
        help="have disks walked on which files were put by hand",
        description="Have a running Stor walk the disks mounted at ROOT, or all of them, and learn "
        "what they hold: after files were copied there without Stor. It begins within 15 s, beside "
        "requests; for a disk that is not used now, when it is used next.",
    )
    parser.add_argument("--config", **CONFIG_OPTION)
    parser.add_argument(
        "roots", nargs="*", metavar="ROOT", help="a storage root of the configuration"
    )
    parser.set_defaults(configured=_run)


def _run(config: Config, given: Any) -> str:
    return rescan(config, list(map(os.path.normpath, given.roots)), Syscalls())


def rescan(config: Config, targets: Sequence[str], files: Syscalls) -> str:
    """Have the disks at `targets`, or all of them, walked; what was done, a line each.

    Raises `ConfigError`, `DiskAway`, `OSError`.
    """
    every = [root for roots in config.sets for root in roots]
    require_roots(targets, every)
    forbidden = os.stat("/").st_dev if config.require_mount else None
    for root in targets or every:
        disk = Disk(root, files, forbidden)
        disk.identify(probe(disk).device)
        ask_for_walk(disk)
    return "\n".join(f"{root}: will be walked" for root in targets or every)
