"""The tiers as one store: all that the web wing knows of where samples are."""

import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from stor import location
from stor.content import Content
from stor.digest import Digest
from stor.disk import page_cache
from stor.errors import NotFound, StorError, Unavailable
from stor.location import Locations
from stor.lookup import Lookup, Search
from stor.metrics import Metrics
from stor.mirror import partial as uploads_in_parts
from stor.mirror import put as puts_to_disks
from stor.mirror import turns
from stor.mirror.disk_order import DiskOrder
from stor.mirror.landed import Page
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.s3.bucket import Bucket, S3Search
from stor.s3.queue import CopyQueue
from stor.status import (
    DiskStatus,
    PartialUploads,
    RepairStatus,
    S3Copies,
    S3Status,
    SetStatus,
    Status,
    Unwritable,
    Work,
)

# What the web wing has to do with uploads that can be resumed.
KEPT_SECONDS = uploads_in_parts.KEPT_SECONDS
FoundUpload = uploads_in_parts.Found
Partials = uploads_in_parts.Partials
PartialPut = uploads_in_parts.PartialPut
UploadTurn = turns.UploadTurn
# And with samples in memory.
CachedCopy = page_cache.CachedCopy

#: What a sample that is kept in memory takes there beside its content.
_HOT_OVERHEAD_BYTES = 1000

_NOT_LISTED = "samples are listed where disks keep them, and here S3 alone does"

#: A small sample that is put in one go.
SmallPut = puts_to_disks.SmallPut


class Put(Protocol):
    """One upload of a sample: `stored`, `begin`, `add` …, `commit`; in the end always `leave`."""

    async def stored(self) -> list[str] | None:
        """The sample's paths when it is stored, made whole first where it is not whole."""

    async def begin(self) -> None:
        """Have a place for the sample. Raises `NoRoom`, `Unavailable`."""

    async def add(self, chunks: list[bytes], last: bool) -> None:
        """Write more of the body. Raises `NoRoom`, `Unavailable`."""

    async def commit(self) -> tuple[list[str], bool]:
        """Make the sample durable: its paths, and whether this upload made it."""

    async def leave(self) -> None:
        """The end, good or bad: what is not committed leaves nothing behind. Never raises."""


class Puts(Protocol):
    """The samples that are being put."""

    def expect(self, digest: Digest, length: int | None) -> Put:
        """Begin to put a sample; `length` in bytes when it is known."""


@attrs.frozen
class Found:
    """What a client is told of a sample without reading it, and the storage that says so."""

    size: int
    modified_ns: int
    storage: str


class HotContent:
    """A whole sample in memory as a `stor.content.Content`: all of it is `whole`."""

    def __init__(self, copy: CachedCopy) -> None:
        """`copy` has been read."""
        self.digest = copy.digest
        self.place = copy.place
        self.storage = copy.storage
        self.size = copy.size
        self.modified_ns = copy.modified_ns
        self.whole: bytes | None = bytes(copy.content or b"")

    def take_part(self, end: int) -> None:
        """See `Content.take_part`."""

    async def read(self, offset: int, length: int) -> bytes:
        """See `Content.read`."""
        return (self.whole or b"")[offset : offset + length]

    def close(self) -> None:
        """See `Content.close`."""


