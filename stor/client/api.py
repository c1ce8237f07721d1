"""A Stor, as its clients see it: one request each, tried again where that can help."""

import base64
import errno
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import attrs
from hyperlink import URL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, _HTTP11ClientFactory
from twisted.web.http_headers import Headers

from stor import __version__
from stor.client.listing import (
    INDEX_BYTES,
    PAGE,
    Enough,
    Landed,
    LandedLines,
    Listed,
    index_page,
    is_cursor,
)
from stor.client.transfer import PARTS_BYTES, Body, Parts, Receiver, Sending, Sink, Watch
from stor.digest import Digest

T = TypeVar("T")

CONNECT_SECONDS = 10.0

#: A request on which nothing moves for this long is tried again: longer than Stor needs to finish
#: an upload that a hung disk has caught.
IDLE_SECONDS = 60.0

#: For how long what may still succeed is tried again.
RETRY_SECONDS = 120.0

#: The first wait before another attempt; each is twice as long as the one before, up to the last.
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 15.0

CONNECTIONS = 16

#: How much of an answer that is no sample is kept.
_LINE_BYTES = 4096

#: How many samples one question is about.
ASKED = 10_000

_FOR_NOW = (408, 429, 502, 503, 504)

#: What an older Stor says, which does not know `POST /missing` and `POST /batch`.
_NOT_KNOWN = (404, 405, 412)

#: An upload is not what it was when it was asked about: somebody else has resumed it.
_UPLOAD_CHANGED = (400, 404, 410)

STORED, MISSING, UNKNOWN = b"+", b"-", b"?"


class ClientError(Exception):
    """A request failed; the text is one line that says why."""


class NotStored(ClientError):
    """No storage holds the sample. Final: it is not tried again."""


class Refused(ClientError):
    """The server does not take or give this one, or not now; others may fare better."""


class ContentMismatch(Refused):
    """What was sent or received is not the sample that it was named for."""


class GivenUp(ClientError):
    """Nothing can be done at all: the server cannot be reached, or says no to everything."""


class Unauthorized(GivenUp):
    """No credentials, or wrong ones. Tried once."""


class CursorGone(ClientError):
    """A cursor is another host's, or from too long ago: what landed since is not known."""


class Stopped(ClientError):
    """The caller has stopped the client."""


class Again(ClientError):
    """Failed for now. Where the server is `unreachable`, there was no answer at all."""

    def __init__(
        self, line: str, retry_after_seconds: float = 0.0, *, unreachable: bool = False
    ) -> None:
        super().__init__(line)
        self.retry_after_seconds = retry_after_seconds
        self.unreachable = unreachable


