"""Small samples being written to every disk of a mirror, all that wait together."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.disk.disk import DiskAway
from stor.disk.small_copies import Round, Small, SmallCopies
from stor.mirror.group_commit import STUCK_SECONDS
from stor.mirror.member import Member
from stor.mirror.write import DISCARD_SECONDS
from stor.threads import Busy, Unanswered, settle, settle_within

#: A disk that takes longer for a round is treated as failed. What is tried then has its own time,
#: and no client waits for 30 s without an answer.
ROUND_SECONDS = 8.0

#: How many samples are written in a round: one with very many would take long.
_MOST_A_ROUND = 256

#: How many clients are told in one turn of the reactor.
_TOLD_A_TURN = 16


class SmallWrite(Small, ABC):
    """A small sample on its way, and who waits for it."""

    @abstractmethod
    def stored(self) -> None:
        """Every copy has its name, durably."""

    @abstractmethod
    def failed(self, *, named: bool) -> None:
        """Nothing of it is left, but on a disk that hangs; `named`: that may show its name, too."""


class _Lane:
    """One disk, and its rounds."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.copies = SmallCopies(member.disk, member.commits.can_share)
        self._last: Deferred[Any] | None = None

    @property
    def busy(self) -> bool:
        return self._last is not None and not self._last.called

    def round(self, named: Sequence[Small], fresh: Sequence[Small]) -> Deferred[Round]:
        member = self.member
        self._last = last = member.write(self.copies.round, member.names, named, fresh)
        return last

    def give_up(self, smalls: Sequence[Small]) -> Deferred[None]:
        """Once the disk has ended what it is at, also where that takes long."""
        give_back = partial(self.member.give_back, partial(self.copies.give_up, smalls))
        if self._last is None or self._last.called:
            return give_back()
        given: Deferred[None] = Deferred()
        self._last.addBoth(lambda _: give_back().chainDeferred(given))
        return given

    def rest(self) -> Deferred[None]:
        """Fires once the disk has ended what it is at."""
        rest: Deferred[None] = Deferred()
        if self._last is None or self._last.called:
            rest.callback(None)
        else:
            self._last.addBoth(lambda _: rest.callback(None))
        return rest


class SmallWrites:
    """The rounds of a mirror: each is one job on each of its disks.

    In a round every disk writes the bodies of all samples that wait, and names those that all disks
    have written in the round before; one sync serves both. So no sample has a name anywhere before
    its bytes and its record are durable everywhere. Where a disk fails or hangs, what it failed is
    given up on all of them.
    """

    log = Logger()

    def __init__(
        self,
        members: Sequence[Member],
        clock: IReactorTime,
        register: Callable[[Sequence[Small]], None],
    ) -> None:
        """`register` numbers samples whose records are about to be made."""
        self._lanes = [_Lane(member) for member in members]
        self._clock = clock
        self._register = register
        self._waiting: list[SmallWrite] = []
        self._written: list[SmallWrite] = []
        #: Since when a round is under way, if any is.
        self._begun: float | None = None

    @property
    def prompt(self) -> bool:
        """Whether a sample that comes now is written soon, and shares its syncs."""
        begun = self._begun
        if begun is not None and self._clock.seconds() - begun > STUCK_SECONDS:
            return False
        return not any(lane.member.commits.rests for lane in self._lanes)

    def add(self, small: SmallWrite) -> None:
        """Write a sample, with all that come in this turn of the reactor; it is told the end."""
        self._waiting.append(small)
        if self._begun is None:
            self._begun = self._clock.seconds()
            self._clock.callLater(0, self._begin)

    def _begin(self) -> None:
        named, self._written = self._written, []
        fresh, self._waiting = self._waiting[:_MOST_A_ROUND], self._waiting[_MOST_A_ROUND:]
        if not (named or fresh):
            self._begun = None
            return
        self._begun = self._clock.seconds()
        self._register(fresh)
        rounds = [lane.round(named, fresh) for lane in self._lanes]
        settle_within(self._clock, ROUND_SECONDS, rounds).addCallback(self._ended, named, fresh)

    def _ended(
        self, rounds: list[Round | Failure], named: list[SmallWrite], fresh: list[SmallWrite]
    ) -> None:
        failed: set[Small] = set()
        for lane, its in zip(self._lanes, rounds, strict=True):
            if isinstance(its, Failure):
                if its.check(OSError, DiskAway, Busy, Unanswered) is None:
                    self.log.failure("Writing to {root}", its, root=lane.member.root)
                failed.update(named, fresh)
            else:
                lane.member.health.learn(its.room)
                failed.update(its.failed)
        stored = [small for small in named if small not in failed] if failed else named
        self._written = [small for small in fresh if small not in failed] if failed else fresh
        for lane in self._lanes:
            lane.copies.keep(stored)
        late = [lane for lane in self._lanes if lane.busy]
        lost = [small for small in named if small in failed]
        if late:
            # Until the disk has ended nobody joins: see `prompt`.
            waiting, self._waiting = self._waiting, []
            Deferred.fromCoroutine(self._begin_after(late))
            self._give_up(lost, [*fresh, *waiting])
        else:
            # Not after the next round has begun: that would be waited for.
            self._give_up(lost, [small for small in fresh if small in failed])
            self._begin()  # first: the disks have work while clients are told
        self._tell(stored)

    async def _begin_after(self, late: list[_Lane]) -> None:
        await settle([lane.rest() for lane in late])
        self._begin()

    def _give_up(self, named: list[SmallWrite], fresh: list[SmallWrite]) -> None:
        """Leave nothing of these on any disk, and tell who waits for them."""
        smalls = [*named, *fresh]
        if not smalls:
            return
        waited_for = [not lane.busy for lane in self._lanes]
        giving = [lane.give_up(smalls) for lane in self._lanes]

        def given_up(_: object) -> None:
            for small in named:
                small.failed(named=True)
            for small in fresh:
                small.failed(named=False)

        prompt = [one for one, waited in zip(giving, waited_for, strict=True) if waited]
        if prompt:
            settle_within(self._clock, DISCARD_SECONDS, prompt).addCallback(given_up)
        else:
            given_up(None)

    def _tell(self, stored: list[SmallWrite]) -> None:
        for small in stored[:_TOLD_A_TURN]:
            small.stored()
        if len(stored) > _TOLD_A_TURN:
            self._clock.callLater(0, self._tell, stored[_TOLD_A_TURN:])
