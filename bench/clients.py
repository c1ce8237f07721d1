"""Clients that ask over and over, each on a connection of its own."""

import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from urllib.parse import urlsplit

from bench.errand import Errand
from bench.errors import Failed
from bench.exchange import ANSWER_SECONDS, Answer
from bench.workload import Done

#: Bodies are thrown away in steps of this.
_STEP_BYTES = 1024**2


class Clients:
    """Clients of one server, all in one thread: the fewest system calls a request."""

    def __init__(self, base: str, count: int) -> None:
        parts = urlsplit(base)
        self._address = (parts.hostname or "", parts.port or 80)
        self._count = count

    def run(self, errands: Iterator[Errand], seconds: float) -> Done:
        """Begin errands for so long, or until there are no more, and finish those begun.

        Raises `Failed` when one fails or takes too long, and `OSError`.
        """
        done = requests = 0
        times: list[float] = []
        with ExitStack() as open_connections:
            epoll = open_connections.enter_context(select.epoll())
            begin = now = time.perf_counter()
            clients: dict[int, _Client] = {}
            for errand in islice(errands, self._count):
                client = open_connections.enter_context(_Client(self._address, epoll))
                clients[client.fd] = client
                client.begin(errand, time.perf_counter())
            while clients:
                events = epoll.poll(ANSWER_SECONDS)
                if not events:
                    raise Failed(f"{len(clients)} requests had no answer for {ANSWER_SECONDS:g} s")
                for fd, _ in events:
                    client = clients[fd]
                    if not client.proceed():
                        continue
                    now = time.perf_counter()
                    requests += 1
                    done += client.errand.content_bytes
                    if client.errand.watched:
                        times.append(now - client.begun)
                    next_errand = next(errands, None) if now - begin < seconds else None
                    if next_errand is None:
                        epoll.unregister(fd)
                        del clients[fd]
                    else:
                        client.begin(next_errand, now)
        return Done(requests, now - begin, done, percentile(times, 0.99))


class _Client:
    """One connection, and what it is used for at the moment."""

    errand: Errand
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
        self._waste = bytearray(_STEP_BYTES)

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def begin(self, errand: Errand, now: float) -> None:
        """Send the first request of an errand, or as much of it as can be sent now."""
        self.errand, self.begun = errand, now
        self._ask(next(errand.conversation))

    def proceed(self) -> bool:
        """Send and receive what can be; whether the errand is over. Raises `Failed`."""
        if self._unsent:
            self._send()
        if not self._receive():
            return False
        answer, self._received, self._left = Answer(self._received), b"", None
        try:
            request = self.errand.conversation.send(answer)
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
        """Whether an answer is complete. What it says is kept, its body is not."""
        try:
            if self._left is None:
                data = self._socket.recv(65536)
                received = len(data)
                self._begin_answer(data)
            else:
                # MSG_TRUNC: the kernel drops the bytes instead of copying them (tcp(7)).
                step = min(self._left, _STEP_BYTES)
                received = self._socket.recv_into(self._waste, step, socket.MSG_TRUNC)
                self._left -= received
        except BlockingIOError:
            return False
        if not received:
            raise Failed("the server closed the connection within an answer")
        return self._left == 0

    def _begin_answer(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end >= 0:
            begun = len(self._received) - end - 4
            self._received = self._received[: end + 2]
            self._left = (0 if self._bodiless else Answer(self._received).length) - begun


def percentile(times: list[float], part: float) -> float | None:
    """The time that this part of all times does not exceed; `None` of no times."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None
