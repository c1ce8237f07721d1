"""A connection is handed from one process to another: whoever answers, clients see one Stor."""

import random

import pytest

from stor.http.connections import HAND_OVER_SECONDS, Given
from stor.http.request import needs_writer
from tests.conformance import sample
from tests.support.http import AUTHORIZED, chunked, cuts
from tests.support.network import ServerTransport
from tests.support.rig import Rig, digest_of, request_bytes


class Passage:
    """The way between two sites of one process; implements `Elsewhere` for either of them.

    A connection that is handed over gets a new transport and a new channel, as it does in another
    process.
    """

    def __init__(self, reader, writer):
        self.sites = {False: reader.site, True: writer.site}
        self.clock = reader.clock
        self.given = Given.GONE
        self.passages = 0
        self.connections = {}

    def end(self, *, writes):
        return End(self, writes)


class End:
    def __init__(self, passage, writes):
        self._passage = passage
        self._writes = writes

    def answers(self, channel, line, rest):
        if self._writes:
            return channel.giver is not None and not needs_writer(line, rest)
        return needs_writer(line, rest)

    def give(self, channel, handed):
        passage = self._passage
        if passage.given is not Given.GONE:
            return passage.given
        passage.passages += 1
        connection = passage.connections.pop(channel)
        assert not connection.transport.outgoing, "what is not sent yet would be lost"
        connection.transport = ServerTransport(connection)
        connection.channel = passage.sites[not self._writes].buildProtocol(None)
        passage.connections[connection.channel] = connection
        connection.channel.take_over(handed, None if self._writes else "the reader")
        connection.channel.makeConnection(connection.transport)
        connection.channel.go_on(handed)
        return Given.GONE


@pytest.fixture
def two(tmp_path):
    """A reader, a writer on the same disks, and the way between them."""
    reader = Rig(tmp_path, cache_bytes=1_000_000)
    writer = Rig(tmp_path, cache_bytes=1_000_000, clock=reader.clock)
    passage = Passage(reader, writer)
    reader.site.elsewhere = passage.end(writes=False)
    writer.site.elsewhere = passage.end(writes=True)

    def connect():
        connection = reader.connect()
        passage.connections[connection.channel] = connection
        return connection

    return reader, writer, passage, connect


def post(content):
    return request_bytes("POST", f"/{digest_of(content)}", [AUTHORIZED], content)


def get(content, method="GET"):
    return request_bytes(method, f"/{digest_of(content)}")


@pytest.mark.parametrize(
    ("line", "rest", "expected"),
    [
        (b"GET /%064d HTTP/1.1", b"", False),
        (b"HEAD /%064d?x=/status HTTP/1.1", b"", False),
        (b"GET http://stor/%064d/ HTTP/1.0", b"", False),
        (b"GET /no-digest HTTP/1.1", b"", False),
        (b"GET /status HTTP/1.1", b"", True),
        (b"GET /status/ HTTP/1.1", b"", True),
        (b"HEAD /%6detrics?a HTTP/1.1", b"", True),
        (b"GET / HTTP/1.1", b"Host: a\r\n\r\n", False),
        (b"GET / HTTP/1.1", b"Host: a\r\nAccept: Text/HTML\r\n\r\n", True),
        (b"GET / HTTP/1.1", b"Host: a\r\n", True),
        (b"POST /%064d HTTP/1.1", b"", True),
        (b"PUT /%064d HTTP/1.1", b"", True),
        (b"DELETE / HTTP/1.1", b"", True),
        (b"HEAD /" + b"a" * 64 + b"/upload HTTP/1.1", b"", True),
        (b"HEAD /" + b"a" * 64 + b"/uploads HTTP/1.1", b"", False),
        (b"get /%064d HTTP/1.1", b"", True),
        (b"no request at all", b"", False),
        (b"\x16\x03\x01", b"", False),
    ],
)
def test_what_reads_is_answered_by_all_and_the_rest_by_the_writer(line, rest, expected):
    assert needs_writer(line, rest) is expected


@pytest.mark.parametrize("seed", range(60))
def test_pipelined_requests_of_all_kinds_keep_their_order(two, seed):
    reader, writer, passage, connect = two
    rng = random.Random(seed)
    connection, sent, expected, methods = connect(), b"", [], []
    # A stored sample that is posted again may be answered before its body, and end the connection.
    missing = [sample(rng.choice([0, 1, 4096, 70_000]), n) for n in range(40)]
    missing, stored = list(dict.fromkeys(missing)), [b"never stored"]
    for _ in range(rng.randrange(2, 30)):
        kind = rng.choice(["GET", "HEAD", "POST", "chunked", "status"])
        methods.append(kind)
        if kind in ("POST", "chunked"):
            content = missing.pop()
            head = [AUTHORIZED, ("Transfer-Encoding", "chunked")]
            whole = request_bytes("POST", f"/{digest_of(content)}", head) + chunked([content])
            sent += post(content) if kind == "POST" else whole
            stored.append(content)
            expected.append((201, None))
        elif kind == "status":
            sent += request_bytes("GET", "/status")
            expected.append((200, b"OK\n"))
        else:
            content = rng.choice(stored)
            sent += get(content, kind)
            found = content in stored[1:]
            body = (content if found else None) if kind == "GET" else b""
            expected.append((200 if found else 404, body))
        if rng.random() < 0.1:
            sent += b"\r\n"
    for piece in cuts(sent, rng.choice([1, 2, 7, 40]), rng):
        connection.send(piece)
    found = connection.responses(methods)
    assert [response.status for response in found] == [status for status, _ in expected]
    for response, (_, body) in zip(found, expected, strict=True):
        assert response.complete
        assert body is None or response.body == body
    assert not connection.closed
    writes = [kind not in ("GET", "HEAD") for kind in methods]
    changes = sum(a != b for a, b in zip([False, *writes], writes, strict=False))
    assert passage.passages == changes
    assert len(reader.site.channels) + len(writer.site.channels) == 1


