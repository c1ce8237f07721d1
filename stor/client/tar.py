"""A TAR taken apart while it comes, in whatever pieces."""

import re
from collections.abc import Callable

_BLOCK = 512

#: More than that no extended header has that says a size.
_EXTENDED_BYTES = 64 * 1024

#: Given a member's name, its next bytes, and whether they are its last.
Take = Callable[[str, bytes, bool], None]


class BadTar(ValueError):
    """What has come is no TAR."""


class TarReader:
    """Gives the bytes of each regular file to `take` as they come, once at least for each."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._buffer = bytearray()
        self._kind = b""
        self._name = ""
        self._left = 0
        self._padding = 0
        self._size: int | None = None
        self._extended = b""
        #: Whether its end, a block of zeros, has come.
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `BadTar`, and what `take` does."""
        self._buffer += data
        while not self.ended and self._step():
            pass

    def _step(self) -> bool:
        """Whether there may be more to do."""
        buffer = self._buffer
        if self._kind:
            if not buffer and self._left:
                return False
            piece = bytes(buffer[: self._left])
            del buffer[: len(piece)]
            self._left -= len(piece)
            self._give(piece, last=not self._left)
            if not self._left:
                self._kind = b""
            return True
        if self._padding:
            skipped = min(self._padding, len(buffer))
            del buffer[:skipped]
            self._padding -= skipped
            return not self._padding
        if len(buffer) < _BLOCK:
            return False
        self._begin(bytes(buffer[:_BLOCK]))
        del buffer[:_BLOCK]
        return True

    def _begin(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self.ended = True
            return
        try:
            size = int(block[124:136].strip(b" \0"), 8)
            self._name = block[:100].rstrip(b"\0").decode("ascii")
        except ValueError:
            raise BadTar("a header is not one") from None
        if block[257:262] != b"ustar":
            raise BadTar("a header is not one")
        self._kind = block[156:157]
        if self._kind in (b"0", b"\0"):
            self._kind = b"0"
            size = size if self._size is None else self._size
            self._size = None
        self._left, self._padding = size, -size % _BLOCK

    def _give(self, piece: bytes, *, last: bool) -> None:
        if self._kind == b"0":
            self._take(self._name, piece, last)
        elif self._kind == b"x":
            self._extended += piece
            if len(self._extended) > _EXTENDED_BYTES:
                raise BadTar("an extended header is too large")
            if last:
                found = re.search(rb"(?:^|\n)\d+ size=(\d{1,18})\n", self._extended)
                self._size = int(found[1]) if found else None
                self._extended = b""
