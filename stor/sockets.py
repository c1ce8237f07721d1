"""The sockets that a Stor listens on."""

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    UNIXServerEndpoint,
    serverFromString,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure

from stor.threads import settle

#: Connections that wait to be taken.
BACKLOG = 1024

#: A Unix socket that refuses for this long has no listener: one that starts is quicker.
_STARTING_SECONDS = 0.1


class CannotListen(Exception):
    """A socket could not be had; the message says which and why."""


class Ports:
    """The listening sockets, by the descriptions of their endpoints."""

    def __init__(self, factory: IProtocolFactory, reactor: Any) -> None:
        self._factory = factory
        self._reactor = reactor
        self._open: dict[str, IListeningPort] = {}
        # Sockets of the service manager that were taken: their numbers are other files' by now.
        self._adopted: set[int] = set()
        #: The descriptions of those that the service manager keeps open.
        self._kept: set[str] = set()

    @property
    def addresses(self) -> list[object]:
        """Where clients find the service, in the configured order."""
        return [port.getHost() for port in self._open.values()]

    def listen(self, descriptions: Sequence[str]) -> None:
        """Listen on these endpoints. Raises `CannotListen` for the first that is not to be had."""
        for description in descriptions:
            if description not in self._open:
                self._open[description] = self._listen(description)

    async def change(self, descriptions: Sequence[str]) -> None:
        """Listen on these endpoints and no others. Raises `CannotListen`; then all is as before."""
        await self.extend(descriptions)
        await self.restrict(descriptions)

    async def extend(self, descriptions: Sequence[str]) -> None:
        """Listen on these endpoints, too. Raises `CannotListen`; then all is as before."""
        before = set(self._open)
        try:
            self.listen(descriptions)
        except CannotListen:
            await self._close(set(self._open) - before)
            raise

    async def restrict(self, descriptions: Sequence[str]) -> None:
        """Listen on no others any more."""
        await self._close(set(self._open) - set(descriptions))
        # None is left of those when the service has ended in the meantime.
        self._open = {one: self._open[one] for one in descriptions if one in self._open}

    async def stop(self) -> None:
        """Take the connections that have been made, and listen no more.

        Those at a socket that the service manager keeps open are left to who listens there next.
        """
        for description, port in self._open.items():
            if description not in self._kept:
                take_all(port)
        await self._close(set(self._open))

    async def _close(self, descriptions: set[str]) -> None:
        ports = [self._open.pop(description) for description in descriptions]
        await settle([maybeDeferred(port.stopListening) for port in ports])

    def _listen(self, description: str) -> IListeningPort:
        endpoint = serverFromString(self._reactor, _with_backlog(description))
        if isinstance(endpoint, AdoptedStreamServerEndpoint):
            if endpoint.fileno in self._adopted:
                taken = "the service manager's socket was taken already; it is there after a start"
                raise CannotListen(f"listen: {description}: {taken}")
            self._adopted.add(endpoint.fileno)
            self._kept.add(description)
        outcome = self._try(endpoint)
        if isinstance(endpoint, UNIXServerEndpoint) and isinstance(outcome, Failure):
            error = outcome.value
            if isinstance(error, CannotListenError) and _remove_leftovers(error.port):
                outcome = self._try(endpoint)
        if isinstance(outcome, Failure):
            raise CannotListen(f"listen: {description}: {_reason(outcome.value)}")
        return outcome

    def _try(self, endpoint: IStreamServerEndpoint) -> IListeningPort | Failure:
        outcomes: list[IListeningPort | Failure] = []
        # Every server endpoint of Twisted answers at once.
        endpoint.listen(self._factory).addBoth(outcomes.append)
        return outcomes[0]


def take_all(port: Any) -> None:
    """Take every connection that waits in the kernel: closing on one would reset it."""
    waiting = select.poll()
    waiting.register(port.fileno(), select.POLLIN)
    while waiting.poll(0):
        port.doRead()


def _remove_leftovers(path: bytes) -> bool:
    """Remove the Unix socket and the lock of a process that has ended; whether that was all.

    Twisted's lock names a process id, which another process may have by now: what tells is
    whether the socket has a listener.
    """
    if not _is_abandoned(path):
        return False
    time.sleep(_STARTING_SECONDS)
    if not _is_abandoned(path):
        return False
    try:
        for leftover in (path, path + b".lock"):
            with suppress(FileNotFoundError):
                os.unlink(leftover)
    except OSError:
        return False
    return True


def _is_abandoned(path: bytes) -> bool:
    """Whether there is a socket without a listener, or nothing at all."""
    if b"\0" in path:  # not a file: it goes with its process (unix(7))
        return False
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            return probe.connect_ex(path) == errno.ECONNREFUSED
    except OSError as error:
        return error.errno == errno.ENOENT


def _reason(error: BaseException | None) -> str:
    """Why an endpoint is not to be had, in words for who has configured it."""
    found = getattr(error, "socketError", error)
    path = getattr(error, "port", None)
    # Of a Unix socket; what keeps Twisted from its lock has no number.
    if isinstance(path, bytes) and getattr(found, "errno", None) in (None, errno.EADDRINUSE):
        with suppress(OSError):
            there = os.stat(path)
            is_socket = stat.S_ISSOCK(there.st_mode)
            return "another process listens there" if is_socket else "what is there is no socket"
    return getattr(found, "strerror", None) or str(found)


def _with_backlog(description: str) -> str:
    """A burst of connections waits in the kernel, where Twisted alone would let 50 wait."""
    if description.startswith(("tcp:", "ssl:")) and "backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description
