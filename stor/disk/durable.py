"""The directories of a disk whose names are known to be on stable storage."""

from threading import Lock

from stor.digest import Digest

_BLOCK_BYTES = 256 * 256 // 8


class Blocks:
    """Memory for what all disks know of their third level of directories: a bounded cache.

    A block is 65,536 bits, those of the directories below one of the first level, so that a disk
    takes up to 256 of 8 KiB. The block that was made first makes room for a new one.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = max(1, limit_bytes // _BLOCK_BYTES)
        self._blocks: dict[tuple[object, int], bytearray] = {}
        #: For what changes a bit, or one that is taken back could return.
        self.lock = Lock()

    def get(self, owner: object, number: int) -> bytearray | None:
        """A block of somebody's, `None` when there is none, or no more."""
        return self._blocks.get((owner, number))

    def make(self, owner: object, number: int) -> bytearray:
        """The same, all zeros when it is new."""
        block = self._blocks.get((owner, number))
        if block is None:
            if len(self._blocks) >= self._limit:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[owner, number] = bytearray(_BLOCK_BYTES)
        return block

    def drop(self, owner: object) -> None:
        """Forget all blocks of somebody's."""
        for key in [key for key in self._blocks if key[0] is owner]:
            del self._blocks[key]


class DurableDirectories:
    """Which of the directories that hold samples need not be made, nor their parents synced, again.

    A bit for each of the 256, 65,536 and 16,777,216 that there can be. Those of the last level are
    in `Blocks`, which may lose them: then such a directory is synced once more.
    """

    def __init__(self, blocks: Blocks) -> None:
        """`blocks` may be shared with other disks."""
        self._blocks = blocks
        self.clear()

    def clear(self) -> None:
        """Nothing is known any more."""
        with self._blocks.lock:
            self._first, self._second = bytearray(256 // 8), bytearray(_BLOCK_BYTES)
            self._blocks.drop(self)

    def missing(self, digest: Digest) -> list[str]:
        """The directories of a sample that are not known, outermost first."""
        first, second, third = digest.raw[:3]
        block = self._blocks.get(self, first)
        missing = []
        if not self._first[first >> 3] & 1 << (first & 7):
            missing.append(digest.directories[0])
        if not self._second[first << 5 | second >> 3] & 1 << (second & 7):
            missing.append(digest.directories[1])
        if block is None or not block[second << 5 | third >> 3] & 1 << (third & 7):
            missing.append(digest.directories[2])
        return missing

    def add(self, digest: Digest) -> None:
        """The names of all directories of a sample are on stable storage."""
        with self._blocks.lock:
            first, second, third = digest.raw[:3]
            self._first[first >> 3] |= 1 << (first & 7)
            self._second[first << 5 | second >> 3] |= 1 << (second & 7)
            block = self._blocks.make(self, first)
            block[second << 5 | third >> 3] |= 1 << (third & 7)

    def forget(self, digest: Digest) -> None:
        """One of the directories of a sample is gone, or may be."""
        with self._blocks.lock:
            first, second, third = digest.raw[:3]
            self._first[first >> 3] &= ~(1 << (first & 7))
            self._second[first << 5 | second >> 3] &= ~(1 << (second & 7))
            block = self._blocks.get(self, first)
            if block is not None:
                block[second << 5 | third >> 3] &= ~(1 << (third & 7))
