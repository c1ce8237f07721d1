"""Thousands of connections that do next to nothing cost next to nothing."""

import os
import subprocess
import sys

import pytest

from tests.integration.load import Connection, percentile, timed
from tests.integration.process import MIB, REPOSITORY, poll
from tests.support.rig import request_bytes

IDLE, SLOW = 5000, 200

#: Below this nobody notices, and the machine's own noise is as large.
UNNOTICED_SECONDS = 0.01

#: Noise of others is no fault of Stor's; the best of so many comparisons counts.
ATTEMPTS = 3

pytestmark = pytest.mark.alone


class Crowd:
    """The crowd, in a process of its own."""

    def __init__(self, stor):
        arguments = [sys.executable, "-m", "tests.integration.crowd"]
        self._process = subprocess.Popen(
            [*arguments, str(stor.port), str(IDLE), str(SLOW)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == f"ready {IDLE + SLOW}\n"

    def leave(self):
        """End it; how many kilobytes each upload has sent."""
        output, _ = self._process.communicate(timeout=10)
        assert self._process.returncode == 0
        return int(output.split()[1])


@pytest.fixture
def stor(start):
    return start(index=False, cache_bytes=32 * MIB)


def p99_of_gets(stor, sha, n=1000):
    """Of a hot sample, on one connection."""
    connection, request = Connection(stor.port), request_bytes("GET", f"/{sha}")
    try:
        taken = [timed(connection.exchange, request) for _ in range(n)]
    finally:
        connection.close()
    assert all(answer.status == 200 for _, answer in taken)
    return percentile([seconds for seconds, _ in taken], 0.99)


def test_5000_idle_connections_and_200_slow_uploads(stor, figures):
    sha = stor.place(os.urandom(65_536), stor.roots[:2])
    seen = []
    for _ in range(ATTEMPTS):
        alone = p99_of_gets(stor, sha)
        crowd = Crowd(stor)
        among_many = p99_of_gets(stor, sha)
        memory = stor.memory_kib()
        kilobytes = crowd.leave()
        seen.append((round(alone * 1000, 2), round(among_many * 1000, 2)))
        assert memory < 300 * 1024
        assert kilobytes > 0
        if among_many < max(2 * alone, UNNOTICED_SECONDS):
            break
    else:
        raise AssertionError(f"p99 in ms, alone and among many: {seen}")
    many = "5000 idle connections and 200 slow uploads"
    figures[f"MiB that Stor takes with {many}"] = memory // 1024
    added = round(max(0, among_many - alone) * 1e6)
    figures[f"microseconds that {many} add to the p99 of GETs"] = added
    poll(lambda: stor.at_rest, what="no connection and no open file")
    assert stor.staged() == []
    assert len(stor.samples()) == 2
