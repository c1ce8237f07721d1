"""Uploads that are resumed where they were cut off, over requests, clients and restarts.

What has come lies on the disks of a set under the sample's name, so that no list of uploads has to
be kept. Of each upload memory has its hash as far as it was made; after a restart it is made again
from what lies there, beside what comes.
"""

import hashlib
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.disk.copy import read_exactly
from stor.disk.disk import Disk
from stor.disk.partial import (
    KeptFile,
    PartialCopy,
    PartialFile,
    Progress,
    boot_id,
    hold,
    kept_files,
    look,
    open_partial,
    remove,
)
from stor.errors import Mismatch, StorError, Unavailable
from stor.index.numbers import Registration
from stor.mirror.member import ANSWER_SECONDS, Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.put import Put, Puts
from stor.mirror.turns import RequestQueue, UploadTurn
from stor.mirror.write import MirrorWrite, Slot, Write
from stor.status import PartialUploads
from stor.threads import Pool, settle, within

#: How long an upload is kept that nobody goes on with.
KEPT_SECONDS = 24 * 3600.0

#: How often it is looked what is kept, and what of that no longer; soon after an upload has ended.
EXPIRY_SECONDS = 600.0

#: How often the bytes are synced on every disk: a loss of power takes no more than what came after
#: the sync before the last.
SYNC_BYTES = 16 * 1024 * 1024

#: What is read and hashed anew in one go, and as long as bytes come, for each piece of them.
_READ_BYTES = 1024 * 1024
_READS_A_PIECE = 8

#: Of how many uploads the hash is kept in memory.
_MOST_HASHES = 1000


@attrs.define
class Hashed:
    """The hash of what an upload has brought, as far as it was made, and the sums of its blocks."""

    hasher: "hashlib._Hash" = attrs.field(factory=hashlib.sha256)
    size: int = 0
    summer: BlockSummer = attrs.field(factory=BlockSummer)

    def update(self, data: bytes) -> None:
        """Take the next bytes. In any thread, but never in two."""
        self.hasher.update(data)
        self.summer.update(data, self.size)
        self.size += len(data)


@attrs.frozen
class Found:
    """An upload as the disks have it: `offset` bytes on each of `members`.

    Those are all disks of `mirror` if it is `whole`, else one, from which it can be copied.
    """

    digest: Digest
    offset: int
    length: int | None
    mirror: Mirror
    members: Sequence[Member]
    whole: bool
    modified_ns: int


class PartialWrite(MirrorWrite):
    """A write whose staged files stay, when it is parked, under names of their own."""

    leaves = "what came before is kept"

    def __init__(
        self,
        mirror: Mirror,
        members: Sequence[Member],
        digest: Digest,
        length: int | None,
        reserve_bytes: int,
        modified_ns: int,
        registration: Registration | None = None,
        *,
        boot: str,
        summer: BlockSummer,
        resumed_bytes: int | None = None,
    ) -> None:
        """With `resumed_bytes` it goes on after the first bytes, this many, that the disks have."""
        progress = Progress(resumed_bytes or 0, length, boot)
        make = PartialCopy.create if resumed_bytes is None else PartialCopy.resume

        def stage(disk: Disk, root_fd: int, _: int | None, summer: BlockSummer) -> PartialCopy:
            return make(disk, root_fd, digest, progress, summer)

        self._boot = boot
        self._named = False
        super().__init__(
            *(mirror, members, digest, length, reserve_bytes, modified_ns),
            registration=registration,
            staging=stage,
            summer=summer,
        )
        self.written_bytes = progress.synced_bytes

    async def prepare(self) -> None:
        """See `MirrorWrite.prepare`: always before the body."""
        await self._everywhere(lambda slot: slot.run(slot.stage, self._length))

    async def note(self, *, durably: bool) -> None:
        """Sync what has come, and note on every disk how much that is. Raises like `add`.

        Only `durably` the note itself is certain to outlive a loss of power.
        """
        progress = Progress(self.written_bytes, self._length, self._boot)
        await self._everywhere(lambda slot: slot.run(slot.copy.sync))
        await self._everywhere(lambda slot: slot.run(_copy_of(slot).note, progress))
        if durably:
            await self._everywhere(lambda slot: slot.run(slot.copy.sync))
        if not self._named:
            await self._everywhere(lambda slot: slot.run(_copy_of(slot).sync_name))
            self._named = True

    async def park(self) -> None:
        """Keep what there is on every disk. Never raises."""
        await self._give_back(lambda slot: partial(_park, slot))

    @property
    def busy(self) -> bool:
        """Whether a disk has not ended what it was told to do."""
        return any(slot.busy for slot in self._slots)


