"""How often a scrub reads a disk, and how far apart: `python -m bench.scrub_reads`, as root.

A loop device with a fresh file system is filled in random order, as a disk is, and read with
nothing in memory by what a scrub is made of. The kernel counts how often the device is read
(`/sys/block/loopN/stat`), and says where on it each sample lies (FS_IOC_FIEMAP), whatever else the
machine does. Samples share directories as on a full disk; for that their names begin with other
digits than their hashes, which changes what a scrub says of them, and nothing of what it reads.
"""

import argparse
import fcntl
import hashlib
import os
import random
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import attrs

from bench.device_reads import LoopDisk
from bench.machine import temporary_directory
from bench.process import Failed
from bench.report import columns
from stor.digest import Digest
from stor.disk.disk import Disk
from stor.disk.syscalls import Syscalls
from stor.disk.verification import Verification
from stor.disk.walk import WalkedSample, first_directories, leaves_of, samples_in
from stor.jobs.scrub import BATCH_DIRECTORIES, REGION_BATCHES

SAMPLES = 100_000
SAMPLE_BYTES = 4096
#: On a disk with a hundred million.
SAMPLES_A_DIRECTORY = 6

#: Reads that are no further apart need no seek worth the name.
NEAR_BYTES = 1024 * 1024

#: ext4 has an inode for every 16 KiB. Sparse: next to nothing is written.
DISK_BYTES = 8 * 2**30

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQ32x")


@attrs.frozen
class Found:
    """What a scrub of all samples took; times in seconds."""

    file_system: str
    reads: float
    reads_of_names: float
    near: float
    took: float
    processor: float


def fill(point: Path, samples: int, a_directory: int) -> None:
    """Store samples in random order, a fixed number in each of the lowest directories."""
    rng, directories = random.Random(1), samples // a_directory
    for _ in range(samples):
        content = rng.randbytes(SAMPLE_BYTES)
        leaf = rng.randrange(directories)
        name = f"{leaf:06X}{hashlib.sha256(content).hexdigest().upper()[6:]}"
        path = point / Digest.parse(name).disk_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def regions(disk: Disk) -> Iterator[list[tuple[int, str]]]:
    """The lowest directories, as a scrub sorts them."""
    found: list[tuple[int, str]] = []
    for first in first_directories(disk)[0]:
        found += leaves_of(disk, first, _at_once).entries
        if len(found) >= BATCH_DIRECTORIES * REGION_BATCHES:
            yield sorted(found)
            found = []
    yield sorted(found)


def scrub(file_system: str, loop: LoopDisk, samples: int) -> Found:
    """Read all samples of a filled disk."""
    disk = Disk(str(loop.point), Syscalls())
    disk.identify(loop.point.stat().st_dev)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    before, begun, processor = loop.reads, time.monotonic(), time.process_time()
    order: list[WalkedSample] = []
    of_names = 0
    for region in regions(disk):
        for begin in range(0, len(region), BATCH_DIRECTORIES):
            known = loop.reads
            batch = samples_in(disk, region[begin : begin + BATCH_DIRECTORIES], _at_once)
            of_names += loop.reads - known
            verification = Verification(disk, batch.samples)
            while not verification.go_on().ended:
                pass
            order += batch.samples
    took, used = time.monotonic() - begun, time.process_time() - processor
    if len(order) != samples:
        raise Failed(f"{len(order)} of {samples} samples were read")
    reads = loop.reads - before
    near = share_near(first_byte(loop.point / Digest(one.sha).disk_path) for one in order)
    return Found(file_system, reads / samples, of_names / samples, near, took, used)


def share_near(places: Iterable[int]) -> float:
    """How many of the places are near the one before."""
    steps = [abs(place - before) <= NEAR_BYTES for before, place in pairwise(places)]
    return sum(steps) / len(steps)


def first_byte(path: Path) -> int:
    """Where on its device a file begins (Documentation/filesystems/fiemap.rst)."""
    request = bytearray(_FIEMAP.pack(0, 2**63, 0, 0, 1, 0) + bytes(_EXTENT.size))
    with path.open("rb") as file:
        fcntl.ioctl(file, _FS_IOC_FIEMAP, request)
    place: int = _EXTENT.unpack_from(request, _FIEMAP.size)[1]
    return place


def table(found: Sequence[Found], samples: int) -> str:
    """A line for each file system."""
    heading = ["", "reads", "of names", "within 1 MiB", "us", "us of a core"]
    rows = [
        [
            one.file_system,
            f"{one.reads:.2f}",
            f"{one.reads_of_names:.2f}",
            f"{one.near:.3f}",
            f"{one.took / samples * 1e6:.0f}",
            f"{one.processor / samples * 1e6:.0f}",
        ]
        for one in found
    ]
    return "\n".join([f"a sample, of {samples}", *columns([heading, *rows])])


def main() -> int:
    """Print the table. 0 when all was counted, 1 when something failed."""
    parser = argparse.ArgumentParser(
        "python -m bench.scrub_reads", description="Count a scrub's device reads. As root."
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"how many ({SAMPLES})")
    parser.add_argument(
        "--a-directory",
        type=int,
        default=SAMPLES_A_DIRECTORY,
        help=f"how many lie in each of the lowest directories ({SAMPLES_A_DIRECTORY})",
    )
    parser.add_argument("--directory", type=Path, help="where the disk's image goes")
    options = parser.parse_args()
    found = []
    try:
        for kind in ("ext4", "xfs"):
            with temporary_directory(options.directory) as directory:
                image, point = directory / "image", directory / "disk"
                with LoopDisk.mounted(image, point, kind, DISK_BYTES) as loop:
                    fill(loop.point, options.samples, options.a_directory)
                    found.append(scrub(kind, loop, options.samples))
    except (Failed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(found, options.samples))
    return 0


def _at_once(reads: int) -> None:
    """No rest: nobody else uses the disk."""


if __name__ == "__main__":
    sys.exit(main())
