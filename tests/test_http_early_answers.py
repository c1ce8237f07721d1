"""Answers that come before the end of the body: with Expect, without, and how they end."""

import tracemalloc

import pytest

from stor.digest import Digest
from stor.http.channel import LINGER_IDLE_SECONDS, LINGER_SECONDS
from stor.http.pace import WINDOW_BYTES, WINDOW_SECONDS
from stor.http.request import UNWANTED_BODY_BYTES
from tests.conformance import sample
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    HeldPools,
    assert_nothing_kept,
    assert_stored,
    chunked,
    descriptors,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import Rig, request_bytes

HELLO, STORED = b"hello", b"stored" * 20_000
SHA = str(Digest.of(HELLO))
EXPECT = ("Expect", "100-continue")
NEXT = request_bytes("GET", "/")

#: Of each refusal: status, method, name, headers, what the Rig is told.
REFUSALS = {
    "no name": (400, "PUT", "", [AUTHORIZED], {}),
    "part": (400, "PUT", SHA, [AUTHORIZED, ("Content-Range", "bytes 5-9/10")], {}),
    "compressed": (415, "POST", SHA, [AUTHORIZED, ("Content-Encoding", "gzip")], {}),
    "form": (415, "POST", SHA, [AUTHORIZED, ("Content-Type", "multipart/form-data")], {}),
    "no credentials": (401, "POST", SHA, [], {}),
    "malformed": (412, "PUT", "x", [AUTHORIZED], {}),
    "stored": (200, "POST", Digest.of(STORED), [AUTHORIZED], {}),
    "too large": (413, "PUT", SHA, [AUTHORIZED], {"max_upload_bytes": 10**6}),
    "no room": (507, "POST", SHA, [AUTHORIZED], {"reserve_bytes": 2**60}),
    "method": (405, "DELETE", SHA, [AUTHORIZED], {}),
    "body of a GET": (413, "GET", SHA, [], {}),
}


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def refused(tmp_path, refusal, *headers, length=10**9):
    """A Rig, and a connection on which a body of 1 GB was announced and is refused."""
    status, method, name, own, options = REFUSALS[refusal]
    length = len(STORED) if refusal == "stored" else length
    assert Rig(tmp_path).put(STORED).status == 201
    rig = Rig(tmp_path, **options)
    connection = rig.connect()
    length = ("Content-Length", str(length))
    connection.send(request_bytes(method, f"/{name}", [*own, length, *headers]))
    (response,) = connection.responses([method])
    assert response.status == status
    assert response.complete
    assert response.headers["connection"] == "close"
    return rig, connection


def assert_still_one_answer(connection):
    assert len(connection.responses()) == 1
    assert not connection.continued


