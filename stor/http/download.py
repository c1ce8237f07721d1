"""One sample on its way to a client."""

from collections.abc import Iterator
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from stor.zero_copy import SplicePipe, SplicePipes

#: The most that one visit to the disk sends where the bytes do not come to memory.
PASS_BYTES = 4 * 1024 * 1024

#: How long a client may take for the next piece before it is cut off: 1 KiB a second.
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

    @property
    def chunk_bytes(self) -> int:
        """How much to read at a time."""

    def hold(self, count: int) -> None:
        """Count bytes that were read for the client and wait to be written."""

    def write(self, data: bytes) -> None:
        """Send a part of the body."""

    def splice_pipe(self, splice_pipes: SplicePipes) -> SplicePipe | None:
        """A way to the client past memory, where there is one: not through TLS."""

    def await_room(self) -> None:
        """Pause the producer until the client has got all that was written, and takes more."""

    def passed(self, count: int) -> None:
        """Count bytes of the body that reached the client through a splice pipe."""

    def abort(self) -> None:
        """Cut the connection, so that nobody can take the answer for whole."""


class Source(Protocol):
    """What is sent: a sample, or an answer that is made while it is sent."""

    @property
    def sendable(self) -> bool:
        """Whether it can be sent past memory."""

    async def read(self, offset: int, length: int) -> bytes:
        """The next bytes, about `length` of them; none at the end."""

    async def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> bool:
        """Send bytes past memory. `False`: they have to be read."""

    def close(self) -> None:
        """Nothing more is read."""

    def give_up(self) -> None:
        """The client is gone."""


@implementer(IPushProducer)
class Sender:
    """Sends part of a sample, no faster than the client takes it; one read is in flight at most.

    A copy that was verified lately is sent past memory, where the transport is a plain socket.
    """

    def __init__(self, client: Client, clock: IReactorTime, splice_pipes: SplicePipes) -> None:
        self._client = client
        self._clock = clock
        self._conduits = splice_pipes
        self._conduit: SplicePipe | None = None
        self._offset = 0
        #: What was sent past memory since the client is known to take anything.
        self._passed_bytes = 0
        self._stall: IDelayedCall | None = None
        self._waiting: Deferred[None] | None = None
        self._paused = False
        self.gone = False

    async def send(self, content: Source, begin: int, end: int) -> None:
        """Send the bytes from `begin` up to `end`, or as many as there are, then close `content`.

        Returns when all are sent. Raises what `Source.read` raises as long as nothing was sent;
        after that a failure cuts the connection.
        """
        self._client.notifyFinish().addErrback(self._lost, content)
        self._client.registerProducer(self, True)
        self._offset = begin
        try:
            while self._offset < end and not self.gone:
                if not await self._pass(content, end) and not await self._write(content, end):
                    break
        except Exception:
            if self._offset == begin:
                raise
            self._client.abort()
            while not self.gone:
                self._waiting = Deferred()
                await self._waiting
        finally:
            content.close()
            self._close_conduit()
            self._end_stall()
            if not self.gone:
                self._client.unregisterProducer()

    async def _write(self, content: Source, end: int) -> bool:
        """Send the next bytes, read into memory. `False`: there are none."""
        length = min(self._client.chunk_bytes, end - self._offset)
        data = await content.read(self._offset, length)
        waiting = len(data)
        for piece in _pieces(data):
            if not self.gone:
                self._client.write(piece)
                self._offset += len(piece)
                waiting -= len(piece)
                self._client.hold(waiting)
                await self._taken()
                self._end_stall()
        return bool(data)

    async def _pass(self, content: Source, end: int) -> bool:
        """Send the next bytes past memory. `False`: they have to be read."""
        if self._conduit is None and content.sendable:
            self._conduit = self._client.splice_pipe(self._conduits)
        splice_pipe = self._conduit
        if splice_pipe is None:
            return False
        good = await content.send(splice_pipe, self._offset, min(PASS_BYTES, end - self._offset))
        if not good:
            self._close_conduit()
        self._count(splice_pipe)
        while good and splice_pipe.level and not self.gone:
            # Also before the first of them: the head is still to be sent.
            self._client.await_room()
            await self._taken()
            splice_pipe.release()
            splice_pipe.flush()
            self._count(splice_pipe)
        return True

    def _count(self, splice_pipe: SplicePipe) -> None:
        """What has got to the client by now."""
        sent = splice_pipe.newly_sent()
        self._offset += sent
        self._client.passed(sent)
        self._passed_bytes += sent
        if self._passed_bytes >= PIECE_BYTES:
            self._end_stall()

    def _close_conduit(self) -> None:
        splice_pipe, self._conduit = self._conduit, None
        if splice_pipe is not None:
            splice_pipe.close()

    def pauseProducing(self) -> None:  # noqa: N802
        """The client takes less than it is sent."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """The client has taken everything."""
        self._paused = False
        self._wake()

    def stopProducing(self) -> None:  # noqa: N802
        """The connection is about to be lost; `notifyFinish` says when it is."""

    def _lost(self, reason: Failure, content: Source) -> None:
        self.gone = True
        content.give_up()
        self._close_conduit()
        self._wake()

    async def _taken(self) -> None:
        """Wait while the client takes nothing, which it may not do for long."""
        if self._paused and not self.gone:
            self._waiting = Deferred()
            if self._stall is None:
                self._stall = self._clock.callLater(STALL_SECONDS, self._client.abort)
            await self._waiting

    def _end_stall(self) -> None:
        """The client has taken a piece."""
        self._passed_bytes = 0
        if self._stall is not None and self._stall.active():
            self._stall.cancel()
        self._stall = None

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


def _pieces(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]
