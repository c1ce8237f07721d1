"""What all disks hold, as the process that writes knows it: for those who ask what is missing."""

import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.walk import Batch, first_samples, walk
from stor.index import merge as merging
from stor.index.index import IndexWriter, Shared
from stor.index.merge import Merge, MergeFailed, Plan
from stor.index.recent import RecentDamaged
from stor.index.table import SECRET_BYTES, Keys, TableDamaged
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.threads import Busy, Pool, settle

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: A walk that could not be finished begins anew no earlier.
RETRY_SECONDS = 60.0

#: A name takes ten times the memory until it is in the table.
RECENT_NAMES = 200_000

#: How many names are learnt in one turn of the reactor.
_NAMES_A_TURN = 500

#: How many of the lowest directories are walked in one go.
_BATCH_DIRECTORIES = 64

#: A walk rests as long as its reads have taken, but no longer than this at a time.
_REST_SECONDS = 0.5


class NotKnown(Exception):
    """Why not all names of a disk could be learnt."""


@attrs.define(eq=False)
class _Walk:
    """How far the names of one disk are known. `uuid` is that of the disk that was walked."""

    uuid: str | None = None
    done: bool = False
    running: bool = False
    not_before: float = 0.0


class Names:
    """The names of all samples, in memory: where each is, for as long as the process lives.

    They are learnt by a walk of all disks, which begins when somebody asks, and from every upload.
    What any disk of a mirror has is known. Until one of them is complete, and those that are there
    have been walked, what is not known may be there.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        threads: Callable[[str], Pool],
        recent_limit: int = RECENT_NAMES,
    ) -> None:
        """`threads` gives a pool of one thread with a name.

        With more names than `recent_limit` since the table was made, a new one is made of them.
        """
        self._recent_limit = recent_limit
        self._clock = clock
        self._threads = threads
        self._pools: dict[str, Pool] = {}
        self._keys = Keys(secrets.token_bytes(SECRET_BYTES))
        #: From when somebody asks first.
        self._index: IndexWriter | None = None
        self._shared: Shared | None = None
        self._walks: dict[Member, _Walk] = {}
        self._mirrors: tuple[Mirror, ...] = ()
        self._numbers: dict[Mirror, tuple[str, int]] = {}
        self._merging = False
        self._stopped = False

    def held(self, digest: Digest) -> bool | None:
        """Whether any mirror holds a sample; `None`: one that is not known yet could. No disk I/O.

        The first who asks has the disks walked.
        """
        index = self._index
        if index is None:
            self._begin()
            return None
        try:
            places = index.find(digest.raw)
        except (TableDamaged, RecentDamaged, OSError) as error:
            self._forget_all(error)
            return None
        mine = {self._number(mirror) for mirror in self._mirrors}
        if not mine.isdisjoint(places.sets):
            return True
        return False if mine <= places.complete else None

    def stored(self, digest: Digest, mirror: Mirror) -> None:
        """A mirror holds a sample from now on, or may; to be called before anybody is told."""
        number = self._number(mirror)
        if self._index is not None and number is not None:
            try:
                self._index.add(digest.raw, number)
            except (TableDamaged, RecentDamaged, OSError) as error:
                self._forget_all(error)

    async def listed(self, begin: bytes, limit: int) -> list[tuple[bytes, int]] | None:
        """The first samples from `begin` on, sorted, `limit` at most, each with its size.

        Read from the directories of all disks. `None`: a mirror has no complete one now.
        """
        givers = []
        for mirror in self._mirrors:
            able = [member for member in mirror.members if member.health.sound]
            if not any(member.complete for member in able):
                return None
            givers += able
        reading = [
            self._in_thread(giver.root, first_samples, giver.disk, begin, limit) for giver in givers
        ]
        found: dict[bytes, int] = {}
        for samples in await settle(reading):
            if isinstance(samples, Failure):
                self.log.warn("Samples cannot be listed: {error}", error=str(samples.value))
                return None
            found.update((sample.sha, sample.size) for sample in samples)
        return sorted(found.items())[:limit]

    def known(self, mirror: Mirror) -> bool:
        """Whether all names of a mirror are known."""
        number = self._number(mirror)
        return self._index is not None and number in self._index.find(bytes(32)).complete

    def resume(self, mirrors: Sequence[Mirror]) -> None:
        """These are the mirrors: learn what is not known of them yet; called every now and then."""
        self._mirrors = tuple(mirrors)
        if self._index is None or self._stopped:
            return
        for mirror in self._mirrors:
            self._weigh(mirror)
            if any(member.complete and member.health.readable for member in mirror.members):
                for member in mirror.members:
                    if member.health.readable and not self._walked(member):
                        self._start(member, mirror)
        if self._index.recent_names > self._recent_limit and not self._merging:
            self._merging = True
            making = Deferred.fromCoroutine(self._make_table(self._index))
            making.addErrback(lambda failure: self.log.failure("Making the table", failure))
        elif not self._merging:
            self._index.settle()

    def stop(self) -> None:
        """Let the threads end once they are idle, and give the memory back."""
        self._stopped = True
        if self._merging:  # a child still has the memory
            self._shared = None
        self._free()
        for pool in self._pools.values():
            pool.stop()

    def _begin(self) -> None:
        if self._stopped:
            return
        shared = Shared.create()
        index = IndexWriter(shared, self._keys)
        plan = index.plan(0, keep=False)
        if plan is not None:
            merging.make(attrs.evolve(plan, least_bits=1), self._keys)
            index.install()
        self._index, self._shared = index, shared
        self.resume(self._mirrors)

    def _free(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            index.close()
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()
        self._numbers.clear()
        self._walks.clear()

    def _forget_all(self, error: Exception) -> None:
        self.log.error("What the disks hold is learnt anew: {error}", error=str(error))
        if self._merging:  # the child still has the memory
            self._shared = None
        self._free()

    def _number(self, mirror: Mirror) -> int | None:
        """The number of a mirror in the index; `None` while its disks were never heard."""
        if self._index is None:
            return None
        known, number = self._numbers.get(mirror, (None, None))
        markers = [member.health.marker for member in mirror.members if member.health.readable]
        sets = {marker.set for marker in markers if marker is not None}
        if len(sets) != 1 or known in sets:
            return number
        (uuid,) = sets
        try:
            number = self._index.number(uuid)
        except ValueError:  # more sets than can be numbered: what they hold is not known
            return None
        self._numbers[mirror] = uuid, number
        return number

    def _walk_of(self, member: Member) -> _Walk:
        return self._walks.setdefault(member, _Walk())

    def _weigh(self, mirror: Mirror) -> None:
        """Find out anew whether all names of a mirror are known."""
        number = self._number(mirror)
        if number is None or self._index is None:
            return
        present = [member for member in mirror.members if member.health.readable]
        if not present:
            return  # what was known of them stays known
        complete = any(member.complete for member in present)
        self._index.set_complete(number, complete and all(map(self._walked, present)))

    def _walked(self, member: Member) -> bool:
        """Whether the disk that is there, or was when it was last, has been walked to its end."""
        walked, marker = self._walk_of(member), member.health.marker
        same = marker is None or not member.health.readable or marker.uuid == walked.uuid
        return walked.done and same

    def _start(self, member: Member, mirror: Mirror) -> None:
        walked = self._walk_of(member)
        if walked.running or walked.not_before > self._clock.seconds():
            return
        marker = member.health.marker
        self._walks[member] = walked = _Walk(None if marker is None else marker.uuid, running=True)

        def ended(outcome: object) -> None:
            walked.running = False
            if isinstance(outcome, Failure):
                walked.not_before = self._clock.seconds() + RETRY_SECONDS
                if outcome.check(DiskAway, Busy, OSError, NotKnown) is None:
                    self.log.failure("Walking {root}", outcome, root=member.root)
                else:
                    self.log.warn(
                        "{root}: not all its names are known yet: {error}",
                        root=member.root,
                        error=str(outcome.value),
                    )

        walking: Coroutine[Any, Any, None] = self._learn(member, mirror, walked)
        Deferred.fromCoroutine(walking).addBoth(ended)

    async def _learn(self, member: Member, mirror: Mirror, walked: _Walk) -> None:
        batches = walk(member.disk, "", _Pace(), _BATCH_DIRECTORIES)
        while (batch := await self._in_thread(member.root, _next, batches)) is not None:
            if batch.unreadable:
                first = batch.unreadable[0]
                raise NotKnown(f"{first.path}: {first.error.strerror}")
            for begin in range(0, len(batch.samples), _NAMES_A_TURN):
                for sample in batch.samples[begin : begin + _NAMES_A_TURN]:
                    self.stored(Digest(sample.sha), mirror)
                await deferLater(self._clock, 0)
            if self._stopped:
                raise NotKnown("Stor is ending")
        if not member.health.sound:
            raise NotKnown(member.health.fault or "the disk was not to be read meanwhile")
        walked.done = True
        self._weigh(mirror)
        self.log.info("All names of {mirror} are known", mirror=mirror)

    async def _make_table(self, index: IndexWriter) -> None:
        """Make a table of the one in use and of the names since: a tenth of the memory."""
        try:
            plan: Plan | None = index.plan(0, keep=False)
            if plan is not None:
                await self._in_thread("table", Merge(plan, self._keys).wait)
                if index is self._index:
                    index.install()
        except (MergeFailed, TableDamaged, OSError, Busy) as error:
            self.log.warn("The table of names: {error}", error=str(error))
        finally:
            self._merging = False

    def _in_thread(self, name: str, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        if name not in self._pools:
            self._pools[name] = self._threads(f"names {name}")
        return self._pools[name].run(function, *args)


class _Pace:
    """Takes no more than half of a disk's time."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, reads: int) -> None:
        took = time.monotonic() - self._began
        if took > 0.005:
            time.sleep(min(took, _REST_SECONDS))
        self._began = time.monotonic()


def _next(batches: Iterator[Batch]) -> Batch | None:
    return next(batches, None)
