"""A connection during and after an upload whose socket had to wait for the disks."""

import errno
import random

import pytest

from stor.digest import Digest
from stor.http.upload import BUFFER_BYTES
from tests.support.files import FaultyFiles
from tests.support.http import (
    CHUNKED,
    Disks,
    HeldPools,
    assert_nothing_kept,
    chunked,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import Rig, request_bytes

BODY = random.Random(4).randbytes(4_000_000)

IDLE_SECONDS = 60


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def workers():
    return HeldPools()


@pytest.fixture
def rig(tmp_path, workers):
    return Rig(tmp_path, sets=(2,), worker=workers)


def finish(workers, connection):
    """Let the disks work until nothing moves any more."""
    while workers.held:
        workers.step()
        connection.settle()


def sent(framing, body=BODY):
    if framing == "length":
        return upload_head(BODY, ("Content-Length", str(len(body)))) + body
    parts = [body[begin : begin + 100_000] for begin in range(0, len(body), 100_000)]
    return upload_head(BODY, CHUNKED) + chunked(parts)


FRAMINGS = pytest.mark.parametrize("framing", ["length", "chunked"])


def test_no_time_out_runs_while_the_disks_are_waited_for(rig, workers):
    connection = rig.connect()
    connection.send(sent("length"))
    assert not connection.transport.reading
    connection.wait(IDLE_SECONDS * 2)
    assert not connection.closed
    connection.close()
    finish(workers, connection)


@FRAMINGS
def test_a_client_that_falls_silent_after_a_wait_is_cut(rig, workers, framing):
    connection = rig.connect()
    data = sent(framing)
    connection.send(data[:3_000_000])
    finish(workers, connection)
    assert connection.transport.reading
    connection.wait(IDLE_SECONDS - 1)
    assert not connection.closed
    connection.wait(1)
    assert connection.closed
    finish(workers, connection)
    assert_nothing_kept(rig)


@FRAMINGS
@pytest.mark.parametrize("size", [BUFFER_BYTES, len(BODY)], ids=["ends in a wait", "goes on"])
def test_a_connection_is_cut_when_it_is_idle_after_an_upload_that_waited(
    rig, workers, framing, size
):
    connection = rig.connect()
    connection.send(sent(framing, BODY[:size]))
    assert not connection.transport.reading
    finish(workers, connection)
    assert connection.responses()[0].status == (201 if size == len(BODY) else 412)
    assert connection.transport.reading
    connection.wait(IDLE_SECONDS - 1)
    assert not connection.closed
    connection.wait(1)
    assert connection.closed


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_connection_goes_on_after_a_disk_failed_at_the_end_of_a_body(tmp_path, workers, error):
    """All of the body is there, and the socket waits: the refusal ends that wait for good."""
    answer = BODY[:262_144]
    Rig(tmp_path, sets=(2,)).put(answer)
    disks = Disks(FaultyFiles)
    rig = Rig(tmp_path, sets=(2,), worker=workers, files=disks)
    connection = rig.connect()
    body = BODY[:BUFFER_BYTES]
    connection.send(upload_head(body, ("Content-Length", str(len(body)))) + body)
    assert not connection.transport.reading
    assert connection.unread == 0
    disks["set0/disk0"].fail_always("write", error)
    finish(workers, connection)
    connection.stop_taking()
    for _ in range(3):
        connection.send(request_bytes("GET", f"/{Digest.of(answer)}"))
        finish(workers, connection)
        connection.take()
        assert connection.transport.reading
    statuses = [response.status for response in connection.responses()]
    assert statuses == [503 if error == errno.EIO else 507, 200, 200, 200]


@FRAMINGS
def test_requests_go_on_after_an_upload_that_waited(rig, workers, framing):
    connection = rig.connect()
    download = request_bytes("GET", f"/{Digest.of(BODY)}")
    connection.send(sent(framing) + download + sent(framing) + download)
    finish(workers, connection)
    # The second upload is stored already: an early answer, the last one.
    assert [response.status for response in connection.responses()] == [201, 200, 200]
    assert connection.responses()[1].body == BODY


@FRAMINGS
def test_a_download_after_a_failed_upload_that_waited(tmp_path, rig, workers, framing):
    Rig(tmp_path, sets=(2,)).put(BODY)
    connection = rig.connect()
    wrong = sent(framing, BODY[:2_000_000]).replace(b"POST /", b"POST /" + b"f" * 64 + b"?", 1)
    connection.send(wrong + request_bytes("GET", f"/{Digest.of(BODY)}") * 2)
    connection.stop_taking()
    for _ in range(100):
        finish(workers, connection)
        connection.take()
    responses = connection.responses()
    assert [response.status for response in responses] == [412, 200, 200]
    assert responses[1].body == responses[2].body == BODY
