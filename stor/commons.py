"""What the processes of one Stor have in common; where there is one, that is nothing."""

from collections.abc import Callable, Sequence
from functools import partial

from stor.count import Count
from stor.digest import Digest
from stor.http.status import Overview
from stor.mirror.corrupt import CorruptCopies
from stor.mirror.health import Health
from stor.mirror.mirror import Reserved
from stor.mirror.repair import Mending
from stor.turns import NoTurns, Turns


class Commons:
    """The one process of a Stor has everything for itself."""

    #: Among how many what is bounded in each is to be divided.
    processes = 1

    def __init__(self) -> None:
        self.turns: Turns = NoTurns()
        #: Who looks after the disks, if this process does not.
        self.mending: Mending | None = None
        #: Who knows the whole, if this process does not.
        self.overview: Overview | None = None
        self.uploads = Count()
        self.connections = Count()

    def health(self, root: str, clock: Callable[[], float], *, writable: bool) -> Health:
        """The health of a disk."""
        return Health(clock, writable)

    def corrupt(self, root: str) -> CorruptCopies:
        """The bad copies on a disk."""
        corrupt = CorruptCopies()
        corrupt.told = partial(self.told_of_copy, root)
        return corrupt

    def told_of_copy(self, storage: str, digest: Digest, bad: bool) -> None:
        """A copy on a disk or in S3 was found to be bad, or good again."""

    def reserved(self, roots: Sequence[str]) -> Reserved:
        """What uploads have reserved on a set of disks."""
        return Reserved()

    def announcing(self, queue: Callable[[Digest], None]) -> Callable[[Digest], None]:
        """Who is told of samples that are to be sent to S3: the `queue` of this process."""
        return queue
