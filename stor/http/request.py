"""A request: decided as soon as its headers are complete, its body never stored.

Twisted reads a body into memory or `$TMPDIR` before anybody is asked (twisted#4688).
"""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Request

from stor.digest import is_digest
from stor.http.access import Served, word
from stor.http.answer import INTERNAL_ERROR, SERVER, Answer
from stor.http.fast_path import FastPath
from stor.http.pace import Buffers
from stor.http.parser import is_host
from stor.http.proxies import Proxies
from stor.http.upload import Head
from stor.zero_copy import SplicePipe, SplicePipes

#: How many connections there are at once.
MAX_CONNECTIONS = 10_000

#: A body that nobody asked for (of a GET) is read up to this size.
UNWANTED_BODY_BYTES = 1024 * 1024

#: The paths that are no samples, without their slash, and what each is called.
PAGES = {
    "": "root",
    "status": "status",
    "metrics": "metrics",
    "missing": "missing",
    "index": "index",
    "batch": "batch",
    "landed": "landed",
}

#: Behind a sample's sha: its upload, which can be resumed.
UPLOAD = "/upload"

#: What browsers and crawlers ask every site for: nobody has misspelt a sha.
_ASKED_OF_EVERY_SITE = re.compile(
    r"favicon\.(ico|png|svg)|apple-touch-icon[a-z0-9-]*\.png|(robots|humans|security|ads)\.txt|"
    r"sitemap\.xml|browserconfig\.xml|(site|manifest)\.(webmanifest|json)|\.well-known(/.*)?"
)

#: The pages that are there also when there are too many connections for all else.
ALWAYS_ANSWERED = frozenset({"status", "metrics"})


class Intake(Protocol):
    """What a body is given to."""

    #: Fires once, with an `Answer`, or with `None` when the routes have to be asked.
    answer: Deferred[Any]

    def start(self) -> None:
        """Take the decisions that come before the body."""

    def receive(self, data: bytes) -> None:
        """Take a piece of the body."""

    def end(self) -> None:
        """The body is complete."""

    def abandon(self) -> None:
        """Nothing more will come."""


class Reception(Protocol):
    """What decides on a request as soon as its headers are complete."""

    def receive(self, request: "StorRequest") -> Intake | Answer | None:
        """What to give the body to, an answer to give at once, or `None`: wait for the end."""

    def answer(self, request: "StorRequest") -> Deferred[bytes] | None:
        """What a complete request is answered with past the routes, never a failure.

        `None` when the routes have to be asked.
        """


@attrs.frozen(eq=False)
class Serving:
    """Who answers, as a configuration says.

    `proxies` are those whose word is taken for who the client is.
    """

    resource: IResource
    reception: Reception
    fast_path: FastPath | None = None
    proxies: Proxies = attrs.field(factory=Proxies)
    max_connections: int = MAX_CONNECTIONS


