"""A client's connection, thin enough not to be what is measured."""

import socket
from types import TracebackType
from urllib.parse import urlsplit

from bench.errors import Failed

ANSWER_SECONDS = 30.0


def head(method: str, url: str, length: int = 0, authorization: str | None = None) -> bytes:
    """The request line and the headers of a request."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    if authorization is not None:
        lines.append(f"Authorization: {authorization}")
    if length:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


class Connection:
    """HTTP/1.1 kept alive, one request after the other; answers need a Content-Length."""

    def __init__(self, url: str) -> None:
        """Connect to the server of `url`. Raises `OSError`."""
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer to a whole request. Raises `Failed`, `OSError`."""
        self._socket.sendall(request)
        answer = self._receive(b"")
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer = self._receive(answer)
        headers = answer[:end].lower().split(b"\r\n")
        length = next((h for h in headers if h.startswith(b"content-length:")), None)
        if length is None:
            raise Failed(f"an answer without Content-Length: {headers[0]!r}")
        whole = end + 4 + int(length.partition(b":")[2])
        while len(answer) < whole:
            answer = self._receive(answer)
        return int(headers[0].split()[1]), answer[end + 4 :]

    def _receive(self, before: bytes) -> bytes:
        data = self._socket.recv(262144)
        if not data:
            raise Failed("the server closed the connection within an answer")
        return before + data


def fetch(url: str) -> tuple[int, bytes] | None:
    """The answer to one GET; `None` when nobody listens. Raises `Failed`."""
    try:
        with Connection(url) as connection:
            return connection.exchange(head("GET", url))
    except ConnectionRefusedError:
        return None