def _copy_of(slot: Slot) -> PartialCopy:
    copy = slot.copy
    if not isinstance(copy, PartialCopy):
        raise TypeError("a partial write has partial copies")
    return copy


def _park(slot: Slot) -> None:
    if slot.staged is not None:
        _copy_of(slot).park()


class Partials:
    """The uploads that can be resumed."""

    def __init__(
        self,
        mirrors: Mirrors,
        puts: Puts,
        ready: Deferred[None],
        wall_seconds: Callable[[], float],
        boot: str | None = None,
    ) -> None:
        """`ready` fires when the disks' states are known first; `boot` is this one of the machine.

        `wall_seconds` is the wall clock, by which files have their times.
        """
        self._mirrors = mirrors
        self._puts = puts
        self._ready = ready
        self._wall_seconds = wall_seconds
        self._boot = boot or boot_id()
        self._queues: dict[Digest, RequestQueue] = {}
        self._hashed: dict[Digest, Hashed] = {}
        self._writes: dict[Digest, PartialWrite] = {}
        self._expiry_due = 0.0
        #: As it was when it was looked last.
        self.kept = PartialUploads()
        self._kept: set[Digest] = set()
        puts.watch(self._changed)

    def turn(self, digest: Digest, give_way: Callable[[], None] = lambda: None) -> UploadTurn:
        """The right to an upload; `give_way` is called when another request wants it."""
        return UploadTurn(self._queues, digest, give_way)

    async def find(self, digest: Digest) -> Found | None:
        """How far an upload is. In its turn. Raises `Unavailable`."""
        await self._ready
        write = self._writes.get(digest)
        if write is not None and write.busy:
            raise Unavailable("a storage has not ended what it does of this upload")
        self._writes.pop(digest, None)
        files, unheard = await self._files(digest)
        told = max((file.progress.synced_bytes for file in files.values()), default=0)
        found = [
            _found(digest, mirror, mirror.members, files)
            for mirror in self._mirrors.mirrors
            if mirror.writable and all(member in files for member in mirror.members)
        ]
        best = max(found, key=lambda one: one.offset, default=None)
        if best is None or best.offset < told:
            alone = [
                _found(digest, mirror, [member], files)
                for mirror in self._mirrors.mirrors
                for member in mirror.members
                if member in files
            ]
            best = max(alone, key=lambda one: one.offset, default=None)
            if best is not None and not unheard.isdisjoint(best.mirror.members):
                raise Unavailable("a storage does not say what it has of this upload")
        hashed = self._hashed.get(digest)
        if hashed is not None and (best is None or hashed.size > best.offset):
            del self._hashed[digest]  # less is there than before
        return best

    async def hold(self, found: Found) -> Found:
        """Have the disks keep what was found, durably and no more, before a client is told of it.

        Raises `Unavailable`.
        """
        progress = Progress(found.offset, found.length, self._boot)
        holding = [
            within(
                self._mirrors.clock,
                ANSWER_SECONDS,
                member.write(hold, member.disk, found.digest, progress, about=found.digest),
            )
            for member in found.members
        ]
        for outcome in await settle(holding):
            if outcome is not None:
                raise Unavailable("a storage does not say what it has of this upload")
        return found

    async def remove(self, digest: Digest) -> bool:
        """Keep nothing of an upload; whether there was anything. In its turn. Never raises."""
        self._hashed.pop(digest, None)
        self._writes.pop(digest, None)
        self._changed(digest)
        return await self._remove(digest, self._mirrors.members)

    async def remove_from(self, found: Found) -> None:
        """An upload goes on elsewhere: keep nothing where it was. Never raises."""
        await self._remove(found.digest, found.mirror.members)

    async def _remove(self, digest: Digest, members: Sequence[Member]) -> bool:
        able = [m for m in members if m.health.readable and m.writable]
        removing = [m.write(remove, m.disk, digest, about=digest) for m in able]
        clock = self._mirrors.clock
        outcomes = await settle([within(clock, ANSWER_SECONDS, one) for one in removing])
        return any(outcome is True for outcome in outcomes)

    def expect(self, digest: Digest, length: int | None, hashing: Pool) -> "PartialPut":
        """Begin to put a sample in its turn; `length` in bytes when it is known.

        What is large is hashed in `hashing`. Ends with `PartialPut.leave`.
        """
        return PartialPut(self, self._puts, self._mirrors, digest, length, hashing)

    def seconds_left(self, found: Found) -> int:
        """How long an upload is still kept if nobody goes on with it."""
        age = self._wall_seconds() - found.modified_ns / 1e9
        return max(0, min(int(KEPT_SECONDS), int(KEPT_SECONDS - age)))

    async def size_of_stored(self, digest: Digest) -> int | None:
        """The size of the sample, where the disks have it whole. Raises `Unavailable`."""
        await self._ready
        search = self._mirrors.search(digest)
        try:
            copy = await search.look()
        finally:
            search.close()
        return None if copy is None else copy.size

    async def expire(self) -> None:
        """Now and then, look at what is kept.

        What nobody has resumed for too long goes, and what there is of samples that are stored by
        now. Never raises.
        """
        now = self._mirrors.clock.seconds()
        if now < self._expiry_due:
            return
        self._expiry_due = now + EXPIRY_SECONDS
        members = [member for member in self._mirrors.members if member.writable]
        told = await settle([m.write(kept_files, m.disk) for m in members])
        parts: dict[Digest, list[tuple[Member, KeptFile]]] = {}
        for member, files in zip(members, told, strict=True):
            for file in files if isinstance(files, list) else ():
                parts.setdefault(file.digest, []).append((member, file))
        for digest, ours in list(parts.items()):
            old = [one for one in ours if one[1].modified_ns < self._oldest_ns]
            going = ours if len(old) < len(ours) and await self._is_stored(digest) else old
            if going and digest not in self._queues:
                async with self.turn(digest):
                    await self._remove(digest, [member for member, _ in going])
                parts[digest] = [one for one in ours if one not in going]
        left = {digest: ours for digest, ours in parts.items() if ours}
        held = sum(file.held_bytes for ours in left.values() for _, file in ours)
        self._kept, self.kept = set(left), PartialUploads(len(left), held)

    async def _is_stored(self, digest: Digest) -> bool:
        """Whether the disks have the sample, as far as they say. Never raises."""
        try:
            return await self.size_of_stored(digest) is not None
        except StorError:
            return False

    def _changed(self, digest: Digest) -> None:
        """Something else may be kept of a sample: it is stored, or given up."""
        if digest in self._kept:
            self._expiry_due = 0.0

    @property
    def _oldest_ns(self) -> int:
        return int((self._wall_seconds() - KEPT_SECONDS) * 1e9)

    async def _files(self, digest: Digest) -> tuple[dict[Member, PartialFile], set[Member]]:
        """What each disk has, and which have not said."""
        members = [m for m in self._mirrors.members if m.health.readable and m.writable]
        looking = [m.read(look, m.disk, digest, self._boot, about=digest) for m in members]
        clock = self._mirrors.clock
        told = await settle([within(clock, ANSWER_SECONDS, one) for one in looking])
        by_member = dict(zip(members, told, strict=True))
        files = {
            member: file
            for member, file in by_member.items()
            if isinstance(file, PartialFile) and file.modified_ns >= self._oldest_ns
        }
        return files, {m for m, file in by_member.items() if isinstance(file, Failure)}

    def hashed(self, digest: Digest) -> Hashed:
        """What is hashed of an upload."""
        while len(self._hashed) >= _MOST_HASHES:
            del self._hashed[next(iter(self._hashed))]  # it is made again if it is wanted
        return self._hashed.setdefault(digest, Hashed())

    def forget(self, digest: Digest) -> None:
        """The hash may be of more than the disks have."""
        self._hashed.pop(digest, None)

    def maker(self, summer: BlockSummer, resumed_bytes: int | None) -> Callable[..., PartialWrite]:
        """What makes a write of an upload."""
        return partial(PartialWrite, boot=self._boot, summer=summer, resumed_bytes=resumed_bytes)

    def parked(self, digest: Digest, write: Write) -> None:
        """A write has ended, or will once its disks have done what they were told."""
        self._kept.add(digest)
        self._expiry_due = 0.0
        if isinstance(write, PartialWrite) and write.busy:
            self._writes[digest] = write


