"""A disk's names on their way to stable storage: of samples, and of the directories above them."""

from collections.abc import Callable
from threading import Condition, Lock

import attrs

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


@attrs.define
class _Claim:
    """The staged copies of one sample that have come to their name, on one disk."""

    copies: int = 0
    right: bool = False
    made: bool = False
    kept: bool = False


class Claims:
    """One disk's names that are on their way to be durable.

    Two uploads, or an upload and a repair, may find each other's name in place and rely on it. It
    is taken away only when one of them has made it, none has succeeded, and the last one fails.
    Only `begin` and `fail` ever wait for the disk.
    """

    def __init__(self) -> None:
        self._claims: dict[bytes, _Claim] = {}
        #: Names that are being taken away.
        self._leaving: set[bytes] = set()
        self._lock = Lock()
        self._changed = Condition(self._lock)

    def begin(self, digest: Digest) -> None:
        """A copy is about to make the name, or to rely on it."""
        with self._lock:
            while digest.raw in self._leaving:
                self._changed.wait()
            claim = self._claims.get(digest.raw)
            if claim is None:
                claim = self._claims[digest.raw] = _Claim()
            claim.copies += 1

    def made(self, digest: Digest) -> None:
        """A copy has made the name."""
        with self._lock:
            claim = self._claims[digest.raw]
            claim.made = claim.right = True

    def replaced(self, digest: Digest) -> None:
        """A copy has taken the place of a bad one: the name was there before, and stays."""
        with self._lock:
            self._claims[digest.raw].right = True

    def right(self, digest: Digest) -> bool:
        """Whether the file that has the name is one of these copies."""
        with self._lock:
            return self._claims[digest.raw].right

    def succeed(self, digest: Digest) -> None:
        """A copy has been committed: the name stays."""
        with self._lock:
            claim = self._claims[digest.raw]
            claim.kept = True
            self._end(digest, claim)

    def fail(self, digest: Digest, unlink: Callable[[], None]) -> None:
        """A copy is given up; `unlink`, which may raise, is called when nobody needs the name."""
        with self._lock:
            claim = self._claims[digest.raw]
            self._end(digest, claim)
            if claim.copies or not claim.made or claim.kept:
                return
            self._leaving.add(digest.raw)
        try:
            unlink()
        finally:
            with self._lock:
                self._leaving.discard(digest.raw)
                self._changed.notify_all()

    def _end(self, digest: Digest, claim: _Claim) -> None:
        claim.copies -= 1
        if not claim.copies:
            del self._claims[digest.raw]
