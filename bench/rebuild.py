"""How many samples a second a rebuild puts on a blank disk: `python -m bench.rebuild`.

A set of two directories, of which one holds samples in random order. Each sync of the blank one
takes 10 ms, as on a hard disk, whatever the machine has; so what is measured is how many syncs a
sample costs, and the processor. Beside it: one sample after the other, as the first version did, of
a part of the samples; and `cp -a` of the same files in the order of their inodes, with one
`sync -f` in the end, where both are without the 10 ms.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import attrs
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.task import Clock

from bench.device_reads import LoopDisk
from bench.machine import temporary_directory
from bench.report import columns
from stor.digest import Digest
from stor.disk.disk import Disk
from stor.disk.identity import KnownDisks
from stor.disk.syscalls import Syscalls
from stor.index.index import Shared
from stor.jobs.long_work import LongWork
from stor.metrics import Metrics
from stor.mirror.group_commit import Alone
from stor.mirror.health import Health
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.pools import DiskPools

T = TypeVar("T")
Args = TypeVarTuple("Args")

SAMPLES = 10_000
SAMPLE_BYTES = 4096
#: Fewer samples for the slow way, one at a time.
ALONE = 200
SYNC_SECONDS = 0.010

_EXT4 = 0xEF53


class SlowSyncs(Syscalls):
    """A disk whose every sync takes its time, and is counted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.syncs = 0

    def sync(self, fd: int) -> None:
        """fsync(2)."""
        self._wait()
        super().sync(fd)

    def sync_all(self, fd: int) -> None:
        """syncfs(2)."""
        self._wait()
        super().sync_all(fd)

    def type_of(self, fd: int) -> int:
        """What it is on may be in memory."""
        return _EXT4

    def _wait(self) -> None:
        self.syncs += 1
        time.sleep(self.seconds)


class _Inline:
    """Does the work at once."""

    def run(self, function: Callable[[*Args], T], *args: *Args) -> Deferred[T]:
        """See `stor.threads.Pool`."""
        return execute(function, *args)

    finish = run

    def stop(self) -> None:
        """See `stor.threads.Pool`."""


@attrs.frozen
class Found:
    """What one way took."""

    way: str
    samples: int
    syncs: float
    seconds: float

    def row(self) -> tuple[str, ...]:
        """For the table."""
        rate = self.samples / self.seconds
        return self.way, f"{self.samples:,}", f"{self.syncs / self.samples:.3f}", f"{rate:,.0f}"


def fill(root: Path, samples: int, size: int) -> list[Digest]:
    """Put samples there in random order; their names."""
    rng, digests = random.Random(1), []
    for _ in range(samples):
        content = rng.randbytes(size)
        digest = Digest(hashlib.sha256(content).digest())
        path = root / digest.disk_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digests.append(digest)
    return digests


def host(roots: Sequence[Path], clock: Clock, syncs: SlowSyncs) -> Mirrors:
    """One set of two disks, the second of which syncs slowly, as it is when it was probed."""
    known = KnownDisks([[str(root) for root in roots]], {})
    members = []
    for root, files in zip(roots, (SlowSyncs(0.0), syncs), strict=True):
        disk = Disk(str(root), files)
        health = Health(clock.seconds, True, 0)
        pools = DiskPools(_Inline(), _Inline(), _Inline(), Alone(disk, _Inline()))
        meter = Metrics().figures.disk(str(root))
        members.append(Member(disk, health, pools, clock, known, meter, keeps_names=True))
    names = LearningNames(
        Shared.create(), clock, lambda name: _Inline(), pace=lambda: lambda reads: None
    )
    mirrors = Mirrors(
        [Mirror(members, own_file_systems=False)],
        known,
        reserve_bytes=0,
        clock=clock,
        now_ns=time.time_ns,
        rng=random.Random(),
        names=names,
        learning=names,
    )
    for patient in (True, False):
        if not patient:
            known.stop_waiting()
        for member in members:
            member.probe()
    return mirrors


