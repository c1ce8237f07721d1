"""How often one request reads from the disks: `python -m bench.device_reads`, as root.

Stor's disks are loop devices, each with an ext4 of its own. Each kind of request begins with
nothing of them in memory. The kernel counts how often a device is read (`/sys/block/loopN/stat`),
whatever else the machine does. Beside Stor is the *floor*: the fewest system calls that do the
same on the right disks.

Names share 256 directories that exist on every disk, as on full disks.
"""

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path

import attrs

from bench.bare_loop import Tree, store
from bench.machine import temporary_directory
from bench.process import Cores, Failed
from bench.report import columns
from bench.samples import Body
from bench.servers import StorClient, StorServer
from stor.digest import Digest

REQUESTS = 100
BODY_BYTES = 4096

#: With less, mkfs.ext4 takes blocks of 1 KiB. Sparse: next to nothing is written.
DISK_BYTES = 2**30

#: A request is over when the devices were not read for this long.
QUIET_SECONDS = 0.05

#: The first two directories of every name; the third may be any.
PREFIX = b"\x51\x07"
LEAVES = tuple(f"51/07/{number:02X}" for number in range(256))


@attrs.frozen
class LoopDisk:
    """A file system in a sparse file, mounted."""

    point: Path
    device: str

    @classmethod
    @contextlib.contextmanager
    def mounted(
        cls, image: Path, point: Path, file_system: str = "ext4", disk_bytes: int = DISK_BYTES
    ) -> "Iterator[LoopDisk]":
        """Make one, an `ext4` or an `xfs`, for a while. Raises `Failed`."""
        point.mkdir(parents=True)
        with image.open("wb") as file:
            file.truncate(disk_bytes)
        with contextlib.ExitStack() as cleaning:
            cleaning.callback(image.unlink)
            device = _run("losetup", "--find", "--show", str(image)).strip()
            cleaning.callback(_run, "losetup", "--detach", device)
            # Whatever is initialised later would be read and written while requests are counted.
            lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
            making = {"ext4": ("-E", lazy), "xfs": ("-f",)}[file_system]
            _run(f"mkfs.{file_system}", "-q", *making, device)
            options = "noatime,noinit_itable" if file_system == "ext4" else "noatime"
            _run("mount", "-o", options, device, str(point))
            cleaning.callback(_run, "umount", str(point))
            yield cls(point, device)

    @property
    def reads(self) -> int:
        """Reads that the device has completed (Documentation/block/stat.rst, field 1)."""
        return int(Path(f"/sys/block/{Path(self.device).name}/stat").read_text().split()[0])


@attrs.frozen
class Disks:
    """All of them, in mirrored pairs."""

    pairs: Sequence[Sequence[LoopDisk]]

    @classmethod
    @contextlib.contextmanager
    def mounted(cls, directory: Path, sets: Sequence[Sequence[Path]]) -> "Iterator[Disks]":
        """Make one for each path for a while. Raises `Failed`."""
        with contextlib.ExitStack() as mounts:
            numbers = count()
            yield cls(
                [
                    [
                        mounts.enter_context(
                            LoopDisk.mounted(directory / f"image{next(numbers)}", point)
                        )
                        for point in points
                    ]
                    for points in sets
                ]
            )

    @property
    def reads(self) -> int:
        """Reads that all devices have completed."""
        return sum(disk.reads for pair in self.pairs for disk in pair)

    def copies(self, body: Body) -> Sequence[Path]:
        """Where the copies of a stored sample are. Raises `Failed`."""
        for pair in self.pairs:
            paths = [disk.point / body.digest.disk_path for disk in pair]
            if paths[0].exists():
                return paths
        raise Failed(f"{body.digest} is on no disk")

    def mean_reads(self, actions: Sequence[Callable[[], object]]) -> float:
        """Reads an action, of a series that begins with nothing in memory."""
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        before = self._settled_reads()
        for action in actions:
            action()
        return (self._settled_reads() - before) / len(actions)

    def _settled_reads(self) -> int:
        last, now = -1, self.reads
        while last != now:
            time.sleep(QUIET_SECONDS)
            last, now = now, self.reads
        return now


class Samples:
    """Samples whose names share `LEAVES`; one in 65 536 contents has such a name."""

    def __init__(self) -> None:
        self._shared = os.urandom(BODY_BYTES - 8)
        self._hasher = hashlib.sha256(self._shared)
        self._numbers = count()

    def __iter__(self) -> "Samples":
        return self

    def __next__(self) -> Body:
        while True:
            own = next(self._numbers).to_bytes(8)
            hasher = self._hasher.copy()
            hasher.update(own)
            digest = hasher.digest()
            if digest.startswith(PREFIX):
                return Body(self._shared, own, Digest(digest))


def missing_digest() -> Digest:
    """The name of a sample that is not stored, in one of `LEAVES`."""
    return Digest(PREFIX + os.urandom(30))


