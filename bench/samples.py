"""Samples that no store has seen, and very many of them on a disk."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import attrs

from stor.block_sums import MIN_BLOCK_BYTES, BlockSummer
from stor.digest import Digest
from stor.disk.copy import keep_sums
from stor.disk.syscalls import Syscalls

#: Samples in each innermost directory, as on a disk of 130 million.
_PER_DIRECTORY = 8

#: Fewer than the names that ext4 lets a file have.
_NAMES_PER_FILE = 60_000


def sparse_sample(disks: Sequence[Path], size: int) -> Digest:
    """A sample of zeros that takes no room, with block sums, on these disks; its name.

    Its SHA-256 is not that, which nobody finds out who reads parts of it.
    """
    digest = any_digest()
    summer = BlockSummer()
    whole, rest = divmod(size, MIN_BLOCK_BYTES)
    block = bytes(MIN_BLOCK_BYTES)
    for _ in range(whole):
        summer.update(block)
    summer.update(block[:rest])
    for disk in disks:
        path = disk / digest.disk_path
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(size)
            keep_sums(Syscalls(), file.fileno(), summer.finish(digest))
    return digest


@attrs.frozen
class Body:
    """A sample's content. Only the last bytes are its own, so very many fit in memory."""

    shared: bytes
    own: bytes
    digest: Digest

    @property
    def parts(self) -> Sequence[bytes]:
        """The content, to be sent or written one part after the other."""
        return self.shared, self.own

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.shared) + len(self.own)


class Bodies:
    """Any number of distinct incompressible contents of one size.

    A large one costs no more to make than a small one: the part they share is hashed once.
    """

    _OWN_BYTES = 16

    def __init__(self, size: int) -> None:
        self.size = size
        self._shared = os.urandom(size - self._OWN_BYTES)
        self._hasher = hashlib.sha256(self._shared)

    def __iter__(self) -> "Bodies":
        return self

    def __next__(self) -> Body:
        own = os.urandom(self._OWN_BYTES)
        hasher = self._hasher.copy()
        hasher.update(own)
        return Body(self._shared, own, Digest(hasher.digest()))


def size_name(size: int) -> str:
    """A size as people write it: `64 KiB`."""
    for unit, bytes_in_it in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_in_it and size % bytes_in_it == 0:
            return f"{size // bytes_in_it} {unit}"
    return f"{size} B"


def any_digest() -> Digest:
    """A digest that no store has a sample of."""
    return Digest(os.urandom(32))


class ManySamples:
    """A number of samples, in directories as full as on a disk with very many of them.

    They are names of a few files, with contents that do not match: never ask for them.
    """

    def __init__(self, count: int) -> None:
        self._directories = max(1, count // _PER_DIRECTORY)
        if self._directories > 2**16:
            raise ValueError(f"{count} samples: expected at most {2**16 * _PER_DIRECTORY}")

    def fill(self, root: Path) -> None:
        """Create them below an empty storage root."""
        names = 0
        source = root / "source"
        root.mkdir(parents=True)
        for number in range(self._directories):
            directory = root / self._digest(number).directories[-1]
            directory.mkdir(parents=True)
            for _ in range(_PER_DIRECTORY):
                if names % _NAMES_PER_FILE == 0:
                    source.unlink(missing_ok=True)
                    source.write_bytes(b"sample")
                os.link(source, root / self._digest(number).disk_path)
                names += 1
        source.unlink()

    def missing_digest(self) -> Digest:
        """The digest of none of them, in a directory that holds some of them."""
        return self._digest(int.from_bytes(os.urandom(4)) % self._directories)

    def _digest(self, number: int) -> Digest:
        return Digest(b"\0" + number.to_bytes(2) + os.urandom(29))
