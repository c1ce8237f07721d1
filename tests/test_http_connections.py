"""Connections: pipelined, slow, idle, cut, and at the end of the process."""

import random

import pytest
from twisted.internet.task import Clock

from stor.digest import Digest
from stor.http.download import PIECE_BYTES, STALL_SECONDS
from stor.http.pace import (
    BUFFERS_BYTES,
    CHUNK_BYTES,
    LEAST_CHUNK_BYTES,
    PATIENCE_SECONDS,
    Buffers,
)
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    HeldPools,
    assert_stored,
    chunked,
    cuts,
    descriptors,
    no_bug_logged,
    take_all,
    upload_head,
)
from tests.support.rig import Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))
SMALL = random.Random(1).randbytes(262_144)
LARGE = random.Random(2).randbytes(5_000_000)
IDLE_SECONDS = 60
MEBIBYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path, sets=(2,))


def get(content_or_name, *headers, method="GET"):
    name = content_or_name
    if isinstance(content_or_name, bytes):
        name = Digest.of(content_or_name)
    return request_bytes(method, f"/{name}", headers)


def upload(content):
    return request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content)


TEN = [
    ("GET", get(""), 200),
    ("HEAD", get(LARGE, method="HEAD"), 200),
    ("GET", get(LARGE), 200),
    ("GET", get("0" * 64), 404),
    ("POST", upload(HELLO), 201),
    ("GET", get(HELLO, ("Range", "bytes=1-2")), 206),
    ("PUT", upload_head("f" * 64, CHUNKED, method="PUT") + chunked([b"x", b"y"]), 412),
    ("DELETE", get(HELLO, method="DELETE"), 405),
    ("GET", get(HELLO, ("If-None-Match", "*")), 304),
    ("GET", get(HELLO, ("Connection", "close")), 200),
]


def assert_ten(rig, connection):
    responses = connection.responses([method for method, _, _ in TEN])
    assert [response.status for response in responses] == [status for _, _, status in TEN]
    assert responses[1].headers["content-length"] == str(len(LARGE))
    assert responses[2].body == LARGE
    assert_stored(rig, HELLO, responses[4])
    assert responses[5].body == b"el"
    assert responses[9].body == HELLO
    assert connection.closed
    assert not connection.aborted


def test_ten_requests_at_once_are_answered_in_order(rig):
    rig.put(LARGE)
    connection = rig.connect()
    connection.send(b"".join(data for _, data, _ in TEN) + get(""))
    assert_ten(rig, connection)


@pytest.mark.parametrize("seed", range(5))
def test_ten_requests_in_random_pieces_are_answered_in_order(rig, seed):
    rig.put(LARGE)
    connection = rig.connect()
    for piece in cuts(b"".join(data for _, data, _ in TEN), 100, random.Random(seed)):
        connection.send(piece)
    assert_ten(rig, connection)


def test_ten_requests_are_answered_in_order_by_slow_disks(tmp_path):
    quick = Rig(tmp_path, sets=(2,))
    quick.put(LARGE)
    workers = HeldPools()
    connection = Rig(tmp_path, sets=(2,), worker=workers).connect()
    connection.send(b"".join(data for _, data, _ in TEN))
    while workers.held:
        workers.step()
        connection.settle()
    assert_ten(quick, connection)


def test_a_request_waits_for_the_answer_before_it(tmp_path):
    """So far it may be read, but a body of 10 MB is not taken into memory."""
    workers = HeldPools()
    rig = Rig(tmp_path, sets=(2,), worker=workers)
    connection = rig.connect()
    connection.send(get(SHA))
    connection.send(request_bytes("POST", f"/{Digest.of(LARGE)}", [AUTHORIZED], LARGE))
    assert connection.received == b""
    assert connection.unread > len(LARGE) - 200_000
    while workers.held:
        workers.release()
        connection.settle()
    assert connection.unread == 0
    assert [response.status for response in connection.responses()] == [404, 201]


def test_a_client_that_reads_none_of_many_small_answers(rig):
    """A burst of pipelined requests is not answered into memory."""
    rig.put(SMALL)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(SMALL) * 100 + get("", ("Connection", "close")))
    assert len(connection.transport.outgoing) < 2 * MEBIBYTE
    for _ in range(100):
        connection.take()
        assert len(connection.transport.outgoing) < 2 * MEBIBYTE
    take_all(connection)
    assert bytes(connection.received).count(SMALL) == 100


