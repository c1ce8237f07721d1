"""Copies to put back, and putting them back."""

import errno
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.content import Content
from stor.digest import Digest
from stor.disk.copy import Copy, mark_of
from stor.disk.disk import REPAIR_DIRECTORY, DiskAway
from stor.disk.journal import Kind
from stor.disk.leaving import has_left
from stor.disk.notes import forget, note
from stor.errors import Damaged, StorError, Unavailable
from stor.mirror.health import State
from stor.mirror.learning import LearningNames
from stor.mirror.member import DiskSource, Member
from stor.mirror.mirror import Mirror
from stor.mirror.turns import Turns
from stor.mirror.write import MirrorWrite
from stor.threads import Busy, settle

T = TypeVar("T")

#: A repair that could not be finished is not tried again before.
RETRY_SECONDS = 60.0

#: What was made whole is not looked at again before: reads that began with the bad copy may still
#: report it.
SETTLED_SECONDS = 10.0

#: What no repair could help is tried again so often.
LEFTOVER_SECONDS = 600.0

_CHUNK_BYTES = 1024 * 1024


class Unmendable(StorError):
    """No good copy is left to repair from."""


class Absent(Unmendable):
    """No disk of the mirror has anything under the sample's name: it is not kept there."""


class Left(Absent):
    """The sample has moved to another mirror; what copies there still are wait for their removal.

    A disk that was away, or a crash, has kept them. They are put on no other disk.
    """


@attrs.frozen
class Examination:
    """What reading every copy of a sample in full has shown.

    `good` are the disks with the right bytes; `lacking` those that could have them and do not, and
    why, `absent` those among them with nothing under the name, `damaged` those with wrong bytes;
    `unheard` those that did not say.
    """

    good: dict[Member, Copy] = attrs.field(factory=dict)
    lacking: dict[Member, str] = attrs.field(factory=dict)
    absent: list[Member] = attrs.field(factory=list)
    damaged: dict[Member, Damaged] = attrs.field(factory=dict)
    unheard: list[Member] = attrs.field(factory=list)

    @property
    def modified_ns(self) -> int | None:
        """When the sample was stored: what the oldest good copy says."""
        return min((copy.modified_ns for copy in self.good.values()), default=None)

    def tell_of_damage(self, digest: Digest) -> None:
        """The damaged copies are not to be served any more.

        Not before it is known whether there is a good one: until then, what is right of them is all
        that there is.
        """
        for member, error in self.damaged.items():
            member.found_damaged(digest, str(error), mark_of(error))

    def nothing_good(self, digest: Digest) -> "Unmendable":
        """What to say when there is no copy to use: where that is known to be so, and where not.

        A disk that had a good copy a moment ago, and cannot open it now, is one that is silent.
        """
        gone = ", ".join(member.root for member in self.lacking) or "any disk that answered"
        silent = ", ".join(member.root for member in (*self.good, *self.unheard))
        return Unmendable(
            f"no good copy of {digest} is left on {gone}"
            + (f"; {silent} did not answer" if silent else "")
        )


@attrs.frozen
class Whole:
    """The disks with a good copy of a sample, and those of them on which it was just put back."""

    good: frozenset[Member]
    put_back: frozenset[Member] = frozenset()


@attrs.frozen
class Risk:
    """A sample with fewer good copies than its mirror has disks; `good` where that is known."""

    digest: Digest
    good: int | None
    wanted: int
    reason: str


class OpenSources:
    """Copies that are open, to be read one after the other. Implements `stor.content.Copies`."""

    def __init__(self, sources: list[DiskSource]) -> None:
        self._sources = sources

    async def next(self) -> DiskSource | None:
        """See `stor.content.Copies.next`."""
        return self._sources.pop(0) if self._sources else None

    async def twin(self, source: DiskSource) -> DiskSource | None:
        """See `stor.content.Copies.twin`: each was read whole already, none is compared."""
        return None

    def mark_corrupt(self, source: DiskSource, reason: str) -> None:
        """See `stor.content.Copies.mark_corrupt`: what was examined is known already."""

    def suspect(self, source: DiskSource) -> None:
        """See `stor.content.Copies.suspect`: it is being mended."""

    def close(self) -> None:
        """See `stor.content.Copies.close`."""
        for source in self._sources:
            source.close()


