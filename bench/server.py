"""What is measured: a server that gives and takes samples over HTTP."""

import socket
from typing import Protocol

from bench.body import Body
from bench.exchange import Conversation
from stor.digest import Digest


class Server(Protocol):
    """A process, with those that it starts, that answers on loopback."""

    @property
    def name(self) -> str:
        """What it is called in the table."""

    @property
    def base(self) -> str:
        """`http://HOST:PORT`, once it was started."""

    @property
    def pid(self) -> int:
        """The process to charge, with all below it."""

    def start(self) -> None:
        """Be ready to answer. Raises `Failed`."""

    def path(self, digest: Digest) -> str:
        """Where below `base` a sample is fetched."""

    def storing(self, body: Body) -> Conversation:
        """What a client says to store a sample that is new. Raises `Failed` when it is refused."""

    def stop(self) -> None:
        """End, leaving no process. Harmless when it was not started."""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
