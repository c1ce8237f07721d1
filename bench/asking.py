"""Clients that run errands, as a workload."""

from collections.abc import Callable, Iterator, Sequence

import attrs

from bench.body import Body
from bench.clients import Clients
from bench.cores import Cores
from bench.errand import Errand, stores
from bench.errors import Failed
from bench.exchange import fetch
from bench.server import Server
from bench.workload import Done

_PATIENCE_SECONDS = 60.0


@attrs.frozen
class Asking:
    """A workload: so many clients run the errands that there are for a server.

    What is `stored` is stored before, unless the server has it.
    """

    title: str
    cores: Cores
    clients: int
    errands: Callable[[Server], Iterator[Errand]]
    stored: Sequence[Body] = ()

    def prepare(self, server: Server) -> None:
        """See `Workload.prepare`."""
        store_before(server, self.stored)

    def run(self, server: Server, seconds: float) -> Done:
        """See `Workload.run`."""
        with Cores.held(self.cores.client):
            return _run(server, self.clients, self.errands(server), seconds)


def store_before(server: Server, bodies: Sequence[Body]) -> None:
    """Store what the server has not, and look whether the first comes back. Raises `Failed`."""
    missing = [body for body in bodies if _fetched(server, body)[0] != 200]
    _run(server, 1, stores(server, missing), _PATIENCE_SECONDS)
    for body in bodies[:1]:
        status, content = _fetched(server, body)
        if status != 200 or content != b"".join(body.parts):
            raise Failed(f"{server.name} does not give the sample: status {status}")


def _run(server: Server, clients: int, errands: Iterator[Errand], seconds: float) -> Done:
    try:
        return Clients(server.base, clients).run(errands, seconds)
    except Failed as error:
        raise Failed(f"{server.name}: {error}") from error


def _fetched(server: Server, body: Body) -> tuple[int, bytes]:
    answer = fetch(server.base + server.path(body.digest))
    if answer is None:
        raise Failed(f"{server.name} does not listen")
    return answer
