"""How slowly a client may send, and what those that take slowly may hold."""

import enum
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

#: How long a connection without a request is left open when the service ends: a request that is on
#: its way is answered, where closing would cut it.
LAST_REQUEST_SECONDS = 0.5

#: The headers of a request are complete this long after its first byte.
HEAD_SECONDS = 30.0

#: The least that a body brings in every window while it is being read: 273 bytes a second. A
#: client that sends one byte now and then keeps a connection, an upload and a reservation for ever.
WINDOW_SECONDS = 60.0
WINDOW_BYTES = 16 * 1024

#: What all connections hold together, of what they have sent ahead or have not taken yet.
BUFFERS_BYTES = 64 * 1024 * 1024

#: In the upper half of that, a connection keeps what it holds no longer.
PATIENCE_SECONDS = 1.0

#: How much of a sample is read for one client at a time, with much room and with little: one read
#: is one visit to the disk.
CHUNK_BYTES = 512 * 1024
LEAST_CHUNK_BYTES = 16 * 1024


class Wait(enum.Enum):
    """What a connection without a request under way waits for."""

    # Of each there is one: Enum's own asks for its name, in Python.
    __hash__ = object.__hash__

    REQUEST = enum.auto()
    #: The rest of a head.
    HEAD = enum.auto()
    #: The client, to read an answer and end the connection.
    END = enum.auto()


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


class Holder(Protocol):
    """A connection that holds memory."""

    def cut(self) -> None:
        """End it now, and with it what it holds."""


class Buffers:
    """The memory that connections hold: what they have sent ahead, or not taken yet.

    It is bounded in all. Where it grows short each client gets smaller chunks, and those that have
    held theirs longest are cut: an honest client that takes its answers is never among them.
    """

    def __init__(self, seconds: Callable[[], float], limit_bytes: int = BUFFERS_BYTES) -> None:
        """`seconds` is the clock."""
        self._seconds = seconds
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[Holder, tuple[int, float]] = OrderedDict()
        self.total_bytes = 0
        #: How many were cut.
        self.cuts = 0

    @property
    def chunk_bytes(self) -> int:
        """How much to read for one client at a time, that there be room for many."""
        share = (self._limit_bytes - self.total_bytes) // 64
        return max(LEAST_CHUNK_BYTES, min(CHUNK_BYTES, share))

    def hold(self, holder: Holder, count: int) -> None:
        """`holder` has made progress, and holds `count` bytes from now on."""
        before, _ = self._held.pop(holder, (0, 0.0))
        self.total_bytes += count - before
        if count:
            self._held[holder] = (count, self._seconds())
            while self._short_of_room():
                slowest = next(iter(self._held))
                self.hold(slowest, 0)
                self.cuts += 1
                slowest.cut()

    def _short_of_room(self) -> bool:
        if self.total_bytes <= self._limit_bytes // 2:
            return False
        _, since = next(iter(self._held.values()))
        return self.total_bytes > self._limit_bytes or self._seconds() - since > PATIENCE_SECONDS
