"""Large samples that were verified lately, on their way from the disk to a socket past memory."""

import os
import re
import threading
import time
from pathlib import Path

import pytest

from bench.samples import sparse_sample
from stor.zero_copy import MAX_SPLICE_PIPES
from tests.integration.process import MIB, parse, poll, receive_all, sample_path, sha_of
from tests.support.rig import request_bytes

#: Much more than a pipe, a socket's buffers and a visit to a disk take, and no multiple of a page.
LARGE = os.urandom(MIB) * 30 + b"the end"
SHA = sha_of(LARGE)


@pytest.fixture
def stor(start):
    stor = start(index=False, sets=(2,))
    stor.place(LARGE)
    prove(stor)
    return stor


def prove(stor):
    """Have it read every copy once: then it knows them."""
    poll(lambda: all(read_bytes(stor, lambda: stor.get(SHA)) < MIB for _ in range(20)), 30)


def read_bytes(stor, act):
    """What the process has read into its memory, meanwhile."""

    def count():
        return int(re.search(r"^rchar: (\d+)$", Path(f"/proc/{stor.pid}/io").read_text(), re.M)[1])

    before = count()
    act()
    return count() - before


def ask(stor, *headers, **options):
    """A connection on which the sample was asked for."""
    sock = stor.connect(**options)
    sock.sendall(request_bytes("GET", f"/{SHA}", [("Connection", "close"), *headers]))
    return sock


def open_copy(stor):
    """The copy that is being sent, once it alone is open."""

    def only_one():
        found = [name for name in stor.descriptors() if name.endswith(".dat")]
        return found[0] if len(found) == 1 else None

    return Path(poll(only_one, what="one open copy"))


def is_whole(path):
    """Whether the copy is there, and right: until it is put back it may go at any moment."""
    try:
        return path.read_bytes() == LARGE
    except FileNotFoundError:
        return False


def rest_of(sock):
    """What comes until the connection ends, well or badly."""
    received = bytearray()
    try:
        while data := sock.recv(MIB):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def test_a_whole_one_is_exact_and_not_read_into_memory(stor):
    answers = []
    assert read_bytes(stor, lambda: answers.append(stor.get(SHA))) < MIB
    (answer,) = answers
    assert (answer.status, answer.body) == (200, LARGE)
    assert answer.headers["content-length"] == str(len(LARGE))
    assert re.search(rf"GET /{SHA} 200 {len(LARGE)} B sent.*, done", stor.log_so_far())


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (0, 1),
        (0, MIB),
        (4095, 4097),
        (1, 5 * MIB),
        (MIB - 1, 9 * MIB + 3),
        (29 * MIB, len(LARGE)),
        (len(LARGE) - 1, len(LARGE)),
    ],
)
def test_a_part_is_exact(stor, begin, end):
    answer = stor.get(SHA, Range=f"bytes={begin}-{end - 1}")
    assert (answer.status, answer.body) == (206, LARGE[begin:end])


def test_a_part_of_a_very_large_one_reads_three_blocks_at_most(stor):
    size, begin = 10 * 2**30, 5 * 2**30 - MIB // 2
    sha = str(sparse_sample(stor.roots, size))
    answers = []
    headers = {"Range": f"bytes={begin}-{begin + MIB - 1}"}
    read = read_bytes(stor, lambda: answers.append(stor.get(sha, **headers)))
    (answer,) = answers
    assert (answer.status, answer.body) == (206, bytes(MIB))
    assert 0 < read <= 3 * 16 * MIB


def test_head_and_conditions_are_as_ever(stor):
    head = stor.request("HEAD", SHA)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(LARGE))
    assert stor.get(SHA, **{"If-None-Match": head.headers["etag"]}).status == 304


