"""Everything that touches the less public surface of twisted.web.

Twisted reads a body into memory or `$TMPDIR` before anybody is asked (twisted#4688), says 100
Continue before anybody is asked, and closes a connection with unread bytes on it, which makes the
kernel send a reset that can overtake the answer. This file is the one place that does otherwise.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from stor import __version__
from stor.web.answer import Answer
from stor.web.upload import Head, Upload

T = TypeVar("T")

#: After an answer that came before the end of the body: so long is the rest read and thrown away,
#: in all and without a byte. Closing at once would reset the connection, and the reset can
#: destroy the answer before the client has read it (RFC 9112, 9.6).
LINGER_SECONDS = 30.0
LINGER_IDLE_SECONDS = 5.0

#: A body that nobody asked for (of a GET) is read up to this size.
UNWANTED_BODY_BYTES = 1024 * 1024

_SERVER = f"Stor/{__version__}".encode()


class Reception(Protocol):
    """What decides on a request as soon as its headers are complete."""

    def receive(self, request: "StorRequest") -> Upload | Answer | None:
        """An upload to give the body to, an answer to give at once, or `None`: wait for the end."""


class StorRequest(Request):
    """A request whose body is never stored, and that can be answered before its body has ended."""

    log = Logger()
    defaultContentType = None

    def __init__(self, channel: "StorChannel", *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.upload: Upload | None = None
        self.complete = False
        self._unwanted_bytes = 0
        self._length: int | None = 0
        self._awaits_continue = False

    @property
    def name(self) -> str:
        """The path as text, percent-decoded, without the slash before it and one after it."""
        # Latin-1 gives every byte a character, so that no path fails before it is looked at.
        path = self.path[1:]
        return unquote_to_bytes(path.removesuffix(b"/") or path).decode("latin-1")

    @property
    def gone(self) -> bool:
        """Whether the client has disconnected."""
        return bool(self._disconnected)

    def begin(self, method: bytes, target: bytes, version: bytes, length: int | None) -> None:
        """The headers are complete: decide before the body comes."""
        self.method, self.uri, self.clientproto = method, target, version
        self.path = _path(target)
        self.content = BytesIO()
        self.site = self.channel.site
        self.complete = length == 0
        self._length = length
        expect = self.requestHeaders.getRawHeaders(b"Expect", [])
        self._awaits_continue = (
            expect[:1] != []
            and expect[0].lower() == b"100-continue"
            and version == b"HTTP/1.1"
            and not self.complete
        )
        decision = self.site.reception.receive(self)
        if isinstance(decision, Upload):
            self.upload = decision
            decision.answer.addCallback(self._answered)
            decision.start()
        elif isinstance(decision, Answer):
            self.answer_early(decision)
        elif length is not None and length > UNWANTED_BODY_BYTES:
            self._refuse_body()
        else:
            self.proceed()

    def head(self) -> Head:
        """What an upload needs to know."""
        return Head(self.name, self.getHeader(b"authorization"), self._length)

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """A piece of the body, in the order of the wire."""
        if self.upload is not None:
            self.upload.receive(data)
            return
        self._unwanted_bytes += len(data)
        if self._unwanted_bytes > UNWANTED_BODY_BYTES:
            self._refuse_body()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802
        """The body is complete."""
        self.complete = True
        if self.upload is not None:
            self.upload.end()
        super().requestReceived(command, path, version)

    def process(self) -> None:
        """Hand the request to the routes."""
        self.path = _path(self.uri)
        self.prepath: list[bytes] = []
        # One segment, whatever is in it: Werkzeug folds slashes, and then `//status` is `/status`.
        self.postpath = [quote(self.name, safe="").encode()]
        try:
            self.render(self.site.resource)
        except BaseException:
            self.processingFailed(Failure())

    def getRequestHostname(self) -> bytes:  # noqa: N802
        """No answer depends on the Host header, so no Host header can make a route fail."""
        return b"stor"

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """The client is gone."""
        self.abandon()
        super().connectionLost(reason)

    def abandon(self) -> None:
        """Nothing more of the body will come."""
        if self.upload is not None and not self.complete:
            self.upload.abandon()

    def proceed(self) -> None:
        """Ask for the body, if the client waits to be asked (RFC 9110, 10.1.1)."""
        if self._awaits_continue and not self.gone:
            self._awaits_continue = False
            self.channel.proceed()

    def pause(self) -> None:
        """Read no more of the body for now."""
        if not self.gone:
            self.channel.pause_intake()

    def resume(self) -> None:
        """Read on."""
        if not self.gone:
            self.channel.resume_intake()

    def apply(self, answer: Answer) -> bytes:
        """Set status and headers for an answer; its body, still to be written."""
        self.set_head(answer.status, answer.headers)
        if answer.status != 304:  # whose Content-Length would be that of the sample (RFC 9110, 8.6)
            self.setHeader(b"Content-Type", answer.content_type.encode())
            self.setHeader(b"Content-Length", b"%d" % len(answer.body))
        return answer.body

    def set_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Set the status and exactly these headers, with those that every answer has."""
        self.responseHeaders = Headers()
        self.setHeader(b"Server", _SERVER)
        self.setHeader(b"Date", datetimeToString())
        if not self.gone and not self.channel.persistent:
            self.setHeader(b"Connection", b"close")
        self.setResponseCode(status)
        for name, value in headers.items():
            self.setHeader(name.encode(), value.encode())

    def answer_early(self, answer: Answer) -> None:
        """Answer now, whatever of the body is still to come; the connection ends with it."""
        if self.complete or self.gone or self.finished or self.channel.lingering:
            return
        self.channel.persistent = False
        self.write(self.apply(answer))
        self.finish()

    def abort(self) -> None:
        """Cut the connection, so that nobody can take the answer for whole."""
        if not self.gone:
            self.channel.transport.abortConnection()

    def _answered(self, answer: Answer) -> Answer:
        self.answer_early(answer)
        return answer

    def _refuse_body(self) -> None:
        method = self.method.decode("ascii")
        self.answer_early(Answer.line(413, f"too large: {method} is expected to have no body"))


