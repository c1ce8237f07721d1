"""The listening sockets that the processes of one Stor share.

The parent opens them and takes no connection. Each other process has the same sockets, and the
kernel gives a connection to whoever is there first: none is lost with a process that ends.
"""

import socket
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet import tcp, unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from stor.sockets import BACKLOG, CannotListen, Ports

#: How long a process with more connections than another leaves a new one to that.
YIELD_SECONDS = 0.002

#: The endpoints whose connections can be handed over. Those with more between socket and request,
#: such as TLS, are for the process that answers everything.
_PLAIN = ("tcp:", "unix:", "systemd:")


@attrs.frozen
class Listener:
    """A socket by the description of its endpoint; `family` as socket(2) has it."""

    description: str
    family: int

    @property
    def plain(self) -> bool:
        """Whether its connections can be handed over."""
        return self.description.startswith(_PLAIN)


class OpenedPorts(Ports):
    """Sockets that are opened here, for other processes to take connections from."""

    def __init__(self, reactor: Any) -> None:
        nobody = Factory()
        nobody.noisy = False
        super().__init__(nobody, reactor)

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
    """The same sockets in the processes that answer."""

    def __init__(
        self, factory: IProtocolFactory, reactor: Any, ahead: Callable[[], bool], *, plain: bool
    ) -> None:
        """`ahead` says whether this process has more connections than another.

        `plain`: listen only where connections can be handed over.
        """
        super().__init__(factory, reactor)
        self._ahead = ahead
        self._plain = plain
        self._sockets: dict[str, tuple[int, int]] = {}

    async def inherit(self, listeners: Sequence[Listener], descriptors: Sequence[int]) -> None:
        """Listen on these and no others. Raises `CannotListen`.

        The descriptors stay the caller's.
        """
        pairs = zip(listeners, descriptors, strict=True)
        self._sockets = {one.description: (fd, one.family) for one, fd in pairs}
        await self.change([o.description for o in listeners if o.plain or not self._plain])

    def _listen(self, description: str) -> IListeningPort:
        fd, family = self._sockets[description]
        inheriting = _Inheriting(self._reactor, fd, family, self._ahead)
        if description.startswith("systemd:"):
            # That the service manager has handed over to the parent alone.
            self._kept.add(description)
            return inheriting.adopt(self._factory)
        outcome = self._try(serverFromString(inheriting, description))
        if isinstance(outcome, Failure):
            raise CannotListen(f"listen: {description}: {outcome.value}")
        return outcome


class _Inheriting:
    """A reactor that listens on a socket which is there already."""

    def __init__(self, reactor: Any, fd: int, family: int, ahead: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._fd = fd
        self._family = family
        self._ahead = ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(  # noqa: N802
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorTCP`."""
        return self.adopt(factory)

    def listenSSL(  # noqa: N802
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: Any,  # noqa: N803
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """See `IReactorSSL`."""
        return self.adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(  # noqa: N802
        self,
        address: bytes,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,  # noqa: N803
    ) -> IListeningPort:
        """See `IReactorUNIX`."""
        return self.adopt(factory)

    def adopt(self, factory: IProtocolFactory) -> IListeningPort:
        """Listen on the socket."""
        port: Any
        make: Any = _UNIXPort if self._family == socket.AF_UNIX else _TCPPort
        if self._family == socket.AF_UNIX:
            port = make._fromListeningDescriptor(self._reactor, self._fd, factory)
            port.backlog = BACKLOG
        else:
            port = make._fromListeningDescriptor(self._reactor, self._fd, self._family, factory)
        port.ahead = self._ahead
        port.startListening()
        listening: IListeningPort = port
        return listening


class _OneByOne:
    """Takes one connection a turn, and leaves it to a process that has fewer, if that takes it.

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
    """A Unix socket that other processes listen on, too; its name is the parent's to remove."""

    # It would be shut down for all of them (Twisted sees to that for TCP alone).
    _shouldShutdown = False

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """Listen no more."""
        tcp.Port.connectionLost(self, reason)
