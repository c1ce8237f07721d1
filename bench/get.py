"""Fetching one sample, hot, with wrk."""

import subprocess
from pathlib import Path

from bench.asking import store_before
from bench.body import Bodies, size_name
from bench.cores import Cores
from bench.errors import Failed
from bench.exchange import ANSWER_SECONDS
from bench.programs import Programs
from bench.server import Server
from bench.workload import Done

#: What wrk calls at its end; without a function for requests it runs no Lua meanwhile.
_REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\nbench %d %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(99)))
end
"""


class Get:
    """A workload: every client fetches the same sample, which stays in the page cache."""

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
        """See `Workload.prepare`."""
        self._report.write_text(_REPORT)
        store_before(server, [self._body])

    def run(self, server: Server, seconds: float) -> Done:
        """See `Workload.run`."""
        threads = min(self._clients, len(self._cores.client))
        length, patience = f"{max(1, round(seconds))}s", f"{ANSWER_SECONDS:.0f}s"
        options = ["-t", str(threads), "-c", str(self._clients), "-d", length]
        command = [self._wrk, *options, "--timeout", patience, "-s", str(self._report)]
        url = server.base + server.path(self._body.digest)
        with Cores.held(self._cores.client):
            wrk = subprocess.run([*command, url], check=False, capture_output=True, text=True)
        if wrk.returncode:
            raise Failed(f"wrk ended with status {wrk.returncode}: {wrk.stderr.strip()}")
        try:
            return read_report(wrk.stdout, self._body.size)
        except Failed as error:
            raise Failed(f"{server.name}: {error}") from error


def read_report(text: str, size: int) -> Done:
    """What wrk has done, of requests for `size` bytes each. Raises `Failed`."""
    report = text.rpartition("\nbench ")[2].split()
    if len(report) != 4:
        raise Failed(f"wrk ended without a report: {text[-200:]!r}")
    requests, microseconds, errors, p99_microseconds = map(int, report)
    if errors or not requests:
        raise Failed(f"{errors} of {requests} requests failed")
    return Done(requests, microseconds / 1e6, requests * size, p99_microseconds / 1e6)
