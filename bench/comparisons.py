"""What is built, and the targets. A new comparison is a function here and a line in a table."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from bench.comparison import BareLoop, Comparison, FilledServer, LoadedServer, Sweep
from bench.machine import Programs
from bench.measure import (
    BUSY,
    CPU,
    CPU_PER_GB,
    P99,
    PSS,
    RATE,
    RSS,
    SPEED,
    Target,
    at_least,
    at_most,
)
from bench.process import Cores
from bench.samples import Bodies, ManySamples, any_digest, size_name, sparse_sample
from bench.servers import (
    BareServer,
    NginxServer,
    RcloneServer,
    RegistryServer,
    Server,
    StorServer,
    SumlessServer,
)
from bench.workloads import (
    Batches,
    ManyWrk,
    Tasks,
    Workload,
    Wrk,
    fetches,
    first_fetches,
    misses,
    mixture,
    parts,
    store_many,
    stores,
)
from stor.digest import Digest

KIB, MIB, GIB = 2**10, 2**20, 2**30
CLIENTS = 16
SAMPLES = 20_000
SWEEP_CONNECTIONS = 16
LARGE = (SPEED, CPU_PER_GB, BUSY, PSS, RSS)

SUMLESS = "Stor, no block sums"
NGINX, REGISTRY, RCLONE = "nginx", "docker-registry", "rclone"
FLAT, TREE = (f"bare loop, {layout}, {CLIENTS} threads" for layout in ("flat", "tree"))
FLAT_ALONE = "bare loop, flat, 1 thread"
MIXED, ALONE, SINGLE = "Stor, 90/10", "Stor, GET alone", "Stor, GET alone, 1 client"
TOGETHER, ONE_BY_ONE = "Stor, POST /batch", f"Stor, GET, {CLIENTS} clients"
FEW, MANY = "Stor, 5 thousand samples", "Stor, 500 thousand samples"


@attrs.frozen
class Setup:
    """A directory of its own, the programs, and the cores that every server gets."""

    directory: Path
    programs: Programs
    cores: Cores

    def stor(self, name: str = "Stor", **settings: Any) -> StorServer:
        """A Stor with its disks below the directory."""
        directory = self.directory / name.lower().replace(" ", "-").replace(",", "")
        return StorServer(directory, self.cores, name, **settings)

    def nginx(self, stor: StorServer, *, logs: bool = False) -> NginxServer:
        """An nginx that serves the first disk of a Stor."""
        directory, root = self.directory / "nginx", stor.sets[0][0]
        return NginxServer(directory, root, self.programs, self.cores, logs=logs)

    def bare(self, stor: StorServer) -> list[BareServer]:
        """The least that an answer from the first disk of a Stor takes, and from no disk."""
        return [
            BareServer(
                self.directory / f"bare-{repeats}", stor.sets[0][0], self.cores, repeats=repeats
            )
            for repeats in (False, True)
        ]

    def registry(self) -> RegistryServer:
        """A docker-registry."""
        return RegistryServer(self.directory / "registry", self.programs, self.cores)

    def rclone(self) -> RcloneServer:
        """An rclone."""
        return RcloneServer(self.directory / "rclone", self.programs, self.cores)

    def loop(self, layout: str, threads: int, size: int) -> BareLoop:
        """A bare loop."""
        return BareLoop(self.directory / f"{layout}{threads}", self.cores, layout, threads, size)


def get(size: int, setup: Setup, go: bool = False) -> Comparison:
    """Fetching one sample with wrk, beside nginx and, with `go`, the servers written in Go."""
    clients = CLIENTS * len(setup.cores.client)
    workload = Wrk(setup.directory, setup.programs, setup.cores, size, clients)
    stor = setup.stor()
    servers: list[Server] = [stor, setup.nginx(stor)]
    return _compare(workload, [*servers, *(_go(setup) if go else ())], NGINX)


def any_of_many(size: int, setup: Setup, *, missing: bool = False, go: bool = False) -> Comparison:
    """Fetching any of many samples, none of which Stor has in its own memory."""
    bodies = list(islice(Bodies(size), SAMPLES))
    clients = CLIENTS * len(setup.cores.client)
    place = (setup.directory, setup.programs, setup.cores)
    return _beside_nginx(ManyWrk(*place, bodies, clients, missing=missing), setup, go=go)


def head_of_many(size: int, setup: Setup) -> Comparison:
    """Asking for the headers of many samples. Wrk would wait for the bodies."""
    bodies = list(islice(Bodies(size), SAMPLES))
    title = f"HEAD {size_name(size)}, {SAMPLES} samples, in memory, {CLIENTS} clients"
    tasks = partial(fetches, bodies=bodies, method="HEAD")
    workload = Tasks(title, setup.cores, CLIENTS, tasks, bodies, store_many)
    return _beside_nginx(workload, setup)


def download(size: int, clients: int, setup: Setup) -> Comparison:
    """Fetching one large sample, with clients that discard it."""
    stored = [next(Bodies(size))]
    title = f"GET {size_name(size)}, hot, {clients} connection{'s' * (clients > 1)}"
    workload = Tasks(title, setup.cores, clients, partial(fetches, bodies=stored), stored)
    stor = setup.stor()
    built = _compare(workload, [stor, setup.nginx(stor)], NGINX)
    return attrs.evolve(built, measures=LARGE)


def first_download(size: int, setup: Setup) -> Comparison:
    """Fetching a large sample that is in memory and has to be verified."""
    body = next(Bodies(size))
    stor = setup.stor()
    tasks = partial(first_fetches, body=body, disks=stor.sets[0])
    title = f"GET {size_name(size)}, in memory, not verified lately, 1 connection"
    workload = Tasks(title, setup.cores, 1, tasks, [body])
    built = _compare(workload, [stor, setup.nginx(stor)], NGINX)
    return attrs.evolve(built, measures=LARGE)


def ranges(size: int, setup: Setup) -> Comparison:
    """Fetching parts of a very large sample."""
    stor = setup.stor()
    digest = sparse_sample(stor.sets[0], size)
    tasks = partial(parts, digest=digest, size=size, length=MIB)
    workload = Tasks(f"GET of 1 MiB anywhere in {size_name(size)}", setup.cores, 1, tasks)
    built = _compare(workload, [stor, setup.nginx(stor)], NGINX)
    return attrs.evolve(built, measures=(RATE, P99, CPU, BUSY, PSS, RSS))


def head(setup: Setup) -> Comparison:
    """Asking for a sample's headers."""
    stored = [next(Bodies(4 * KIB))]
    tasks = partial(fetches, bodies=stored, method="HEAD")
    title = f"HEAD of a hot sample, {CLIENTS} clients"
    workload = Tasks(title, setup.cores, CLIENTS, tasks, stored)
    stor = setup.stor()
    return _compare(workload, [stor, setup.nginx(stor)], NGINX)