def _found(
    digest: Digest,
    mirror: Mirror,
    members: Sequence[Member],
    files: dict[Member, PartialFile],
) -> Found:
    ours = [files[member] for member in members]
    lengths = [file.progress.length for file in ours if file.progress.length is not None]
    return Found(
        digest,
        min(file.size for file in ours),
        lengths[0] if lengths else None,
        mirror,
        members,
        len(members) == len(mirror.members),
        max(file.modified_ns for file in ours),
    )


class PartialPut(Put):
    """One request that brings a part of a sample.

    `stored`, `create` or `resume`, `add` …, then `note`, or `finish` and `commit`; in the end
    always `leave`, which keeps what has come unless it is of no use.
    """

    def __init__(
        self,
        partials: Partials,
        puts: Puts,
        mirrors: Mirrors,
        digest: Digest,
        length: int | None,
        hashing: Pool,
    ) -> None:
        super().__init__(puts, mirrors, digest, length, mirrors.turns.join(digest))
        self._partials = partials
        self._hashing = hashing
        self._hashed = Hashed()
        #: How much has come, in this request and before.
        self.offset = 0
        #: How much of it is certain to be there after a loss of power, too.
        self.durable_bytes = 0
        self._noted_bytes = 0
        #: Whether what has come is of any use.
        self.useful = True

    async def create(self) -> None:
        """Begin anew, and have room. Raises `NoRoom`, `Unavailable`."""
        await self._partials.remove(self._digest)
        self._hashed = self._partials.hashed(self._digest)
        self._make = self._partials.maker(self._hashed.summer, None)
        await self.begin()

    async def resume(self, found: Found) -> None:
        """Go on behind what there is; elsewhere, where its set cannot be written any more.

        Raises `NoRoom`, `Unavailable`.
        """
        self._hashed = self._partials.hashed(self._digest)
        self.offset = self._noted_bytes = self.durable_bytes = found.offset
        home = self._home
        if found.whole and (home is None or home.mirror is found.mirror):
            make = self._partials.maker(self._hashed.summer, found.offset)
            what = found.mirror, found.members, self._digest, self._length
            write = self._mirrors.write_on(*what, make)
            self._tried.add(found.mirror)
            self._use(write)
            await write.prepare()
            return
        source = found.members[0]
        fd = await source.read(open_partial, source.disk, self._digest, about=self._digest)
        try:
            if not found.mirror.writable:
                self._tried.add(found.mirror)
            self._make = self._make_moved()
            await self.begin()
            await self._copy_from(source, fd, found.offset)
            self._moved()
            # It is as durable as before: the one that it was copied from can go.
            await self.note(durably=True)
            if self._begun().mirror is not found.mirror:
                await self._partials.remove_from(found)
        finally:
            source.give_back(partial(source.disk.files.close, fd)).addErrback(lambda _: None)

    async def _copy_from(self, source: Member, fd: int, size: int) -> None:
        for offset in range(0, size, _READ_BYTES):
            length = min(_READ_BYTES, size - offset)
            reading = source.read(read_exactly, source.disk.files, fd, length, offset)
            data = await reading
            await self._persist(_adding([data]), whole=False)

    async def add(self, chunks: list[bytes], last: bool = False) -> None:
        """Write more of the body everywhere, and hash it. Raises `NoRoom`, `Unavailable`."""
        size = sum(map(len, chunks))
        adding = _adding(chunks)
        try:
            if self._hashed.size == self.offset:
                await self._hash_aside(chunks, self._persist(adding, whole=False))
            else:
                await self._persist(adding, whole=False)
            self.offset += size
            if self._hashed.size < self.offset:
                await self._hash_on(_READS_A_PIECE)
            if self.offset - self._noted_bytes >= SYNC_BYTES:
                await self.note(durably=False)
        except BaseException:
            self._partials.forget(self._digest)
            raise

    async def note(self, *, durably: bool) -> None:
        """Bring what has come to stable storage. Raises `NoRoom`, `Unavailable`."""

        async def note(write: Write) -> None:
            if isinstance(write, PartialWrite):
                await write.note(durably=durably)

        before, self._noted_bytes = self._noted_bytes, self.offset
        await self._persist(note, whole=False)
        # A note is synced together with what comes after it.
        self.durable_bytes = self.offset if durably else before

    async def finish(self, go_on: Callable[[], None]) -> None:
        """All of the body has come: see whether it is the sample, and make it ready for its name.

        Raises `Mismatch`, `NoRoom`, `Unavailable`, and what `go_on` does, which is called now and
        then.
        """
        while self._hashed.size < self.offset:
            go_on()
            await self._hash_on(_READS_A_PIECE)
        hasher = self._hashed.hasher
        if hasher.digest() != self._digest.raw:
            self.useful = False
            raise Mismatch(str(self._digest), hasher.hexdigest())
        await self._persist(lambda write: write.add([], True), whole=False)

    async def commit(self) -> tuple[list[str], bool]:
        """See `Put.commit`. Then nothing stays but the sample."""
        committed = await super().commit()
        self.useful = False
        return committed

    async def leave(self) -> None:
        """The end, good or bad: what has come is kept, unless it is of no use. Never raises."""
        if self._left:
            return
        write = self._write
        if self.useful and isinstance(write, PartialWrite):
            self._left = True
            try:
                await write.park()
                self._partials.parked(self._digest, write)
            finally:
                self._puts.ended(self._digest)
            return
        await super().leave()
        if not self.useful:
            self._partials.forget(self._digest)

    def _make_moved(self) -> Callable[..., Write]:
        return self._partials.maker(BlockSummer(hashlib.sha256()), None)

    def _moved(self) -> None:
        # A later request that goes on with it hashes all of it anew, from where it is now.
        self._partials.forget(self._digest)

    async def _abandon(self, write: Write) -> None:
        if isinstance(write, PartialWrite) and self.useful:
            await write.park()
            self._partials.parked(self._digest, write)
        else:
            await write.discard()

    async def _hash_aside(self, chunks: list[bytes], writing: Coroutine[Any, Any, None]) -> None:
        hashing = self._hashing.run(_update, self._hashed, chunks)
        try:
            await writing
        finally:
            (hashed,) = await settle([hashing])
        if isinstance(hashed, Failure):
            hashed.raiseException()

    async def _hash_on(self, reads: int) -> None:
        """Read and hash a part of what was written and is not hashed yet."""
        for _ in range(reads):
            length = min(_READ_BYTES, self.offset - self._hashed.size)
            if not length:
                return
            data = await self._begun().read_back(self._hashed.size, length)
            await self._hashing.run(self._hashed.update, data)


def _adding(chunks: list[bytes]) -> Callable[[Write], Coroutine[Any, Any, None]]:
    return lambda write: write.add(chunks, False)


def _update(hashed: Hashed, chunks: list[bytes]) -> None:
    for chunk in chunks:
        hashed.update(chunk)
