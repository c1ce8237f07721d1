"""Samples of which there are records and no copies: a crash, or a disk, has ended their uploads.

A record is durable before its copy has its name, so that no name is ever missed. What never got the
name would seem to be stored after the next start.
"""

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.copy import Copy
from stor.disk.journal import Kind
from stor.disk.leaving import Leaving
from stor.mirror.group_commit import Step
from stor.mirror.learning import LearningNames
from stor.mirror.member import ANSWER_SECONDS
from stor.mirror.mirror import Mirror
from stor.mirror.turns import Turns
from stor.mirror.write import STEP_SECONDS
from stor.threads import settle, settle_within

#: After a start a crash is made up for as soon as the journals are read, within this many looks.
_WAIT_SECONDS = 0.1
_MOST_WAITS = 50

#: How many are asked about in one turn.
_BATCH = 64


class Unstored:
    """Records, on every disk of a mirror, that samples are not stored which none of them has.

    Only where every disk can be written and says that there is nothing under the name, while
    nobody stores or mends the sample. The index denies it from then on, also after a restart.
    """

    log = Logger()

    def __init__(self, learning: LearningNames, turns: Turns, clock: IReactorTime) -> None:
        self._learning = learning
        self._turns = turns
        self._clock = clock
        self._running = False

    def resume(self) -> None:
        """Go through those that are doubted; called every now and then."""
        if self._running or self._learning.broken is not None:
            return
        if self._learning.doubted or self._learning.busy:
            self._running = True
            Deferred.fromCoroutine(self._run()).addBoth(self._ended)

    def _ended(self, outcome: object) -> None:
        self._running = False
        if isinstance(outcome, Failure):
            self.log.failure("Looking for samples whose uploads had not ended", outcome)

    async def _run(self) -> None:
        doubted = self._learning.doubted
        for _ in range(_MOST_WAITS):  # until what is known of the disks was read
            if not self._learning.busy:
                break
            await deferLater(self._clock, _WAIT_SECONDS)
        for mirror in list(doubted):
            digests = list(doubted[mirror])
            for begin in range(0, len(digests), _BATCH):
                settled = await self._settle(mirror, digests[begin : begin + _BATCH])
                if settled is None or mirror not in doubted:
                    break  # at the next look
                for digest in settled:
                    doubted[mirror].pop(digest, None)
            if not doubted.get(mirror, True):
                del doubted[mirror]

    async def _settle(self, mirror: Mirror, digests: Sequence[Digest]) -> set[Digest] | None:
        """Those of which it is known now whether they are stored; `None`: a disk does not say."""
        if not all(m.writable and m.names is not None and m.names.written for m in mirror.members):
            return None
        idle = [digest for digest in digests if not self._turns.busy(digest)]
        release = await self._turns.hold(idle)
        try:
            async with self._turns.moving(idle):
                asked = [(digest, await self._is_nowhere(mirror, digest)) for digest in idle]
                nowhere = [digest for digest, denied in asked if denied]
                if nowhere and not await self._record(mirror, nowhere):
                    return None
                return {digest for digest, denied in asked if denied is not None}
        finally:
            release()

    async def _is_nowhere(self, mirror: Mirror, digest: Digest) -> bool | None:
        """Whether every disk says that it has nothing under the name; `None`: not all say."""
        asking = [member.check(digest, None, ANSWER_SECONDS) for member in mirror.members]
        answers: list[Copy | Failure | None] = await settle(asking)
        if any(isinstance(answer, Failure) for answer in answers):
            return None
        return not any(answers)

    async def _record(self, mirror: Mirror, digests: Sequence[Digest]) -> bool:
        """Record, durably on every disk, that these are not stored; whether that has gone well."""
        members = mirror.members
        with self._learning.leaving(mirror, Kind.UNSTORED) as event:
            records = [Leaving(m.disk, m.names, digests, event) for m in members]
            recording = [
                member.commit(Step(one.record, one.sync_record, one.recorded, one.record_lost))
                for member, one in zip(members, records, strict=True)
            ]
            outcomes: list[Failure | None] = await settle_within(
                self._clock, STEP_SECONDS, recording
            )
            for member, outcome in zip(members, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    self.log.warn("{root}: {error}", root=member.root, error=str(outcome.value))
                    return False
            for digest in digests:
                self._learning.strike(digest.raw, mirror)
        self.log.info(
            "{mirror}: {number} uploads had not ended, their samples are not stored",
            mirror=mirror,
            number=len(digests),
        )
        return True
