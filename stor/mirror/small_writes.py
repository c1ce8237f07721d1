"""Small samples being written to every disk of a mirror, all that wait together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.staged import Round, Small, SmallCopies
from stor.errors import StorError
from stor.mirror.group_commit import STUCK_SECONDS
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.placement import on_disk
from stor.mirror.write import DISCARD_SECONDS, MirrorWrite, reason_of
from stor.threads import Busy, Unanswered, settle, settle_within

#: Bodies up to this size are written in rounds, whole; others while they come.
SMALL_BYTES = 64 * 1024

#: A disk that takes longer for a round is treated as failed. What is tried then has its own time,
#: and no client waits for 30 s without an answer.
ROUND_SECONDS = 8.0

#: How many samples are written in a round: one with very many would take long.
_MOST_A_ROUND = 256

#: How many clients are told in one turn of the reactor.
_TOLD_A_TURN = 16


class SmallWrite(Small):
    """A small sample on its way to every disk of a mirror. Implements `stor.mirror.write.Write`.

    Its content is in memory to the end, and on no disk before `commit` or `begin`.
    """

    leaves = MirrorWrite.leaves

    def __init__(self, rounds: "Rounds", digest: Digest, length: int, modified_ns: int) -> None:
        """`length` in bytes; `modified_ns` is what every copy says of its age."""
        super().__init__(digest, b"", modified_ns)
        self.mirror = mirror = rounds.mirror
        self._rounds = rounds
        self._reserved = on_disk(length, mirror.block_bytes)
        mirror.reserved.add(self._reserved, 1)
        mirror.writes += 1
        self._over = False
        self._tell: Callable[[StorError | None], None] = lambda error: None

    @property
    def written_bytes(self) -> int:
        """See `Write.written_bytes`."""
        return len(self.content)

    @property
    def paths(self) -> list[str]:
        """Where its copies are, once it is stored."""
        path = self.digest.disk_path
        return [f"{root}/{path}" for root in self._rounds.roots]

    async def prepare(self) -> None:
        """See `Write.prepare`: the write itself shows whether there is room."""

    async def add(self, chunks: Sequence[bytes], last: bool) -> None:
        """See `Write.add`."""
        self.content += b"".join(chunks)

    async def read_back(self, offset: int, length: int) -> bytes:
        """See `Write.read_back`."""
        return self.content[offset : offset + length]

    async def commit(self) -> tuple[list[str], bool]:
        """See `Write.commit`."""
        ended: Deferred[StorError | None] = Deferred()
        self.begin(ended.callback)
        error = await ended
        if error is not None:
            raise error
        return self.paths, not self.was_there

    def begin(self, tell: Callable[[StorError | None], None]) -> None:
        """Store it: `tell` is told once it is, or of the error, with nothing of it left.

        A disk that hangs leaves it when it answers again.
        """
        self._tell = tell
        self._rounds.add(self)

    def ended(self, error: StorError | None, *, named: bool) -> None:
        """Told by its round; `named`: a disk shows its name, or one that hangs may."""
        self._release()
        if self.event is not None:
            # Who posts the sample again may be told that it is stored already.
            size = len(self.content) if error is None or self.shown else None
            self._rounds.registered(self, named, size)
        if error is None:
            for member in self.mirror.members:
                member.corrupt.discard(self.digest)
        self._tell(error)

    async def discard(self) -> None:
        """See `Write.discard`: what has begun has its own end."""
        self._release()

    def _release(self) -> None:
        if not self._over:
            self._over = True
            self.mirror.reserved.add(-self._reserved, -1)
            self.mirror.writes -= 1


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


class Rounds:
    """The rounds of a mirror: each is one job on each of its disks.

    In a round every disk writes the bodies of all samples that wait, and names those that all disks
    have written in the round before; one sync serves both. So no sample has a name anywhere before
    its bytes and its record are durable everywhere. Where a disk fails or hangs, what it failed is
    given up on all of them.
    """

    log = Logger()

    def __init__(self, mirror: Mirror, clock: IReactorTime, learning: LearningNames | None) -> None:
        """`learning` numbers samples whose records are about to be made, and hears of their end."""
        self.mirror = mirror
        self.roots = [member.root for member in mirror.members]
        self._lanes = [_Lane(member) for member in mirror.members]
        self._clock = clock
        self._learning = learning
        self._waiting: list[SmallWrite] = []
        self._written: list[SmallWrite] = []
        #: Since when a round is under way, if any is.
        self._begun: float | None = None

    @property
    def _prompt(self) -> bool:
        """Whether a sample that comes now is written soon, and shares its syncs."""
        begun = self._begun
        if begun is not None and self._clock.seconds() - begun > STUCK_SECONDS:
            return False
        return not [lane for lane in self._lanes if lane.member.commits.rests]

    def add(self, small: SmallWrite) -> None:
        """Write a sample, at once or with all that come while a round is under way.

        While no syncs are shared, or a disk does not get on, it has rounds of its own.
        """
        if self._prompt:
            self._add(small)
        else:
            Rounds(self.mirror, self._clock, self._learning)._add(small)

    def registered(self, small: SmallWrite, held: bool, size: int | None) -> None:
        """The index hears what became of a sample: see `LearningNames.ended`."""
        if self._learning is not None and small.event is not None:
            self._learning.ended(small.digest, self.mirror, small.event, held, size)

    def _add(self, small: SmallWrite) -> None:
        self._waiting.append(small)
        if self._begun is None:
            self._begin()

    def _begin(self) -> None:
        named, self._written = self._written, []
        fresh, self._waiting = self._waiting[:_MOST_A_ROUND], self._waiting[_MOST_A_ROUND:]
        if not (named or fresh):
            self._begun = None
            return
        self._begun = self._clock.seconds()
        if fresh and self._learning is not None:
            self._learning.begin(self.mirror, fresh)
        rounds = [lane.round(named, fresh) for lane in self._lanes]
        settle_within(self._clock, ROUND_SECONDS, rounds).addCallback(self._ended, named, fresh)

    def _ended(
        self, rounds: list[Round | Failure], named: list[SmallWrite], fresh: list[SmallWrite]
    ) -> None:
        failed = self._failed(rounds, named, fresh)
        if failed:
            stored = [small for small in named if small not in failed]
            self._written = [small for small in fresh if small not in failed]
        else:
            stored, self._written = named, fresh
        if stored:
            for lane in self._lanes:
                lane.copies.keep(stored)
        if failed:
            # Before the next round begins: that would be waited for.
            self._give_up_failed(failed, named, fresh)
        else:
            self._begin()  # first: the disks have work while clients are told
        self._tell(stored)

    def _failed(
        self, rounds: list[Round | Failure], named: list[SmallWrite], fresh: list[SmallWrite]
    ) -> dict[Small, StorError]:
        """What a disk has failed, and why; what all have left is learnt."""
        failed: dict[Small, StorError] = {}
        for lane, its in zip(self._lanes, rounds, strict=True):
            if isinstance(its, Failure):
                root = lane.member.root
                if its.check(OSError, DiskAway, Busy, Unanswered) is None:
                    self.log.failure("Writing to {root}", its, root=root)
                failed = dict.fromkeys((*named, *fresh), reason_of(its.value, root)) | failed
                continue
            if its.room is not None:
                lane.member.health.learn(its.room)
            for small, why in its.failed.items():
                failed.setdefault(small, reason_of(why, lane.member.root))
        return failed

    def _give_up_failed(
        self, failed: dict[Small, StorError], named: list[SmallWrite], fresh: list[SmallWrite]
    ) -> None:
        """Give up what has failed, and go on once every disk has ended what it is at."""
        lost = [small for small in named if small in failed]
        late = [lane for lane in self._lanes if lane.busy]
        if late:
            # Until the disk has ended nobody joins: see `_prompt`.
            waiting, self._waiting = self._waiting, []
            failed |= dict.fromkeys(waiting, next(iter(failed.values())))
            Deferred.fromCoroutine(self._begin_after(late))
            self._give_up(lost, [*fresh, *waiting], failed)
        else:
            self._give_up(lost, [small for small in fresh if small in failed], failed)
            self._begin()

    async def _begin_after(self, late: list[_Lane]) -> None:
        await settle([lane.rest() for lane in late])
        self._begin()

    def _give_up(
        self, named: list[SmallWrite], fresh: list[SmallWrite], why: dict[Small, StorError]
    ) -> None:
        """Leave nothing of these on any disk, and tell who waits for them."""
        smalls = [*named, *fresh]
        if not smalls:
            return
        waited_for = [not lane.busy for lane in self._lanes]
        giving = [lane.give_up(smalls) for lane in self._lanes]

        def given_up(_: object) -> None:
            unsure = not all(one.called for one in giving)
            for small in named:
                small.ended(why[small], named=small.shown or unsure)
            for small in fresh:
                small.ended(why[small], named=False)

        prompt = [one for one, waited in zip(giving, waited_for, strict=True) if waited]
        if prompt:
            settle_within(self._clock, DISCARD_SECONDS, prompt).addCallback(given_up)
        else:
            given_up(None)

    def _tell(self, stored: list[SmallWrite]) -> None:
        for small in stored[:_TOLD_A_TURN]:
            small.ended(None, named=True)
        if len(stored) > _TOLD_A_TURN:
            self._clock.callLater(0, self._tell, stored[_TOLD_A_TURN:])
