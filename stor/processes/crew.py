"""The workers, as the supervisor sees them: forked, told what to do, heard, and replaced."""

import socket
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.processes.forks import Forks
from stor.processes.order import Order
from stor.processes.snapshot import Snapshot
from stor.processes.wire import Messages, Wire
from stor.threads import Shared, settle

#: How long a worker may take to serve as it was told, to take no more connections, and to say
#: what it knows of its work.
SERVE_SECONDS = 60.0
LEAVE_SECONDS = 5.0
SNAPSHOT_SECONDS = 2.0

#: A worker that does not answer a ping for so long hangs, and is ended.
PING_INTERVAL_SECONDS = 5.0
PING_SECONDS = 30.0

#: One that has lived for so long is replaced at once when it ends; others after growing pauses.
PROVEN_SECONDS = 10.0
SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0


@attrs.define(eq=False)
class Hand:
    """One worker's place: who is there now, and how those before fared."""

    number: int
    wire: Wire | None = None
    since: float = 0.0
    failures: int = 0
    pinged: bool = False
    snapshot: Snapshot | None = None


class Crew:
    """Keeps every place filled."""

    log = Logger()

    def __init__(
        self,
        workers: int,
        forks: Forks,
        reactor: Any,
        messages: Messages,
        ended: Callable[[Hand], None],
    ) -> None:
        """`messages` are what workers may ask for; `ended` is told of a place that is empty."""
        self._forks = forks
        forks.ended = self._say_ended
        self._reactor = reactor
        self._messages = messages
        self._ended = ended
        self._hands = [Hand(number) for number in range(1, workers + 1)]
        self._order: Callable[[], tuple[Order, list[int]]] | None = None
        self._stopping = False
        self._empty: Deferred[None] | None = None
        self._gathering: Shared[str, None] = Shared()
        self._pinging = LoopingCall(self._ping)
        self._pinging.clock = reactor

    @property
    def missing(self) -> list[int]:
        """The numbers of the workers that are not there."""
        return [hand.number for hand in self._hands if hand.wire is None]

    @property
    def snapshots(self) -> list[Snapshot]:
        """What is known of the work of each, as last heard."""
        return [hand.snapshot for hand in self._hands if hand.snapshot is not None]

    async def start(self, order: Callable[[], tuple[Order, list[int]]]) -> None:
        """Have every worker serve; `order` gives what each is told, and descriptors with it."""
        self._order = order
        self._pinging.start(PING_INTERVAL_SECONDS, now=False)
        await settle([self._fill(hand) for hand in self._hands])

    async def serve(self) -> None:
        """Tell all workers what the order is now; returns when all of them follow it."""
        order, descriptors = self._ordered()
        serving = [
            hand.wire.ask(SERVE_SECONDS, "serve", order, descriptors=descriptors)
            for hand in self._hands
            if hand.wire is not None
        ]
        for outcome in await settle(serving):
            if isinstance(outcome, Failure):
                self.log.error("A worker does not serve: {error}", error=str(outcome.value))

    def tell(self, message: str, *arguments: object) -> None:
        """Tell every worker."""
        for hand in self._hands:
            if hand.wire is not None:
                hand.wire.tell(message, *arguments)

    def gather(self) -> Deferred[None]:
        """Hear from all workers what they know of their work."""
        return self._gathering.run("", lambda: Deferred.fromCoroutine(self._gather()))

    async def stop(self, listen_no_more: Callable[[], Any], seconds: float) -> None:
        """Have all workers finish, for so long at most.

        `listen_no_more` is called when none of them takes connections any more.
        """
        self._stopping = True
        self._pinging.stop()
        self._empty = Deferred()
        leaving = [h.wire.ask(LEAVE_SECONDS, "leave") for h in self._hands if h.wire is not None]
        await settle(leaving)
        await listen_no_more()
        if len(self.missing) < len(self._hands):
            deadline = self._reactor.callLater(seconds, self._empty.callback, None)
            await self._empty
            if deadline.active():
                deadline.cancel()
        self._forks.stop()

    def _say_ended(self, process: int, pid: int, status: int) -> None:
        # Its place is filled when its socket says so, too.
        if not self._stopping:
            self.log.error(
                "Pool {number} (pid {pid}) has ended: {how}",
                number=process,
                pid=pid,
                how=f"signal {status & 0x7F}" if status & 0x7F else f"status {status >> 8}",
            )

    def _fill(self, hand: Hand) -> Deferred[None]:
        return Deferred.fromCoroutine(self._take_in(hand)).addErrback(self._bug)

    async def _take_in(self, hand: Hand) -> None:
        if self._stopping:
            return
        ours = self._forks.fork(hand.number)
        wire = Wire(self._messages, self._reactor, lambda: self._lost(hand, wire))
        hand.wire, hand.since, hand.pinged = wire, self._reactor.seconds(), False
        factory = Factory.forProtocol(lambda: wire)
        self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        ours.close()
        order, descriptors = self._ordered()
        (outcome,) = await settle(
            [wire.ask(SERVE_SECONDS, "serve", order, descriptors=descriptors)]
        )
        if isinstance(outcome, Failure):
            number, error = hand.number, str(outcome.value)
            self.log.error("Pool {number} does not serve: {error}", number=number, error=error)
            wire.close()
        elif hand.failures:
            self.log.info("Pool {number} is back", number=hand.number)

    def _lost(self, hand: Hand, wire: Wire) -> None:
        if hand.wire is not wire:
            return
        hand.wire = None
        self._ended(hand)
        hand.snapshot = None
        if self._stopping:
            if self._empty is not None and not self._empty.called and not self._present():
                self._empty.callback(None)
            return
        proven = self._reactor.seconds() - hand.since >= PROVEN_SECONDS
        hand.failures = 1 if proven else hand.failures + 1
        pause = 0.0
        if hand.failures > 1:
            pause = min(SHORTEST_PAUSE_SECONDS * 2.0**hand.failures, LONGEST_PAUSE_SECONDS)
        self._reactor.callLater(pause, self._fill, hand)

    def _present(self) -> Sequence[Hand]:
        return [hand for hand in self._hands if hand.wire is not None]

    async def _gather(self) -> None:
        asked = self._present()
        snapshots = await settle(
            [hand.wire.ask(SNAPSHOT_SECONDS, "snapshot") for hand in asked if hand.wire]
        )
        for hand, snapshot in zip(asked, snapshots, strict=True):
            if isinstance(snapshot, Snapshot) and hand.wire is not None:
                hand.snapshot = snapshot

    def _ping(self) -> None:
        for hand in self._present():
            if hand.wire is not None and not hand.pinged:
                hand.pinged = True
                pinging = hand.wire.ask(PING_SECONDS, "ping")
                pinging.addCallbacks(
                    self._ponged,
                    self._hangs,
                    callbackArgs=(hand,),
                    errbackArgs=(hand, hand.wire),
                )

    def _ponged(self, _: object, hand: Hand) -> None:
        hand.pinged = False

    def _hangs(self, failure: Failure, hand: Hand, wire: Wire) -> None:
        hand.pinged = False
        if hand.wire is wire:  # not when it has ended in the meantime
            self.log.error(
                "Pool {number} hangs, and is ended: {error}",
                number=hand.number,
                error=str(failure.value),
            )
            self._forks.kill(hand.number)

    def _ordered(self) -> tuple[Order, list[int]]:
        if self._order is None:
            raise ValueError("workers are needed before there is something to do")
        return self._order()

    def _bug(self, failure: Failure) -> None:
        self.log.failure("Filling a worker's place", failure)
