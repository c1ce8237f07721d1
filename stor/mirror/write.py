"""A sample being written to every disk of a mirror."""

import errno
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, TypeVarTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.disk.disk import Disk, DiskAway, Room
from stor.disk.errnos import Fault, fault_of
from stor.disk.staged import StagedCopy
from stor.errors import NoRoom, StorError, Unavailable
from stor.index.numbers import Registration
from stor.mirror.group_commit import Step
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.placement import on_disk
from stor.threads import settle, settle_within, within

#: Makes a staged file: given the disk, its root, the length if known, and who makes the sums.
Staging = Callable[[Disk, int, int | None, BlockSummer], StagedCopy]

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: A disk that takes longer for one step is treated as failed; what it still does is undone. With
#: what is waited for before and after it, clients are not left without an answer for 30 s.
STEP_SECONDS = 15.0

#: How long an upload waits for the last disk to give back what it holds before it is answered.
DISCARD_SECONDS = 5.0

#: What a client is told that a failure has left.
NOTHING_KEPT = "nothing was kept"

#: Up to this size the staged files are made together with the first write, in one visit to a disk.
STAGE_EARLY_BYTES = 1024 * 1024


class Write(Protocol):
    """A sample being written to disks of a mirror.

    `add` the content, then `commit`; in the end `discard`, which does nothing the second time, or
    after a commit. Calls must not overlap: await each before the next. After `commit`
    has returned, every copy is on stable storage under its final name; after `discard` no disk
    keeps anything that was not committed.
    """

    @property
    def mirror(self) -> Mirror:
        """Where it is written."""

    @property
    def written_bytes(self) -> int:
        """How much was added."""

    async def prepare(self) -> None:
        """Have room on every disk before the body is asked for, unless the body is small.

        Raises `NoRoom`, `Unavailable`.
        """

    async def add(self, chunks: Sequence[bytes], last: bool) -> None:
        """Append `chunks` to every copy. Raises like `prepare`: then they do not count.

        A write that is to take the rest of another one's body gets them again.
        """

    async def commit(self) -> tuple[list[str], bool]:
        """Make every copy and its name durable: the paths, and whether they are new.

        Raises like `prepare`.
        """

    async def discard(self) -> None:
        """Leave nothing behind on any disk. Never raises.

        A disk that hangs is cleaned when it answers again: one that was given up is not waited for,
        any other for `DISCARD_SECONDS` at most.
        """

    async def read_back(self, offset: int, length: int) -> bytes:
        """A part of what has been written, from a disk that has not failed.

        Raises `Unavailable` when there is none.
        """


