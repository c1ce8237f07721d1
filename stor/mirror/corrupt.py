"""Samples whose copy on one disk is known to be bad."""

from collections.abc import Callable, Iterator

from stor.digest import Digest


class CorruptCopies:
    """The samples whose copy on a disk is never served, and replaced when that is possible."""

    def __init__(self) -> None:
        self._digests: set[Digest] = set()
        #: Told of each sample that is found to be bad (true) or good again, here and not elsewhere.
        self.told: Callable[[Digest, bool], None] = lambda digest, bad: None

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._digests)

    def add(self, digest: Digest) -> None:
        """The copy is bad."""
        if digest not in self._digests:
            self._digests.add(digest)
            self.told(digest, True)

    def discard(self, digest: Digest) -> None:
        """The copy is good, or another one has taken its place."""
        if digest in self._digests:
            self._digests.remove(digest)
            self.told(digest, False)

    def learn(self, digest: Digest, bad: bool) -> None:
        """Another process has found out."""
        if bad:
            self._digests.add(digest)
        else:
            self._digests.discard(digest)
