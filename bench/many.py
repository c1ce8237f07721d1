"""Many samples in one answer, beside a GET of each: `python -m bench.many`.

`POST /batch` of samples that are all in memory, the GETs of the same samples by sixteen clients
that keep their connections, and the *floor*: a loop that opens, reads and hashes each and writes a
TAR to a socket, with neither HTTP nor Stor. Each is on a core of its own.
"""

import argparse
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.clients import Answer, Clients, Task, request_head
from bench.machine import temporary_directory
from bench.process import Cores, Failed, cpu_seconds, pinned
from bench.report import columns
from bench.samples import Bodies, Body
from bench.servers import StorServer
from bench.workloads import fetches, store_many
from stor.http.batch import header

SAMPLES = 10_000
SAMPLE_BYTES = 10 * 1024
CLIENTS = 16
ROUNDS = 5

_BLOCK = 512
_STEP_BYTES = 1024**2


def taken(connection: socket.socket) -> int:
    """Everything that comes until the end; how many bytes that was."""
    total, step = 0, bytearray(_STEP_BYTES)
    while received := connection.recv_into(step):
        total += received
    return total


def batch(base: str, bodies: Sequence[Body]) -> float:
    """Seconds that one answer took with all of them. Raises `Failed`."""
    names = b"".join(body.digest.raw for body in bodies)
    head = request_head("POST", base, "/batch", len(names))
    host, _, port = base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        begun = time.perf_counter()
        close = head[:-2] + b"Connection: close\r\n\r\n"
        connection.sendall(close + names)
        answer = connection.recv(2**16)
        if Answer(answer).status != 200:
            raise Failed(f"/batch was answered {answer[:200]!r}")
        total = len(answer) + taken(connection)
        took = time.perf_counter() - begun
    least = sum(body.size for body in bodies)
    if total < least:
        raise Failed(f"/batch ended after {total} of {least} bytes")
    return took


def floor(paths: Sequence[Path], cores: Cores) -> float:
    """Seconds that the same takes a loop without a server."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        os.sched_setaffinity(0, cores.server)
        _write(paths, theirs)
        os._exit(0)
    theirs.close()
    begun = time.perf_counter()
    taken(ours)
    took = time.perf_counter() - begun
    ours.close()
    if os.waitpid(child, 0)[1]:
        raise Failed("a file does not have the SHA-256 of its name")
    return took


def _write(paths: Sequence[Path], connection: socket.socket) -> None:
    parts: list[bytes] = []
    size = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        status = os.fstat(fd)
        content = os.pread(fd, status.st_size, 0)
        os.close(fd)
        name = hashlib.sha256(content).hexdigest()
        if name.upper() != path.stem:
            os._exit(1)
        head = header(name, status.st_size, status.st_mtime_ns)
        parts += (head, content, bytes(-status.st_size % _BLOCK))
        size += status.st_size
        if size >= _STEP_BYTES:
            connection.sendall(b"".join(parts))
            parts, size = [], 0
    connection.sendall(b"".join(parts))


def from_memory(directory: Path, samples: int, rounds: int) -> str:
    """Turn and turn about; the median of each."""
    cores = Cores.one_each()
    server = StorServer(directory, cores, workers=1, reserve_bytes=0, scrub_days=0)
    bodies = [body for body, _ in zip(Bodies(SAMPLE_BYTES), range(samples), strict=False)]
    server.start()
    try:
        store_many(server, bodies)
        paths = [server.sets[0][0] / body.digest.disk_path for body in bodies]
        found: dict[str, list[tuple[float, float]]] = {}
        with pinned(cores.client):
            for _ in range(rounds + 1):  # the first is not counted
                used = cpu_seconds(server.pid)
                done = Clients(server.base, CLIENTS).run(_once(server, bodies), 300)
                between = cpu_seconds(server.pid)
                found.setdefault("GET", []).append((done.seconds, between - used))
                took = batch(server.base, bodies)
                processor = cpu_seconds(server.pid) - between
                found.setdefault("/batch", []).append((took, processor))
                took = floor(paths, cores)
                found.setdefault("floor", []).append((took, took))
    finally:
        server.stop()
    middle = {name: sorted(times[1:])[rounds // 2] for name, times in found.items()}
    gets = middle["GET"][0]
    rows = [("", "samples a second", "us of a core", "times GET")]
    for name, (took, processor) in middle.items():
        each = processor / samples * 1e6
        rows.append((name, f"{samples / took:,.0f}", f"{each:.0f}", f"{gets / took:.1f}"))
    return "\n".join(columns(rows))


def _once(server: StorServer, bodies: Sequence[Body]) -> Iterator[Task]:
    for task, _ in zip(fetches(server, bodies), bodies, strict=False):
        yield task


def main() -> int:
    """Print the table. 0 when all was measured, 1 when something failed."""
    parser = argparse.ArgumentParser("python -m bench.many", description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--directory", type=Path, help="where the disks are")
    given = parser.parse_args()
    try:
        with temporary_directory(given.directory) as path:
            print(from_memory(path, given.samples, given.rounds))
    except (Failed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
