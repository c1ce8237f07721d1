"""What is measured beside what. A new one is a function here and a line in `COMPARISONS`."""

from collections.abc import Callable
from pathlib import Path

from bench.comparison import Comparison
from bench.contender import BareLoop, Loaded
from bench.cores import Cores
from bench.get import Get
from bench.nginx_server import NginxServer
from bench.post import Post
from bench.programs import Programs
from bench.stor_server import StorServer

KIB = 1024
CLIENTS = 16


def get_small(directory: Path, programs: Programs, cores: Cores) -> Comparison:
    """Fetching, beside nginx with the same file."""
    workload = Get(directory, programs, cores, 4 * KIB, CLIENTS)
    stor = StorServer(directory / "stor", programs, cores)
    nginx = NginxServer(directory / "nginx", stor.disks[0], programs, cores)
    return Comparison(workload.title, [Loaded(stor, workload), Loaded(nginx, workload)])


def post_medium(directory: Path, programs: Programs, cores: Cores) -> Comparison:
    """Storing, beside loops that do to the disks what has to be done, without HTTP."""
    size = 64 * KIB
    workload = Post(cores, size, CLIENTS)
    stor = StorServer(directory / "stor", programs, cores)
    loops = [
        BareLoop(directory / f"{layout}{threads}", cores, layout, threads, size)
        for layout, threads in (("flat", 1), ("flat", CLIENTS), ("tree", CLIENTS))
    ]
    return Comparison(workload.title, [Loaded(stor, workload), *loops])


COMPARISONS: dict[str, Callable[[Path, Programs, Cores], Comparison]] = {
    "get": get_small,
    "post": post_medium,
}