@pytest.mark.parametrize("value", ["100-continue", "100-Continue"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_with_expect_the_body_is_never_asked_for(tmp_path, refusal, value):
    _, connection = refused(tmp_path, refusal, ("Expect", value))
    assert_still_one_answer(connection)
    assert connection.transport.write_closed
    connection.wait(LINGER_IDLE_SECONDS)
    assert connection.closed
    assert_still_one_answer(connection)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_without_expect_the_answer_does_not_wait_for_the_body(tmp_path, refusal):
    """Half-closed and not closed: a reset could overtake the answer (RFC 9112, 9.6)."""
    _, connection = refused(tmp_path, refusal)
    assert connection.transport.write_closed
    assert not connection.transport.disconnecting
    assert not connection.aborted
    assert not connection.closed


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_comes_after_the_answer_is_read_and_thrown_away(tmp_path, refusal):
    rig, connection = refused(tmp_path, refusal)
    samples = rig.samples()
    tracemalloc.start()
    try:
        for _ in range(50):
            connection.send(b"x" * 100_000)
            assert connection.unread == 0
            assert connection.transport.reading
            assert rig.uploads.buffered_bytes == 0
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    assert_still_one_answer(connection)
    assert rig.samples() == samples


@pytest.mark.parametrize("refusal", REFUSALS)
def test_silence_ends_the_connection(tmp_path, refusal):
    rig, connection = refused(tmp_path, refusal)
    connection.wait(LINGER_IDLE_SECONDS - 1)
    connection.send(b"x")
    connection.wait(LINGER_IDLE_SECONDS - 1)
    assert not connection.closed
    connection.wait(1)
    assert connection.closed
    assert not rig.site.channels
    assert not rig.clock.getDelayedCalls()


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_client_that_never_stops_is_cut(tmp_path, refusal):
    rig, connection = refused(tmp_path, refusal)
    for _ in range(int(LINGER_SECONDS / 4) - 1):
        connection.wait(4)
        connection.send(b"x" * 2000)
        assert not connection.closed
    connection.wait(4)
    assert connection.closed
    assert not rig.clock.getDelayedCalls()


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_client_that_drips_is_cut(tmp_path, refusal):
    """The pace of a body is asked of what is thrown away, too."""
    rig, connection = refused(tmp_path, refusal)
    for _ in range(int(WINDOW_SECONDS / 4)):
        connection.wait(4)
        assert not connection.closed
        connection.send(b"x" * (WINDOW_BYTES // 20))
    connection.wait(4)
    connection.send(b"x")
    assert connection.closed
    assert not rig.clock.getDelayedCalls()


def test_posting_again_slowly_what_is_stored_ends_well(tmp_path):
    """The client sends everything before it reads: 200, and no broken pipe on the way there."""
    rig = Rig(tmp_path)
    content = sample(1_000_000)
    rig.put(content)
    connection = rig.connect()
    connection.send(upload_head(content, ("Content-Length", str(len(content)))))
    assert connection.responses()[0].status == 200
    for begin in range(0, len(content), 2000):
        assert not connection.closed
        connection.send(content[begin : begin + 2000])
        connection.wait(1)
    assert not connection.closed
    connection.finish_sending()
    assert connection.closed
    assert not connection.aborted


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("sent", [0, 100_000])
def test_the_client_may_close_first(tmp_path, refusal, sent):
    rig, connection = refused(tmp_path, refusal)
    connection.send(b"x" * sent)
    connection.close()
    assert not connection.aborted
    assert not rig.site.channels
    assert not rig.clock.getDelayedCalls()
    connection.wait(100)
    assert_still_one_answer(connection)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_no_request_is_read_after_an_early_answer(tmp_path, refusal):
    """Whatever follows is the body, even when it is all there and looks like a request."""
    size = len(STORED) if refusal == "stored" else 2_000_000
    rig, connection = refused(tmp_path, refusal, length=size)
    samples = rig.samples()
    upload = upload_head(HELLO, ("Content-Length", "5")) + HELLO
    connection.send((NEXT + upload).ljust(size, b"x") + NEXT + upload)
    connection.send(NEXT)
    assert_still_one_answer(connection)
    assert rig.samples() == samples


@pytest.mark.parametrize("piece", [1, 7, 100, 10_000])
def test_a_refused_body_in_the_same_segments_as_its_head(rig, piece):
    data = request_bytes("POST", f"/{SHA}", [], b"x" * 3000) + NEXT
    connection = rig.connect()
    for begin in range(0, len(data), piece):
        connection.send(data[begin : begin + piece])
    (response,) = connection.responses()
    assert response.status == 401
    assert connection.unread == 0
    connection.close()
    assert_nothing_kept(rig)


def test_a_refused_body_in_chunks(rig):
    connection = rig.connect()
    connection.send(request_bytes("POST", f"/{SHA}", [CHUNKED]))
    (response,) = connection.responses()
    assert response.status == 401
    connection.send(chunked([b"x" * 1000] * 100) + b"no chunk" + NEXT)
    assert_still_one_answer(connection)


def test_a_stored_sample_is_answered_with_its_paths_before_the_body(tmp_path):
    rig, connection = refused(tmp_path, "stored", EXPECT)
    assert_stored(rig, STORED, connection.responses()[0], 200)


@pytest.mark.parametrize("framing", [("Content-Length", "5"), CHUNKED], ids=["length", "chunked"])
def test_100_continue_is_sent_after_admission_and_before_the_body(tmp_path, framing):
    workers = HeldPools()
    rig = Rig(tmp_path, worker=workers)
    connection = rig.connect()
    connection.send(upload_head(HELLO, framing, EXPECT))
    assert connection.received == b""
    while workers.held:
        connection.settle()
        assert not connection.continued
        workers.step()
    connection.settle()
    assert bytes(connection.received) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(chunked([HELLO]) if framing == CHUNKED else HELLO)
    assert connection.responses() == []
    workers.release()
    connection.settle()
    assert bytes(connection.received).count(b"100 Continue") == 1
    assert connection.responses()[0].status == 201


@pytest.mark.parametrize("value", ["100-continue", "100-Continue", "100-CONTINUE"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_that_is_asked_for_is_stored(rig, value, method):
    connection = rig.connect()
    length = ("Content-Length", "5")
    connection.send(upload_head(HELLO, length, ("Expect", value), method=method))
    assert bytes(connection.received) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(HELLO)
    (response,) = connection.responses()
    assert_stored(rig, HELLO, response)
    assert "connection" not in response.headers
    connection.send(NEXT)
    assert [r.status for r in connection.responses()] == [201, 200]


def test_a_client_that_does_not_wait_to_be_asked(rig):
    connection = rig.connect()
    connection.send(upload_head(HELLO, ("Content-Length", "5"), EXPECT) + HELLO + NEXT)
    assert [response.status for response in connection.responses()] == [201, 200]


def test_nobody_is_asked_for_a_body_of_no_bytes(rig):
    connection = rig.connect()
    connection.send(upload_head(b"", ("Content-Length", "0"), EXPECT))
    assert connection.responses()[0].status == 201
    assert not connection.continued


def test_http_1_0_has_no_100_continue(rig):
    connection = rig.connect()
    headers = [AUTHORIZED, ("Content-Length", "5"), EXPECT]
    connection.send(request_bytes("POST", f"/{SHA}", headers, version="HTTP/1.0"))
    assert connection.received == b""
    connection.send(HELLO)
    assert not connection.continued
    assert connection.responses()[0].status == 201
    assert connection.closed


@pytest.mark.parametrize("value", ["", "x", "100", "200-ok"])
def test_other_expectations_are_none(rig, value):
    connection = rig.connect()
    connection.send(upload_head(HELLO, ("Content-Length", "5"), ("Expect", value)))
    assert connection.received == b""
    connection.send(HELLO)
    assert connection.responses()[0].status == 201


def test_a_mismatch_after_100_continue(rig):
    connection = rig.connect()
    connection.send(upload_head(HELLO, ("Content-Length", "5"), EXPECT))
    connection.send(b"HELLO")
    connection.send(NEXT)
    assert [response.status for response in connection.responses()] == [412, 200]
    assert_nothing_kept(rig)


def test_a_client_that_goes_away_instead_of_sending(rig):
    before = descriptors()
    connection = rig.connect()
    connection.send(upload_head(HELLO, ("Content-Length", "3000000"), EXPECT))
    assert connection.continued
    connection.close()
    assert_nothing_kept(rig)
    assert descriptors() == before


@pytest.mark.parametrize("size", [1, 1000, UNWANTED_BODY_BYTES])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_small_body_that_nobody_asked_for_is_ignored(rig, method, framing, size):
    rig.put(HELLO)
    body = b"GET / HTTP/1.1\r\n\r\n".ljust(size, b"x")[:size]
    connection = rig.connect()
    if framing == "length":
        data = request_bytes(method, f"/{SHA}", [], body)
    else:
        data = request_bytes(method, f"/{SHA}", [CHUNKED]) + chunked([body[:500], body[500:]])
    connection.send(data + data + NEXT)
    responses = connection.responses([method, method, "GET"])
    assert [response.status for response in responses] == [200, 200, 200]
    assert responses[0].body == responses[1].body == (HELLO if method == "GET" else b"")


@pytest.mark.parametrize("target", ["/", "/status", f"/{SHA}", "/x"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_body_that_nobody_asked_for_is_refused(rig, framing, target):
    connection = rig.connect()
    if framing == "length":
        connection.send(
            request_bytes("GET", target, [("Content-Length", str(UNWANTED_BODY_BYTES + 1))])
        )
    else:
        connection.send(request_bytes("GET", target, [CHUNKED]))
        body = chunked([b"x" * 65536] * 17)
        connection.send(body[:-5])
    (response,) = connection.responses()
    assert response.status == 413
    assert response.headers["connection"] == "close"
    connection.send(b"x" * 100_000)
    assert connection.unread == 0
    assert_still_one_answer(connection)
