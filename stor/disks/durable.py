"""The directories of a disk whose names are known to be on stable storage."""

from collections.abc import Iterator
from threading import Lock

from stor.digest import Digest


class DurableDirectories:
    """Which of the directories that hold samples need not be made, nor their parents synced, again.

    A bit for each of the 256, 65,536 and 16,777,216 that there can be: 2 MiB a disk at the most,
    however many samples it gets.
    """

    def __init__(self) -> None:
        self._lock = Lock()  # for what changes a bit, or one that is taken back could return
        self.clear()

    def __bool__(self) -> bool:
        return any(map(any, self._levels))

    def clear(self) -> None:
        """Nothing is known any more."""
        # Memory that is all zeros takes none before it is used.
        self._levels = [bytearray(256 ** (level + 1) // 8) for level in range(3)]

    def missing(self, digest: Digest) -> list[str]:
        """The directories of a sample that are not known, outermost first."""
        return [
            path
            for path, (bits, place, bit) in zip(
                digest.directories, self._places(digest), strict=True
            )
            if not bits[place] & bit
        ]

    def add(self, digest: Digest) -> None:
        """The names of all directories of a sample are on stable storage."""
        with self._lock:
            for bits, place, bit in self._places(digest):
                bits[place] |= bit

    def forget(self, digest: Digest) -> None:
        """One of the directories of a sample is gone, or may be."""
        with self._lock:
            for bits, place, bit in self._places(digest):
                bits[place] &= ~bit

    def _places(self, digest: Digest) -> Iterator[tuple[bytearray, int, int]]:
        number = 0
        for bits, byte in zip(self._levels, digest.raw, strict=False):
            number = number << 8 | byte
            yield bits, number >> 3, 1 << (number & 7)
