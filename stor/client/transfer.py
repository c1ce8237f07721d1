"""One body on its way: sent from where it can be read, or received into where it is kept.

A large one is sent in as many requests as it takes.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

#: What is read and sent in one go.
PIECE_BYTES = 256 * 1024

#: What is received before it is given on.
BATCH_BYTES = 1024 * 1024

_LOST = Failure(ConnectionLost())


class Body(Protocol):
    """What is sent."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Exactly these bytes. What it fails with, the request fails with."""


class Sink(Protocol):
    """What a sample is received into."""

    @property
    def received_bytes(self) -> int:
        """How much it has; where the connection breaks, it is gone on from there."""

    def begin(self) -> Awaitable[None]:
        """Forget what has come: all of it comes again."""

    def add(self, data: bytes, *, last: bool) -> Awaitable[None]:
        """Take the next bytes. Raises at the end of what is not the sample."""


class Watch:
    """Ends what does not move: after `seconds` without a `touch` it expires."""

    def __init__(self, reactor: IReactorTime, seconds: float) -> None:
        self.expired: Deferred[None] = Deferred()
        self.has_expired = False
        self._seconds = seconds
        self._cut: Callable[[], object] = lambda: None
        self._later = reactor.callLater(seconds, self.expire)

    def cut(self, cut: Callable[[], object]) -> None:
        """Call `cut` when it expires."""
        self._cut = cut

    def touch(self) -> None:
        """Something has moved."""
        if self._later.active():
            self._later.reset(self._seconds)

    def expire(self) -> None:
        """Expire now."""
        self.end()
        self.has_expired = True
        self._cut()
        if not self.expired.called:
            self.expired.callback(None)

    def end(self) -> None:
        """There is nothing to watch any more."""
        if self._later.active():
            self._later.cancel()


@implementer(IBodyProducer)
class Sending:
    """A body that is sent as fast as it is taken; an answer may come before its end."""

    def __init__(self, body: Body, watch: Watch, moved: Callable[[int], None]) -> None:
        self.length = body.size
        #: What kept it from being read.
        self.problem: BaseException | None = None
        self._body = body
        self._watch = watch
        self._moved = moved
        self._consumer: Any = None
        self._may_go: Deferred[None] | None = None
        self._ended = False
        self._done: Deferred[None] = Deferred(lambda _: self.stopProducing())

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        """See `IBodyProducer`."""
        self._consumer = consumer
        Deferred.fromCoroutine(self._send()).addErrback(self._fail)
        return self._done

    def pauseProducing(self) -> None:  # noqa: N802
        """See `IBodyProducer`."""
        if self._may_go is None:
            self._may_go = Deferred()

    def resumeProducing(self) -> None:  # noqa: N802
        """See `IBodyProducer`."""
        self._watch.touch()
        may_go, self._may_go = self._may_go, None
        if may_go is not None:
            may_go.callback(None)

    def stopProducing(self) -> None:  # noqa: N802
        """See `IBodyProducer`."""
        self._ended = True
        self.resumeProducing()

    def abandon(self) -> None:
        """The answer is there: what is left of the body is not wanted."""
        if self._consumer is None or self._ended:
            return
        self._ended = True
        # No public way leads from a body to its connection; to fail would be logged as a bug.
        self._consumer._consumer.abortConnection()

    async def _send(self) -> None:
        sent = 0
        while sent < self.length and not self._ended:
            data = await self._body.read(sent, min(PIECE_BYTES, self.length - sent))
            if self._ended:
                return
            self._consumer.write(data)
            sent += len(data)
            self._moved(len(data))
            self._watch.touch()
            if self._may_go is not None:
                await self._may_go
        if not self._ended:
            self._ended = True
            self._done.callback(None)

    def _fail(self, failure: Failure) -> None:
        self.problem = failure.value
        if not self._ended:
            self._ended = True
            self._done.errback(failure)


class Receiver(TwistedProtocol):
    """The body of an answer: a sample on its way to a sink, or a line that is kept."""

    transport: Any

    def __init__(
        self, watch: Watch, sink: Sink | None, limit_bytes: int, moved: Callable[[int], None]
    ) -> None:
        self.done: Deferred[None] = Deferred()
        self.kept = bytearray()
        self._watch = watch
        self._sink = sink
        self._limit_bytes = limit_bytes
        self._moved = moved
        self._end: Failure | None = None
        self._giving = False

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take what has come."""
        self._watch.touch()
        if self._sink is None:
            self.kept += data[: self._limit_bytes - len(self.kept)]
            return
        self._moved(len(data))
        self.kept += data
        if len(self.kept) >= BATCH_BYTES:
            self._give(self._sink)

    def connectionLost(self, reason: Failure = _LOST) -> None:  # noqa: N802
        """The body has ended, well or badly."""
        self._end = reason
        if self._sink is None:
            self._finish(reason)
        else:
            self._give(self._sink)

    def cut(self) -> None:
        """Receive no more."""
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()

    def _give(self, sink: Sink) -> None:
        if not self._giving and not self.done.called:
            self._giving = True
            if self._end is None:
                self.transport.pauseProducing()
            Deferred.fromCoroutine(self._give_all(sink)).addErrback(self._fail)

    async def _give_all(self, sink: Sink) -> None:
        while True:
            end = self._end
            data, self.kept = bytes(self.kept), bytearray()
            await sink.add(data, last=end is not None and bool(end.check(ResponseDone)))
            if end is not None:
                self._finish(end)
                return
            if self._end is None and len(self.kept) < BATCH_BYTES:
                self._giving = False
                self.transport.resumeProducing()
                return

    def _fail(self, failure: Failure) -> None:
        if not self.done.called:
            self.done.errback(failure)
            if self._end is None:
                self.cut()

    def _finish(self, end: Failure) -> None:
        if not self.done.called:
            self.done.callback(None) if end.check(ResponseDone) else self.done.errback(end)


#: What is larger is resumed where it was cut off; to send less again costs less than to ask.
PARTS_BYTES = 8 * 1024 * 1024


@attrs.frozen
class Rest:
    """What is left of a `Body` from an offset on."""

    body: Body
    offset: int

    @property
    def size(self) -> int:
        """See `Body`."""
        return self.body.size - self.offset

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body`."""
        return self.body.read(self.offset + offset, length)


class Parts:
    """How far a body has come. What is sent again is no progress."""

    def __init__(self, body: Body, moved: Callable[[int], None]) -> None:
        """`moved` is told of the bytes that have come further than any before."""
        self.body = body
        #: Whether anything was sent.
        self.begun = False
        self._moved = moved
        self._at = 0
        self._counted = 0
        #: The farthest that the server has told, and what of that has been heard of.
        self._told = 0
        self._heard = -1

    def go_on(self, offset: int) -> Rest:
        """What is sent next, behind what the server has."""
        self.begun = True
        self._told = max(self._told, offset)
        self._at = 0
        self.moved(offset)
        return Rest(self.body, offset)

    def moved(self, count: int) -> None:
        """So many more bytes are on their way."""
        self._at += count
        if self._at > self._counted:
            self._moved(self._at - self._counted)
            self._counted = self._at

    def grown(self) -> bool:
        """Whether the server has more of it than when this was asked before."""
        grown, self._heard = self._told > self._heard, self._told
        return grown
