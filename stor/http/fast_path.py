"""The plainest GET or HEAD of a sample, answered without a `Request` where nothing has to wait.

Twisted's parsing, its Request and Klein's dispatch cost several times what the answer does. Only
what is exactly a GET or HEAD of a sample with headers that change nothing is taken here, and only
if the sample is in memory, Stor's or the kernel's, or the index knows that nobody has it; all else
goes the ordinary way, and gets the same answer there.
"""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import attrs
from twisted.web.http import datetimeToString

from stor.http.access import Observer, RequestIds, Served
from stor.http.proxies import Proxies

_LINE = re.compile(rb"(GET|HEAD) /([0-9a-fA-F]{64}) HTTP/1\.1\r\n")

#: A request with a larger head is not the plainest.
_HEAD_BYTES = 2048

#: Headers that change nothing in the answer to such a request, and those that have to say this.
_IGNORED = frozenset(
    b"host user-agent accept accept-encoding accept-language referer cache-control pragma via "
    b"x-forwarded-for x-forwarded-proto x-real-ip x-request-id".split()
)
_NAMED = re.compile(rb"^x-request-id:[ \t]*([^\r]*)", re.IGNORECASE | re.MULTILINE)
_FORWARDED = re.compile(rb"^x-forwarded-for:[ \t]*([^\r]*)", re.IGNORECASE | re.MULTILINE)
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\x21-\x7e][\x20-\x7e]*)?")

#: Stands in a block with X-Request-ID, in the forms that clients and proxies give it.
_IN_NAMED = b"equest-"

#: How many bytes of header blocks known to be plain or not are kept: clients send
#: the same ones again and again.
_KNOWN_BYTES = 256 * 1024


@attrs.define(eq=False)
class AtOnce:
    """What a plain GET is answered where nothing has to wait; a HEAD gets no `body`.

    `head` is what stands after its Date; the rest as in `stor.http.access.Served`.
    """

    status: int
    head: bytes
    body: bytes | bytearray = b""
    storage: str | None = None
    causes: tuple[str, ...] = ()


class Samples(Protocol):
    """Who knows samples."""

    def at_once(self, raw: bytes, *, body: bool) -> AtOnce | None:
        """The answer for a sample (`Digest.raw`), `None` when it has to wait.

        There may be none in it that was not asked for with `body`.
        """


class FastPath:
    """Answers plain GETs and HEADs."""

    def __init__(
        self, samples: Samples, wall_seconds: Callable[[], float], served: Observer
    ) -> None:
        """`wall_seconds` is the wall clock, for Date; `served` is told of what was answered."""
        #: Whose word is taken for who the client is.
        self.proxies = Proxies()
        self._request_ids = RequestIds()
        self._samples = samples
        self._wall_seconds = wall_seconds
        self._served = served
        self._blocks: dict[bytes, bool] = {}
        self._blocks_bytes = 0
        self._dated_second = -1
        self._begins: dict[int, bytes] = {}

    def answer(self, data: bytes, peer: str, server: bytes) -> tuple[bytes | bytearray, ...] | None:
        """The whole response to `data`, if that is one plain request and nothing has to wait.

        In pieces, so that the content is copied by nobody but the kernel.
        """
        match = _LINE.match(data)
        if match is None:
            return None
        block = data[match.end() :]
        if not self._is_plain(block):
            return None
        method, name = match[1].decode("ascii"), match[2].decode("ascii")
        getting = method == "GET"
        found = self._samples.at_once(bytes.fromhex(name), body=getting)
        if found is None:
            return None
        body = found.body if getting else b""
        if self.proxies.trust(peer):
            peer = self.proxies.client(peer, [one.decode() for one in _FORWARDED.findall(block)])
        named = _NAMED.findall(block) if _IN_NAMED in block else []
        number = self._request_ids.given(named[-1].rstrip()) if named else self._request_ids.next()
        of_sample = ("done", "sample", found.storage, found.causes, "-", "-", number)
        self._served(Served(peer, method, f"/{name}", found.status, len(body), 0, 0.0, *of_sample))
        begin = self._begin(found.status, server)
        return b"%bX-Request-Id: %b\r\n%b" % (begin, number.encode(), found.head), body

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

    def _begin(self, status: int, server: bytes) -> bytes:
        second = int(self._wall_seconds())
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
    if not block.endswith(b"\r\n\r\n"):
        return False
    hosts = 0
    for line in block[:-4].split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            return False
        name = match[1].lower()
        hosts += name == b"host"
        keeps = name == b"connection" and (match[2] or b"").lower() == b"keep-alive"
        if name not in _IGNORED and not keeps:
            return False
        if name == b"x-request-id" and _IN_NAMED not in match[1]:
            return False
    return hosts == 1
