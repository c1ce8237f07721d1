"""Keeping the index in step with the disks, whose names the process that writes learns."""

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.journal import Event, Kind, Record
from stor.disk.names import DiskNames, extended_base, unnamed_samples
from stor.disk.staged import Small
from stor.disk.walk import HalfTheTime
from stor.index import merge as merging
from stor.index.index import IndexWriter, Shared
from stor.index.merge import DiskSource, Merge, MergeFailed
from stor.index.numbers import GAP, Numbers, Registration, leaving, number_all
from stor.index.recent import RecentDamaged
from stor.index.table import TableDamaged, TableDisk
from stor.mirror.landed import Landed
from stor.mirror.listing import Listings
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.names import Names
from stor.mirror.walking import DiskState, NotKnown, Walking, as_long_as, on_disk
from stor.threads import Busy, Pool

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: What could not be learnt of a disk is tried again no earlier.
RETRY_SECONDS = 60.0

#: A name takes ten times the memory until it is in the table.
RECENT_NAMES = 200_000

#: A base is made anew for half a million records, which a start reads in some seconds.
EXTEND_SEGMENTS = 8

#: How often it is looked again whether the next table can be made.
_ROOM_SECONDS = 0.1

#: How often a table is kept for the next start; what came since, that learns from the journals.
KEEP_SECONDS = 3600.0

#: A walk that takes no longer is no job.
SHORT_WALK_SECONDS = 2.0

#: How many names are learnt in one turn of the reactor.
_NAMES_A_TURN = 500

#: One "no" in about this many seconds is checked against the disks.
AUDIT_SECONDS = 1.0


