"""The clients of bench with a reliable server, and what it charges a process tree with."""

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat

import pytest

from bench.clients import Clients, Task, one_request, request_head
from bench.device_reads import Bodies, count_reads
from bench.many import from_memory
from bench.process import Failed, cpu_seconds, memory, process_tree
from bench.rooms import count, table
from tests.integration.process import REPOSITORY

LARGE = 3 * 2**20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(LARGE))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(bytes(LARGE))

    do_HEAD = do_GET

    def do_POST(self):
        size = int(self.headers["Content-Length"])
        received = len(self.rfile.read(size))
        self.send_response(201 if received == size else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def base():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def task(base, method, status, body=None, length=None):
    request = [request_head(method, base, "/a", None if body is None else len(body))]
    return Task(one_request(request if body is None else [*request, body], status, length), LARGE)


@pytest.mark.parametrize(
    ("method", "status", "body"),
    [("GET", 200, None), ("HEAD", 200, None), ("POST", 201, bytes(LARGE)), ("POST", 201, b"a")],
    ids=["GET", "HEAD", "large POST", "small POST"],
)
def test_every_task_is_done_and_counted(base, method, status, body):
    tasks = (task(base, method, status, body) for _ in range(20))
    done = Clients(base, 4).run(tasks, 60)
    assert (done.requests, done.content_bytes) == (20, 20 * LARGE)
    assert 0 < done.p99_seconds <= done.seconds


def test_endless_tasks_end_with_the_time(base):
    done = Clients(base, 2).run((task(base, "HEAD", 200) for _ in repeat(None)), 0.1)
    assert done.requests > 0
    assert done.seconds >= 0.1


@pytest.mark.parametrize(("status", "length"), [(404, None), (200, LARGE + 1)])
def test_any_answer_but_the_expected_one_is_a_failure(base, status, length):
    with pytest.raises(Failed):
        Clients(base, 1).run(iter([task(base, "GET", status, length=length)]), 60)


#: A process with a child that has ended after some work, and another that holds memory.
PARENT = """
import subprocess, sys, time
work = "import time\\nwhile time.process_time() < 0.5: pass"
hold = "import sys\\nheld = b'x' * 2**25\\nprint('held', flush=True)\\nsys.stdin.read()"
subprocess.run([sys.executable, "-c", work], check=True)
child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE)
child.wait()
"""


@pytest.fixture
def parent():
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"held\n"
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_children_count_and_those_that_have_ended_too(parent):
    assert len(list(process_tree(parent))) == 2
    assert cpu_seconds(parent) >= 0.5


def test_memory_is_that_of_all_and_shared_pages_count_once(parent):
    found = memory(parent)
    assert 2**25 < found.proportional < found.resident


def test_the_rooms_that_requests_enter_are_counted(tmp_path):
    found = count(tmp_path, repeats=1)
    for calls in found.values():
        assert all((REPOSITORY / "stor" / room).is_file() for room in calls.rooms)
        assert 0 < calls.moves < calls.python_calls
    assert len(found["GET hot"].rooms) < len(found["GET cold"].rooms)
    assert [line[:12].rstrip() for line in table(found).splitlines()[1:]] == list(found)


def test_reads_of_cold_disks_are_counted(tmp_path):
    """Of what is not in memory the device is read at least once."""
    stor, floor = count_reads(tmp_path, 2, Bodies.found(2))
    assert stor.keys() == floor.keys()
    assert floor["404"] == 0
    assert stor["GET"] >= 1
    assert floor["GET"] >= 1


def test_a_batch_is_compared_with_gets_of_the_same_samples(tmp_path):
    header, *rows = from_memory(tmp_path, samples=40, rounds=1).splitlines()
    assert header.split() == ["samples", "a", "second", "us", "of", "a", "core", "times", "GET"]
    assert [row.split()[0] for row in rows] == ["GET", "/batch", "floor"]
    for row in rows:
        assert float(row.split()[1].replace(",", "")) > 0
