"""What a server is given to do: tasks for its clients, and wrk."""

import os
import random
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Protocol

import attrs

from bench.clients import (
    ANSWER_SECONDS,
    Clients,
    Task,
    fetch,
    one_request,
    repeated,
    request_head,
)
from bench.machine import Programs
from bench.measure import Done
from bench.process import Cores, Failed, pinned
from bench.samples import Bodies, Body, any_digest, size_name
from bench.servers import Server
from stor.digest import Digest

_PREPARE_SECONDS = 60.0

#: Storing very many samples.
_FILL_SECONDS = 600.0
_STORING_CLIENTS = 16

#: wrk calls it at its end. Without a function for requests it runs no Lua in between.
_WRK_REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  local refused = %s
  io.write(string.format("\\nbench %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + refused + e.timeout, latency:percentile(99)))
end
"""
_WRK_REFUSED, _WRK_NOT_REFUSED = "e.status", "summary.requests - e.status"

#: With these functions it sends one of many requests, any.
_WRK_REQUESTS = """
local requests = {{}}
function init(arguments)
  math.randomseed({seed})
  for path in io.lines("{paths}") do
    requests[#requests + 1] = wrk.format("GET", path)
  end
end
function request() return requests[math.random(#requests)] end
"""


class Workload(Protocol):
    """Clients that do the same kind of thing over and over."""

    @property
    def title(self) -> str:
        """What they do, how large it is, how many they are."""

    def prepare(self, server: Server) -> None:
        """Store what the clients need. Raises `Failed`."""

    def run(self, server: Server, seconds: float) -> Done:
        """Have all clients work for `seconds`. Raises `Failed`."""


@attrs.frozen
class Tasks:
    """A workload: a number of clients do the tasks that there are for a server.

    What is `stored` is stored before, by `store`, unless the server has it.
    """

    title: str
    cores: Cores
    clients: int
    tasks: Callable[[Server], Iterator[Task]]
    stored: Sequence[Body] = ()
    store: Callable[[Server, Sequence[Body]], None] | None = None

    def prepare(self, server: Server) -> None:
        (self.store or store_before)(server, self.stored)

    def run(self, server: Server, seconds: float) -> Done:
        with pinned(self.cores.client):
            return _run(server, self.clients, self.tasks(server), seconds)


@attrs.frozen
class Batches:
    """A workload: one client fetches all samples in one answer, over and over."""

    title: str
    cores: Cores
    bodies: Sequence[Body]

    def prepare(self, server: Server) -> None:
        store_many(server, self.bodies)

    def run(self, server: Server, seconds: float) -> Done:
        shas = b"".join(body.digest.raw for body in self.bodies)
        request = request_head("POST", server.base, "/batch", len(shas)) + shas
        size = sum(body.size for body in self.bodies)
        with pinned(self.cores.client):
            return repeated(server.base, request, len(self.bodies), size, seconds)


class Wrk:
    """A workload: every client of wrk fetches the same sample, which stays in the page cache."""

    def __init__(
        self, directory: Path, programs: Programs, cores: Cores, size: int, clients: int
    ) -> None:
        self.title = f"GET {size_name(size)}, hot, {clients} connections"
        self._wrk = programs.wrk
        self._cores = cores
        self._clients = clients
        self._body = next(Bodies(size))
        self._report = directory / "report.lua"

    def prepare(self, server: Server) -> None:
        self._report.write_text(_WRK_REPORT % _WRK_REFUSED)
        store_before(server, [self._body])

    def run(self, server: Server, seconds: float) -> Done:
        url = server.base + server.path(self._body.digest)
        options = [self._wrk, "-c", str(self._clients), "-s", str(self._report), url]
        return _run_wrk(server, options, self._clients, self._cores, seconds, self._body.size)


class ManyWrk:
    """A workload: every client of wrk asks for any of many samples, which stay in the page cache.

    With `missing` for as many that are not stored.
    """

    def __init__(
        self,
        directory: Path,
        programs: Programs,
        cores: Cores,
        bodies: Sequence[Body],
        clients: int,
        *,
        missing: bool = False,
    ) -> None:
        asked = "404" if missing else f"GET {size_name(bodies[0].size)}"
        self.title = f"{asked}, any of {len(bodies)} samples, in memory, {clients} connections"
        self._directory = directory
        self._wrk = programs.wrk
        self._cores = cores
        self._clients = clients
        self._bodies = bodies
        self._missing = missing

    def prepare(self, server: Server) -> None:
        store_many(server, self._bodies)
        paths = self._directory / f"{server.name}.paths"
        digests = [any_digest() if self._missing else body.digest for body in self._bodies]
        paths.write_text("".join(f"{server.path(digest)}\n" for digest in digests))
        requests = _WRK_REQUESTS.format(seed=1, paths=paths)
        report = _WRK_REPORT % (_WRK_NOT_REFUSED if self._missing else _WRK_REFUSED)
        self._script(server).write_text(requests + report)

    def run(self, server: Server, seconds: float) -> Done:
        size = 0 if self._missing else self._bodies[0].size
        script = str(self._script(server))
        options = [self._wrk, "-c", str(self._clients), "-s", script, server.base]
        return _run_wrk(server, options, self._clients, self._cores, seconds, size)

    def _script(self, server: Server) -> Path:
        return self._directory / f"{server.name}.lua"


def _run_wrk(
    server: Server, command: list[str], clients: int, cores: Cores, seconds: float, size: int
) -> Done:
    """Run wrk, whose every answer brings `size` bytes. Raises `Failed`."""
    threads = min(clients, len(cores.client))
    length, timeout = f"{max(1, round(seconds))}s", f"{ANSWER_SECONDS:.0f}s"
    options = ["-t", str(threads), "-d", length, "--timeout", timeout]
    with pinned(cores.client):
        wrk = subprocess.run(
            [command[0], *options, *command[1:]], check=False, capture_output=True, text=True
        )
    if wrk.returncode:
        raise Failed(f"wrk ended with status {wrk.returncode}: {wrk.stderr.strip()}")
    try:
        return wrk_report(wrk.stdout, size)
    except Failed as error:
        raise Failed(f"{server.name}: {error}") from error


def wrk_report(text: str, size: int) -> Done:
    """What wrk has done, of requests for `size` bytes each. Raises `Failed`."""
    report = text.rpartition("\nbench ")[2].split()
    if len(report) != 4:
        raise Failed(f"wrk ended without a report: {text[-200:]!r}")
    requests, microseconds, errors, p99_microseconds = map(int, report)
    if errors or not requests:
        raise Failed(f"{errors} of {requests} requests failed")
    return Done(requests, microseconds / 1e6, requests * size, p99_microseconds / 1e6)


def fetches(server: Server, bodies: Sequence[Body], method: str = "GET") -> Iterator[Task]:
    """GET or HEAD of stored samples, one after the other."""
    requests = [
        ([request_head(method, server.base, server.path(body.digest))], body.size)
        for body in bodies
    ]
    for request, size in cycle(requests):
        yield Task(one_request(request, 200, size), size if method == "GET" else 0)


def first_fetches(server: Server, body: Body, disks: Sequence[Path]) -> Iterator[Task]:
    """GET of a sample that has not been verified since its copies were last changed."""
    for task in fetches(server, [body]):
        for disk in disks:
            os.utime(disk / body.digest.disk_path)
        yield task


def parts(server: Server, digest: Digest, size: int, length: int) -> Iterator[Task]:
    """GET of parts of one stored sample, anywhere in it."""
    rng = random.Random(0)
    while True:
        begin = rng.randrange(size - length)
        wanted = f"{begin}-{begin + length - 1}"
        request = request_head("GET", server.base, server.path(digest), byte_range=wanted)
        yield Task(one_request([request], 206, length), length)


def misses(server: Server, digest: Callable[[], Digest] = any_digest) -> Iterator[Task]:
    """GET and HEAD in turn of samples that the server does not have, no two the same."""
    for method in cycle(["GET", "HEAD"]):
        yield Task(one_request([request_head(method, server.base, server.path(digest()))], 404))


def stores(server: Server, bodies: Iterable[Body]) -> Iterator[Task]:
    """POST of samples."""
    for body in bodies:
        yield Task(server.storing(body), body.size)


def mixture(server: Server, stored: Sequence[Body], new: Bodies) -> Iterator[Task]:
    """Nine timed GETs of stored samples, then a POST of a new one, and so on."""
    gets, posts = fetches(server, stored), stores(server, new)
    for number in count(1):
        yield next(gets) if number % 10 else attrs.evolve(next(posts), timed=False)


def store_before(server: Server, bodies: Sequence[Body]) -> None:
    """Store what the server does not have, and check the first. Raises `Failed`."""
    missing = [body for body in bodies if _fetched(server, body)[0] != 200]
    _run(server, 1, stores(server, missing), _PREPARE_SECONDS)
    for body in bodies[:1]:
        status, content = _fetched(server, body)
        if status != 200 or content != b"".join(body.parts):
            raise Failed(f"{server.name} does not return the sample: status {status}")


def store_many(server: Server, bodies: Sequence[Body]) -> None:
    """Store very many, all of which the server has or none, and check the last. Raises `Failed`."""
    if _fetched(server, bodies[-1])[0] != 200:
        _run(server, _STORING_CLIENTS, stores(server, bodies), _FILL_SECONDS)
    status, content = _fetched(server, bodies[-1])
    if status != 200 or content != b"".join(bodies[-1].parts):
        raise Failed(f"{server.name} does not return a sample: status {status}")


def _run(server: Server, clients: int, tasks: Iterator[Task], seconds: float) -> Done:
    try:
        return Clients(server.base, clients).run(tasks, seconds)
    except Failed as error:
        raise Failed(f"{server.name}: {error}") from error


def _fetched(server: Server, body: Body) -> tuple[int, bytes]:
    answer = fetch(server.base + server.path(body.digest))
    if answer is None:
        raise Failed(f"{server.name} does not listen")
    return answer