class LearningNames(Names):
    """The index, kept in step with the disks.

    Each disk is learnt from its base and its journal; and from a walk, until these are proved to
    have all its names. Of a mirror that is not wholly known the index says so.
    """

    def __init__(
        self,
        shared: Shared,
        clock: IReactorTime,
        threads: Callable[[str], Pool],
        table_path: str | None = None,
        recent_limit: int = RECENT_NAMES,
        pace: Callable[[], Callable[[int], None]] = HalfTheTime,
        extend_segments: int = EXTEND_SEGMENTS,
        keep_seconds: float = KEEP_SECONDS,
    ) -> None:
        """The memory `shared` stays the caller's. `threads` gives a pool of one thread with a name.

        At `table_path` a table is kept for the next start, every `keep_seconds` at most. With more
        names than `recent_limit` since the table was made, a new one is made of them. `pace` makes
        what paces a walk. A base is extended by `extend_segments` at least.
        Raises `TableDamaged`, `RecentDamaged`, `OSError`.
        """
        self._keys = shared.keys
        #: Tells this host from others.
        self.host = self._keys.host.hex()[:8]
        self._writing = index = IndexWriter(shared, self._keys, table_path)
        super().__init__(index, lambda digest, mirror: None)
        self._clock = clock
        self._threads = threads
        self._recent_limit = recent_limit
        self._pace = pace
        self._extend_segments = extend_segments
        self._pools: dict[str, Pool] = {}
        # What an earlier process knew holds on; whether it is all is found out anew.
        for number in index.find(bytes(32)).complete:
            index.set_complete(number, False)
        self._path = table_path
        self._keep_seconds = keep_seconds
        self._next_keep = 0.0
        #: Whether there is a table to begin with, or someone is about to bring one.
        self._begun = index.contents is not None
        self._loading = False
        if not self._begun and table_path is None:
            self._begin_empty()
        #: The numbers of what happens to names.
        self.numbers = Numbers(0, clean=True)
        #: What clients have stored.
        self.landed = Landed(self.numbers, clock, self._on)
        #: Whether disks are walked here, however long it takes; else jobs do that (`walk`).
        self.walks_by_itself = True
        self._walking = Walking(self.numbers, self._in_thread, self._take)
        self._states: defaultdict[Member, DiskState] = defaultdict(DiskState)
        self._merging = False
        self._next_table = 0.0
        self._stopped = False
        #: How many samples are on their way to a mirror's disks, and the number of the last that
        #: was. With another configuration the same disks are another mirror.
        self._arriving: defaultdict[tuple[Member, ...], int] = defaultdict(int)
        self._last_number: dict[tuple[Member, ...], int] = {}
        self._next_audit = 0.0
        self._listings = Listings(self.known, self.held, self._in_thread)
        #: Samples of which the disks of a mirror may have records and no copies; their numbers.
        self.doubted: defaultdict[Mirror, dict[Digest, int]] = defaultdict(dict)
        #: The mirrors of which a "no" was wrong, and how that showed.
        self._wrong: dict[Mirror, str] = {}
        self.audits_total = 0
        self.wrong_total = 0
        self.lost_total = 0

    @property
    def next_number(self) -> int:
        """See `Names.next_number`."""
        return self.numbers.next

    def expect(self, digest: Digest, mirror: Mirror, kind: Kind) -> Registration:
        """A sample is about to be put on the disks of a mirror."""
        for member in mirror.members:
            self._hear(member)
        begun, ended = partial(self._begun_one, mirror), partial(self.ended, digest, mirror)
        return Registration(self.numbers, kind, begun, ended)

    def _begun_one(self, mirror: Mirror, number: int) -> None:
        self._arriving[mirror.members] += 1
        self._last_number[mirror.members] = number

    def begin(self, mirror: Mirror, samples: Sequence[Small]) -> None:
        """Number small samples of clients, whose records are about to be made on a mirror."""
        for member in mirror.members:
            self._hear(member)
        number_all(samples, self.numbers)
        self._arriving[mirror.members] += len(samples)
        self._last_number[mirror.members] = self.numbers.next - 1

    def ended(
        self, digest: Digest, mirror: Mirror, event: Event, held: bool, size: int | None
    ) -> None:
        """Before anybody is told: `held`: disks hold a sample, or may; its `size` if stored."""
        if held:
            self.stored(digest, mirror)
        else:  # there may be records of it
            self.doubted[mirror].setdefault(digest, event.sequence)
        self._arriving[mirror.members] -= 1
        self.numbers.end(event.sequence)
        if size is not None and event.kind is Kind.STORED:
            number, time_ns, kind, _ = event
            self.landed.add(Record(digest.raw, number, size, 0, time_ns, kind))

    def stored(self, digest: Digest, mirror: Mirror) -> None:
        """A mirror holds a sample from now on, or may; to be called before anybody is told."""
        for member in mirror.members:
            self._states[member].left.discard(digest.raw)
        self._add(digest.raw, mirror)

    def leaving(self, mirror: Mirror, kind: Kind = Kind.LEFT) -> AbstractContextManager[Event]:
        """What records say of samples that leave a mirror, or are not there (`Kind.UNSTORED`)."""
        self._last_number[mirror.members] = self.numbers.next
        return leaving(self.numbers, kind)

    def left(self, digest: Digest, mirror: Mirror, size: int) -> None:
        """A mirror holds a sample no longer, as its disks have noted durably.

        To be called before its copies go. Who lists samples meanwhile does not miss it.
        """
        self.strike(digest.raw, mirror)
        self._listings.left(digest, size)

    def quiet(self, mirror: Mirror, since: int) -> bool:
        """Whether nothing was on its way since then: only then disks and index have to agree."""
        members = mirror.members
        return not self._arriving[members] and self._last_number.get(members, -1) < since

    def lost(self, digest: Digest, mirror: Mirror, since: int) -> None:
        """See `Names.lost`: strike it, unless it is on its way there."""
        number = self._number(mirror)
        if number is None or self.broken is not None or not self.quiet(mirror, since):
            return
        if self._writing.remove(digest.raw, number):
            self.lost_total += 1
            self.doubted[mirror].setdefault(digest, self.numbers.next)
            said = f"{digest} is on no disk of {mirror}: somebody removed it, or a disk failed"
            self.log.warn("{said}", said=said)

    @property
    def audit_due(self) -> bool:
        """Whether to check the "no" that is about to be given against the disks: now and then."""
        return self._clock.seconds() >= self._next_audit and self.broken is None

    def audit_begins(self) -> None:
        """Such a "no" is being checked."""
        self._next_audit = self._clock.seconds() + AUDIT_SECONDS * (0.5 + random.random())
        self.audits_total += 1

    def was_wrong(self, digest: Digest, mirror: Mirror, since: int) -> None:
        """A mirror has a sample of which the index knew nothing: its disks are walked anew.

        The disks were asked after the number `since` was the next one.
        """
        if not self.quiet(mirror, since) or mirror in self.find(digest).holders:
            return
        self.wrong_total += 1
        self.stored(digest, mirror)
        if mirror in self._wrong:  # they are being walked
            return
        self._wrong[mirror] = f"{digest} was on {mirror}, and the index did not know"
        self.log.error("{what}: the disks are walked anew", what=self._wrong[mirror])
        for member in mirror.members:
            if member.names is not None:
                member.names.cursor = ""
        self._weigh(mirror)

    @property
    def warnings(self) -> list[str]:
        """See `Names.warnings`."""
        wrong = [f"index: {what}: the disks are walked anew" for what in self._wrong.values()]
        return super().warnings + wrong

    async def listed(
        self, begin: bytes, limit: int, mirrors: Sequence[Mirror] | None = None
    ) -> list[tuple[bytes, int]] | None:
        """Sorted samples from `begin` on, with sizes; `None`: a mirror has no complete disk now."""
        asked = self._mirrors if mirrors is None else mirrors
        return await self._listings.listed(begin, limit, asked, every=mirrors is None)

    def resume(self, mirrors: Sequence[Mirror]) -> None:
        """These are the mirrors: learn what is not known of them yet; called every now and then."""
        self.follow(mirrors)
        if self.broken is not None:
            return
        for mirror in self._mirrors:
            for member in mirror.members:
                self._hear(member)
        if not self._begun:
            self._load()
            return
        for mirror in self._mirrors:
            self._walking.tell_low(mirror, self._states, self.doubted.get(mirror, {}))
            for member in mirror.members:
                self._look_after(member, mirror)
            self._weigh(mirror)
        behind = any(state.in_base and not state.running for state in self._states.values())
        if not self._merging:
            self._writing.settle()
        if behind or self._index.recent_names > self._recent_limit:
            self._begin_table()

    @property
    def busy(self) -> bool:
        """Whether the table is being loaded, or more is being learnt of a disk."""
        return not self._begun or any(one.running for one in self._states.values())

    def unwalked(self) -> list[Member]:
        """The disks that are to be walked: not all their names are known."""
        return [
            member
            for mirror in self._mirrors
            for member in mirror.members
            if self.learns(member) and member.names is not None and not member.names.known
        ]

    def learns(self, member: Member) -> bool:
        """Whether a disk can be walked now: what it knows itself was read, and is not just kept."""
        state = self._states[member]
        known = member.names is not None and state.learnt is member.names
        return known and member.health.readable and not state.running

    async def walk(
        self,
        member: Member,
        mirror: Mirror,
        turn: Callable[[], Awaitable[None]],
        pace: Callable[[int], None],
        walked: Callable[[int, float], None],
        *,
        anew: bool,
    ) -> None:
        """Learn all names of a disk from a walk: see `Walking.as_job`."""
        state = self._states[member]
        await self._walking.as_job(member, mirror, state, turn, pace, walked, anew=anew)
        self._weigh(mirror)

    async def end(self) -> None:
        """Note on every disk how it was left, so that it is seen whether others change it then.

        To be called when nothing is written any more. Takes two seconds at most. Never raises.
        """
        for mirror in self._mirrors:
            self._walking.tell_low(mirror, self._states, self.doubted.get(mirror, {}))
        await self._walking.note_ends(self._mirrors, self._clock)

    def stop(self) -> None:
        """Let the threads end once they are idle, and give the memory back."""
        for pool in self._pools.values():
            pool.stop()
        if not self._stopped and not self._merging:
            self._index.close()
        self.broken = self.broken or "Stor is ending"
        self._stopped = True

    def _left_out(self, mirror: Mirror) -> None:
        """See `Names._left_out`; its disks are learnt anew should they come back."""
        super()._left_out(mirror)
        self._wrong.pop(mirror, None)
        self.doubted.pop(mirror, None)
        for member in mirror.members:
            self._states.pop(member, None)

    def _forget_number(self, mirror: Mirror) -> int | None:
        """See `Names._forget_number`; until it has one again, nobody believes the index of it."""
        number = super()._forget_number(mirror)
        if number is not None and self.broken is None:
            self._writing.set_complete(number, False)
        return number

    def _hear(self, member: Member) -> None:
        """What happens next has a higher number than all that a disk knows."""
        names, state = member.names, self._states[member]
        if names is not None and state.heard is not names:
            self.numbers.exceed(names.highest + GAP)
            self.landed.jumped()
            state.heard = names

    def _begin_empty(self) -> None:
        plan = self._writing.plan(0, keep=False)
        if plan is not None:
            merging.make(attrs.evolve(plan, least_bits=1), self._keys)
            self._writing.install()

    def _load(self) -> None:
        """Begin with the table that was kept, if there is one that can be used."""
        if not self._loading:
            self._loading = self._merging = True
            loading = Deferred.fromCoroutine(self._load_table())
            loading.addErrback(lambda failure: self.log.failure("Loading the table", failure))

    async def _load_table(self) -> None:
        try:
            contents = await self._in_thread("table", self._writing.load)
            if self.broken is None:
                self._writing.install()
                self.numbers.exceed(contents.sequence + GAP)
                self.landed.jumped()
        except FileNotFoundError:
            self.log.debug("No table of names was kept at {path}", path=self._path)
        except (TableDamaged, OSError, Busy) as error:
            self.log.warn(
                "{path}: {error}: the table of names is made anew from the disks",
                path=self._path,
                error=str(error),
            )
        finally:
            self._merging = False
        if self.broken is None:
            if self._index.contents is None:
                self._begin_empty()
            self._begun = True
            self.resume(self._mirrors)

    def _look_after(self, member: Member, mirror: Mirror) -> None:
        """Do for the index of a disk what is due."""
        names, state = member.names, self._states[member]
        if names is None or not member.health.readable:
            return
        if names.damage is not None:
            self.log.error("{damage}: the disk is walked anew", damage=names.damage)
            member.names, member.damage = None, names.damage  # the next probe begins anew
            member.probe_soon()
            return
        if state.running or state.not_before > self._clock.seconds():
            return
        if state.learnt is not names or (self.walks_by_itself and not names.known):
            self._run(member, state, self._learn(member, mirror, state, names))
        elif not names.known:
            pass  # it is walked, which keeps what there is to keep
        elif names.journal.sealed - names.base.covered >= self._extend_segments:
            self._run(member, state, self._extend(member, names))
        elif names.outdated:
            self._run(member, state, self._keep(member, names))

    def _new_number(self, uuid: str) -> int | None:
        """See `Names._new_number`."""
        try:
            return self._writing.number(uuid)
        except ValueError as error:
            self._break(error)
            return None

    def _weigh(self, mirror: Mirror) -> None:
        """Find out anew whether all names of a mirror are known."""
        number = self._number(mirror)
        present = [member for member in mirror.members if member.health.readable]
        if number is None or not present or self.broken is not None:
            return  # what was known of one that is away stays known
        complete = any(m.complete for m in present) and all(map(self._knows, present))
        self._writing.set_complete(number, complete)
        if complete:
            self._wrong.pop(mirror, None)

    def _knows(self, member: Member) -> bool:
        """Whether every name on the disk is in the index."""
        names, state = member.names, self._states[member]
        if names is None or names is not state.learnt or names.damage is not None:
            return False
        return names.known and not state.in_base

    def _add(self, sha: bytes, mirror: Mirror) -> None:
        self._tell(self._writing.add, sha, mirror)

    def strike(self, sha: bytes, mirror: Mirror) -> None:
        """A mirror holds a sample no longer, as its disks have recorded durably."""
        self._tell(self._writing.remove, sha, mirror)

    def _tell(self, what: Callable[[bytes, int], bool], sha: bytes, mirror: Mirror) -> None:
        number = self._number(mirror)
        if number is not None and self.broken is None:
            try:
                what(sha, number)
            except (TableDamaged, RecentDamaged, OSError) as error:
                self._break(error)

    def _run(self, member: Member, state: DiskState, working: Coroutine[Any, Any, None]) -> None:
        state.running = True

        def ended(outcome: object) -> None:
            state.running = False
            if isinstance(outcome, Failure):
                state.not_before = self._clock.seconds() + RETRY_SECONDS
                if outcome.check(DiskAway, Busy, OSError, MergeFailed, NotKnown) is None:
                    self.log.failure("Learning the names of {root}", outcome, root=member.root)
                elif not self._stopped:
                    said = f"{member.root}: not all its names are known yet: {outcome.value}"
                    self.log.warn("{said}", said=said)
            self._take_in_bases()

        Deferred.fromCoroutine(working).addBoth(ended)

    async def _learn(
        self, member: Member, mirror: Mirror, state: DiskState, names: DiskNames
    ) -> None:
        """Tell the index of all names on a disk."""
        if state.learnt is not names:
            if names.strange is not None:
                self.log.info("{strange}: the disk is walked", strange=names.strange)
            # What the table has of the disk is passed over, if its journal tells the rest.
            after, first = self._in_table(names, mirror), None
            if after is not None:
                beginning = partial(names.journal.first_after, after)
                first = await self._in_thread(member.root, on_disk, member, beginning)
            if first is None or after is None:
                after, begin = -1, names.base.covered + 1
            else:
                begin = first
            in_base = first is None and names.base.entries > 0
            state.left = set()
            unnamed = await self._in_thread(member.root, unnamed_samples, member.disk, names)
            self.doubted[mirror] |= {Digest(sha): number for sha, number in unnamed.items()}
            if not all(one.health.readable for one in mirror.members):
                unnamed = {}  # a disk that is away may have them
            for segment in range(begin, names.journal.end.segment + 1):
                reading = partial(names.journal.segment, segment)
                records = await self._in_thread(member.root, on_disk, member, reading)
                new = [one for one in records if one.sequence > after and one.sha not in unnamed]
                for one in new if in_base else ():
                    (state.left.add if one.kind.is_gone else state.left.discard)(one.sha)
                await self._take(new, mirror)
            state.in_base, state.learnt = in_base, names
        if not names.known:
            until = self._clock.seconds() + SHORT_WALK_SECONDS
            here = as_long_as(lambda: self.walks_by_itself or self._clock.seconds() < until)
            await self._walking.walk(member, mirror, names, self._pace(), here)
        self._weigh(mirror)

    def _in_table(self, names: DiskNames, mirror: Mirror) -> int | None:
        contents, number = self._index.contents, self._number(mirror)
        if contents is None or number is None:
            return None
        return contents.known(TableDisk(names.uuid, names.identity, names.highest, number))

    async def _take(self, records: Sequence[Record], mirror: Mirror) -> None:
        for begin in range(0, len(records), _NAMES_A_TURN):
            for record in records[begin : begin + _NAMES_A_TURN]:
                if record.kind.is_gone:
                    self.strike(record.sha, mirror)
                else:
                    self._add(record.sha, mirror)
            await deferLater(self._clock, 0)
            if self._index.recent_names > self._recent_limit:
                self._begin_table()
            while self._merging and self._index.recent_names > 2 * self._recent_limit:
                await deferLater(self._clock, _ROOM_SECONDS)  # they take much memory until then

    async def _keep(self, member: Member, names: DiskNames) -> None:
        """Note how long the journal is."""
        await self._in_thread(member.root, on_disk, member, names.keep)

    async def _extend(self, member: Member, names: DiskNames) -> None:
        """Take into a disk's base what its journal has gained."""
        device = member.health.device
        if device is not None:
            merge = Merge(DiskSource(member.root, names.uuid, device), self._keys)
            await self._in_thread(member.root, merge.wait)
            await self._in_thread(member.root, extended_base, member.disk, names)

    def _take_in_bases(self) -> None:
        """Make a table of what is in none, once no more is being learnt that it could have."""
        states = self._states.values()
        if any(one.in_base for one in states) and not any(one.running for one in states):
            self._begin_table()

    def _begin_table(self) -> None:
        due = self.broken is None and self._next_table <= self._clock.seconds()
        if due and not self._merging:
            self._merging = True
            making = Deferred.fromCoroutine(self._make_table())
            making.addErrback(lambda failure: self.log.failure("Making the table", failure))

    async def _make_table(self) -> None:
        """Make a table of the one in use, of recent names, and of bases that are in none."""
        try:
            states, sources, learnt = self._learnt()
            keep = self._next_keep <= self._clock.seconds()
            plan = self._writing.plan(self.numbers.low, sources, learnt, keep=keep)
            if plan is not None:
                fault = await self._in_thread("table", Merge(plan, self._keys).wait)
                if keep:
                    self._next_keep = self._clock.seconds() + self._keep_seconds
                if fault is not None:
                    self.log.warn("The table of names is not kept: {fault}", fault=fault)
                if self.broken is None:
                    self._writing.install()
                for state, mirror in states:
                    await self._strike_left(state, mirror)
                    state.in_base = False
        except (MergeFailed, TableDamaged, OSError, Busy) as error:
            self.log.warn("The table of names: {error}", error=str(error))
            self._next_table = self._clock.seconds() + RETRY_SECONDS
        finally:
            self._merging = False
        for mirror in self._mirrors:
            self._weigh(mirror)
        self._clock.callLater(_ROOM_SECONDS, self._take_in_bases)

    async def _strike_left(self, state: DiskState, mirror: Mirror) -> None:
        """What a base had has left since: its table is there."""
        while state.left and self.broken is None:
            for _ in range(min(_NAMES_A_TURN, len(state.left))):
                self.strike(state.left.pop(), mirror)
            await deferLater(self._clock, 0)

    def _learnt(self) -> tuple[list[tuple[DiskState, Mirror]], list[DiskSource], list[TableDisk]]:
        """The disks that a table is made of from now on.

        Those whose bases are in no table yet, and where these are; and all whose names are known.
        """
        states, sources, learnt = [], [], []
        for mirror, (_, number) in self._sets.items():
            for member in mirror.members:
                state, names, device = self._states[member], member.names, member.health.device
                if names is None or names is not state.learnt or device is None:
                    continue
                if state.in_base:
                    states.append((state, mirror))
                    sources.append(DiskSource(member.root, names.uuid, device, number))
                learnt.append(TableDisk(names.uuid, names.identity, names.highest, number))
        return states, sources, learnt

    def _on(self, member: Member, act: Callable[[int], T]) -> Deferred[T]:
        return self._in_thread(member.root, on_disk, member, act)

    def _in_thread(self, name: str, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        if name not in self._pools:
            self._pools[name] = self._threads(f"names {name}")
        return self._pools[name].run(function, *args)
