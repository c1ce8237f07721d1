"""Connections, and what else one process of a Stor says to another, over a socket of theirs."""

import os
import pickle
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

import attrs
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from stor.digest import Digest
from stor.disk.copy import MadeSums
from stor.http.channel import StorChannel
from stor.http.connections import Given, Handed
from stor.http.request import needs_writer
from stor.http.site import StorSite

#: What is asked of the kernel for what waits in a line (socket(7), SO_SNDBUF), and how much of it
#: a message takes at most. What is larger goes as the descriptor of memory.
LINE_BYTES = 1024 * 1024
MESSAGE_BYTES = 64 * 1024

#: How many descriptors come with a message at most (unix(7), SCM_MAX_FD), and how many messages
#: are heard in a turn of the reactor.
_DESCRIPTORS = 253

#: No pickle: what stands for a message that is in memory.
_IN_MEMORY = b"memory"
_MESSAGES_A_TURN = 16

#: How many messages are given back at most: who gets some may send others meanwhile.
_MOST_BACK = 10_000


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a line."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINE_BYTES)
    return ends


def send_back(end: socket.socket) -> None:
    """Give what nobody has heard at one end of a line, who has ended, back to who sent it."""
    with suppress(OSError):
        for _ in range(_MOST_BACK):
            data, descriptors, _, _ = socket.recv_fds(end, MESSAGE_BYTES, _DESCRIPTORS)
            try:
                socket.send_fds(end, [data], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)


