"""Contents that no store has seen."""

import os

import attrs


@attrs.frozen
class Body:
    """A content of which only the first bytes are its own, so that very many fit in memory."""

    first: bytes
    rest: bytes

    @property
    def whole(self) -> bytes:
        """All of it."""
        return self.first + self.rest


class Bodies:
    """Any number of distinct contents of one size, none of which can be compressed."""

    _FIRST_BYTES = 16

    def __init__(self, size: int) -> None:
        self.size = size
        self._rest = os.urandom(size - self._FIRST_BYTES)

    def __iter__(self) -> "Bodies":
        return self

    def __next__(self) -> Body:
        return Body(os.urandom(self._FIRST_BYTES), self._rest)
