"""Samples told in the order of their names, with their sizes."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.base import Entry
from stor.disk.disk import DiskAway
from stor.disk.walk import first_samples
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.threads import settle

#: No sample comes after this one.
_LAST = b"\xff" * 32


class Listings:
    """Lists samples, each of them once, also those that move from mirror to mirror meanwhile."""

    log = Logger()

    def __init__(
        self,
        known: Callable[[Mirror], bool],
        held: Callable[[Digest], bool | None],
        in_thread: Callable[..., Deferred[Any]],
    ) -> None:
        """`known`: whether all names of a mirror are known. `in_thread`: in a root's thread.

        `held`: whether any mirror holds a sample, `None` if that is not known.
        """
        self._known = known
        self._held = held
        self._in_thread = in_thread
        #: What has left a mirror for another while each listing was made, and its size.
        self._moved: dict[int, dict[bytes, int]] = {}
        self._next = 0

    def left(self, digest: Digest, size: int) -> None:
        """A sample leaves a mirror: who looks there next, and has looked elsewhere, misses it."""
        for moved in self._moved.values():
            moved[digest.raw] = size

    async def listed(
        self, begin: bytes, limit: int, mirrors: Sequence[Mirror], *, every: bool
    ) -> list[tuple[bytes, int]] | None:
        """Sorted samples of some mirrors from `begin` on; `None`: one has no complete disk now.

        `every`: these are all mirrors. A sample that is on its way is not told of: its records are
        made before its copies have their names.
        """
        listed: list[tuple[bytes, int]] = []
        while True:
            found = await self._recorded(begin, limit, mirrors, every=every)
            if found is None:
                return None
            listed += [one for one in found if self._held(Digest(one[0])) is not False]
            if len(found) < limit or len(listed) >= limit or found[-1][0] == _LAST:
                return listed[:limit]
            begin = (int.from_bytes(found[-1][0], "big") + 1).to_bytes(len(_LAST), "big")

    async def _recorded(
        self, begin: bytes, limit: int, mirrors: Sequence[Mirror], *, every: bool
    ) -> list[tuple[bytes, int]] | None:
        """What journals, bases or directories have, as many as asked for if there are so many."""
        reading: list[Deferred[Any]] = []  # of a disk that knows all, or of all directories
        self._next += 1
        number, moved = self._next, dict[bytes, int]()
        for mirror in mirrors:
            able = [member for member in mirror.members if member.health.sound]
            if not any(member.complete for member in able):
                return None
            knowing = [m for m in able if m.complete and m.names and m.names.written]
            if knowing and self._known(mirror):
                root = knowing[0].root
                reading.append(self._in_thread(root, _first_entries, knowing[0], begin, limit))
            else:
                reading += [
                    self._in_thread(member.root, first_samples, member.disk, begin, limit)
                    for member in able
                ]
        self._moved[number] = moved
        try:
            told = await settle(reading)
        finally:
            del self._moved[number]
        found: dict[bytes, int] = {}
        for samples in told:
            if isinstance(samples, Failure):
                self.log.warn("Samples cannot be listed: {error}", error=str(samples.value))
                return None
            found.update((sample.sha, sample.size) for sample in samples)
        if every:
            found.update((sha, size) for sha, size in moved.items() if sha >= begin)
        return sorted(found.items())[:limit]


def _first_entries(member: Member, begin: bytes, limit: int) -> list[Entry]:
    names = member.names
    if names is None:
        raise DiskAway(f"{member.root}: its names are not known")
    with member.disk.entered() as root_fd:
        entries = list(islice(names.base.entries_from(begin, root_fd, names.journal), limit))
    if names.damage is not None:  # met while it was read: some may be missing
        raise DiskAway(names.damage)
    return entries
