"""`stor adopt`: give replaced disks their places."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from stor.cli.configured import CONFIG_OPTION, add_command, by_root, require_roots
from stor.config import Config, ConfigError
from stor.disk.disk import Disk, DiskAway
from stor.disk.identity import (
    DISKS_FILE,
    BadMarker,
    KnownDisks,
    Marker,
    Remembered,
    parse_remembered,
    write_marker,
)
from stor.disk.probe import probe
from stor.disk.syscalls import Syscalls
from stor.state import StateDirectory


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "adopt",
        "give replaced disks their places",
        "stor adopt --config /etc/stor/config.json /srv/stor/disk2",
        _run,
        by_root,
    )
    parser.description = (
        "Let the disk that is mounted at ROOT take the place of the one that was "
        "there. A running Stor takes it into use within 15 s and copies to it what it lacks."
    )
    parser.add_argument("--config", **CONFIG_OPTION)
    parser.add_argument(
        "--lost",
        action="store_true",
        help="give up what only disks held that are not here: their samples are 404 from then on",
    )
    parser.add_argument(
        "roots", nargs="+", metavar="ROOT", help="a storage root of the configuration"
    )


def _run(config: Config, given: Any) -> str:
    return adopt(config, list(map(os.path.normpath, given.roots)), Syscalls(), lost=given.lost)


def adopt(config: Config, targets: Sequence[str], files: Syscalls, *, lost: bool) -> str:
    """Give the disks at `targets` their places, as `KnownDisks` judges; what was done, a line each.

    With `lost` what only disks that are not here held is given up. Raises `ConfigError` when a disk
    cannot be given its place, `DiskAway`, `BadMarker`, `OSError`.
    """
    sets = {root: roots for roots in config.sets for root in roots}
    require_roots(targets, sets)
    forbidden = os.stat("/").st_dev if config.require_mount else None
    disks = {root: Disk(root, files, forbidden) for root in sets}
    known_disks = KnownDisks(config.sets, _remembered(config, files))
    known_disks.stop_waiting()
    for root in sets:
        if root not in targets:
            with suppress(DiskAway, BadMarker, OSError):  # it is not here
                found = probe(disks[root])
                known_disks.judge(root, found.marker, empty=found.empty, writable=False)
    before, said, adopted = {}, [], []
    for root in targets:
        try:
            found = probe(disks[root])
        except BadMarker as error:
            raise BadMarker(f"{root}: {error}") from error
        disks[root].identify(found.device)
        before[root] = found.marker
        # One without a marker is not judged: the operator calls this to have it used.
        in_place = (
            found.marker is not None
            and not known_disks.judge(root, found.marker, empty=found.empty, writable=False).refusal
        )
        if in_place and not lost:
            said.append(_in_place(known_disks, root))
        else:
            adopted.append(root)
    for roots in config.sets:
        here = {root: before[root] for root in roots if root in adopted}
        missing = known_disks.missing(roots, here) if here and not lost else []
        if missing:
            which = " ".join(here)
            raise ConfigError(
                [
                    f"{which}: not adopted: samples that only {' and '.join(missing)} may hold "
                    "would be 404 from then on: mount what is missing and let it be compared, or, "
                    f"if it is lost for good, give it up with `stor adopt --lost {which}`"
                ]
            )
    for roots in config.sets:
        here = {root: before[root] for root in roots if root in adopted}
        said += _give_places(known_disks, roots, here, disks)
    return "\n".join(said)


def _in_place(known_disks: KnownDisks, root: str) -> str:
    marker = known_disks.carried(root)
    state = "is complete"
    if not known_disks.complete(root):
        state = "is not complete: it is compared with the others of its set when all are there"
    uuid = marker.uuid if marker else "unknown"
    return f"{root}: this disk, {uuid}, belongs here already and {state}; nothing was changed"


def _give_places(
    known_disks: KnownDisks,
    roots: Sequence[str],
    adopted: Mapping[str, Marker | None],
    disks: Mapping[str, Disk],
) -> list[str]:
    """Write the markers that give disks of one set their places; a line each."""
    others = [known_disks.carried(root) for root in roots if root not in adopted]
    markers = [marker for marker in (*others, *adopted.values()) if marker is not None]
    set_uuid = markers[0].set if markers else Marker.new().set
    new = {root: marker or Marker.new() for root, marker in adopted.items()}
    moved = {marker.uuid for marker in new.values()}
    known = {root: disk.uuid for root, disk in known_disks.remembered().items() if root in disks}
    places = {root: uuid for root, uuid in known.items() if uuid not in moved}
    places |= {root: marker.uuid for root, marker in new.items()}
    said = []
    for root, marker in new.items():
        replaces = {*marker.replaces, known.get(root, marker.uuid)} - {marker.uuid}
        placed = Marker(
            marker.uuid, set_uuid, places, tuple(sorted(replaces)), complete=(), adopted=True
        )
        write_marker(disks[root], placed)
        giving = ", ".join(r for r in roots if r != root) or "nothing, it is a set of one"
        said.append(f"{root}: adopted as {marker.uuid}; what it lacks is copied from {giving}")
    return said


def _remembered(config: Config, files: Syscalls) -> dict[str, Remembered]:
    """What the state directory knows, as far as it can be read here."""
    data = StateDirectory(config.state_directory, files).read(DISKS_FILE)
    try:
        return {} if data is None else parse_remembered(data)
    except ValueError:  # the daemon says so, and makes it anew
        return {}
