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
CLIENTS_PER_CORE = 16
LARGE = (SPEED, CPU_PER_GB, BUSY, PSS, RSS)
NGINX, REGISTRY, RCLONE = "nginx", "docker-registry", "rclone"
LOOP = f"bare loop, flat, {CLIENTS_PER_CORE} threads"
MEMORY = at_most(PSS, 150)


def get(size: int, others: bool, *targets: Target, ground: Ground) -> Comparison:
    """Fetching one sample, with wrk."""
    clients = CLIENTS_PER_CORE * len(ground.cores.client)
    workload = Get(ground.directory, ground.programs, ground.cores, size, clients)
    stor = ground.stor()
    servers: list[Server] = [stor, ground.nginx(stor)]
    if others:
        servers += [ground.registry(), ground.rclone()]
    return _compare(ground, workload, servers, NGINX, *targets)


def download(size: int, clients: int, *targets: Target, ground: Ground) -> Comparison:
    """Fetching one large sample, beside nginx, with clients that throw it away."""
    stored = [next(Bodies(size))]
    title = f"GET {size_name(size)}, hot, {clients} connection{'s' * (clients > 1)}"
    workload = Asking(title, ground.cores, clients, partial(fetches, bodies=stored), stored)
    stor = ground.stor()
    compared = _compare(ground, workload, [stor, ground.nginx(stor)], NGINX, *targets)
    return attrs.evolve(compared, measures=LARGE)


def head(*targets: Target, ground: Ground) -> Comparison:
    """Asking for what a sample is like."""
    stored = [next(Bodies(4 * KIB))]
    errands = partial(heads, bodies=stored)
    title = f"HEAD of a hot sample, {CLIENTS_PER_CORE} clients"
    workload = Asking(title, ground.cores, CLIENTS_PER_CORE, errands, stored)
    stor = ground.stor()
    return _compare(ground, workload, [stor, ground.nginx(stor)], NGINX, *targets)


def missing(*targets: Target, ground: Ground) -> Comparison:
    """Asking for samples that nobody has."""
    stor = ground.stor()
    return _compare(ground, _missing(ground), [stor, ground.nginx(stor)], NGINX, *targets)


def post(size: int, others: bool, *targets: Target, ground: Ground) -> Comparison:
    """Storing, beside loops that do to the disks what has to be done, without HTTP."""
    threads = CLIENTS_PER_CORE
    workload = _posting(ground, size, threads)
    servers: list[Server] = [ground.stor()]
    if others:
        servers += [ground.registry(), ground.rclone()]
    compared = _compare(ground, workload, servers, LOOP, *targets)
    layouts = ("flat", "tree") if others else ("flat",)
    loops = [ground.loop(layout, threads, size) for layout in layouts]
    return attrs.evolve(compared, contenders=[*compared.contenders, *loops])


def upload(size: int, *targets: Target, ground: Ground) -> Comparison:
    """Storing large samples, one at a time."""
    compared = _compare(ground, _posting(ground, size, 1), [ground.stor()], "", *targets)
    loop = ground.loop("flat", 1, size)
    contenders = [*compared.contenders, loop]
    return attrs.evolve(compared, contenders=contenders, against=loop.name, measures=LARGE)


def mixed(*targets: Target, ground: Ground) -> Comparison:
    """Fetching small samples and now and then storing a larger one."""
    servers: list[Server] = [ground.stor(), ground.rclone()]
    compared = _compare(ground, _mixing(ground), servers, RCLONE, *targets)
    return attrs.evolve(compared, title=f"{compared.title}; p99 is that of the GETs")


def latency(ground: Ground) -> Comparison:
    """How long a GET takes while samples are stored, and while none are."""
    mixing = _mixing(ground)
    errands = partial(fetches, bodies=mixing.stored)
    alone = attrs.evolve(mixing, errands=errands)
    single = attrs.evolve(alone, clients=1)
    names = ("Stor, 90/10", "Stor, GET alone", "Stor, GET alone, 1 client")
    contenders = [
        Loaded(ground.stor(name), workload)
        for name, workload in zip(names, (mixing, alone, single), strict=True)
    ]
    return Comparison(
        f"how long a GET of 4 KiB takes under {mixing.title}, {ground.cores.title}",
        contenders,
        names[1],
        [at_most(P99, 3, names[1]), MEMORY],
        (P99, RATE, CPU, BUSY, PSS, RSS),
    )


