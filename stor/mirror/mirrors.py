"""All mirrors of this host: where a sample is, and where a new one goes."""

import random
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.copy import Copy
from stor.disk.disk import DiskAway
from stor.disk.identity import KnownDisks
from stor.disk.journal import Kind
from stor.disk.page_cache import CachedCopy
from stor.errors import Damaged, NoRoom, NotFound, Unavailable
from stor.mirror.learning import LearningNames
from stor.mirror.member import ANSWER_SECONDS, Member
from stor.mirror.mirror import Mirror, Survey
from stor.mirror.names import Known, Names
from stor.mirror.outbox import Outbox
from stor.mirror.placement import choose, draw, has_plenty
from stor.mirror.repair import Repairs
from stor.mirror.search import Search
from stor.mirror.turns import Turns
from stor.mirror.unstored import Unstored
from stor.mirror.write import MirrorWrite, Write
from stor.threads import settle

#: How long mirrors are drawn by the same weights. To weigh them all takes microseconds for each,
#: and what is free on a disk does not change much meanwhile.
WEIGHED_SECONDS = 1.0


@attrs.frozen
class _Weights:
    """What was free on mirrors that had room: of each, with all before it."""

    of: Sequence[Mirror]
    until: float
    mirrors: list[Mirror]
    sums: list[int]
    #: Those that could not be written then, or that hung.
    left_out: list[Mirror]


