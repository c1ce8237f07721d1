"""SIGTERM: nobody new is let in, what runs is finished, and the end is status 0."""

import contextlib
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from tests.integration.process import parse, poll, receive_all, sha_of, upload_head
from tests.support.rig import request_bytes

SIZE = 20_000_000
PIECE_BYTES = 250_000

#: How long a client waits between two pieces.
PAUSE_SECONDS = 0.01


@attrs.define
class Client:
    """A slow client. Half-way it waits for `go_on`."""

    stor: object
    content: bytes
    sha: str
    half_way: threading.Event = attrs.field(factory=threading.Event)
    go_on: threading.Event = attrs.field(factory=threading.Event)

    def upload(self):
        with self.stor.connect() as sock:
            sock.sendall(upload_head(self.sha, SIZE))
            for at in range(0, SIZE, PIECE_BYTES):
                self._pace(at)
                sock.sendall(self.content[at : at + PIECE_BYTES])
            return parse(receive_all(sock))

    def download(self):
        received = bytearray()
        with self.stor.connect(receive_buffer_bytes=65536) as sock:
            sock.sendall(request_bytes("GET", f"/{self.sha}"))
            pieces = 0
            while data := sock.recv(PIECE_BYTES):
                received += data
                if len(received) > pieces * PIECE_BYTES:
                    pieces += 1
                    self._pace(len(received))
        return parse(bytes(received))

    def _pace(self, moved_bytes):
        time.sleep(PAUSE_SECONDS)
        if moved_bytes >= SIZE / 2 and not self.half_way.is_set():
            self.half_way.set()
            self.go_on.wait(30)


@pytest.fixture
def threads():
    """Threads for clients."""
    with ThreadPoolExecutor(16) as found:
        yield found


def clients(stor, number, seed):
    """So many, each with a sample of its own."""
    rng = random.Random(seed)
    contents = [rng.randbytes(SIZE) for _ in range(number)]
    return [Client(stor, content, sha_of(content)) for content in contents]