def sets(kind: str, ground: Ground) -> Comparison:
    """What it costs that there are many sets, with nothing in memory but where samples are."""
    stored, crew = list(islice(Bodies(4 * KIB), 100)), (ground.cores, CLIENTS_PER_CORE)
    workloads: dict[str, Workload] = {
        "missing": _missing(ground),
        "get": Asking("GET of 100 samples, 4 KiB", *crew, partial(fetches, bodies=stored), stored),
        "post": _posting(ground, 4 * KIB, CLIENTS_PER_CORE),
    }
    servers = [
        ground.stor(f"Stor, {count} sets", sets=count, cache_bytes=0) for count in (200, 24, 2)
    ]
    return _compare(ground, workloads[kind], servers, servers[-1].name)


def crowds(ground: Ground) -> Comparison:
    """What it costs that there are many samples, to one that nobody has."""
    contenders = []
    for samples, name in ((500_000, "Stor, 500 thousand samples"), (5000, "Stor, 5 thousand")):
        crowd = Crowd(samples)
        workload = _missing(ground, crowd.stranger)
        stor = ground.stor(name, copies=1)
        contenders.append(Crowded(stor, workload, stor.sets[0], crowd))
    targets = [at_least(RATE, 0.9, name), at_most(CPU, 1.1, name), MEMORY]
    return Comparison(f"{workload.title}, {ground.cores.title}", contenders, name, targets)


@attrs.frozen
class Plan:
    """How a comparison is made, and on which cores."""

    build: Callable[..., Comparison]
    cores: Callable[[], Cores] = Cores.one_each


ALL = Cores.all_for_both
COMPARISONS: dict[str, Plan] = {
    "get-4k": Plan(partial(get, 4 * KIB, True, at_least(RATE, 0.35, NGINX))),
    "get-64k": Plan(partial(get, 64 * KIB, True, at_least(RATE, 0.45, NGINX))),
    "get-1m": Plan(partial(download, MIB, 4)),
    "get-100m": Plan(
        partial(
            download, 100 * MIB, 1, at_least(SPEED, 0.9, NGINX), at_most(CPU_PER_GB, 1.2, NGINX)
        )
    ),
    "head": Plan(head),
    "missing": Plan(missing),
    "post-4k": Plan(partial(post, 4 * KIB, False)),
    "post-64k": Plan(partial(post, 64 * KIB, True, at_least(RATE, 0.6, LOOP))),
    "post-200m": Plan(
        partial(upload, 200 * MIB, at_least(SPEED, 0.7, "bare loop, flat, 1 thread"))
    ),
    "mixed": Plan(mixed),
    "latency": Plan(latency),
    "get-4k-all": Plan(
        partial(get, 4 * KIB, True, at_least(RATE, 1, REGISTRY), at_least(RATE, 2, RCLONE)), ALL
    ),
    "get-64k-all": Plan(partial(get, 64 * KIB, True), ALL),
    "get-1m-all": Plan(partial(download, MIB, 4), ALL),
    "get-100m-all": Plan(partial(download, 100 * MIB, 2), ALL),
    "head-all": Plan(head, ALL),
    "missing-all": Plan(missing, ALL),
    "post-4k-all": Plan(partial(post, 4 * KIB, False), ALL),
    "post-64k-all": Plan(
        partial(post, 64 * KIB, True, at_least(RATE, 0.6, RCLONE), at_least(RATE, 0.9, RCLONE)),
        ALL,
    ),
    "post-200m-all": Plan(partial(upload, 200 * MIB), ALL),
    "mixed-all": Plan(mixed, ALL),
    "sets-missing": Plan(partial(sets, "missing")),
    "sets-get": Plan(partial(sets, "get")),
    "sets-post": Plan(partial(sets, "post")),
    "crowds": Plan(crowds),
}


def _compare(
    ground: Ground, workload: Workload, servers: Sequence[Server], against: str, *targets: Target
) -> Comparison:
    contenders = [Loaded(server, workload) for server in servers]
    title = f"{workload.title}, {ground.cores.title}"
    return Comparison(title, contenders, against, [*targets, MEMORY])


def _posting(ground: Ground, size: int, clients: int) -> Asking:
    title = f"POST {size_name(size)}, {clients} client{'s' * (clients > 1)}"
    return Asking(title, ground.cores, clients, partial(stores, bodies=Bodies(size)))


def _missing(ground: Ground, stranger: Callable[[], Digest] = any_digest) -> Asking:
    title = f"404, GET and HEAD in turn, {CLIENTS_PER_CORE} clients"
    return Asking(title, ground.cores, CLIENTS_PER_CORE, partial(misses, stranger=stranger))


def _mixing(ground: Ground) -> Asking:
    stored = list(islice(Bodies(4 * KIB), 100))
    return Asking(
        f"GET 4 KiB 90 %, POST 64 KiB 10 %, {CLIENTS_PER_CORE} clients",
        ground.cores,
        CLIENTS_PER_CORE,
        partial(mixture, stored=stored, new=Bodies(64 * KIB)),
        stored,
    )