class Repairs:
    """Puts copies back that were found missing or bad; one at a time on each mirror.

    What waits for repair is also noted on the mirror's disks, below `.stor/repair/`, and taken
    up again after a restart.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        reserve_bytes: int,
        names: LearningNames | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`turns` are those of uploads and moves, too."""
        self._names = names
        self._turns = turns or Turns()
        self.mended_total = 0
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        #: What waits for repair, and the time in seconds before which it is not tried again.
        self._due: dict[tuple[Digest, Mirror], float] = {}
        self._locks: dict[Mirror, DeferredLock] = {}
        self._mending: set[tuple[Digest, Mirror]] = set()
        self._running: set[Mirror] = set()
        self._rested: dict[tuple[Digest, Mirror], float] = {}
        self._leftovers_due = 0.0
        #: What was found of those that could not be made whole.
        self._risks: dict[tuple[Digest, Mirror], Risk] = {}

    def risks(self, mirror: Mirror) -> list[Risk]:
        """The samples of a mirror that are known to have too few good copies, and why."""
        known = {digest: risk for (digest, where), risk in self._risks.items() if where is mirror}
        waiting = {digest for digest, where in self._due if where is mirror}
        noted = set[Digest]().union(*(member.noted for member in mirror.members))
        for digest in (waiting | noted) - known.keys():
            known[digest] = Risk(digest, None, len(mirror.members), "it waits for its repair")
        for digest in known.keys() & mirror.members[0].drilled:
            del known[digest]
        return sorted(known.values(), key=lambda risk: risk.digest.raw)

    @property
    def waiting(self) -> int:
        """How many samples wait for repair."""
        return len(self._due)

    def reconfigure(self, mirrors: Collection[Mirror], reserve_bytes: int) -> None:
        """Only samples of these mirrors are repaired from now on."""
        self._reserve_bytes = reserve_bytes
        self._due = {key: due for key, due in self._due.items() if key[1] in mirrors}
        self._risks = {key: risk for key, risk in self._risks.items() if key[1] in mirrors}

    def report(self, digest: Digest, mirror: Mirror) -> None:
        """A copy of the sample on `mirror` is missing or bad."""
        key = (digest, mirror)
        if key in self._due or self._rested.get(key, 0.0) > self._clock.seconds():
            return
        self._due[key] = 0.0
        Deferred.fromCoroutine(self.note(digest, mirror))
        self._start(mirror)

    def renewed(self, digest: Digest, mirror: Mirror) -> None:
        """The sample was stored anew on some disks of `mirror`; the others may still lack it."""
        self._rested.pop((digest, mirror), None)
        self.report(digest, mirror)

    def resume(self, mirrors: Iterable[Mirror]) -> None:
        """Take up what is due; called every now and then."""
        now = self._clock.seconds()
        self._rested = {key: until for key, until in self._rested.items() if until > now}
        if self._leftovers_due <= now:
            self._leftovers_due = now + LEFTOVER_SECONDS
            self.recall(mirrors)
        for mirror in mirrors:
            self._start(mirror)

    def recall(self, mirrors: Iterable[Mirror]) -> None:
        """Take up what the disks have noted: what an earlier process has left, or was put off."""
        for mirror in mirrors:
            for digest in set().union(*(member.noted for member in mirror.members)):
                if (digest, mirror) not in self._rested:
                    self._due.setdefault((digest, mirror), 0.0)
            self._start(mirror)

    async def mend(self, digest: Digest, mirror: Mirror) -> list[str]:
        """Make the sample whole where that can be done: the paths of its good copies.

        Raises like `make_whole`, and `Unavailable` when a disk that could have one did not say.
        """
        good = (await self.make_whole(digest, mirror)).good
        silent = [m.root for m in mirror.members if m.writable and m not in good]
        if silent:
            self.report(digest, mirror)
            raise Unavailable(f"whether it has a good copy was not said by {', '.join(silent)}")
        return [f"{m.root}/{digest.disk_path}" for m in mirror.members if m in good]

    async def make_whole(self, digest: Digest, mirror: Mirror) -> Whole:
        """Put a good copy on every disk of `mirror` that can be written: the disks that have one.

        Whoever needs it on a certain disk looks whether that is among them. Raises `Absent` when
        it is not kept there, `Unmendable` when no copy is good, `NoRoom`, `Unavailable`.
        """
        lock = self._locks.setdefault(mirror, DeferredLock())
        await lock.acquire()
        release = await self._turns.hold([digest])
        self._mending.add((digest, mirror))
        try:
            found = await self._examine(digest, mirror)
            try:
                if found.absent and await self.has_left(digest, mirror):
                    raise Left(f"{digest} has moved from {mirror} to another set")
                whole = await self._mend(digest, mirror, found)
            except StorError as error:
                self._weigh(digest, mirror, set(found.good), error)
                raise
            self._weigh(digest, mirror, whole.good)
            return whole
        finally:
            self._mending.discard((digest, mirror))
            release()
            lock.release()

    async def has_left(self, digest: Digest, mirror: Mirror) -> bool:
        """Whether a sample has moved from a mirror to another one, as any of its disks knows.

        No disk is asked unless the index knows of another mirror that holds it. Never raises.
        """
        if self._names is None or not set(self._names.find(digest).holders) - {mirror}:
            return False
        asking = [
            member.read(has_left, member.disk, member.names, digest)
            for member in mirror.members
            if member.health.readable and member.names is not None
        ]
        return any(said is True for said in await settle(asking))

    def _weigh(
        self,
        digest: Digest,
        mirror: Mirror,
        good: Collection[Member],
        error: StorError | None = None,
    ) -> None:
        """Know whether a sample has fewer good copies than it should."""
        lacking = [member for member in mirror.members if member not in good]
        self._risks.pop((digest, mirror), None)
        if lacking and not isinstance(error, Absent):
            why = (
                str(error)
                if error
                else "; ".join(m.fault or f"{m.root}: not written" for m in lacking)
            )
            self._risks[digest, mirror] = Risk(digest, len(good), len(mirror.members), why)

    def left(self, digest: Digest, mirror: Mirror) -> None:
        """A sample is on another mirror by now: nothing is to be put back on this one."""
        key = (digest, mirror)
        known = self._due.pop(key, None) is not None
        self._risks.pop(key, None)
        for member in mirror.members:
            member.corrupt.discard(digest)
        if known or any(digest in member.noted for member in mirror.members):
            self._forget(digest, mirror)

    def mending(self, digest: Digest, mirror: Mirror) -> bool:
        """Whether a copy is being put back, and may have a name that is not durable yet."""
        return (digest, mirror) in self._mending

    async def naming(
        self, digests: Collection[Digest], mirror: Mirror, name: Callable[[], Awaitable[T]]
    ) -> T:
        """What `name` returns, which gives copies of samples their names, durably in the end.

        No repair there meanwhile, and no upload, relies on names that are not durable yet.
        """
        keys = {(digest, mirror) for digest in digests}
        lock = self._locks.setdefault(mirror, DeferredLock())
        await lock.acquire()
        self._mending |= keys
        try:
            return await name()
        finally:
            self._mending -= keys
            lock.release()

    def put_back(self, digest: Digest, mirror: Mirror, good: set[Member], on: set[Member]) -> None:
        """The disks `good` have a good copy of a sample, `on` which it was put, durably."""
        for member in on:
            member.corrupt.discard(digest)
            member.restored()
        self.mended_total += 1
        self._weigh(digest, mirror, good)

    async def note(self, digest: Digest, mirror: Mirror) -> set[Member]:
        """Note, durably, that the sample waits for repair: the disks where that was possible."""
        for member in mirror.members:
            member.noted.add(digest)
        members = [member for member in mirror.members if member.writable]
        notes = [member.write(note, member.disk, REPAIR_DIRECTORY, digest) for member in members]
        done = set()
        outcomes: list[Failure | None] = await settle(notes)
        for member, outcome in zip(members, outcomes, strict=True):
            if isinstance(outcome, Failure):
                self._unnoted(outcome, member)
            else:
                done.add(member)
        return done

    async def _mend(self, digest: Digest, mirror: Mirror, found: Examination) -> Whole:
        if len(found.absent) == len(mirror.members):
            raise Absent(f"{mirror} does not hold {digest}")
        lacking = [member for member in found.lacking if member.writable]
        if found.good or not lacking:
            found.tell_of_damage(digest)
        if not found.good and not lacking:
            raise found.nothing_good(digest)
        if lacking:
            try:
                await self._put_back(digest, mirror, found, lacking)
            except Unmendable:
                found.tell_of_damage(digest)
                raise
            except (Damaged, DiskAway, Busy, OSError) as error:
                if isinstance(error, Damaged):
                    found.tell_of_damage(digest)
                raise Unavailable(
                    f"a copy could not be read to put others back: {error}"
                ) from error
            if not found.good:
                found.tell_of_damage(digest)
                for member in lacking:
                    member.corrupt.discard(digest)
            if digest not in mirror.members[0].drilled:
                self.mended_total += 1
                self._say_repaired(digest, lacking, found)
        return Whole(frozenset({*found.good, *lacking}), frozenset(lacking))

    def _say_repaired(self, digest: Digest, restored: list[Member], found: Examination) -> None:
        for member in restored:
            member.restored()
        # A disk that is being filled is expected to lack what it is given: no line for each.
        told = [m for m in restored if m.trusted or m not in found.absent]
        if told:
            where = ", ".join(
                f"{m.root} ({'missing' if m in found.absent else 'bad or unreadable'})"
                for m in told
            )
            self.log.warn("Repaired {digest} on {where}", digest=str(digest), where=where)

    async def _examine(self, digest: Digest, mirror: Mirror) -> Examination:
        found = Examination()
        for member in mirror.members:
            if not member.health.readable:
                found.unheard.append(member)
                continue
            # One I/O error can be a passing one; the second says that the copy cannot be read.
            for attempt in range(2):
                try:
                    copy = await member.read(member.disk.verify, digest, about=digest)
                except Damaged as error:
                    found.damaged[member] = error
                    found.lacking[member] = str(error)
                except OSError as error:
                    if not attempt:
                        continue
                    if error.errno == errno.EIO:
                        path = f"{member.root}/{digest.disk_path}"
                        found.lacking[member] = f"{path}: could not be read: {error}"
                    else:
                        found.unheard.append(member)
                except Exception as error:
                    self.log.warn("{root}: {error}", root=member.root, error=str(error))
                    found.unheard.append(member)
                else:
                    if copy is None:
                        found.lacking[member] = "it was gone"
                        found.absent.append(member)
                    else:
                        found.good[member] = copy
                        member.corrupt.discard(digest)
                break
        return found

    async def _put_back(
        self, digest: Digest, mirror: Mirror, found: Examination, lacking: list[Member]
    ) -> None:
        """Write the sample anew to the disks that lack it, from all copies with parts of it."""
        sources = await self._sources(digest, found)
        if not sources:
            raise found.nothing_good(digest)
        content = Content(digest, sources[0], OpenSources(sources[1:]), self._clock)
        write = MirrorWrite(
            mirror,
            lacking,
            digest,
            content.size,
            self._reserve_bytes,
            found.modified_ns or content.modified_ns,
            found.lacking,
            None if self._names is None else self._names.expect(digest, mirror, Kind.MOVED),
        )
        hasher = hashlib.sha256()
        try:
            await write.prepare()
            if content.whole is not None:
                await write.add([content.whole], True)
            offset = 0
            while content.whole is None and offset < content.size:
                try:
                    data = await content.read(offset, min(_CHUNK_BYTES, content.size - offset))
                except (Damaged, Unavailable) as error:
                    if found.good:
                        raise
                    # What is right of the bad copies is not all of it.
                    raise found.nothing_good(digest) from error
                hasher.update(data)
                offset += len(data)
                if offset == content.size and hasher.digest() != digest.raw:
                    raise found.nothing_good(digest)
                await write.add([data], offset == content.size)
            await write.commit()
        finally:
            content.close()
            await write.discard()

    async def _sources(self, digest: Digest, found: Examination) -> list[DiskSource]:
        """The good copies, open; or those that have block sums, of which every part may be good."""
        sources = []
        bad = [member for member in found.lacking if member not in found.absent]
        for member in found.good or bad:
            try:
                source = await member.open(digest, bad=True)
            except (Damaged, DiskAway, Busy, OSError) as error:
                self.log.warn("{root}: {error}", root=member.root, error=str(error))
                continue
            if source is not None and (member in found.good or source.sums is not None):
                sources.append(source)
            elif source is not None:
                source.close()
        return sources

    def _start(self, mirror: Mirror) -> None:
        if mirror not in self._running and self._next_due(mirror) is not None:
            self._running.add(mirror)
            running = Deferred.fromCoroutine(self._run(mirror))
            running.addBoth(lambda _: self._running.discard(mirror))

    async def _run(self, mirror: Mirror) -> None:
        while (digest := self._next_due(mirror)) is not None:
            key = (digest, mirror)
            since = 0 if self._names is None else self._names.next_number
            try:
                good = (await self.make_whole(digest, mirror)).good
            except Left:
                if self._names is not None:
                    self._names.left(digest, mirror, 0)
                self._rest(key)
                self._forget(digest, mirror)
            except Absent:  # a disk of another set than the sample's could not be read for a moment
                if self._names is not None:
                    self._names.lost(digest, mirror, since)
                self._rest(key)
                self._forget(digest, mirror)
            except Unmendable as error:
                # The note stays: the next start learns from it which copies are bad.
                self.log.error("{error}", error=str(error))
                if self._whole(mirror):
                    self._rest(key)
                else:  # a disk that is away may hold a good copy
                    self._later(key)
            except Exception as error:
                self.log.warn("Repair of {digest}: {error}", digest=str(digest), error=str(error))
                self._later(key)
            else:
                # Where it was put, whatever can be written by now.
                if all(member in good or not member.health.writable for member in mirror.members):
                    self._rest(key, SETTLED_SECONDS)
                    self._forget(digest, mirror)
                else:
                    self._later(key)

    def _next_due(self, mirror: Mirror) -> Digest | None:
        now = self._clock.seconds()
        return next(
            (
                digest
                for (digest, where), due in self._due.items()
                if where is mirror and (due == 0.0 or (due <= now and self._whole(mirror)))
            ),
            None,
        )

    def _whole(self, mirror: Mirror) -> bool:
        """Whether every disk that is ever written can be written now."""
        return all(
            member.health.state is State.ONLINE or not member.health.writable
            for member in mirror.members
        )

    def _later(self, key: tuple[Digest, Mirror]) -> None:
        if key in self._due:  # not when the configuration has no such mirror any more
            self._due[key] = self._clock.seconds() + RETRY_SECONDS

    def _rest(self, key: tuple[Digest, Mirror], seconds: float = RETRY_SECONDS) -> None:
        self._due.pop(key, None)
        self._rested[key] = self._clock.seconds() + seconds

    def _forget(self, digest: Digest, mirror: Mirror) -> None:
        for member in mirror.members:
            member.noted.discard(digest)
        for member in mirror.members:
            if member.writable:
                forgetting = member.write(forget, member.disk, REPAIR_DIRECTORY, digest)
                forgetting.addErrback(self._unnoted, member)

    def _unnoted(self, failure: Failure, member: Member) -> None:
        self.log.warn("{root}: {error}", root=member.root, error=str(failure.value))
