"""What the processes of one Stor know of their disks together. See `stor.commons`."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

from stor.commons import Commons
from stor.count import Count
from stor.digest import Digest
from stor.disk.disk import Room
from stor.mirror.health import Health
from stor.mirror.mirror import Reserved
from stor.mirror.repair import Mending
from stor.processes.board import Board, Subjects
from stor.processes.turns import ProcessTurns
from stor.processes.wire import Tell

#: The counts that stand on the board beside disks and sets.
UPLOADS, CONNECTIONS = "uploads", "connections"
COUNTS = (UPLOADS, CONNECTIONS)


def set_subject(roots: Sequence[str]) -> str:
    """What a set of disks is called on the board."""
    return "\0".join(("set", *roots))


class SharedCount(Count):
    """A count of which every process has a part."""

    def __init__(self, board: Board, place: int) -> None:
        self._own = board.mine(place)
        self._rows = board.everybodys(place)

    @property
    def mine(self) -> int:
        """The part of this process."""
        return self._own[0]

    @mine.setter
    def mine(self, number: int) -> None:
        self._own[0] = number

    @property
    def total(self) -> int:
        """In all processes."""
        return sum(row[0] for row in self._rows)

    @property
    def ahead(self) -> bool:
        """Whether this worker has more than another one. The first row is the supervisor's."""
        return self._own[0] > min(row[0] for row in self._rows[1:])


class SharedReserved(Reserved):
    """What the uploads of all processes have reserved."""

    def __init__(self, board: Board, place: int) -> None:
        self._own = board.mine(place)
        self._rows = board.everybodys(place)

    def total(self) -> tuple[int, int]:
        """See `Reserved.total`."""
        return sum(row[0] for row in self._rows), sum(row[1] for row in self._rows)

    def add(self, size_bytes: int, samples: int) -> None:
        """See `Reserved.add`."""
        self._own[0] += size_bytes
        self._own[1] += samples


class SharedHealth(Health):
    """A disk of whose room every process knows what any process has measured last."""

    def __init__(
        self, clock: Callable[[], float], *, writable: bool, board: Board, place: int
    ) -> None:
        self._own = board.mine(place)
        self._rows = board.everybodys(place)
        super().__init__(clock, writable)

    @property
    def room(self) -> Room:
        """What is left on the disk."""
        number, free_bytes, free_inodes, block_bytes, total_bytes, *_ = max(
            self._rows, key=lambda row: row[0]
        )
        return Room(free_bytes, free_inodes, block_bytes or 4096, number, total_bytes)

    @room.setter
    def room(self, room: Room) -> None:
        # The number last: with an old one, the new figures are at least no news to anybody.
        self._own[1], self._own[2] = room.free_bytes, min(room.free_inodes, 2**62)
        self._own[3], self._own[4] = room.block_bytes, room.total_bytes
        self._own[0] = room.number


class ReportedHealth(SharedHealth):
    """The health of a disk in a worker, which the supervisor is told of as well.

    What a worker notes counts here at once; what the supervisor says then counts in its place.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        writable: bool,
        board: Board,
        place: int,
        tell: Callable[..., None],
    ) -> None:
        """`tell` is given what happened, a word, the reason, and perhaps about which file."""
        super().__init__(clock, writable=writable, board=board, place=place)
        self._tell = tell

    def probe_failed(self, reason: str) -> None:
        """An operation found the disk away."""
        super().probe_failed(reason)
        self._tell("away", reason)

    def operation_passed(self) -> None:
        """See `Health.operation_passed`."""
        if self._failing:
            self._tell("passed", "")
        super().operation_passed()

    def write_refused(self, reason: str) -> None:
        """See `Health.write_refused`."""
        super().write_refused(reason)
        self._tell("refused", reason)

    def operation_failed(self, reason: str, about: Hashable = None) -> None:
        """See `Health.operation_failed`."""
        super().operation_failed(reason, about)
        self._tell("failed", reason, about)


class SharedCommons(Commons):
    """What every process of several has: room, reservations, counts and turns in common."""

    def __init__(
        self,
        board: Board,
        subjects: Subjects,
        turns: ProcessTurns,
        tell: Tell,
    ) -> None:
        """`tell` says something to the other processes: to the supervisor, or to all workers."""
        super().__init__()
        self.processes = board.processes - 1
        self.turns = turns
        self.uploads = SharedCount(board, subjects.places[UPLOADS])
        self.connections: SharedCount = SharedCount(board, subjects.places[CONNECTIONS])
        self._board = board
        self._subjects = subjects
        self._tell = tell

    def health(self, root: str, clock: Callable[[], float], *, writable: bool) -> Health:
        """See `Commons.health`."""
        place = self._subjects.places[root]
        return SharedHealth(clock, writable=writable, board=self._board, place=place)

    def told_of_copy(self, storage: str, digest: Digest, bad: bool) -> None:
        """See `Commons.told_of_copy`."""
        self._tell("copy", storage, digest, bad)

    def reserved(self, roots: Sequence[str]) -> Reserved:
        """See `Commons.reserved`."""
        return SharedReserved(self._board, self._subjects.places[set_subject(roots)])


class WorkerCommons(SharedCommons):
    """What a worker has in common with the others, and leaves to the supervisor."""

    def __init__(
        self,
        board: Board,
        subjects: Subjects,
        turns: ProcessTurns,
        mending: Mending,
        tell: Tell,
    ) -> None:
        super().__init__(board, subjects, turns, tell)
        self.mending = mending

    def health(self, root: str, clock: Callable[[], float], *, writable: bool) -> Health:
        """See `Commons.health`."""
        return ReportedHealth(
            clock,
            writable=writable,
            board=self._board,
            place=self._subjects.places[root],
            tell=partial(self._tell, "disk", root),
        )

    def announcing(self, queue: Callable[[Digest], None]) -> Callable[[Digest], None]:
        """See `Commons.announcing`."""
        return lambda digest: self._tell("to_send", digest)
