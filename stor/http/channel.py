"""A connection, as twisted.web's HTTPChannel does not have it.

Twisted says 100 Continue before anybody is asked, and closes a connection with unread bytes on
it, which makes the kernel send a reset that can overtake the answer.
"""

from http import HTTPStatus
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    ISSLTransport,
)
from twisted.internet.tcp import Connection as TCPConnection
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers
from zope.interface import implementer

from stor.http.access import Served
from stor.http.answer import SERVER, Answer
from stor.http.connections import (
    HAND_OVER_RETRY_SECONDS,
    HAND_OVER_SECONDS,
    Connections,
    Given,
    Handed,
)
from stor.http.fast_path import PlainUpload
from stor.http.pace import (
    HEAD_SECONDS,
    LAST_REQUEST_SECONDS,
    WINDOW_BYTES,
    WINDOW_SECONDS,
    Pace,
    Wait,
)
from stor.http.parser import Parser
from stor.http.proxies import NO_ADDRESS
from stor.http.request import (
    ALWAYS_ANSWERED,
    StorRequest,
    head_fault,
    name_of,
    path_of,
    target_text,
)

#: After an answer that came before the end of the body, the rest is read and thrown away, in all
#: this long, while it comes at the least pace of a body and is never silent for the shorter time.
#: Closing at once would reset the connection, and the reset can destroy the answer before the
#: client has read it (RFC 9112, 9.6); many clients read it only after they have sent everything.
LINGER_SECONDS = 3600.0
LINGER_IDLE_SECONDS = 5.0

#: The same for a connection that was one too many.
TURNED_AWAY_SECONDS = 2.0

#: How long a TLS connection that we end waits for the client's end of it.
TLS_CLOSE_SECONDS = 1.0

#: So much is read at a time: 64 KiB of a body, which many clients send at once, and the head.
INTAKE_BYTES = 96 * 1024

#: What TLS may keep of an answer beside the socket's buffer (Twisted's _AggregateSmallWrites).
_TLS_BYTES = 64_000

_LATE = Answer.line(408, f"too slow: headers are expected within {HEAD_SECONDS:g} s")
_SLOW = Answer.line(408, f"too slow: {WINDOW_BYTES} bytes are expected every {WINDOW_SECONDS:g} s")


