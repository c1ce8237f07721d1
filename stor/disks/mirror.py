"""The disks that hold the same samples, and writing a sample to all of them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disks.disk import FULL, Copy, Room
from stor.disks.member import Member
from stor.disks.placement import Candidate, on_disk
from stor.disks.staged import StagedCopy
from stor.errors import Damaged, NoRoom, StorError, Unavailable
from stor.worker import first_failure, settle

T = TypeVar("T")

#: Up to this size the staged files are made together with the first write, in one visit to a disk.
_STAGE_EARLY_BYTES = 1024 * 1024


class Mirror:
    """One set of disks; every acknowledged sample in it is on all of them."""

    def __init__(self, members: Sequence[Member], own_file_systems: bool = True) -> None:
        """`own_file_systems`: two copies on one file system are worth a warning."""
        self.members = tuple(members)
        self._own_file_systems = own_file_systems
        #: Bytes and samples that uploads in flight will take and no disk shows yet.
        self.reserved_bytes = 0
        self.reserved_samples = 0

    def __str__(self) -> str:
        return ", ".join(member.root for member in self.members)

    @property
    def configured_writable(self) -> bool:
        """Whether the configuration lets new samples be written here."""
        return all(member.health.writable for member in self.members)

    @property
    def writable(self) -> bool:
        """Whether every disk can take a new sample."""
        return all(member.writable for member in self.members)

    @property
    def warnings(self) -> list[str]:
        """What does not stop the mirror and should be mended; a line each."""
        devices = [m.health.device for m in self.members if m.health.device is not None]
        if self._own_file_systems and len(set(devices)) < len(devices):
            return [f"{self}: two copies of a set are on one file system; one dead disk takes both"]
        return []

    def candidate(self) -> Candidate:
        """The room for placement."""
        rooms = [member.health.room for member in self.members]
        return Candidate.of(rooms, self.reserved_bytes, self.reserved_samples)

    async def survey(self, digest: Digest, length: int | None) -> "Survey":
        """Ask every disk for its copy of the sample. Never raises."""
        asked = [member for member in self.members if member.health.readable]
        answers = await settle([member.read(member.disk.check, digest, length) for member in asked])
        return Survey(self, list(zip(asked, answers, strict=True)))


@attrs.frozen
class Survey:
    """What the disks of a mirror answered when they were asked for a sample."""

    mirror: Mirror
    answers: list[tuple[Member, Copy | Failure | None]]

    @property
    def paths(self) -> list[str]:
        """The good copies, in the mirror's order."""
        return [answer.path for _, answer in self.answers if isinstance(answer, Copy)]

    @property
    def known(self) -> bool:
        """Whether the sample, or something in its place, is on this mirror."""
        return any(
            isinstance(answer, Copy) or (isinstance(answer, Failure) and answer.check(Damaged))
            for _, answer in self.answers
        )

    @property
    def lacking(self) -> list[Member]:
        """The disks that could have a good copy and have none."""
        return [m for m, answer in self.answers if not isinstance(answer, Copy) and m.writable]

    @property
    def trouble(self) -> Failure | None:
        """The first answer that was none."""
        return next(
            (a for _, a in self.answers if isinstance(a, Failure) and not a.check(Damaged)), None
        )


@attrs.define
class _Slot:
    """One disk's part in a write; used in one of its threads at a time."""

    member: Member
    staged: StagedCopy | None = None

    def stage(self, length: int | None) -> Room | None:
        """Make the staged file, once; what is left on the disk after it."""
        if self.staged is not None:
            return None
        self.staged, room = StagedCopy.begin(self.member.disk, length)
        return room

    def advance(
        self, length: int | None, chunks: Sequence[bytes], modified_ns: int | None
    ) -> Room | None:
        """Append `chunks`; with `modified_ns` they are the last, and the file is synced."""
        room = self.stage(length)
        assert self.staged is not None  # noqa: S101 - stage has just made it
        self.staged.write(chunks)
        if modified_ns is not None:
            self.staged.sync(modified_ns)
        return room


