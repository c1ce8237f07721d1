"""All mirrors of this host: where a sample is, and where a new one goes."""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from stor.digest import Digest
from stor.disks.disk import Copy, DiskAway
from stor.disks.member import DiskSource, Member
from stor.disks.mirror import Mirror, MirrorWrite, Survey
from stor.disks.placement import choose
from stor.errors import Damaged, NoRoom, Unavailable
from stor.worker import Busy, settle

T = TypeVar("T")


class Search:
    """One sample's copies, in the order in which they are tried.

    Random order, the first disk of each mirror, then the rest, suspect disks last: load spreads,
    and a sample on a healthy mirror is found in one pass.
    """

    log = Logger()

    def __init__(self, mirrors: Sequence[Mirror], digest: Digest, rng: random.Random) -> None:
        self._digest = digest
        self._mirrors = mirrors
        self._answered: set[Mirror] = set()
        self._trouble: list[str] = []
        self._damaged_on: set[Mirror] = set()
        self.damaged: list[str] = []
        self.attempts = 0
        ranked: list[tuple[bool, int, float, Mirror, Member]] = []
        for mirror in mirrors:
            readable = [member for member in mirror.members if member.health.readable]
            rng.shuffle(readable)
            for rank, member in enumerate(readable):
                ranked.append((not member.trusted, rank, rng.random(), mirror, member))
        ranked.sort(key=lambda candidate: candidate[:3])
        self._candidates = iter([(mirror, member) for *_, mirror, member in ranked])

    async def look(self) -> Copy | None:
        """The next copy by its name, not read; `None` when there are no more. Never raises."""
        return await self._next(lambda member: member.read(member.disk.look, self._digest))

    async def next(self) -> DiskSource | None:
        """The next copy that can be opened, `None` when there are no more. Never raises."""
        return await self._next(lambda member: member.open(self._digest))

    async def _next(self, ask: Callable[[Member], Awaitable[T | None]]) -> T | None:
        for mirror, member in self._candidates:
            self.attempts += 1
            try:
                found = await ask(member)
            except Damaged as error:
                self.damaged.append(str(error))
                self._damaged_on.add(mirror)
                self.log.error("Damaged: {error}", error=str(error))
            except (DiskAway, OSError, Busy) as error:
                self._trouble.append(str(error))
            else:
                if found is not None:
                    return found
                if member.trusted:
                    self._answered.add(mirror)
        return None

    @property
    def unanswered(self) -> str | None:
        """Why a mirror could hold the sample all the same, `None` when every one has answered."""
        for mirror in self._mirrors:
            if mirror not in self._answered and mirror not in self._damaged_on:
                faults = [m.health.fault for m in mirror.members if m.health.fault]
                return "; ".join([*faults, *self._trouble]) or f"{mirror}: no answer"
        return None


class Mirrors:
    """Every mirror, as one place for samples."""

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        reserve_bytes: int,
        now_ns: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.mirrors = tuple(mirrors)
        self._reserve_bytes = reserve_bytes
        self._now_ns = now_ns
        self._rng = rng

    @property
    def members(self) -> list[Member]:
        """Every disk."""
        return [member for mirror in self.mirrors for member in mirror.members]

    def search(self, digest: Digest) -> Search:
        """The sample's copies, best first."""
        return Search(self.mirrors, digest, self._rng)

    async def survey(self, digest: Digest, length: int | None) -> list[Survey]:
        """Ask every disk of every mirror for its copy of the sample, all at once."""
        surveys = [Deferred.fromCoroutine(m.survey(digest, length)) for m in self.mirrors]
        return [s for s in await settle(surveys) if isinstance(s, Survey)]

    async def place(self, digest: Digest, length: int | None) -> MirrorWrite:
        """A write on the mirror that placement chooses. Raises `NoRoom`, `Unavailable`.

        What is known of the disks' room is renewed before anybody is sent away.
        """
        write = self._place(digest, length)
        if write is None:
            members = [member for member in self.members if member.writable]
            await settle([member.renew_room() for member in members])
            write = self._place(digest, length)
        if write is None:
            raise NoRoom("no room: no writable set of storages has room for the sample")
        return write

    def write_on(
        self, mirror: Mirror, members: Sequence[Member], digest: Digest, length: int | None
    ) -> MirrorWrite:
        """A write on some disks of a mirror."""
        return MirrorWrite(mirror, members, digest, length, self._reserve_bytes, self._now_ns)

    def _place(self, digest: Digest, length: int | None) -> MirrorWrite | None:
        configured = [mirror for mirror in self.mirrors if mirror.configured_writable]
        if not configured:
            raise NoRoom("no room: no set of storages is writable (writable_pairs_regex)")
        writable = [mirror for mirror in configured if mirror.writable]
        if not writable:
            faults = [m.health.fault for mirror in configured for m in mirror.members]
            reasons = "; ".join(fault for fault in faults if fault)
            raise Unavailable(f"no writable set of storages is whole: {reasons}")
        candidates = [mirror.candidate() for mirror in writable]
        chosen = choose(candidates, length or 0, self._reserve_bytes, self._rng.random)
        if chosen is None:
            return None
        mirror = writable[chosen]
        return self.write_on(mirror, mirror.members, digest, length)
