"""The steps of a staged copy, each on the disk's root as it is then."""

from stor.block_sums import BlockSummer
from stor.disk.staged import StagedCopy


def begin(disk, length=None, summer=None):
    """A new staged copy."""
    with disk.entered() as root_fd:
        return StagedCopy.begin(disk, root_fd, length, summer or BlockSummer())


def name(staged, digest):
    """Give it its name; whether it got it."""
    with staged.disk.entered() as root_fd:
        return staged.name(digest, root_fd)


def sync_directories(staged, digest):
    """Bring the name to stable storage."""
    with staged.disk.entered() as root_fd:
        staged.sync_directories(digest, root_fd)
