"""The routes."""

import json
import sys
import time
from binascii import b2a_base64
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from stor import __version__
from stor.content import Content
from stor.digest import Digest, is_digest
from stor.http.answer import (
    CONTENT_HEADERS,
    INTERNAL_ERROR,
    SAMPLE_HEADERS,
    Answer,
    answer_to,
)
from stor.http.auth import Rules
from stor.http.batch import Ahead, BatchAnswer
from stor.http.bulk import (
    BadRequest,
    ListBody,
    Listing,
    ListingAnswer,
    Lists,
    MissingAnswer,
    ShaList,
    check_parameters,
)
from stor.http.conditions import (
    Conditions,
    Unsatisfiable,
    Validators,
    http_date,
    select_range,
)
from stor.http.download import Sender
from stor.http.feed import Following, LandedAnswer
from stor.http.page import Asked, Explanation, page, wants_page
from stor.http.request import PAGES, Intake, StorRequest, route_of
from stor.http.resumable import UPLOADING, Resumable
from stor.http.site import shield
from stor.http.status import Overview, picture
from stor.http.upload import HOW_TO_STORE, Upload, Uploads
from stor.paths import printable
from stor.prometheus import CONTENT_TYPE
from stor.store import HotContent, Store
from stor.zero_copy import SplicePipes

_READING = ("GET", "HEAD")
_STORING = ("POST", "PUT")

#: The pages that take a list of samples.
_LISTS = ("missing", "batch")

#: Who waits for what lands looks this often whether Stor is ending.
_LOOK_SECONDS = 1.0

#: What is true of an answer only now.
_NOT_KEPT = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@attrs.frozen
class Budgets:
    """What all requests share, under whichever configuration they began.

    Large samples that are sent past memory at once, lists, and samples that are opened ahead.
    """

    splice_pipes: SplicePipes = attrs.field(factory=SplicePipes)
    lists: Lists = attrs.field(factory=Lists)
    ahead: Ahead = attrs.field(factory=Ahead)


