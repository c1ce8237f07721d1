"""The clients of bench, with a server that can be relied on."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat

import pytest

from bench.clients import Clients
from bench.errand import Errand
from bench.errors import Failed
from bench.exchange import asking, head

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


def errand(base, method, status, body=None, length=None):
    request = [head(method, base, "/a", None if body is None else len(body))]
    return Errand(asking(request if body is None else [*request, body], status, length), LARGE)


@pytest.mark.parametrize(
    ("method", "status", "body"),
    [("GET", 200, None), ("HEAD", 200, None), ("POST", 201, bytes(LARGE)), ("POST", 201, b"a")],
    ids=["GET", "HEAD", "large POST", "small POST"],
)
def test_every_errand_is_run_and_counted(base, method, status, body):
    errands = (errand(base, method, status, body) for _ in range(20))
    done = Clients(base, 4).run(errands, 60)
    assert (done.requests, done.content_bytes) == (20, 20 * LARGE)
    assert 0 < done.p99_seconds <= done.seconds


def test_time_ends_what_has_no_end(base):
    done = Clients(base, 2).run((errand(base, "HEAD", 200) for _ in repeat(None)), 0.1)
    assert done.requests > 0
    assert done.seconds >= 0.1


@pytest.mark.parametrize(("status", "length"), [(404, None), (200, LARGE + 1)])
def test_any_answer_but_the_expected_one_is_a_failure(base, status, length):
    with pytest.raises(Failed):
        Clients(base, 1).run(iter([errand(base, "GET", status, length=length)]), 60)
