"""What is known of a sample without asking a disk: from the index and from the kernel's memory."""

from itertools import count

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.page_cache import CachedCopy
from stor.errors import Damaged, NotFound
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors


class CachedCopies:
    """Copies that the kernel has in memory, on the mirror that holds them by the index."""

    def __init__(self, mirrors: Mirrors) -> None:
        self._mirrors = mirrors
        self._turns = count()
        #: How many were in memory.
        self.found_total = 0

    def find(self, digest: Digest, *, read: bool) -> CachedCopy | NotFound | None:
        """A copy, verified if it is to be `read`; or that no mirror holds the sample.

        `None`: a disk has to be asked, or there is something wrong with a copy.
        """
        known = self._mirrors.known(digest)
        if known is None:
            return None
        if known.holders:
            return self._find_on(known.holders[0], digest, read=read)
        return None if known.unsure else NotFound(("disk",))

    def _find_on(self, mirror: Mirror, digest: Digest, *, read: bool) -> CachedCopy | None:
        # By turns, so that a copy that is missing or bad is met on any disk.
        members = mirror.members
        first = next(self._turns) % len(members)
        for member in members[first:] + members[:first]:
            if not member.health.sound:
                continue
            if digest in member.corrupt:
                return None
            cache = member.disk.page_cache
            if cache.offered is None:  # its own thread has to be asked once
                return None
            try:
                copy = cache.read(digest) if read else cache.look(digest)
            except (Damaged, FileNotFoundError):
                self._mirrors.report(digest, mirror)
                return None
            except (DiskAway, OSError):
                return None
            if copy is not None:
                self.found_total += 1
                return copy
        return None
