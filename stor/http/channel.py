"""A connection, as twisted.web's HTTPChannel does not have it.

Twisted says 100 Continue before anybody is asked, and closes a connection with unread bytes on
it, which makes the kernel send a reset that can overtake the answer.
"""

from contextlib import suppress
from http import HTTPStatus
from typing import Protocol

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.tcp import Connection as TCPConnection
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from zope.interface import implementer

from stor.http.answer import Answer
from stor.http.fast_path import FastPath
from stor.http.pace import HEAD_SECONDS, WINDOW_BYTES, WINDOW_SECONDS, Pace
from stor.http.request import SERVER, StorRequest, path_of

#: After an answer that came before the end of the body: so long is the rest read and thrown away,
#: in all and without a byte. Closing at once would reset the connection, and the reset can
#: destroy the answer before the client has read it (RFC 9112, 9.6).
LINGER_SECONDS = 30.0
LINGER_IDLE_SECONDS = 5.0

#: The same for a connection that was one too many.
TURNED_AWAY_SECONDS = 2.0

#: int() refuses more than 4300 digits (CVE-2020-10735).
_LENGTH_DIGITS = 4000

#: So much is read at a time: 64 KiB of a body, which many clients send at once, and the head.
INTAKE_BYTES = 96 * 1024

_HEAD_END = b"\r\n\r\n"

#: So much behind a head is taken as a body, and by itself.
_BODY_BYTES = 4096


class Connections(Protocol):
    """Who knows all channels."""

    channels: "set[StorChannel]"
    clock: IReactorTime
    #: Answers the plainest requests, if anybody does.
    fast_path: FastPath | None
    #: Whether every connection is to end with the answer that is under way.
    draining: bool
    #: Seconds after which a connection without a byte is cut.
    timeOut: float

    def admit(self, channel: "StorChannel") -> Answer | None:
        """Take a new connection into account; what to turn it away with, if it is one too many."""

    @property
    def crowded(self) -> bool:
        """Whether there is no time for that either."""

    def lost(self, channel: "StorChannel") -> None:
        """Forget a channel whose connection has ended."""


