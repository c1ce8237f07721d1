"""A disk's state, and what moves it; which of its copies are known to be bad."""

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

import attrs

from stor.digest import Digest
from stor.disk.disk import Room
from stor.disk.identity import Marker
from stor.disk.probe import Probe
from stor.disk.verified import Mark
from stor.mirror.placement import shortage
from stor.quantities import duration

#: I/O errors over this many different files, with no success between them, make a disk suspect.
ERRORS_UNTIL_SUSPECT = 3

#: How long a fault of one file is not logged again, and how many faults of a disk are remembered.
AGAIN_SECONDS, MOST_TOLD = 3600.0, 1000


class State(enum.StrEnum):
    """What may be asked of a disk."""

    ONLINE = "online"
    READ_ONLY = "read-only"
    SUSPECT = "suspect"
    OFFLINE = "offline"


class Cause(enum.StrEnum):
    """What keeps a disk from taking new samples although it should."""

    FULL = "full"
    REFUSED = "refused"


@attrs.frozen
class Unwritable:
    """Why a disk that should take new samples takes none, one line, and since when."""

    cause: Cause
    reason: str
    since: float


@attrs.frozen
class Faults:
    """What is wrong with a disk, one line for each kind."""

    away: str | None = None
    suspect: str | None = None
    #: The file system takes no writes, or no names can be made.
    refused: str | None = None
    full: str | None = None


@attrs.frozen
class Picture:
    """All that one process knows of a disk's health, for another one."""

    faults: Faults
    held: bool
    device: int | None
    errors_total: int
    failing: frozenset[Hashable]
    since: float
    unwritable_since: float
    marker: Marker | None = None
    complete: bool = False
    noted: frozenset[Digest] = frozenset()


class Health:
    """What is known of one disk, from probes and from the operations themselves.

    A disk starts offline and is online after its first probe. It goes offline when a probe says
    that it is away, cannot be read or does not answer, and comes back with the next good one.
    """

    def __init__(
        self, clock: Callable[[], float], writable: bool = True, reserve_bytes: int = 0
    ) -> None:
        """`clock` gives seconds; `writable` is false for a disk that the operator set read-only.

        `reserve_bytes` are kept free on it.
        """
        self._clock = clock
        self.writable = writable
        self.reserve_bytes = reserve_bytes
        self.room = Room(0, 0)
        self.device: int | None = None
        self.marker: Marker | None = None
        self.errors_total = 0
        #: What could not be read or written since the last success.
        self._failing: set[Hashable] = set()
        self._faults = Faults(away="not probed yet")
        #: Whether nothing keeps the disk from being relied on for reading. No property: every
        #: request that reads asks.
        self.sound = False
        self._held = False
        self.since = self._unwritable_since = clock()

    def follow(self, *, writable: bool, reserve_bytes: int) -> None:
        """Go on as another configuration says."""
        self.writable = writable
        self.reserve_bytes = reserve_bytes

    @property
    def state(self) -> State:
        """The one state that follows from all that is known."""
        if self._faults.away is not None:
            return State.OFFLINE
        if self._faults.suspect is not None:
            return State.SUSPECT
        if self._faults.refused is not None or self.held:
            return State.READ_ONLY
        return State.ONLINE

    @property
    def held(self) -> bool:
        """Whether the operator does not want the disk written."""
        return self._held or not self.writable

    @property
    def fault(self) -> str | None:
        """What is wrong with the disk, one line. Being held or full is not."""
        return self._faults.away or self._faults.suspect or self._faults.refused

    @property
    def unwritable(self) -> Unwritable | None:
        """Why a disk that can be read takes no new samples, though the operator wants it to."""
        if self.state not in (State.ONLINE, State.READ_ONLY) or self.held:
            return None
        causes = ((Cause.REFUSED, self._faults.refused), (Cause.FULL, self._faults.full))
        return next(
            (
                Unwritable(cause, reason, self._unwritable_since)
                for cause, reason in causes
                if reason is not None
            ),
            None,
        )

    @property
    def readable(self) -> bool:
        """Whether the disk may be asked for samples."""
        return self._faults.away is None

    def probe_passed(self, probe: Probe) -> None:
        """A probe could use the disk, at least for reading."""
        self._failing.clear()
        self.marker = probe.marker
        self.learn(probe.room)
        self.device = probe.device
        full = shortage(self.room, self.reserve_bytes)
        self._change(Faults(None, probe.failing, probe.refused, full), held=probe.held)

    def learn(self, room: Room) -> None:
        """Something has looked what is left on the disk; what was measured earlier is no news."""
        if room.number >= self.room.number:
            self.room = room

    def probe_failed(self, reason: str) -> None:
        """A probe found the disk away, hung or unreadable."""
        self._change(attrs.evolve(self._faults, away=reason))

    def operation_passed(self) -> None:
        """An operation on the disk did what it should."""
        self._failing.clear()

    def write_refused(self, reason: str) -> None:
        """The file system takes no writes; a probe will say when it does again."""
        self._change(attrs.evolve(self._faults, refused=reason))

    def operation_failed(self, reason: str, about: Hashable = None) -> None:
        """An operation had an I/O error; over three files in a row, and the disk is suspect.

        `about` is the file; without it, it is one of which nothing was heard before.
        """
        self.errors_total += 1
        self._failing.add(object() if about is None else about)
        if len(self._failing) >= ERRORS_UNTIL_SUSPECT:
            suspect = f"I/O errors in a row over {len(self._failing)} files: {reason}"
            self._change(attrs.evolve(self._faults, suspect=suspect))

    def picture(self) -> Picture:
        """All of it, for another process."""
        return Picture(
            self._faults,
            self._held,
            self.device,
            self.errors_total,
            frozenset(self._failing),
            self.since,
            self._unwritable_since,
            self.marker,
        )

    def take_over(self, picture: Picture) -> None:
        """Know what another process knows, and nothing else."""
        self._know(picture.faults)
        self._held, self.device, self.marker = picture.held, picture.device, picture.marker
        self.errors_total = picture.errors_total
        self._failing = set(picture.failing)
        self.since, self._unwritable_since = picture.since, picture.unwritable_since

    def _know(self, faults: Faults) -> None:
        self._faults = faults
        self.sound = faults.away is None and faults.suspect is None

    def _change(self, faults: Faults, *, held: bool | None = None) -> None:
        before = self.state, self.unwritable
        self._know(faults)
        self._held = self._held if held is None else held
        if self.state != before[0]:
            self.since = self._clock()
        if before[1] is None and self.unwritable is not None:
            self._unwritable_since = self._clock()


