"""HTTP/1.1 clients that cost as little as possible, so that they are not what is measured."""

import re
import select
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from itertools import islice
from urllib.parse import urlsplit

import attrs

from bench.measure import Done, percentile
from bench.process import Failed

ANSWER_SECONDS = 30.0

#: Bodies are discarded in steps of this.
_STEP_BYTES = 1024**2

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


@attrs.frozen
class Answer:
    """The status line and the headers of an answer."""

    head: bytes

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head[9:12])

    @property
    def length(self) -> int:
        """The body's length. Raises `Failed` when it is not given."""
        match = _LENGTH.search(self.head)
        if match is None:
            raise Failed(f"an answer without Content-Length: {self.head!r}")
        return int(match[1])

    def header(self, name: str) -> str:
        """The value of a header. Raises `Failed` when it is missing."""
        match = re.search(rf"\r\n{re.escape(name)}: *([^\r]*)".encode(), self.head, re.IGNORECASE)
        if match is None:
            raise Failed(f"an answer without {name}: {self.head!r}")
        return match[1].decode()


#: Requests, each as parts that are sent one after the other; each is answered before the next.
Requests = Generator[Sequence[bytes], Answer, None]


def request_head(
    method: str,
    base: str,
    path: str,
    length: int | None = None,
    authorization: str | None = None,
    byte_range: str | None = None,
) -> bytes:
    """The request line and the headers of a request to the server at `base`."""
    lines = [f"{method} {path} HTTP/1.1\r\nHost: {base[len('http://') :]}\r\n"]
    if byte_range is not None:
        lines.append(f"Range: bytes={byte_range}\r\n")
    if authorization is not None:
        lines.append(f"Authorization: {authorization}\r\n")
    if length is not None:
        lines.append(f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n")
    return ("".join(lines) + "\r\n").encode()


def one_request(request: Sequence[bytes], status: int, length: int | None = None) -> Requests:
    """One request, whose answer must have this status and this length. Raises `Failed`."""
    answer = yield request
    if answer.status != status or (length is not None and answer.length != length):
        raise Failed(f"{request[0][:100]!r} was answered {answer.head[:200]!r}")


def fetch(url: str) -> tuple[int, bytes] | None:
    """The status and the body of the answer to a GET; `None` when nobody listens."""
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


def repeated(base: str, request: bytes, count: int, size: int, seconds: float) -> Done:
    """One request, whose chunked answer has `count` samples of `size` bytes, for some seconds.

    Raises `Failed` when an answer is too short, `OSError`.
    """
    parts = urlsplit(base)
    answers, last = 0, b"\r\n0\r\n\r\n"
    buffer = bytearray(_STEP_BYTES)
    begun = now = time.perf_counter()
    with socket.create_connection((parts.hostname or "", parts.port or 80), ANSWER_SECONDS) as own:
        while now - begun < seconds:
            own.sendall(request)
            received, tail = 0, b""
            while not tail.endswith(last):
                taken = own.recv_into(buffer)
                if not taken:
                    raise Failed("the server closed the connection in the middle of an answer")
                if not received and not buffer.startswith(b"HTTP/1.1 200 "):
                    raise Failed(f"{request[:100]!r} was answered {bytes(buffer[:200])!r}")
                received += taken
                tail = (tail + bytes(buffer[max(0, taken - len(last)) : taken]))[-len(last) :]
            if received < size:
                raise Failed(f"{received} bytes came instead of {count} samples")
            answers += 1
            now = time.perf_counter()
    return Done(answers * count, now - begun, answers * size)


@attrs.frozen
class Task:
    """What a client does at a time: requests that move `content_bytes` of samples either way.

    Its latency counts when it is `timed`.
    """

    requests: Requests
    content_bytes: int = 0
    timed: bool = True


class Clients:
    """Clients of one server, all in one thread: the fewest system calls a request."""

    def __init__(self, base: str, count: int) -> None:
        parts = urlsplit(base)
        self._address = (parts.hostname or "", parts.port or 80)
        self._count = count

    def run(self, tasks: Iterator[Task], seconds: float) -> Done:
        """Start tasks for `seconds`, or until there are no more, and finish those started.

        Raises `Failed` when one fails or takes too long, and `OSError`.
        """
        content_bytes = count = 0
        latencies: list[float] = []
        with ExitStack() as open_connections:
            epoll = open_connections.enter_context(select.epoll())
            begin = now = time.perf_counter()
            clients: dict[int, _Client] = {}
            for task in islice(tasks, self._count):
                client = open_connections.enter_context(_Client(self._address, epoll))
                clients[client.fd] = client
                client.begin(task, time.perf_counter())
            while clients:
                events = epoll.poll(ANSWER_SECONDS)
                if not events:
                    raise Failed(f"{len(clients)} requests had no answer for {ANSWER_SECONDS:g} s")
                for fd, _ in events:
                    client = clients[fd]
                    if not client.proceed():
                        continue
                    now = time.perf_counter()
                    count += 1
                    content_bytes += client.task.content_bytes
                    if client.task.timed:
                        latencies.append(now - client.begun)
                    next_task = next(tasks, None) if now - begin < seconds else None
                    if next_task is None:
                        epoll.unregister(fd)
                        del clients[fd]
                    else:
                        client.begin(next_task, now)
        return Done(count, now - begin, content_bytes, percentile(latencies, 0.99))


class _Client:
    """One connection, and the task it is working on."""

    task: Task
    begun: float

    def __init__(self, address: tuple[str, int], epoll: select.epoll) -> None:
        self._socket = socket.create_connection(address, ANSWER_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        self._epoll = epoll
        self._epoll.register(self.fd, select.EPOLLIN)
        self._unsent: list[memoryview] = []
        self._received = b""
        self._waits_to_send = False
        self._bodiless = False
        self._left: int | None = None
        self._discarded = bytearray(_STEP_BYTES)

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def begin(self, task: Task, now: float) -> None:
        """Send as much of a task's first request as can be sent now."""
        self.task, self.begun = task, now
        self._ask(next(task.requests))

    def proceed(self) -> bool:
        """Send and receive what is possible now; whether the task is done. Raises `Failed`."""
        if self._unsent:
            self._send()
        if not self._receive():
            return False
        answer, self._received, self._left = Answer(self._received), b"", None
        try:
            request = self.task.requests.send(answer)
        except StopIteration:
            return True
        self._ask(request)
        return False

    def _ask(self, request: Sequence[bytes]) -> None:
        self._bodiless = request[0].startswith(b"HEAD")
        self._unsent = [memoryview(part) for part in request]
        self._send()
        if self._unsent:
            self._waits_to_send = True
            self._epoll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)

    def _send(self) -> None:
        try:
            sent = self._socket.sendmsg(self._unsent)
        except BlockingIOError:
            return
        while self._unsent and sent >= len(self._unsent[0]):
            sent -= len(self._unsent.pop(0))
        if self._unsent:
            self._unsent[0] = self._unsent[0][sent:]
        elif self._waits_to_send:
            self._waits_to_send = False
            self._epoll.modify(self.fd, select.EPOLLIN)

    def _receive(self) -> bool:
        """Whether an answer is complete. Its head is kept, its body is not."""
        try:
            if self._left is None:
                data = self._socket.recv(65536)
                received = len(data)
                self._begin_answer(data)
            else:
                # MSG_TRUNC: the kernel drops the bytes instead of copying them (tcp(7)).
                step = min(self._left, _STEP_BYTES)
                received = self._socket.recv_into(self._discarded, step, socket.MSG_TRUNC)
                self._left -= received
        except BlockingIOError:
            return False
        if not received:
            raise Failed("the server closed the connection in the middle of an answer")
        return self._left == 0

    def _begin_answer(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end >= 0:
            begun = len(self._received) - end - 4
            self._received = self._received[: end + 2]
            self._left = (0 if self._bodiless else Answer(self._received).length) - begun