class HotSamples:
    """Small verified samples that were asked for lately, up to some bytes of them.

    Those asked for longest ago go first. What has a sample's SHA-256 can never change, so nothing
    here is ever out of date.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._samples: OrderedDict[bytes, CachedCopy] = OrderedDict()

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, raw: object) -> bool:
        return raw in self._samples

    def get(self, raw: bytes, *, missed: bool = True) -> CachedCopy | None:
        """The sample with this digest (`Digest.raw`), if it is here; `missed` counts if not."""
        sample = self._samples.get(raw)
        if sample is None:
            self.misses += missed
            return None
        self.hits += 1
        self._samples.move_to_end(raw)
        return sample

    def add(self, sample: CachedCopy) -> None:
        """Keep a sample that was read whole and verified, in the place of others if need be."""
        raw, taken = sample.digest.raw, sample.size + _HOT_OVERHEAD_BYTES
        if taken > self.limit_bytes or raw in self._samples:
            return
        self._samples[raw] = sample
        self.used_bytes += taken
        self.shrink(self.limit_bytes)

    def shrink(self, limit_bytes: int) -> None:
        """Keep no more than this from now on."""
        self.limit_bytes = limit_bytes
        while self.used_bytes > limit_bytes:
            _, sample = self._samples.popitem(last=False)
            self.used_bytes -= sample.size + _HOT_OVERHEAD_BYTES


class Feed:
    """What clients have stored on this host, in the order of its numbers."""

    def __init__(self, learning: LearningNames, mirrors: Mirrors) -> None:
        self._learning = learning
        self._mirrors = mirrors
        #: Tells the numbers of this host from those of others.
        self.host = learning.host

    @property
    def end(self) -> int:
        """Everything up to this number has landed, or never will."""
        return self._learning.landed.end

    @property
    def whole(self) -> bool:
        """Whether every disk can be read: none may know of higher numbers."""
        return all(member.health.readable for member in self._mirrors.members)

    async def after(self, number: int, limit: int) -> Page:
        """The next samples after a number. Raises `Gone`, `Unavailable`."""
        learning = self._learning
        page = await learning.landed.after(number, limit, self._mirrors.mirrors)
        # A record is made before its copies have their names, which they may never get.
        stored = [one for one in page.records if learning.held(Digest(one.sha)) is not False]
        return attrs.evolve(page, records=stored)

    async def wait(self, seconds: float) -> None:
        """Return once something has landed, or after this time."""
        await self._learning.landed.wait(seconds)


class DiskTier:
    """The disks as a tier, with what outlives a configuration."""

    def __init__(
        self,
        mirrors: Mirrors,
        ready: Deferred[None],
        wall_seconds: Callable[[], float] = time.time,
        boot: str | None = None,
    ) -> None:
        """`ready` fires when the disks' states are known first; nothing is answered before.

        `wall_seconds` is the wall clock, for what people are told. `boot` tells this boot of the
        machine from others.
        """
        self.mirrors = mirrors
        self.ready = ready
        self.wall_seconds = wall_seconds
        #: What is kept in memory beside what the kernel has there.
        self.hot = HotSamples(0)
        self.puts = puts_to_disks.Puts(mirrors, ready)
        self.partials = Partials(mirrors, self.puts, ready, wall_seconds, boot)

    async def open(self, digest: Digest) -> Content[Any]:
        """A sample from the disks alone. Raises like `Store.open`."""
        lookup = Lookup([self.mirrors.search(digest)])
        source = await lookup.next()
        if source is None:
            raise lookup.missing()
        return await _ready_content(Content(digest, source, lookup, self.mirrors.clock))


@attrs.frozen
class Tiers:
    """Where a configuration has samples looked for and put.

    `order` is that in which the tiers are asked. `puts` is where new samples go that go to no disk,
    and `copies` has those that are still to be sent to S3 from there. `locations` knows where
    samples were last seen, by names of `places`.
    """

    order: Sequence[str] = ("disk",)
    bucket: Bucket | None = None
    puts: Puts | None = None
    copies: CopyQueue | None = None
    locations: Locations | None = None
    places: Mapping[str, Mirror] = attrs.field(factory=dict)


class Store:
    """Find, open and take samples."""

    def __init__(
        self,
        disks: DiskTier,
        metrics: Metrics,
        tiers: Tiers | None = None,
        *,
        work: Callable[[], Work] = Work,
        notices: Callable[[], list[str]] = list,
    ) -> None:
        """`work` goes on beside requests; `notices` are further lines for the warnings."""
        self._disks = disks
        self._mirrors = disks.mirrors
        self._ready = disks.ready
        self._wall_seconds = disks.wall_seconds
        self._metrics = metrics
        self._work = work
        self._notices = notices
        self.hot = disks.hot
        self.tiers = tiers or Tiers()
        self._order = tuple(self.tiers.order)
        self._bucket = self.tiers.bucket
        self._locations = self.tiers.locations
        self._puts = self.tiers.puts or disks.puts
        self._place_of = {mirror: place for place, mirror in self.tiers.places.items()}

    def at_once(self, raw: bytes, *, read: bool, keep: bool = True) -> CachedCopy | NotFound | None:
        """What is known of a sample (`Digest.raw`) without waiting, with its content if `read`.

        Then it is kept in memory for others, unless they are not likely to `keep` asking for it.
        `None` when `find` or `open` has to be asked, of which one says the same. Neither S3 nor the
        servers of the location cache are asked, nor told.
        """
        hot = self.hot
        if hot.used_bytes:
            sample = hot.get(raw, missed=False)
            if sample is not None:
                return sample
        if self._order[:1] != ("disk",):
            return None
        digest = Digest(raw)
        found = self._mirrors.at_once(digest, read=read)
        if isinstance(found, CachedCopy):
            if read and found.content is None:
                return None
            self._metrics.lookup(1, 0.0)
            hot.misses += 1
            if read and keep and hot.limit_bytes:
                hot.add(found)
            return found
        if found is None or (self._bucket is not None and "s3" in self._order):
            return None
        self._metrics.lookup(0, 0.0)
        self._mirrors.denied(digest)
        return found

    def find_at_once(self, digest: Digest) -> Found | None:
        """Like `find` where nothing has to wait; else `None`. Raises `NotFound`."""
        found = None if digest.raw in self.hot else self.at_once(digest.raw, read=False)
        if isinstance(found, NotFound):
            raise found
        return None if found is None else Found(found.size, found.modified_ns, found.storage)

    def at_once_in_passing(self, raw: bytes) -> CachedCopy | NotFound | None:
        """Like `at_once`, of one of many samples that are each asked for once: to be read."""
        return self.at_once(raw, read=True, keep=False)

    async def in_disk_order(self, raw: bytes) -> bytes:
        """The same samples (`Digest.raw`, one after the other) in an order that disks like."""
        await self._ready
        return await DiskOrder(self._mirrors.known, self._mirrors.clock).sorted(raw)

    async def open_in_passing(self, digest: Digest) -> Content[Any] | HotContent:
        """Like `open`, of one of many samples that are each asked for once."""
        found = self.at_once_in_passing(digest.raw)
        if isinstance(found, NotFound):
            raise found
        return await self.open(digest) if found is None else HotContent(found)

    async def find(self, digest: Digest) -> Found:
        """The sample's size and time, without reading it. Raises like `open`."""
        hot = self.hot.get(digest.raw)
        if hot is not None:
            return Found(hot.size, hot.modified_ns, hot.storage)
        await self._ready
        hint = await self._where(digest)
        lookup = self._lookup(digest, hint, part=True)
        try:
            copy = await self._measured(lookup, lookup.look())
        finally:
            lookup.close()
        if copy is None:
            raise self._missing(digest, lookup, hint)
        self._seen(digest, lookup)
        return Found(copy.size, copy.modified_ns, copy.storage)

    async def open(self, digest: Digest, *, part: bool = False) -> Content[Any] | HotContent:
        """The sample, ready to be read. The caller closes it. `part`: it may not be read whole.

        Raises `NotFound` when every place answered and none has it, `Unavailable` when one did
        not answer, `Damaged` when there are copies and none is good.
        """
        hot = self.hot.get(digest.raw)
        if hot is not None:
            return HotContent(hot)
        await self._ready
        hint = await self._where(digest)
        lookup = self._lookup(digest, hint, part=part)
        source = await self._measured(lookup, lookup.next())
        if source is None:
            raise self._missing(digest, lookup, hint)
        self._seen(digest, lookup)
        if source.whole is not None:
            self.hot.add(
                CachedCopy(
                    digest,
                    source.place,
                    source.storage,
                    len(source.whole),
                    source.modified_ns,
                    source.whole,
                )
            )
        return await _ready_content(Content(digest, source, lookup, self._mirrors.clock))

    def expect(self, digest: Digest, length: int | None) -> Put:
        """Begin to take a sample; `length` in bytes when it is known."""
        return self._puts.expect(digest, length)

    def put_small(self, digest: Digest, content: bytes) -> SmallPut | None:
        """A put of a small sample at once: see `stor.mirror.put.Puts.put_small`."""
        return self._disks.puts.put_small(digest, content) if self._on_disks else None

    @property
    def partials(self) -> Partials | None:
        """Uploads that can be resumed: those to disks."""
        return self._disks.partials if self._on_disks else None

    @property
    def _on_disks(self) -> bool:
        return self._puts is self._disks.puts

    def held(self, sha: bytes) -> bytes:
        """What is known of a sample without asking a disk.

        `+`: it is stored; `-`: it is not; `?`: a storage that is away, or a set that is not
        complete, could hold it. The disks' names are learnt once somebody asks; until then `?`.
        """
        names = self._mirrors.names
        if names is None or not self._on_disks:
            return b"?"
        held = names.held(Digest(sha))
        return b"?" if held is None else b"+" if held else b"-"

    async def listed(self, begin: bytes, limit: int) -> list[tuple[bytes, int]] | None:
        """Samples with their sizes, sorted, from `begin` on; fewer than `limit` only at the end.

        `None`: a set has no complete disk that can be read. Raises `NotFound`: samples are on none.
        """
        names = self._mirrors.learning
        if not self._on_disks:
            raise NotFound(reason=_NOT_LISTED)
        if names is None:
            return None
        return await names.listed(begin, limit)

    async def feed(self) -> Feed:
        """What clients have stored, in order.

        Raises `Unavailable`: the disks do not tell; `NotFound`: samples are on none.
        """
        await self._ready
        learning = self._mirrors.learning
        if not self._on_disks:
            raise NotFound(reason=_NOT_LISTED)
        if learning is None:
            raise Unavailable("what landed is told by the process that writes")
        return Feed(learning, self._mirrors)

    def status(self) -> Status:
        """How the storages are, as last seen: never asks a disk."""
        problems = [
            f"{member.root}: {member.health.state.value}: {member.health.fault}"
            for member in self._mirrors.members
            if member.health.fault
        ]
        if self._bucket is not None and self._bucket.fault is not None:
            problems.append(self._bucket.fault)
        names, work = self._mirrors.names, self._work()
        sets = [
            SetStatus(
                [self._disk_status(member, work) for member in mirror.members],
                writable=mirror.takes_samples,
                samples=None if names is None else names.samples(mirror),
                indexed=names is not None and names.known(mirror),
                reason=mirror.draining,
            )
            for mirror in self._mirrors.mirrors
        ]
        warnings = [warning for mirror in self._mirrors.mirrors for warning in mirror.warnings]
        warnings += [*work.warnings, *self._notices()]
        warnings += [] if names is None else names.warnings
        repairs = self._mirrors.repairs
        return Status(
            problems,
            warnings,
            sets,
            RepairStatus(repairs.waiting, repairs.mended_total),
            self._s3_status(),
            [] if self._locations is None else self._locations.servers,
            work,
            PartialUploads() if self.partials is None else self.partials.kept,
        )

    async def _where(self, digest: Digest) -> str | None:
        if self._locations is None:
            return None
        begun = self._mirrors.clock.seconds()
        place = await self._locations.where(digest)
        self._metrics.cache(place is not None, self._mirrors.clock.seconds() - begun)
        return place

    async def _measured(self, lookup: Lookup, asking: Coroutine[Any, Any, Any]) -> Any:
        begun = self._mirrors.clock.seconds()
        found = await asking
        self._metrics.lookup(lookup.attempts, self._mirrors.clock.seconds() - begun)
        return found

    def _lookup(self, digest: Digest, hint: str | None, *, part: bool) -> Lookup:
        searches: list[Search] = []
        for tier in self.tiers.order:
            if tier == "disk":
                searches.append(self._mirrors.search(digest, self.tiers.places.get(hint or "")))
            elif self._bucket is not None:
                searches.insert(
                    0 if hint == location.S3 else len(searches),
                    S3Search(self._bucket, digest, part=part),
                )
        return Lookup(searches)

    def _seen(self, digest: Digest, lookup: Lookup) -> None:
        if self._locations is None:
            return
        mirror = lookup.mirror
        place = location.S3 if mirror is None else self._place_of.get(mirror)
        if place is not None:
            self._locations.remember(digest, place)

    def noticed(self, digest: Digest, mirror: Mirror) -> None:
        """A new sample is there."""
        place = self._place_of.get(mirror)
        if self._locations is not None and place is not None:
            self._locations.remember(digest, place)

    def _missing(self, digest: Digest, lookup: Lookup, hint: str | None) -> StorError:
        error = lookup.missing()
        if isinstance(error, NotFound):
            self._mirrors.denied(digest)
            if self._locations is not None and hint is not None:
                self._locations.forget(digest, hint)
        return error

    def _s3_status(self) -> S3Status | None:
        if self._bucket is None:
            return None
        fault = self._bucket.fault
        copies = None
        queue = self.tiers.copies
        if queue is not None:
            copies = S3Copies(len(queue), round(queue.age_seconds, 1), queue.sent_total)
        return S3Status(self._bucket.client.bucket, fault is None, fault, copies)

    def _wall_time(self, moment: float) -> float:
        """When a moment of the monotonic clock was, in seconds since the epoch."""
        return self._wall_seconds() - (self._mirrors.clock.seconds() - moment)

    def _disk_status(self, member: Member, work: Work) -> DiskStatus:
        health = member.health
        unwritable = None
        if health.unwritable is not None:
            unwritable = Unwritable(
                health.unwritable.cause.value,
                health.unwritable.reason,
                self._wall_time(health.unwritable.since),
            )
        compared = None if member.complete else work.compared.get(member.root)
        return DiskStatus(
            root=member.root,
            state=health.state.value,
            since=self._wall_time(health.since),
            reason=health.fault,
            total_bytes=health.room.total_bytes,
            free_bytes=health.room.free_bytes,
            free_inodes=health.room.free_inodes,
            reserve_bytes=health.reserve_bytes,
            errors=health.errors_total,
            complete=member.complete,
            held=health.held,
            unwritable=unwritable,
            compared=None if compared is None else round(compared, 3),
        )


async def _ready_content(content: Content[Any]) -> Content[Any]:
    try:
        await content.prepare()
    except BaseException:
        content.close()
        raise
    return content