class StorRequest(Request):
    """A request whose body is never stored, and that can be answered before its body has ended."""

    log = Logger()
    defaultContentType = None

    def __init__(self, channel: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.intake: Intake | None = None
        self.complete = False
        self.aborted = False
        self._decided: Answer | None = None
        self._unwanted_bytes = 0
        self._length: int | None = 0
        self._awaits_continue = False
        #: Where the sample came from, or is now: a disk's root, roots with commas, or S3.
        self.storage: str | None = None
        #: As whom the client has asked, once somebody has looked.
        self.asked_as = "-"
        #: What this request is called in the log, and in those of its client and of proxies.
        self.request_id = "-"
        self._causes: tuple[str, ...] = ()
        self._begun_seconds = 0.0
        self._received_bytes = 0
        self._peer = "-"
        self._told = True

    @property
    def name(self) -> str:
        """The path as text, percent-decoded, without the slash before it and one after it."""
        return name_of(self.path)

    @property
    def upload(self) -> str | None:
        """The sha of the sample whose upload it asks for, if it does."""
        return upload_of(self.name)

    @property
    def address(self) -> str:
        """Where it comes from."""
        return self._peer

    @property
    def gone(self) -> bool:
        """Whether the client has disconnected."""
        return bool(self._disconnected)

    def begin(self, method: bytes, target: bytes, version: bytes, length: int | None) -> None:
        """The headers are complete: decide before the body comes."""
        self.method, self.uri, self.clientproto = method, target, version
        self.path = path_of(target) or b"/"
        self.content = BytesIO()
        self.site = self.channel.site
        # It ends as it began, whatever configuration is in force by then.
        self._serving: Serving = self.site.serving
        self._begun_seconds = self.site.clock.seconds()
        forwarded = self.requestHeaders.getRawHeaders("X-Forwarded-For", [])
        self._peer = self._serving.proxies.client(self.channel.peer, forwarded)
        self.request_id = self.site.request_ids.given(self.getHeader(b"x-request-id"))
        self._told = False
        self.complete = length == 0
        self._length = length
        expect = self.requestHeaders.getRawHeaders(b"Expect", [])
        self._awaits_continue = (
            expect[:1] != []
            and expect[0].lower() == b"100-continue"
            and version == b"HTTP/1.1"
            and not self.complete
        )
        decision = self._serving.reception.receive(self)
        if isinstance(decision, Answer):
            self._decided = decision
            self.answer_early(decision)
        elif decision is not None:
            self.intake = decision
            decision.answer.addCallback(self._answered)
            decision.start()
        elif length is not None and length > UNWANTED_BODY_BYTES:
            self._refuse_body()
        else:
            self.proceed()

    def head(self) -> Head:
        """What an upload needs to know."""
        return Head(
            self.name, self.getHeader(b"authorization"), self._length, self._peer, self.tried
        )

    def tried(self, user: bytes) -> None:
        """Somebody has looked as whom the client asks; it may be refused yet."""
        self.asked_as = word(user)

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """A piece of the body, in the order of the wire."""
        self._received_bytes += len(data)
        if self.intake is not None:
            self.intake.receive(data)
            return
        self._unwanted_bytes += len(data)
        if self._unwanted_bytes > UNWANTED_BODY_BYTES:
            self._refuse_body()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802
        """The body is complete."""
        self.complete = True
        if self.intake is None:
            super().requestReceived(command, path, version)
        else:
            self.intake.answer.addCallback(self._taken, command, path, version)
            self.intake.end()

    def process(self) -> None:
        """Hand the request to the routes, unless it was decided when its headers were complete."""
        if self._decided is not None:
            self._respond(self._decided)
            return
        self.path = path_of(self.uri) or b"/"
        try:
            self._ask()
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Failure) -> None:  # noqa: N802
        """A bug, in what answers or in what says that it has failed."""
        self.log.failure("{method} {path}", reason, method=self.method, path=self.path)
        if self.startedWriting:
            self.abort()
        else:
            self._respond(INTERNAL_ERROR)

    def getRequestHostname(self) -> bytes:  # noqa: N802
        """No answer depends on the Host header, so no Host header can make a route fail."""
        return b"stor"

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """The client is gone."""
        self._tell("cut")
        super().connectionLost(reason)
        self.abandon()

    def write(self, data: bytes) -> None:
        """Send a part of the answer, after its head, which says whether the connection goes on."""
        if not (self.startedWriting or self.gone or self.channel.persistent):
            self.setHeader(b"Connection", b"close")
        super().write(data)

    def finish(self) -> None:
        """The answer is complete."""
        super().finish()
        self._tell("done")

    def abandon(self) -> None:
        """Nothing more of the body will come."""
        if self.intake is not None and not self.complete:
            self.intake.abandon()

    def refused(self, answer: Answer) -> bool:
        """Another answer than its own ends the connection; whether the request had begun."""
        self.abandon()
        begun = not self._told
        self.sentLength = len(answer.body)
        self._tell("done", answer.status)
        return begun

    def proceed(self) -> None:
        """Ask for the body, if the client waits to be asked (RFC 9110, 10.1.1)."""
        if self._awaits_continue and not self.gone:
            self._awaits_continue = False
            self.channel.proceed()

    def inform(self, headers: Mapping[str, str]) -> None:
        """Say that an upload can be resumed, and how far it is: 104, while nothing else is said."""
        if self.clientproto == b"HTTP/1.1" and not (self.gone or self.startedWriting):
            fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"HTTP/1.1 104 Upload Resumption Supported\r\n{fields}\r\n"
            self.channel.transport.write(head.encode("ascii"))

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
        self.set_head(answer.status, answer.fields)
        self._causes = answer.causes
        if answer.storage is not None:
            self.storage = answer.storage
        return answer.body

    def set_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Set the status and exactly these headers, with those that every answer has."""
        self.responseHeaders = Headers()
        self.setHeader(b"Server", SERVER)
        self.setHeader(b"Date", datetimeToString())
        self.setHeader(b"X-Request-ID", self.request_id.encode("ascii"))
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

    def splice_pipe(self, splice_pipes: SplicePipes) -> SplicePipe | None:
        """See `stor.http.download.Client`."""
        socket_fd = None if self.gone else self.channel.socket_fd
        return None if socket_fd is None else splice_pipes.take(socket_fd)

    @property
    def chunk_bytes(self) -> int:
        """See `stor.http.download.Client`."""
        buffers: Buffers = self.site.buffers
        return buffers.chunk_bytes

    def hold(self, count: int) -> None:
        """See `stor.http.download.Client`."""
        if not self.gone:
            self.channel.hold(count)

    def await_room(self) -> None:
        """See `stor.http.download.Client`."""
        if not self.startedWriting:
            self.write(b"")  # the head
        self.channel.await_room()

    def passed(self, count: int) -> None:
        """See `stor.http.download.Client`."""
        self.sentLength += count

    def abort(self) -> None:
        """Cut the connection, so that nobody can take the answer for whole."""
        if not self.gone:
            self.aborted = True
            self.channel.transport.abortConnection()

    def _tell(self, outcome: str, status: int | None = None) -> None:
        """Tell, once, what became of the request."""
        if self._told:
            return
        self._told = True
        if status is None:
            status = self.code if self.startedWriting else 0
        self.site.served(
            Served(
                self._peer,
                self.method.decode("ascii"),
                target_text(self.uri),
                status,
                self.sentLength,
                self._received_bytes,
                self.site.clock.seconds() - self._begun_seconds,
                outcome,
                route_of(self.name),
                self.storage,
                self._causes,
                self.asked_as,
                word(self.getHeader(b"range")),
                self.request_id,
            )
        )

    def _ask(self) -> None:
        answering = self._serving.reception.answer(self)
        if answering is not None:
            answering.addCallback(self._end).addErrback(self.processingFailed)
            return
        self.prepath: list[bytes] = []
        # One segment, whatever is in it: Werkzeug folds slashes, and then `//status` is `/status`.
        upload = upload_of(self.name)
        parts = [self.name] if upload is None else [upload, UPLOAD[1:]]
        self.postpath = [quote(part, safe="").encode() for part in parts]
        self.render(self._serving.resource)

    def _end(self, body: bytes) -> None:
        if not (self.gone or self.aborted):
            self.write(body)
            self.finish()

    def _answered(self, answer: Answer | None) -> Answer | None:
        if answer is not None:
            self.answer_early(answer)
        return answer

    def _taken(self, answer: Answer | None, command: bytes, path: bytes, version: bytes) -> None:
        if answer is not None:
            self._respond(answer)
        elif not self.gone:
            super().requestReceived(command, path, version)

    def _respond(self, answer: Answer) -> Answer:
        if not self.gone and not self.finished:
            self.write(self.apply(answer))
            self.finish()
        return answer

    def _refuse_body(self) -> None:
        method = self.method.decode("ascii")
        self.answer_early(Answer.line(413, f"too large: {method} is expected to have no body"))


def target_text(target: bytes) -> str:
    """The target as text that ends no line of a log."""
    text = target.decode("ascii", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


def name_of(path: bytes) -> str:
    """A path as text, percent-decoded, without the slash before it and one after it."""
    # Latin-1 gives every byte a character, so that no path fails before it is looked at.
    rest = path[1:]
    return unquote_to_bytes(rest.removesuffix(b"/") or rest).decode("latin-1")


def route_of(name: str) -> str:
    """What a request for `name` is counted as: a page's name, `sample` or `other`."""
    page = PAGES.get(name) or ("upload" if upload_of(name) is not None else None)
    return page or ("other" if _ASKED_OF_EVERY_SITE.fullmatch(name) else "sample")


