"""What is measured over a range. A new one is a function here and a line in `SWEEPS`."""

from collections.abc import Callable, Mapping

from bench.body import size_name
from bench.get import Get
from bench.ground import Ground
from bench.server import Server
from bench.sweep import Sweep
from bench.workload import Workload

KIB = 2**10
CONNECTIONS = 16


def sizes(ground: Ground) -> Sweep:
    """GET of samples of several sizes."""
    workloads = {
        size: Get(ground.directory, ground.programs, ground.cores, size, CONNECTIONS)
        for size in (KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB)
    }
    title = f"GET, hot, {CONNECTIONS} connections, {ground.cores.title}"
    return Sweep(title, "sample size", size_name, _servers(ground), workloads)


def connections(ground: Ground) -> Sweep:
    """GET over several numbers of connections."""
    workloads: dict[int, Workload] = {
        count: Get(ground.directory, ground.programs, ground.cores, 4 * KIB, count)
        for count in (1, 4, 16, 64, 256, 1000)
    }
    title = f"GET 4 KiB, hot, {ground.cores.title}"
    return Sweep(title, "connections", str, _servers(ground), workloads)


SWEEPS: Mapping[str, Callable[[Ground], Sweep]] = {"sizes": sizes, "connections": connections}


def _servers(ground: Ground) -> list[Server]:
    stor = ground.stor()
    return [stor, ground.nginx(stor), ground.rclone()]
