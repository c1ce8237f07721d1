"""As much of HTTP/1.1 as clients need that must not be what is measured."""

import re
from collections.abc import Generator, Sequence
from http.client import HTTPConnection
from urllib.parse import urlsplit

import attrs

from bench.errors import Failed

ANSWER_SECONDS = 30.0

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


@attrs.frozen
class Answer:
    """What a server has said before the body of its answer."""

    head: bytes

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head[9:12])

    @property
    def length(self) -> int:
        """The body's length. Raises `Failed` where it is not told."""
        match = _LENGTH.search(self.head)
        if match is None:
            raise Failed(f"an answer without Content-Length: {self.head!r}")
        return int(match[1])

    def header(self, name: str) -> str:
        """The value of a header. Raises `Failed` where there is none."""
        match = re.search(rf"\r\n{re.escape(name)}: *([^\r]*)".encode(), self.head, re.IGNORECASE)
        if match is None:
            raise Failed(f"an answer without {name}: {self.head!r}")
        return match[1].decode()


#: Requests, each in parts that are sent one after the other; every one is answered before the next.
Conversation = Generator[Sequence[bytes], Answer, None]


def head(
    method: str, base: str, path: str, length: int | None = None, authorization: str | None = None
) -> bytes:
    """The request line and the headers of a request to the server at `base`."""
    lines = [f"{method} {path} HTTP/1.1\r\nHost: {base[len('http://') :]}\r\n"]
    if authorization is not None:
        lines.append(f"Authorization: {authorization}\r\n")
    if length is not None:
        lines.append(f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n")
    return ("".join(lines) + "\r\n").encode()


def asking(request: Sequence[bytes], status: int, length: int | None = None) -> Conversation:
    """One request, whose answer has to have this status, and this length. Raises `Failed`."""
    answer = yield request
    if answer.status != status or (length is not None and answer.length != length):
        raise Failed(f"{request[0][:100]!r} was answered {answer.head[:200]!r}")


def fetch(url: str) -> tuple[int, bytes] | None:
    """The status and the body of the answer to one GET; `None` when nobody listens."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()