def test_idle_connections_do_not_hold_it_up(start):
    stor = start()
    never_asked = [stor.connect() for _ in range(20)]
    asked = [stor.connect() for _ in range(20)]
    for sock in asked:
        sock.sendall(request_bytes("GET", "/"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    stor.signal()
    stor.ended(2)
    for sock in never_asked + asked:
        received = receive_all(sock)
        assert not received.startswith(b"HTTP/1.1")
        sock.close()


def test_what_is_in_flight_is_finished(start, threads):
    stor = start(index=False)
    stored = clients(stor, 4, seed=1)
    for client in stored:
        stor.place(client.content, stor.roots[2:])
    new = clients(stor, 4, seed=2)
    uploads = [threads.submit(client.upload) for client in new]
    downloads = [threads.submit(client.download) for client in stored]
    assert all(client.half_way.wait(20) for client in new + stored)

    stor.signal()
    poll(stor.refuses, 2, "new connections are refused")
    for client in new + stored:
        client.go_on.set()
    assert [upload.result(30).status for upload in uploads] == [201] * 4
    assert all(
        download.result(30).body == client.content
        for download, client in zip(downloads, stored, strict=True)
    )
    stor.ended(5)

    stor.start()
    for client in new + stored:
        assert stor.get(client.sha).body == client.content
        assert len(stor.copies(client.sha)) == 2
    assert stor.staged() == []


def test_the_last_byte_reaches_a_client_that_reads_late(start):
    stor, content = start(index=False), os.urandom(256 * 1024)
    sha = stor.place(content)
    with stor.connect(receive_buffer_bytes=4096) as sock:
        sock.sendall(request_bytes("GET", f"/{sha}"))
        first = sock.recv(100)
        stor.signal()
        poll(stor.refuses, 2, "new connections are refused")
        answer = parse(first + receive_all(sock))
    assert answer.body == content
    stor.ended(5)


def test_a_request_that_had_begun_is_answered(start):
    stor = start()
    content = b"its head has not ended when the signal comes"
    head = upload_head(sha_of(content), len(content))
    status = request_bytes("GET", "/status")
    with stor.connect() as uploading, stor.connect() as asking:
        uploading.sendall(head[:100])
        asking.sendall(status[:30])
        # Both have been read when a later request has been answered.
        assert stor.get("status").status == 200
        stor.signal()
        poll(stor.refuses, 2, "new connections are refused")
        uploading.sendall(head[100:] + content)
        asking.sendall(status[30:])
        stored, said = parse(receive_all(uploading)), parse(receive_all(asking))
    assert stored.status == 201
    assert stored.headers["connection"] == "close"
    assert (said.status, said.text) == (503, "stopping\n")
    stor.ended(5)
    assert len(stor.copies(sha_of(content))) == 2


@pytest.mark.parametrize("kept", [True, False], ids=["kept connections", "new connections"])
def test_a_request_that_was_sent_before_the_signal_is_answered(start, kept):
    stor, content = start(index=False), b"a sample"
    sha = stor.place(content)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(stor.connect()) for _ in range(20 * kept)]
        for sock in socks:
            sock.sendall(request_bytes("HEAD", f"/{sha}"))
            assert sock.recv(1000).endswith(b"\r\n\r\n")
        stor.signal(signal.SIGSTOP)
        socks += [stack.enter_context(stor.connect()) for _ in range(20 * (not kept))]
        for sock in socks:
            sock.sendall(request_bytes("GET", f"/{sha}"))
        stor.signal()
        stor.signal(signal.SIGCONT)
        assert [parse(receive_all(sock)).body for sock in socks] == [content] * 20
    stor.ended(5)


def test_an_upload_that_was_asked_for_is_taken(start):
    stor = start()
    content = os.urandom(2_000_000)
    head = upload_head(sha_of(content), len(content), ("Expect", "100-continue"))
    with stor.connect() as sock:
        sock.sendall(head)
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        stor.signal()
        poll(stor.refuses, 2, "new connections are refused")
        sock.sendall(content)
        assert parse(receive_all(sock)).status == 201
    stor.ended(5)


def test_an_upload_whose_client_goes_away_does_not_hold_it_up(start):
    stor = start()
    with stor.connect() as sock:
        sock.sendall(upload_head(sha_of(b"unknown"), 1_000_000) + bytes(400_000))
        poll(stor.staged, what="an upload that has begun")
        stor.signal()
        poll(stor.refuses, 2, "new connections are refused")
    stor.ended(5)
    assert stor.samples() == []


def test_a_refused_client_does_not_hold_it_up(start):
    stor = start()
    with stor.connect() as sock:
        sock.sendall(upload_head("nosha", 1_000_000))
        stor.signal()
        poll(stor.refuses, 2, "new connections are refused")
        sock.sendall(bytes(100_000))
        assert parse(receive_all(sock)).status == 412
    stor.ended(3)


def test_a_second_signal_ends_it_at_once(start):
    stor = start()
    with stor.connect() as sock:
        sock.sendall(upload_head(sha_of(b"unknown"), 1_000_000) + bytes(400_000))
        poll(stor.staged, what="an upload that has begun")
        stor.signal()
        poll(stor.refuses, 2, "new connections are refused")
        assert stor.running
        begun = time.monotonic()
        stor.signal()
        stor.ended(2, status=-signal.SIGTERM)
        assert time.monotonic() - begun < 1
    assert stor.samples() == []
    stor.start()
    assert stor.get("status").status == 200
    assert stor.staged() == []


def test_nothing_acknowledged_is_lost_when_it_is_restarted_under_load(start, threads):
    stor = start()
    ending, acknowledged = threading.Event(), set()

    def post_until_refused(seed):
        rng = random.Random(seed)
        while not ending.is_set():
            content = rng.randbytes(rng.choice((10, 4096, 300_000)))
            try:
                answer = stor.put(content)
            except ConnectionError:
                # Refused, or let go while it came in: nothing was said.
                return
            assert answer.status == 201
            acknowledged.add(sha_of(content))

    posting = [threads.submit(post_until_refused, seed) for seed in range(8)]
    poll(lambda: len(acknowledged) > 50, what="fifty samples")
    stor.signal()
    stor.ended(10)
    ending.set()
    for thread in posting:
        thread.result(10)
    stor.start()
    for sha in acknowledged:
        assert sha_of(stor.get(sha).body) == sha
        assert len(stor.copies(sha)) == 2
    assert stor.staged() == []
    assert stor.staged() == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("log_format", ["text", "journal", "json"])
def test_the_last_lines_before_the_end_are_in_the_log(start, log_format, workers):
    """They are written in batches, and the end comes before the next one is due."""
    stor = start(log_format=log_format, workers=workers)
    for n in range(20):
        stor.request("GET", "status", headers={"X-Request-ID": f"last-{n}-"})
    stor.stop()
    assert [n for n in range(20) if f"last-{n}-" not in stor.log] == []