def missing(setup: Setup) -> Comparison:
    """Asking for samples that are not stored."""
    stor = setup.stor()
    return _compare(_missing(setup), [stor, setup.nginx(stor)], NGINX)


def post(size: int, setup: Setup, go: bool = False) -> Comparison:
    """Storing, beside loops that do the same to the disks without HTTP."""
    servers: list[Server] = [setup.stor(), *(_go(setup) if go else ())]
    built = _compare(_posting(setup, size, CLIENTS), servers, FLAT)
    loops = [setup.loop(layout, CLIENTS, size) for layout in ("flat", "tree")]
    return attrs.evolve(built, subjects=[*built.subjects, *loops])


def upload(size: int, setup: Setup) -> Comparison:
    """Storing large samples, one at a time."""
    built = _compare(_posting(setup, size, 1), [setup.stor()], FLAT_ALONE)
    subjects = [*built.subjects, setup.loop("flat", 1, size)]
    return attrs.evolve(built, subjects=subjects, measures=LARGE)


def sums(size: int, setup: Setup) -> Comparison:
    """What block sums cost an upload."""
    without = SumlessServer(setup.directory / "sumless", setup.cores, SUMLESS)
    built = _compare(_posting(setup, size, 1), [setup.stor(), without], SUMLESS)
    return attrs.evolve(built, measures=LARGE)


def mixed(setup: Setup) -> Comparison:
    """Fetching small samples, and storing a larger one now and then."""
    servers: list[Server] = [setup.stor(), setup.rclone()]
    built = _compare(_mixing(setup), servers, RCLONE)
    return attrs.evolve(built, title=f"{built.title}; p99 is that of the GETs")