def test_a_client_that_reads_nothing_is_cut(rig):
    """Under 1 MiB is held for it, and after so long nothing."""
    rig.put(LARGE)
    before = descriptors()
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(LARGE))
    assert 0 < len(connection.transport.outgoing) < MEBIBYTE
    connection.wait(STALL_SECONDS - 1)
    assert not connection.closed
    assert len(connection.transport.outgoing) < MEBIBYTE
    connection.wait(1)
    assert connection.closed
    assert connection.aborted
    assert descriptors() == before
    assert not [c for c in rig.site.channels if c.transport is connection.transport]


@pytest.mark.parametrize("pause", [1, 60, STALL_SECONDS - 1])
def test_a_slow_client_gets_everything(rig, pause):
    rig.put(LARGE)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(LARGE))
    for _ in range(0, len(LARGE), PIECE_BYTES):
        assert len(connection.transport.outgoing) < MEBIBYTE
        connection.wait(pause)
        assert not connection.closed
        connection.take(2 * PIECE_BYTES)
    (response,) = connection.responses()
    assert response.body == LARGE


def test_a_client_that_stops_in_the_middle_is_cut(rig):
    rig.put(LARGE)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(LARGE))
    for _ in range(3):
        connection.take(600_000)
        connection.wait(100)
    assert not connection.closed
    connection.wait(STALL_SECONDS)
    assert connection.aborted
    (response,) = connection.responses()
    assert not response.complete


@pytest.mark.parametrize("requests", [1, 2, 100])
def test_a_client_that_does_not_take_small_answers_is_cut(rig, requests):
    rig.put(SMALL)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(SMALL) * requests)
    connection.wait(IDLE_SECONDS + 1)
    connection.wait(60)
    assert connection.closed


class Holder:
    """A connection that holds memory."""

    was_cut = False

    def cut(self):
        self.was_cut = True


