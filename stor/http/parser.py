"""What is read of a connection and becomes requests: one a turn of the reactor, at linear cost.

Twisted parses all that it has been given in one go, each request in the middle of the one before
it, with a copy of the rest for each: one client with many requests at once holds up all others.
"""

import re
from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.web.http import HTTPChannel, Request

#: How much of a chunked body is decoded in one turn: it may have thousands of chunks.
CHUNKED_BYTES = 16 * 1024

#: int() refuses more than 4300 digits (CVE-2020-10735).
_LENGTH_DIGITS = 4000

_LINE_END = b"\r\n"

#: A host and perhaps a port (RFC 9110, 7.2; RFC 3986, 3.2.2). A client may name none.
_HOST = re.compile(
    rb"(?:\[[0-9A-Za-z:.%_~-]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)


def is_host(value: bytes) -> bool:
    """Whether this may stand in a Host header."""
    return _HOST.fullmatch(value) is not None


class Parser(HTTPChannel, ABC):
    """The parsing side of a connection; what is done with a request is its subclass's."""

    def __init__(self) -> None:
        super().__init__()
        # What has been read and not been parsed begins at `_at`.
        self._unparsed = b""
        self._at = 0
        self._turn: IDelayedCall | None = None
        self._body_left = 0
        self._chunks: list[bytes] = []

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """Whether nothing more is parsed, for good or until `parse_soon`."""

    @abstractmethod
    def parsed(self) -> None:
        """All is parsed that can be now."""

    @abstractmethod
    def take_body(self, data: bytes) -> None:
        """A part of a chunked body has come."""

    @abstractmethod
    def too_large(self) -> None:
        """The request line and the headers are larger than they may be."""

    def feed(self, data: bytes) -> None:
        """Take what was read, to be parsed by `parse`."""
        self._unparsed = self._unparsed[self._at :] + data
        self._at = 0

    def forget(self) -> bytes:
        """Parse no more; what has not been parsed."""
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        rest, self._unparsed, self._at = self._unparsed[self._at :], b"", 0
        return rest

    def ahead(self, most_bytes: int) -> bytes:
        """What has been read and not been parsed, or the beginning of it."""
        return self._unparsed[self._at : self._at + most_bytes]

    @property
    def ahead_bytes(self) -> int:
        """How much has been read and not been parsed."""
        return len(self._unparsed) - self._at

    @property
    def has_turn(self) -> bool:
        """Whether the next request waits for the next turn of the reactor."""
        return self._turn is not None

    @property
    def in_head(self) -> bool:
        """Whether a part of a request's head has come, and not only the empty line before it."""
        if self._handlingRequest or not self.line_mode:
            return False
        # Some clients send one after a body (RFC 9112, 2.2).
        return bool(self.requests or self._unparsed[self._at : self._at + 3].strip(_LINE_END))

    def parse(self) -> None:
        """Parse up to the end of one request, unless that has to wait for its turn."""
        if self._turn is None:
            self._parse()

    def parse_soon(self) -> None:
        """Parse the rest in the next turn of the reactor."""
        if self._turn is None and self.ahead_bytes and not self.stopped:
            self._turn = self.callLater(0, self._parse)
        self.parsed()

    def _parse(self) -> None:
        self._turn = None
        if self.line_mode:
            self._parse_head()
        while not (self.line_mode or self._handlingRequest or self.stopped) and self.ahead_bytes:
            self._parse_body()
            if self.length is None and self.ahead_bytes:
                self.parse_soon()
                return
        self.parsed()

    def _parse_head(self) -> None:
        """Take the lines that are complete, up to the end of the head."""
        while self.line_mode and not (self._handlingRequest or self._turn or self.stopped):
            data = self._unparsed
            end = data.find(_LINE_END, self._at)
            if end < 0:
                if data.find(b"\n", self._at) >= 0:
                    # A line that ends without CR would never end for us, and does for others on
                    # the way.
                    self._respondToBadRequestAndDisconnect()
                elif self.ahead_bytes > self.totalHeadersSize:
                    self.too_large()
                return
            line = data[self._at : end]
            self._at = end + len(_LINE_END)
            self._let_go()
            self.lineReceived(line)

    def _let_go(self) -> None:
        """Keep nothing when all is parsed."""
        if not self.ahead_bytes:
            self._unparsed, self._at = b"", 0

    def _parse_body(self) -> None:
        """Give the decoder what is the body's, or a part of what may be."""
        begin, end = self._at, len(self._unparsed)
        end = min(end, begin + (CHUNKED_BYTES if self.length is None else self._body_left))
        self._body_left -= end - begin
        data, self._at = self._unparsed[begin:end], end
        self._let_go()
        self.rawDataReceived(data)
        self._pass_chunks()

    def _pass_chunks(self) -> None:
        """Give the request what the decoder has made of a chunked body, in one piece."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        if data:
            self.take_body(data)

    def allHeadersReceived(self) -> None:  # noqa: N802
        """The body begins, if there is one."""
        self._body_left = self.length or 0

    def checkPersistence(self, request: Request, version: bytes) -> bool:  # noqa: N802
        """Whether the connection may go on: HTTP/1.1 and no `close` in any Connection header."""
        values = request.requestHeaders.getRawHeaders(b"Connection", [])
        tokens = {token.strip().lower() for value in values for token in value.split(b",")}
        return version == b"HTTP/1.1" and b"close" not in tokens

    def _finishRequestBody(self, data: bytes) -> None:  # noqa: N802
        """The body has ended; `data`, behind it, is the next request's."""
        if data:
            self._unparsed, self._at = data + self._unparsed[self._at :], 0
        self._pass_chunks()
        self.allContentReceived()

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:  # noqa: N802
        """Twisted's, but for lengths and encodings that leave doubt where the body ends."""
        if header == b"Content-Length" and len(data) > _LENGTH_DIGITS:
            return bool(self._failChooseTransferDecoder())
        if header == b"Transfer-Encoding" and data.lower() != b"chunked":
            return bool(self._failChooseTransferDecoder())
        if not super()._maybeChooseTransferDecoder(header, data):
            return False
        if header == b"Transfer-Encoding":
            decoder: Any = self._transferDecoder
            decoder.dataCallback = self._chunks.append
        return True
