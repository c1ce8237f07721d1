"""The listening sockets that the processes of one Stor share.

The supervisor opens them and takes no connection. Each worker has the same sockets, and the kernel
gives a connection to whoever is there first: none is lost with a worker that ends.
"""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from stor.sockets import BACKLOG, Ports

#: So long a worker with more connections than another leaves a new one to that.
YIELD_SECONDS = 0.002


@attrs.frozen
class Listener:
    """A socket by the description of its endpoint; `family` as socket(2) has it."""

    description: str
    family: int


class SharedPorts(Ports):
    """Sockets that are opened here, for other processes to take connections from."""

    def sockets(self, descriptions: Sequence[str]) -> tuple[list[Listener], list[int]]:
        """The sockets of these descriptions, and their descriptors."""
        ports: list[Any] = [self._open[description] for description in descriptions]
        listeners = [
            Listener(description, port.socket.family)
            for description, port in zip(descriptions, ports, strict=True)
        ]
        return listeners, [port.fileno() for port in ports]

    async def stop(self) -> None:
        """Have nobody listen any more: the other processes do not by now."""
        await self._close(set(self._open))

    def _listen(self, description: str) -> IListeningPort:
        port: Any = super()._listen(description)
        port.stopReading()
        listening: IListeningPort = port
        return listening


class InheritedPorts(Ports):
    """The same sockets in a worker, with all that their descriptions say: TLS, PROXY."""

    def __init__(self, factory: IProtocolFactory, reactor: Any, ahead: Callable[[], bool]) -> None:
        """`ahead` says whether this process has more connections than another."""
        self._inheriting = _Inheriting(reactor, ahead)
        super().__init__(factory, self._inheriting)

    async def inherit(self, listeners: Sequence[Listener], descriptors: Sequence[int]) -> None:
        """Listen on these and no others. The descriptors are closed. Raises `CannotListen`."""
        pairs = list(zip(listeners, descriptors, strict=True))
        self._inheriting.sockets = {one.description: (fd, one.family) for one, fd in pairs}
        try:
            await self.change([one.description for one in listeners])
        finally:
            for _, fd in pairs:
                os.close(fd)

    def _listen(self, description: str) -> IListeningPort:
        self._inheriting.current = description
        return super()._listen(description)


class _Inheriting:
    """A reactor that listens on sockets which are there already."""

    def __init__(self, reactor: Any, ahead: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._ahead = ahead
        self.sockets: dict[str, tuple[int, int]] = {}
        self.current = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(  # noqa: N802
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorTCP`."""
        return self._adopt(factory)

    def listenSSL(  # noqa: N802
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: Any,  # noqa: N803
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """See `IReactorSSL`."""
        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(  # noqa: N802
        self,
        address: bytes,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,  # noqa: N803
    ) -> IListeningPort:
        """See `IReactorUNIX`."""
        return self._adopt(factory, mode)

    def adoptStreamPort(  # noqa: N802
        self,
        fileDescriptor: int,  # noqa: N803
        addressFamily: int,  # noqa: N803
        factory: IProtocolFactory,
    ) -> IListeningPort:
        """See `IReactorSocket`. The descriptor is the service manager's, not ours."""
        return self._adopt(factory)

    def _adopt(self, factory: IProtocolFactory, mode: int = 0o666) -> IListeningPort:
        fd, family = self.sockets[self.current]
        port: Any
        if family == socket.AF_UNIX:
            port = _UNIXPort._fromListeningDescriptor(self._reactor, fd, factory)
            port.backlog, port.mode = BACKLOG, mode
        else:
            port = _TCPPort._fromListeningDescriptor(self._reactor, fd, family, factory)
        port.ahead = self._ahead
        port.startListening()
        listening: IListeningPort = port
        return listening


class _OneByOne:
    """Takes one connection a turn, and leaves it to a worker that has fewer, if that takes it.

    All that are idle are woken for each connection, and the same one is the fastest every time. It
    would have most of the connections, and they stay.
    """

    ahead: Callable[[], bool]
    _yielded = False

    @property
    def numberAccepts(self) -> int:  # noqa: N802
        """See `twisted.internet.tcp.Port`, which would take more and more."""
        return 1

    @numberAccepts.setter
    def numberAccepts(self, number: int) -> None:  # noqa: N802
        pass

    def doRead(self) -> None:  # noqa: N802
        """A connection is there."""
        port: Any = self
        if self._yielded or not self.ahead():
            self._yielded = False
            super().doRead()  # type: ignore[misc]
        else:
            self._yielded = True
            port.stopReading()
            port.reactor.callLater(YIELD_SECONDS, self._read_on)

    def _read_on(self) -> None:
        port: Any = self
        if port.connected and not port.disconnecting:
            port.startReading()


class _TCPPort(_OneByOne, tcp.Port):
    """A TCP socket that other processes listen on, too."""


class _UNIXPort(_OneByOne, unix.Port):
    """A Unix socket that other processes listen on, too; its name is the supervisor's to remove."""

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Listen no more."""
        tcp.Port.connectionLost(self, reason)
