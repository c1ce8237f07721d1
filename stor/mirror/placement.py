"""Which mirror gets a new sample. Pure functions."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import attrs

from stor.disk.disk import Room

#: With less than this to spare on every mirror, the emptiest one is taken instead of a random one.
PLENTY_BYTES = 1_000_000_000

#: A new sample may need its own inode and three directories; kept free for uploads beside it.
RESERVE_INODES = 16
_INODES_PER_SAMPLE = 4


@attrs.frozen
class Candidate:
    """A mirror's room: the least of its disks', less what uploads in flight have reserved."""

    free_bytes: int
    free_inodes: int
    block_bytes: int = 4096

    @classmethod
    def of(cls, rooms: Sequence[Room], reserved_bytes: int, uploads: int) -> "Candidate":
        """The candidate that disks with `rooms` make, with `uploads` in flight."""
        # With each new sample: no call that is not needed.
        free_bytes, free_inodes, block_bytes = rooms[0].free_bytes, rooms[0].free_inodes, 0
        for room in rooms:
            free_bytes = min(free_bytes, room.free_bytes)
            free_inodes = min(free_inodes, room.free_inodes)
            block_bytes = max(block_bytes, room.block_bytes)
        free_inodes -= uploads * _INODES_PER_SAMPLE
        return cls(free_bytes - reserved_bytes, free_inodes, block_bytes)

    def spare_bytes(self, reserve_bytes: int) -> int:
        """What is left beyond the reserve."""
        return self.free_bytes - reserve_bytes

    def fits(self, length: int, reserve_bytes: int) -> bool:
        """Whether a sample of `length` bytes leaves the reserve of bytes and inodes untouched."""
        spare_bytes = self.free_bytes - reserve_bytes
        return spare_bytes >= on_disk(length, self.block_bytes) and self.names(1)

    def names(self, samples: int) -> bool:
        """Whether this many samples leave the reserve of inodes untouched."""
        return self.free_inodes >= RESERVE_INODES + samples * _INODES_PER_SAMPLE


def shortage(room: Room, reserve_bytes: int) -> str | None:
    """Why a disk with this room takes no sample at all, `None` when it takes some.

    The same words until it does again: how much is free is told elsewhere.
    """
    left = Candidate.of([room], 0, 0)
    if left.fits(1, reserve_bytes):
        return None
    if left.spare_bytes(reserve_bytes) < room.block_bytes:
        return f"full up to its reserve of {reserve_bytes} bytes (reserve_bytes)"
    return f"full: fewer than {RESERVE_INODES + _INODES_PER_SAMPLE} inodes are free"


def on_disk(length: int, block_bytes: int) -> int:
    """The bytes that a file of `length` occupies, in whole blocks."""
    return -(-length // block_bytes) * block_bytes


def choose(
    candidates: Sequence[Candidate], length: int, reserve_bytes: int, random: Callable[[], float]
) -> int | None:
    """The index of the mirror for a sample of `length` bytes, or `None` when none has room.

    At random in proportion to free bytes, so that mirrors fill evenly; with less than
    `PLENTY_BYTES` to spare everywhere, the one with most. `random` gives floats in [0, 1).
    """
    fitting = [i for i, c in enumerate(candidates) if c.fits(length, reserve_bytes)]
    if not fitting:
        return None
    if not has_plenty([candidates[i] for i in fitting], reserve_bytes):
        return max(fitting, key=lambda i: candidates[i].free_bytes)
    return fitting[draw(list(accumulate(candidates[i].free_bytes for i in fitting)), random)]


def has_plenty(candidates: Iterable[Candidate], reserve_bytes: int) -> bool:
    """Whether any of them has enough to spare for one to be drawn."""
    return any(c.spare_bytes(reserve_bytes) >= PLENTY_BYTES for c in candidates)


def draw(sums: Sequence[int], random: Callable[[], float]) -> int:
    """One of some weights, of which `sums` are those up to each: the index."""
    # A product of floats may be rounded up to the sum of all.
    return min(bisect_right(sums, random() * sums[-1]), len(sums) - 1)
