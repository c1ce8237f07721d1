"""The wire to a statsd server: lines over UDP, a datagram at a time."""

import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from statsd.client.base import StatsClientBase
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.config import Statsite
from stor.threads import Pool

#: Lines wait so long for others that go with them.
FLUSH_SECONDS = 0.2

#: What passes through an Ethernet in one piece, with the headers of IPv6 and UDP.
DATAGRAM_BYTES = 1400

#: The server's name is asked for again so long after an answer, and so long after none.
RENEW_SECONDS = 300.0
RETRY_SECONDS = 30.0

#: An address family and an address, as `socket` has them.
Address = tuple[int, tuple[object, ...]]


class Socket(Protocol):
    """The part of a datagram socket that is needed."""

    def sendto(self, data: bytes, address: tuple[object, ...], /) -> int:
        """Send a datagram. Raises `OSError`."""

    def close(self) -> None:
        """Give it back."""


def resolve(host: str, port: int) -> Address:
    """Where the server is. Blocks; raises `OSError`, `UnicodeError`."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    return family, address


def open_socket(family: int) -> Socket:
    """A socket on which nothing waits."""
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.setblocking(False)
    return opened


class Statsd(StatsClientBase):
    """Counts and times for a statsd server; a server that cannot be reached has no effect at all.

    Each goes out with the probability that the configuration says (`sample_rate`). Names are
    asked for in a thread, everything else is done at once and never waits.
    """

    log = Logger()

    def __init__(
        self,
        statsite: Statsite,
        clock: IReactorTime,
        worker: Pool,
        *,
        resolve: Callable[[str, int], Address] = resolve,
        open_socket: Callable[[int], Socket] = open_socket,
    ) -> None:
        """`worker` runs `resolve`."""
        self._statsite = statsite
        self._prefix = statsite.prefix.rstrip(".")  # where StatsClientBase looks for it
        self._rate = statsite.sample_rate
        self._clock = clock
        self._worker = worker
        self._resolve = resolve
        self._open_socket = open_socket
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._counts: dict[str, int] = {}
        self._flushing: IDelayedCall | None = None
        self._address: Address | None = None
        self._socket: Socket | None = None
        self._unresolved: str | None = None
        self._stopped = False
        # Not now: a process that goes into the background loses the threads that it has by then.
        self._renewing: IDelayedCall = clock.callLater(0, self._renew)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        if self._rate < 1 and random.random() > self._rate:
            return
        self._counts[name] = self._counts.get(name, 0) + number
        self._flush_soon()

    def time(self, name: str, seconds: float) -> None:
        """One more of the times, which statsd has in milliseconds."""
        self.timing(name, seconds * 1000.0, self._rate)

    def stop(self) -> None:
        """Send what is waiting, and end."""
        self._stopped = True
        for call in (self._flushing, self._renewing):
            if call is not None and call.active():
                call.cancel()
        self._flush()
        self._close()

    def _send(self, line: str) -> None:
        """Have a line sent soon; `StatsClientBase` calls this with each that is to be sent."""
        data = line.encode("utf-8", "replace")
        if self._waiting_bytes + len(data) > DATAGRAM_BYTES:
            self._send_lines()
        self._lines.append(data)
        self._waiting_bytes += len(data) + 1
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flushing is None and not self._stopped:
            self._flushing = self._clock.callLater(FLUSH_SECONDS, self._flush_late)

    def _flush_late(self) -> None:
        self._flush()
        self._flushing = None

    def _flush(self) -> None:
        """Send what is waiting: what was counted meanwhile is one line for each name."""
        counts, self._counts = self._counts, {}
        suffix = f"|@{self._rate}" if self._rate < 1 else ""
        for name, number in counts.items():
            # As a line that is not left out once more.
            self._send_stat(name, f"{number}|c{suffix}", 1)
        self._send_lines()

    def _send_lines(self) -> None:
        lines, self._lines, self._waiting_bytes = self._lines, [], 0
        if lines and self._socket is not None and self._address is not None:
            # A datagram may always be lost on its way; one that is lost here is no other case.
            with suppress(OSError):
                self._socket.sendto(b"\n".join(lines), self._address[1])

    def _renew(self) -> None:
        asking = self._worker.run(self._resolve, self._statsite.host, self._statsite.port)
        asking.addCallback(self._found).addErrback(self._not_found)

    def _found(self, address: Address) -> None:
        if self._stopped:
            return
        if address != self._address:
            self._close()
            self._socket, self._address = self._open_socket(address[0]), address
        self._unresolved = None
        self._renewing = self._clock.callLater(RENEW_SECONDS, self._renew)

    def _not_found(self, failure: Failure) -> None:
        """Go on with the address that was found last, if there is one."""
        if self._stopped:
            return
        reason = str(failure.value)
        if reason != self._unresolved:
            host = self._statsite.host
            self.log.warn("statsite: {host}: {reason}", host=host, reason=reason)
        self._unresolved = reason
        self._renewing = self._clock.callLater(RETRY_SECONDS, self._renew)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._address = None
