"""What is measured: a server that gives and takes samples over HTTP."""

import socket
from typing import Protocol

from stor.digest import Digest


class Server(Protocol):
    """One process that answers on loopback."""

    @property
    def name(self) -> str:
        """What it is called in the table."""

    @property
    def authorization(self) -> str | None:
        """The header's value that lets a client store; `None` when there is none to send."""

    @property
    def pid(self) -> int:
        """The process to charge."""

    def start(self) -> None:
        """Be ready to answer. Raises `Failed`."""

    def url(self, digest: Digest) -> str:
        """Where a sample is fetched and stored."""

    def stop(self) -> None:
        """End, leaving no process. Harmless when it was not started."""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
