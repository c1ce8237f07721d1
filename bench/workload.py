"""What a server is given to do."""

from typing import Protocol

import attrs

from bench.server import Server


@attrs.frozen
class Done:
    """What was done in which time. All of it as it should be: anything else is a `Failed`.

    `content_bytes` of samples were moved; the 99th percentile of the times that requests took.
    """

    requests: int
    seconds: float
    content_bytes: int = 0
    p99_seconds: float | None = None


class Workload(Protocol):
    """Clients that ask for the same kind of thing over and over."""

    @property
    def title(self) -> str:
        """What is asked, how large, by how many."""

    def prepare(self, server: Server) -> None:
        """Bring the server to where the clients can begin. Raises `Failed`."""

    def run(self, server: Server, seconds: float) -> Done:
        """Have all clients ask for so long. Raises `Failed`."""
