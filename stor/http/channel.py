"""A connection, as twisted.web's HTTPChannel does not have it.

Twisted says 100 Continue before anybody is asked, and closes a connection with unread bytes on
it, which makes the kernel send a reset that can overtake the answer.
"""

import enum
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Protocol

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IAddress,
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

#: How long a request waits until the process that answers it takes its connection, and the pause
#: between two tries.
HAND_OVER_SECONDS = 1.0
HAND_OVER_RETRY_SECONDS = 0.01

_HEAD_END = b"\r\n\r\n"

#: So much behind a head is taken as a body, and by itself.
_BODY_BYTES = 4096


@attrs.frozen
class Handed:
    """A connection that another process goes on with, at the boundary of a request.

    `unread` is the request as far as it was received, and all behind it; `head_seconds` is how
    long ago its first byte came, `peer` and `port` are the client's.
    """

    unread: bytes
    peer: str
    port: int
    head_seconds: float


class Given(enum.Enum):
    """What became of a connection that was to be handed over."""

    GONE = "another process has it"
    CROWDED = "the other process has taken no more for a moment"
    NOBODY = "the other process is not there"


class Elsewhere(Protocol):
    """The other processes of this Stor, to whom connections are handed over."""

    def answers(self, channel: "StorChannel", line: bytes, rest: bytes) -> bool:
        """Whether another process answers the request that begins with `line`.

        `rest` is what was received behind that line.
        """

    def give(self, channel: "StorChannel", handed: Handed) -> Given:
        """Hand a connection over; once it is `GONE`, its transport is no part of this process."""


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
    #: Who answers what this process does not, if there is anybody.
    elsewhere: Elsewhere | None

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
        #: Who gets the connection back at its next request that reads, if anybody does.
        self.giver: object = None
        #: The client of a connection that was made to another process.
        self._client: IAddress | None = None
        self._unread: bytearray | None = None
        self._leaving_since = 0.0

    def connectionMade(self) -> None:  # noqa: N802
        """Take part in the site's count of connections."""
        super().connectionMade()
        self._pace = Pace(self.site.clock.seconds)
        self._peer = getattr(self.getPeer(), "host", "-")
        # Not through TLS, and not the in-memory transports of a proxy or a test.
        self._direct = isinstance(self.transport, TCPConnection)
        if self._direct:
            self.transport.bufferSize = INTAKE_BYTES
        # One that was handed over was admitted when it was made.
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
        self._unread = None
        super().connectionLost(reason)
        self.site.lost(self)

    def readConnectionLost(self) -> None:  # noqa: N802
        """The client sends no more; what it has asked for it still gets (shutdown(2), SHUT_WR)."""
        self._half_closed = True
        self._end_when_served()

    def writeConnectionLost(self) -> None:  # noqa: N802
        """We send no more, by our own choice: see `_linger`."""

    def go_on(self, handed: Handed) -> None:
        """Take up what another process has handed over, as if it had come just now."""
        self._pace.head_began(handed.head_seconds)
        self.dataReceived(handed.unread)

    def take_over(self, handed: Handed, giver: object) -> None:
        """Before the connection is made: another process has handed it over.

        `giver` gets it back at its next request that reads, `None` when nobody does.
        """
        self.giver = giver
        self._client = IPv4Address("TCP", handed.peer, handed.port)

    @property
    def handed(self) -> bool:
        """Whether the connection was made to another process."""
        return self._client is not None

    def getPeer(self) -> Any:  # noqa: N802
        """The client."""
        return self._client or super().getPeer()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self.requests and not self.lingering and self._unread is None

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
        if self._intake_paused or self._unread is not None:
            self._networkProducer.pauseProducing()
        if self._unread is not None:
            self._leave_soon()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Parse, or throw away what comes after the last answer."""
        if self.lingering:
            self.resetTimeout()
            return
        if self._unread is not None:
            self._unread += data
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
            and self.giver is None
            and not (self.requests or self._buffer or self._half_closed)
            and not (self._waitingForTransport or self.site.draining)
            and bool(self.persistent and self.line_mode)
        )

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Take the request line or a header line."""
        if self.lingering:
            return
        if not self.requests and self.persistent and line and self._is_for_others(line):
            self._leave(line)
        elif self._receivedHeaderSize + len(line) > self.totalHeadersSize:
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
        under_way = self._handlingRequest or self._unread is not None
        if self._half_closed and (self.lingering or not under_way):
            self.transport.loseConnection()

    def _is_for_others(self, line: bytes) -> bool:
        elsewhere = self.site.elsewhere
        return elsewhere is not None and elsewhere.answers(self, line, self._buffer)

    def _leave(self, line: bytes) -> None:
        """Hand the connection over, from this request line on, once all answers are sent."""
        self._unread = bytearray(line + self.delimiter + self._buffer)
        self._buffer = b""
        # In case that nobody takes it.
        self._command = line.partition(b" ")[0]
        self._leaving_since = self.site.clock.seconds()
        self._networkProducer.pauseProducing()
        self._leave_soon()

    def _leave_soon(self, seconds: float = 0.0) -> None:
        # Not now: the transport may be in the middle of reading.
        self.callLater(seconds, self._hand_over)

    def _hand_over(self) -> None:
        if self._unread is None or self.site.elsewhere is None or self._waitingForTransport:
            return
        if self._has_unsent:
            self.await_room()
            return
        peer = self.getPeer()
        handed = Handed(
            bytes(self._unread),
            getattr(peer, "host", "-"),
            getattr(peer, "port", 0),
            self._pace.head_seconds,
        )
        given = self.site.elsewhere.give(self, handed)
        late = self.site.clock.seconds() - self._leaving_since >= HAND_OVER_SECONDS
        if given is Given.GONE:
            self._unread = None
            self.setTimeout(None)
            self.site.lost(self)
        elif self.giver is not None:
            self._stay()
        elif given is Given.CROWDED and not late:
            self._leave_soon(HAND_OVER_RETRY_SECONDS)
        else:
            self._unread = None
            self.refuse(
                Answer.line(503, "the process that stores samples is starting", retry_after="1")
            )

    def _stay(self) -> None:
        """Nobody takes a connection back: answer here what can be answered everywhere."""
        unread, self._unread, self.giver = bytes(self._unread or b""), None, None
        del self._command
        self._networkProducer.resumeProducing()
        self.dataReceived(unread)

    @property
    def _has_unsent(self) -> bool:
        """Whether the transport has bytes that the kernel has not taken yet."""
        return bool(
            getattr(self.transport, "dataBuffer", b"")
            or getattr(self.transport, "_tempDataBuffer", [])
        )

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