class TestBuffers:
    """What all connections hold together is bounded, and those that take their answers go on."""

    LIMIT = 64 * MEBIBYTE

    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def buffers(self, clock):
        return Buffers(clock.seconds, self.LIMIT)

    def held_by(self, buffers, holders, count):
        for holder in holders:
            buffers.hold(holder, count)

    def test_the_total_is_bounded_whoever_asks(self, buffers):
        holders = [Holder() for _ in range(1000)]
        for holder in holders:
            buffers.hold(holder, 300_000)
            assert buffers.total_bytes <= self.LIMIT
        assert buffers.cuts == sum(holder.was_cut for holder in holders)
        # The first that came, and no more than had to go.
        kept = self.LIMIT // 300_000
        assert [holder.was_cut for holder in holders] == [True] * (1000 - kept) + [False] * kept

    def test_in_half_of_it_slow_clients_have_all_the_time(self, clock, buffers):
        holders = [Holder() for _ in range(100)]
        self.held_by(buffers, holders, self.LIMIT // 200)
        clock.advance(1000)
        buffers.hold(Holder(), 0)
        assert not any(holder.was_cut for holder in holders)

    def test_above_that_those_that_took_nothing_for_a_second_go_first(self, clock, buffers):
        stand, take = [[Holder() for _ in range(100)] for _ in range(2)]
        for holder in [*stand, *take]:
            buffers.hold(holder, self.LIMIT // 300)
        assert not any(holder.was_cut for holder in stand)
        clock.advance(PATIENCE_SECONDS / 2)
        self.held_by(buffers, take, self.LIMIT // 300)
        clock.advance(PATIENCE_SECONDS * 0.6)
        self.held_by(buffers, take, self.LIMIT // 300)
        assert sum(holder.was_cut for holder in stand) == 50
        assert not any(holder.was_cut for holder in take)
        assert buffers.total_bytes <= self.LIMIT // 2

    def test_one_that_has_taken_everything_holds_nothing(self, buffers):
        holder = Holder()
        for count in (5, 500, 0):
            buffers.hold(holder, count)
            assert buffers.total_bytes == count

    def test_the_fuller_the_smaller_are_the_chunks(self, buffers):
        """So that thousands of slow clients find room beside each other."""
        sizes = []
        while buffers.total_bytes < self.LIMIT * 0.99:
            sizes.append(buffers.chunk_bytes)
            buffers.hold(Holder(), buffers.chunk_bytes)
        assert sizes == sorted(sizes, reverse=True)
        assert (sizes[0], sizes[-1]) == (CHUNK_BYTES, LEAST_CHUNK_BYTES)
        assert len(sizes) > 250


def test_clients_that_stop_reading_hold_little_together(rig):
    """Whatever they ask for; one that reads its answers notices nothing."""
    rig.put(LARGE)
    rig.put(SMALL)
    rig.get(SMALL)
    limit = BUFFERS_BYTES // 16
    rig.site.buffers = Buffers(rig.clock.seconds, limit)
    crowd = [rig.connect() for _ in range(200)]
    for number, connection in enumerate(crowd):
        connection.stop_taking()
        connection.send(get([LARGE, SMALL, "x" * 9000][number % 3]) * (1 + number % 4))
        held = [len(c.transport.outgoing) for c in crowd if not c.closed]
        assert sum(held) <= limit
        for one in crowd:
            one.settle()
        reads = rig.connect()
        reads.send(get(LARGE))
        assert reads.responses()[0].body == LARGE
        reads.close()
    assert rig.site.buffers.cuts > 0
    for connection in crowd:
        connection.close()
    assert rig.site.buffers.total_bytes == 0


def test_what_clients_send_ahead_is_counted_too(rig):
    """Half a head, or many requests behind one that waits."""
    connections = [rig.connect() for _ in range(10)]
    for connection in connections[:5]:
        connection.send(b"GET / HTTP/1.1\r\nX: " + b"y" * 10_000)
    for connection in connections[5:]:
        connection.stop_taking()
        connection.send(get("") * 200)
    assert rig.site.buffers.total_bytes > 10 * 10_000
    for connection in connections:
        connection.close()
    assert rig.site.buffers.total_bytes == 0


@pytest.mark.parametrize("taken", [0, 1, 100, 300_000, 600_000, 4_900_000])
def test_a_client_that_goes_away_in_the_middle_of_a_download(rig, taken):
    rig.put(LARGE)
    before, channels = descriptors(), len(rig.site.channels)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(LARGE))
    for _ in range(100):
        connection.take(min(500_000, taken - len(connection.received)))
    assert len(connection.received) == taken
    connection.close()
    assert descriptors() == before
    assert len(rig.site.channels) == channels


def test_a_client_that_goes_away_with_more_requests_on_their_way(rig):
    """Nothing of what was pipelined behind is done for nobody."""
    rig.put(LARGE)
    connection = rig.connect()
    connection.stop_taking()
    connection.send(get(LARGE) + upload(HELLO))
    connection.close()
    assert rig.copies(HELLO) == []


@pytest.mark.parametrize("jobs", range(6))
@pytest.mark.parametrize("request_of", [get, upload], ids=["download", "upload"])
def test_a_client_that_goes_away_while_a_disk_is_busy(tmp_path, request_of, jobs):
    Rig(tmp_path, sets=(2,)).put(LARGE)
    workers = HeldPools()
    rig = Rig(tmp_path, sets=(2,), worker=workers)
    before = descriptors()
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_of(LARGE if request_of is get else SMALL))
    for _ in range(jobs):
        workers.step()
        connection.settle()
    connection.close()
    workers.release()
    assert descriptors() == before
    assert rig.uploads.buffered_bytes == 0
    assert not rig.site.channels
    assert len(rig.copies(SMALL)) in (0, 2)


def idle_after(connection, seconds=IDLE_SECONDS):
    connection.wait(seconds - 1)
    assert not connection.closed
    connection.wait(1)
    assert connection.closed


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        get(""),
        get("0" * 64),
        get("x", method="DELETE"),
        upload(HELLO),
        get("") + b"GET /",
        upload_head(HELLO, ("Content-Length", "5")) + b"hell",
        upload_head(HELLO, CHUNKED) + b"5\r\nhello\r\n0\r\n",
    ],
    ids=lambda sent: repr(sent[:12] + sent[-4:]),
)
def test_an_idle_connection_ends(rig, sent):
    connection = rig.connect()
    connection.send(sent)
    idle_after(connection)
    assert not rig.site.channels
    assert not rig.clock.getDelayedCalls()


def test_no_answer_of_a_slow_disk_times_out(tmp_path):
    workers = HeldPools()
    rig = Rig(tmp_path, sets=(1,), worker=workers)
    connection = rig.connect()
    connection.send(get(SHA))
    connection.wait(1)
    assert not connection.closed
    workers.release()
    connection.settle()
    assert connection.responses()[0].status == 404


def test_a_thousand_idle_connections_are_nothing_but_timers(rig):
    before = descriptors()
    connections = [rig.connect() for _ in range(1000)]
    assert descriptors() == before
    assert len(rig.clock.getDelayedCalls()) == 1000
    for connection in connections:
        connection.close()
    assert not rig.clock.getDelayedCalls()
    assert not rig.site.channels


def test_http_1_1_is_all_that_tls_may_negotiate(rig):
    """HTTP/2 would come with other connections than these."""
    assert rig.site.acceptableProtocols() == [b"http/1.1"]
