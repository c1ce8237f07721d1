"""A job at work: when it may go on, and how far it has come."""

import time
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from stor.disk.verification import PART_BYTES, PART_SECONDS
from stor.jobs.job import Job
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror

#: A job waits for clients of its disk, but never longer than this between two reads: a disk that
#: is always busy is scrubbed at 4 MiB a second.
YIELD_SECONDS = 0.25
_LOOK_SECONDS = 0.01

#: A rate is kept over this time, by parts of this size at least.
_EVEN_SECONDS = 0.25
_LEAST_BYTES = 4096

#: A job that is ahead of its time looks at least this often whether it still is.
_AHEAD_SECONDS = 60.0

#: Latent errors come in clusters: this many copies behind a bad one are read at once.
NEIGHBOURS = 1000


class Halted(Exception):
    """The job is not to go on now. All before its cursor is done."""


@attrs.define
class Counts:
    """What the scrubs of one disk have met since the start: see `Job`."""

    samples: int = 0
    bytes: int = 0
    bad: int = 0
    missing: int = 0
    mended: int = 0


class Run:
    """What the work of a job asks before each read, and tells after it."""

    def __init__(
        self,
        job: Job,
        counts: Counts,
        clock: IReactorTime,
        wall_seconds: Callable[[], float],
        checkpoint: Callable[[], None],
    ) -> None:
        """`counts` are of all runs at the disk; `checkpoint` is told of progress."""
        self.job = job
        self._counts = counts
        self.clock = clock
        #: Whose disks it is at, if it is not about all.
        self.mirrors: tuple[Mirror, ...] = ()
        self._wall_seconds = wall_seconds
        self._checkpoint = checkpoint
        self._free_at = clock.seconds()
        self._halted = False
        self._waking: Deferred[None] | None = None
        #: How many samples are read without regard to the time that is left: neighbours of a bad
        #: one, where there may be more.
        self._hurry = 0
        # Measured from its first progress on: to get ready for that takes its own time, once.
        job.speed.restart()

    @property
    def halted(self) -> bool:
        """Whether the job is not to go on. May be asked in any thread."""
        return self._halted

    def halt(self) -> None:
        """Stop before the next read."""
        self._halted = True
        self._wake()

    def renew(self) -> None:
        """The job has another rate from now on."""
        self._free_at = self.clock.seconds()
        self.job.speed.restart()
        self._wake()

    async def turn(self, member: Member) -> None:
        """Wait until the job may read from a disk. Raises `Halted`."""
        self._look_halted()
        while (left := self._free_at - self.clock.seconds()) > 0:
            await self._sleep(min(left, _AHEAD_SECONDS))
            self.job.moved = self.clock.seconds()  # it is as fast as it may be
        while self._hurry <= 0 and (ahead := self._ahead_seconds()) > 0:
            await self._sleep(min(ahead, _AHEAD_SECONDS))
            self.job.moved = self.clock.seconds()
        until = self.clock.seconds() + YIELD_SECONDS
        while member.under_way and self.clock.seconds() < until:
            await self._sleep(_LOOK_SECONDS)

    def pace(self, member: Member) -> Callable[[int], None]:
        """What waits in a thread now and then between many small reads. It raises `Halted`."""
        next_turn = 0.0

        def wait(reads: int) -> None:
            nonlocal next_turn
            self._look_halted()
            if time.monotonic() >= next_turn:
                until = time.monotonic() + YIELD_SECONDS
                while member.under_way and time.monotonic() < until:
                    time.sleep(_LOOK_SECONDS)
                next_turn = time.monotonic() + PART_SECONDS

        return wait

    @property
    def allowance(self) -> tuple[int, int | None]:
        """How many bytes and samples may be read in one go, or the rate would not be even."""
        rate = self.job.rate
        most_bytes, most_samples = PART_BYTES, None
        if rate.bytes_per_second is not None:
            even = int(rate.bytes_per_second * _EVEN_SECONDS)
            most_bytes = max(_LEAST_BYTES, min(most_bytes, even))
        if rate.samples_per_second is not None:
            most_samples = max(1, int(rate.samples_per_second * _EVEN_SECONDS))
        return most_bytes, most_samples

    def did(self, samples: int, read_bytes: int) -> None:
        """So much was read."""
        job, now = self.job, self.clock.seconds()
        job.moved = now
        job.samples_done += samples
        job.bytes_done += read_bytes
        self._counts.samples += samples
        self._counts.bytes += read_bytes
        self._hurry -= samples
        self._free_at = max(self._free_at, now) + job.rate.seconds(read_bytes, samples)

    def found(self, *, missing: bool) -> None:
        """A copy is missing, or bad. There may be more like it close by."""
        self._hurry = NEIGHBOURS
        for one in (self.job, self._counts):
            one.missing += missing
            one.bad += not missing

    def mended(self) -> None:
        """A sample is whole again."""
        self.job.mended += 1
        self._counts.mended += 1

    def reached(self, cursor: str, share: float) -> None:
        """All before `cursor` is done, which is this share of the whole, from 0 to 1."""
        job, now = self.job, self.clock.seconds()
        job.cursor, job.share, job.moved = cursor, share, now
        job.speed.note(now, job.share, job.bytes_done)
        self._checkpoint()

    def _ahead_seconds(self) -> float:
        """How much earlier than it has to be the job is where it is."""
        period = self.job.period_seconds
        if period is None:
            return 0.0
        due, now = self.job.share * period, self._wall_seconds()
        if self.job.began > now:  # by a clock that was wrong then
            self.job.began = now - due
        return due - (now - self.job.began)

    def _look_halted(self) -> None:
        if self._halted:
            raise Halted

    async def _sleep(self, seconds: float) -> None:
        self._waking = waking = Deferred[None]()
        due = self.clock.callLater(seconds, self._wake)
        await waking
        if due.active():
            due.cancel()
        self._look_halted()

    def _wake(self) -> None:
        waking, self._waking = self._waking, None
        if waking is not None:
            waking.callback(None)