@attrs.frozen
class News:
    """What is said of a disk: how it is, and why."""

    how: str
    state: str
    why: str
    problem: bool


class Reports:
    """What of a disk's health is news: a problem, another one, and that there is none any more.

    That a disk is in order from the beginning is none.
    """

    def __init__(self) -> None:
        self._said: tuple[State, str | None] = (State.ONLINE, None)
        self._ailing_since: float | None = None
        #: When each fault of a file was logged last, the earliest first.
        self._told: OrderedDict[tuple[Digest | None, str], float] = OrderedDict()

    def is_news(self, error: OSError, about: Digest | None, now_seconds: float) -> bool:
        """Whether this fault of one file was not logged within the hour: clients may ask often.

        A fault that has been forgotten is logged again.
        """
        what = about, str(error)
        if now_seconds - self._told.get(what, -math.inf) < AGAIN_SECONDS:
            return False
        self._told[what] = now_seconds
        self._told.move_to_end(what)
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        return True

    def news(self, health: Health, now_seconds: float) -> News | None:
        """What has not been said yet; `now_seconds` is of the clock of `health`."""
        unwritable = health.unwritable
        problem = health.fault or (unwritable.reason if unwritable is not None else None)
        if (health.state, problem) == self._said:
            return None
        self._said = (health.state, problem)
        state = health.state.value
        if problem is not None:
            if self._ailing_since is None:
                self._ailing_since = health.since if unwritable is None else unwritable.since
            what = state if health.fault else "in use, and takes no new samples"
            return News(f"{what}: {problem}", state, problem, problem=True)
        how, why = state, "held by the operator" if health.held else ""
        if self._ailing_since is not None:
            how += f" again after {duration(now_seconds - self._ailing_since)}"
            self._ailing_since = None
        return News(f"{how}, {why}" if why else how, state, why, problem=False)


class CorruptCopies(dict[Digest, Mark | None]):
    """The files of a disk that are never served as a sample, and replaced when that is possible.

    It says of a file, not of a name, that it is bad: who finds that out late, about a file that
    has been replaced by then, says nothing of the new one.
    """

    def knows(self, digest: Digest, mark: Mark | None) -> bool:
        """Whether the file with this mark is known to be bad; one without a mark never is."""
        return mark is not None and self.get(digest) == mark

    def add(self, digest: Digest, mark: Mark | None) -> bool:
        """The file is bad; without its mark it is looked at again each time. Whether it is news."""
        news = digest not in self or not (mark is None or self.knows(digest, mark))
        if news:
            self[digest] = mark
        return news

    def discard(self, digest: Digest) -> None:
        """The copy is good, or another one has taken its place."""
        self.pop(digest, None)
