"""The limits on real sockets: one too many is told so at once, and the others go on."""

import contextlib
import resource
import time

import pytest

from tests.integration.process import parse, poll, receive_all, sha_of, upload_head
from tests.support.rig import request_bytes

CONTENT = b"a sample"
SHA = sha_of(CONTENT)


@pytest.fixture
def low_limit():
    """Processes that are started may have few files open, unless they raise that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def busy(stor, number):
    """So many connections with an upload that has begun."""
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(stor.connect()) for _ in range(number)]
        for n, sock in enumerate(uploads):
            sock.sendall(upload_head(sha_of(b"%d" % n), 1, ("Expect", "100-continue")))
            assert b"100 Continue" in sock.recv(10_000)
        yield uploads


def test_connections(start):
    stor = start(max_connections=50)
    stor.put(CONTENT)
    poll(lambda: stor.at_rest, what="no connection")
    with busy(stor, 50) as uploads:
        begun = time.monotonic()
        for _ in range(20):
            with stor.connect() as sock:
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(upload_head(SHA, 100_000) + bytes(100_000))
                answer = parse(receive_all(sock))
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
            assert stor.get("status").body == b"OK\n"
        assert time.monotonic() - begun < 10
        uploads[0].sendall(b"0")
        assert parse(uploads[0].recv(10_000)).status == 201
    poll(lambda: stor.at_rest, what="all connections ended")
    assert stor.get(SHA).body == CONTENT


def test_a_client_that_leaves_its_connections_behind_keeps_nobody_out(start):
    """As the Go client does: one a file, idle for 30 s. 20 times as many as there may be."""
    stor = start(max_connections=50)
    stor.put(CONTENT)
    request = request_bytes("GET", f"/{SHA}")
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(stor.connect())
        for number in range(1000):
            sock = stack.enter_context(stor.connect())
            sock.sendall(request)
            assert sock.recv(10_000).endswith(CONTENT), number
            # Another, who is as busy as it, keeps its connection as long as it may.
            other.sendall(request)
            answer = other.recv(10_000)
            assert answer.endswith(CONTENT), number
            if b"Connection: close" in answer:
                other = stack.enter_context(stor.connect())
            if number % 100 == 0:
                assert stor.get("status").body == b"OK\n"
    assert " 503 " not in stor.log_so_far()


def test_a_flood_takes_neither_files_nor_memory(start, figures):
    stor = start(max_connections=50)
    stor.put(CONTENT)
    before = stor.memory_kib()
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                # One that is cut may be so before connect(2) is back.
                with contextlib.suppress(ConnectionResetError):
                    stack.enter_context(stor.connect())
            assert stor.get(SHA).body == CONTENT
            assert stor.get("status").body == b"OK\n"
            # 50 are served, 200 are about to end, as many as are taken in one turn are cut; the
            # rest is what it has open anyway, and far from the thousand that have come.
            assert len(stor.descriptors()) < 50 + 200 + 250 + 100
    grown = stor.memory_kib() - before
    figures["KiB taken by 5 floods of 1000 connections"] = max(0, grown)
    assert grown < 20_000
    assert stor.get(SHA).status == 200


def test_uploads(start):
    stor = start(max_uploads=3)
    stor.put(CONTENT)
    contents = [bytes([n]) * 400_000 for n in range(4)]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(stor.connect()) for _ in contents[:3]]
        for sock, content in zip(slow, contents, strict=False):
            sock.sendall(upload_head(sha_of(content), len(content)) + content[:300_000])
        poll(lambda: len(stor.staged()) == 6, what="three uploads on two disks each")
        with stor.connect() as sock:
            head = upload_head(sha_of(contents[3]), 10**9, ("Expect", "100-continue"))
            sock.sendall(head)
            refused = parse(receive_all(sock))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert stor.get(SHA).body == CONTENT
        assert stor.put(CONTENT).status == 200
        for sock, content in zip(slow, contents, strict=False):
            sock.sendall(content[300_000:])
            assert sock.recv(10_000).startswith(b"HTTP/1.1 201 ")
    assert stor.put(contents[3]).status == 201


def test_a_low_limit_of_open_files_is_raised(start, low_limit):
    stor = start()
    with contextlib.ExitStack() as stack:
        # The client's own limit is as low.
        resource.setrlimit(
            resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2
        )
        for _ in range(1000):
            stack.enter_context(stor.connect())
        assert stor.put(CONTENT).status == 201
        assert len(stor.descriptors()) > 1000
