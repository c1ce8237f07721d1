"""The end of the process: what runs finishes, and every connection ends with it."""

import random

import pytest

from stor.digest import Digest
from stor.http.channel import LINGER_IDLE_SECONDS
from stor.http.pace import LAST_REQUEST_SECONDS
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    assert_nothing_kept,
    assert_stored,
    chunked,
    descriptors,
    no_bug_logged,
    take_all,
    upload_head,
)
from tests.support.pools import HeldPool
from tests.support.rig import Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))
LARGE = random.Random(2).randbytes(3_000_000)


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    before = Rig(tmp_path, sets=(2,))
    for content in (LARGE, LARGE[:262_144], LARGE[:5]):
        before.put(content)
    return Rig(tmp_path, sets=(2,))


def ended(deferred):
    """Whether it has fired by now."""
    fired = []
    deferred.addCallback(fired.append)
    return lambda: bool(fired)


def test_without_connections_there_is_nothing_to_wait_for(rig):
    assert ended(rig.site.drain())()


@pytest.mark.parametrize("sent", [b"", request_bytes("GET", "/"), b"GET /"])
def test_idle_connections_are_closed(rig, sent):
    connections = [rig.connect() for _ in range(3)]
    for connection in connections:
        connection.send(sent)
    drained = ended(rig.site.drain())
    for connection in connections:
        assert not connection.closed
    connections[0].wait(LAST_REQUEST_SECONDS)
    for connection in connections:
        connection.settle()
        assert connection.closed
        assert not connection.aborted
    assert drained()


@pytest.mark.parametrize("before", [b"", request_bytes("GET", "/")], ids=["new", "kept"])
def test_a_request_that_was_on_its_way_is_answered(rig, before):
    """It leaves the client before the client can know that the service ends."""
    connection = rig.connect()
    connection.send(before)
    drained = ended(rig.site.drain())
    connection.wait(LAST_REQUEST_SECONDS * 0.9)
    connection.send(upload_head(HELLO, ("Content-Length", "5")))
    # Once it has begun, its body may take its time.
    connection.wait(10)
    connection.send(HELLO)
    response = connection.responses()[-1]
    assert response.headers["connection"] == "close"
    assert_stored(rig, HELLO, response)
    assert connection.closed
    assert drained()


def test_a_download_finishes_with_all_its_bytes(rig):
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("GET", f"/{Digest.of(LARGE)}"))
    drained = ended(rig.site.drain())
    assert not drained()
    connection.taking = True
    connection.settle()
    assert not drained()
    connection.wait(LAST_REQUEST_SECONDS)
    (response,) = connection.responses()
    assert response.body == LARGE
    assert connection.closed
    assert drained()


@pytest.mark.parametrize("size", [5, 262_144])
def test_the_last_bytes_are_sent_before_the_connection_ends(rig, size):
    """An answer that is complete waits in the transport until the client takes it."""
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("GET", f"/{Digest.of(LARGE[:size])}") * 3)
    drained = ended(rig.site.drain())
    connection.settle()
    assert not connection.closed
    assert not drained()
    connection.wait(30)
    assert not connection.closed
    take_all(connection)
    assert all(response.complete for response in connection.responses())
    assert drained()


@pytest.mark.parametrize("framing", [("Content-Length", str(len(LARGE))), CHUNKED], ids=str)
def test_an_upload_finishes(tmp_path, framing):
    rig = Rig(tmp_path, sets=(2,))
    connection = rig.connect()
    body = chunked([LARGE[:2_000_000], LARGE[2_000_000:]]) if framing == CHUNKED else LARGE
    connection.send(upload_head(LARGE, framing) + body[:1_000_000])
    drained = ended(rig.site.drain())
    connection.send(body[1_000_000:])
    (response,) = connection.responses()
    assert response.headers["connection"] == "close"
    assert connection.closed
    assert drained()
    assert_stored(rig, LARGE, response)


@pytest.mark.parametrize("cut", [20, 40, -1])
def test_a_request_that_is_half_there_is_answered(rig, cut):
    request = request_bytes("GET", f"/{Digest.of(LARGE)}", [("X", "y" * 100)])
    request = request.replace(b"GET /", b"GET /?", 1) if cut == 20 else request
    connection = rig.connect()
    line_end = request.index(b"\r\n") + 2
    connection.send(request[: max(cut, line_end)] if cut > 0 else request[:cut])
    drained = ended(rig.site.drain())
    assert not connection.closed
    connection.send(request[max(cut, line_end) :] if cut > 0 else request[cut:])
    (response,) = connection.responses()
    assert response.status == 200
    assert response.headers["connection"] == "close"
    assert connection.closed
    assert drained()