@attrs.frozen
class Bodies:
    """What is asked for, no sample twice."""

    get: Sequence[Body]
    head: Sequence[Body]
    stored: Sequence[Body]
    new: Sequence[Body]
    new_to_floor: Sequence[Body]

    @classmethod
    def found(cls, requests: int) -> "Bodies":
        """Seek them: some seconds for a hundred."""
        samples = Samples()
        return cls(*(list(islice(samples, requests)) for _ in range(5)))


def reads_of_stor(server: StorServer, disks: Disks, bodies: Bodies) -> dict[str, float]:
    """Reads for each kind of request to a Stor. Raises `Failed`."""
    with _client(server) as client:
        for body in [*bodies.get, *bodies.head, *bodies.stored]:
            client.post(body)

    def mean(actions: Callable[[StorClient], Sequence[Callable[[], object]]]) -> float:
        # A new process has nothing in memory, and probes its disks again in 15 seconds only.
        with _client(server) as client:
            return disks.mean_reads(actions(client))

    return {
        "GET": mean(lambda c: [partial(c.get, body.digest) for body in bodies.get]),
        "HEAD": mean(lambda c: [partial(c.head, body.digest) for body in bodies.head]),
        "404": mean(lambda c: [partial(c.get, missing_digest(), 404) for _ in bodies.get]),
        "POST new": mean(lambda c: [partial(c.post, body) for body in bodies.new]),
        "POST stored": mean(lambda c: [partial(c.post, body, 200) for body in bodies.stored]),
    }


def reads_of_floor(disks: Disks, bodies: Bodies) -> dict[str, float]:
    """Reads for the fewest system calls that do the same to a Stor's disks, without it."""
    with contextlib.ExitStack() as open_roots:
        trees = [
            [open_roots.enter_context(contextlib.closing(Tree(str(disk.point)))) for disk in pair]
            for pair in disks.pairs
        ]
        return {
            "GET": disks.mean_reads([disks.copies(body)[0].read_bytes for body in bodies.get]),
            "HEAD": disks.mean_reads([disks.copies(body)[0].stat for body in bodies.head]),
            "404": 0.0,
            "POST new": disks.mean_reads(
                [partial(store, *each) for each in zip(bodies.new_to_floor, cycle(trees))]
            ),
            "POST stored": disks.mean_reads(
                [partial(_stat, disks.copies(body)) for body in bodies.stored]
            ),
        }


def count_reads(
    directory: Path, disks: int, bodies: Bodies
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Reads by kind of request: Stor's, and the floor. Raises `Failed`, `OSError`."""
    server = StorServer(
        directory,
        Cores.one_each(),
        sets=disks // 2,
        workers=1,
        cache_bytes=0,
        reserve_bytes=0,
        require_mount=True,
    )
    with Disks.mounted(directory, server.sets) as mounted:
        for pair in mounted.pairs:
            for disk in pair:
                for leaf in LEAVES:
                    (disk.point / leaf).mkdir(parents=True)
        return reads_of_stor(server, mounted, bodies), reads_of_floor(mounted, bodies)


def table(found: Mapping[int, tuple[Mapping[str, float], Mapping[str, float]]]) -> str:
    """A line for each kind of request, two columns for each number of disks."""
    heading = ["", *(text for disks in found for text in (f"{disks} disks", "floor"))]
    kinds = next(iter(found.values()))[0]
    rows = [
        [kind, *(f"{reads[kind]:.1f}" for both in found.values() for reads in both)]
        for kind in kinds
    ]
    return "\n".join(["device reads a request", *columns([heading, *rows])])


def main() -> int:
    """Print the table. 0 when all was counted, 1 when something failed."""
    parser = argparse.ArgumentParser(
        "python -m bench.device_reads", description="Count device reads a request. As root."
    )
    parser.add_argument(
        "--disks", type=_even, nargs="+", default=[8, 32], help="numbers of disks (8 32)"
    )
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="requests of each kind (100)"
    )
    parser.add_argument("--directory", type=Path, help="where the disks' images go")
    options = parser.parse_args()
    found = {}
    bodies = Bodies.found(options.requests)
    try:
        for disks in options.disks:
            with temporary_directory(options.directory) as directory:
                found[disks] = count_reads(directory, disks, bodies)
    except (Failed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(found))
    return 0


@contextlib.contextmanager
def _client(server: StorServer) -> Iterator[StorClient]:
    """A client of a server that runs as long as it."""
    try:
        server.start()
        with contextlib.closing(StorClient(server.base)) as client:
            yield client
    finally:
        server.stop()


def _stat(paths: Sequence[Path]) -> None:
    for path in paths:
        path.stat()


def _even(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"expected an even number of disks, found {text}")
    return number


def _run(*command: str) -> str:
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode:
        raise Failed(f"{' '.join(command)}: {ran.stderr.strip()}")
    return ran.stdout


if __name__ == "__main__":
    sys.exit(main())
