"""The plainest requests for a sample, answered without a `Request`.

Twisted's parsing, its Request and Klein's dispatch cost several times what the answer does. Only
what is exactly a GET or HEAD of a sample with headers that change nothing is taken here, and only
if the sample is in memory, Stor's or the kernel's, or the index knows that nobody has it; and a
POST or PUT of a small new sample that has come as a whole and that nothing stands in the way of.
All else goes the ordinary way, and gets the same answer there.
"""

import json
import re
from binascii import b2a_base64
from collections.abc import Callable, Container
from http import HTTPStatus
from typing import Any, Protocol

from twisted.web.http import datetimeToString

from stor.errors import NotFound
from stor.http.access import Observer, RequestIds, Served, word
from stor.http.answer import (
    CONTENT_HEADERS,
    INTERNAL_ERROR,
    SERVER,
    answer_to,
    head_of,
    storage_of,
)
from stor.http.conditions import http_date
from stor.http.parser import is_host
from stor.http.proxies import Proxies
from stor.http.upload import SmallBodies, SmallUpload
from stor.store import CachedCopy

_LINE = re.compile(rb"(GET|HEAD) /([0-9a-fA-F]{64}) HTTP/1\.1\r\n")

_STORE_LINE = re.compile(rb"(POST|PUT) /([0-9a-fA-F]{64}) HTTP/1\.1\r\n")

#: A body of more bytes is hashed in a thread, and written while it comes.
_BODY_BYTES = 64 * 1024

#: A request with a larger head is not the plainest.
_HEAD_BYTES = 2048

#: Headers that change nothing in the answer to such a request, and those that have to say this.
_IGNORED = frozenset(
    b"host user-agent accept accept-encoding accept-language referer cache-control pragma via "
    b"x-forwarded-for x-forwarded-proto x-real-ip x-request-id".split()
)
#: Those of a body that change nothing, and those that say what is done with it.
_IGNORED_OF_BODY = _IGNORED | {b"content-type", b"content-length"}
_AUTHORIZATION = re.compile(rb"^authorization:[ \t]*([^\r]*)\r\n", re.IGNORECASE | re.MULTILINE)
_NAMED = re.compile(rb"^x-request-id:[ \t]*([^\r]*)", re.IGNORECASE | re.MULTILINE)
_FORWARDED = re.compile(rb"^x-forwarded-for:[ \t]*([^\r]*)", re.IGNORECASE | re.MULTILINE)
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\x21-\x7e][\x20-\x7e]*)?")

_LENGTH = re.compile(rb"[0-9]{1,5}")

_SAMPLE_HEAD = head_of(CONTENT_HEADERS)
_NOT_FOUND = answer_to(NotFound(("disk",))) or INTERNAL_ERROR
_NOT_FOUND_HEAD = head_of(_NOT_FOUND.fields)

#: Stands in a block with X-Request-ID, in the forms that clients and proxies give it.
_IN_NAMED = b"equest-"

#: How many bytes of header blocks known to be plain or not are kept: clients send
#: the same ones again and again.
_KNOWN_BYTES = 256 * 1024


class Samples(Protocol):
    """Who knows samples."""

    def at_once(self, raw: bytes, *, read: bool) -> CachedCopy | NotFound | None:
        """See `stor.store.Store.at_once`."""


class Uploader(Protocol):
    """The connection that a small body came from."""

    #: Whether it goes on after the answer.
    persistent: Any

    def seconds(self) -> float:
        """The monotonic clock."""

    def stored(self, answer: tuple[bytes, ...]) -> None:
        """Send the answer; the request is over."""

    def start_over(self, request: bytes) -> None:
        """The request goes the ordinary way, from its first byte on."""


