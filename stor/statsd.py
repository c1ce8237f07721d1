"""The wire to a statsd server, by way of the `statsd` package: lines over UDP, many a datagram."""

import socket
import time
from collections.abc import Callable
from typing import Any

from statsd.client import StatsClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.config import Statsite
from stor.threads import Pool, Unanswered, within

#: Lines wait this long for others that go with them.
FLUSH_SECONDS = 0.2

#: What passes through an Ethernet in one piece, with the headers of IPv6 and UDP.
DATAGRAM_BYTES = 1400

#: The server is looked for again this long after it was found, and after it was not.
RENEW_SECONDS = 60.0
RETRY_SECONDS = 30.0

#: How long the end of the process waits for the last lines to be sent.
LAST_SECONDS = 1.0

#: How long a host takes to say that nobody listens on one of its ports.
_REFUSAL_SECONDS = 0.05


def connect(
    statsite: Statsite, getaddrinfo: Callable[..., Any] = socket.getaddrinfo
) -> StatsClient:
    """A client for the server. Blocks; raises `OSError`, `UnicodeError`.

    A name may have several addresses, such as `localhost` with ::1 and 127.0.0.1, and the server
    listen on one of them: the first that does not refuse is taken, IPv4 before IPv6.
    """
    found = getaddrinfo(statsite.host, statsite.port, type=socket.SOCK_DGRAM)
    found = sorted(found, key=lambda one: bool(one[0] != socket.AF_INET))
    open_ones = (one for one in found if len(found) == 1 or not _refuses(one[0], one[4]))
    family, _, _, _, address = next(open_ones, found[0])
    host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    prefix = statsite.prefix.rstrip(".").encode("ascii", "replace").decode("ascii")
    ipv6 = family == socket.AF_INET6
    return StatsClient(host, statsite.port, prefix, DATAGRAM_BYTES, ipv6)


def _refuses(family: int, address: Any) -> bool:
    """Whether the host says that nobody listens there, or it cannot be reached at all."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
            # A server takes no line from an empty datagram. An answer to the first comes to light
            # with the second.
            probe.send(b"")
            time.sleep(_REFUSAL_SECONDS)
            probe.send(b"")
        except OSError:
            return True
    return False


class Statsd:
    """Counts and times for a statsd server; a server that cannot be reached has no effect at all.

    Counts are exact: what a counter gains meanwhile is one line. Each time goes out with the
    probability that the configuration says (`sample_rate`).
    """

    log = Logger()

    def __init__(
        self,
        statsite: Statsite,
        clock: IReactorTime,
        connecting: Pool,
        sending: Pool,
        connect: Callable[[Statsite], StatsClient] = connect,
    ) -> None:
        """`connecting` runs `connect`. `sending` has one thread.

        The package's sockets block: datagrams for a host that does not answer on its own network
        fill the socket's buffer, and the next one waits for seconds (arp(7)).
        """
        self._statsite = statsite
        self._clock = clock
        self._connecting = connecting
        self._sending = sending
        self._connect = connect
        self._counts: dict[str, int] = {}
        self._client: StatsClient | None = None
        #: The times that wait.
        self._times: Any = None
        self._under_way = False
        self._flushing: IDelayedCall | None = None
        self._unresolved: str | None = None
        self._stopped = False
        # Not now: a process that goes into the background loses the threads that it has by then.
        self._renewing: IDelayedCall = clock.callLater(0, self._renew)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        self._counts[name] = self._counts.get(name, 0) + number
        self._flush_soon()

    def time(self, name: str, seconds: float) -> None:
        """One more of the times, which statsd has in milliseconds."""
        if self._times is not None:
            self._times.timing(name, seconds * 1000.0, self._statsite.sample_rate)
            self._flush_soon()

    def stop(self) -> Deferred[None]:
        """Send what is waiting, and end; fires when it was sent, or after `LAST_SECONDS`."""
        self._stopped = True
        for call in (self._flushing, self._renewing):
            if call is not None and call.active():
                call.cancel()
        self._flush()
        return within(self._clock, LAST_SECONDS, self._leave()).addErrback(self._given_up)

    def _given_up(self, failure: Failure) -> None:
        """The network took no more: what is lost are figures."""
        failure.trap(Unanswered)

    def _flush_soon(self) -> None:
        if self._flushing is None and not self._stopped:
            self._flushing = self._clock.callLater(FLUSH_SECONDS, self._flush_late)

    def _flush_late(self) -> None:
        self._flushing = None
        if not self._under_way:
            self._flush()
        else:
            # Counts take no more room than their names; the times of so slow a network are lost.
            self._new_times()
            self._flush_soon()

    def _flush(self) -> None:
        lines, counts = self._times, self._counts
        self._counts = {}
        self._new_times()
        if lines is None:
            return
        for name, number in counts.items():
            lines.incr(name, number)
        self._under_way = True
        self._sending.finish(lines.send).addErrback(self._bug).addCallback(self._sent)

    def _sent(self, ended: object) -> None:
        self._under_way = False

    def _bug(self, failure: Failure) -> None:
        self.log.failure("statsite", failure)

    def _new_times(self) -> None:
        self._times = None if self._client is None else self._client.pipeline()

    def _renew(self) -> None:
        asking = self._connecting.run(self._connect, self._statsite)
        asking.addCallbacks(self._found, self._not_found)

    def _found(self, client: StatsClient) -> None:
        if self._stopped:
            client.close()
            return
        # What waits goes out by the old one.
        self._flush()
        self._leave()
        self._client = client
        self._new_times()
        self._unresolved = None
        self._renewing = self._clock.callLater(RENEW_SECONDS, self._renew)

    def _not_found(self, failure: Failure) -> None:
        """Go on with the client that was made last, if there is one."""
        if self._stopped:
            return
        reason = str(failure.value)
        if reason != self._unresolved:
            host = self._statsite.host
            self.log.warn("statsite: {host}: {reason}", host=host, reason=reason)
        self._unresolved = reason
        self._renewing = self._clock.callLater(RETRY_SECONDS, self._renew)

    def _leave(self) -> Deferred[None]:
        """Close the socket after what is being sent; fires when that is done."""
        client, self._client, self._times = self._client, None, None
        if client is None:
            return succeed(None)
        return self._sending.finish(client.close).addErrback(self._bug)
