"""Many requests at once on one connection: one a turn of the reactor, at a cost that is linear."""

import sys
import tracemalloc

import pytest

from tests.conformance import sample
from tests.support.http import AUTHORIZED, CHUNKED, chunked, no_bug_logged, upload_head
from tests.support.rig import Rig, digest_of, request_bytes

MEBIBYTE = 1024 * 1024
SMALL = sample(1000)
NONE = b"0" * 64


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path, sets=(2,), cache_bytes=MEBIBYTE)
    rig.put(SMALL)
    rig.get(SMALL)
    return rig


def get(name):
    return request_bytes("GET", f"/{name}")


REQUESTS = {
    "hot": get(digest_of(SMALL)),
    "nobody has it": get("0" * 64),
    "malformed": get("x"),
    "root": get(""),
    "no method": request_bytes("BREW", "/x"),
    "body that nobody wants": request_bytes("GET", "/x", body=b"y" * 50),
    "chunks that nobody wants": request_bytes("GET", "/x", [CHUNKED]) + chunked([b"a", b"b"]),
    "stored": request_bytes("POST", f"/{digest_of(SMALL)}", [AUTHORIZED], SMALL),
    "refused": upload_head("x", ("Content-Length", "0")),
}
# An answer before the end of its body ends the connection.
ALL = [name for name in REQUESTS if name != "stored"]


class Profile:
    """Counts calls of Python functions, and how deep they are nested."""

    def __init__(self):
        self.calls = self.depth = self.deepest = 0

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _count(self, frame, event, argument):
        if event == "call":
            self.calls += 1
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
        elif event == "return":
            self.depth -= 1


def sent(rig, requests):
    """What it takes to answer them all: the profile, and the most memory."""
    connection = rig.connect()
    tracemalloc.start()
    try:
        with Profile() as profile:
            connection.send(requests)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return connection, profile, peak


@pytest.mark.parametrize("name", ALL)
def test_a_thousand_cost_a_hundred_times_as_much_as_ten(rig, name):
    """Nothing is nested deeper, and nothing is kept but what was read at once."""
    sent(rig, REQUESTS[name] * 5)
    _, ten, _ = sent(rig, REQUESTS[name] * 10)
    connection, thousand, peak = sent(rig, REQUESTS[name] * 1000)
    assert bytes(connection.received).count(b"HTTP/1.1 ") == 1000
    assert thousand.calls < 110 * ten.calls
    assert thousand.deepest < ten.deepest + 10
    # The client's own copies of what was sent and received are part of it.
    assert peak < 3 * MEBIBYTE + 6 * len(connection.received)


@pytest.mark.parametrize("name", ALL)
def test_a_turn_of_the_reactor_answers_one_of_a_connection(rig, name):
    """Others have theirs between; what is read ahead is what one read brings."""
    connection = rig.connect()
    connection.channel.dataReceived(REQUESTS[name] * 100)
    for turn in range(100):
        assert not connection.transport.reading or turn == 99
        connection.transport.producerPaused = False
        connection.channel.resumeProducing()
        before = len(rig.served)
        rig.clock.advance(0)
        assert len(rig.served) - before == (turn < 99)


@pytest.mark.parametrize("length", [1, 2, 100])
def test_a_body_in_tiny_chunks_is_decoded_in_many_turns(rig, length):
    """A read may bring thousands of them."""
    content = sample(30_000)
    body = chunked([content[at : at + length] for at in range(0, len(content), length)])
    connection = rig.connect()
    with Profile() as profile:
        connection.channel.dataReceived(upload_head(digest_of(content), CHUNKED) + body)
    assert profile.calls < 20_000
    connection.settle()
    assert connection.responses()[0].status == 201


def test_two_connections_take_turns(rig):
    first, second = rig.connect(), rig.connect()
    for connection in (first, second):
        connection.stop_taking()
        connection.channel.dataReceived(get("x") * 50)
    while not (first.responses() and len(first.responses()) == 50):
        first.take()
        second.take()
        assert abs(len(first.responses()) - len(second.responses())) <= 1
