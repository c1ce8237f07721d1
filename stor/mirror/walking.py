"""Walking a disk, and telling its journal and the index of what is there."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from stor.digest import Digest
from stor.disk.journal import Kind, Record
from stor.disk.names import DiskNames, found_names
from stor.disk.walk import Batch, walk
from stor.index.numbers import Numbers
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.threads import settle_within

T = TypeVar("T")

#: How many of the lowest directories are walked in one go.
_BATCH_DIRECTORIES = 64


#: How long the end of Stor waits for what is noted on the disks.
_END_SECONDS = 2.0


class NotKnown(Exception):
    """Why not all names of a disk could be learnt."""


@attrs.define(eq=False)
class DiskState:
    """How far the index knows a disk.

    `learnt` is what the index was told of; `in_base` says that its base is in no table yet, and
    `left` what has left since that base was made.
    """

    heard: DiskNames | None = None
    learnt: DiskNames | None = None
    in_base: bool = False
    left: set[bytes] = attrs.field(factory=set)
    running: bool = False
    not_before: float = 0.0


class InThread(Protocol):
    """What does blocking work in a thread with a name."""

    def __call__(self, name: str, function: Callable[..., T], /, *args: Any) -> Deferred[T]:
        """Fires with what `function` returns."""


class Walking:
    """Walks disks, one batch of directories after the other; each is durable before the next."""

    log = Logger()

    def __init__(
        self,
        numbers: Numbers,
        in_thread: InThread,
        take: Callable[[Sequence[Record], Mirror], Awaitable[None]],
    ) -> None:
        """`take` tells the index of what a batch has found on a disk of a mirror."""
        self._numbers = numbers
        self._in_thread = in_thread
        self._take = take

    async def walk(
        self,
        member: Member,
        mirror: Mirror,
        names: DiskNames,
        pace: Callable[[int], None],
        goes_on: Callable[[], Awaitable[bool]],
        walked: Callable[[int, float], None] = lambda samples, share: None,
    ) -> bool:
        """Walk a disk on from where an earlier walk has come to; whether this came to the end.

        It is asked before each batch whether it `goes_on`; `walked` is told of each. Raises
        `NotKnown`, `DiskAway`, `Busy`, `OSError`, and what `goes_on` and `pace` raise.
        """
        batches = walk(member.disk, names.cursor or "", pace, _BATCH_DIRECTORIES)
        while True:
            if not await goes_on():
                return False
            batch = await self._in_thread(member.root, _next, batches)
            if batch is None:
                break
            if batch.unreadable:
                first = batch.unreadable[0]
                raise NotKnown(f"{first.path}: {first.error.strerror}")
            low, number = self._numbers.low, self._numbers.begin()
            found = [Record(s.sha, number, s.size, s.inode, 0, Kind.FOUND) for s in batch.samples]
            try:
                await self._in_thread(
                    member.root, found_names, member.disk, names, batch, number, low
                )
                await self._take(found, mirror)
            finally:
                self._numbers.end(number)
            if names is not member.names:
                raise NotKnown("another disk is there than was walked")
            walked(len(batch.samples), batch.share)
        if not member.health.sound:
            raise NotKnown(member.health.fault or "the disk was not to be read meanwhile")
        await self._in_thread(member.root, on_disk, member, partial(names.walked, None))
        self.log.info("{root}: all names are known", root=member.root)
        return True

    async def as_job(
        self,
        member: Member,
        mirror: Mirror,
        state: DiskState,
        turn: Callable[[], Awaitable[None]],
        pace: Callable[[int], None],
        walked: Callable[[int, float], None],
        *,
        anew: bool,
    ) -> None:
        """Walk a disk to its end, `anew` or from where an earlier walk has come to.

        `turn` is awaited before each batch, and may raise; the rest is as for `walk`.
        """
        names = member.names
        if names is None or state.running:
            raise NotKnown(f"{member.root}: it cannot be walked now")

        async def goes_on() -> bool:
            await turn()
            return True

        state.running = True
        try:
            if anew:  # also after a crash
                await self._in_thread(member.root, on_disk, member, partial(names.walked, ""))
            await self.walk(member, mirror, names, pace, goes_on, walked)
        finally:
            state.running = False

    def tell_low(
        self, mirror: Mirror, states: Mapping[Member, DiskState], doubted: Mapping[Digest, int]
    ) -> None:
        """Tell the disks below which number nothing is in flight, nor is of those `doubted`."""
        low = min([self._numbers.low, *doubted.values()])
        for member in mirror.members:
            names = member.names
            if names is not None and names is states[member].learnt:
                names.low = low

    async def note_ends(self, mirrors: Sequence[Mirror], clock: IReactorTime) -> None:
        """Have each disk that is written note how it was left. Never raises."""
        noting = [
            self._in_thread(member.root, on_disk, member, member.names.end)
            for mirror in mirrors
            for member in mirror.members
            if member.names is not None and member.names.written and member.writable
        ]
        if noting:
            await settle_within(clock, _END_SECONDS, noting)


def as_long_as(holds: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """What `Walking.walk` asks before each batch, if that takes no time to say."""

    async def goes_on() -> bool:
        return holds()

    return goes_on


def on_disk(member: Member, act: Callable[[int], T]) -> T:
    """What is done on a disk, given its root. Raises `DiskAway`, `OSError`."""
    with member.disk.entered() as root_fd:
        return act(root_fd)


def _next(batches: Iterator[Batch]) -> Batch | None:
    return next(batches, None)
