"""A large body on its way, in as many requests as it takes."""

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred

from stor.client.transfer import Body

#: What is larger goes on where it was cut off; to send less again costs less than to ask.
PARTS_BYTES = 8 * 1024 * 1024


@attrs.frozen
class Rest:
    """What is left of a `Body` from an offset on."""

    body: Body
    offset: int

    @property
    def size(self) -> int:
        """See `Body`."""
        return self.body.size - self.offset

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body`."""
        return self.body.read(self.offset + offset, length)


class Parts:
    """How far a body has come. What is sent again is no progress."""

    def __init__(self, body: Body, moved: Callable[[int], None]) -> None:
        """`moved` is told of the bytes that have come further than any before."""
        self.body = body
        #: Whether anything was sent.
        self.begun = False
        self._moved = moved
        self._at = 0
        self._counted = 0
        #: The farthest that the server has told, and what of that has been heard of.
        self._told = 0
        self._heard = -1

    def go_on(self, offset: int) -> Rest:
        """What is sent next, behind what the server has."""
        self.begun = True
        self._told = max(self._told, offset)
        self._at = 0
        self.moved(offset)
        return Rest(self.body, offset)

    def moved(self, count: int) -> None:
        """So many more bytes are on their way."""
        self._at += count
        if self._at > self._counted:
            self._moved(self._at - self._counted)
            self._counted = self._at

    def grown(self) -> bool:
        """Whether the server has more of it than when this was asked before."""
        grown, self._heard = self._told > self._heard, self._told
        return grown
