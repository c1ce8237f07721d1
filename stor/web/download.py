"""One sample on its way to a client."""

from collections.abc import Iterator
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from stor.content import Content
from stor.hot import HotContent

#: One read, one visit to the disk: large enough for the hop to cost little, small enough for
#: thousands of slow clients.
CHUNK_BYTES = 512 * 1024

#: A client that does not take the next piece within so long is cut off: 1 KiB a second.
STALL_SECONDS = 120.0
PIECE_BYTES = 128 * 1024


class Client(Protocol):
    """The request as the sender of its answer needs it."""

    def notifyFinish(self) -> Deferred[None]:  # noqa: N802
        """See `twisted.web.http.Request`: an errback when the client is gone."""

    def registerProducer(self, producer: object, streaming: bool) -> None:  # noqa: N802
        """See `twisted.internet.interfaces.IConsumer`."""

    def unregisterProducer(self) -> None:  # noqa: N802
        """See `twisted.internet.interfaces.IConsumer`."""

    def write(self, data: bytes) -> None:
        """Send a part of the body."""

    def abort(self) -> None:
        """Cut the connection, so that nobody can take the answer for whole."""


@implementer(IPushProducer)
class Sender:
    """Sends part of a sample, no faster than the client takes it; one read is in flight at most."""

    def __init__(self, client: Client, clock: IReactorTime) -> None:
        self._client = client
        self._clock = clock
        self._stall: IDelayedCall | None = None
        self._waiting: Deferred[None] | None = None
        self._paused = False
        self.gone = False

    async def send(self, content: Content[Any] | HotContent, begin: int, end: int) -> None:
        """Send the bytes from `begin` up to `end`, then close `content`; returns when all are sent.

        Raises what `Content.read` raises as long as nothing was sent; after that a failure cuts
        the connection.
        """
        self._client.notifyFinish().addErrback(self._lost)
        self._client.registerProducer(self, True)
        offset = begin
        try:
            while offset < end and not self.gone:
                data = await content.read(offset, min(CHUNK_BYTES, end - offset))
                for piece in _pieces(data):
                    if not self.gone:
                        self._client.write(piece)
                        offset += len(piece)
                        await self._taken()
        except Exception:
            if offset == begin:
                raise
            self._client.abort()
            while not self.gone:
                self._waiting = Deferred()
                await self._waiting
        finally:
            content.close()
            if not self.gone:
                self._client.unregisterProducer()

    def pauseProducing(self) -> None:  # noqa: N802
        """The client takes less than it is sent."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """The client has taken everything."""
        self._paused = False
        self._wake()

    def stopProducing(self) -> None:  # noqa: N802
        """The connection is about to be lost; `notifyFinish` says when it is."""

    def _lost(self, reason: Failure) -> None:
        self.gone = True
        self._wake()

    async def _taken(self) -> None:
        if self._paused and not self.gone:
            self._waiting = Deferred()
            self._stall = self._clock.callLater(STALL_SECONDS, self._client.abort)
            await self._waiting

    def _wake(self) -> None:
        if self._stall is not None and self._stall.active():
            self._stall.cancel()
        self._stall = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


def _pieces(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]