def rebuild(roots: Sequence[Path], digests: Sequence[Digest], sync_seconds: float) -> Found:
    """Fill the second disk by the job that does it."""
    clock, syncs = Clock(), SlowSyncs(sync_seconds)
    mirrors = host(roots, clock, syncs)
    work = LongWork(mirrors, clock, time.time, lambda name: _Inline(), lambda data: succeed(None))
    syncs.syncs, begun = 0, time.monotonic()
    work.begin(0)
    took = time.monotonic() - begun
    if not all(member.complete for member in mirrors.members):
        raise SystemExit(f"not complete: {work.jobs.status()}")
    return Found("rebuild", len(digests), syncs.syncs, took)


def one_by_one(roots: Sequence[Path], digests: Sequence[Digest], sync_seconds: float) -> Found:
    """Fill the second disk sample by sample."""
    clock, syncs = Clock(), SlowSyncs(sync_seconds)
    mirrors = host(roots, clock, syncs)
    syncs.syncs, begun = 0, time.monotonic()
    for digest in digests:
        (mirror,) = mirrors.mirrors
        Deferred.fromCoroutine(mirrors.repairs.make_whole(digest, mirror))
    took = time.monotonic() - begun
    lacking = [d for d in digests if not (roots[1] / d.disk_path).exists()]
    if lacking:
        raise SystemExit(f"{len(lacking)} samples were not copied")
    return Found("one by one", len(digests), syncs.syncs, took)


def copied(roots: Sequence[Path], digests: Sequence[Digest]) -> Found:
    """Copy all with `cp -a`, in the order of inodes."""
    paths = [digest.disk_path for digest in digests]
    paths.sort(key=lambda path: os.stat(roots[0] / path).st_ino)
    begun = time.monotonic()
    subprocess.run(
        ["xargs", "-0", "cp", "-a", "--parents", "-t", str(roots[1])],
        input="\0".join(paths),
        text=True,
        cwd=roots[0],
        check=True,
    )
    subprocess.run(["sync", "-f", str(roots[1])], check=True)
    return Found("cp -a", len(digests), 1, time.monotonic() - begun)


def clear(roots: Sequence[Path]) -> None:
    """As before anything was copied, with nothing in memory where that can be had."""
    own = roots[0] / ".stor"
    for path in [*roots[1].iterdir(), *([own] if own.exists() else [])]:
        shutil.rmtree(path)
    os.sync()
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def compare(roots: Sequence[Path], samples: int, size: int, alone: int) -> list[Found]:
    """All ways, each on a blank disk: one by one, the job with slow syncs and without, `cp -a`."""
    digests = fill(roots[0], samples, size)
    ways: list[Callable[[], Found]] = [
        lambda: one_by_one(roots, digests[:alone], SYNC_SECONDS),
        lambda: rebuild(roots, digests, SYNC_SECONDS),
        lambda: rebuild(roots, digests, 0.0),
        lambda: copied(roots, digests),
    ]
    found = []
    for way in ways:
        clear(roots)
        found.append(way())
    return found


def table(found: Sequence[Found]) -> str:
    """A line for each way, and how they compare."""
    alone, slow, quick, copy = found
    rows = [
        ("", "samples", "syncs a sample", "samples a second"),
        *(one.row() for one in (alone, slow)),
        (f"{quick.way}, without the 10 ms", *quick.row()[1:]),
        copy.row(),
    ]
    times = slow.samples / slow.seconds / (alone.samples / alone.seconds)
    return "\n".join(
        [
            *columns(rows),
            f"{times:.0f} times one by one; {copy.seconds / quick.seconds:.2f} of cp -a",
        ]
    )


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m bench.rebuild", description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--bytes", type=int, default=SAMPLE_BYTES)
    parser.add_argument("--directory", type=Path, help="where the disks are, or their images")
    parser.add_argument(
        "--file-system",
        action="append",
        choices=["ext4", "xfs"],
        default=[],
        help="give each disk one of its own, on a loop device; as root, and more than once",
    )
    given = parser.parse_args()
    for kind in given.file_system or [None]:
        with temporary_directory(given.directory) as path, contextlib.ExitStack() as disks:
            roots = [Path(path) / "disk0", Path(path) / "disk1"]
            for root in roots:
                if kind is None:
                    root.mkdir()
                else:
                    image = root.with_suffix(".image")
                    disks.enter_context(LoopDisk.mounted(image, root, kind))
            found = compare(roots, given.samples, given.bytes, ALONE)
            print(f"{kind or 'directories'}\n{table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
