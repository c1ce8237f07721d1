"""Contents that no store has seen."""

import hashlib
import os
from collections.abc import Sequence

import attrs

from stor.digest import Digest


@attrs.frozen
class Body:
    """A content of which only the last bytes are its own, so that very many fit in memory."""

    shared: bytes
    own: bytes
    digest: Digest

    @property
    def parts(self) -> Sequence[bytes]:
        """All of it, to be sent or written one after the other."""
        return self.shared, self.own

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.shared) + len(self.own)


class Bodies:
    """Any number of distinct contents of one size, none of which can be compressed.

    A large one costs no more to make than a small one: what they share is hashed once.
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
    """A number of bytes as people say it: `64 KiB`."""
    for unit, bytes_in_it in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_in_it and size % bytes_in_it == 0:
            return f"{size // bytes_in_it} {unit}"
    return f"{size} B"
