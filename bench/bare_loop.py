"""What storing costs without a server: a loop that does the same to the disks."""

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bench.samples import Bodies, Body
from stor.digest import Digest


class Flat:
    """Names samples in one existing directory: the least work that is durable."""

    def __init__(self, root: str) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def name(self, fd: int, digest: Digest) -> None:
        """Give an open file its name."""
        _link(fd, f"{digest}.dat", self.root_fd)

    def sync(self, digest: Digest) -> None:
        """Make the name durable."""
        os.fsync(self.root_fd)


class Tree:
    """Names samples where Stor does, three directories deep, most of them new."""

    def __init__(self, root: str) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._durable: set[str] = set()

    def name(self, fd: int, digest: Digest) -> None:
        """Give an open file its name, and create the directories that it needs."""
        for directory in digest.directories:
            if directory not in self._durable:
                with suppress(FileExistsError):
                    os.mkdir(directory, dir_fd=self.root_fd)
        _link(fd, digest.disk_path, self.root_fd)

    def sync(self, digest: Digest) -> None:
        """Make the name durable, and the names of new directories."""
        self._sync_directory(digest.directories[-1])
        for directory in digest.directories:
            if directory not in self._durable:
                self._sync_directory(os.path.dirname(directory) or ".")
        self._durable.update(digest.directories)

    def close(self) -> None:
        """Close the root's descriptor."""
        os.close(self.root_fd)

    def _sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


Layout = Flat | Tree
LAYOUTS: dict[str, type[Layout]] = {"flat": Flat, "tree": Tree}


def store(body: Body, disks: Iterable[Layout]) -> None:
    """Hash a content and make it durable on every disk: write, sync, name, sync the name."""
    hasher = hashlib.sha256()
    for part in body.parts:
        hasher.update(part)
    digest = Digest(hasher.digest())
    files = []
    for disk in disks:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o644, dir_fd=disk.root_fd)
        files.append((disk, fd))
        _write(fd, body.parts)
    for _, fd in files:
        os.fsync(fd)
    for disk, fd in files:
        disk.name(fd, digest)
    for disk, fd in files:
        disk.sync(digest)
        os.close(fd)


def store_for(seconds: float, bodies: Bodies, disks: Iterable[Layout]) -> int:
    """Store one sample after the other for `seconds`; how many."""
    end = time.monotonic() + seconds
    samples = 0
    while time.monotonic() < end:
        store(next(bodies), disks)
        samples += 1
    return samples


def main(layout: str, threads: int, size: int, roots: list[str]) -> None:
    """For each number of seconds on standard input, print a line `samples seconds`."""
    disks = [LAYOUTS[layout](root) for root in roots]
    bodies = Bodies(size)
    with ThreadPoolExecutor(threads) as pool:
        for line in sys.stdin:
            begin = time.monotonic()
            loops = [pool.submit(store_for, float(line), bodies, disks) for _ in range(threads)]
            samples = sum(loop.result() for loop in loops)
            print(samples, time.monotonic() - begin, flush=True)


def _write(fd: int, parts: Iterable[bytes]) -> None:
    left = [memoryview(part) for part in parts]
    while left:
        written = os.writev(fd, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        left[:1] = [left[0][written:]] if left else []


def _link(fd: int, path: str, root_fd: int) -> None:
    # With a descriptor os.link is linkat(2), which follows; without, link(2), which does not.
    os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=root_fd, follow_symlinks=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
