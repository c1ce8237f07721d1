"""Which mirrors have a sample, if any: the index, as every process of a Stor goes by it."""

from collections.abc import Callable, Sequence

import attrs
from twisted.logger import Logger

from stor.digest import Digest
from stor.index.index import Index
from stor.index.recent import RecentDamaged
from stor.index.table import TableDamaged
from stor.mirror.mirror import Mirror

#: How many combinations of sets that hold the same sample are remembered.
_COMBINATIONS = 4096


@attrs.frozen
class Known:
    """The mirrors that hold a sample, as far as is known, and others that are not wholly known."""

    holders: tuple[Mirror, ...]
    unsure: tuple[Mirror, ...]


class Names:
    """What all disks hold, by mirrors. It asks no disk.

    In a process that only reads, what is here is all: `stor.mirror.learning` has what the one that
    writes does to know it. A mirror whose disks were never heard, and every one once the index is
    `broken`, is not wholly known.
    """

    log = Logger()

    def __init__(self, index: Index, report: Callable[[Digest, Mirror], None]) -> None:
        """`report` tells the process that writes of a sample that is not where the index has it."""
        self._index = index
        self._report = report
        self._mirrors: tuple[Mirror, ...] = ()
        #: The set that each mirror's disks belong to, and its number in the index.
        self._sets: dict[Mirror, tuple[str, int]] = {}
        self._mirror_of: dict[int, Mirror] = {}
        #: The mirrors that are not wholly known, by the sets that are; `None`: to be found anew.
        self._complete: frozenset[int] | None = None
        self._incomplete: tuple[Mirror, ...] = ()
        #: What is said of the samples that some sets hold: there are few such combinations.
        self._said: dict[tuple[int, ...], Known] = {}
        #: Why the index is not used any more, if it is not.
        self.broken: str | None = None
        self.lookups_total = 0

    @property
    def next_number(self) -> int:
        """The number that what happens next to a name has: see `lost`."""
        return 0

    def find(self, digest: Digest) -> Known:
        """Where a sample is."""
        if self.broken is not None:
            return Known((), self._mirrors)
        self.lookups_total += 1
        try:
            sets, complete = self._index.find(digest.raw)
        except (TableDamaged, RecentDamaged, OSError) as error:
            self._break(error)
            return Known((), self._mirrors)
        # Not for each look-up: there may be hundreds of mirrors.
        if complete is not self._complete:
            self._complete = complete
            self._incomplete = tuple(
                mirror
                for mirror in self._mirrors
                if self._sets.get(mirror, ("", -1))[1] not in complete
            )
            self._said.clear()
        known = self._said.get(sets)
        if known is None:
            holders = tuple([self._mirror_of[n] for n in sets if n in self._mirror_of])
            unsure = tuple([mirror for mirror in self._incomplete if mirror not in holders])
            if len(self._said) >= _COMBINATIONS:
                self._said.clear()
            known = self._said[sets] = Known(holders, unsure)
        return known

    def held(self, digest: Digest) -> bool | None:
        """Whether any mirror holds a sample; `None`: one that is not wholly known could."""
        known = self.find(digest)
        return True if known.holders else None if known.unsure else False

    def lost(self, digest: Digest, mirror: Mirror, since: int) -> None:
        """No disk of a mirror has the sample that the index knows there.

        The disks were asked after `next_number` was `since`.
        """
        self._report(digest, mirror)

    @property
    def warnings(self) -> list[str]:
        """What an operator is to know, a line each."""
        return [] if self.broken is None else [f"index: not used: {self.broken}"]

    def samples(self, mirror: Mirror) -> int:
        """How many samples of a mirror the index knows."""
        number = self._number(mirror)
        return 0 if number is None or self.broken is not None else self._index.names(number)

    @property
    def recent(self) -> int:
        """How many names came since the table was made."""
        return 0 if self.broken is not None else self._index.recent_names

    @property
    def table_bytes(self) -> int:
        """The size of the table."""
        contents = None if self.broken is not None else self._index.contents
        return 0 if contents is None else contents.length

    def known(self, mirror: Mirror) -> bool:
        """Whether all names of a mirror are known."""
        number = self._number(mirror)
        return self.broken is None and number in self._index.find(bytes(32)).complete

    def follow(self, mirrors: Sequence[Mirror]) -> None:
        """These are the mirrors; to be called again when their disks were heard."""
        for mirror in set(self._mirrors) - set(mirrors):
            self._left_out(mirror)
        self._mirrors = tuple(mirrors)
        self._complete = None
        for mirror in self._mirrors:
            self._number(mirror)

    def catch_up(self) -> None:
        """Know what is new: what this process has not confirmed, the one that writes keeps."""
        if self.broken is None:
            try:
                self._index.refresh()
            except (TableDamaged, RecentDamaged, OSError) as error:
                self._break(error)

    def stop(self) -> None:
        """Give the memory back."""
        if self.broken is None:
            self.broken = "Stor is ending"
            self._index.close()

    def _left_out(self, mirror: Mirror) -> None:
        """A mirror is none any more."""
        self._forget_number(mirror)

    def _forget_number(self, mirror: Mirror) -> int | None:
        """The number that a mirror had, and has no longer."""
        self._complete = None
        _, number = self._sets.pop(mirror, (None, None))
        if number is not None:
            self._mirror_of.pop(number, None)
        return number

    def _number(self, mirror: Mirror) -> int | None:
        """The number of a mirror in the index; `None` while its disks were never heard."""
        known, number = self._sets.get(mirror, (None, None))
        markers = [member.health.marker for member in mirror.members if member.health.readable]
        sets = {marker.set for marker in markers if marker is not None}
        if len(sets) != 1 or known in sets or self.broken is not None:
            return number
        (uuid,) = sets
        if mirror not in self._mirrors:  # it was left out; another one may have its disks by now
            return self._number_of(uuid)
        self._forget_number(mirror)  # another set than before
        number = self._new_number(uuid)
        if number is not None:
            self._sets[mirror] = uuid, number
            self._mirror_of[number] = mirror
            self._complete = None
        return number

    def _number_of(self, uuid: str) -> int | None:
        """The number of a set, if the index knows it."""
        self.catch_up()
        return self._index.sets.index(uuid) if uuid in self._index.sets else None

    def _new_number(self, uuid: str) -> int | None:
        """The number of a set; `None` when it cannot have one yet."""
        return self._number_of(uuid)

    def _break(self, error: Exception) -> None:
        self.broken = str(error)
        self.log.error("The index is not used until Stor starts again: {error}", error=str(error))