class Chooser:
    """Chooses mirrors as `stor.mirror.placement` has it."""

    def __init__(self, clock: IReactorTime, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._weights: _Weights | None = None

    def choose(
        self,
        mirrors: Sequence[Mirror],
        length: int,
        reserve_bytes: int,
        excluded: Collection[Mirror] = (),
    ) -> Mirror | None:
        """One that has room for a sample of `length` bytes now, `None` when none has.

        One with a disk that hangs only when no other has. Raises `NoRoom` when none is there to be
        written, `Unavailable` when none is whole.
        """
        drawn = None if excluded else self._draw(mirrors, length, reserve_bytes)
        if drawn is not None:
            return drawn
        configured = [mirror for mirror in mirrors if mirror.configured_writable]
        if not configured:
            raise NoRoom(
                "no room: the operator lets no set of storages be written "
                "(writable_pairs_regex, .stor/read-only)"
            )
        writable = [m for m in configured if m.writable and m not in excluded]
        if not writable:
            faults = [m.fault for mirror in configured for m in mirror.members]
            reasons = "; ".join(fault for fault in faults if fault)
            raise Unavailable(f"no writable set of storages is whole: {reasons}")
        prompt = [mirror for mirror in writable if mirror.prompt]
        if not excluded:
            left_out = [mirror for mirror in configured if not mirror.prompt]
            self._remember(mirrors, prompt, left_out, reserve_bytes)
        for some in (prompt, writable):
            candidates = [mirror.candidate() for mirror in some]
            chosen = choose(candidates, length, reserve_bytes, self._rng.random)
            if chosen is not None:
                return some[chosen]
        return None

    def _draw(self, mirrors: Sequence[Mirror], length: int, reserve_bytes: int) -> Mirror | None:
        """One by the weights of before, if there are any and it has room now."""
        weights = self._weights
        if weights is None or weights.of is not mirrors or weights.until < self._clock.seconds():
            return None
        if any(mirror.prompt for mirror in weights.left_out):
            return None
        mirror = weights.mirrors[draw(weights.sums, self._rng.random)]
        fits = mirror.candidate().fits(length, reserve_bytes)
        return mirror if fits and mirror.prompt else None

    def _remember(
        self,
        mirrors: Sequence[Mirror],
        prompt: list[Mirror],
        left_out: list[Mirror],
        reserve_bytes: int,
    ) -> None:
        of = ((mirror, mirror.candidate()) for mirror in prompt)
        fitting = [(mirror, c) for mirror, c in of if c.fits(0, reserve_bytes)]
        if not has_plenty((candidate for _, candidate in fitting), reserve_bytes):
            self._weights = None
            return
        self._weights = _Weights(
            mirrors,
            self._clock.seconds() + WEIGHED_SECONDS,
            [mirror for mirror, _ in fitting],
            list(accumulate(candidate.free_bytes for _, candidate in fitting)),
            left_out,
        )


class Mirrors:
    """Every mirror, as one place for samples."""

    log = Logger()

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        known_disks: KnownDisks,
        *,
        reserve_bytes: int,
        clock: IReactorTime,
        now_ns: Callable[[], int],
        rng: random.Random,
        report: Callable[[Digest, Mirror], None] | None = None,
        names: Names | None = None,
        learning: LearningNames | None = None,
        indexed: bool = True,
    ) -> None:
        """`indexed`: samples are looked for where `names` has them, else on every disk.

        `learning` is the same in the process that writes. In another one, which neither probes nor
        repairs, `report` is told of samples that lack a good copy.
        """
        self.mirrors = tuple(mirrors)
        self.clock = clock
        #: Whose turn it is at a sample.
        self.turns = Turns()
        self.repairs = Repairs(clock, reserve_bytes, learning, self.turns)
        self._report = report or self.repairs.report
        #: What all mirrors hold.
        self.names = names
        self.learning = learning
        self._index = names if indexed else None
        self._unstored = None if learning is None else Unstored(learning, self.turns, clock)
        #: Where samples that S3 has yet to get are noted, if it gets any.
        self.outbox: Outbox | None = None
        self._noticed: Callable[[Digest, Mirror], None] = lambda digest, mirror: None
        self._left: list[Mirror] = []
        self.known_disks = known_disks
        self._reserve_bytes = reserve_bytes
        self._now_ns = now_ns
        self._rng = rng
        self._chooser = Chooser(clock, rng)
        #: How many samples `at_once` has found in the kernel's memory.
        self.cached_total = 0
        self._resume_names()

    @property
    def indexed(self) -> bool:
        """Whether samples are looked for where the index has them."""
        return self._index is not None

    @property
    def in_use(self) -> list[Mirror]:
        """The mirrors, and those that were left out and that an upload is still written to."""
        return [*self.mirrors, *[mirror for mirror in self._left if mirror.writes]]

    def reconfigure(
        self,
        mirrors: Sequence[Mirror],
        known_disks: KnownDisks,
        reserve_bytes: int,
        *,
        indexed: bool = True,
    ) -> None:
        """From now on these are the mirrors. What is under way on others goes on there."""
        self._left = [mirror for mirror in self.in_use if mirror not in mirrors]
        self._index = self.names if indexed else None
        self.mirrors = tuple(mirrors)
        self.known_disks = known_disks
        self._reserve_bytes = reserve_bytes
        self.repairs.reconfigure(self.mirrors, reserve_bytes)
        self._resume_names()

    def report_to(
        self, outbox: Outbox | None, noticed: Callable[[Digest, Mirror], None] | None = None
    ) -> None:
        """From now on `outbox` has what S3 is to get; `noticed` hears where new samples are."""
        self.outbox = outbox
        self._noticed = noticed or (lambda digest, mirror: None)

    @property
    def members(self) -> list[Member]:
        """Every disk."""
        return [member for mirror in self.mirrors for member in mirror.members]

    async def probe(self) -> None:
        """Find out what state every disk is in, and take up repairs that wait for that."""
        await settle([member.probe() for member in self.members])
        self.repairs.resume(self.mirrors)
        self._resume_names()

    async def begin(self) -> None:
        """Judge the disks that waited for all others to be heard, and recall the work that is due.

        From the first answer on every disk knows of all others, whatever is mounted next time.
        """
        self.known_disks.stop_waiting()
        await settle([m.probe() for m in self.members if not m.health.readable])
        known = self.known_disks
        outdated = [m for m in self.members if known.outdated(m.root, m.health.marker)]
        await settle([m.probe() for m in outdated if m.health.readable])
        self.repairs.recall(self.mirrors)
        self._resume_names()

    def heard(self) -> None:
        """Another process has told how the disks are: the index knows which set each is in."""
        self._resume_names()

    def _resume_names(self) -> None:
        if self.learning is not None:
            self.learning.resume(self.mirrors)
            if self._unstored is not None:
                self._unstored.resume()
        elif self.names is not None:
            self.names.follow(self.mirrors)

    def search(self, digest: Digest, hint: Mirror | None = None) -> Search:
        """The sample's copies, best first; those on the mirror `hint` before all others."""
        clock, rng = self.clock, self._rng
        return Search(self.mirrors, digest, self._report, clock, rng, hint, self._index)

    def known(self, digest: Digest) -> Known | None:
        """What the index says of a sample; `None` without an index."""
        return None if self._index is None else self._index.find(digest)

    def at_once(self, digest: Digest, *, read: bool) -> CachedCopy | NotFound | None:
        """A copy that the kernel has in memory, verified if `read`; or that nobody has the sample.

        Asks the index and no disk, on the reactor's thread. `None`: a disk has to be asked, or
        there is something wrong with a copy.
        """
        if self._index is None:
            return None
        known = self._index.find(digest)
        if known.holders:
            return self._cached_copy(known.holders[0], digest, read=read)
        return None if known.unsure else NotFound(("disk",))

    def _cached_copy(self, mirror: Mirror, digest: Digest, *, read: bool) -> CachedCopy | None:
        # By chance, so that a copy that is missing or bad is met on any disk: by turns, clients
        # that ask for samples one after the other, again and again, would meet the same one.
        members = mirror.members
        first = self._rng.getrandbits(16) % len(members)
        for member in members[first:] + members[:first]:
            if not member.health.sound:
                continue
            if member.corrupt and digest in member.corrupt:
                return None
            cache = member.disk.page_cache
            if cache.offered is None:  # its own thread has to be asked once
                return None
            try:
                copy = cache.read(digest) if read else cache.look(digest)
            except (Damaged, FileNotFoundError):
                self._report(digest, mirror)
                return None
            except (DiskAway, OSError):
                return None
            if copy is not None:
                self.cached_total += 1
                return copy
        return None

    def report(self, digest: Digest, mirror: Mirror) -> None:
        """A copy of a sample is missing or bad: have it looked at, and put back."""
        self._report(digest, mirror)

    def stored(self, digest: Digest, mirror: Mirror) -> None:
        """A new sample is there, with its name: pass it on."""
        self._noticed(digest, mirror)
        if self.outbox is not None:
            self.outbox.announce(digest)

    def denied(self, digest: Digest) -> None:
        """Nobody has a sample, as the index has it: see now and then whether that is right."""
        names = self.learning
        if names is None or self._index is None or not names.audit_due:
            return
        known = names.find(digest)
        unasked = [m for m in self.mirrors if m not in known.unsure and m not in known.holders]
        if unasked:
            names.audit_begins()
            auditing = Deferred.fromCoroutine(self._audit(digest, unasked, names))
            auditing.addErrback(lambda failure: self.log.failure("Auditing the index", failure))

    async def _audit(self, digest: Digest, mirrors: Sequence[Mirror], names: LearningNames) -> None:
        since = names.next_number
        suspects: list[Mirror] = []
        search = Search(
            mirrors,
            digest,
            lambda digest, mirror: suspects.append(mirror),
            self.clock,
            self._rng,
        )
        try:
            if await search.look() is not None and search.mirror is not None:
                names.was_wrong(digest, search.mirror, since)
            for mirror in suspects:  # not earlier: a repair tells the index
                self._report(digest, mirror)
        finally:
            search.close()

    async def survey(self, digest: Digest, length: int | None) -> list[Survey]:
        """Ask every disk that could have a copy; what the mirrors said that did not all say no.

        Those are the disks of the mirrors that the index knows to hold the sample, and of those of
        which it does not know all. Never raises; takes no longer than `ANSWER_SECONDS`.
        """
        mirrors: Sequence[Mirror] = self.mirrors
        if self._index is not None:
            known = self._index.find(digest)
            mirrors = [*known.holders, *known.unsure]
        asked = [m for mirror in mirrors for m in mirror.members if m.health.readable]
        answers = await settle([m.check(digest, length, ANSWER_SECONDS) for m in asked])
        heard: dict[Member, Copy | Failure | None] = dict(zip(asked, answers, strict=True))
        told = {member for member, answer in heard.items() if answer is not None}
        return [
            Survey.of(mirror, heard)
            for mirror in mirrors
            if told and not told.isdisjoint(mirror.members)
        ]

    async def place(
        self,
        digest: Digest,
        length: int | None,
        excluded: Collection[Mirror] = (),
        make: Callable[..., Write] = MirrorWrite,
    ) -> Write:
        """A write on the mirror that placement chooses. Raises `NoRoom`, `Unavailable`.

        What is known of the disks' room is renewed before anybody is sent away.
        """
        write = self._place(digest, length, excluded, make)
        # One that was full when it was first looked at has no journal yet.
        if write is None or any(map(_lacks_journal, write.mirror.members)):
            if write is not None:
                await write.discard()  # what it has reserved is free again
            members = [member for member in self.members if member.writable]
            await settle([member.renew_room() for member in members])
            await settle([member.probe() for member in filter(_lacks_journal, members)])
            write = self._place(digest, length, excluded, make)
        if write is None:
            full = NoRoom("no room: no writable set of storages has room for the sample")
            raise self.for_good(full, length)
        return write

    def for_good(self, reason: NoRoom | Unavailable, length: int | None) -> NoRoom | Unavailable:
        """What to tell a client whose sample went nowhere for this reason.

        That there is no room is said when there will be none either once all sets are back.
        """
        if isinstance(reason, NoRoom):
            for mirror in self.mirrors:
                if mirror.may_take_later(length or 0, self._reserve_bytes):
                    faults = "; ".join(m.fault for m in mirror.members if m.fault)
                    return Unavailable(f"no room but on a set that is not whole: {faults}")
        return reason

    def draw(self, length: int) -> Mirror | None:
        """Where a sample may go at once, with every disk ready for it; `None`: `place` finds out.

        The index has to know all that happens, and S3 to get nothing of it.
        """
        if self.learning is None or self.outbox is not None:
            return None
        try:
            mirror = self._chooser.choose(self.mirrors, length, self._reserve_bytes)
        except (NoRoom, Unavailable):
            return None
        if mirror is None or any(map(_lacks_journal, mirror.members)):
            return None
        return mirror

    def now_ns(self) -> int:
        """What a new copy says of its age."""
        return self._now_ns()

    def write_on(
        self,
        mirror: Mirror,
        members: Sequence[Member],
        digest: Digest,
        length: int | None,
        make: Callable[..., Write] = MirrorWrite,
    ) -> Write:
        """A write on some disks of a mirror; `make` is what makes it."""
        names = self.learning
        return make(
            mirror,
            members,
            digest,
            length,
            self._reserve_bytes,
            self._now_ns(),
            registration=None if names is None else names.expect(digest, mirror, Kind.STORED),
        )

    def write_moved(
        self, mirror: Mirror, digest: Digest, length: int, modified_ns: int
    ) -> MirrorWrite:
        """A write of a sample that another mirror has, with the time when that got it."""
        names = self.learning
        return MirrorWrite(
            mirror,
            mirror.members,
            digest,
            length,
            self._reserve_bytes,
            modified_ns,
            registration=None if names is None else names.expect(digest, mirror, Kind.MOVED),
        )

    def choose(self, length: int, samples: int, excluded: Collection[Mirror]) -> Mirror | None:
        """Where samples may go that take `length` together; `None` when there is no room now.

        Raises `NoRoom`, `Unavailable`: see `Chooser.choose`.
        """
        mirror = self._chooser.choose(self.mirrors, length, self._reserve_bytes, excluded)
        return mirror if mirror is not None and self.fits(mirror, length, samples) else None

    def fits(self, mirror: Mirror, length: int, samples: int) -> bool:
        """Whether samples that take `length` together leave the reserves of a mirror untouched."""
        room = mirror.candidate()
        return room.fits(length, self._reserve_bytes) and room.names(samples)

    def spare_bytes(self, mirror: Mirror) -> int:
        """What is left on a mirror beyond its reserve."""
        return mirror.candidate().spare_bytes(self._reserve_bytes)

    def _place(
        self,
        digest: Digest,
        length: int | None,
        excluded: Collection[Mirror],
        make: Callable[..., Write],
    ) -> Write | None:
        mirror = self._chooser.choose(self.mirrors, length or 0, self._reserve_bytes, excluded)
        if mirror is None:
            return None
        return self.write_on(mirror, mirror.members, digest, length, make)


def _lacks_journal(member: Member) -> bool:
    """Whether nothing can be stored on a disk before it was probed anew."""
    return member.keeps_names and not (member.names is not None and member.names.written)
