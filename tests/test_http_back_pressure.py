"""Uploads that are faster than the disks: the socket waits, memory does not grow."""

import errno
import random

import pytest

from stor.digest import Digest
from stor.http.channel import LINGER_IDLE_SECONDS
from stor.http.upload import BUFFER_BYTES
from tests.support.files import FaultyFiles
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    Disks,
    HeldPools,
    assert_nothing_kept,
    assert_stored,
    chunked,
    cuts,
    descriptors,
    no_bug_logged,
    upload_head,
)
from tests.support.pools import HeldPool
from tests.support.rig import Rig, request_bytes

BODY = random.Random(4).randbytes(4_000_000)
#: What one read of a socket may bring beyond any limit.
READ_BYTES = 65536
#: What waits and what is being written.
LIMIT_BYTES = 2 * (BUFFER_BYTES + READ_BYTES)
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


def finish(rig, workers, *connections, limit=LIMIT_BYTES):
    """Let the disks work, a job at a time, until nothing moves any more."""
    while workers.held:
        workers.step()
        for connection in connections:
            connection.settle()
        assert rig.uploads.buffered_bytes <= limit


def sent(framing, body=BODY):
    if framing == "length":
        return upload_head(BODY, ("Content-Length", str(len(body)))) + body
    parts = [body[begin : begin + 100_000] for begin in range(0, len(body), 100_000)]
    return upload_head(BODY, CHUNKED) + chunked(parts)


FRAMINGS = pytest.mark.parametrize("framing", ["length", "chunked"])


@FRAMINGS
def test_bytes_that_come_before_the_decision_wait_and_then_the_socket_does(
    tmp_path, rig, workers, framing
):
    connection = rig.connect()
    connection.send(sent(framing))
    assert connection.received == b""
    assert not connection.transport.reading
    assert BUFFER_BYTES <= rig.uploads.buffered_bytes <= BUFFER_BYTES + READ_BYTES
    assert connection.unread >= len(BODY) - BUFFER_BYTES - 2 * READ_BYTES
    finish(rig, workers, connection)
    (response,) = connection.responses()
    assert rig.uploads.buffered_bytes == 0
    assert connection.transport.reading
    assert_stored(Rig(tmp_path, sets=(2,)), BODY, response)


@FRAMINGS
def test_the_socket_waits_whenever_the_disks_do(rig, workers, framing):
    connection = rig.connect()
    data = sent(framing)
    connection.send(data[:500])
    waited = 0
    for begin in range(500, len(data), READ_BYTES):
        connection.send(data[begin : begin + READ_BYTES])
        if not connection.transport.reading:
            waited += 1
            before = rig.uploads.buffered_bytes
            connection.settle()
            assert rig.uploads.buffered_bytes == before
            finish(rig, workers, connection)
            assert connection.transport.reading
    finish(rig, workers, connection)
    assert waited >= 3
    assert connection.responses()[0].status == 201
    assert rig.uploads.buffered_bytes == 0


def test_a_slow_hash_makes_the_socket_wait_too(tmp_path):
    hashing = HeldPool()
    rig = Rig(tmp_path, sets=(2,), hashing=hashing)
    connection = rig.connect()
    connection.send(sent("length"))
    assert not connection.transport.reading
    assert rig.uploads.buffered_bytes <= LIMIT_BYTES
    while hashing.held:
        hashing.release(1)
        connection.settle()
        assert rig.uploads.buffered_bytes <= LIMIT_BYTES
    assert_stored(rig, BODY, connection.responses()[0])
    assert rig.uploads.buffered_bytes == 0
    assert connection.transport.reading