@attrs.frozen
class Bytes:
    """A `Body` that is in memory."""

    content: bytes

    @property
    def size(self) -> int:
        """See `Body`."""
        return len(self.content)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body`."""
        return succeed(self.content[offset : offset + length])


class Whole:
    """A `Sink` in memory that verifies what it is given."""

    def __init__(self, digest: Digest) -> None:
        self.content = b""
        self._digest = digest

    @property
    def received_bytes(self) -> int:
        """See `Sink`."""
        return len(self.content)

    async def begin(self) -> None:
        """See `Sink`."""
        self.content = b""

    async def add(self, data: bytes, *, last: bool) -> None:
        """See `Sink`."""
        self.content += data
        if last and Digest.of(self.content) != self._digest:
            raise mismatch(self._digest)


def mismatch(digest: Digest) -> ContentMismatch:
    """What was received for `digest` is something else."""
    return ContentMismatch(f"what was received is not {digest}")


@attrs.frozen
class Credentials:
    """A user and a password."""

    user: str
    password: str = attrs.field(repr=False)

    @property
    def header(self) -> str:
        """For HTTP (RFC 7617)."""
        pair = f"{self.user}:{self.password}".encode("utf-8", "surrogateescape")
        return f"Basic {base64.b64encode(pair).decode('ascii')}"


@attrs.frozen
class _Answer:
    status: int
    content: bytes
    retry_after_seconds: float
    cursor: str
    #: What is said of an upload: whether it is `complete`, and its `offset`.
    upload: dict[str, str]

    @property
    def line(self) -> str:
        text = " ".join(self.content.decode("utf-8", "replace").split())
        return f"{self.status}: {text}" if text else f"{self.status}"


class _QuietFactory(_HTTP11ClientFactory):
    """A connection is no event for the log."""

    noisy = False


class Samples(ABC):
    """Samples that are small enough for memory, by way of `send` and `receive`."""

    async def put(self, content: bytes) -> Digest:
        """Store `content`; its name."""
        digest = Digest.of(content)
        await self.send(digest, Bytes(content))
        return digest

    async def get(self, digest: Digest) -> bytes:
        """The sample, verified."""
        whole = Whole(digest)
        await self.receive(digest, whole)
        return whole.content

    @abstractmethod
    async def send(self, digest: Digest, body: Body) -> bool:
        """Store a body under its name; whether it is new."""

    @abstractmethod
    async def receive(self, digest: Digest, sink: Sink) -> None:
        """Receive a sample."""


class Client(Samples):
    """A Stor at a URL. Everything is tried again that another attempt can mend.

    What may still succeed (503, a connection that is refused or breaks, no answer) is tried again
    for `retry_seconds`, not before `Retry-After` has passed. Raises `NotStored`, `Refused`,
    `Unauthorized`, `GivenUp` and, once `stop` was called, `Stopped`.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        credentials: Credentials | None = None,
        *,
        connections: int = CONNECTIONS,
        retry_seconds: float = RETRY_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
        trouble: Callable[[str], None] = lambda line: None,
        moved: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`url` has no credentials in it.

        `trouble` is told of each attempt that has failed for now, and `moved` of the bytes of
        samples that were sent or received.
        """
        self.url = url.rstrip("/")
        self._reactor = reactor
        self._headers = {"User-Agent": f"stor/{__version__}"}
        self._credentials = credentials
        if credentials is not None:
            self._headers["Authorization"] = credentials.header
        self._retry_seconds = retry_seconds
        self._idle_seconds = idle_seconds
        self._first_wait_seconds = first_wait_seconds
        self._trouble = trouble
        self._moved = moved
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool._factory = _QuietFactory
        self._pool.maxPersistentPerHost = connections
        # Less than the server's own limit, or requests would meet its end of the connection.
        self._pool.cachedConnectionTimeout = 30
        self._pool.retryAutomatically = False
        agent = Agent(reactor, connectTimeout=CONNECT_SECONDS, pool=self._pool)
        self._http = HTTPClient(agent)
        self._watches: set[Watch] = set()
        self._stopped = False
        self._knows_no_batch = False
        #: How often the server has said something else than "not now", and since when it has not.
        self._good_answers = 0
        self._failing_since: float | None = None

    async def send(self, digest: Digest, body: Body) -> bool:
        """Store a body under its name; whether it is new. Raises what `body` does.

        A large one that is cut off is resumed, if the server can do that, and tried again as long
        as more of it arrives.
        """
        if body.size <= PARTS_BYTES:
            return await self._until_done(lambda: self._send(digest, body))
        parts = Parts(body, self._moved)
        return await self._until_done(lambda: self._send_rest(digest, parts), parts.grown)

    async def receive(self, digest: Digest, sink: Sink) -> None:
        """Receive a sample. Raises what `sink` does."""
        await self._until_done(lambda: self._receive(digest, sink))

    async def batch(self, digests: Sequence[Digest], sink: Sink) -> bool:
        """Receive samples as one TAR, in any order; `False` where the server does not know that.

        Tried once: the caller receives by itself whatever has not come.
        Raises what `sink` does.
        """
        if self._stopped:
            raise Stopped("stopped")
        if self._knows_no_batch:
            return False
        body = Bytes(b"".join(digest.raw for digest in digests))
        headers = {"Content-Type": "application/octet-stream"}
        try:
            answer = await self._exchange(
                "POST", "batch?order=disk", body, sink, headers=headers, counted=True
            )
        except Again:
            return True
        self._knows_no_batch = answer.status in _NOT_KNOWN
        if answer.status == 401:
            raise self._failed(answer)
        return not self._knows_no_batch

    async def missing(self, digests: Sequence[Digest]) -> bytes:
        """For each of up to a million samples `STORED`, `MISSING` or `UNKNOWN`.

        What is unknown may be stored: the server cannot say at the moment.
        """
        return await self._until_done(lambda: self._missing(digests))

    async def index(self, after: Digest | None) -> list[Listed]:
        """The next samples that the server has, sorted; none at the end."""
        return await self._until_done(lambda: self._index(after))

    async def landed(self, cursor: str | None, wait_seconds: int = 0) -> Landed:
        """What was stored since `cursor`, some of it at a time; without one, where that is now.

        With `wait_seconds` it waits for the first. Raises `CursorGone`.
        """
        return await self._until_done(lambda: self._landed(cursor, wait_seconds))

    def stop(self) -> None:
        """Cut every request, and begin none any more."""
        self._stopped = True
        for watch in list(self._watches):
            watch.expire()

    async def close(self) -> None:
        """End idle connections."""
        await self._pool.closeCachedConnections()

    async def _until_done(
        self, attempt: Callable[[], Awaitable[T]], grown: Callable[[], bool] = lambda: False
    ) -> T:
        """Try until it is done. `grown` says whether an attempt that has failed has got on."""
        begun, good_before = self._reactor.seconds(), self._good_answers
        wait = self._first_wait_seconds
        while True:
            if self._stopped:
                raise Stopped("stopped")
            try:
                result = await attempt()
            except Again as problem:
                if self._stopped:
                    raise Stopped("stopped") from None
                now = self._reactor.seconds()
                if grown():
                    begun, wait, self._failing_since = now, self._first_wait_seconds, now
                elif self._failing_since is None:
                    self._failing_since = now
                seconds = max(problem.retry_after_seconds, wait * random.uniform(0.5, 1.0))
                # A server that has refused all others as long is not waited for once more.
                if now + seconds > min(begun, self._failing_since) + self._retry_seconds:
                    line = f"{problem}; tried for {self._retry_seconds:g} s"
                    alone = self._good_answers > good_before
                    hopeless = problem.unreachable and not alone
                    raise (GivenUp if hopeless else Refused)(line) from None
                self._trouble(str(problem))
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                await self.wait(seconds)
            except (NotStored, Refused, CursorGone):
                self._is_well()
                raise
            else:
                self._is_well()
                return result

    def _is_well(self) -> None:
        self._good_answers += 1
        self._failing_since = None

    async def wait(self, seconds: float) -> None:
        """Let time pass, until `stop` is called."""
        watch = Watch(self._reactor, seconds)
        self._watches.add(watch)
        await watch.expired
        self._watches.discard(watch)

    async def _send(self, digest: Digest, body: Body) -> bool:
        answer = await self._exchange("POST", f"{digest}", body, counted=True)
        if answer.status in (200, 201):
            return answer.status == 201
        if answer.status == 412:
            raise ContentMismatch(answer.line)
        raise self._failed(answer)

    async def _send_rest(self, digest: Digest, parts: Parts) -> bool:
        """Send what the server lacks of a large body; all of it where nothing is told."""
        answer = await self._exchange("HEAD", f"{digest}/upload", None)
        if answer.status == 401 or answer.status in _FOR_NOW:
            raise self._failed(answer)
        told = answer.upload if answer.status == 204 else {}
        if told.get("complete") == "?1":
            return parts.begun
        headers = {"Upload-Complete": "?1", "Upload-Length": f"{parts.body.size}"}
        method, path, offset = "POST", f"{digest}", 0
        if told.get("offset", "").isdigit() and int(told["offset"]) <= parts.body.size:
            method, path, offset = "PATCH", f"{digest}/upload", int(told["offset"])
            headers |= {"Upload-Offset": f"{offset}", "Content-Type": "application/partial-upload"}
        rest = parts.go_on(offset)
        answer = await self._exchange(method, path, rest, headers=headers, moved=parts.moved)
        if answer.status == 412:
            raise ContentMismatch(answer.line)
        if answer.status in (200, 201):
            return answer.status == 201
        if answer.status == 409 or (method == "PATCH" and answer.status in _UPLOAD_CHANGED):
            raise Again(answer.line, answer.retry_after_seconds)
        raise self._failed(answer)

    async def _missing(self, digests: Sequence[Digest]) -> bytes:
        body = Bytes(b"".join(digest.raw for digest in digests))
        limit = max(len(digests), _LINE_BYTES)
        headers = {"Content-Type": "application/octet-stream"}
        answer = await self._exchange("POST", "missing", body, headers=headers, limit_bytes=limit)
        if answer.status in _NOT_KNOWN:
            return UNKNOWN * len(digests)
        if answer.status != 200:
            raise self._failed(answer)
        if len(answer.content) != len(digests) or answer.content.strip(b"+-?"):
            raise Again(f"{self.url}: the answer to POST /missing is not one")
        return answer.content

    async def _index(self, after: Digest | None) -> list[Listed]:
        path = f"index?limit={PAGE}" + (f"&after={after}" if after is not None else "")
        answer = await self._exchange("GET", path, None, limit_bytes=INDEX_BYTES)
        if answer.status != 200:
            raise self._not_listed(answer)
        try:
            return index_page(answer.content)
        except ValueError as error:
            raise Again(f"{self.url}: the answer to GET /index is not one: {error}") from None

    async def _landed(self, cursor: str | None, wait_seconds: int) -> Landed:
        path = f"landed?wait={wait_seconds}" + ("" if cursor is None else f"&after={cursor}")
        lines = LandedLines()
        told = ""
        try:
            answer = await self._exchange("GET", path, None, lines)
            if answer.status == 410:
                raise CursorGone(f"{self.url}: {answer.line}")
            if answer.status != 200:
                raise self._not_listed(answer)
            told = answer.cursor
        except Enough:
            pass
        except ValueError as error:
            raise Again(f"{self.url}: the answer to GET /landed is not one: {error}") from None
        except Again:
            if not lines.samples:
                raise
        if not is_cursor(lines.cursor or told):
            raise GivenUp(f"{self.url}: the answer to GET /landed has no cursor")
        return Landed(lines.samples, lines.cursor or told)

    def _not_listed(self, answer: _Answer) -> ClientError:
        if answer.status in _NOT_KNOWN:
            return GivenUp(f"{self.url}: it does not list its samples: {answer.line}")
        return self._failed(answer)

    async def _receive(self, digest: Digest, sink: Sink) -> None:
        headers = {}
        if sink.received_bytes:
            headers = {"Range": f"bytes={sink.received_bytes}-", "If-Range": f'"{digest}"'}
        try:
            answer = await self._exchange(
                "GET", f"{digest}", None, sink, headers=headers, counted=True
            )
        except ContentMismatch as problem:
            await sink.begin()
            raise Again(str(problem)) from None
        if answer.status == 416:
            await sink.begin()
            raise Again("the sample has become another")
        if answer.status == 404:
            raise NotStored(answer.line)
        if answer.status not in (200, 206):
            raise self._failed(answer)

    def _failed(self, answer: _Answer) -> ClientError:
        if answer.status == 401:
            if self._credentials is None:
                return Unauthorized(f"{self.url} asks for a user and a password, none were given")
            return Unauthorized(f"{self.url}: wrong user or password ({self._credentials.user})")
        if answer.status in _FOR_NOW:
            return Again(answer.line, answer.retry_after_seconds)
        return Refused(answer.line)

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Body | None,
        sink: Sink | None = None,
        *,
        headers: dict[str, str] | None = None,
        limit_bytes: int = _LINE_BYTES,
        counted: bool = False,
        moved: Callable[[int], None] | None = None,
    ) -> _Answer:
        """One request and its answer. Raises `Again` where there is none."""
        watch = Watch(self._reactor, self._idle_seconds)
        self._watches.add(watch)
        moved = moved or (self._moved if counted else lambda count: None)
        sending = None if body is None else Sending(body, watch, moved)
        try:
            asking = self._http.request(
                method,
                _Ascii.from_text(f"{self.url}/{path}"),
                headers=Headers({k: [v] for k, v in {**self._headers, **(headers or {})}.items()}),
                data=sending,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
            watch.cut(asking.cancel)
            response = await asking
            if sending is not None:
                sending.abandon()
            into = sink if response.code in (200, 206) else None
            if into is not None and response.code == 200:
                await into.begin()
            receiver = Receiver(watch, into, limit_bytes, moved)
            watch.cut(receiver.cut)
            response.deliverBody(receiver)
            await receiver.done
        except Exception as error:
            if sending is not None and sending.problem is not None:
                raise sending.problem from None
            raise self._for_now(error, expired=watch.has_expired) from None
        finally:
            self._watches.discard(watch)
            watch.end()
        after = response.headers.getRawHeaders("Retry-After", [""])[0]
        seconds = float(after) if after.isascii() and after.isdigit() else 0.0
        cursor = response.headers.getRawHeaders("Stor-Cursor", [""])[0]
        upload = {
            name: response.headers.getRawHeaders(f"Upload-{name}", [""])[0]
            for name in ("complete", "offset")
        }
        return _Answer(response.code, bytes(receiver.kept), seconds, cursor, upload)

    def _for_now(self, error: Exception, *, expired: bool) -> Exception:
        """What a failure to get an answer means."""
        reasons = _reasons(error)
        last = " ".join(str(reasons[-1]).split()) or type(reasons[-1]).__name__
        if expired:
            line = f"{self.url}: nothing has moved for {self._idle_seconds:g} s"
            return Again(line, unreachable=True)
        if any(isinstance(reason, DNSLookupError) for reason in reasons):
            return GivenUp(f"{self.url}: no such host")
        if any(type(reason).__module__.startswith("OpenSSL") for reason in reasons):
            return GivenUp(f"{self.url}: TLS: {last}")
        if isinstance(error, ConnectError):
            refused = error.osError == errno.ECONNREFUSED
            why = "connection refused" if refused else f"cannot connect: {last}"
            return Again(f"{self.url}: {why}", unreachable=True)
        if type(error).__module__.startswith(("twisted.web", "twisted.internet")):
            return Again(f"{self.url}: the connection broke: {last}")
        return error


class _Ascii(URL):
    """A URL that is sent as it is: hyperlink would have an IPv6 address be a name."""

    def to_uri(self) -> URL:
        """See `URL`."""
        return self


def _reasons(error: Any) -> list[Any]:
    """An error of Twisted's HTTP client, and those that it is made of."""
    found = [error]
    for reason in getattr(error, "reasons", None) or []:
        found += _reasons(reason.value if isinstance(reason, Failure) else reason)
    return [one for one in found if not isinstance(one, ResponseDone)]
