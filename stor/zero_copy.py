"""The way of a file's bytes to a socket without passing through this process's memory.

splice(2) moves pages of the page cache into a pipe, and from the pipe to a socket; sendfile(2) is
the same in one call. In two calls each half can be given up by itself: a disk that hangs holds up
the first, and however late it answers, what it gives then stays in a pipe that is of no more use.
"""

import os
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from threading import Lock
from typing import Any

from twisted.internet.defer import Deferred

#: What the pipe takes at once: all that a process without privileges may have (pipe(7)).
PIPE_BYTES = 1024 * 1024

#: At once: a user may have 64 MiB in large pipes (pipe(7), `pipe-user-pages-soft`).
MAX_SPLICE_PIPES = 32


class SplicePipe:
    """A pipe with a socket at its end: one thread fills and flushes it, another may close it.

    `level` is how many bytes are in the pipe, which who fills it says. Until `release` the socket
    gets none of them.
    """

    def __init__(self, splice_pipes: "SplicePipes", socket_fd: int) -> None:
        """The socket stays the caller's. Raises `OSError`."""
        self.level = 0
        self._sent_bytes = 0
        self._conduits = splice_pipes
        self._held = True
        self._closed = False
        self._lock = Lock()
        self._filling: Deferred[Any] | None = None
        self._outlet, self.inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl(self.inlet, F_SETPIPE_SZ, PIPE_BYTES)
            # A descriptor of its own: the other's number may be that of another client later.
            self._socket_fd = os.dup(socket_fd)
        except BaseException:
            self._close_pipe(None)
            raise
        splice_pipes.open += 1

    def release(self) -> None:
        """What has to be sent before is sent: from now on the socket may be given what comes."""
        self._held = False

    def flush(self) -> bool:
        """Send what is in the pipe; whether it is empty now and may be filled again.

        Never waits, and says nothing of a socket that is broken, but that it takes no more.
        """
        with self._lock:
            if self.level and not (self._closed or self._held):
                try:
                    moved = os.splice(self._outlet, self._socket_fd, self.level)
                except OSError:
                    return False
                self.level -= moved
                self._sent_bytes += moved
            return not (self.level or self._closed)

    def newly_sent(self) -> int:
        """How many bytes the socket has taken since this was asked last."""
        with self._lock:
            sent, self._sent_bytes = self._sent_bytes, 0
            return sent

    def lend(self, filling: Deferred[Any]) -> None:
        """Somebody fills it until `filling` has fired: the pipe is kept until then."""
        self._filling = filling

    def close(self) -> None:
        """Send nothing from now on, also when it is still being filled; `newly_sent` stays."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._socket_fd)
        self._conduits.open -= 1
        if self._filling is None or self._filling.called:
            self._close_pipe(None)
        else:
            self._filling.addBoth(self._close_pipe)

    def _close_pipe(self, outcome: Any) -> Any:
        for fd in (self.inlet, self._outlet):
            os.close(fd)
        return outcome


class SplicePipes:
    """A bounded number of them."""

    def __init__(self, limit: int = MAX_SPLICE_PIPES) -> None:
        self._limit = limit
        #: How many are open.
        self.open = 0

    def take(self, socket_fd: int) -> SplicePipe | None:
        """A new one to a non-blocking socket; `None` when there are enough, or no large pipe."""
        if self.open < self._limit:
            with suppress(OSError):
                return SplicePipe(self, socket_fd)
        return None
