"""The listening side: connections, and how they end."""

from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from stor.count import Count
from stor.http.access import Observer
from stor.http.answer import Answer, answer_to
from stor.http.channel import Elsewhere, StorChannel
from stor.http.fast_path import FastPath
from stor.http.request import Reception, StorRequest

T = TypeVar("T")

#: How many connections there are at once, and how many more are told that they are too many.
MAX_CONNECTIONS = 10_000
MAX_TURNED_AWAY = 200

#: A refused client that still sends when the service ends.
LAST_LINGER_SECONDS = 1.0

#: How long a connection without a request is left open when the service ends: a request that is on
#: its way is answered, where closing would cut it.
LAST_REQUEST_SECONDS = 0.5

_log = Logger()


class StorSite(Site):
    """Makes channels, and knows them all."""

    # Not the factory of `twisted.web`, which would offer HTTP/2 if it could: all of this is
    # HTTP/1.1.
    protocol = StorChannel
    requestFactory = StorRequest

    def __init__(
        self,
        resource: IResource,
        reception: Reception,
        reactor: IReactorTime,
        served: Observer = lambda served: None,
        fast_path: FastPath | None = None,
        max_connections: int = MAX_CONNECTIONS,
        connections: Count | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """`served` is told of every request that is over.

        `connections` counts those that were not turned away, here and in other processes, and
        `elsewhere` takes those whose next request is for another process.
        """
        super().__init__(resource, parsePOSTFormSubmission=False, reactor=reactor)
        self.reception = reception
        self.clock = reactor
        self.served = served
        self.fast_path = fast_path
        self.elsewhere = elsewhere
        self.max_connections = max_connections
        self.channels: set[StorChannel] = set()
        self._turned_away: set[StorChannel] = set()
        self._connections = connections or Count()
        self.draining = False
        self._drained: Deferred[None] | None = None

    def buildProtocol(self, address: object) -> StorChannel:  # noqa: N802
        """Make the channel of a new connection."""
        channel: StorChannel = super().buildProtocol(address)
        channel.site = self
        channel.requestFactory = self.requestFactory
        return channel

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """Offer HTTP/1.1 alone when TLS negotiates (RFC 7301)."""
        return [b"http/1.1"]

    def startFactory(self) -> None:  # noqa: N802
        """Do without Twisted's log file and its timer."""

    def stopFactory(self) -> None:  # noqa: N802
        """Do without Twisted's log file and its timer."""

    def log(self, request: Request) -> None:
        """Do without Twisted's access log."""

    def drain(self) -> Deferred[None]:
        """Let what runs finish, and end every connection with it; fires when the last is gone."""
        self.draining = True
        for channel in list(self.channels):
            if channel.idle:
                channel.setTimeout(LAST_REQUEST_SECONDS)
            elif channel.lingering:
                channel.setTimeout(LAST_LINGER_SECONDS)
            else:
                channel.persistent = False
        self._drained = Deferred()
        if not self.channels:
            self._drained.callback(None)
        return self._drained

    def cut(self) -> None:
        """End every connection now."""
        for channel in list(self.channels):
            channel.transport.abortConnection()

    def admit(self, channel: StorChannel) -> Answer | None:
        """Take a new connection into account; what to turn it away with, if it is one too many."""
        self.channels.add(channel)
        self._count()
        if channel.handed or self._connections.total <= self.max_connections:
            return None
        self._turned_away.add(channel)
        self._count()
        line = f"too many connections: {self.max_connections} at once are accepted"
        return Answer.line(503, f"{line} (max_connections)", retry_after="2")

    @property
    def crowded(self) -> bool:
        """Whether there are too many even of those that are turned away."""
        return len(self._turned_away) > MAX_TURNED_AWAY

    def _count(self) -> None:
        self._connections.mine = len(self.channels) - len(self._turned_away)

    def lost(self, channel: StorChannel) -> None:
        """A connection has ended."""
        self.channels.discard(channel)
        self._turned_away.discard(channel)
        self._count()
        if self._drained is not None and not self._drained.called and not self.channels:
            self._drained.callback(None)


def shield(inner: Deferred[T]) -> Deferred[T]:
    """A Deferred with the outcome of `inner` that can be cancelled without cancelling `inner`.

    Klein cancels a handler when its client disconnects; work in a thread cannot be cancelled, and
    what it opened is to be closed by whoever waits for it. A failure after that is logged, unless
    it is one that a client would have been told of.
    """
    outer: Deferred[T] = Deferred(lambda _: None)

    def pass_on(outcome: Any) -> None:
        if not outer.called:
            outer.callback(outcome)
        elif isinstance(outcome, Failure) and answer_to(outcome.value) is None:
            _log.failure("After the client was gone", outcome)

    inner.addBoth(pass_on)
    return outer
