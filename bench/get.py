"""Fetching one sample, hot, with wrk."""

import subprocess
from pathlib import Path

from bench.body import Bodies
from bench.connection import ANSWER_SECONDS, Connection, fetch, head
from bench.cores import Cores
from bench.errors import Failed
from bench.programs import Programs
from bench.server import Server
from bench.workload import Done
from stor.digest import Digest

#: What wrk calls at its end; without a function for requests it runs no Lua meanwhile.
_REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\nbench %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Get:
    """A workload: every client fetches the same sample, which stays in the page cache."""

    def __init__(
        self, directory: Path, programs: Programs, cores: Cores, size: int, clients: int
    ) -> None:
        self.title = f"GET {size // 1024} KiB, hot, {clients} connections"
        self._wrk = programs.wrk
        self._cores = cores
        self._clients = clients
        self._content = next(Bodies(size)).whole
        self._digest = Digest.of(self._content)
        self._report = directory / "report.lua"

    def prepare(self, server: Server) -> None:
        """Store the sample unless the server has it, and look whether it comes back."""
        self._report.write_text(_REPORT)
        url = server.url(self._digest)
        answer = fetch(url)
        if answer is not None and answer[0] == 404:
            request = head("POST", url, len(self._content), server.authorization)
            with Connection(url) as connection:
                connection.exchange(request + self._content)
            answer = fetch(url)
        if answer != (200, self._content):
            status = answer and answer[0]
            raise Failed(f"{server.name} does not give the sample: status {status}")

    def run(self, server: Server, seconds: float) -> Done:
        """See `Workload.run`."""
        length, patience = f"{max(1, round(seconds))}s", f"{ANSWER_SECONDS:.0f}s"
        options = ["-t", "1", "-c", str(self._clients), "-d", length, "--timeout", patience]
        command = [self._wrk, *options, "-s", str(self._report), server.url(self._digest)]
        with Cores.held(self._cores.client):
            wrk = subprocess.run(command, check=False, capture_output=True, text=True)
        report = wrk.stdout.rpartition("\nbench ")[2].split()
        if wrk.returncode or len(report) != 3:
            raise Failed(f"wrk ended with status {wrk.returncode}: {wrk.stderr.strip()}")
        requests, microseconds, errors = map(int, report)
        if errors or not requests:
            raise Failed(f"{server.name}: {errors} of {requests} requests failed")
        return Done(requests, microseconds / 1e6)
