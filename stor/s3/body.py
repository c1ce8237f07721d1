"""The bodies of HTTP answers, read no faster than they are wanted, and the client that asks.

Not treq's, which decodes what has a `Content-Encoding`: a sample is the bytes that are stored.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    ResponseDone,
    _HTTP11ClientFactory,
)

#: With this many bytes waiting the connection is not read on; two hundred slow clients hold little.
BUFFER_BYTES = 64 * 1024

#: What has come is given out after this time even if more is wanted: a slow engine is no silence.
GATHER_SECONDS = 2.0

#: A body of which nothing has come for this long is as good as cut.
SILENT_SECONDS = 4.0


class Body(Protocol):
    """Takes a response's body (`IResponse.deliverBody`); `take` gives it out, in order."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._wanted_bytes = 0
        self._taker: Deferred[bytes] | None = None
        self._timer: IDelayedCall | None = None
        self._late = False
        self._paused = False
        self._over: Failure | None = None
        self.closed = False

    def take(self, limit: int) -> Deferred[bytes]:
        """From 1 to `limit` bytes, `b""` at the end of a complete body.

        Fails when the body is cut before its end, or nothing comes for `SILENT_SECONDS`. One call
        at a time; it may be cancelled.
        """
        self._taker = Deferred(self._untake)
        self._wanted_bytes = min(limit, BUFFER_BYTES)
        taker = self._taker
        self._late = False
        self._timer = self._clock.callLater(GATHER_SECONDS, self._gathered)
        self._give()
        return taker

    def close(self) -> None:
        """No more is wanted; ends the connection when the body has not ended."""
        self.closed = True
        # What Twisted hands to the body can only end a connection in order, and over TLS an engine
        # that hangs never takes part in that: the connection would stay for ever.
        connection: Any = getattr(self.transport, "_producer", None)
        if self._over is None and connection is not None:
            connection.abortConnection()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """See `twisted.internet.protocol.Protocol`."""
        if self.closed:
            return
        self._chunks.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= BUFFER_BYTES and not self._paused:
            self._paused = True
            self._producer.pauseProducing()
        self._give()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """The body has ended, whole or not."""
        self._over = reason
        self._give()

    def _untake(self, taker: Deferred[bytes]) -> None:
        """What was cancelled takes nothing: it is there for the next `take`."""
        self._end_take()

    def _end_take(self) -> None:
        self._taker = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    @property
    def _producer(self) -> Any:
        return self.transport

    def _gathered(self) -> None:
        self._late = True
        self._timer = self._clock.callLater(SILENT_SECONDS - GATHER_SECONDS, self._silent)
        self._give()

    def _silent(self) -> None:
        taker = self._taker
        if taker is not None:
            self._end_take()
            taker.errback(TimeoutError(f"s3: not a byte for {SILENT_SECONDS:g} s"))

    def _give(self) -> None:
        taker = self._taker
        if taker is None:
            return
        enough = self._waiting_bytes >= self._wanted_bytes
        if not (enough or self._over is not None or (self._waiting_bytes and self._late)):
            return
        self._end_take()
        data = b"".join(self._chunks)
        given, rest = data[: self._wanted_bytes], data[self._wanted_bytes :]
        self._chunks, self._waiting_bytes = [rest] if rest else [], len(rest)
        if self._paused and self._waiting_bytes < BUFFER_BYTES and self._over is None:
            self._paused = False
            self._producer.resumeProducing()
        if given or self._over is None or self._over.check(ResponseDone):
            taker.callback(given)
        else:
            taker.errback(self._over)


CONNECT_SECONDS = 3.0

#: Connections that are kept open for the next request.
_KEPT = 32


class _QuietFactory(_HTTP11ClientFactory):
    """A connection is no event for the log."""

    noisy = False


def http_client(reactor: Any, ca_file: str | None) -> Agent:
    """A client with a pool of its own, and no proxy; `ca_file` has the certificates to trust (PEM).

    Without it those of the system are trusted. Raises `OSError`, `ValueError`.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool._factory = _QuietFactory
    pool.maxPersistentPerHost = _KEPT
    # The pool would send a request again that a connection ended under; `Bucket` does that.
    pool.retryAutomatically = False
    trust = None if ca_file is None else trustRootFromCertificates(_certificates(ca_file))
    policy = BrowserLikePolicyForHTTPS(trust)
    return Agent(reactor, policy, connectTimeout=CONNECT_SECONDS, pool=pool)


def _certificates(path: str) -> list[Certificate]:
    with open(path, "rb") as file:
        text = file.read()
    end = b"-----END CERTIFICATE-----"
    return [Certificate.loadPEM(part + end) for part in text.split(end)[:-1]]
