"""Storing distinct samples."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from bench.body import Bodies, Body
from bench.connection import Connection, head
from bench.cores import Cores
from bench.errors import Failed
from bench.server import Server
from bench.workload import Done
from stor.digest import Digest

#: Samples that are hashed in advance for each second; running out ends a turn early.
PREPARED_PER_SECOND = 2000


class Post:
    """A workload: each client stores one new sample after the other on a connection of its own."""

    def __init__(self, cores: Cores, size: int, clients: int) -> None:
        self.title = f"POST {size // 1024} KiB, {clients} clients"
        self._cores = cores
        self._clients = clients
        self._bodies = Bodies(size)
        self._prepared: deque[tuple[Digest, Body]] = deque()

    def prepare(self, server: Server) -> None:
        """See `Workload.prepare`."""

    def run(self, server: Server, seconds: float) -> Done:
        """See `Workload.run`."""
        while len(self._prepared) < seconds * PREPARED_PER_SECOND:
            body = next(self._bodies)
            self._prepared.append((Digest.of(body.whole), body))
        with Cores.held(self._cores.client), ThreadPoolExecutor(self._clients) as threads:
            begin = time.monotonic()
            clients = [
                threads.submit(self._client, server, begin + seconds) for _ in range(self._clients)
            ]
            requests = sum(client.result() for client in clients)
            return Done(requests, time.monotonic() - begin)

    def _client(self, server: Server, end: float) -> int:
        requests = 0
        with Connection(server.url(self._prepared[0][0])) as connection:
            while time.monotonic() < end:
                try:
                    digest, body = self._prepared.popleft()
                except IndexError:
                    break
                request = head("POST", server.url(digest), self._bodies.size, server.authorization)
                status, answer = connection.exchange(request + body.whole)
                if status != 201:
                    raise Failed(f"{server.name} answered {status} to POST: {answer[:200]!r}")
                requests += 1
        return requests
