"""The plainest GET or HEAD of a hot sample, answered without a `Request`.

Twisted's parsing, its Request and Klein's dispatch cost several times what the answer does. Only
what is exactly a GET or HEAD of a sample with headers that change nothing is taken here; all else
goes the ordinary way, and gets the same answer there.
"""

import re
from collections.abc import Callable

from twisted.web.http import datetimeToString

from stor.hot import HotSample, HotSamples
from stor.http.access import Observer, RequestIds, Served
from stor.http.proxies import Proxies

#: `<method> /<64 digits> HTTP/1.1`.
_METHODS = {b"GET": "GET", b"HEAD": "HEAD"}
_NAME_BYTES = 64
_END = b" HTTP/1.1"

#: A request with a larger head is not the plainest.
_HEAD_BYTES = 2048

#: Headers that change nothing in the answer to such a request, and those that have to say this.
_IGNORED = frozenset(
    b"host user-agent accept accept-encoding accept-language referer cache-control pragma via "
    b"x-forwarded-for x-forwarded-proto x-real-ip".split()
)
_FORWARDED = re.compile(rb"^x-forwarded-for:[ \t]*([^\r]*)", re.IGNORECASE | re.MULTILINE)
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\x21-\x7e][\x20-\x7e]*)?")

#: How many bytes of header blocks known to be plain or not are kept: clients send
#: the same ones again and again.
_KNOWN_BYTES = 256 * 1024


class FastPath:
    """Answers plain GETs and HEADs of hot samples."""

    def __init__(
        self,
        hot: HotSamples,
        head_of: Callable[[HotSample], bytes | None],
        wall_seconds: Callable[[], float],
        served: Observer,
    ) -> None:
        """`head_of` gives what of a 200's head stands after its Date; `None`: not for everybody.

        `wall_seconds` is the wall clock, for Date.
        """
        self.enabled = True
        #: Whose word is taken for who the client is.
        self.proxies = Proxies()
        self._request_ids = RequestIds()
        self._hot = hot
        self._head_of = head_of
        self._wall_seconds = wall_seconds
        self._served = served
        self._blocks: dict[bytes, bool] = {}
        self._blocks_bytes = 0
        self._dated_second = -1
        self._begin = b""

    def answer(self, data: bytes, peer: str, server: bytes) -> tuple[bytes, ...] | None:
        """The whole response to `data`, if that is one plain request of a hot sample; else `None`.

        In pieces, so that the content is copied by nobody but the kernel.
        """
        line, separator, block = data.partition(b"\r\n")
        verb, _, digits = line[: -len(_END)].partition(b" /")
        method = _METHODS.get(verb)
        if method is None or len(digits) != _NAME_BYTES or not line.endswith(_END) or not separator:
            return None
        if not self.enabled or not self._is_plain(block):
            return None
        name = digits.decode("latin-1")
        try:
            raw = bytes.fromhex(name)
        except ValueError:
            return None
        sample = self._hot.get(raw, missed=False)
        if sample is None:
            return None
        head = self._head_of(sample)
        if head is None:
            return None
        content = sample.content if method == "GET" else b""
        if self.proxies.trust(peer):
            peer = self.proxies.client(peer, [one.decode() for one in _FORWARDED.findall(block)])
        number = self._request_ids.next()
        of_sample = ("done", "sample", sample.storage, (), "-", "-", number)
        self._served(Served(peer, method, f"/{name}", 200, len(content), 0, 0.0, *of_sample))
        return self._dated(server), b"X-Request-Id: %b\r\n" % number.encode(), head, content

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

    def _dated(self, server: bytes) -> bytes:
        second = int(self._wall_seconds())
        if second != self._dated_second:
            self._dated_second = second
            date = datetimeToString(second)
            self._begin = b"HTTP/1.1 200 OK\r\nServer: %b\r\nDate: %b\r\n" % (server, date)
        return self._begin


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
    return hosts == 1