def upload_of(name: str) -> str | None:
    """The sha of the sample whose upload has this name, if it is one."""
    sha = name.removesuffix(UPLOAD)
    return sha if sha != name and is_digest(sha) else None


def needs_writer(line: bytes, rest: bytes) -> bool:
    """Whether the request that begins with `line` is for the process that writes.

    What reads a sample is not, nor what is no request; nor `/`, unless the head in `rest` may ask
    for the page. How far an upload is, that process knows.
    """
    method, _, target = line.rpartition(b" ")[0].partition(b" ")
    path = path_of(target)
    if path is None:
        return False
    if method not in (b"GET", b"HEAD"):
        return True
    name = name_of(path)
    head, end, _ = rest.partition(b"\r\n\r\n")
    if upload_of(name) is not None:
        return True
    return name in PAGES and not (name == "" and end and b"text/html" not in head.lower())


def head_fault(
    method: bytes, target: bytes, hosts: Sequence[bytes], version: bytes
) -> Answer | None:
    """What is said to a request that names nothing here, or not one host (RFC 9112, 3.2)."""
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        return Answer.line(400, f"bad request: {len(hosts)} Host headers, expected one")
    if not all(map(is_host, hosts)):
        return Answer.line(400, "bad request: Host: expected a host, or a host and a port")
    if path_of(target) is not None:
        return None
    # RFC 9110, 9.3.6 and 9.3.7: of the whole server, and of another one.
    if method == b"CONNECT" or (method == b"OPTIONS" and target == b"*"):
        allowed = "GET, HEAD, POST, PUT"
        line = f"{method.decode('ascii')} is not allowed here, only {allowed}"
        return Answer.line(405, line, allow=allowed)
    return Answer.line(400, "bad request: the target is no path and no http URL")


def path_of(target: bytes) -> bytes | None:
    """The path of a request target in origin-form or absolute-form (RFC 9112, 3.2), else `None`."""
    path = target.partition(b"?")[0]
    if path.startswith(b"/"):
        return path
    scheme, separator, rest = path.partition(b"://")
    authority, _, rest = rest.partition(b"/")
    # RFC 9110, 4.2.1: without a host it is no http URL.
    named = is_host(authority) and authority[:1] not in (b"", b":")
    if separator and named and scheme.lower() in (b"http", b"https"):
        return b"/" + rest
    return None
