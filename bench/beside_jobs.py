"""What clients notice of long work, and whether its ETA comes true: `python -m bench.beside_jobs`.

A Stor of three sets, filled; a client fetches samples one after the other, of which the kernel
has some in memory and is told to forget the others before each request. Turn and turn about, no job
runs and one of each kind does: whatever else the machine does is in both. In the end a scrub
runs at a rate, and what it has told of its end at 25, 50 and 75 % is held against the clock.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import attrs

from bench.machine import temporary_directory
from bench.measure import percentile
from bench.process import Cores, Failed
from bench.report import columns
from bench.samples import Bodies, Body
from bench.servers import StorClient, StorServer
from stor.cli.admin_client import Stor as Operator

SAMPLES = 3000
LARGEST_BYTES = 60_000
SECONDS = 5.0
ROUNDS = 3

_OVER = ("done", "failed", "cancelled")
_ADOPT = "import sys; from stor.cli.main import main; sys.exit(main())"


@attrs.define
class Host:
    """A Stor that is filled, its clients and its operator."""

    server: StorServer
    operator: Operator
    client: StorClient
    bodies: Sequence[Body]

    def files(self, body: Body) -> list[Path]:
        """Its copies."""
        paths = [disk / body.digest.disk_path for one in self.server.sets for disk in one]
        return [path for path in paths if path.exists()]

    def fullest(self) -> list[Path]:
        """The disks of the set with most samples."""
        return max(self.server.sets, key=lambda one: sum(1 for _ in one[0].glob("??/??/??/*")))

    def running(self) -> list[Any]:
        """The jobs that are not over."""
        return [job for job in self.operator.get("jobs") if job["state"] not in _OVER]

    def quiet(self) -> None:
        """Wait until no job runs."""
        while self.running():
            time.sleep(0.05)


def scrub(host: Host) -> None:
    """Every disk is read."""
    host.operator.post("scrub")


def walk(host: Host) -> None:
    """Every disk is walked."""
    host.operator.post("rescan")


def drain(host: Host) -> None:
    """What is on the fullest set goes to the others."""
    for job in host.operator.get("jobs"):
        if job["kind"] == "drain" and job["state"] == "done":
            host.operator.post("cancel", job=job["id"])
    host.operator.post("drain", roots=[str(host.fullest()[0])])


def rebuild(host: Host) -> None:
    """A disk is replaced by a blank one."""
    known = {job["id"] for job in host.operator.get("jobs")}
    disk = host.fullest()[1]
    shutil.rmtree(disk)
    disk.mkdir()
    while True:  # until it is known that the old one is away
        adopting = [sys.executable, "-c", _ADOPT, "adopt", "--config"]
        config = disk.parents[1] / "config.json"
        ended = subprocess.run([*adopting, config, disk], check=False, capture_output=True)
        if not ended.returncode:
            break
        time.sleep(1)
    while not [
        job
        for job in host.operator.get("jobs")
        if job["kind"] == "rebuild" and job["id"] not in known
    ]:
        time.sleep(0.02)


KINDS: Sequence[Callable[[Host], None]] = (scrub, walk, drain, rebuild)


def latencies(host: Host, seconds: float, begin: Callable[[Host], None] | None) -> dict[str, float]:
    """The 99th percentiles of a while, in seconds; `begin` is called whenever no job runs."""
    taken: dict[str, list[float]] = {"memory": [], "disk": []}
    rng, where = random.Random(2), cycle(taken)
    looked = 0.0
    hot = host.bodies[:50]
    for body in hot:
        host.client.get(body.digest)
    if begin is not None:
        begin(host)
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        if begin is not None and now - looked > 0.2:
            looked = now
            if not host.running():
                if begin is rebuild:
                    break
                begin(host)
        kind = next(where)
        body = rng.choice(hot if kind == "memory" else host.bodies)
        if kind == "disk":
            for path in host.files(body):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.monotonic()
        host.client.get(body.digest)
        taken[kind].append(time.monotonic() - begun)
    if begin is not None:
        host.quiet()
    return {kind: percentile(some, 0.99) or 0.0 for kind, some in taken.items()}


def compared(host: Host, seconds: float, rounds: int) -> str:
    """A line for each kind."""
    rows: list[tuple[str, ...]] = [
        ("", "memory ms", "beside", "ratio", "disk ms", "beside", "more ms")
    ]
    for begin in KINDS:
        found: list[tuple[dict[str, float], dict[str, float]]] = []
        for _ in range(rounds):
            without = latencies(host, seconds, None)
            found.append((without, latencies(host, seconds, begin)))
        middle = len(found) // 2
        cells = [begin.__name__]
        for kind in ("memory", "disk"):
            pairs = [(a[kind] * 1e3, b[kind] * 1e3) for a, b in found]
            pairs.sort(key=lambda pair: pair[1] / pair[0])
            alone, beside = pairs[middle]
            more = beside / alone if kind == "memory" else beside - alone
            cells += [f"{alone:.2f}", f"{beside:.2f}", f"{more:.2f}"]
        rows.append(tuple(cells))
    return "\n".join(columns(rows))


def eta(host: Host, seconds: float) -> str:
    """What a scrub at a rate tells of its end, and what came."""
    root = host.fullest()[0]
    held = sum(path.stat().st_size for path in root.glob("??/??/??/*"))
    (job,) = host.operator.post(
        "scrub", roots=[str(root)], rate={"bytes_per_second": held / seconds}
    )
    told: dict[float, tuple[float, float]] = {}
    while True:
        (now,) = [one for one in host.operator.get("jobs") if one["id"] == job["id"]]
        for share in (0.05, 0.25, 0.5, 0.75):
            if now["done"] >= share and share not in told and now["eta_seconds"] is not None:
                told[share] = time.monotonic(), now["eta_seconds"]
        if now["state"] in _OVER:
            break
        time.sleep(0.2)
    ended = time.monotonic()
    rows = [("at", "told s", "came s", "off")]
    for share, (at, said) in told.items():
        off = said / (ended - at) - 1
        rows.append((f"{share:.0%}", f"{said:.0f}", f"{ended - at:.0f}", f"{off:+.0%}"))
    return "\n".join(columns(rows))


def main() -> int:
    """Print the tables. 0 when all was measured, 1 when something failed."""
    parser = argparse.ArgumentParser("python -m bench.beside_jobs", description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--directory", type=Path, help="where the disks are")
    given = parser.parse_args()
    rng = random.Random(1)
    try:
        with temporary_directory(given.directory) as path:
            socket = path / "admin.sock"
            server = StorServer(
                path,
                Cores.all_for_both(),
                sets=3,
                workers=1,
                admin_socket=str(socket),
                reserve_bytes=0,
                scrub_days=0,
            )
            server.start()
            try:
                client = StorClient(server.base)
                sizes = [rng.randrange(100, LARGEST_BYTES) for _ in range(given.samples)]
                bodies = [next(Bodies(size)) for size in sizes]
                for body in bodies:
                    client.post(body)
                host = Host(server, Operator(str(socket)), client, bodies)
                host.quiet()
                print(compared(host, given.seconds, given.rounds))
                print(eta(host, 12 * given.seconds))
            finally:
                server.stop()
    except (Failed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
