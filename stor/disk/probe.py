"""Using a disk once, to learn what state it is in."""

import errno
import re
import secrets
from collections.abc import Collection
from contextlib import suppress

import attrs

from stor.disk.disk import OWN_DIRECTORY, STAGING_DIRECTORY, Disk, Room
from stor.disk.errnos import Fault, fault_of
from stor.disk.identity import BadMarker, Marker, read_marker

#: The operator makes this file to have a disk read and not written; it needs no content.
READ_ONLY_PATH = f"{OWN_DIRECTORY}/read-only"

#: What link(2) says on FAT, exFAT, and some file systems of FUSE.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

_SAMPLE_DIRECTORY = re.compile(r"[0-9A-F]{2}")


@attrs.frozen
class Probe:
    """What using a disk once has shown.

    `device` is its `st_dev`; `empty` means that it holds no samples; `held` that the operator does
    not want it written; `refused` says why it cannot be written, if it cannot, and `failing` what
    went wrong when it was.
    """

    room: Room
    device: int = 0
    marker: Marker | None = None
    empty: bool = False
    held: bool = False
    refused: str | None = None
    failing: str | None = None


def probe(disk: Disk) -> Probe:
    """Look at a disk, and write nothing: it may be the wrong one.

    Raises `DiskAway`, `BadMarker`, `OSError`.
    """
    with disk.entered(probing=True) as root_fd:
        marker = read_marker(disk, root_fd, from_device=True)
        return Probe(
            disk.room_of(root_fd),
            disk.files.fstat(root_fd).st_dev,
            marker,
            empty=not _holds_samples(disk, root_fd),
            held=_exists(disk, READ_ONLY_PATH, root_fd),
        )


def try_writing(disk: Disk, doubtful: Collection[str] = ()) -> None:
    """Do to a disk what an upload does. Raises `DiskAway`, `OSError`.

    The byte has to reach the device: what the kernel holds in its cache says nothing about a disk
    that hangs. It has to get a name, which some file systems do not give (link(2), EPERM).
    `doubtful` are directories in the root in which some sample could not be named.
    """
    files = disk.files
    with disk.entered() as root_fd:
        fd, temporary = disk.open_staging(root_fd)
        try:
            files.write(fd, b"\0")
            files.sync(fd)
            _try_naming(disk, fd, root_fd)
        finally:
            with suppress(OSError):  # close(2) reports nothing that sync has not
                files.close(fd)
            if temporary is not None:
                disk.remove_staged(temporary, root_fd)
        _try_directories(disk, doubtful, root_fd)


def sweep(disk: Disk) -> int:
    """Remove the staged files that nobody writes any more; how many there were.

    Only file systems without O_TMPFILE ever have any: of processes that have ended, and of uploads
    that failed together with their disk. A file that is still being written is locked by its
    writer (`Disk.open_staging`) and stays. Raises `DiskAway`, `OSError`.
    """
    disk.unswept = False  # first: what is left from here on is for the next time
    try:
        return _sweep(disk)
    except BaseException:
        disk.unswept = True
        raise


def _sweep(disk: Disk) -> int:
    removed = 0
    with disk.entered() as root_fd:
        try:
            staging_fd = disk.files.open_directory(STAGING_DIRECTORY, root_fd)
        except FileNotFoundError:
            return 0
        try:
            for name in disk.files.list(staging_fd):
                removed += _sweep_one(disk, name, staging_fd)
        finally:
            disk.files.close(staging_fd)
    return removed


def _try_naming(disk: Disk, fd: int, root_fd: int) -> None:
    name = f"{STAGING_DIRECTORY}/{secrets.token_hex(16)}"
    try:
        disk.files.name(fd, name, root_fd)
    except OSError as error:
        if fault_of(error) is Fault.FILE or error.errno == errno.ENOSYS:  # FUSE without link
            raise _no_names(errno.EOPNOTSUPP, error.strerror) from error
        raise
    disk.remove_staged(name, root_fd)


def _try_directories(disk: Disk, doubtful: Collection[str], root_fd: int) -> None:
    """Raise `OSError` when the root or one of them is closed to this user."""
    if not disk.files.may_write(".", root_fd):
        said = "this user may not make directories in it (chown, chmod, chattr -i)"
        raise _no_names(errno.EACCES, said)
    closed = [
        name
        for name in sorted(doubtful)
        if _exists(disk, name, root_fd) and not disk.files.may_write(name, root_fd)
    ]
    if closed:
        more = f" and in {len(closed) - 1} more" if len(closed) > 1 else ""
        said = f"this user may not write in {closed[0]}{more} (chown, chmod, chattr -i)"
        raise _no_names(errno.EACCES, said)


def _no_names(number: int | None, said: str | None) -> OSError:
    return OSError(number, f"samples cannot be named: {said}")


def _exists(disk: Disk, path: str, root_fd: int) -> bool:
    try:
        disk.files.stat(path, root_fd)
    except FileNotFoundError:
        return False
    return True


def _holds_samples(disk: Disk, root_fd: int) -> bool:
    return any(_SAMPLE_DIRECTORY.fullmatch(name) for name in disk.files.list(root_fd))


def _sweep_one(disk: Disk, name: str, staging_fd: int) -> bool:
    try:
        fd = disk.files.open_to_read(name, staging_fd)
        try:
            disk.files.lock(fd)
            disk.files.unlink(name, staging_fd)
        finally:
            disk.files.close(fd)
    except BlockingIOError:
        return False  # still being written
    except OSError:
        # Gone by now, or none of ours: a directory, a link. Or the disk fails: look again.
        disk.unswept = True
        return False
    return True


__all__ = ["BadMarker", "Probe", "probe", "sweep", "try_writing"]