@pytest.mark.parametrize("budget", [1, READ_BYTES, 300_000, 1_000_000])
def test_all_uploads_together_are_bounded_and_none_is_stuck(tmp_path, workers, budget):
    rig = Rig(tmp_path, sets=(2,), worker=workers, total_buffer_bytes=budget)
    bodies = [random.Random(n).randbytes(1_000_000) for n in range(6)]
    connections = [rig.connect() for _ in bodies]
    for connection, body in zip(connections, bodies, strict=True):
        connection.send(request_bytes("POST", f"/{Digest.of(body)}", [AUTHORIZED], body))
    # Each has at most one read more than what filled the budget, and one that is being written.
    limit = budget + 2 * len(bodies) * READ_BYTES
    assert rig.uploads.buffered_bytes <= limit
    assert all(not connection.transport.reading for connection in connections)
    finish(rig, workers, *connections, limit=limit)
    assert [connection.responses()[0].status for connection in connections] == [201] * 6
    assert rig.uploads.buffered_bytes == 0
    assert all(connection.transport.reading for connection in connections)


def test_a_hung_upload_does_not_keep_the_others_from_finishing(tmp_path, workers):
    """It holds what it holds; whoever has nothing waiting is read on."""
    rig = Rig(tmp_path, sets=(2,), worker=workers, total_buffer_bytes=BUFFER_BYTES)
    stuck = rig.connect()
    stuck.send(sent("length"))
    assert rig.uploads.full
    go_on = workers.hang()
    connections = [rig.connect() for _ in range(5)]
    for n, connection in enumerate(connections):
        body = random.Random(n).randbytes(300_000)
        connection.send(request_bytes("POST", f"/{Digest.of(body)}", [AUTHORIZED], body))
    finish(rig, workers, *connections)
    assert [connection.responses()[0].status for connection in connections] == [201] * 5
    go_on()
    finish(rig, workers, stuck)
    assert stuck.responses()[0].status == 201
    assert rig.uploads.buffered_bytes == 0


@FRAMINGS
@pytest.mark.parametrize("steps", range(8))
def test_a_client_that_goes_away_while_the_disks_are_busy(rig, workers, framing, steps):
    before = descriptors()
    connection = rig.connect()
    connection.send(sent(framing))
    for _ in range(steps):
        workers.step()
        connection.settle()
    connection.close()
    whole = connection.unread == 0
    finish(rig, workers)
    assert connection.responses() == []
    if whole:  # then nothing more is needed from the client
        assert len(rig.copies(BODY)) == 2
    else:
        assert_nothing_kept(rig)
    assert rig.uploads.buffered_bytes == 0
    assert descriptors() == before
    assert not rig.site.channels
    assert not rig.clock.getDelayedCalls()


@FRAMINGS
@pytest.mark.parametrize("size", [300_000, 2_000_000])
def test_a_mismatch_of_a_body_that_had_to_wait(rig, workers, framing, size):
    before = descriptors()
    connection = rig.connect()
    connection.send(sent(framing, BODY[:size]))
    finish(rig, workers, connection)
    (response,) = connection.responses()
    assert response.status == 412
    assert connection.transport.reading
    connection.close()
    assert_nothing_kept(rig)
    assert descriptors() == before


@FRAMINGS
@pytest.mark.parametrize(("error", "status"), [(errno.EIO, 503), (errno.ENOSPC, 507)])
def test_a_disk_that_fails_while_the_socket_waits(tmp_path, workers, framing, error, status):
    disks = Disks(FaultyFiles)
    rig = Rig(tmp_path, sets=(2,), worker=workers, files=disks)
    before = descriptors()
    connection = rig.connect()
    connection.send(sent(framing))
    assert not connection.transport.reading
    disks["set0/disk0"].fail_always("write", error)
    finish(rig, workers, connection)
    (response,) = connection.responses()
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert connection.transport.reading
    assert connection.unread == 0
    connection.wait(LINGER_IDLE_SECONDS)
    assert connection.closed
    assert_nothing_kept(rig)
    assert descriptors() == before
    assert not rig.clock.getDelayedCalls()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 100])
