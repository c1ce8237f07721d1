"""The order in which many samples are read with the least way for the heads of the disks."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.names import DiskNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.names import Known
from stor.threads import Busy, settle

SHA_BYTES = 32

#: What is looked up in one turn of the reactor: some milliseconds.
_SLICE = 1000


class DiskOrder:
    """Sorts samples by where they are: of each mirror by inode, and the mirrors side by side.

    Files that were written one after the other have inodes, and lie, near each other; with the
    mirrors side by side all of them are read at once. What is not known comes last.
    """

    log = Logger()

    def __init__(self, known: Callable[[Digest], Known | None], clock: IReactorTime) -> None:
        """`known` is asked at once; no disk is."""
        self._known = known
        self._clock = clock

    async def sorted(self, raw: bytes) -> bytes:
        """The same samples, 32 bytes each, in another order. Nothing that fails is raised."""
        shas = sorted(raw[at : at + SHA_BYTES] for at in range(0, len(raw), SHA_BYTES))
        of_mirror: dict[Mirror, list[bytes]] = {}
        last: list[bytes] = []
        for at, sha in enumerate(shas):
            if at % _SLICE == _SLICE - 1:
                await deferLater(self._clock, 0)
            known = self._known(Digest(sha))
            holders = known.holders if known is not None else ()
            (of_mirror.setdefault(holders[0], []) if holders else last).append(sha)
        asking = [_inodes(mirror, held) for mirror, held in of_mirror.items()]
        places: list[tuple[float, bytes]] = []
        for held, found in zip(of_mirror.values(), await settle(asking), strict=True):
            inodes = self._heard(found) or [0] * len(held)
            in_order = sorted(zip(inodes, held, strict=True))
            places += [(at / len(held), sha) for at, (_, sha) in enumerate(in_order)]
        places.sort()
        return b"".join([sha for _, sha in places] + last)

    def _heard(self, found: list[int] | Failure) -> list[int] | None:
        if not isinstance(found, Failure):
            return found
        # A disk that cannot tell is no reason not to read: names are an order as well.
        if not found.check(DiskAway, Busy, OSError):
            self.log.failure("Sorting samples by inode", found)
        return None


def _inodes(mirror: Mirror, shas: Sequence[bytes]) -> Deferred[Any]:
    """The inodes on one of a mirror's disks, of which any is as good: they were written alike."""
    for member in mirror.members:
        names = member.names
        if member.health.sound and names is not None and names.written:
            return member.read(_on, member, names, shas)
    return succeed([0] * len(shas))


def _on(member: Member, names: DiskNames, shas: Sequence[bytes]) -> list[int]:
    with member.disk.entered() as root_fd, suppress(FileNotFoundError):  # merged meanwhile
        return names.base.inodes(shas, names.journal, root_fd)
    return [0] * len(shas)