@implementer(IHalfCloseableProtocol)
class StorChannel(HTTPChannel):
    """One connection: HTTP/1.1 with pauses, early answers, and clear words for bad requests."""

    site: Connections

    def __init__(self) -> None:
        super().__init__()
        self.lingering = False
        self._linger_end: IDelayedCall | None = None
        self._intake_paused = False
        self._answered: StorRequest | None = None
        self._half_closed = False

    def connectionMade(self) -> None:  # noqa: N802
        """Take part in the site's count of connections."""
        super().connectionMade()
        self._pace = Pace(self.site.clock.seconds)
        self._peer = getattr(self.transport.getPeer(), "host", "-")
        # Not through TLS, and not the in-memory transports of a proxy or a test.
        self._direct = isinstance(self.transport, TCPConnection)
        if self._direct:
            self.transport.bufferSize = INTAKE_BYTES
        answer = self.site.admit(self)
        if answer is not None and not self.site.crowded:
            self.refuse(answer, TURNED_AWAY_SECONDS)
        elif answer is not None:
            self.lingering = True
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Leave the site's count of connections."""
        if self._linger_end is not None and self._linger_end.active():
            self._linger_end.cancel()
        super().connectionLost(reason)
        self.site.lost(self)

    def readConnectionLost(self) -> None:  # noqa: N802
        """The client sends no more; what it has asked for it still gets (shutdown(2), SHUT_WR)."""
        self._half_closed = True
        self._end_when_served()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """We send no more, by our own choice: see `_linger`."""

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self.requests and not self.lingering

    def proceed(self) -> None:
        """Send 100 Continue."""
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_intake(self) -> None:
        """Read nothing more, for as long as the disks need: no time-out runs."""
        self._intake_paused = True
        self._networkProducer.pauseProducing()
        self.setTimeout(None)

    def resume_intake(self) -> None:
        """Read on; what is thrown away after an answer is read in any case."""
        self._intake_paused = False
        if self.lingering:
            return
        self._pace.begin_window()
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()
        if not self._handlingRequest:
            self.setTimeout(self.site.timeOut)

    def resumeProducing(self) -> None:  # noqa: N802
        """The client has taken what was written; that alone is no reason to read on."""
        self._waitingForTransport = False
        answered, self._answered = self._answered, None
        if answered is not None:
            super().requestDone(answered)
            self._end_when_served()
        super().resumeProducing()
        if self._intake_paused:
            self._networkProducer.pauseProducing()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Parse, or throw away what comes after the last answer."""
        if self.lingering:
            self.resetTimeout()
            return
        if self._rests:
            answer = self.site.fast_path.answer(data, self._peer, SERVER)
            if answer is not None:
                self.resetTimeout()
                self._send_now(answer)
                return
        head = self.line_mode and not self._handlingRequest
        if head and self._pace.head_is_late():
            self.refuse(_late(f"headers are expected within {HEAD_SECONDS:g} s"))
            return
        end = data.find(_HEAD_END) + len(_HEAD_END) if head else 0
        if end >= len(_HEAD_END) and len(data) - end > _BODY_BYTES:
            # Line by line: each would copy what comes behind it.
            super().dataReceived(data[:end])
            self.dataReceived(data[end:])
            return
        super().dataReceived(data)
        if self._busyReceiving or self.lingering:
            return
        if self.line_mode and b"\n" in self._buffer:
            # A line that ends without CR would never end for us, and does for others on the way.
            self._respondToBadRequestAndDisconnect()

    @property
    def _rests(self) -> bool:
        """Whether the next byte begins a request, whose answer can go out at once."""
        return (
            self.site.fast_path is not None
            and not (self.requests or self._buffer or self._half_closed)
            and not (self._waitingForTransport or self.site.draining)
            and bool(self.persistent and self.line_mode)
        )

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Take the request line or a header line."""
        if self.lingering:
            return
        if self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self._refuse_headers()
        else:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take a part of the body."""
        if self.lingering:
            return
        if not self._handlingRequest and self._pace.body_is_slow(len(data)):
            self.refuse(_late(f"{WINDOW_BYTES} bytes are expected every {WINDOW_SECONDS:g} s"))
            return
        super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: N802
        """A line is longer than all headers together may be."""
        if not self.lingering:
            self._refuse_headers()

    def allHeadersReceived(self) -> None:  # noqa: N802
        """Let the request decide before its body comes, and before any 100 Continue."""
        self._pace.head_ended()
        request = self.requests[-1]
        self.persistent = self.checkPersistence(request, self._version)
        if self.site.draining:
            self.persistent = False
            self.setTimeout(self.site.timeOut)
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (not hosts and self._version == b"HTTP/1.1"):
            self.refuse(Answer.line(400, f"bad request: {len(hosts)} Host headers, expected one"))
            return
        if path_of(self._path) is None:
            self.refuse(Answer.line(400, "bad request: the target is no path and no http URL"))
            return
        request.begin(self._command, self._path, self._version, self.length)

    def allContentReceived(self) -> None:  # noqa: N802
        """The request is complete."""
        if not self.lingering:
            super().allContentReceived()

    def requestDone(self, request: StorRequest) -> None:  # noqa: N802
        """An answer is complete; the request may not be, and the client may not have taken it."""
        # A pause may have ended after the body: what Twisted saved then is no time-out.
        self._savedTimeOut = self.site.timeOut
        if self._transferDecoder is not None:
            self.requests.remove(request)
            self._linger()
        elif self._waitingForTransport and self.persistent:
            # The next of many pipelined requests waits, or their answers would fill the memory.
            self._answered = request
            self.setTimeout(self.site.timeOut)
        else:
            super().requestDone(request)
            self._end_when_served()

    @property
    def socket_fd(self) -> int | None:
        """The socket, where what it is given reaches the client as it is."""
        return self.transport.fileno() if self._direct else None

    def await_room(self) -> None:
        """Pause the producer until the socket has taken all that was written, and takes more.

        As if the transport's buffer were full: FileDescriptor.doWrite resumes it.
        """
        self.transport.producerPaused = True
        self.pauseProducing()
        self.transport.startWriting()

    def refuse(self, answer: Answer, linger_seconds: float = LINGER_SECONDS) -> None:
        """Answer what is no request, and end the connection."""
        if self.lingering:
            return
        self.lingering = True
        for request in self.requests:
            request.abandon()
        reason = HTTPStatus(answer.status).phrase.encode()
        head = getattr(self, "_command", b"") == b"HEAD"
        headers = Headers()
        for name, value in (
            (b"Server", SERVER),
            (b"Date", datetimeToString()),
            (b"Connection", b"close"),
            (b"Content-Type", answer.content_type.encode()),
            (b"Content-Length", b"%d" % len(answer.body)),
            *((name.encode(), value.encode()) for name, value in answer.headers.items()),
        ):
            headers.addRawHeader(name, value)
        self.writeHeaders(b"HTTP/1.1", b"%d" % answer.status, reason, headers)
        self.transport.write(b"" if head else answer.body)
        self._linger(linger_seconds)

    def checkPersistence(self, request: StorRequest, version: bytes) -> bool:  # noqa: N802
        """Whether the connection may go on: HTTP/1.1 and no `close` in any Connection header."""
        values = request.requestHeaders.getRawHeaders(b"Connection", [])
        tokens = {token.strip().lower() for value in values for token in value.split(b",")}
        return version == b"HTTP/1.1" and b"close" not in tokens

    def timeoutConnection(self) -> None:  # noqa: N802
        """Nothing has come for too long."""
        if self.lingering:
            self.transport.abortConnection()
        elif self.site.draining and self.idle:
            # What was written may take the client longer than a time-out of Twisted's allows.
            self.loseConnection()
        else:
            super().timeoutConnection()

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:  # noqa: N802
        """Twisted's, but for lengths and encodings that leave doubt where the body ends."""
        if header == b"Content-Length" and len(data) > _LENGTH_DIGITS:
            return bool(self._failChooseTransferDecoder())
        if header == b"Transfer-Encoding" and data.lower() != b"chunked":
            return bool(self._failChooseTransferDecoder())
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def _respondToBadRequestAndDisconnect(self) -> None:  # noqa: N802
        self.refuse(Answer.line(400, "bad request: this is not HTTP/1.1 as RFC 9112 has it"))

    def _send_now(self, answer: tuple[bytes, ...]) -> None:
        """Send without a turn of the reactor, where nothing waits to be sent before."""
        transport = self.transport
        sent = 0
        if self._direct and not (transport.dataBuffer or transport._tempDataBuffer):
            # What fails here the ordinary way meets again, and knows what to do about.
            with suppress(OSError):
                sent = transport.socket.sendmsg(answer)
        if sent < sum(map(len, answer)):
            transport.write(b"".join(answer)[sent:])

    def _end_when_served(self) -> None:
        if self._half_closed and (self.lingering or not self._handlingRequest):
            self.transport.loseConnection()

    def _refuse_headers(self) -> None:
        limit = self.totalHeadersSize
        line = f"request line and headers are too large: at most {limit} bytes are accepted"
        self.refuse(Answer.line(431, line))

    def _linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Send what is written, say that it is all, and read until the client has seen it."""
        self.lingering = True
        self._networkProducer.unregisterProducer()
        if not ISSLTransport.providedBy(self.transport):
            # TLS has no half-close; there the length of the answer says where it ends.
            self.transport.loseWriteConnection()
        self._networkProducer.resumeProducing()
        self.setTimeout(min(LINGER_IDLE_SECONDS, seconds))
        self._linger_end = self.callLater(seconds, self.transport.abortConnection)


def _late(expected: str) -> Answer:
    return Answer.line(408, f"too slow: {expected}")
