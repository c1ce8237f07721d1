"""`.stor/disk.json`: what tells a disk from another that is mounted in its place."""

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress

import attrs

from stor.disk.disk import OWN_DIRECTORY, Disk, write_all

MARKER_PATH = f"{OWN_DIRECTORY}/disk.json"
_NEW_MARKER_PATH = f"{MARKER_PATH}.new"

#: A marker names every disk of its host; even a thousand of them stay below this.
_MARKER_BYTES = 1024 * 1024


class BadMarker(Exception):
    """The marker cannot be read as one."""


@attrs.frozen
class Marker:
    """What a disk knows of itself, and of the other disks of its host.

    `uuid` is the disk's own; `set` is the same on all disks of a set; `disks` tells which UUID
    belongs to which storage root; `replaces` are the UUIDs of the disks that stood here before;
    `rebuilding` is true while a disk that replaces another lacks samples of its set.
    """

    uuid: str
    set: str
    disks: Mapping[str, str] = attrs.field(factory=dict)
    replaces: tuple[str, ...] = ()
    rebuilding: bool = False

    @classmethod
    def new(cls, set_uuid: str | None = None) -> "Marker":
        """The marker of a disk that is used for the first time."""
        return cls(str(uuid.uuid4()), set_uuid or str(uuid.uuid4()))

    @classmethod
    def parse(cls, data: bytes) -> "Marker":
        """Read a marker. Raises `BadMarker`."""
        try:
            value = json.loads(data)
            return cls(
                str(uuid.UUID(value["uuid"])),
                str(uuid.UUID(value["set"])),
                {str(root): str(uuid.UUID(known)) for root, known in value["disks"].items()},
                tuple(str(uuid.UUID(old)) for old in value["replaces"]),
                value["rebuilding"] is True,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadMarker(f"{MARKER_PATH} is damaged: {error!r}") from error

    def encode(self) -> bytes:
        """The marker as it stands on a disk."""
        return json.dumps(attrs.asdict(self), indent=2).encode() + b"\n"


def read_marker(disk: Disk, root_fd: int, *, from_device: bool = False) -> Marker | None:
    """The marker of a disk, `None` when it has none. Raises `BadMarker`, `OSError`.

    `from_device`: not what the kernel still has in memory of a disk that may be dead.
    """
    try:
        fd = disk.files.open_to_read(MARKER_PATH, root_fd)
    except FileNotFoundError:
        return None
    try:
        if from_device:
            disk.files.forget_cached(fd)
        return Marker.parse(disk.files.read(fd, _MARKER_BYTES, 0))
    finally:
        disk.files.close(fd)


def write_marker(disk: Disk, marker: Marker, *, probing: bool = False) -> None:
    """Put a marker on a disk, atomically and durably. Raises `DiskAway`, `OSError`."""
    files = disk.files
    with disk.entered(probing=probing) as root_fd:
        with suppress(FileNotFoundError):  # the usual case: no write was interrupted
            files.unlink(_NEW_MARKER_PATH, root_fd)
        fd = disk.in_own_directory(root_fd, lambda: files.create(_NEW_MARKER_PATH, root_fd))
        try:
            write_all(files, fd, marker.encode())
            files.sync(fd)
        finally:
            files.close(fd)
        files.rename(_NEW_MARKER_PATH, MARKER_PATH, root_fd)
        for directory in (OWN_DIRECTORY, "."):
            disk.sync_directory(directory, root_fd)