@pytest.mark.parametrize("more", [0, 1_048_000, 1_049_000])
def test_a_malformed_chunk_behind_what_waits(rig, workers, steps, more):
    """Refused at once, and the connection ends as any other that is refused."""
    before = descriptors()
    connection = rig.connect()
    connection.send(upload_head(BODY, CHUNKED) + chunked([BODY[:300_000]])[:-5])
    for _ in range(steps):
        workers.step()
        connection.settle()
    parts = [BODY[begin : begin + 1000] for begin in range(0, more, 1000)]
    connection.send(chunked(parts)[:-5] + b"5\r\nhelloes\r\n")
    finish(rig, workers, connection)
    (response,) = connection.responses()
    assert response.status == 400
    connection.wait(LINGER_IDLE_SECONDS)
    assert connection.closed
    assert_nothing_kept(rig)
    assert descriptors() == before


def test_a_refusal_ends_the_wait_of_the_socket(tmp_path, rig, workers):
    """The decision takes so long that a whole buffer has come by then."""
    Rig(tmp_path, sets=(2,)).put(BODY)
    connection = rig.connect()
    connection.send(sent("length"))
    assert not connection.transport.reading
    finish(rig, workers, connection)
    (response,) = connection.responses()
    assert response.status == 200
    assert connection.transport.reading
    assert connection.unread == 0
    assert rig.uploads.buffered_bytes == 0


@pytest.mark.parametrize("steps", range(1, 6))
def test_that_an_answer_is_taken_is_no_reason_to_read_on(tmp_path, rig, workers, steps):
    answer = BODY[:262_144]
    Rig(tmp_path, sets=(2,)).put(answer)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("GET", f"/{Digest.of(answer)}") + sent("length"))
    for _ in range(steps):
        workers.step()
        connection.settle()
    connection.take()
    while workers.held:
        assert rig.uploads.buffered_bytes <= LIMIT_BYTES
        workers.step()
        connection.take()
    assert [response.status for response in connection.responses()] == [200, 201]


@pytest.mark.parametrize("seed", range(12))
def test_bounds_hold_in_any_order_of_events(tmp_path, seed):
    """Six clients and two disks take turns at random; some clients lie and some go away."""
    rng = random.Random(seed)
    workers = HeldPools()
    budget = rng.choice([200_000, 1_500_000])
    rig = Rig(tmp_path, sets=(2,), worker=workers, total_buffer_bytes=budget)
    before = descriptors()
    clients, expected = {}, {}
    for n in range(6):
        body = random.Random(100 * seed + n).randbytes(rng.choice([10, 300_000, 1_500_000]))
        fate = rng.choice(["stored", "stored", "mismatch", "gone"])
        name = "0" * 63 + str(n) if fate == "mismatch" else str(Digest.of(body))
        if rng.random() < 0.5:
            data = upload_head(name, CHUNKED) + chunked(cuts(body, 10, rng))
        else:
            data = upload_head(name, ("Content-Length", str(len(body)))) + body
        pieces = cuts(data, 20, rng)
        if fate == "gone":
            pieces = [*pieces[:-5], None]
        connection = rig.connect()
        clients[connection] = pieces
        expected[connection] = {"stored": [201], "mismatch": [412], "gone": []}[fate]
    while any(clients.values()) or workers.held:
        connection = rng.choice(list(clients))
        if clients[connection] and rng.random() < 0.7:
            piece = clients[connection].pop(0)
            connection.close() if piece is None else connection.send(piece)
        else:
            workers.step()
            for connection in clients:
                connection.settle()
        assert rig.uploads.buffered_bytes <= budget + 12 * READ_BYTES
    for connection, statuses in expected.items():
        assert [response.status for response in connection.responses()] == statuses
        assert connection.unread == 0 or connection.closed
    assert rig.uploads.buffered_bytes == 0
    assert len(rig.samples()) == 2 * sum(s == [201] for s in expected.values())
    assert rig.staged() == []
    assert descriptors() == before
    assert all(mirror.reserved.total()[0] == 0 for mirror in rig.mirrors.mirrors)
