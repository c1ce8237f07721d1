"""How slowly a client may send."""

from collections.abc import Callable

#: The headers of a request are complete this long after its first byte.
HEAD_SECONDS = 30.0

#: A body brings at least so much in every window, while it is being read: 273 bytes a second. A
#: client that sends one byte now and then keeps a connection, an upload and a reservation for ever.
WINDOW_SECONDS = 60.0
WINDOW_BYTES = 16 * 1024


class Pace:
    """One client's pace, judged whenever something comes; silence is the idle time-out's business.

    Needs no timer, so that ten thousand connections have none.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` is the clock."""
        self._seconds = seconds
        self._head_begun: float | None = None
        self._window_begun = 0.0
        self._window_bytes = 0

    def head_is_late(self) -> bool:
        """A piece of a request's head has come: whether it is over its time."""
        now = self._seconds()
        if self._head_begun is None:
            self._head_begun = now
        return now - self._head_begun > HEAD_SECONDS

    def head_began(self, seconds_ago: float) -> None:
        """The first piece of a head has come that long ago, to another process."""
        self._head_begun = self._seconds() - seconds_ago

    @property
    def head_seconds(self) -> float:
        """How long ago the first piece of a head has come; 0 when none has."""
        return 0.0 if self._head_begun is None else self._seconds() - self._head_begun

    def head_ended(self) -> None:
        """The headers are complete; the body begins."""
        self._head_begun = None
        self.begin_window()

    def begin_window(self) -> None:
        """Count from here: the time before was not the client's."""
        self._window_begun = self._seconds()
        self._window_bytes = 0

    def body_is_slow(self, received: int) -> bool:
        """`received` bytes of a body have come: whether they are too few for the time."""
        self._window_bytes += received
        if self._seconds() - self._window_begun <= WINDOW_SECONDS:
            return False
        slow = self._window_bytes < WINDOW_BYTES
        self.begin_window()
        return slow