def latency(setup: Setup) -> Comparison:
    """How long a GET takes while samples are stored, and while none are."""
    mixing = _mixing(setup)
    alone = attrs.evolve(mixing, tasks=partial(fetches, bodies=mixing.stored))
    workloads = {MIXED: mixing, ALONE: alone, SINGLE: attrs.evolve(alone, clients=1)}
    subjects = [LoadedServer(setup.stor(name), workload) for name, workload in workloads.items()]
    title = f"how long GETs take, {mixing.title}"
    return Comparison(title, subjects, ALONE, measures=(P99, RATE, CPU, BUSY, PSS, RSS))


def batch(setup: Setup) -> Comparison:
    """Fetching ten thousand samples in one answer, and one by one over connections that stay."""
    size, cores = 10 * KIB, setup.cores
    bodies = list(islice(Bodies(size), 10_000))
    title = f"{len(bodies)} samples of {size_name(size)}, in memory"
    one_by_one = partial(fetches, bodies=bodies)
    workloads: dict[str, Workload] = {
        TOGETHER: Batches(title, cores, bodies),
        ONE_BY_ONE: Tasks(title, cores, CLIENTS, one_by_one, bodies, store_many),
    }
    subjects = [
        LoadedServer(setup.stor(name, cache_bytes=0), workload)
        for name, workload in workloads.items()
    ]
    return Comparison(f"{title}; a request is a sample", subjects, ONE_BY_ONE)


def sets(kind: str, setup: Setup) -> Comparison:
    """What many sets cost, without samples in memory."""
    stored = list(islice(Bodies(4 * KIB), 100))
    fetching = partial(fetches, bodies=stored)
    workloads: dict[str, Workload] = {
        "missing": _missing(setup),
        "get": Tasks("GET of 100 samples, 4 KiB", setup.cores, CLIENTS, fetching, stored),
        "post": _posting(setup, 4 * KIB, CLIENTS),
    }
    servers = [
        setup.stor(f"Stor, {count} sets", sets=count, cache_bytes=0) for count in (200, 24, 2)
    ]
    return _compare(workloads[kind], servers, servers[-1].name)


def samples(setup: Setup) -> Comparison:
    """What many samples cost when one is asked for that is not stored."""
    subjects = []
    for name, count in ((MANY, 500_000), (FEW, 5000)):
        many = ManySamples(count)
        workload = _missing(setup, many.missing_digest)
        stor = setup.stor(name, copies=1)
        subjects.append(FilledServer(stor, workload, stor.sets[0], many))
    return Comparison(workload.title, subjects, FEW)


@attrs.frozen
class Plan:
    """How a comparison is built, on which cores, and Stor's targets."""

    build: Callable[[Setup], Comparison]
    targets: Sequence[Target] = ()
    cores: Callable[[], Cores] = Cores.one_each

    def comparison(self, name: str, setup: Setup) -> Comparison:
        """The comparison. Memory has a target everywhere: so much, and more a further process."""
        built = self.build(setup)
        title = f"{name}: {built.title}, {setup.cores.title}"
        memory = at_most(PSS, 150 + 60 * (len(setup.cores.server) - 1))
        return attrs.evolve(built, title=title, targets=[*self.targets, memory])


