"""Looking for a sample's copies, best first, without waiting for a disk that hangs."""

import errno
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.copy import Copy, mark_of
from stor.errors import Damaged
from stor.mirror.member import ANSWER_SECONDS, DiskSource, Member
from stor.mirror.mirror import Mirror, Place
from stor.mirror.names import Names
from stor.threads import within

T = TypeVar("T", Copy, DiskSource)

#: A disk that has not answered by then is asked no less, but the next one is asked too.
HEDGE_SECONDS = 0.25

#: So many mirrors are asked at once where nobody knows which of them holds the sample.
MOST_AT_ONCE = 8


@attrs.define(eq=False)
class _Attempt:
    """One disk that was asked; `outcome` when it has answered."""

    place: Place
    answered: bool = False
    outcome: Any = None


class Search:
    """One sample's copies, in the order in which they are tried.

    Asked are the mirrors that hold the sample as far as the index knows, then those of which it
    does not know all; with no index, all. Of a mirror one disk is asked, and the next one when that
    does not do or is late. Copies found missing or bad on the way to a good one are reported for
    repair.
    """

    log = Logger()
    tier = "disk"

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        digest: Digest,
        report: Callable[[Digest, Mirror], None],
        clock: IReactorTime,
        rng: random.Random,
        hint: Mirror | None = None,
        names: Names | None = None,
    ) -> None:
        """`report` is told of a sample that lacks a good copy on a mirror.

        `hint` is the mirror where the sample probably is. `names` is the index, if there is one.
        """
        self.attempts = 0
        self.damaged: list[str] = []
        self.mirror: Mirror | None = None
        self._digest = digest
        self._names = names
        self._indexed = names is not None and len(mirrors) > 0
        self._since = 0
        #: The mirrors that hold the sample, as the index has it.
        self._holders: tuple[Mirror, ...] = ()
        if names is not None:
            self._since = names.next_number
            known = names.find(digest)
            self._holders = known.holders
            mirrors = [*known.holders, *known.unsure]
            if hint not in mirrors or known.holders:
                hint = next(iter(known.holders), None)
        self._mirrors = list(mirrors)
        self._report = report
        self._clock = clock
        #: The disks to ask, best first.
        self._candidates = deque(in_order(self._mirrors, rng, hint))
        self._known = {*self._holders, hint}
        self._heard: dict[Mirror, int] = {}
        #: How many disks of a mirror have nothing under the name; where one of them is complete;
        #: where something bad is; where a disk could not say.
        self._denied: dict[Mirror, int] = {}
        self._proved: set[Mirror] = set()
        self._bad: set[Mirror] = set()
        self._failed: set[Mirror] = set()
        self._incomplete: set[Mirror] = set()
        self._trouble: list[str] = []
        self._waiting: list[_Attempt] = []
        self._wake: Deferred[None] | None = None
        self._closed = False

    async def look(self) -> Copy | None:
        """The next copy by its name, not read; `None` when there are no more. Never raises."""

        async def ask(member: Member) -> Copy | None:
            return await member.look(self._digest)

        return await self._next(ask)

    async def next(self) -> DiskSource | None:
        """The next copy that can be opened, `None` when there are no more. Never raises."""

        async def ask(member: Member) -> DiskSource | None:
            return await member.open(self._digest)

        return await self._next(ask)

    async def twin(self, source: DiskSource) -> DiskSource | None:
        """Another copy on the mirror that holds `source`. Never raises."""
        mirror = self.mirror_of(source)
        others = [place for place in self._candidates if place.mirror is not mirror]
        self._candidates = deque(place for place in self._candidates if place.mirror is mirror)
        found = await self.next()
        self._candidates.extend(others)
        return found

    def mark_corrupt(self, source: DiskSource, reason: str) -> None:
        """The copy has turned out to be bad: it is not served again, and repaired."""
        source.member.found_damaged(self._digest, reason, source.mark)
        self.suspect(source)

    def suspect(self, source: DiskSource) -> None:
        """The copy could not be read: have it looked at."""
        self._report(self._digest, self.mirror_of(source))

    def close(self) -> None:
        """No more copies are wanted; those that come too late are closed."""
        self._closed = True
        for attempt in self._waiting:
            if attempt.answered:
                _close(attempt.outcome)

    @property
    def consulted(self) -> bool:
        """See `stor.lookup.Search`: the index has told of all disks, or some were asked."""
        return self._indexed or self.attempts > 0

    @property
    def unanswered(self) -> str | None:
        """Why a mirror could hold the sample all the same, `None` when every one has answered."""
        for mirror in self._mirrors:
            if not self._has_said_no(mirror) and mirror not in self._spoiled:
                faults = [m.health.fault for m in mirror.members if m.health.fault]
                reasons = "; ".join([*faults, *self._trouble])
                return reasons or f"{mirror}: no answer from a disk that is complete"
        return None

    def _has_said_no(self, mirror: Mirror) -> bool:
        """Whether it is proved that the mirror does not hold the sample. The one rule for 404.

        All its disks are sound and have nothing under the name; or one that is complete has not,
        and nothing speaks against it: no other disk has something there, or could not say what it
        has, and no copy waits for repair. A disk that is away, or hangs, does not speak against
        it: one dead disk is not to keep all that nobody has from being 404. But what the index
        knows to be on a mirror is gone only when all its disks say so.
        """
        if self._denied.get(mirror) == len(mirror.members):
            return True
        if mirror in self._holders:
            return False
        known_there = (
            mirror in self._bad
            or mirror in self._failed
            or any(self._digest in m.corrupt or self._digest in m.noted for m in mirror.members)
        )
        return mirror in self._proved and not known_there

    def mirror_of(self, source: DiskSource) -> Mirror:
        """The mirror that `source` is on."""
        return next(mirror for mirror in self._mirrors if source.member in mirror.members)

    @property
    def _spoiled(self) -> set[Mirror]:
        """The mirrors whose disks have all been heard, and that hold nothing but bad copies."""
        return {m for m in self._bad if self._heard.get(m) == len(m.members)}

    async def _next(self, ask: Callable[[Member], Coroutine[Any, Any, T | None]]) -> T | None:
        while True:
            attempt = next((a for a in self._waiting if a.answered), None)
            if attempt is not None:
                self._waiting.remove(attempt)
                found: T | None = self._weigh(attempt.place, attempt.outcome)
                if found is not None:
                    return found
                continue
            if self._candidates:
                self._ask(self._candidates.popleft(), ask)
                while self._may_ask_another():
                    self._ask(self._candidates.popleft(), ask)
                await self._answer(hedge=True)
            elif self._waiting:
                await self._answer(hedge=False)
            elif self._asked_all():
                return None

    def _may_ask_another(self) -> bool:
        """Whether the next disk is asked beside those that have been: not two of one mirror."""
        if not self._candidates or len(self._waiting) >= MOST_AT_ONCE:
            return False
        asked = {attempt.place.mirror for attempt in self._waiting}
        return asked.isdisjoint(self._known) and self._candidates[0].mirror not in asked

    def _asked_all(self) -> bool:
        """Whether the index knows of no further place; it is told of what is gone."""
        if self._names is None:
            return True
        for mirror in self._holders:
            if self._denied.get(mirror) == len(mirror.members):
                self._names.lost(self._digest, mirror, self._since)
        moved = [m for m in self._names.find(self._digest).holders if m not in self._holders]
        for mirror in moved:  # one that was asked before it got there says more now
            self._denied.pop(mirror, None)
            self._heard.pop(mirror, None)
        self._mirrors += [m for m in moved if m not in self._mirrors]
        self._holders += tuple(moved)
        self._candidates.extend(
            place for m in moved for place in m.places if place.member.health.readable
        )
        return not moved

    def _ask(self, place: Place, ask: Callable[[Member], Any]) -> None:
        attempt = _Attempt(place)
        member = place.member
        self._waiting.append(attempt)
        self.attempts += 1

        def answered(outcome: object) -> None:
            attempt.answered, attempt.outcome = True, outcome
            if self._closed:
                _close(outcome)
            elif self._wake is not None:
                wake, self._wake = self._wake, None
                wake.callback(None)

        asking = Deferred.fromCoroutine(ask(member))
        within(self._clock, ANSWER_SECONDS, asking, late=_close).addBoth(answered)

    async def _answer(self, *, hedge: bool) -> None:
        """Wait until a disk has answered; not long, when there is another one to ask."""
        if any(attempt.answered for attempt in self._waiting):
            return
        wake: Deferred[None] = Deferred()
        self._wake = wake
        timer = None
        if hedge:
            timer = self._clock.callLater(HEDGE_SECONDS, self._hurry, wake)
        await wake
        if timer is not None and timer.active():
            timer.cancel()

    def _hurry(self, wake: Deferred[None]) -> None:
        self._wake = None
        wake.callback(None)

    def _weigh(self, place: Place, outcome: Any) -> Any:
        mirror, member = place.mirror, place.member
        if isinstance(outcome, Failure):
            self._weigh_failure(place, outcome)
            return None
        self._heard[mirror] = self._heard.get(mirror, 0) + 1
        if outcome is not None:
            if mirror in self._incomplete or (isinstance(outcome, DiskSource) and outcome.misfit):
                self._report(self._digest, mirror)
            self.mirror = mirror
            return outcome
        if member.health.sound:
            self._denied[mirror] = self._denied.get(mirror, 0) + 1
        if member.trusted:
            self._proved.add(mirror)
        self._incomplete.add(mirror)
        return None

    def _weigh_failure(self, place: Place, failure: Failure) -> None:
        mirror, member = place.mirror, place.member
        if failure.check(Damaged):
            self.damaged.append(str(failure.value))
            self._bad.add(mirror)
            self._heard[mirror] = self._heard.get(mirror, 0) + 1
            member.found_damaged(self._digest, str(failure.value), mark_of(failure.value))
            self._report(self._digest, mirror)
        else:
            self._trouble.append(f"{member.root}: {failure.value}")
            if isinstance(failure.value, OSError):
                self._failed.add(mirror)
            if isinstance(failure.value, OSError) and failure.value.errno == errno.EIO:
                self._incomplete.add(mirror)


def in_order(
    mirrors: Sequence[Mirror], rng: random.Random, hint: Mirror | None = None
) -> list[Place]:
    """The disks of these mirrors that can be read from, best first.

    In random order the first disk of each mirror, then the rest, so that load spreads; those of
    the mirror `hint` before others. After all others come disks that something is known against:
    that are slow or not sound, or not complete where others of their mirror are.
    """
    places: list[tuple[bool, bool, int, int, Place]] = []
    shuffled = sorted(mirrors, key=lambda mirror: (mirror is not hint, rng.random()))
    for number, mirror in enumerate(shuffled):
        proved = any(member.trusted for member in mirror.members)
        first = int(rng.random() * len(mirror.places))
        for level, place in enumerate(mirror.places[first:] + mirror.places[:first]):
            member = place.member
            if member.health.readable:
                good = member.trusted if proved else member.health.sound
                turn = 0 if mirror is hint else level + 1
                places.append((not good, member.slow, turn, number, place))
    return [place for *_, place in sorted(places, key=itemgetter(0, 1, 2, 3))]


def _close(outcome: object) -> None:
    if isinstance(outcome, DiskSource):
        outcome.close()