class MirrorWrite:
    """A sample being written to every disk of a mirror.

    `add` the content, then `commit` or `discard`. Calls are not to overlap: each is to be awaited
    before the next. After `commit` has returned, every copy is on stable storage under its final
    name; after any failure, and after `discard`, no disk keeps anything.
    """

    def __init__(
        self,
        mirror: Mirror,
        members: Sequence[Member],
        digest: Digest,
        length: int | None,
        reserve_bytes: int,
        now_ns: Callable[[], int],
    ) -> None:
        self.mirror = mirror
        self._digest = digest
        self._length = length
        self._reserve_bytes = reserve_bytes
        self._now_ns = now_ns
        self._slots = [_Slot(member) for member in members]
        self._reserved = on_disk(length or 0, mirror.candidate().block_bytes)
        mirror.reserved_bytes += self._reserved
        mirror.reserved_samples += 1
        self._holds_reservation = True

    async def prepare(self) -> None:
        """Have room on every disk before the body is asked for, unless the body is small.

        Raises `NoRoom`, `Unavailable`.
        """
        if self._length is None or self._length > _STAGE_EARLY_BYTES:
            await self._everywhere(lambda slot: slot.member.write(slot.stage, self._length))

    async def add(self, chunks: Sequence[bytes], last: bool) -> None:
        """Append `chunks` to every copy; sync every copy after the last. Raises like `prepare`."""
        modified_ns = self._now_ns() if last else None
        await self._everywhere(
            lambda slot: slot.member.write(slot.advance, self._length, chunks, modified_ns)
        )
        if self._length is None and self.mirror.candidate().spare_bytes(self._reserve_bytes) < 0:
            raise NoRoom("no room: the storage is full up to its reserve")

    async def commit(self) -> tuple[list[str], bool]:
        """Name every copy, then make the names durable: the paths, and whether any is new.

        Raises `Unavailable`; then no copy that this write made has a name.
        """
        digest = self._digest
        named = await self._everywhere(lambda slot: slot.member.write(_staged(slot).name, digest))
        await self._everywhere(
            lambda slot: slot.member.write(_staged(slot).sync_directories, digest)
        )
        await settle([slot.member.write(_staged(slot).close) for slot in self._slots])
        paths = [f"{slot.member.root}/{digest.disk_path}" for slot in self._slots]
        return paths, all(named)

    async def discard(self) -> None:
        """Leave nothing behind on any disk. Never raises; harmless after `commit`."""
        self._release()
        staged = [slot for slot in self._slots if slot.staged is not None]
        await settle([slot.member.write(_staged(slot).discard) for slot in staged])

    async def _everywhere(self, step: Callable[[_Slot], Deferred[T]]) -> list[T]:
        outcomes = await settle([step(slot) for slot in self._slots])
        for slot, outcome in zip(self._slots, outcomes, strict=True):
            if isinstance(outcome, Room):
                slot.member.health.room = outcome
        if all(slot.staged is not None for slot in self._slots):
            self._release()
        failure = first_failure(outcomes)
        if failure is not None:
            await self.discard()
            raise _reason(failure) from failure.value
        return [outcome for outcome in outcomes if not isinstance(outcome, Failure)]

    def _release(self) -> None:
        """From here on the disks themselves show what the upload takes."""
        if self._holds_reservation:
            self._holds_reservation = False
            self.mirror.reserved_bytes -= self._reserved
            self.mirror.reserved_samples -= 1


def _staged(slot: _Slot) -> StagedCopy:
    if slot.staged is None:
        raise ValueError("commit of a sample that was never written")
    return slot.staged


def _reason(failure: Failure) -> StorError:
    error = failure.value
    if isinstance(error, StorError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return NoRoom(
            "no room: a storage became full while the sample was written; nothing was kept"
        )
    return Unavailable(f"a storage failed while the sample was written, nothing was kept: {error}")
