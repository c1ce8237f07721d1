"""Samples whose copy on one disk is known to be bad."""

from collections.abc import Iterator

from stor.digest import Digest
from stor.disk.verified import Mark


class CorruptCopies:
    """The files of a disk that are never served as a sample, and replaced when that is possible.

    It says of a file, not of a name, that it is bad: who finds that out late, about a file that
    has been replaced by then, says nothing of the new one.
    """

    def __init__(self) -> None:
        self._marks: dict[Digest, Mark | None] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._marks

    def __len__(self) -> int:
        return len(self._marks)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._marks)

    def knows(self, digest: Digest, mark: Mark | None) -> bool:
        """Whether the file with this mark is known to be bad; one without a mark never is."""
        return mark is not None and self._marks.get(digest) == mark

    def add(self, digest: Digest, mark: Mark | None) -> bool:
        """The file is bad; without its mark it is looked at again each time. Whether it is news."""
        news = digest not in self._marks or not (mark is None or self.knows(digest, mark))
        if news:
            self._marks[digest] = mark
        return news

    def discard(self, digest: Digest) -> None:
        """The copy is good, or another one has taken its place."""
        self._marks.pop(digest, None)