class PlainUpload:
    """A small sample that is being stored: what the channel has of it, as of a `Request`."""

    startedWriting = False

    def __init__(
        self,
        path: "FastPath",
        upload: SmallUpload,
        uploader: Uploader,
        data: bytes,
        head: tuple[str, str, str, str],
    ) -> None:
        """`head` is the client, the method, the sha and the name of the request."""
        self._path = path
        self._upload = upload
        self._uploader: Uploader | None = uploader
        self._data = data
        self._head = head
        self._begun_seconds = uploader.seconds()
        self.received_bytes = upload.size
        self.user = word(upload.user)

    def begin(self) -> None:
        """Store it, and tell the uploader of the end, perhaps before this has returned."""
        self._upload.begin(self._ended)

    def _ended(self, paths: list[str] | None) -> None:
        """The sample is stored at `paths`; or it is not, and nothing of it is left."""
        uploader, self._uploader = self._uploader, None
        if uploader is None:
            return
        if paths is None:
            uploader.start_over(self._data)
            return
        body = json.dumps(paths).encode() + b"\n"
        self._tell(uploader, 201, len(body), "done", storage_of(paths))
        uploader.stored(self._path.created(body, self._head[3], persistent=uploader.persistent))

    def connectionLost(self, reason: object) -> None:  # noqa: N802
        """The client is gone. The sample is stored all the same, as one whose body was whole."""
        uploader, self._uploader = self._uploader, None
        if uploader is not None:
            self._tell(uploader, 0, 0, "cut", None)

    def abandon(self) -> None:
        """Nothing more comes, and nothing more is needed."""

    def _tell(
        self, uploader: Uploader, status: int, sent: int, outcome: str, storage: str | None
    ) -> None:
        peer, method, name, number = self._head
        seconds = uploader.seconds() - self._begun_seconds
        what = peer, method, name, status, sent, self.received_bytes, seconds, outcome
        self._path.tell(Served(*what, "sample", storage, (), self.user, "-", number))


