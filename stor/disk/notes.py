"""What is still to be done with a sample, noted on the disks that hold it.

A note is an empty file named by the sample, in a directory of its own below `.stor/`.
"""

from stor.digest import Digest, MalformedDigest
from stor.disk.disk import Disk


def note(disk: Disk, directory: str, digest: Digest) -> None:
    """Note a sample, durably; a second time changes nothing. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        path = f"{directory}/{digest}"
        try:
            fd = disk.in_own_directory(root_fd, lambda: disk.files.create(path, root_fd))
        except FileExistsError:
            return
        disk.files.close(fd)
        disk.sync_directory(directory, root_fd)


def forget(disk: Disk, directory: str, digest: Digest) -> None:
    """It is done. A crash may bring the note back. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        try:
            disk.files.unlink(f"{directory}/{digest}", root_fd)
        except FileNotFoundError:
            return


def noted(disk: Disk, directory: str) -> list[Digest]:
    """All samples that are noted on a disk. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        try:
            fd = disk.files.open_directory(directory, root_fd)
        except FileNotFoundError:
            return []
        try:
            names = disk.files.list(fd)
        finally:
            disk.files.close(fd)
    digests = []
    for name in names:
        try:
            digests.append(Digest.parse(name))
        except MalformedDigest:
            continue  # not a note of ours
    return digests
