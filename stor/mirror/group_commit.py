"""One sync for all uploads that wait for one: group commit.

Each sync of a file or directory costs a disk a round of its own; one syncfs(2) brings what many
uploads have written to stable storage in one (DeWitt et al., Implementation Techniques for Main
Memory Database Systems, 1984, section 5).
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from glob import glob
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from stor.disk.disk import Disk
from stor.threads import Busy, Outcomes, Pool

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: How many steps may wait.
WAITING_LIMIT = 1000

#: With more than this waiting to be written, whoever wrote it, syncfs(2) waits for much that is not
#: ours: a backup that is restored, another program's files.
UNWRITTEN_BYTES = 256 * 1024 * 1024

#: Where the kernel tells how much that is. A service that sees only processes in /proc
#: (systemd.exec(5), ProcSubset) asks the second.
MEMORY_INFO = ("/proc/meminfo", "/sys/devices/system/node/node[0-9]*/meminfo")

#: After that, how long it is not looked at again.
REST_SECONDS = 1.0

#: Ext2 to ext4, XFS and btrfs (statfs(2)). What is synced of a FUSE file system reaches the program
#: behind it, and what that program syncs then, nobody knows.
KNOWN_TYPES = (0xEF53, 0x58465342, 0x9123683E)

#: With a group under way for longer, perhaps because a call hangs, no more steps join the next.
STUCK_SECONDS = 1.0


@attrs.frozen
class Step(Generic[T]):
    """A part of an upload on one disk, which counts once what it did is on stable storage.

    `do` does it, `sync` brings just that to stable storage, `synced` is called once it is there,
    however it got there, and `lost` when a sync that was to bring it there with others has failed.
    All run in a thread; the first two are given the disk's root, open.
    """

    do: Callable[[int], T]
    sync: Callable[[int], None]
    synced: Callable[[], None] = lambda: None
    lost: Callable[[], None] = lambda: None

    def alone(self, disk: Disk) -> T:
        """All of it. Raises `DiskAway`, and what its parts raise."""
        with disk.entered() as root_fd:
            outcome = self.do(root_fd)
            self.sync(root_fd)
        self.synced()
        return outcome


class Commits(Protocol):
    """Where steps are done."""

    def run(self, step: Step[T]) -> Deferred[T]:
        """Do a step; fires with what its `do` returns. Fails like `Pool.run`."""

    def can_share(self, root_fd: int) -> bool:
        """Whether one syncfs(2) may stand for many syncs now. Called in any thread."""

    @property
    def rests(self) -> bool:
        """Whether none may for a while, so that everybody syncs by himself, many at a time."""

    def stop(self) -> None:
        """Let threads end once they are idle."""


@attrs.frozen
class Alone:
    """Each step by itself, with its own sync."""

    disk: Disk
    worker: Pool
    rests: bool = True

    def can_share(self, root_fd: int) -> bool:
        """See `Commits.can_share`."""
        return False

    def run(self, step: Step[T]) -> Deferred[T]:
        """See `Commits.run`."""
        return self.worker.run(step.alone, self.disk)

    def stop(self) -> None:
        """The worker is its owner's to stop."""


@attrs.define(eq=False)
class _Task:
    """A step, who waits for it, and what its `do` has returned."""

    waiter: Deferred[Any]
    step: Step[Any]
    outcome: Any = None


