"""The listening side: connections, and how they end."""

import itertools
from collections import OrderedDict
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request, Site

from stor.http.access import Observer, RequestIds
from stor.http.answer import Answer, answer_to
from stor.http.channel import TURNED_AWAY_SECONDS, StorChannel
from stor.http.connections import Elsewhere
from stor.http.pace import LAST_REQUEST_SECONDS, Buffers, Wait
from stor.http.request import Serving, StorRequest
from stor.shared import Count

T = TypeVar("T")

#: How many connections are about to end beside those that are accepted: those that are told that
#: they are too many, and those that have left their place to others.
MAX_ENDING = 200

#: How many of the connections that have waited longest are considered for closing: what one of
#: them has sent may not have been read yet.
LOOKED_AT = 100

#: A refused client that still sends when the service ends.
LAST_LINGER_SECONDS = 1.0

_log = Logger()


class StorSite(Site):
    """Makes channels, and knows them all."""

    # Not the factory of `twisted.web`, which would offer HTTP/2 if it could: all of this is
    # HTTP/1.1.
    protocol = StorChannel
    # Twisted would say that it starts and stops.
    noisy = False
    requestFactory = StorRequest

    def __init__(
        self,
        serving: Serving,
        reactor: IReactorTime,
        served: Observer = lambda served: None,
        connections: Count | None = None,
        elsewhere: Elsewhere[StorChannel] | None = None,
    ) -> None:
        """`served` is told of every request that is over.

        `connections` counts those that were not turned away, here and in other processes, and
        `elsewhere` takes those whose next request is for another process.
        """
        super().__init__(serving.resource, parsePOSTFormSubmission=False, reactor=reactor)
        self.serving = serving
        self.clock = reactor
        self.served = served
        self.elsewhere = elsewhere
        self.request_ids = RequestIds()
        self.channels: set[StorChannel] = set()
        self.buffers = Buffers(reactor.seconds)
        # Those that count no more, the oldest first.
        self._ending: dict[StorChannel, None] = {}
        # What each of the others waits for, those that have waited longest first.
        self._waiting: dict[Wait, OrderedDict[StorChannel, None]] = {
            what: OrderedDict() for what in Wait
        }
        self.at_rest = self._waiting[Wait.REQUEST]
        self._waits_for: dict[StorChannel, Wait] = {}
        self._connections = connections or Count()
        self.crowded = False
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

    def serve(self, serving: Serving) -> None:
        """From now on requests are answered so; those that have begun end as they began."""
        self.serving = serving
        self.see_others()

    def startFactory(self) -> None:  # noqa: N802
        """Do without Twisted's log file and its timer."""

    def stopFactory(self) -> None:  # noqa: N802
        """Do without Twisted's log file and its timer."""

    def log(self, request: Request) -> None:
        """Do without Twisted's access log."""

    def last_call(self) -> None:
        """From now on every connection ends with its next answer."""
        self.draining = True

    def drain(self) -> Deferred[None]:
        """Let what runs finish, and end every connection with it; fires when the last is gone."""
        self.draining = True
        for channel in list(self.channels):
            if channel.idle:
                channel.setTimeout(LAST_REQUEST_SECONDS)
            elif channel.lingering:
                channel.end_within(LAST_LINGER_SECONDS)
            elif not (channel.requests and channel.requests[0].startedWriting):
                # An answer that has begun did not say that its connection ends: the client may send
                # another request, and the answer to that says so.
                channel.persistent = False
        self._drained = Deferred()
        if not self.channels:
            self._drained.callback(None)
        return self._drained

    def cut(self) -> None:
        """End every connection now."""
        for channel in list(self.channels):
            channel.transport.abortConnection()

    def admit(self, channel: StorChannel) -> None:
        """Take a new connection into account; it or another may be one too many."""
        self.channels.add(channel)
        self._count()
        if channel.handed or self._connections.total <= self.serving.max_connections:
            self.wait(channel, Wait.REQUEST)
            return
        other = self._longest_waiting()
        if other is None:
            channel.turned_away = True
            channel.setTimeout(TURNED_AWAY_SECONDS)
            self._end(channel)
        else:
            self._end(other)
            other.leave()
            self.wait(channel, Wait.REQUEST)

    def _longest_waiting(self) -> StorChannel | None:
        """Who loses least: one at rest before one that has begun to ask."""
        for waiting in self._waiting.values():
            for channel in list(itertools.islice(waiting, LOOKED_AT)):
                self.wait(channel, None)
                if not channel.asks:
                    return channel
        return None

    def _end(self, channel: StorChannel) -> None:
        """A connection is about to end, and gives its place to another."""
        self.wait(channel, None)
        self._ending[channel] = None
        self._count()
        if len(self._ending) > MAX_ENDING:
            # In order, so that who has just come is told; and each once in a turn of the reactor.
            oldest = next(iter(self._ending))
            del self._ending[oldest]
            self._ending[oldest] = None
            oldest.cut()

    def wait(self, channel: StorChannel, what: Wait | None) -> None:
        """Take note of what a connection waits for; `None`: a request is under way."""
        before = self._waits_for.pop(channel, None)
        if before is not None:
            # A head waits since its first byte, whatever comes of it.
            if before is what is Wait.HEAD:
                self._waits_for[channel] = before
                return
            del self._waiting[before][channel]
        if what is not None and channel not in self._ending:
            self._waits_for[channel] = what
            self._waiting[what][channel] = None

    def see_others(self) -> None:
        """Take into account how many connections other processes have by now."""
        # Not at every request, as each asks whether it is crowded.
        most = self.serving.max_connections
        self.crowded = self._connections.total >= most - most // 10

    def too_many(self) -> Answer:
        """What one that is too many is told."""
        line = f"too many connections: {self.serving.max_connections} at once are accepted"
        return Answer.line(503, f"{line} (max_connections)", retry_after="2")

    def _count(self) -> None:
        self._connections.mine = len(self.channels) - len(self._ending)
        self.see_others()

    def lost(self, channel: StorChannel) -> None:
        """A connection has ended."""
        self.channels.discard(channel)
        self.wait(channel, None)
        self._ending.pop(channel, None)
        self._count()
        if self._drained is not None and not self._drained.called and not self.channels:
            self._drained.callback(None)


def shield(inner: Deferred[T]) -> Deferred[T]:
    """A Deferred with the outcome of `inner` that can be cancelled without cancelling `inner`.

    Klein cancels a handler when its client disconnects; work in a thread cannot be cancelled, and
    whoever waits for it closes what it opened. A failure after that is logged, unless
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