class FastPath:
    """Answers plain GETs and HEADs, and takes small bodies."""

    def __init__(
        self,
        samples: Samples | None,
        wall_seconds: Callable[[], float],
        served: Observer,
        bodies: SmallBodies | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        """`samples` are those that anybody may read, `None` where reading takes a password.

        `wall_seconds` is the wall clock, for Date; `served` is told of what was answered. `proxies`
        are those whose word is taken for who the client is.
        """
        self._bodies = bodies
        self._lengths: dict[bytes, int | None] = {}
        self.tell = served
        self._proxies = proxies or Proxies()
        self._request_ids = RequestIds()
        self._samples = samples
        self._wall_seconds = wall_seconds
        self._blocks: dict[bytes, bool] = {}
        self._blocks_bytes = 0
        self._dated_second = -1
        self._begins: dict[int, bytes] = {}

    def answer(self, data: bytes, peer: str, server: bytes) -> tuple[bytes | bytearray, ...] | None:
        """The whole response to `data`, if that is one plain request and nothing has to wait.

        In pieces, so that the content is copied by nobody but the kernel.
        """
        # Every request for a sample passes here, most of them no other way: each call counts.
        match = _LINE.match(data)
        if match is None or self._samples is None:
            return None
        block = data[match.end() :]
        if not (self._blocks.get(block) or self._is_plain(block)):
            return None
        method, name = match[1].decode("ascii"), match[2].decode("ascii")
        found = self._samples.at_once(bytes.fromhex(name), read=method == "GET")
        if found is None:
            return None
        second = int(self._wall_seconds())
        body: bytes | bytearray = b""
        if isinstance(found, NotFound):
            status, storage, causes, head = 404, None, _NOT_FOUND.causes, _NOT_FOUND_HEAD
            if method == "GET":
                body = _NOT_FOUND.body
        else:
            status, storage, causes = 200, found.storage, ()
            head = found.head or self._head(found, second)
            if method == "GET":
                body = found.content or b""
        if self._proxies.any and self._proxies.trust(peer):
            peer = self._proxies.client(peer, [one.decode() for one in _FORWARDED.findall(block)])
        number = self._number(block) if _IN_NAMED in block else self._request_ids.next()
        of_sample = ("done", "sample", storage, causes, "-", "-", number)
        self.tell(Served(peer, method, f"/{name}", status, len(body), 0, 0.0, *of_sample))
        begin = self._begins.get(status) if second == self._dated_second else None
        if begin is None:
            begin = self._begin(status, server, second)
        return b"%bX-Request-Id: %b\r\n%b" % (begin, number.encode(), head), body

    def _head(self, copy: CachedCopy, second: int) -> bytes:
        """The lines about a sample; as `stor.http.api.Api` has them."""
        raw = copy.digest.raw
        copy.head = _SAMPLE_HEAD % {
            b"sha": raw.hex().encode(),
            # A time in the future would be later than Date, which RFC 9110, 8.8.2.1, rules out.
            b"modified": http_date(min(copy.modified_ns // 10**9, second)),
            b"scope": b"public",
            b"length": copy.size,
            b"base64": b2a_base64(raw, newline=False),
        }
        return copy.head

    def store(self, data: bytes, peer: str, uploader: Uploader) -> PlainUpload | None:
        """The upload that `data` brings as one plain request, if nothing stands in its way.

        It is to begin at once.
        """
        match = _STORE_LINE.match(data)
        if match is None or self._bodies is None:
            return None
        begin = match.end()
        end = data.find(b"\r\n\r\n", begin - 2, begin + _HEAD_BYTES) + 4
        block, content = data[begin:end], data[end:]
        authorization = _AUTHORIZATION.search(block)
        if authorization is None:
            return None
        # Without it, of which nothing is kept.
        others = block[: authorization.start()] + block[authorization.end() :]
        if self._length(others) != len(content):
            return None
        if self._proxies.trust(peer):
            peer = self._proxies.client(peer, [one.decode() for one in _FORWARDED.findall(block)])
        method, name = match[1].decode("ascii"), match[2].decode("ascii")
        raw = bytes.fromhex(name)
        upload = self._bodies.take(raw, content, authorization[1].rstrip(), peer)
        if upload is None:
            return None
        head = peer, method, f"/{name}", self._number(block)
        return PlainUpload(self, upload, uploader, data, head)

    def created(self, body: bytes, number: str, *, persistent: bool) -> tuple[bytes, ...]:
        """The response to who has stored a sample."""
        begin = self._begin(201, SERVER, int(self._wall_seconds()))
        close = b"" if persistent else b"Connection: close\r\n"
        return (
            b"%bX-Request-Id: %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n%b\r\n%b" % (begin, number.encode(), len(body), close, body),
        )

    def _number(self, block: bytes) -> str:
        """What a request is called."""
        named = _NAMED.findall(block) if _IN_NAMED in block else []
        return self._request_ids.given(named[-1].rstrip()) if named else self._request_ids.next()

    def _length(self, block: bytes) -> int | None:
        """How long the body behind a block of headers is; `None`: they are not plain."""
        try:
            return self._lengths[block]
        except KeyError:
            pass
        if len(self._lengths) >= _KNOWN_BYTES // _HEAD_BYTES:
            self._lengths.clear()
        length = self._lengths[block] = _length(block)
        return length

    def _is_plain(self, block: bytes) -> bool:
        if len(block) > _HEAD_BYTES:
            return False
        plain = self._blocks.get(block)
        if plain is None:
            plain = _is_plain(block)
            if self._blocks_bytes >= _KNOWN_BYTES:
                self._blocks.clear()
                self._blocks_bytes = 0
            self._blocks[block] = plain
            self._blocks_bytes += len(block)
        return plain

    def _begin(self, status: int, server: bytes, second: int) -> bytes:
        if second != self._dated_second:
            self._dated_second = second
            self._begins.clear()
        begin = self._begins.get(status)
        if begin is None:
            begin = self._begins[status] = b"HTTP/1.1 %d %b\r\nServer: %b\r\nDate: %b\r\n" % (
                status,
                HTTPStatus(status).phrase.encode("ascii"),
                server,
                datetimeToString(second),
            )
        return begin


def _is_plain(block: bytes) -> bool:
    """Whether a block of headers, with the empty line at its end, changes nothing."""
    return _plain(block, _IGNORED) is not None


def _plain(block: bytes, ignored: Container[bytes]) -> list[tuple[bytes, bytes]] | None:
    """The headers of a block, in lower case, if none changes anything but those `ignored` here."""
    if not block.endswith(b"\r\n\r\n"):
        return None
    headers = []
    for line in block[:-4].split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name, value = match[1].lower(), match[2] or b""
        keeps = name == b"connection" and value.lower() == b"keep-alive"
        if name not in ignored and not keeps:
            return None
        if name == b"x-request-id" and _IN_NAMED not in match[1]:
            return None
        headers.append((name, value))
    hosts = [value.rstrip() for name, value in headers if name == b"host"]
    return headers if len(hosts) == 1 and is_host(hosts[0]) else None


def _length(block: bytes) -> int | None:
    """What a block of headers says of a small body's length; `None`: it is not plain, or large."""
    headers = _plain(block, _IGNORED_OF_BODY)
    if headers is None:
        return None
    lengths = [value.rstrip() for name, value in headers if name == b"content-length"]
    types = [value.lower() for name, value in headers if name == b"content-type"]
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        return None
    if int(lengths[0]) > _BODY_BYTES or any(one.startswith(b"multipart/") for one in types):
        return None
    return int(lengths[0])
