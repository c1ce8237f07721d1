"""One disk of a mirror as the reactor sees it: its workers, its health, its probes."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.content import Hasher
from stor.digest import Digest
from stor.disks.disk import FULL, Disk, DiskAway, OpenCopy, Probe, Room
from stor.disks.health import Health, State
from stor.worker import Worker

T = TypeVar("T")
Args = TypeVarTuple("Args")

PROBE_INTERVAL_SECONDS = 15.0
PROBE_DEADLINE_SECONDS = 10.0


@attrs.define
class Workers:
    """A disk's own threads: a hung disk takes these and no others."""

    readers: Worker
    writers: Worker
    prober: Worker

    def stop(self) -> None:
        """Let the threads end once they are idle."""
        for worker in (self.readers, self.writers, self.prober):
            worker.stop()


class Member:
    """A disk, the threads that use it, and what they found out about it."""

    log = Logger()

    def __init__(self, disk: Disk, health: Health, workers: Workers, clock: IReactorTime) -> None:
        self.disk = disk
        self.health = health
        self._workers = workers
        self._clock = clock
        self._probing = False

    @property
    def root(self) -> str:
        """The storage root, as configured."""
        return self.disk.root

    @property
    def writable(self) -> bool:
        """Whether a new sample may be written here."""
        return self.health.state is State.ONLINE

    @property
    def trusted(self) -> bool:
        """Whether "no such sample" from this disk is the truth about its mirror."""
        return self.health.state in (State.ONLINE, State.READ_ONLY)

    def read(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Call `function` in one of the threads for reading; count what the disk did."""
        return self._workers.readers.run(function, *args).addCallbacks(self._passed, self._failed)

    def write(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Call `function` in one of the threads for writing; count what the disk did."""
        return self._workers.writers.run(function, *args).addCallbacks(self._passed, self._failed)

    async def open(self, digest: Digest) -> "DiskSource | None":
        """The disk's copy as a source to read from, `None` when there is none.

        Raises `Damaged`, `DiskAway`, `Busy`, `OSError`.
        """
        opened = await self.read(self.disk.open, digest)
        return None if opened is None else DiskSource(self, opened)

    def renew_room(self) -> Deferred[None]:
        """Learn again what is left on the disk."""

        def learned(room: Room) -> None:
            self.health.room = room

        return self.read(self.disk.room).addCallback(learned)

    def probe(self) -> Deferred[None]:
        """Find out what state the disk is in; fires when that is known.

        A disk that does not answer within `PROBE_DEADLINE_SECONDS` is offline until it does; it
        is not asked again before.
        """
        if self._probing:
            return succeed(None)
        self._probing = True
        deadline = self._clock.callLater(PROBE_DEADLINE_SECONDS, self._unanswered)

        def ended(outcome: T) -> T:
            self._probing = False
            if deadline.active():
                deadline.cancel()
            return outcome

        probe = self._workers.prober.run(self.disk.probe, self.health.writable).addBoth(ended)
        return probe.addCallbacks(self._probe_passed, self._probe_failed)

    def stop(self) -> None:
        """Let the threads end once they are idle."""
        self._workers.stop()

    def _passed(self, result: T) -> T:
        self.health.operation_passed()
        return result

    def _failed(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, DiskAway):
            self._went_away(str(error))
        elif isinstance(error, OSError) and error.errno not in FULL:
            self.health.operation_failed(str(error))
            self.log.warn("{root}: {error}", root=self.root, error=str(error))
        return failure

    def _unanswered(self) -> None:
        self._went_away(f"{self.root}: has not answered for {PROBE_DEADLINE_SECONDS:g} s")

    def _probe_passed(self, probe: Probe) -> None:
        before = self.health.state
        self.health.probe_passed(probe)
        state = self.health.state
        if before is not state:
            why = self.health.fault or "in use"
            self.log.info("{root} is {state}: {why}", root=self.root, state=state.value, why=why)

    def _probe_failed(self, failure: Failure) -> None:
        if not failure.check(DiskAway, OSError):
            self.log.failure("Probing {root}", failure, root=self.root)
        self._went_away(str(failure.value))

    def _went_away(self, reason: str) -> None:
        if self.health.fault != reason:
            self.log.warn("Offline: {reason}", reason=reason)
        self.health.probe_failed(reason)


class DiskSource:
    """A copy on a disk that is being read. Implements `stor.content.Source`."""

    def __init__(self, member: Member, opened: OpenCopy) -> None:
        self._member = member
        self._opened = opened
        self.place = opened.copy.path
        self.size = opened.copy.size
        self.modified_ns = opened.copy.modified_ns
        self.whole = opened.whole

    def read(self, offset: int, length: int, hasher: Hasher | None) -> Deferred[bytes]:
        """See `stor.content.Source.read`."""
        return self._member.read(self._opened.read, offset, length, hasher)

    def close(self) -> None:
        """See `stor.content.Source.close`."""
        if self._opened.fd is not None:
            # A worker with too much to do must not cost a descriptor.
            closing = self._member.read(self._opened.close)
            closing.addErrback(lambda _: self._opened.close())