ALL = Cores.all_for_both
COMPARISONS: dict[str, Plan] = {
    "get-4k": Plan(partial(get, 4 * KIB, go=True), [at_least(RATE, 0.35, NGINX)]),
    "get-64k": Plan(partial(get, 64 * KIB, go=True), [at_least(RATE, 0.45, NGINX)]),
    "any-4k": Plan(partial(any_of_many, 4 * KIB), [at_least(RATE, 0.35, NGINX)]),
    "any-64k": Plan(partial(any_of_many, 64 * KIB), [at_least(RATE, 0.45, NGINX)]),
    "any-head": Plan(partial(head_of_many, 4 * KIB), [at_least(RATE, 0.4, NGINX)]),
    "any-missing": Plan(partial(any_of_many, 4 * KIB, missing=True), [at_least(RATE, 0.4, NGINX)]),
    "get-1m": Plan(partial(download, MIB, 4)),
    "get-100m": Plan(
        partial(download, 100 * MIB, 1),
        [at_least(SPEED, 0.9, NGINX), at_most(CPU_PER_GB, 1.2, NGINX)],
    ),
    "get-100m-first": Plan(partial(first_download, 100 * MIB), [at_least(SPEED, 0.5, NGINX)]),
    "range-10g": Plan(partial(ranges, 10 * GIB)),
    "head": Plan(head),
    "missing": Plan(missing),
    "post-4k": Plan(partial(post, 4 * KIB)),
    "post-64k": Plan(
        partial(post, 64 * KIB, go=True), [at_least(RATE, 0.6, loop) for loop in (FLAT, TREE)]
    ),
    "post-200m": Plan(partial(upload, 200 * MIB), [at_least(SPEED, 0.7, FLAT_ALONE)]),
    "post-200m-sums": Plan(
        partial(sums, 200 * MIB),
        [at_least(SPEED, 0.95, SUMLESS), at_most(CPU_PER_GB, 1.05, SUMLESS)],
    ),
    "mixed": Plan(mixed),
    "latency": Plan(latency, [at_most(P99, 3, ALONE)]),
    "get-4k-all": Plan(
        partial(get, 4 * KIB, go=True),
        [at_least(RATE, 1, REGISTRY), at_least(RATE, 2, RCLONE)],
        ALL,
    ),
    "any-4k-all": Plan(
        partial(any_of_many, 4 * KIB, go=True),
        [at_least(RATE, 2, REGISTRY), at_least(RATE, 2, RCLONE)],
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
    "batch": Plan(batch, [at_least(RATE, 5, ONE_BY_ONE)]),
    "sets-missing": Plan(partial(sets, "missing")),
    "sets-get": Plan(partial(sets, "get")),
    "sets-post": Plan(partial(sets, "post")),
    "samples-missing": Plan(samples, [at_least(RATE, 0.9, FEW), at_most(CPU, 1.1, FEW)]),
}


def sizes(setup: Setup) -> Sweep:
    """GET of samples of several sizes."""
    workloads: dict[int, Workload] = {
        size: Wrk(setup.directory, setup.programs, setup.cores, size, SWEEP_CONNECTIONS)
        for size in (KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB)
    }
    title = f"GET, hot, {SWEEP_CONNECTIONS} connections, {setup.cores.title}"
    return Sweep(title, "sample size", size_name, _sweep_servers(setup), workloads)


def connections(setup: Setup) -> Sweep:
    """GET over several numbers of connections."""
    workloads: dict[int, Workload] = {
        count: Wrk(setup.directory, setup.programs, setup.cores, 4 * KIB, count)
        for count in (1, 4, 16, 64, 256, 1000)
    }
    title = f"GET 4 KiB, hot, {setup.cores.title}"
    return Sweep(title, "connections", str, _sweep_servers(setup), workloads)


SWEEPS: Mapping[str, Callable[[Setup], Sweep]] = {"sizes": sizes, "connections": connections}


def _compare(workload: Workload, servers: Sequence[Server], reference: str) -> Comparison:
    subjects = [LoadedServer(server, workload) for server in servers]
    return Comparison(workload.title, subjects, reference)


def _beside_nginx(workload: Workload, setup: Setup, *, go: bool = False) -> Comparison:
    """Stor, which keeps no samples, and nginx, both with access logs, and bare Twisted or Go."""
    stor = setup.stor(cache_bytes=0)
    others = _go(setup) if go else setup.bare(stor)
    return _compare(workload, [stor, setup.nginx(stor, logs=True), *others], NGINX)


def _go(setup: Setup) -> list[Server]:
    return [setup.registry(), setup.rclone()]


def _posting(setup: Setup, size: int, clients: int) -> Tasks:
    title = f"POST {size_name(size)}, {clients} client{'s' * (clients > 1)}"
    return Tasks(title, setup.cores, clients, partial(stores, bodies=Bodies(size)))


def _missing(setup: Setup, digest: Callable[[], Digest] = any_digest) -> Tasks:
    title = f"404, GET and HEAD in turn, {CLIENTS} clients"
    return Tasks(title, setup.cores, CLIENTS, partial(misses, digest=digest))


def _mixing(setup: Setup) -> Tasks:
    stored = list(islice(Bodies(4 * KIB), 100))
    return Tasks(
        f"GET 4 KiB 90 %, POST 64 KiB 10 %, {CLIENTS} clients",
        setup.cores,
        CLIENTS,
        partial(mixture, stored=stored, new=Bodies(64 * KIB)),
        stored,
    )


def _sweep_servers(setup: Setup) -> list[Server]:
    stor = setup.stor()
    return [stor, setup.nginx(stor), setup.rclone()]
