"""The disks of a configuration, each with its threads."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs
from twisted.internet.interfaces import IReactorTime

from stor.config import Config
from stor.digest import Digest
from stor.disk.copy import MadeSums
from stor.disk.disk import Disk
from stor.disk.durable import Blocks
from stor.disk.identity import DiskLock, KnownDisks, Remembered
from stor.disk.syscalls import Syscalls
from stor.disk.verified import VerifiedSmall
from stor.mirror.group_commit import (
    Alone,
    Commits,
    GroupCommit,
    reports_errors,
    unwritten_bytes,
)
from stor.mirror.health import Health
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.pools import DiskPools
from stor.prometheus import Figures
from stor.threads import Outcomes, ThreadPool

#: Threads a disk for reading: enough for its queue to be sorted.
DISK_READERS = 4

#: Uploads that write to a disk at once. They wait for fsync(2) most of the time, and a journal
#: brings all that wait to stable storage together; more would be no faster.
DISK_WRITERS = 16

#: How far uploads take second place to what is answered at once, where the processor is short of
#: both. With much more, on a host that is busy with other programs, a thread that has the
#: interpreter's lock could be kept from running for long, and all others with it.
WRITERS_NICE = 5

#: Memory for what the disks know of their last directories: all that two of them can make use of.
BLOCKS_BYTES = 4 * 1024 * 1024


@attrs.frozen
class Writer:
    """The process that looks after the storages, as one that only reads tells it what it meets.

    A sample that lacks a good copy, a disk with errors, block sums that a copy lacks. `reader` is
    the number of this one among those that read.
    """

    reader: int
    mend: Callable[[Digest, Mirror], None]
    probe_soon: Callable[[str], None]
    keep_sums: Callable[[MadeSums], None]


@attrs.frozen
class Fleet:
    """The disks of a configuration."""

    mirrors: list[Mirror]
    known_disks: KnownDisks

    @property
    def members(self) -> list[Member]:
        """Every disk."""
        return [member for mirror in self.mirrors for member in mirror.members]


class Disks:
    """Every disk that ever was configured.

    One that comes back has its threads again, and what is still being written to it.
    """

    def __init__(
        self,
        clock: IReactorTime,
        outcomes: Outcomes,
        files: Syscalls,
        figures: Figures,
        writer: Writer | None,
    ) -> None:
        """With a `writer` this process only reads."""
        self._clock = clock
        self._outcomes = outcomes
        self._files = files
        self._figures = figures
        self._writer = writer
        self._blocks = Blocks(BLOCKS_BYTES)
        self._verified_small = VerifiedSmall()
        self._members: dict[str, Member] = {}

    @property
    def members(self) -> Collection[Member]:
        """All of them."""
        return self._members.values()

    def fleet(
        self, chosen: Config, known: Sequence[Mirror], remembered: Mapping[str, Remembered]
    ) -> Fleet:
        """The disks of a configuration; a mirror that is `known` stays itself.

        `remembered` is what the state directory knows of disks.
        """
        known_disks = KnownDisks(chosen.sets, remembered)
        mirrors = {tuple(m.root for m in mirror.members): mirror for mirror in known}

        def member(root: str) -> Member:
            if root not in self._members:
                self._members[root] = self._member(root, chosen, known_disks)
            return self._members[root]

        return Fleet(
            [
                mirrors.get(roots)
                or Mirror(
                    [member(root) for root in roots],
                    own_file_systems=chosen.require_mount,
                )
                for roots in chosen.sets
            ],
            known_disks,
        )

    def _member(self, root: str, chosen: Config, known_disks: KnownDisks) -> Member:
        clock, outcomes = self._clock, self._outcomes
        writable = bool(chosen.writable.search(root))
        health = Health(clock.seconds, writable, chosen.reserve_bytes)
        device = _forbidden_device(chosen)
        disk = Disk(
            root,
            self._files,
            device,
            self._blocks,
            keeps_sums=self._writer is None,
            verified_small=self._verified_small,
        )
        writers = ThreadPool(outcomes, f"write {root}", DISK_WRITERS, nice=WRITERS_NICE)
        alone = Alone(disk, writers)
        commits: Commits = alone
        if reports_errors():
            threads = ThreadPool(outcomes, f"commit {root}", 2, nice=WRITERS_NICE)
            commits = GroupCommit(alone, threads, unwritten_bytes, outcomes)
        workers = DiskPools(
            readers=ThreadPool(outcomes, f"read {root}", DISK_READERS),
            writers=writers,
            prober=ThreadPool(outcomes, f"probe {root}", 1),
            commits=commits,
        )
        return Member(
            disk,
            health,
            workers,
            clock,
            known_disks,
            self._figures.disk(root),
            None if self._writer is None else self._writer.probe_soon,
            DiskLock(disk) if self._writer is None else None,
            None if self._writer is None else self._writer.keep_sums,
            keeps_names=self._writer is None,
        )


def adapt(members: Iterable[Member], chosen: Config, known_disks: KnownDisks) -> None:
    """Tell disks what a configuration says of them."""
    for member in members:
        member.follow(known_disks)
        member.disk.forbid(_forbidden_device(chosen))
        writable = bool(chosen.writable.search(member.root))
        member.health.follow(writable=writable, reserve_bytes=chosen.reserve_bytes)


def _forbidden_device(chosen: Config) -> int | None:
    """The file system that no disk is on, with `require_mount`."""
    return os.stat("/").st_dev if chosen.require_mount else None
