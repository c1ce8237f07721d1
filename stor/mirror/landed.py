"""What clients have stored on this host, in the order of its numbers, for those who follow it."""

from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from stor.disk.disk import DiskAway
from stor.disk.journal import Record
from stor.disk.names import DiskNames
from stor.errors import Gone, Unavailable
from stor.index.numbers import Numbers
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.threads import Busy, settle

#: How many of the latest samples are kept in memory for all who follow.
MOST_RECENT = 10_000

#: Those that wait are told so long after something has landed, with what lands meanwhile.
WAKE_SECONDS = 0.1


@attrs.frozen
class Page:
    """What landed after a number, in order, up to the number `end`."""

    records: Sequence[Record]
    end: int


class Landed:
    """Only what was stored by clients, and only up to the lowest number that is still in flight.

    So nothing is told before its 201, and nothing is left out: also what a crash has cut off from
    its 201 is told, once its disks show it. Where the memory does not reach back, journals tell.
    """

    def __init__(
        self,
        numbers: Numbers,
        clock: IReactorTime,
        read: Callable[..., Deferred[Any]],
    ) -> None:
        """`read` calls a function in a disk's thread: `read(member, function)`, given its root."""
        self._numbers = numbers
        self._clock = clock
        self._read = read
        self._recent: deque[Record] = deque()
        #: All that landed from this number on is in `_recent`.
        self._recent_from = numbers.next
        #: What the numbers began with, and the highest of what has landed since.
        self._base = self._last = numbers.next - 1
        #: Up to this number some journals are none of ours any more.
        self._untold = 0
        self._waiting: list[Deferred[None]] = []
        self._waking = False

    @property
    def end(self) -> int:
        """Everything up to this number has landed, or never will.

        A number that nothing durable has is not told: the next process may use it again.
        """
        return min(self._numbers.low - 1, self.highest)

    @property
    def highest(self) -> int:
        """Nothing that has landed has a higher number."""
        return max(self._base, self._last)

    def jumped(self) -> None:
        """The numbers go on higher: disks may know of what has some of those between."""
        self._recent.clear()
        self._recent_from = self._numbers.next
        self._base = self._numbers.next - 1

    def taken_out(self, number: int) -> None:
        """Up to a number a part of what landed is told by a set that is none of ours any more."""
        self._untold = max(self._untold, number)

    def add(self, record: Record) -> None:
        """A client's sample is stored; its number is no longer in flight."""
        self._recent.append(record)
        self._last = max(self._last, record.sequence)
        if len(self._recent) > MOST_RECENT:
            self._recent_from = max(self._recent_from, self._recent.popleft().sequence + 1)
        if self._waiting and not self._waking:
            self._waking = True
            self._clock.callLater(WAKE_SECONDS, self._wake)

    async def wait(self, seconds: float) -> None:
        """Return once something has landed, or after this time."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        timer = self._clock.callLater(seconds, self._wake_one, waiting)
        await waiting
        if timer.active():
            timer.cancel()

    async def after(self, number: int, limit: int, mirrors: Sequence[Mirror]) -> Page:
        """The next samples after a number, about `limit` of each mirror at most.

        Raises `Gone`, `Unavailable`: no disk of a mirror can tell now.
        """
        end, records = self.end, list[Record]()
        if number >= end:
            return Page((), number)
        if number + 1 >= self._recent_from:
            found = [one for one in self._recent if number < one.sequence <= end]
            return _page(found, end, limit)
        if number < self._untold:
            raise Gone("what landed so long ago is not known any more: a set was taken out since")
        reading = [
            Deferred.fromCoroutine(self._of(mirror, number, end, limit)) for mirror in mirrors
        ]
        for told in await settle(reading):
            if isinstance(told, Failure):
                told.raiseException()
            page: Page = told
            records += page.records
            end = min(end, page.end)
        return _page([one for one in records if one.sequence <= end], end, len(records))

    async def _of(self, mirror: Mirror, number: int, end: int, limit: int) -> Page:
        silent = [member.root for member in mirror.members if not _can_tell(member)]
        for member in mirror.members:
            names = member.names
            if not _can_tell(member) or names is None:
                continue
            try:
                told: Page | None = await self._read(member, _Asked(names, number, end, limit))
            except (DiskAway, Busy, OSError) as error:
                silent.append(f"{member.root} ({error})")
                continue
            if told is not None:
                return told
        if silent:
            raise Unavailable(f"what landed on {mirror} is not said by {', '.join(silent)}")
        raise Gone(f"what landed on {mirror} so long ago is not known any more")

    def _wake(self) -> None:
        self._waking = False
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def _wake_one(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.callback(None)


@attrs.frozen
class _Asked:
    """Reads a disk's journal, in the disk's thread."""

    names: DiskNames
    number: int
    end: int
    limit: int

    def __call__(self, root_fd: int) -> Page | None:
        journal = self.names.journal
        if self.names.founding and not journal.end.segment:
            return Page((), self.end)  # nothing was ever stored there
        if not journal.tells(self.number, root_fd):
            return None
        found = journal.stored(self.number, self.end, self.limit, root_fd)
        if journal.damage is not None:  # met while it was read: some may be missing
            return None
        return _page(found, self.end, self.limit)


def _can_tell(member: Member) -> bool:
    return member.health.sound and member.names is not None and member.names.written


def _page(records: list[Record], end: int, limit: int) -> Page:
    records = sorted(records, key=attrgetter("sequence"))
    if len(records) > limit:
        records = records[:limit]
        end = records[-1].sequence
    return Page(records, end)
