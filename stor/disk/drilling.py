"""Damaging a copy on purpose, and clearing away what that leaves. Blocking."""

import os

from stor.digest import Digest
from stor.disk.disk import QUARANTINE_DIRECTORY, Disk, write_all


def damage(disk: Disk, digest: Digest, content: bytes) -> None:
    """Have other bytes than `content` in place of a copy, as many. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        disk.files.unlink(digest.disk_path, root_fd)
        fd = disk.files.create(digest.disk_path, root_fd)
        try:
            write_all(disk.files, fd, bytes(byte ^ 1 for byte in content))
        finally:
            disk.files.close(fd)


def clear_quarantine(disk: Disk, digest: Digest) -> int:
    """Remove a sample's bad copies from the quarantine: how many. Raises `DiskAway`, `OSError`."""
    name, removed = os.path.basename(digest.disk_path), 0
    with disk.entered() as root_fd:
        fd = disk.files.open_directory(QUARANTINE_DIRECTORY, root_fd)
        try:
            found = [entry for entry in disk.files.list(fd) if entry.startswith(f"{name}.")]
        finally:
            disk.files.close(fd)
        for entry in found:
            disk.files.unlink(f"{QUARANTINE_DIRECTORY}/{entry}", root_fd)
            removed += not entry.endswith(".reason")
    disk.quarantined_total -= removed
    return removed