@implementer(IReadDescriptor)
class Line:
    """One end of a socket to another process: messages arrive whole, in order, or not at all.

    They are pickled, which is safe between processes that are one program of one user: whoever
    could write to this socket could as well write to their memory.
    """

    log = Logger()

    def __init__(
        self,
        end: socket.socket,
        reactor: Any,
        heard: Callable[[Any, list[int]], None],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`heard` is given each message with its descriptors, which it has to close.

        `lost` is called when nobody has the other end any more.
        """
        self._end = end
        self._reactor = reactor
        self._heard = heard
        self._lost = lost
        self._open = True

    def send(self, message: object, descriptors: Sequence[int] = ()) -> bool:
        """Send a message, and copies of descriptors; whether it went. Never waits."""
        if not self._open:
            return False
        data = pickle.dumps(message)
        try:
            if len(data) <= MESSAGE_BYTES:
                socket.send_fds(self._end, [data], descriptors)
            else:
                with _memory(data) as memory:
                    socket.send_fds(self._end, [_IN_MEMORY], [memory.fileno(), *descriptors])
        except OSError:
            return False
        return True

    def listen(self) -> None:
        """Hear what comes, from now on."""
        self._reactor.addReader(self)

    def hear(self) -> bool:
        """Hear one message, if one is there."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._end, MESSAGE_BYTES, _DESCRIPTORS)
        except BlockingIOError:
            return False
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.close()
            self._lost()
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        try:
            if data == _IN_MEMORY:
                with open(descriptors.pop(0), "rb") as memory:
                    data = memory.read()
            self._heard(pickle.loads(data), descriptors)  # noqa: S301 - see the class
        except Exception:
            self.log.failure("On a message of another process")
        return True

    def close(self) -> None:
        """Say and hear no more."""
        if self._open:
            self._open = False
            self._reactor.removeReader(self)
            self._end.close()

    def doRead(self) -> None:  # noqa: N802
        """See `IReadDescriptor`."""
        for _ in range(_MESSAGES_A_TURN):
            if not (self._open and self.hear()):
                return

    def fileno(self) -> int:
        """See `IReadDescriptor`."""
        return self._end.fileno()

    def logPrefix(self) -> str:  # noqa: N802
        """See `IReadDescriptor`."""
        return "processes"

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802
        """See `IReadDescriptor`."""
        self.close()


def _memory(data: bytes) -> BinaryIO:
    """Memory with this in it, to be read from its beginning."""
    memory = os.fdopen(os.memfd_create("message", os.MFD_CLOEXEC), "w+b")
    memory.write(data)
    memory.seek(0)  # which writes it, too
    return memory


@attrs.frozen
class Connection:
    """A connection on its way; its socket comes with it."""

    family: int
    handed: Handed


@attrs.frozen
class Lacking:
    """A copy of a sample is missing or bad on the set with these roots."""

    digest: Digest
    roots: tuple[str, ...]


@attrs.frozen
class Trouble:
    """The disk with this root has had an error."""

    root: str


#: What readers tell the writer.
Found = Lacking | Trouble | MadeSums


class Handover:
    """What this process hands over, and takes over. Implements `stor.http.elsewhere.Elsewhere`.

    A reader has one line, to the writer; the writer has one to each reader.
    """

    def __init__(
        self,
        ends: Sequence[socket.socket],
        reactor: Any,
        *,
        writes: bool,
        serves: Callable[[int], bool],
        told: Callable[[Found], None],
    ) -> None:
        """`serves` says of each line whether the process at its other end answers requests.

        `told` is told what readers have found.
        """
        self._reactor = reactor
        self._writes = writes
        self._serves = serves
        self._told = told
        self._site: StorSite | None = None
        self._lines = [Line(end, reactor, partial(self._heard, n)) for n, end in enumerate(ends)]

    def open(self, site: StorSite) -> None:
        """Take over, for this site, what others hand over, and hand over what is for them."""
        self._site = site
        site.elsewhere = self
        for line in self._lines:
            line.listen()

    def hear_all(self) -> None:
        """Take over all that is on its way."""
        for line in self._lines:
            while line.hear():
                pass

    def tell(self, found: Found) -> None:
        """Tell the writer; what it does not hear somebody will meet again."""
        self._lines[0].send(found)

    def answers(self, channel: StorChannel, line: bytes, rest: bytes) -> bool:
        """See `Elsewhere.answers`."""
        if not self._writes:
            return needs_writer(line, rest)
        ours = self._site is not None and self._site.draining
        return channel.giver is not None and not ours and not needs_writer(line, rest)

    def give(self, channel: StorChannel, handed: Handed) -> Given:
        """See `Elsewhere.give`."""
        to = channel.giver if isinstance(channel.giver, int) else 0
        if not self._serves(to):
            return Given.NOBODY
        transport: Any = channel.transport
        message = Connection(transport.socket.family, handed)
        if not self._lines[to].send(message, [transport.fileno()]):
            return Given.CROWDED
        _let_go(transport)
        return Given.GONE

    def _heard(self, line: int, message: object, descriptors: list[int]) -> None:
        if isinstance(message, Found):
            self._told(message)
        elif isinstance(message, Connection):
            try:
                self._take_over(line, message, descriptors[0])
            finally:
                os.close(descriptors[0])

    def _take_over(self, line: int, message: Connection, fd: int) -> None:
        if self._site is None:
            raise ValueError("a connection comes before there is a site")
        channels = _Channels(self._site, message.handed, line if self._writes else None)
        with suppress(OSError):  # the client has gone away
            self._reactor.adoptStreamConnection(fd, message.family, channels)
        for channel in channels.made:
            channel.go_on(message.handed)


class _Channels(Factory):
    """Makes the channel of a connection that was handed over."""

    noisy = False

    def __init__(self, site: StorSite, handed: Handed, giver: int | None) -> None:
        self._site = site
        self._handed = handed
        self._giver = giver
        self.made: list[StorChannel] = []

    def buildProtocol(self, addr: object) -> StorChannel:  # noqa: N802
        """See `twisted.internet.interfaces.IProtocolFactory`."""
        channel = self._site.buildProtocol(addr)
        channel.take_over(self._handed, self._giver)
        self.made.append(channel)
        return channel


def _let_go(transport: Any) -> None:
    """Have no part in a connection any more, without ending it.

    Twisted's own ways to end one shut the socket down for every process that has it.
    """
    transport.stopReading()
    transport.stopWriting()
    transport.connected, transport.disconnected = 0, 1
    os.close(transport.socket.detach())