def test_it_is_handed_back_at_the_next_request_that_reads(two):
    reader, writer, passage, connect = two
    connection, content = connect(), sample(1000)
    connection.send(post(content))
    assert (len(reader.site.channels), len(writer.site.channels)) == (0, 1)
    connection.send(post(b"another"))
    assert passage.passages == 1, "what follows for the writer stays there"
    connection.send(get(content))
    assert (len(reader.site.channels), len(writer.site.channels)) == (1, 0)
    assert [r.status for r in connection.responses()] == [201, 201, 200]


def test_all_answers_are_sent_before_it_leaves(two):
    _, _, passage, connect = two
    connection, content = connect(), sample(200_000)
    connection.send(post(content))
    connection.stop_taking()
    connection.send(get(content) + post(b"another"))
    passages = passage.passages
    connection.take(100_000)
    assert passage.passages == passages
    connection.taking = True
    connection.settle()
    assert passage.passages == passages + 1
    first, second, third = connection.responses()
    assert (first.status, second.body, third.status) == (201, content, 201)


def test_what_was_answered_from_memory_is_sent_before_it_leaves(two):
    reader, _, passage, connect = two
    connection, content = connect(), sample(1000)
    connection.send(post(content) + get(content))  # after which it is in the reader's memory
    connection.stop_taking()
    hits = reader.store.hot.hits
    connection.send(get(content))
    assert reader.store.hot.hits == hits + 1
    connection.send(post(b"another"))
    assert passage.passages == 2
    connection.taking = True
    connection.settle()
    assert passage.passages == 3
    assert [r.status for r in connection.responses()] == [201, 200, 200, 201]


def test_100_continue_comes_from_whoever_takes_the_body(two):
    _, _, _, connect = two
    connection, content = connect(), sample(5000)
    head = [AUTHORIZED, ("Content-Length", "5000"), ("Expect", "100-continue")]
    connection.send(get(content) + request_bytes("POST", f"/{digest_of(content)}", head))
    assert connection.continued
    connection.send(content)
    assert [r.status for r in connection.responses()] == [404, 201]


def test_a_client_that_sends_no_more_is_answered(two):
    _, _, _, connect = two
    connection, content = connect(), sample(5000)
    connection.send(get(content) + post(content))
    connection.finish_sending()
    assert [r.status for r in connection.responses()] == [404, 201]
    assert connection.closed


def test_the_client_is_who_it_was(two):
    _, writer, _, connect = two
    connection, content = connect(), sample(10)
    connection.send(post(content))
    assert [served.peer for served in writer.served] == ["192.0.2.1"]


def test_the_time_for_a_head_goes_on(two):
    _, _, passage, connect = two
    connection = connect()
    connection.send(b"POS")
    connection.wait(29)
    connection.send(b"T /x HTTP/1.1\r\n")
    assert passage.passages == 1
    connection.wait(2)
    connection.send(b"Host: a\r\n")
    (response,) = connection.responses()
    assert response.status == 408


@pytest.mark.parametrize("given", [Given.NOBODY, Given.CROWDED])
def test_without_a_writer_what_it_answers_is_503_and_reading_goes_on(two, given):
    _, _, passage, connect = two
    content = sample(10)
    passage.given = given
    for request in (post(content), request_bytes("GET", "/status")):
        connection = connect()
        connection.send(get(content) + request)
        if given is Given.CROWDED:
            assert len(connection.responses()) == 1, "for a moment it may be taken all the same"
            for _ in range(int(HAND_OVER_SECONDS / 0.01) + 2):
                connection.wait(0.01)
        first, second = connection.responses()
        assert (first.status, second.status) == (404, 503)
        assert second.headers["retry-after"] == "1"
        assert second.headers["connection"] == "close"


def test_a_head_request_that_nobody_takes_gets_no_body(two):
    _, _, passage, connect = two
    passage.given = Given.NOBODY
    connection = connect()
    connection.send(request_bytes("HEAD", "/status"))
    (response,) = connection.responses(["HEAD"])
    assert response.status == 503
    assert connection.received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("given", [Given.NOBODY, Given.CROWDED])
def test_without_a_reader_the_writer_answers_itself(two, given):
    _, writer, passage, connect = two
    connection, content = connect(), sample(10)
    connection.send(post(content))
    passage.given = given
    connection.send(get(content) + get(content))
    assert [r.status for r in connection.responses()] == [201, 200, 200]
    assert len(writer.site.channels) == 1


def test_a_connection_that_was_handed_over_is_never_one_too_many(two):
    _, writer, _, connect = two
    writer.reconfigure(max_connections=0)
    connection = connect()
    connection.send(post(sample(10)))
    assert [r.status for r in connection.responses()] == [201]


def test_a_client_that_goes_away_before_it_is_handed_over_is_forgotten(two):
    reader, _, passage, connect = two
    passage.given = Given.CROWDED
    connection = connect()
    connection.send(post(sample(10)))
    connection.close()
    connection.wait(HAND_OVER_SECONDS)
    assert reader.site.channels == set()
