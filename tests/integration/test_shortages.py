"""What the system has not got for a moment: errors while it lasts at most, and all is well then."""

import contextlib
import fcntl
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path

import attrs
import pytest

from tests.integration.process import COMPLAINTS, Stor, poll, sha_of

#: Somebody whom the system does not give what root gets all the same.
USER = 54321

KNOWN = b"stored before"

#: What requests may be answered with while something is lacking.
DOCUMENTED = {200, 201, 404, 503}


BECOME = f"setpriv --reuid={USER} --clear-groups --bounding-set=-all --inh-caps=-all"


def by_user(directory):
    """What starts another program as `USER`, whose directory this is by then."""
    return ["bash", "-c", f'chown -R {USER} {directory} && exec {BECOME} "$@"', "-"]


@pytest.fixture
def started():
    """Start a Stor as `USER`; all are stopped, and held to a clean log."""
    with contextlib.ExitStack() as stack:

        def start(**keys):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            directory.chmod(0o755)
            stor = Stor.configured(directory / "stor", wrapper=by_user(directory), **keys)
            stack.callback(stor.remove)
            stack.callback(stor.stop)
            return stor

        yield start


@attrs.define
class Clients:
    """Eight clients that use a Stor until they are told to end."""

    stor: Stor
    answers: Counter = attrs.field(factory=Counter)
    slowest_seconds: float = 0.0
    _over: threading.Event = attrs.field(factory=threading.Event)

    @contextlib.contextmanager
    def at_work(self):
        threads = [threading.Thread(target=self._work) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _work(self):
        while not self._over.is_set():
            new = os.urandom(2000)
            for request in (
                lambda new=new: self.stor.put(new),
                lambda: self.stor.get(sha_of(KNOWN)),
                lambda: self.stor.get("0" * 64),
            ):
                begun = time.monotonic()
                try:
                    answer = request().status
                except (OSError, HTTPException):
                    answer = "no answer"
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begun)
                self.answers[answer] += 1

    @property
    def undocumented(self):
        return set(self.answers) - DOCUMENTED


def assert_well(stor):
    """All is as it should be, without a start."""
    poll(lambda: stor.get("status").status == 200, 25, "all storages well")
    new = os.urandom(2000)
    assert stor.put(new).status == 201
    assert stor.get(sha_of(new)).body == new
    assert stor.get(sha_of(KNOWN)).body == KNOWN


def limit(stor, what, number):
    """From now on each of its processes may have only so many of something (prlimit(1))."""
    for pid in stor.pids:
        subprocess.run(
            [*BECOME.split(), "prlimit", f"--pid={pid}", f"--{what}={number}:"], check=True
        )


def test_no_thread_can_be_started(started, figures):
    """RLIMIT_NPROC, or TasksMax= of a service."""
    stor = started(sets=(2,))
    assert stor.put(KNOWN).status == 201
    limit(stor, "nproc", 1)
    clients = Clients(stor)
    with clients.at_work():
        time.sleep(10)
    limit(stor, "nproc", 10_000)
    assert clients.undocumented == set(), clients.answers
    assert clients.answers[201] + clients.answers[200] > 0
    assert_well(stor)
    figures["answers while no thread could be started"] += clients.answers.total()


def test_no_descriptor_is_left(started, figures):
    stor = started(sets=(2,))
    assert stor.put(KNOWN).status == 201
    highest = max(int(fd) for pid in stor.pids for fd in os.listdir(f"/proc/{pid}/fd"))
    limit(stor, "nofile", highest + 5)
    clients = Clients(stor)
    with clients.at_work():
        time.sleep(5)
        # Who cannot be let in waits; whose turn it is gets an answer, or is let go.
        limit(stor, "nofile", 1000)
        time.sleep(1)
    assert clients.undocumented <= {"no answer"}, clients.answers
    assert clients.answers[404] > 0
    assert_well(stor)
    figures["answers while no descriptor was left"] += clients.answers.total()
    complaints = [line for line in stor.log.splitlines() if COMPLAINTS.search(line)]
    # Twisted says that it cannot even turn a connection away.
    assert all("EMFILE" in line or "Traceback (" in line for line in complaints), complaints[:5]
    assert sum("Traceback (" in line for line in complaints) <= len(complaints) / 2
    stor.kill()


@pytest.mark.parametrize("reader", ["stands still", "is gone"])
def test_nobody_reads_the_log(tmp_path, figures, reader):
    """Requests do not wait for whoever reads standard output."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDWR if reader == "stands still" else os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    wrapper = ["bash", "-c", f'exec "$@" > {pipe} 2>&1', "-"]
    stor = Stor.configured(tmp_path / "stor", wrapper=wrapper, sets=(2,))
    try:
        assert stor.put(KNOWN).status == 201
        if reader == "is gone":
            os.close(reading)
        clients = Clients(stor)
        with clients.at_work():
            poll(lambda: clients.answers.total() > 500, what="500 answers")
        assert clients.undocumented == set(), clients.answers
        assert clients.slowest_seconds < 5
        assert_well(stor)
        figures["answers while nobody read the log"] += clients.answers.total()
        stor.stop()
    finally:
        stor.remove()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_start_without_standard_descriptors(start, workers, closed):
    """What is printed goes nowhere, and never into a file of a disk or to a client."""
    wrapper = ["bash", "-c", f'exec "$@" {closed}', "-"]
    stor = start(wrapper=wrapper, sets=(2,), workers=workers)
    assert stor.put(KNOWN).status == 201
    given = {"/dev/null", str(stor.log_path)}
    for pid in stor.pids:
        found = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)}
        assert all(name in given or name.startswith("pipe:") for name in found), found
        assert not any(name.startswith("pipe:") for name in found) or pid != stor.pid, found
    assert_well(stor)
