"""A disk's state, and what moves it."""

import enum
from collections.abc import Callable

import attrs

from stor.disk.disk import Room
from stor.disk.identity import Marker
from stor.disk.probe import Probe

#: So many I/O errors with no success between them make a disk suspect.
ERRORS_UNTIL_SUSPECT = 3


class State(enum.StrEnum):
    """What may be asked of a disk."""

    ONLINE = "online"
    READ_ONLY = "read-only"
    SUSPECT = "suspect"
    OFFLINE = "offline"


@attrs.frozen
class Picture:
    """All that one process knows of a disk's health, for another one."""

    away: str | None
    suspect: str | None
    refused: str | None
    held: bool
    rebuilding: bool
    device: int | None
    errors_total: int
    errors_in_a_row: int
    since: float


class Health:
    """What is known of one disk, from probes and from the operations themselves.

    A disk starts offline and is online after its first probe. It goes offline when a probe says
    that it is away or does not answer, and comes back with the next good one.
    """

    def __init__(self, clock: Callable[[], float], writable: bool = True) -> None:
        """`clock` gives seconds; `writable` is false for a disk that the operator set read-only."""
        self._clock = clock
        self.writable = writable
        self.room = Room(0, 0)
        self.device: int | None = None
        self.marker: Marker | None = None
        self.errors_total = 0
        self._errors_in_a_row = 0
        self._away: str | None = "not probed yet"
        self._suspect: str | None = None
        self._refused: str | None = None
        self._held = False
        #: Whether the disk replaces another and still lacks samples of its set.
        self.rebuilding = False
        self.since = clock()
        #: Called when another state follows from what is known, or for another reason.
        self.changed: Callable[[], None] = lambda: None

    @property
    def state(self) -> State:
        """The one state that follows from all that is known."""
        if self._away is not None:
            return State.OFFLINE
        if self._suspect is not None:
            return State.SUSPECT
        if self._refused is not None or self._held or not self.writable:
            return State.READ_ONLY
        return State.ONLINE

    @property
    def fault(self) -> str | None:
        """What is wrong with the disk, one line. Being kept read-only by the operator is not."""
        return self._away or self._suspect or self._refused

    @property
    def readable(self) -> bool:
        """Whether the disk may be asked for samples."""
        return self._away is None

    @property
    def sound(self) -> bool:
        """Whether nothing keeps the disk from being relied on for reading."""
        return self._away is None and self._suspect is None

    def probe_passed(self, probe: Probe) -> None:
        """A probe could use the disk, at least for reading."""
        self._errors_in_a_row = 0
        self._held = probe.held
        self.marker = probe.marker
        self.learn(probe.room)
        self.device = probe.device
        self.rebuilding = probe.marker is not None and probe.marker.rebuilding
        self._change(None, None, probe.refused)

    def learn(self, room: Room) -> None:
        """Something has looked what is left on the disk; what was measured earlier is no news."""
        if room.number >= self.room.number:
            self.room = room

    def probe_failed(self, reason: str) -> None:
        """A probe found the disk away, hung or failing."""
        self._change(reason, self._suspect, self._refused)

    def operation_passed(self) -> None:
        """An operation on the disk did what it should."""
        self._errors_in_a_row = 0

    def write_refused(self, reason: str) -> None:
        """The file system takes no writes; a probe will say when it does again."""
        self._change(self._away, self._suspect, reason)

    def operation_failed(self, reason: str) -> None:
        """An operation had an I/O error; three in a row and the disk is suspect."""
        self.errors_total += 1
        self._errors_in_a_row += 1
        if self._errors_in_a_row >= ERRORS_UNTIL_SUSPECT:
            suspect = f"{self._errors_in_a_row} I/O errors in a row: {reason}"
            self._change(self._away, suspect, self._refused)

    def picture(self) -> Picture:
        """All of it, for another process."""
        return Picture(
            self._away,
            self._suspect,
            self._refused,
            self._held,
            self.rebuilding,
            self.device,
            self.errors_total,
            self._errors_in_a_row,
            self.since,
        )

    def take_over(self, picture: Picture) -> None:
        """Know what another process knows, and nothing else."""
        self._away, self._suspect, self._refused = picture.away, picture.suspect, picture.refused
        self._held, self.rebuilding = picture.held, picture.rebuilding
        self.device = picture.device
        self.errors_total = picture.errors_total
        self._errors_in_a_row = picture.errors_in_a_row
        self.since = picture.since

    def _change(self, away: str | None, suspect: str | None, refused: str | None) -> None:
        before, faults = self.state, (self._away, self._suspect, self._refused)
        self._away, self._suspect, self._refused = away, suspect, refused
        if self.state != before:
            self.since = self._clock()
        if self.state != before or faults != (away, suspect, refused):
            self.changed()
