"""Clients that send or take too slowly, that half-close, or that end lines with LF alone."""

import pytest

from stor.http.pace import HEAD_SECONDS, WINDOW_BYTES, WINDOW_SECONDS
from tests.conformance import sample
from tests.support.http import (
    AUTHORIZED,
    assert_one_line,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import Rig, digest_of, request_bytes

LARGE = sample(3_000_000)
SMALL = sample(1000)


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path, sets=(2,))


def get(content):
    return request_bytes("GET", f"/{digest_of(content)}")


def drip(connection, data, seconds, size=1):
    """Send `data` in pieces of `size` bytes, `seconds` apart, until it is answered."""
    before = len(connection.responses())
    for begin in range(0, len(data), size):
        connection.send(data[begin : begin + size])
        connection.wait(seconds)
        if len(connection.responses()) > before:
            return


class TestSlowSenders:
    def test_headers_have_their_time(self, rig):
        connection = rig.connect()
        drip(connection, get(SMALL), HEAD_SECONDS / 10)
        (response,) = connection.responses()
        assert_one_line(response, 408)
        connection.wait(60)
        assert connection.closed

    def test_silence_is_counted_from_the_last_answer_however_plain_its_request(self, tmp_path):
        """The time-out is not set anew at each plain request, and ends the connection in time."""
        rig = Rig(tmp_path, sets=(2,), cache_bytes=1_000_000)
        rig.put(SMALL)
        rig.get(SMALL)
        connection = rig.connect()
        allowed = rig.site.timeOut
        for pause in (0, allowed * 0.6, allowed * 0.6):
            connection.wait(pause)
            connection.send(get(SMALL))
        assert [response.body for response in connection.responses()] == [SMALL] * 3
        connection.wait(allowed * 0.9)
        assert not connection.closed
        connection.wait(allowed * 0.1)
        connection.wait(0.001)
        assert connection.closed

    @pytest.mark.parametrize("pieces", [[b"\r\n"], [b"\r", b"\n"]], ids=["whole", "cut"])
    @pytest.mark.parametrize("before", ["nothing", "get", "upload"])
    def test_a_line_end_between_requests_is_no_beginning_of_one(self, rig, before, pieces):
        """Some clients send one behind a body (RFC 9112, 2.2); the idle time-out alone runs."""
        upload = request_bytes("POST", f"/{digest_of(SMALL)}", [AUTHORIZED], SMALL)
        sent = {"nothing": b"", "get": get(SMALL), "upload": upload}[before]
        connection = rig.connect()
        for piece in [sent + pieces[0], *pieces[1:]]:
            connection.send(piece)
            connection.wait(HEAD_SECONDS + 20)
        connection.send(get(SMALL))
        expected = {"nothing": [404], "get": [404, 404], "upload": [201, 200]}[before]
        assert [response.status for response in connection.responses()] == expected

    def test_every_request_of_a_connection_has_it_anew(self, rig):
        connection = rig.connect()
        for _ in range(5):
            connection.wait(20)
            drip(connection, get(SMALL), 1, size=10)
        assert [response.status for response in connection.responses()] == [404] * 5
        assert not connection.closed

    def test_a_body_that_drips_is_cut_and_leaves_nothing(self, rig):
        connection = rig.connect()
        connection.send(upload_head(LARGE, ("Content-Length", str(len(LARGE)))))
        drip(connection, LARGE, WINDOW_SECONDS / 4, size=WINDOW_BYTES // 10)
        (response,) = connection.responses()
        assert_one_line(response, 408)
        connection.wait(60)
        assert connection.closed
        assert rig.samples() == rig.staged() == []

    def test_a_body_at_the_least_rate_is_taken(self, rig):
        content = sample(WINDOW_BYTES * 10)
        connection = rig.connect()
        connection.send(upload_head(content, ("Content-Length", str(len(content)))))
        drip(connection, content, WINDOW_SECONDS / 4, size=WINDOW_BYTES // 3)
        (response,) = connection.responses()
        assert response.status == 201


class TestSlowTakers:
    def test_one_that_takes_2_kib_a_second_gets_everything(self, rig):
        rig.put(LARGE)
        connection = rig.connect()
        connection.stop_taking()
        connection.send(get(LARGE))
        while not connection.closed and len(connection.received) < len(LARGE):
            connection.take(2 * 1024 * 30)
            connection.wait(30)
        (response,) = connection.responses()
        assert response.body == LARGE

    def test_one_that_takes_100_bytes_a_second_is_cut(self, rig):
        rig.put(LARGE)
        connection = rig.connect()
        connection.stop_taking()
        connection.send(get(LARGE))
        for _ in range(10):
            connection.take(100 * 30)
            connection.wait(30)
        assert connection.aborted


class TestHalfClosed:
    """A client may say that it has sent all, and still wants its answers."""

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    def test_it_gets_what_it_asked_for(self, rig, content):
        rig.put(content)
        connection = rig.connect()
        connection.stop_taking()
        connection.send(get(content) * 3)
        connection.finish_sending()
        while not connection.closed:
            connection.take()
        assert [response.body for response in connection.responses()] == [content] * 3

    def test_its_upload_is_stored_and_said_so(self, rig):
        connection = rig.connect()
        connection.send(request_bytes("POST", f"/{digest_of(LARGE)}", [AUTHORIZED], LARGE))
        connection.finish_sending()
        (response,) = connection.responses()
        assert response.status == 201
        assert connection.closed

    @pytest.mark.parametrize(
        "data", [b"", get(SMALL)[:-5], upload_head(LARGE, ("Content-Length", "3000000")) + b"x"]
    )
    def test_half_a_request_is_none(self, rig, data):
        connection = rig.connect()
        connection.send(data)
        connection.finish_sending()
        assert connection.closed
        assert connection.responses() == []
        assert rig.samples() == rig.staged() == []

    def test_after_an_early_answer_it_is_served(self, rig):
        connection = rig.connect()
        connection.send(request_bytes("POST", f"/{digest_of(LARGE)}", [], LARGE)[:-100])
        connection.finish_sending()
        assert_one_line(connection.responses()[0], 401)
        assert connection.closed


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: stor\n\n",
        b"GET / HTTP/1.1\r\nHost: stor\n\n",
        b"GET / HTTP/1.1\r\nHost: stor\nX: y\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: stor\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_a_line_that_ends_with_lf_alone_is_refused_at_once(rig, data, size):
    connection = rig.connect()
    for begin in range(0, len(data), size):
        connection.send(data[begin : begin + size])
    (response,) = connection.responses()
    assert_one_line(response, 400)
    connection.wait(60)
    assert connection.closed