class StorChannel(HTTPChannel):
    """One connection: HTTP/1.1 with pauses, early answers, and clear words for bad requests."""

    site: "StorSite"

    def __init__(self) -> None:
        super().__init__()
        self.lingering = False
        self._linger_end: IDelayedCall | None = None
        self._intake_paused = False

    def connectionMade(self) -> None:  # noqa: N802
        """Take part in the site's count of connections."""
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Leave the site's count of connections."""
        if self._linger_end is not None and self._linger_end.active():
            self._linger_end.cancel()
        super().connectionLost(reason)
        self.site.lost(self)

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
        """Read on."""
        self._intake_paused = False
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()
        if not self._handlingRequest:
            self.setTimeout(self.timeOut)

    def resumeProducing(self) -> None:  # noqa: N802
        """The client has taken what was written; that alone is no reason to read on."""
        super().resumeProducing()
        if self._intake_paused:
            self._networkProducer.pauseProducing()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Parse, or throw away what comes after the last answer."""
        if self.lingering:
            self.resetTimeout()
        else:
            super().dataReceived(data)

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
        if not self.lingering:
            super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: N802
        """A line is longer than all headers together may be."""
        if not self.lingering:
            self._refuse_headers()

    def allHeadersReceived(self) -> None:  # noqa: N802
        """Let the request decide before its body comes, and before any 100 Continue."""
        request = self.requests[-1]
        self.persistent = self.checkPersistence(request, self._version)
        if self.site.draining:
            self.persistent = False
        hosts = request.requestHeaders.getRawHeaders(b"Host", [])
        if len(hosts) > 1 or (not hosts and self._version == b"HTTP/1.1"):
            self.refuse(Answer.line(400, f"bad request: {len(hosts)} Host headers, expected one"))
            return
        request.begin(self._command, self._path, self._version, self.length)

    def allContentReceived(self) -> None:  # noqa: N802
        """The request is complete."""
        if not self.lingering:
            super().allContentReceived()

    def requestDone(self, request: StorRequest) -> None:  # noqa: N802
        """An answer is complete; the request may not be."""
        if self._transferDecoder is None:
            super().requestDone(request)
        else:
            self.requests.remove(request)
            self._linger()

    def refuse(self, answer: Answer) -> None:
        """Answer what is no request, and end the connection."""
        if self.lingering:
            return
        for request in self.requests:
            request.abandon()
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Connection": "close",
        }
        lines = [f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
        self._linger()

    def timeoutConnection(self) -> None:  # noqa: N802
        """Nothing has come for too long."""
        if self.lingering:
            self.transport.abortConnection()
        else:
            super().timeoutConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:  # noqa: N802
        self.refuse(Answer.line(400, "bad request: this is not HTTP/1.1 as RFC 9112 has it"))

    def _refuse_headers(self) -> None:
        limit = self.totalHeadersSize
        line = f"request line and headers are too large: at most {limit} bytes are accepted"
        self.refuse(Answer.line(431, line))

    def _linger(self) -> None:
        """Send what is written, say that it is all, and read until the client has seen it."""
        self.lingering = True
        self._networkProducer.unregisterProducer()
        if not ISSLTransport.providedBy(self.transport):
            # TLS has no half-close; there the length of the answer says where it ends.
            self.transport.loseWriteConnection()
        self._networkProducer.resumeProducing()
        self.setTimeout(LINGER_IDLE_SECONDS)
        self._linger_end = self.callLater(LINGER_SECONDS, self.transport.abortConnection)


class StorSite(Site):
    """The listening side: makes channels, and knows them all."""

    # Not the factory of `twisted.web`, which would offer HTTP/2 if it could: all of this is
    # HTTP/1.1.
    protocol = StorChannel
    requestFactory = StorRequest

    def __init__(self, resource: IResource, reception: Reception, reactor: IReactorTime) -> None:
        super().__init__(resource, parsePOSTFormSubmission=False, reactor=reactor)
        self.reception = reception
        self.channels: set[StorChannel] = set()
        self.draining = False
        self._drained: Deferred[None] | None = None

    def buildProtocol(self, address: object) -> StorChannel:  # noqa: N802
        """Make the channel of a new connection."""
        channel: StorChannel = super().buildProtocol(address)
        channel.site = self
        channel.requestFactory = self.requestFactory
        return channel

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """Offer HTTP/1.1 alone when TLS negotiates (RFC 7301)."""
        return [b"http/1.1"]

    def startFactory(self) -> None:  # noqa: N802
        """Do without Twisted's log file and its timer."""

    def stopFactory(self) -> None:  # noqa: N802
        """Do without Twisted's log file and its timer."""

    def log(self, request: Request) -> None:
        """Do without Twisted's access log."""

    def drain(self) -> Deferred[None]:
        """Let what runs finish, and end every connection with it; fires when the last is gone."""
        self.draining = True
        for channel in list(self.channels):
            if channel.idle:
                channel.loseConnection()
            else:
                channel.persistent = False
        self._drained = Deferred()
        if not self.channels:
            self._drained.callback(None)
        return self._drained

    def cut(self) -> None:
        """End every connection now."""
        for channel in list(self.channels):
            channel.transport.abortConnection()

    def lost(self, channel: StorChannel) -> None:
        """A connection has ended."""
        self.channels.discard(channel)
        if self._drained is not None and not self._drained.called and not self.channels:
            self._drained.callback(None)


def shield(inner: Deferred[T]) -> Deferred[T]:
    """A Deferred with the outcome of `inner` that can be cancelled without cancelling `inner`.

    Klein cancels a handler when its client disconnects; work in a thread cannot be cancelled, and
    what it opened is to be closed by whoever waits for it.
    """
    outer: Deferred[T] = Deferred(lambda _: None)

    def pass_on(outcome: Any) -> None:
        if not outer.called:
            outer.callback(outcome)
        elif isinstance(outcome, Failure):
            _log.failure("After the client was gone", outcome)

    inner.addBoth(pass_on)
    return outer


def _path(target: bytes) -> bytes:
    """The path of a request target in origin-form or absolute-form (RFC 9112, 3.2)."""
    path = target.partition(b"?")[0]
    if not path.startswith(b"/"):
        scheme, separator, rest = path.partition(b"://")
        if separator and scheme.lower() in (b"http", b"https"):
            path = b"/" + rest.partition(b"/")[2]
    return path


_log = Logger()
_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large"}