def test_an_answer_that_waits_for_a_disk_says_that_the_connection_ends(tmp_path):
    worker = HeldPool()
    rig = Rig(tmp_path, sets=(1,), worker=lambda: worker)
    connection = rig.connect()
    connection.send(request_bytes("GET", f"/{SHA}"))
    drained = ended(rig.site.drain())
    connection.settle()
    assert not connection.closed
    worker.release()
    connection.settle()
    (response,) = connection.responses()
    assert response.status == 404
    assert response.headers["connection"] == "close"
    assert connection.closed
    assert drained()


def test_what_is_pipelined_behind_the_last_answer_is_not_begun(tmp_path):
    worker = HeldPool()
    rig = Rig(tmp_path, sets=(1,), worker=lambda: worker)
    connection = rig.connect()
    upload = request_bytes("POST", f"/{SHA}", [AUTHORIZED], HELLO)
    connection.send(request_bytes("GET", f"/{Digest.of(LARGE)}") + upload)
    rig.site.drain()
    worker.release()
    connection.settle()
    assert len(connection.responses()) == 1
    assert connection.closed
    assert rig.copies(HELLO) == []


@pytest.mark.parametrize("pipelined", [True, False])
def test_a_request_behind_an_answer_that_did_not_say_the_connection_ends_is_answered(
    rig, pipelined
):
    """Its client cannot know: the head of the answer left before the end was asked for."""
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("GET", f"/{Digest.of(LARGE)}"))
    upload = request_bytes("POST", f"/{SHA}", [AUTHORIZED], HELLO)
    if pipelined:
        connection.send(upload)
    drained = ended(rig.site.drain())
    connection.taking = True
    connection.settle()
    connection.wait(LAST_REQUEST_SECONDS * 0.9)
    if not pipelined:
        connection.send(upload)
    download, stored = connection.responses()
    assert download.body == LARGE
    assert "connection" not in download.headers
    assert stored.headers["connection"] == "close"
    assert_stored(rig, HELLO, stored)
    assert connection.closed
    assert drained()


def test_a_connection_that_comes_late_is_answered_and_closed(rig):
    """It was accepted before the port was closed."""
    busy = rig.connect()
    busy.stop_taking()
    busy.send(request_bytes("GET", f"/{Digest.of(LARGE)}"))
    drained = ended(rig.site.drain())
    late = rig.connect()
    late.send(request_bytes("GET", "/"))
    (response,) = late.responses()
    assert response.status == 200
    assert response.headers["connection"] == "close"
    assert late.closed
    assert not drained()
    busy.close()
    assert drained()


def test_a_client_that_is_being_refused_may_read_to_the_end(rig):
    connection = rig.connect()
    connection.send(request_bytes("POST", f"/{SHA}", [("Content-Length", "1000000000")]))
    drained = ended(rig.site.drain())
    connection.send(b"x" * 100_000)
    assert connection.unread == 0
    assert not connection.closed
    assert not drained()
    connection.wait(LINGER_IDLE_SECONDS)
    assert connection.closed
    assert drained()


def test_a_client_that_goes_away_is_not_waited_for(rig):
    connection = rig.connect()
    connection.send(upload_head(HELLO, ("Content-Length", "5")) + b"hel")
    drained = ended(rig.site.drain())
    assert not drained()
    connection.close()
    assert drained()
    assert rig.copies(HELLO) == []


def test_cut_ends_everything_at_once(rig):
    before = descriptors()
    connections = download, upload, _ = [rig.connect() for _ in range(3)]
    download.stop_taking()
    download.send(request_bytes("GET", f"/{Digest.of(LARGE)}"))
    upload.send(upload_head(HELLO, ("Content-Length", "3000000")) + b"x" * 2_000_000)
    rig.site.cut()
    for connection in connections:
        connection.settle()
    assert download.aborted
    assert upload.aborted
    assert not rig.site.channels
    assert upload.responses() == []
    assert rig.copies(HELLO) == rig.staged() == []
    assert rig.uploads.buffered_bytes == 0
    assert descriptors() == before
    download.take()
    assert not any(response.complete for response in download.responses())


def test_cut_ends_a_drain(rig):
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("GET", f"/{Digest.of(LARGE)}"))
    drained = ended(rig.site.drain())
    assert not drained()
    rig.site.cut()
    connection.settle()
    assert drained()


def test_cut_while_a_disk_is_busy_keeps_nothing(tmp_path):
    worker = HeldPool()
    rig = Rig(tmp_path, sets=(2,), worker=lambda: worker)
    connection = rig.connect()
    connection.send(upload_head(HELLO, ("Content-Length", "5")) + HELLO[:4])
    rig.site.cut()
    connection.settle()
    worker.release()
    assert_nothing_kept(rig)
