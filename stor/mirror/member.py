"""One disk of a mirror as the reactor sees it: its workers, its health, its probes."""

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.block_sums import BlockSums
from stor.digest import Digest, Hasher
from stor.disk.copy import Copy, DamagedCopy, MadeSums, OpenCopy
from stor.disk.disk import REPAIR_DIRECTORY, Disk, DiskAway
from stor.disk.errnos import Fault, fault_of
from stor.disk.identity import (
    LOCK_PATH,
    BadMarker,
    DiskLock,
    KnownDisks,
    Marker,
    mark_complete,
    write_marker,
)
from stor.disk.names import BadProof, DiskNames, begin_names, heed_request, open_names
from stor.disk.notes import noted
from stor.disk.probe import Probe, probe, sweep, try_writing
from stor.disk.staged import Round
from stor.disk.verified import Mark
from stor.errors import Damaged
from stor.mirror.group_commit import Step
from stor.mirror.health import CorruptCopies, Health, Picture, Reports, State
from stor.mirror.pools import DiskPools
from stor.prometheus import DiskMeter
from stor.threads import Busy, Pool, Unanswered, within
from stor.zero_copy import SplicePipe

T = TypeVar("T")
Args = TypeVarTuple("Args")

PROBE_INTERVAL_SECONDS = 15.0
PROBE_DEADLINE_SECONDS = 10.0

#: After an error that may be the disk's, or a probe that could not be made, the next comes by then.
PROBE_SOON_SECONDS = 1.0

#: How many notes other processes are told of; with more, that the disk is not complete.
MOST_NOTES_TOLD = 10_000

#: A disk that has not said by then whether it has a sample, or what is left, has not answered.
ANSWER_SECONDS = 5.0

#: What says that a directory is not this user's to write, or none.
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR)

#: What says nothing of a disk: nobody can do anything about an error there.
_RELEASE = "release"

#: A disk with an operation under way for longer is asked last; for longer than the second it seems
#: to hang, and gets no new samples where others can. An upload waits longer to hear whether its
#: sample is there already: it is itself not sent there.
SLOW_SECONDS, HANGS_SECONDS = 1.0, 4.0