@implementer(IHalfCloseableProtocol)
class StorChannel(Parser):
    """One connection: HTTP/1.1 with pauses, early answers, and clear words for bad requests."""

    site: Connections

    def __init__(self) -> None:
        super().__init__()
        self.lingering = False
        #: Whether there are too many connections without this one: it gets to know how Stor is.
        self.turned_away = False
        self._linger_end: IDelayedCall | None = None
        self._intake_paused = False
        self._answered: StorRequest | PlainUpload | None = None
        self._storing: Any = None
        self._half_closed = False
        self._body_waiting_bytes = 0
        #: Who gets the connection back at its next request that reads, if anybody does.
        self.giver: object = None
        #: The client of a connection that was made to another process.
        self._client: IAddress | None = None
        self._known_peer: str | None = None
        self._unread: bytearray | None = None
        self._leaving_since = 0.0
        self._answered_seconds = 0.0  # the last plain request: no time-out is reset for it

    def connectionMade(self) -> None:  # noqa: N802
        """Take part in the site's count of connections."""
        super().connectionMade()
        self._pace = Pace(self.site.clock.seconds)
        # Beneath TLS, or what else there is between.
        self._socket = self.transport
        while isinstance(self._socket, ProtocolWrapper):
            self._socket = self._socket.transport
        # Not through TLS, and not the in-memory transports of a proxy or a test.
        self._direct = isinstance(self.transport, TCPConnection)
        if self._direct:
            self.transport.bufferSize = INTAKE_BYTES
        self.site.admit(self)

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Leave the site's count of connections."""
        if self._linger_end is not None and self._linger_end.active():
            self._linger_end.cancel()
        super().connectionLost(reason)
        self._forget()

    def _forget(self) -> None:
        """The connection has ended, or is another process's from now on."""
        self.forget()
        self._unread = None
        self.site.buffers.hold(self, 0)
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
        """The client: as a proxy that is trusted says (PROXY protocol), else who has connected."""
        if self._client is not None:
            return self._client
        peer = self._socket.getPeer()
        if self._socket is self.transport:
            return peer
        trusted = self.site.serving.proxies.trust(getattr(peer, "host", NO_ADDRESS))
        return super().getPeer() if trusted else peer

    @property
    def peer(self) -> str:
        """The client's address; known once something has come, as a proxy's word comes first."""
        if self._known_peer is None:
            self._known_peer = getattr(self.getPeer(), "host", NO_ADDRESS)
        return self._known_peer

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self.requests and not self.lingering and self._unread is None

    def proceed(self) -> None:
        """Send 100 Continue."""
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    @property
    def asks(self) -> bool:
        """Whether something has come that has not been read."""
        if not isinstance(self._socket, TCPConnection):
            return False
        try:
            return bool(self._socket.socket.recv(1, MSG_PEEK | MSG_DONTWAIT))
        except OSError:
            return False

    def pause_intake(self) -> None:
        """Read nothing more, for as long as the disks need: no time-out runs."""
        self._intake_paused = True
        self._settle()
        self.setTimeout(None)

    def resume_intake(self) -> None:
        """Read on; what is thrown away after an answer is read in any case."""
        self._intake_paused = False
        if self.lingering:
            return
        self._pace.begin_window()
        if not self._handlingRequest:
            self.setTimeout(self.site.timeOut)
        self.parse_soon()

    def pauseProducing(self) -> None:  # noqa: N802
        """The client has not taken all that was written."""
        self._waitingForTransport = True
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        self._settle()

    def resumeProducing(self) -> None:  # noqa: N802
        """The client has taken what was written; that alone is no reason to read on."""
        self._waitingForTransport = False
        answered, self._answered = self._answered, None
        if answered is not None:
            self._next(answered)
            return
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        self._settle()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Parse, or throw away what comes after the last answer."""
        if self.lingering:
            if self._pace.body_is_slow(len(data)):
                self.transport.abortConnection()
            self.resetTimeout()
            return
        if self._unread is not None:
            self._unread += data
            return
        if self._take_plain(data):
            return
        self.feed(data)
        if self.in_head and self._pace.head_is_late():
            self.refuse(_LATE)
            return
        self.resetTimeout()
        self.parse()

    def _take_plain(self, data: bytes) -> bool:
        """Answer or store what `data` asks for, if that is one of the plainest requests."""
        path: Any = self.site.serving.fast_path
        busy = self.requests or self._unparsed or self._waitingForTransport or not self.line_mode
        ends = self._half_closed or self.turned_away or self.site.draining or self.site.crowded
        if busy or ends or path is None or not self.persistent:
            return False
        if data.startswith(b"P"):
            self._storing = upload = path.store(data, self.peer, self)
            if upload is None:
                return False
            self.requests, self._handlingRequest = [upload], True
            self.site.wait(self, None)
            upload.begin()
            return True
        peer = self._known_peer or self.peer
        answer = None if self.giver is not None else path.answer(data, peer, SERVER)
        if answer is None:
            return False
        self._answered_seconds = self.site.clock.seconds()
        self._send_now(answer)
        return True

    def seconds(self) -> float:
        """See `stor.http.fast_path.Uploader`."""
        return self.site.clock.seconds()

    def stored(self, answer: tuple[bytes, ...]) -> None:
        """See `stor.http.fast_path.Uploader`."""
        upload, self._storing = self._storing, None
        plain = self.persistent and self._direct and not (self.ahead_bytes or self._half_closed)
        if plain and not self.site.draining:
            self._rest()
            self._send_now(answer)
        else:
            self.transport.write(b"".join(answer))
            self.requestDone(upload)

    def start_over(self, request: bytes) -> None:
        """See `stor.http.fast_path.Uploader`."""
        self._storing = None
        self._rest()
        self.feed(request + self.forget())
        self.parse()

    def _rest(self) -> None:
        """No request is under way any more."""
        self.requests.clear()
        self._handlingRequest = False
        self.resetTimeout()

    @property
    def stopped(self) -> bool:
        """See `Parser.stopped`."""
        return self.lingering or self._intake_paused or self._unread is not None

    def parsed(self) -> None:
        """See `Parser.parsed`."""
        self._settle()
        self._end_when_served()

    def take_body(self, data: bytes) -> None:
        """See `Parser.take_body`."""
        if not self.lingering:
            self.requests[-1].handleContentChunk(data)

    def too_large(self) -> None:
        """See `Parser.too_large`."""
        limit = self.totalHeadersSize
        line = f"request line and headers are too large: at most {limit} bytes are accepted"
        self.refuse(Answer.line(431, line))

    def _settle(self) -> None:
        """Read on or not, and say what the connection waits for and how much it holds."""
        self.hold(self._body_waiting_bytes)
        if self.lingering:
            self.site.wait(self, Wait.END)
            return
        busy = self._handlingRequest or not self.line_mode
        under_way = self.has_turn or self._unread is not None
        if busy or under_way or self._waitingForTransport:
            self.site.wait(self, None)
        else:
            self.site.wait(self, Wait.HEAD if self.in_head else Wait.REQUEST)
        ahead = under_way or (busy and self.ahead_bytes > 0)
        if self._intake_paused or ahead or (self._waitingForTransport and not busy):
            self._networkProducer.pauseProducing()
        else:
            self._networkProducer.resumeProducing()

    def hold(self, waiting_bytes: int) -> None:
        """Count what the connection holds: `waiting_bytes` are read and not written yet."""
        self._body_waiting_bytes = waiting_bytes
        count = waiting_bytes + self.ahead_bytes + len(self._unread or b"")
        self.site.buffers.hold(self, count + self._unsent_bytes)

    @property
    def _unsent_bytes(self) -> int:
        """How much has been written that the kernel has not taken."""
        unsent: int = len(self._socket.dataBuffer) + self._socket._tempDataLen
        return unsent if self._direct or not self._answered else unsent + _TLS_BYTES

    def cut(self) -> None:
        """End the connection now: it holds what others need."""
        self.transport.abortConnection()

    def leave(self) -> None:
        """End a connection that waits for its client: others need its place."""
        if self.lingering:
            self.transport.abortConnection()
        elif self.in_head:
            self.refuse(self.site.too_many(), TURNED_AWAY_SECONDS)
        else:
            self.loseConnection()

    def end_within(self, seconds: float) -> None:
        """End the connection of a client that has been answered and still sends."""
        if self._linger_end is not None and self._linger_end.active():
            self._linger_end.reset(seconds)

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Take the request line or a header line."""
        if self.lingering:
            return
        if not self.requests and self.persistent and line and self._is_for_others(line):
            self._leave(line)
        elif self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self.too_large()
        else:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take a part of the body."""
        if self.lingering:
            return
        if not self._handlingRequest and self._pace.body_is_slow(len(data)):
            self.refuse(_SLOW)
            return
        super().rawDataReceived(data)

    def allHeadersReceived(self) -> None:  # noqa: N802
        """Let the request decide before its body comes, and before any 100 Continue."""
        super().allHeadersReceived()
        self._pace.head_ended()
        request = self.requests[-1]
        self.persistent = self.checkPersistence(request, self._version)
        if self.site.draining:
            self.setTimeout(self.site.timeOut)
        if self.site.draining or self.site.crowded or self.turned_away:
            self.persistent = False
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        fault = head_fault(self._command, self._path, hosts, self._version)
        if fault is not None:
            self.refuse(fault)
            return
        if self._is_turned_away(self._path):
            self.refuse(self.site.too_many(), TURNED_AWAY_SECONDS)
            return
        request.begin(self._command, self._path, self._version, self.length)

    def allContentReceived(self) -> None:  # noqa: N802
        """The request is complete."""
        if not self.lingering:
            super().allContentReceived()

    def requestDone(self, request: StorRequest | PlainUpload) -> None:  # noqa: N802
        """An answer is complete; the request may not be, and the client may not have taken it."""
        # A pause may have ended after the body: what Twisted saved then is no time-out.
        self._savedTimeOut = self.site.timeOut
        if self._transferDecoder is not None:
            self.requests.remove(request)
            self._linger()
        elif self._socket.connected and (self._unsent_bytes or not self._direct):
            # Many pipelined requests wait, or their answers would fill the memory; and a client
            # that takes none of its last answer has no longer than one that says nothing.
            self._answered = request
            self.setTimeout(self.site.timeOut)
            self.await_room()
        else:
            self._next(request)

    def _next(self, request: StorRequest | PlainUpload) -> None:
        """The client has taken the whole answer."""
        super().requestDone(request)
        if self.persistent:
            if self.site.draining:
                self.setTimeout(LAST_REQUEST_SECONDS)
            self.parse_soon()
            self._end_when_served()

    @property
    def socket_fd(self) -> int | None:
        """The socket, where what it is given reaches the client as it is."""
        return self.transport.fileno() if self._direct else None

    def await_room(self) -> None:
        """Pause the producer until the socket has taken all that was written, and takes more.

        As if the transport's buffer were full: FileDescriptor.doWrite resumes it.
        """
        self._socket.producerPaused = True
        # Not ours at once: what TLS puts between passes on only what it has stopped.
        self._socket.producer.pauseProducing()
        self._socket.startWriting()

    def loseConnection(self) -> None:  # noqa: N802
        """Send what is written and close."""
        super().loseConnection()
        if ISSLTransport.providedBy(self.transport) and self._linger_end is None:
            # Twisted would wait for the client's close_notify, which need not come (RFC 8446, 6.1).
            self._linger_end = self.callLater(TLS_CLOSE_SECONDS, self._socket.abortConnection)

    def refuse(self, answer: Answer, linger_seconds: float = LINGER_SECONDS) -> None:
        """Answer what is no request, and end the connection."""
        if self.lingering:
            return
        self.lingering = True
        reason = HTTPStatus(answer.status).phrase.encode()
        if getattr(self, "_command", b"") == b"HEAD":
            # Its length stays.
            answer = attrs.evolve(answer, body=b"", headers=answer.fields)
        request_id = self._tell_refused(answer)
        headers = Headers()
        for name, value in (
            (b"Server", SERVER),
            (b"Date", datetimeToString()),
            (b"Connection", b"close"),
            (b"X-Request-ID", request_id.encode("ascii")),
            *((name.encode(), value.encode()) for name, value in answer.fields.items()),
        ):
            headers.addRawHeader(name, value)
        self.writeHeaders(b"HTTP/1.1", b"%d" % answer.status, reason, headers)
        self.transport.write(answer.body)
        self._linger(linger_seconds)

    def _tell_refused(self, answer: Answer) -> str:
        """Tell of what is refused, a request or not yet one; what that is called."""
        request: StorRequest | None = self.requests[-1] if self.requests else None
        if request is not None and request.refused(answer):
            return request.request_id
        request_id = self.site.request_ids.next()
        method, target = getattr(self, "_command", b""), target_text(getattr(self, "_path", b"-"))
        sent = len(answer.body)
        self.site.served(Served.unbegun(self.peer, method, target, answer.status, sent, request_id))
        return request_id

    def timeoutConnection(self) -> None:  # noqa: N802
        """Nothing has come for too long."""
        allowed = self.timeOut or 0.0
        left = self._answered_seconds + allowed - self.site.clock.seconds()
        if left > 0:
            self.setTimeout(left)
            self.timeOut = allowed  # again, from the next byte on
        elif self._storing is not None:
            self.setTimeout(self.site.timeOut)  # it has all come, and the disks take long
        elif self.lingering:
            self.transport.abortConnection()
        elif self.turned_away and self.idle:
            self.refuse(self.site.too_many(), TURNED_AWAY_SECONDS)
        elif self.site.draining and self.idle:
            self.loseConnection()
        else:
            super().timeoutConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:  # noqa: N802
        self.refuse(Answer.line(400, "bad request: this is not HTTP/1.1 as RFC 9112 has it"))

    def _send_now(self, answer: tuple[bytes | bytearray, ...]) -> None:
        """Send without a turn of the reactor, where nothing waits to be sent before."""
        transport = self.transport
        sent = 0
        if self._direct and not (transport.dataBuffer or transport._tempDataBuffer):
            try:
                sent = transport.socket.sendmsg(answer)
            except OSError:
                sent = 0  # the ordinary way meets it again, and knows what to do about it
        if sent < sum(map(len, answer)):
            transport.write(b"".join(answer)[sent:])
            self.await_room()
        elif self in self.site.at_rest:
            self.site.at_rest.move_to_end(self)
        else:
            self.site.wait(self, Wait.REQUEST)

    def _end_when_served(self) -> None:
        under_way = self._handlingRequest or self.stopped or self.has_turn
        if self._half_closed and (self.lingering or not under_way):
            self.transport.loseConnection()

    def _is_for_others(self, line: bytes) -> bool:
        elsewhere = self.site.elsewhere
        if elsewhere is None:
            return False
        target = line.rpartition(b" ")[0].partition(b" ")[2]
        head = self.ahead(self.totalHeadersSize)
        return not self._is_turned_away(target) and elsewhere.answers(self, line, head)

    def _is_turned_away(self, target: bytes) -> bool:
        return self.turned_away and name_of(path_of(target) or b"/") not in ALWAYS_ANSWERED

    def _leave(self, line: bytes) -> None:
        """Hand the connection over, from this request line on, once all answers are sent."""
        self._unread = bytearray(line + self.delimiter + self.forget())
        # In case that nobody takes it.
        self._command = line.partition(b" ")[0]
        self._leaving_since = self.site.clock.seconds()
        self._settle()
        self._leave_soon()

    def _leave_soon(self, seconds: float = 0.0) -> None:
        # Not now: the transport may be in the middle of reading.
        self.callLater(seconds, self._hand_over)

    def _hand_over(self) -> None:
        # All answers before are sent: no request is parsed before its time (`requestDone`).
        if self._unread is None or self.site.elsewhere is None:
            return
        port = getattr(self.getPeer(), "port", 0)
        handed = Handed(bytes(self._unread), self.peer, port, self._pace.head_seconds)
        given = self.site.elsewhere.give(self, handed)
        late = self.site.clock.seconds() - self._leaving_since >= HAND_OVER_SECONDS
        if given is Given.GONE:
            self.setTimeout(None)
            self._forget()
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
        self.dataReceived(unread)

    def _linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Send what is written, say that it is all, and read until the client has seen it."""
        self.lingering = True
        self.forget()
        self._networkProducer.unregisterProducer()
        if not ISSLTransport.providedBy(self.transport):
            # TLS has no half-close; there the length of the answer says where it ends.
            self.transport.loseWriteConnection()
        self._networkProducer.resumeProducing()
        self.setTimeout(min(LINGER_IDLE_SECONDS, seconds))
        self._linger_end = self.callLater(seconds, self.transport.abortConnection)
        self._pace.begin_window()
        self._settle()