class Api:
    """What Stor answers, from the path and the method to the last header."""

    log = Logger()
    app = Klein()

    def __init__(
        self,
        store: Store,
        uploads: Uploads,
        rules: Rules,
        clock: IReactorTime,
        overview: Overview,
        budgets: Budgets | None = None,
        explanation: Explanation | None = None,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        """`clock` times what takes long; `wall_seconds` is for dates.

        `explanation` is found out about samples, where all disks can be asked.
        """
        self._store = store
        self._uploads = uploads
        self._rules = rules
        self._resumable = Resumable(store, uploads, rules)
        self._overview = overview
        self._clock = clock
        self._wall_seconds = wall_seconds
        self._budgets = budgets or Budgets()
        self._explanation = explanation
        self._explaining = False

    @property
    def stopping(self) -> bool:
        """Whether the service is about to end: `/status` says so to load balancers."""
        return self._uploads.stopping

    def resource(self) -> IResource:
        """The routes for a Site."""
        return self.app.resource()

    def receive(self, request: StorRequest) -> Intake | Answer | None:
        """Decide on a request whose body is still to come. See `stor.http.request.Reception`.

        An upload begins here, and no route has a part in it.
        """
        method = request.method.decode("ascii")
        if method in _STORING and request.upload is None and _names_no_file(request):
            line = f"nothing can be stored at this path: {HOW_TO_STORE}"
            return attrs.evolve(Answer.line(400, line), causes=("malformed_sha",))
        if method not in _allowed(request):
            return _not_allowed(request)
        refusal = _refused_encoding(request) if method in (*_STORING, "PATCH") else None
        if refusal is not None:
            return refusal
        if request.name in _LISTS:
            return self._receive_list(request)
        received = self._resumable.receive(request)
        if received is None and method in _STORING:
            return Upload(self._store, self._uploads, self._rules, request.head(), request)
        return received

    def _receive_list(self, request: StorRequest) -> Intake | Answer:
        octets = _content_type(request) == b"application/octet-stream"
        lists = self._budgets.lists
        shas = ShaList(octets=octets, max_shas=lists.max_shas)
        body = ListBody(lists, request.head(), request, shas, lambda: self._may_read(request))
        request.notifyFinish().addBoth(lambda _: body.release())
        return body

    def answer(self, request: StorRequest) -> Deferred[bytes] | None:
        """See `stor.http.request.Reception`.

        To read a sample: what the route below does, without Klein on the way, which takes longer
        to come to it than all that is done there.
        """
        if request.name in PAGES or request.method not in (b"GET", b"HEAD"):
            return None
        if request.upload is not None:
            return None
        getting = Deferred.fromCoroutine(self._get(request))
        return getting.addErrback(lambda failure: self._failed(request, failure))

    @app.route("/", methods=_READING)
    def root(self, request: StorRequest) -> Deferred[bytes]:
        """Say who answers; to people with a browser, how the storages are."""
        return _run(self._root(request))

    async def _root(self, request: StorRequest) -> bytes:
        await self._may_see(request)
        if wants_page(_list(request, b"accept")):
            status, moment = self._overview.status(), self._overview.moment()
            now = self._wall_seconds()
            host, days_left = self._overview.host, self._overview.days_left(status)
            asked = await self._explain(request)
            made = page(
                *(status, moment, now, asked),
                stopping=self.stopping,
                host=host,
                days_left=days_left,
            )
            return _packed(request, made)
        line = f"This is Stor {__version__}".encode()
        return request.apply(Answer(200, line, headers={"Vary": "Accept"}))

    async def _explain(self, request: StorRequest) -> Asked | None:
        """What is found out about the sample that was asked about in the box on the page."""
        if self._explanation is None:
            return None
        text = request.args.get(b"explain", [b""])[-1].decode("latin-1").strip()
        if not text:
            return Asked()
        await self._may_read(request)
        if not is_digest(text):
            return Asked(text, fault="a SHA-256 is 64 hexadecimal digits")
        if self._explaining:  # every disk is asked
            return Asked(text, fault="another sample is being looked at: ask again")
        self._explaining = True
        try:
            return Asked(text, await self._explanation.of(Digest.parse(text)))
        finally:
            self._explaining = False

    @app.route("/status", methods=_READING)
    def status(self, request: StorRequest) -> Deferred[bytes]:
        """Say whether all storages are available, from what is known: no disk is asked."""
        return _run(self._status(request))

    async def _status(self, request: StorRequest) -> bytes:
        await self._may_see(request)
        status = self._overview.status()
        problems = ["stopping"] if self.stopping else status.problems
        code = 503 if problems else 200
        headers = {"Cache-Control": "no-store"}
        if code == 503:
            headers["Retry-After"] = "15"
        if b"application/json" in (request.getHeader(b"accept") or b""):
            whole = {"version": __version__, **picture(status, problems)}
            body = json.dumps(whole, indent=2).encode() + b"\n"
            return _packed(request, Answer(code, body, "application/json", headers))
        text = "".join(f"{problem}\n" for problem in problems) or "OK\n"
        body = printable(text).encode()
        return request.apply(Answer(code, body, headers=headers))

    @app.route("/metrics", methods=_READING)
    def metrics(self, request: StorRequest) -> Deferred[bytes]:
        """Give all figures to Prometheus, from what is known: no disk is asked."""
        return _run(self._metrics(request))

    async def _metrics(self, request: StorRequest) -> bytes:
        await self._may_see(request)
        figures = self._overview.exposition()
        headers = {"Cache-Control": "no-store"}
        return _packed(request, Answer(200, figures, CONTENT_TYPE, headers))

    @app.route("/missing", methods=("POST",))
    def missing(self, request: StorRequest) -> Deferred[bytes]:
        """Say which samples of a list are not stored, from what is known: no disk is asked."""
        return _run(self._missing(request))

    async def _missing(self, request: StorRequest) -> bytes:
        if not isinstance(request.intake, ListBody):
            raise TypeError("the list was not received")
        told = MissingAnswer(request.intake.shas, self._store.held, self._clock)
        await told.prepare(lambda: request.gone)
        if request.gone:
            return b""
        headers = {"Content-Type": told.content_type, "Content-Length": str(told.size)}
        request.set_head(200, headers | _NOT_KEPT)
        await self._sender(request).send(told, 0, told.size)
        return b""

    @app.route("/batch", methods=("POST",))
    def batch(self, request: StorRequest) -> Deferred[bytes]:
        """Send the samples of a list as a TAR."""
        return _run(self._batch(request))

    async def _batch(self, request: StorRequest) -> bytes:
        if not isinstance(request.intake, ListBody):
            raise TypeError("the list was not received")
        order = request.args.get(b"order", [b"asked"])
        try:
            check_parameters(request.args, "order")
            if order not in ([b"asked"], [b"disk"]):
                raise BadRequest("order: expected asked or disk")
        except BadRequest as error:
            return request.apply(Answer.line(400, str(error)))
        now_ns = int(self._wall_seconds() * 1e9)
        told = BatchAnswer(
            request.intake.shas,
            self._store.open_in_passing,
            self._budgets.ahead,
            self._clock,
            now_ns,
            at_once=self._store.at_once_in_passing,
            order=self._store.in_disk_order if order == [b"disk"] else None,
        )
        request.set_head(200, {"Content-Type": "application/x-tar"} | _NOT_KEPT)
        await self._sender(request).send(told, 0, sys.maxsize)
        return b""

    @app.route("/index", methods=_READING)
    def index(self, request: StorRequest) -> Deferred[bytes]:
        """List samples in order, from the index: no disk is asked."""
        return _run(self._index(request))

    async def _index(self, request: StorRequest) -> bytes:
        if not self._rules.public_listing:
            await self._authenticate(request)
        try:
            listing = ListingAnswer(Listing.parse(request.args), self._store.listed)
        except BadRequest as error:
            return request.apply(Answer.line(400, str(error)))
        await listing.prepare()
        if request.gone:
            return b""
        request.set_head(200, {"Content-Type": "text/plain; charset=utf-8"} | _NOT_KEPT)
        if request.method != b"HEAD":
            await self._sender(request).send(listing, 0, sys.maxsize)
        return b""

    @app.route("/landed", methods=_READING)
    def landed(self, request: StorRequest) -> Deferred[bytes]:
        """Tell what was stored, in order."""
        return _run(self._landed(request))

    async def _landed(self, request: StorRequest) -> bytes:
        if not self._rules.public_listing:
            await self._authenticate(request)
        try:
            following = Following.parse(request.args)
            feed = await self._store.feed()
            told = LandedAnswer(feed, following.begin(feed))
            until = self._clock.seconds() + following.wait_seconds
            while not await told.prepare() and not (request.gone or self.stopping):
                left = until - self._clock.seconds()
                if left <= 0:
                    break
                await feed.wait(min(left, _LOOK_SECONDS))
        except BadRequest as error:
            return request.apply(Answer.line(400, str(error)))
        if request.gone:
            return b""
        headers = {"Content-Type": "application/x-ndjson", "Stor-Cursor": told.cursor}
        request.set_head(200, headers | _NOT_KEPT)
        if request.method != b"HEAD":
            await self._sender(request).send(told, 0, sys.maxsize)
        return b""

    @app.route("/<sha>/upload", methods=("HEAD", "DELETE"))
    def upload(self, request: StorRequest, sha: str) -> Deferred[bytes]:
        """Say how far an upload is, or keep nothing of it."""
        return _run(self._upload(request, Digest.parse(sha)))

    async def _upload(self, request: StorRequest, digest: Digest) -> bytes:
        await self._authenticate(request)
        return request.apply(await self._resumable.answer(request, digest))

    @app.route("/<name>", methods=_READING)
    def get_sample(self, request: StorRequest, name: str) -> Deferred[bytes]:
        """Send a sample."""
        return _run(self._get(request))

    @app.handle_errors(Exception)
    def failed(self, request: StorRequest, failure: Failure) -> bytes:
        """Give the status of a known failure, and log any other."""
        return self._failed(request, failure)

    def _failed(self, request: StorRequest, failure: Failure) -> bytes:
        answer = answer_to(failure.value)
        if answer is None:
            self.log.failure("{method} {path}", failure, method=request.method, path=request.path)
        if request.startedWriting:
            request.abort()
            return b""
        if answer is not None and answer.status >= 500 and self._rules.status_auth:
            answer = answer if request.asked_as != "-" else _discreet(answer)
        return request.apply(answer or INTERNAL_ERROR)

    async def _get(self, request: StorRequest) -> bytes:
        if route_of(request.name) == "other":
            return request.apply(Answer.line(404, "not found: there is nothing here but samples"))
        digest = Digest.parse(request.name)
        await self._may_read(request)
        conditions = _conditions(request)
        if conditions.present or request.method == b"HEAD":
            found = self._store.find_at_once(digest) if conditions.present else None
            found = found or await self._store.find(digest)
            request.storage = found.storage
            now = self._validators(digest, found.modified_ns)
            code = conditions.evaluate(now, self._wall_seconds())
            if code == 304:
                fields = self._fields(digest, found.modified_ns, found.size)
                headers = _headers(SAMPLE_HEADERS, fields)
                return request.apply(Answer(304, b"", headers=headers))
            if code == 412:
                return request.apply(Answer.line(412, "precondition failed: the sample is another"))
            if request.method == b"HEAD":
                fields = self._fields(digest, found.modified_ns, found.size)
                request.set_head(200, _headers(CONTENT_HEADERS, fields))
                return b""
        part = request.getHeader(b"range") is not None
        content = await self._store.open(digest, part=part)
        request.storage = content.storage
        return await self._send(request, content)

    async def _may_read(self, request: StorRequest) -> None:
        if self._rules.read_auth:
            await self._authenticate(request)

    async def _may_see(self, request: StorRequest) -> None:
        if self._rules.status_auth:
            await self._authenticate(request)

    async def _authenticate(self, request: StorRequest) -> None:
        authorization = request.getHeader(b"authorization")
        await self._rules.authenticator.check(authorization, request.address, request.tried)

    async def _send(self, request: StorRequest, content: Content[Any] | HotContent) -> bytes:
        now = self._validators(content.digest, content.modified_ns)
        ranges = request.requestHeaders.getRawHeaders(b"range", [])
        wanted = ranges[0] if len(ranges) == 1 else None  # several mean the whole
        try:
            part = select_range(wanted, request.getHeader(b"if-range"), content.size, now)
        except Unsatisfiable:
            content.close()
            line = f"range not satisfiable: the sample has {content.size} bytes"
            return request.apply(Answer.line(416, line, content_range=f"bytes */{content.size}"))
        begin, end = part or (0, content.size)
        fields = self._fields(content.digest, content.modified_ns, end - begin)
        headers = _headers(CONTENT_HEADERS, fields)
        if part is not None:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{content.size}"
        if request.gone:
            content.close()
            return b""
        request.set_head(206 if part else 200, headers)
        if (begin, end) != (0, content.size):
            content.take_part(end)
        if isinstance(content, HotContent) or content.whole is not None:
            return (content.whole or b"")[begin:end]
        await self._sender(request).send(content, begin, end)
        return b""

    def _sender(self, request: StorRequest) -> Sender:
        return Sender(request, self._clock, self._budgets.splice_pipes)

    def _validators(self, digest: Digest, modified_ns: int) -> Validators:
        return Validators(f'"{digest}"'.encode(), self._modified_seconds(modified_ns))

    def _modified_seconds(self, modified_ns: int) -> int:
        # A time in the future would be later than Date, which RFC 9110, 8.8.2.1, rules out.
        return min(modified_ns // 10**9, int(self._wall_seconds()))

    def _fields(self, digest: Digest, modified_ns: int, length: int) -> dict[str, object]:
        """What stands in the header fields of a sample, or of a part of this length."""
        return {
            "sha": digest.raw.hex(),
            "modified": http_date(self._modified_seconds(modified_ns)).decode("ascii"),
            # A cache that many share gives what is public to those without credentials (RFC 9111,
            # 3.5).
            "scope": "private" if self._rules.read_auth else "public",
            "length": length,
            "base64": b2a_base64(digest.raw, newline=False).decode("ascii"),
        }


def _headers(form: Mapping[str, str], fields: Mapping[str, object]) -> dict[str, str]:
    return {name: value % fields for name, value in form.items()}


def _run(answering: Coroutine[Any, Any, bytes]) -> Deferred[bytes]:
    return shield(Deferred.fromCoroutine(answering))


def _allowed(request: StorRequest) -> tuple[str, ...]:
    if request.upload is not None:
        return UPLOADING
    if request.name in _LISTS:
        return ("POST",)
    return _READING if request.name in PAGES else _READING + _STORING


def _packed(request: StorRequest, answer: Answer) -> bytes:
    return request.apply(answer.packed(_list(request, b"accept-encoding")))


def _discreet(answer: Answer) -> Answer:
    """The answer without its reason, which may name disks."""
    line = "no good copy of this sample is left"
    if answer.status == 503:
        line = "a storage that could hold this sample does not answer: try again"
    return attrs.evolve(answer, body=f"{line}\n".encode())


def _not_allowed(request: StorRequest) -> Answer:
    allowed = ", ".join(_allowed(request))
    method = request.method.decode("ascii")
    return Answer.line(405, f"{method} is not allowed here, only {allowed}", allow=allowed)


def _names_no_file(request: StorRequest) -> bool:
    """Whether the path names no sample: it is empty or has several parts. No misspelt sha."""
    name = request.name
    if name in PAGES:
        return name == ""
    return "/" in name or (request.path.endswith(b"/") and not is_digest(name))


def _refused_encoding(request: StorRequest) -> Answer | None:
    """What is said to a body that is not the file itself, or the list; `None` if it may be."""
    if request.getHeader(b"content-range") is not None:
        line = "Content-Range is not supported here: send the whole file, without Content-Range"
        return Answer.line(400, line)
    if _content_type(request) == b"multipart/form-data":
        line = "multipart/form-data is not supported: send the file itself"
        return Answer.line(415, f"{line}, as curl -T FILE or curl --data-binary @FILE does")
    encodings = (_list(request, b"content-encoding") or b"").lower().split(b",")
    if any(encoding.strip() not in (b"", b"identity") for encoding in encodings):
        line = "Content-Encoding is not supported: send the file as it is, without Content-Encoding"
        # RFC 9110, 15.5.16: what would be accepted.
        return Answer.line(415, line, accept_encoding="identity")
    return None


def _content_type(request: StorRequest) -> bytes:
    return (request.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()


def _conditions(request: StorRequest) -> Conditions:
    return Conditions(
        _list(request, b"if-match"),
        request.getHeader(b"if-unmodified-since"),
        _list(request, b"if-none-match"),
        request.getHeader(b"if-modified-since"),
    )


def _list(request: StorRequest, name: bytes) -> bytes | None:
    """A header that is a list and may stand in several lines (RFC 9110, 5.3)."""
    values = request.requestHeaders.getRawHeaders(name)
    return None if values is None else b", ".join(values)