class Member:
    """A disk, the threads that use it, and what they found out about it."""

    log = Logger()

    def __init__(
        self,
        disk: Disk,
        health: Health,
        workers: DiskPools,
        clock: IReactorTime,
        known_disks: KnownDisks,
        meter: DiskMeter,
        ask_for_probe: Callable[[str], None] | None = None,
        lock: DiskLock | None = None,
        tell_sums: Callable[[MadeSums], None] | None = None,
        *,
        keeps_names: bool = False,
    ) -> None:
        """`ask_for_probe` is told of the root where another process probes the disk.

        `tell_sums` is told of block sums that this process has made and does not write. `lock` is
        held by the process that probes the disk. `keeps_names`: this process writes its journal.
        """
        self.disk = disk
        self.health = health
        self.clock = clock
        #: Samples whose copy here is known to be bad: never served, replaced when possible.
        self.corrupt = CorruptCopies()
        #: Samples that wait for a copy to be put back, here or on another disk of the mirror.
        self.noted: set[Digest] = set()
        #: Samples that a drill damages: what becomes of them is no figure, and no news.
        self.drilled: set[Digest] = set()
        self._workers = workers
        self.commits = workers.commits
        self._known_disks = known_disks
        self._meter = meter
        self._ask_for_probe = ask_for_probe
        self.tell_sums = tell_sums
        self._lock = lock
        self.keeps_names = keeps_names
        #: What the disk knows of its names, from when its marker was read first.
        self.names: DiskNames | None = None
        #: What was found to be wrong with that since.
        self.damage: str | None = None
        #: Whether the proof that it is complete does not hold, and that cannot be noted there.
        self._doubted = False
        self._probing = False
        self._probe_due: IDelayedCall | None = None
        self._reports = Reports()
        #: Directories in the root in which some sample could not be named.
        self._doubtful: set[str] = set()
        self._operations = 0
        self._under_way: dict[int, float] = {}

    @property
    def root(self) -> str:
        """The storage root, as configured."""
        return self.disk.root

    @property
    def fault(self) -> str | None:
        """What is wrong with the disk, one line that names it."""
        fault = self.health.fault
        return fault if fault is None or fault.startswith(self.root) else f"{self.root}: {fault}"

    @property
    def writable(self) -> bool:
        """Whether a new sample may be written here."""
        return self.health.state is State.ONLINE

    def follow(self, known_disks: KnownDisks) -> None:
        """Go on among the disks of another configuration."""
        self._known_disks = known_disks

    @property
    def complete(self) -> bool:
        """Whether it is proved that the disk lacks no sample of its mirror."""
        return self._known_disks.complete(self.root) and not self._doubted

    @property
    def trusted(self) -> bool:
        """Whether "no such sample" from this disk can be the truth about its mirror."""
        return self.health.sound and self.complete

    @property
    def slow(self) -> bool:
        """Whether an operation has been under way for suspiciously long."""
        return self._oldest_seconds > SLOW_SECONDS

    @property
    def prompt(self) -> bool:
        """Whether a new sample may be written here, and the disk does not seem to hang."""
        return self.health.state is State.ONLINE and self._oldest_seconds < HANGS_SECONDS

    @property
    def under_way(self) -> int:
        """How many operations are waiting or being done."""
        return len(self._under_way)

    def read(
        self, function: Callable[[*Args], T], *args: *Args, about: Digest | None = None
    ) -> Deferred[T]:
        """Call `function` in one of the threads for reading; count what the disk did.

        `about` is the sample whose file that is.
        """
        return self._run("read", about, self._workers.readers.run, function, *args)

    def write(
        self, function: Callable[[*Args], T], *args: *Args, about: Digest | None = None
    ) -> Deferred[T]:
        """Call `function` in one of the threads for writing; count what the disk did."""
        return self._run("write", about, self._workers.writers.run, function, *args)

    def commit(self, step: Step[T], about: Digest | None = None) -> Deferred[T]:
        """Do a step of an upload, perhaps with those of others; count what the disk did."""
        return self._run("write", about, self.commits.run, step)

    def looked(self, digest: Digest, outcome: Copy | Failure | None, seconds: float) -> None:
        """Count what the disk did when somebody looked at it from another thread than its own."""
        self._meter.did("read", max(0.0, seconds))
        self._count("read", outcome, digest)

    def work(self, pool: Pool, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """Call `function` in a thread that no client waits for, for a moment only; count that."""
        return self._run("job", None, pool.run, function, *args)

    def found_damaged(self, digest: Digest, reason: str, mark: Mark | None) -> None:
        """The file with this mark is bad: it is not served any more."""
        if self.corrupt.add(digest, mark) and digest not in self.drilled:
            self._meter.damaged()
            self.log.warn("Damaged: {reason}", reason=reason, root=self.root, digest=str(digest))

    def restored(self) -> None:
        """A copy that was missing or bad has been put back here."""
        self._meter.restored()

    def keep_sums(self, made: MadeSums) -> None:
        """Keep block sums that another process has made; where that fails, others will be made."""
        keeping = self.read(self.disk.keep_sums, made, about=made.sums.digest)
        said = "{root}: block sums: {why.value}"
        keeping.addErrback(lambda why: self.log.warn(said, root=self.root, why=why))

    def give_back(self, function: Callable[[], T]) -> Deferred[T]:
        """Let go, in one of the disk's threads, of what an operation has left; never refused."""
        return self._run(_RELEASE, None, self._workers.writers.finish, function)

    async def open(self, digest: Digest, *, bad: bool = False) -> "DiskSource | None":
        """The disk's copy as a source to read from, `None` when there is none.

        `bad`: also one that is known to be bad, of which parts may be good. Raises `Damaged`,
        `DiskAway`, `Busy`, `OSError`.
        """
        opened = await self.read(self.disk.open, digest, about=digest)
        if opened is None:
            return None
        source = DiskSource(self, opened)
        try:
            if not bad:
                self._refuse_bad(digest, opened.copy)
        except Damaged:
            source.close()
            raise
        return source

    async def look(self, digest: Digest) -> Copy | None:
        """The disk's copy by its name, not read. Raises like `open`."""
        return self._refuse_bad(digest, await self.read(self.disk.look, digest, about=digest))

    def picture(self) -> Picture:
        """How the disk is, for another process."""
        told = len(self.noted) <= MOST_NOTES_TOLD
        return attrs.evolve(
            self.health.picture(),
            complete=self.complete and told,
            noted=frozenset(self.noted if told else ()),
        )

    def hear(self, picture: Picture) -> None:
        """Another process, which probes the disk, says how it is."""
        if picture.device is not None:
            self.disk.identify(picture.device)
        self._known_disks.told(self.root, picture.complete)
        self.noted = set(picture.noted)
        self.health.take_over(picture)

    async def mark_complete(self, proof: tuple[str, ...]) -> None:
        """Note on the disk that it lacks nothing; `proof` as in `Marker.complete`.

        Raises `DiskAway`, `BadMarker`, `OSError`.
        """
        # In the thread that also probes: two writers of a marker would meet.
        marker = await self._workers.prober.run(mark_complete, self.disk, proof, proof)
        self.health.marker = marker
        self._doubted = False
        self._known_disks.marked(self.root, marker)

    def check(self, digest: Digest, length: int | None, seconds: float) -> Deferred[Copy | None]:
        """The disk's copy if it can be the sample, `length` bytes long, `None` when there is none.

        Fails with `Damaged`, `DiskAway`, `Busy`, `OSError`, or after `seconds` with `Unanswered`.
        """
        answer = self.read(self.disk.check, digest, length, about=digest)
        return within(
            self.clock, seconds, answer.addCallback(lambda copy: self._refuse_bad(digest, copy))
        )

    def _refuse_bad(self, digest: Digest, copy: Copy | None) -> Copy | None:
        """The copy, unless its file is known to be bad. Raises `Damaged`."""
        if copy is not None and self.corrupt.knows(digest, copy.mark):
            raise DamagedCopy(f"{copy.path} is known to be bad", copy.mark)
        return copy

    def renew_room(self) -> Deferred[None]:
        """Learn again what is left on the disk. Fails with `Unanswered` when it does not say."""
        if self.keeps_names and self.names is None:  # it had no room for its marker and journal
            return self.probe()
        asking = self.read(self.disk.room).addCallback(self.health.learn)
        return within(self.clock, ANSWER_SECONDS, asking)

    def probe(self) -> Deferred[None]:
        """Find out what state the disk is in; fires when that is known.

        A disk that does not answer within `PROBE_DEADLINE_SECONDS` is offline until it does; it
        is not asked again before.
        """
        if self._probing:
            return succeed(None)
        self._probing = True
        probing = Deferred.fromCoroutine(self._probe()).addErrback(self._probe_failed)
        return within(self.clock, PROBE_DEADLINE_SECONDS, probing).addErrback(self._unanswered)

    def probe_soon(self) -> None:
        """Have the disk probed before its turn: what an error says of it, a probe finds out."""
        if self._ask_for_probe is not None:
            self._ask_for_probe(self.root)
        elif self._probe_due is None:
            self._probe_due = self.clock.callLater(PROBE_SOON_SECONDS, self._probe_now)

    def _probe_now(self) -> None:
        self._probe_due = None
        self.probe()

    def let_go(self) -> Deferred[None]:
        """Let another Stor have the disk, which is in no set any more, once nobody is at it."""
        if self._lock is None or not self._lock.held or self._probing or self._under_way:
            return succeed(None)
        # After this nothing is written before the next probe, which takes the lock again.
        releasing = self._workers.prober.run(self._lock.release)
        return within(self.clock, PROBE_DEADLINE_SECONDS, releasing)

    def stop(self) -> None:
        """Let the threads end once they are idle."""
        if self._probe_due is not None:
            self._probe_due.cancel()
            self._probe_due = None
        self._workers.stop()

    @property
    def _oldest_seconds(self) -> float:
        if not self._under_way:
            return 0.0
        return self.clock.seconds() - next(iter(self._under_way.values()))

    def _run(
        self, kind: str, about: Digest | None, run: Callable[..., Deferred[T]], *call: object
    ) -> Deferred[T]:
        self._operations += 1
        number = self._operations
        self._under_way[number] = self.clock.seconds()

        def ended(outcome: "T | Failure") -> "T | Failure":
            begun = self._under_way.pop(number)
            if isinstance(outcome, Failure) and outcome.check(Busy):
                self._meter.refused()
            else:
                self._meter.did(kind, max(0.0, self.clock.seconds() - begun))
            return outcome if kind == _RELEASE else self._count(kind, outcome, about)

        return run(*call).addBoth(ended)

    def _count(self, kind: str, outcome: T | Failure, about: Digest | None) -> T | Failure:
        error = outcome.value if isinstance(outcome, Failure) else None
        if isinstance(outcome, Round) and outcome.failed:
            for small, its in outcome.failed.items():
                self._weigh(kind, its, small.digest)
        elif error is None:
            self.health.operation_passed()
        elif isinstance(error, DiskAway):
            self._went_away(str(error))
        elif isinstance(error, OSError):
            self._weigh(kind, error, about)
        return outcome

    def _weigh(self, kind: str, error: OSError, about: Digest | None) -> None:
        fault = fault_of(error)
        if fault in (Fault.ROOM, Fault.PROCESS):
            return
        if fault is not Fault.FILE or self._reports.is_news(error, about, self.clock.seconds()):
            self.log.warn("{root}: {error}", root=self.root, error=str(error))
        if fault is Fault.FILE:
            if kind == "write" and about is not None and error.errno in _CLOSED:
                self._doubtful.add(about.directories[0])
                self.probe_soon()
            return
        if fault is Fault.WRITING:  # proof enough until a probe has looked
            self.health.write_refused(self._refusal(error))
        else:
            self.health.operation_failed(str(error), about)
        self.say()
        self.probe_soon()

    def _refusal(self, error: OSError) -> str:
        return f"{self.root}: cannot be written: {error.strerror}"

    def say(self) -> None:
        """Write to the log what is wrong with the disk, or that nothing is, when that is news."""
        news = self._reports.news(self.health, self.clock.seconds())
        if news is not None:
            say = self.log.warn if news.problem else self.log.info
            say("{root} is {how}", root=self.root, how=news.how, state=news.state, why=news.why)

    async def _probe(self) -> None:
        run, disk = self._workers.prober.run, self.disk
        writable = self.health.writable
        found = await run(probe, disk)
        known_disks = self._known_disks
        judgement = known_disks.judge(
            self.root, found.marker, empty=found.empty, writable=writable and not found.held
        )
        if judgement.waits and judgement.refusal is not None:
            self._probing = False
            # Not worth a line in the log: the next look may find otherwise.
            self.health.probe_failed(judgement.refusal)
            return
        if judgement.refusal is not None:
            raise DiskAway(judgement.refusal)
        disk.identify(found.device)
        new = found.marker is None
        if new:
            self._known_disks.left(self.root)
        found = await self._keep(found, writable=writable and not found.held)
        if not self.health.readable:  # nothing is asked of it before its notes are known
            self.noted.update(await run(noted, disk, REPAIR_DIRECTORY))
        if writable and not found.held and found.refused is None:
            found = await self._write_to(found, judgement.marker)
        if self.keeps_names and found.marker is not None:
            found = await self._know_names(found, found.marker, new=new)
            if self.names is not None and self.names.written:
                names = self.names
                known_disks.came_to(names.uuid, names.identity, names.durable)
        if self._known_disks is not known_disks:  # another configuration, which judges anew
            await self._probe()
            return
        self._probing = False
        self.health.probe_passed(found)
        self.say()

    async def _keep(self, found: Probe, *, writable: bool) -> Probe:
        """Keep other Stors from the disk. Where that cannot be done it is read, never written."""
        if self._lock is None:
            return found
        try:
            await self._workers.prober.run(partial(self._lock.take, writable=writable))
        except OSError as error:
            fault = fault_of(error)
            if fault is Fault.PROCESS:
                raise
            if fault is Fault.ROOM:  # full, which is said, and the next probe tries again
                return found
            refusal = f"{self.root}: cannot be written: {LOCK_PATH} cannot be locked, so that "
            refusal += f"another Stor might write here, too ({error.strerror})"
            refused = self._refusal(error) if fault is Fault.WRITING else refusal
            return attrs.evolve(found, refused=refused)
        return found

    async def _know_names(self, found: Probe, marker: Marker, *, new: bool) -> Probe:
        """Open the disk's journal before anything is written there; what that has shown."""
        names, uuid = self.names, marker.uuid
        writable = self.health.writable and not (found.held or found.refused or found.failing)
        right = names is not None and names.uuid == uuid and names.damage is None
        run, disk = self._workers.prober.run, self.disk
        if names is not None and right and (names.written or not writable):
            if names.known and writable and await run(heed_request, disk, names):
                self.log.info("{root}: its names are walked, as was asked", root=self.root)
            return found
        self.damage = self.damage or (names.damage if names is not None else None)
        self.names = None
        try:
            try:
                if self.damage is not None:
                    raise BadProof(self.damage)
                names = await run(open_names, disk, uuid, self._known_disks.journal(uuid), writable)
            except BadProof as error:
                self.log.info("{reason}: its names are walked", reason=str(error))
                self._doubted = not new  # it may have lost samples, too
                if writable:
                    names = await run(begin_names, disk, uuid, new)
                    marker = attrs.evolve(marker, complete=marker.complete if new else ())
                    self._known_disks.marked(self.root, marker)
                    found = attrs.evolve(found, marker=marker)
                else:
                    names = DiskNames.unwritten(disk, uuid)
            empty = not (names.base.entries or names.journal.end.segment)
            names.founding = empty and bool(marker.complete) and (new or names.known)
            self.names, self.damage = names, None
        except OSError as error:
            if fault_of(error) is Fault.PROCESS:
                raise
            if fault_of(error) is Fault.DISK:
                return attrs.evolve(found, failing=f"{self.root}: its journal failed: {error}")
            if writable:
                return attrs.evolve(found, refused=self._refusal(error))
        return found

    async def _write_to(self, found: Probe, marker: Marker | None) -> Probe:
        """Use the disk for writing, too; what was found, and what that has shown."""
        run, disk = self._workers.prober.run, self.disk
        try:
            if marker is not None and marker != found.marker:
                await run(write_marker, disk, marker)
                self._known_disks.marked(self.root, marker)
                found = attrs.evolve(found, marker=marker)
            await run(try_writing, disk, frozenset(self._doubtful))
            self._doubtful.clear()
            if disk.unswept:
                await run(sweep, disk)
        except OSError as error:
            fault = fault_of(error)
            if fault is Fault.PROCESS:
                raise
            if fault is Fault.DISK:
                return attrs.evolve(found, failing=f"{self.root}: a test write failed: {error}")
            if fault is not Fault.ROOM:
                return attrs.evolve(found, refused=self._refusal(error))
        return found

    def _probe_failed(self, failure: Failure) -> None:
        self._probing = False
        error = failure.value
        if isinstance(error, DiskAway):
            self._known_disks.left(self.root)
            if self._lock is not None:  # whatever is there is not ours to keep
                self._workers.prober.run(self._lock.release).addErrback(lambda _: None)
            self._went_away(str(error))
        elif isinstance(error, Busy | MemoryError) or (
            isinstance(error, OSError) and fault_of(error) is Fault.PROCESS
        ):
            said = str(error) or type(error).__name__
            self.log.warn("{root} could not be probed: {error}", root=self.root, error=said)
            self.probe_soon()
        else:
            if not isinstance(error, BadMarker | OSError):
                self.log.failure("Probing {root}", failure, root=self.root)
            self._went_away(f"{self.root}: {error}")

    def _unanswered(self, failure: Failure) -> None:
        failure.trap(Unanswered)
        self._went_away(f"{self.root}: has not answered for {PROBE_DEADLINE_SECONDS:g} s")

    def _went_away(self, reason: str) -> None:
        self.health.probe_failed(reason)
        self.say()


class DiskSource:
    """A copy on a disk that is being read. Implements `stor.content.Source`."""

    def __init__(self, member: Member, opened: OpenCopy) -> None:
        self.member = member
        self._opened = opened
        self._using: Deferred[Any] | None = None
        self.place = opened.copy.path
        self.storage = opened.copy.storage
        self.size = opened.copy.size
        self.modified_ns = opened.copy.modified_ns
        self.mark = opened.copy.mark
        self.whole = opened.whole
        self.misfit = opened.misfit
        self.provable = True

    @property
    def proven(self) -> bool:
        """See `stor.content.Source.proven`."""
        return self._opened.proven

    @property
    def sums(self) -> BlockSums | None:
        """See `stor.content.Source.sums`."""
        return self._opened.sums

    def adopt(self, sums: BlockSums) -> None:
        """See `stor.content.Source.adopt`."""
        self._opened.sums = sums

    def read(self, offset: int, length: int, hasher: Hasher | None) -> Deferred[bytes]:
        """See `stor.content.Source.read`."""
        return self._read(self._opened.read, offset, length, hasher)

    def read_checked(self, offset: int, length: int) -> Deferred[bytes]:
        """See `stor.content.Source.read_checked`."""
        return self._read(self._opened.read_checked, offset, length)

    def send(self, splice_pipe: SplicePipe, offset: int, length: int) -> Deferred[bool]:
        """See `stor.content.Source.send`."""
        return self._read(self._opened.send, splice_pipe, offset, length)

    def _read(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        reading = self.member.read(function, *args, about=self._opened.digest)
        self._using = reading.addCallback(self._tell)
        return reading

    def _tell(self, result: T) -> T:
        made, self._opened.made_sums = self._opened.made_sums, None
        if made is not None and self.member.tell_sums is not None:
            self.member.tell_sums(made)
        return result

    def close(self) -> None:
        """See `stor.content.Source.close`."""
        if self._opened.fd is None:
            return
        if self._using is not None and not self._using.called:
            self._using.addBoth(self._close)
        else:
            self._close(None)

    def _close(self, outcome: T) -> T:
        self.member.give_back(self._opened.close).addErrback(lambda _: None)
        return outcome