def test_several_on_one_connection_come_one_after_another(stor):
    with stor.connect() as sock:
        ranges = [("Range", f"bytes={n * MIB}-{(n + 2) * MIB - 1}") for n in range(5)]
        for n, header in enumerate(ranges):
            last = [("Connection", "close")] if n == 4 else []
            sock.sendall(request_bytes("GET", f"/{SHA}", [header, *last]))
        received = receive_all(sock)
    for n in range(5):
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 206 ")
        body, received = received[: 2 * MIB], received[2 * MIB :]
        assert body == LARGE[n * MIB : (n + 2) * MIB]
    assert received == b""


def test_a_client_that_takes_its_time_gets_everything(stor):
    with ask(stor, receive_buffer_bytes=16 * 1024) as sock:
        received = bytearray()
        while data := sock.recv(200_000):
            received += data
            if len(received) < 4 * MIB:
                time.sleep(0.01)
    assert parse(bytes(received)).body == LARGE


def test_more_at_once_than_there_are_conduits(stor):
    socks = [ask(stor, receive_buffer_bytes=16 * 1024) for _ in range(MAX_SPLICE_PIPES + 8)]
    try:
        assert poll(lambda: len([d for d in stor.descriptors() if "pipe:" in d]) > MAX_SPLICE_PIPES)
        whole = []

        def take(sock):
            whole.append(parse(receive_all(sock)).body == LARGE)

        threads = [threading.Thread(target=take, args=(sock,)) for sock in socks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for sock in socks:
            sock.close()
    assert whole == [True] * len(socks)


def test_clients_that_go_away_leave_nothing_open(stor):
    poll(lambda: stor.at_rest)
    before = len(stor.descriptors())
    for round_ in range(20):
        with ask(stor, receive_buffer_bytes=16 * 1024) as sock:
            assert sock.recv(1 + round_ * 10_000)
    poll(lambda: stor.at_rest and len(stor.descriptors()) <= before)
    poll(lambda: stor.log.count(", cut, ") == 20)
    assert stor.get(SHA).body == LARGE


def test_what_was_changed_since_is_not_sent(stor):
    path = stor.copies(SHA)[0]
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes([LARGE[5 * MIB] ^ 1]))
    # A modification time can be put back; the time of that change cannot.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    answers = []

    def mended():
        # Which copy is sent is left to chance.
        answers.append(rest_of(ask(stor)))
        return is_whole(path)

    poll(mended, 60)
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert all(body == LARGE for body in bodies if len(body) == len(LARGE))
    # The first that met it may have been cut; none is after that.
    assert [body == LARGE for body in bodies].count(False) <= 1
    stor.kill()  # its log has the damage


@pytest.mark.parametrize("size", [0, 4096, 20 * MIB + 1])
def test_a_copy_that_is_cut_short_while_it_is_sent_gives_nothing_that_looks_whole(stor, size):
    with ask(stor, receive_buffer_bytes=16 * 1024) as sock:
        received = sock.recv(1)
        path = open_copy(stor)
        os.truncate(path, size)
        received += rest_of(sock)
    assert not parse(received).complete
    poll(lambda: is_whole(path), 60)
    assert stor.get(SHA).body == LARGE
    stor.kill()  # its log has the damage


def test_when_both_are_cut_short_nothing_looks_whole(stor):
    with ask(stor, receive_buffer_bytes=16 * 1024) as sock:
        received = sock.recv(1)
        for path in stor.copies(SHA):
            os.truncate(path, 4096)
        received += rest_of(sock)
    answer = parse(received)
    assert not answer.complete
    poll(lambda: re.search(rf"GET /{SHA} 200 \d+ B sent.*, cut", stor.log))
    stor.kill()  # its log has the damage


def test_a_replaced_copy_is_looked_at_again(stor):
    root = stor.roots[0]
    path = root / sample_path(SHA)
    path.unlink()
    stor.place(LARGE, [root])
    prove(stor)
    assert stor.get(SHA).body == LARGE


def test_the_end_waits_for_what_is_being_sent(stor):
    with ask(stor, receive_buffer_bytes=16 * 1024) as sock:
        received = sock.recv(1)
        stor.signal()
        poll(stor.refuses)
        received += receive_all(sock)
    assert parse(received).body == LARGE
    stor.ended()
