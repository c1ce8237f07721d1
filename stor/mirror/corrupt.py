"""Samples whose copy on one disk is known to be bad."""

from collections.abc import Iterator

from stor.digest import Digest


class CorruptCopies:
    """The samples whose copy on a disk is never served, and replaced when that is possible."""

    def __init__(self) -> None:
        self._digests: set[Digest] = set()

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._digests)

    def add(self, digest: Digest) -> None:
        """The copy is bad."""
        self._digests.add(digest)

    def discard(self, digest: Digest) -> None:
        """The copy is good, or another one has taken its place."""
        self._digests.discard(digest)

    def clear(self) -> None:
        """Whoever mends them is another process: find out again which are bad."""
        self._digests.clear()