class GroupCommit:
    """The steps of all uploads on one disk: those that wait at the same time share one syncfs(2).

    Bodies that are written while they come, repairs and moves; small bodies share syncs in rounds
    (`stor.mirror.small_writes`).

    While one group is synced, the steps of the next are done. A step that is alone is synced by
    itself, and so is each while much that is not ours waits to be written, while a group does not
    get on, and on file systems that are not known. A sync that fails fails every step that relied
    on it.
    """

    def __init__(
        self,
        alone: Alone,
        threads: Pool,
        unwritten_bytes: Callable[[], int | None],
        outcomes: Outcomes,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`alone` is where nothing is shared; `threads` does two things at a time.

        `unwritten_bytes` tells what waits to be written on all disks together, `None` when nobody
        knows.
        """
        self._disk = alone.disk
        self._threads = threads
        self._alone = alone
        self._unwritten_bytes = unwritten_bytes
        self._outcomes = outcomes
        self._seconds = seconds
        self._rests_until = 0.0
        self._waiting: list[_Task] = []
        #: Since when a group is done, and one synced, if any is.
        self._doing: float | None = None
        #: What is done and waits for a sync, and the root, opened before any of it was done.
        self._done: list[_Task] = []
        self._roots: list[int] = []
        self._syncing: float | None = None

    def run(self, step: Step[T]) -> Deferred[T]:
        """See `Commits.run`."""
        now = self._seconds()
        if self.rests or self._stuck(now):
            return self._alone.run(step)
        if len(self._waiting) >= WAITING_LIMIT:
            return fail(Busy(f"{self._disk.root}: {len(self._waiting)} commits are waiting"))
        task = _Task(Deferred(), step)
        if self._doing is not None or self._syncing is not None:
            self._waiting.append(task)
            self._go_on()
        else:
            self._syncing = now
            self._threads.finish(step.alone, self._disk).addBoth(self._synced_alone, task)
        return task.waiter

    def stop(self) -> None:
        """See `Commits.stop`."""
        self._threads.stop()

    def _stuck(self, now: float) -> bool:
        oldest = min(self._doing or now, self._syncing or now)
        return now - oldest > STUCK_SECONDS

    def _go_on(self) -> None:
        if self._done and self._syncing is None:
            self._syncing = self._seconds()
            done, roots = self._done, self._roots
            self._done, self._roots = [], []
            self._threads.finish(self._sync, done, roots).addBoth(self._synced, done)
        if self._waiting and self._doing is None:
            self._doing = self._seconds()
            waiting, self._waiting = self._waiting, []
            self._threads.finish(self._do, waiting).addBoth(self._did, waiting)

    def _do(self, waiting: list[_Task]) -> tuple[list[int], list[Any]]:
        """The root, if it is needed, and what became of each step. Runs in a thread.

        The root is opened first: a write that fails from then on fails the sync (syncfs(2)).
        Raises `DiskAway`, `OSError`.
        """
        roots = [self._disk.enter()]
        outcomes = [_outcome(task.step.do, roots[0]) for task in waiting]
        if all(isinstance(outcome, Failure) for outcome in outcomes):
            self._close(roots)
        return roots, outcomes

    def _did(self, outcome: "tuple[list[int], list[Any]] | Failure", waiting: list[_Task]) -> None:
        self._doing = None
        if isinstance(outcome, Failure):
            outcomes: list[Any] = [Failure(outcome.value) for _ in waiting]
        else:
            roots, outcomes = outcome
            self._roots += roots
        failed: list[_Task] = []
        for task, its in zip(waiting, outcomes, strict=True):
            task.outcome = its
            (failed if isinstance(its, Failure) else self._done).append(task)
        self._go_on()  # first: the disk has work while the outcomes are looked at
        for task in failed:
            task.waiter.errback(task.outcome)

    def _sync(self, done: list[_Task], roots: list[int]) -> list[Any]:
        """What became of each step in the end. Runs in a thread. Raises `OSError`."""
        try:
            if len(done) > 1 and self.can_share(roots[0]):
                try:
                    self._disk.files.sync_all(roots[0])
                    # Ext2, and ext4 without a journal, do not flush the disk's own cache at the end
                    # of syncfs(2), where any fsync(2) does.
                    self._disk.files.sync(roots[0])
                except OSError:
                    for task in done:
                        task.step.lost()
                    raise
                return [_outcome(_finish, task) for task in done]
            return [_outcome(_sync_alone, task, roots[0]) for task in done]
        finally:
            self._close(roots)

    def _close(self, roots: list[int]) -> None:
        while roots:
            self._disk.leave(roots.pop())

    def _synced(self, outcomes: "list[Any] | Failure", done: list[_Task]) -> None:
        self._syncing = None
        self._go_on()
        if isinstance(outcomes, Failure):
            outcomes = [Failure(outcomes.value) for _ in done]
        for task, its in zip(done, outcomes, strict=True):
            self._outcomes.put(task.waiter.callback, its, last=True)

    def _synced_alone(self, outcome: Any, task: _Task) -> None:
        self._synced([outcome], [task])

    @property
    def rests(self) -> bool:
        """See `Commits.rests`."""
        return self._seconds() < self._rests_until

    def can_share(self, root_fd: int) -> bool:
        """See `Commits.can_share`."""
        known = self._disk.files.type_of(root_fd) in KNOWN_TYPES
        unwritten = self._unwritten_bytes() if known else None
        if unwritten is not None and unwritten <= UNWRITTEN_BYTES:
            return True
        self._rests_until = self._seconds() + REST_SECONDS
        return False


def _finish(task: _Task) -> Any:
    task.step.synced()
    return task.outcome


def _sync_alone(task: _Task, root_fd: int) -> Any:
    task.step.sync(root_fd)
    return _finish(task)


def _outcome(function: Callable[[*Args], T], *args: *Args) -> "T | Failure":
    try:
        return function(*args)
    except BaseException:
        return Failure()


def unwritten_bytes(sources: Sequence[str] = MEMORY_INFO) -> int | None:
    """What waits to be written to all disks of the machine; `None` when nobody tells.

    See proc(5), `Dirty` and `Writeback`. Each of `sources` is a pattern for files to be added up;
    the first of which there are any is taken.
    """
    for source in sources:
        kilobytes = []
        for path in glob(source):
            with suppress(OSError), open(path, "rb") as file:
                kilobytes += re.findall(rb"\b(?:Dirty|Writeback): *(\d+) kB$", file.read(), re.M)
        if kilobytes:
            return 1024 * sum(map(int, kilobytes))
    return None


def reports_errors(release: str | None = None) -> bool:
    """Whether syncfs(2) of this kernel, or of one with this `release`, tells that a write failed.

    See syncfs(2), "Versions": from Linux 5.8 on.
    """
    major, minor = re.findall(r"\d+", release or os.uname().release)[:2]
    return (int(major), int(minor)) >= (5, 8)
