"""What is measured beside what. A new one is a function here and a line in `COMPARISONS`."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import attrs

from bench.asking import Asking
from bench.body import Bodies, size_name
from bench.comparison import Comparison
from bench.contender import Crowded, Loaded
from bench.cores import Cores
from bench.crowd import Crowd
from bench.errand import any_digest, fetches, heads, misses, mixture, stores
from bench.get import Get
from bench.ground import Ground
from bench.measure import BUSY, CPU, CPU_PER_GB, P99, PSS, RATE, RSS, SPEED
from bench.server import Server
from bench.target import Target, at_least, at_most
from bench.workload import Workload
from stor.digest import Digest

KIB, MIB = 2**10, 2**20
CLIENTS = 16
LARGE = (SPEED, CPU_PER_GB, BUSY, PSS, RSS)

NGINX, REGISTRY, RCLONE = "nginx", "docker-registry", "rclone"
LOOP, TREE = (f"bare loop, {layout}, {CLIENTS} threads" for layout in ("flat", "tree"))
LOOP_ALONE = "bare loop, flat, 1 thread"
MIXED, ALONE, SINGLE = "Stor, 90/10", "Stor, GET alone", "Stor, GET alone, 1 client"
CROWDS = {"Stor, 500 thousand samples": 500_000, "Stor, 5 thousand samples": 5000}
FEW = "Stor, 5 thousand samples"


def get(size: int, ground: Ground, go: bool = False) -> Comparison:
    """Fetching one sample with wrk, beside nginx and perhaps the servers in Go."""
    clients = CLIENTS * len(ground.cores.client)
    workload = Get(ground.directory, ground.programs, ground.cores, size, clients)
    stor = ground.stor()
    servers: list[Server] = [stor, ground.nginx(stor)]
    return _compare(workload, [*servers, *(_go(ground) if go else ())], NGINX)


def download(size: int, clients: int, ground: Ground) -> Comparison:
    """Fetching one large sample, with clients that throw it away."""
    stored = [next(Bodies(size))]
    title = f"GET {size_name(size)}, hot, {clients} connection{'s' * (clients > 1)}"
    workload = Asking(title, ground.cores, clients, partial(fetches, bodies=stored), stored)
    stor = ground.stor()
    compared = _compare(workload, [stor, ground.nginx(stor)], NGINX)
    return attrs.evolve(compared, measures=LARGE)


def head(ground: Ground) -> Comparison:
    """Asking what a sample is like."""
    stored = [next(Bodies(4 * KIB))]
    errands = partial(heads, bodies=stored)
    title = f"HEAD of a hot sample, {CLIENTS} clients"
    workload = Asking(title, ground.cores, CLIENTS, errands, stored)
    stor = ground.stor()
    return _compare(workload, [stor, ground.nginx(stor)], NGINX)


def missing(ground: Ground) -> Comparison:
    """Asking for samples that nobody has."""
    stor = ground.stor()
    return _compare(_missing(ground), [stor, ground.nginx(stor)], NGINX)


def post(size: int, ground: Ground, go: bool = False) -> Comparison:
    """Storing, beside loops that do to the disks what has to be done, without HTTP."""
    servers: list[Server] = [ground.stor(), *(_go(ground) if go else ())]
    compared = _compare(_posting(ground, size, CLIENTS), servers, LOOP)
    loops = [ground.loop(layout, CLIENTS, size) for layout in ("flat", "tree")]
    return attrs.evolve(compared, contenders=[*compared.contenders, *loops])


def upload(size: int, ground: Ground) -> Comparison:
    """Storing large samples, one at a time."""
    compared = _compare(_posting(ground, size, 1), [ground.stor()], LOOP_ALONE)
    contenders = [*compared.contenders, ground.loop("flat", 1, size)]
    return attrs.evolve(compared, contenders=contenders, measures=LARGE)


def mixed(ground: Ground) -> Comparison:
    """Fetching small samples and now and then storing a larger one."""
    servers: list[Server] = [ground.stor(), ground.rclone()]
    compared = _compare(_mixing(ground), servers, RCLONE)
    return attrs.evolve(compared, title=f"{compared.title}; p99 is that of the GETs")


def latency(ground: Ground) -> Comparison:
    """How long a GET takes while samples are stored, and while none are."""
    mixing = _mixing(ground)
    alone = attrs.evolve(mixing, errands=partial(fetches, bodies=mixing.stored))
    workloads = {MIXED: mixing, ALONE: alone, SINGLE: attrs.evolve(alone, clients=1)}
    contenders = [Loaded(ground.stor(name), workload) for name, workload in workloads.items()]
    title = f"how long GETs take, {mixing.title}"
    return Comparison(title, contenders, ALONE, measures=(P99, RATE, CPU, BUSY, PSS, RSS))


def sets(kind: str, ground: Ground) -> Comparison:
    """What it costs that there are many sets, without samples in memory."""
    stored = list(islice(Bodies(4 * KIB), 100))
    fetching = partial(fetches, bodies=stored)
    workloads: dict[str, Workload] = {
        "missing": _missing(ground),
        "get": Asking("GET of 100 samples, 4 KiB", ground.cores, CLIENTS, fetching, stored),
        "post": _posting(ground, 4 * KIB, CLIENTS),
    }
    servers = [
        ground.stor(f"Stor, {count} sets", sets=count, cache_bytes=0) for count in (200, 24, 2)
    ]
    return _compare(workloads[kind], servers, servers[-1].name)


def samples(ground: Ground) -> Comparison:
    """What it costs that there are many samples, to ask for one that nobody has."""
    contenders = []
    for name, count in CROWDS.items():
        crowd = Crowd(count)
        workload = _missing(ground, crowd.stranger)
        stor = ground.stor(name, copies=1)
        contenders.append(Crowded(stor, workload, stor.sets[0], crowd))
    return Comparison(workload.title, contenders, FEW)


@attrs.frozen
class Plan:
    """How a comparison is made, on which cores, and what is asked of Stor there."""

    build: Callable[[Ground], Comparison]
    targets: Sequence[Target] = ()
    cores: Callable[[], Cores] = Cores.one_each

    def comparison(self, name: str, ground: Ground) -> Comparison:
        """All of it. Memory is bounded everywhere."""
        compared = self.build(ground)
        title = f"{name}: {compared.title}, {ground.cores.title}"
        return attrs.evolve(compared, title=title, targets=[*self.targets, at_most(PSS, 150)])


ALL = Cores.all_for_both
COMPARISONS: dict[str, Plan] = {
    "get-4k": Plan(partial(get, 4 * KIB, go=True), [at_least(RATE, 0.35, NGINX)]),
    "get-64k": Plan(partial(get, 64 * KIB, go=True), [at_least(RATE, 0.45, NGINX)]),
    "get-1m": Plan(partial(download, MIB, 4)),
    "get-100m": Plan(
        partial(download, 100 * MIB, 1),
        [at_least(SPEED, 0.9, NGINX), at_most(CPU_PER_GB, 1.2, NGINX)],
    ),
    "head": Plan(head),
    "missing": Plan(missing),
    "post-4k": Plan(partial(post, 4 * KIB)),
    "post-64k": Plan(
        partial(post, 64 * KIB, go=True), [at_least(RATE, 0.6, loop) for loop in (LOOP, TREE)]
    ),
    "post-200m": Plan(partial(upload, 200 * MIB), [at_least(SPEED, 0.7, LOOP_ALONE)]),
    "mixed": Plan(mixed),
    "latency": Plan(latency, [at_most(P99, 3, ALONE)]),
    "get-4k-all": Plan(
        partial(get, 4 * KIB, go=True),
        [at_least(RATE, 1, REGISTRY), at_least(RATE, 2, RCLONE)],
        ALL,
    ),
    "get-64k-all": Plan(partial(get, 64 * KIB, go=True), cores=ALL),
    "get-1m-all": Plan(partial(download, MIB, 4), cores=ALL),
    "get-100m-all": Plan(partial(download, 100 * MIB, 2), cores=ALL),
    "head-all": Plan(head, cores=ALL),
    "missing-all": Plan(missing, cores=ALL),
    "post-4k-all": Plan(partial(post, 4 * KIB), cores=ALL),
    "post-64k-all": Plan(
        partial(post, 64 * KIB, go=True),
        [at_least(RATE, bound, RCLONE) for bound in (0.6, 0.9)],
        ALL,
    ),
    "post-200m-all": Plan(partial(upload, 200 * MIB), cores=ALL),
    "mixed-all": Plan(mixed, cores=ALL),
    "sets-missing": Plan(partial(sets, "missing")),
    "sets-get": Plan(partial(sets, "get")),
    "sets-post": Plan(partial(sets, "post")),
    "samples-missing": Plan(samples, [at_least(RATE, 0.9, FEW), at_most(CPU, 1.1, FEW)]),
}


def _compare(workload: Workload, servers: Sequence[Server], against: str) -> Comparison:
    contenders = [Loaded(server, workload) for server in servers]
    return Comparison(workload.title, contenders, against)


def _go(ground: Ground) -> list[Server]:
    return [ground.registry(), ground.rclone()]


def _posting(ground: Ground, size: int, clients: int) -> Asking:
    title = f"POST {size_name(size)}, {clients} client{'s' * (clients > 1)}"
    return Asking(title, ground.cores, clients, partial(stores, bodies=Bodies(size)))


def _missing(ground: Ground, stranger: Callable[[], Digest] = any_digest) -> Asking:
    title = f"404, GET and HEAD in turn, {CLIENTS} clients"
    return Asking(title, ground.cores, CLIENTS, partial(misses, stranger=stranger))


def _mixing(ground: Ground) -> Asking:
    stored = list(islice(Bodies(4 * KIB), 100))
    return Asking(
        f"GET 4 KiB 90 %, POST 64 KiB 10 %, {CLIENTS} clients",
        ground.cores,
        CLIENTS,
        partial(mixture, stored=stored, new=Bodies(64 * KIB)),
        stored,
    )