class Slot:
    """One disk's part in a write. Its steps run one after the other, also after a time-out."""

    def __init__(
        self,
        member: Member,
        digest: Digest,
        summer: BlockSummer,
        bad: str | None = None,
        registration: Registration | None = None,
        staging: Staging = StagedCopy.begin,
    ) -> None:
        """`bad` says why the copy to replace is bad, where that is known."""
        self._registration = registration
        self._staging = staging
        self.member = member
        self.digest = digest
        self._summer = summer
        self._bad = bad
        self.staged: StagedCopy | None = None
        self._last: Deferred[Any] | None = None

    def run(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Call `function` in one of the disk's threads once the step before has ended."""
        return self._after_last(lambda: self.member.write(function, *args, about=self.digest))

    def give_back(self, function: Callable[[], None]) -> Deferred[None]:
        """Call `function`, which ends the write here, once the last step has ended."""
        return self._after_last(lambda: self.member.give_back(function))

    def _after_last(self, begin: Callable[[], Deferred[T]]) -> Deferred[T]:
        last = self._last
        step: Deferred[T]
        if last is None or last.called:
            step = begin()
        else:
            step = Deferred()
            # The step before has told its failure to whoever waited for it.
            last.addBoth(lambda _: begin().chainDeferred(step))
        self._last = step
        return step

    @property
    def used(self) -> bool:
        """Whether any step was begun."""
        return self._last is not None

    @property
    def busy(self) -> bool:
        """Whether a step has not ended yet."""
        return self._last is not None and not self._last.called

    def stage(self, length: int | None) -> Room:
        """Make the staged file, once; what is left on the disk after it. Runs in a thread."""
        with self.member.disk.entered() as root_fd:
            self.staged = self._staging(self.member.disk, root_fd, length, self._summer)
        return self.staged.room()

    def add(
        self, length: int | None, chunks: Sequence[bytes], modified_ns: int | None
    ) -> Deferred[Room | None]:
        """Append `chunks`; with `modified_ns` they are the last, and the file is synced.

        Fires with what is left on the disk, unless `stage` has told.
        """
        if modified_ns is None:
            return self.run(self._append, length, chunks)
        if self.used:
            # Much may be written by now: others are not to wait for it.
            return self.run(self._append_last, chunks, modified_ns)
        return self._commit(
            Step(
                partial(self._write_all, chunks, modified_ns),
                self._sync,
                self._recorded,
                self._record_lost,
            )
        )

    def publish(self, digest: Digest) -> Deferred[bool]:
        """Give the copy its name, durably; fires with whether it got it."""
        copy = self.copy
        return self._commit(
            Step(
                lambda root_fd: copy.name(digest, root_fd, self._bad),
                partial(copy.sync_directories, digest),
                partial(copy.published, digest),
            )
        )

    def _commit(self, step: Step[T]) -> Deferred[T]:
        return self._after_last(lambda: self.member.commit(step, about=self.digest))

    def _append(self, length: int | None, chunks: Sequence[bytes]) -> Room | None:
        room = self.stage(length) if self.staged is None else None
        self.copy.write(chunks)
        return room

    def _append_last(self, chunks: Sequence[bytes], modified_ns: int) -> None:
        self.copy.write(chunks)
        self.copy.seal(self.digest, modified_ns)
        with self.member.disk.entered() as root_fd:
            self._record(root_fd)
            self._sync(root_fd)
        self.copy.recorded()

    def _write_all(self, chunks: Sequence[bytes], modified_ns: int, root_fd: int) -> Room:
        # Nothing is allocated: the write itself shows whether there is room.
        self.staged = StagedCopy.begin(self.member.disk, root_fd, None, self._summer)
        self.staged.write(chunks)
        self.staged.seal(self.digest, modified_ns)
        self._record(root_fd)
        return self.staged.room()

    def _recorded(self) -> None:
        self.copy.recorded()

    def _record_lost(self) -> None:
        self.copy.record_lost()

    def _record(self, root_fd: int) -> None:
        names, its = self.member.names, self._registration
        if its is None:
            return
        if names is None or not names.written:
            raise DiskAway(f"{self.member.root}: its journal is not open")
        self.copy.record(names.journal, self.digest, names.event_here(its.event), root_fd)

    def _sync(self, root_fd: int) -> None:
        self.copy.sync()
        self.copy.sync_record(root_fd)

    def discard(self) -> None:
        """Leave nothing behind on this disk. Runs in a thread."""
        if self.staged is not None:
            self.staged.discard()

    @property
    def copy(self) -> StagedCopy:
        """The staged copy. Raises `ValueError` before `stage`."""
        if self.staged is None:
            raise ValueError("a copy is used before it is staged")
        return self.staged


class MirrorWrite:
    """A sample that is written while it comes. Implements `Write`."""

    #: What a client is told that a failure has left.
    leaves = NOTHING_KEPT

    def __init__(
        self,
        mirror: Mirror,
        members: Sequence[Member],
        digest: Digest,
        length: int | None,
        reserve_bytes: int,
        modified_ns: int,
        bad: Mapping[Member, str] = MappingProxyType({}),
        registration: Registration | None = None,
        *,
        staging: Staging = StagedCopy.begin,
        summer: BlockSummer | None = None,
    ) -> None:
        """`length` in bytes when known; `modified_ns` is what every copy says of its age.

        `bad` says why copies to replace are bad, where that is known. `registration` tells the
        disks' journals of the sample, and the index once every copy has its name. `staging` makes
        the staged files, `summer` their sums.
        """
        self._registration = registration
        self.mirror = mirror
        self.written_bytes = 0
        self._digest = digest
        self._length = length
        self._reserve_bytes = reserve_bytes
        self._modified_ns = modified_ns
        summer = summer or BlockSummer()
        self._slots = [
            Slot(member, digest, summer, bad.get(member), registration, staging)
            for member in members
        ]
        self._failed: set[Slot] = set()
        self._reserved = on_disk(length or 0, mirror.block_bytes)
        mirror.reserved.add(self._reserved, 1)
        self._holds_reservation = True
        mirror.writes += 1
        self._ended = False
        #: Whether any copy may have its name.
        self._naming = False

    async def prepare(self) -> None:
        """See `Write.prepare`."""
        if self._length is None or self._length > STAGE_EARLY_BYTES:
            await self._everywhere(lambda slot: slot.run(slot.stage, self._length))

    async def add(self, chunks: Sequence[bytes], last: bool) -> None:
        """Append `chunks` to every copy; sync every copy after the last. Raises like `prepare`."""
        modified_ns = self._modified_ns if last else None
        if last and self._registration is not None:
            self._registration.begin()
        await self._everywhere(lambda slot: slot.add(self._length, chunks, modified_ns))
        if self._length is None:
            await self._keep_reserve()
        self.written_bytes += sum(map(len, chunks))

    async def commit(self) -> tuple[list[str], bool]:
        """See `Write.commit`."""
        digest = self._digest
        self._naming = True
        named = await self._everywhere(lambda slot: slot.publish(digest))
        self._end()
        if self._registration is not None:
            self._registration.done(self.written_bytes)
        for slot in self._slots:
            slot.copy.keep()
            slot.member.corrupt.discard(digest)
        return [f"{slot.member.root}/{digest.disk_path}" for slot in self._slots], all(named)

    async def discard(self) -> None:
        """See `Write.discard`."""
        await self._give_back(lambda slot: slot.discard)

    async def _give_back(self, function: Callable[[Slot], Callable[[], None]]) -> None:
        """End it, once, with what `function` has for each disk."""
        self.release()
        ended, naming = self._ended, self._naming
        used = [] if ended else [slot for slot in self._slots if slot.used]
        self._end()
        waited_for = [slot for slot in used if not slot.busy]
        discarding = {slot: slot.give_back(function(slot)) for slot in used}
        try:
            if waited_for:
                clock = waited_for[0].member.clock
                await settle_within(clock, DISCARD_SECONDS, [discarding[s] for s in waited_for])
        finally:
            if self._registration is not None and not ended:
                # Who posts the sample again may be told that it is stored already.
                shown = naming and any(s.staged and s.staged.shows_name for s in self._slots)
                unsure = naming and not all(one.called for one in discarding.values())
                size = self.written_bytes if shown else None
                self._registration.given_up(named=shown or unsure, shown_size=size)

    async def read_back(self, offset: int, length: int) -> bytes:
        """See `Write.read_back`."""
        for slot in self._slots:
            if slot not in self._failed and slot.staged is not None:
                reading = slot.run(slot.copy.read_back, offset, length)
                (data,) = await settle([within(slot.member.clock, STEP_SECONDS, reading)])
                if isinstance(data, bytes):
                    return data
                self._failed.add(slot)
        raise Unavailable("every disk of the set failed while the sample was written")

    async def _everywhere(self, step: Callable[[Slot], Deferred[T]]) -> list[T]:
        clock = self._slots[0].member.clock
        steps = [step(slot) for slot in self._slots]
        outcomes = await settle_within(clock, STEP_SECONDS, steps)
        for slot, outcome in zip(self._slots, outcomes, strict=True):
            if isinstance(outcome, Room):
                slot.member.health.learn(outcome)
            elif isinstance(outcome, Failure):
                self._failed.add(slot)
        if all(slot.staged is not None for slot in self._slots):
            self.release()
        for slot, outcome in zip(self._slots, outcomes, strict=True):
            if isinstance(outcome, Failure):
                raise reason_of(outcome.value, slot.member.root, self.leaves) from outcome.value
        return [outcome for outcome in outcomes if not isinstance(outcome, Failure)]

    async def _keep_reserve(self) -> None:
        """A body of unknown length has reserved nothing: look what it has left."""
        await settle([slot.member.renew_room() for slot in self._slots])
        if self.mirror.candidate().spare_bytes(self._reserve_bytes) < 0:
            raise NoRoom("no room: the storage is full up to its reserve")

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.mirror.writes -= 1

    def release(self) -> None:
        """Give the reservation back: from here on the disks themselves show what is taken."""
        if self._holds_reservation:
            self._holds_reservation = False
            self.mirror.reserved.add(-self._reserved, -1)


def reason_of(error: BaseException | None, root: str, leaves: str = NOTHING_KEPT) -> StorError:
    """What a client is told of a write that a disk has failed, which `leaves` so much."""
    if isinstance(error, StorError):
        return error
    if isinstance(error, OSError) and fault_of(error) is Fault.ROOM:
        return NoRoom(f"no room: a storage became full while the sample was written; {leaves}")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return NoRoom(
            f"no room: {root} takes no file of this size (the file system's limit, or ulimit -f); "
            f"{leaves}"
        )
    said = str(error) or type(error).__name__
    where = "" if root in said else f"{root}: "
    return Unavailable(f"a storage failed while the sample was written, {leaves}: {where}{said}")
