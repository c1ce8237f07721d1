"""Answers that do not wait for the body: at once, readable, and with a clean end."""

import contextlib
import hashlib
import http.client
import json
import os
import select
import time

import attrs
import pytest

from tests.integration.process import (
    MIB,
    parse,
    poll,
    receive_all,
    sample_path,
    sha_of,
    upload_head,
)
from tests.support.rig import AUTHORIZATION, request_bytes

LENGTH = 100_000_000

#: One mebibyte in the chunked coding.
CHUNK = b"%x\r\n%b\r\n" % (MIB, bytes(MIB))

#: What a client sends that does not look for an answer before all is sent.
BLIND_BYTES = 64 * MIB


@attrs.frozen
class Refusal:
    """An upload that is answered at its head."""

    status: int
    stor: object
    head: bytes
    expecting_head: bytes


@pytest.fixture(scope="module")
def servers(start_in_module):
    """One Stor that takes up to 1 MB and holds a sample of 100 MB, and one without a limit."""
    limited = start_in_module(index=False, max_upload_bytes=1_000_000)
    unlimited = start_in_module(index=False)
    hasher = hashlib.sha256()
    for _ in range(100):
        hasher.update(bytes(1_000_000))
    stored = hasher.hexdigest()
    for root in limited.roots[:2]:
        path = root / sample_path(stored)
        path.parent.mkdir(parents=True)
        path.touch()
        os.truncate(path, LENGTH)
    return limited, unlimited, stored


def refusal(status, servers):
    limited, unlimited, stored = servers
    unknown = sha_of(b"unknown")
    expect = ("Expect", "100-continue")
    stor = unlimited if status == 507 else limited
    if status == 401:
        given = [("Authorization", "Basic bm86"), ("Content-Length", str(LENGTH))]
        heads = [request_bytes("POST", f"/{unknown}", [*given, *also]) for also in ((), [expect])]
    else:
        name = {412: unknown[:-1], 200: stored, 413: unknown, 507: unknown}[status]
        length = 10**15 if status == 507 else LENGTH
        heads = [upload_head(name, length), upload_head(name, length, expect)]
    return Refusal(status, stor, *heads)


@pytest.fixture(params=[401, 412, 200, 413, 507])
def refused(request, servers):
    """Each refusal in turn; after it nothing is left of it in the Stor."""
    found = refusal(request.param, servers)
    with nothing_left_in(found.stor):
        yield found


@contextlib.contextmanager
def nothing_left_in(stor):
    """Afterwards there is no connection, no open file and no sample more than before."""
    stor.request("GET", "")
    poll(lambda: stor.at_rest, what="no connection and no open file")
    descriptors, samples = len(stor.descriptors()), stor.samples()
    yield
    poll(lambda: stor.at_rest, what="no connection and no open file")
    poll(lambda: len(stor.descriptors()) == descriptors, what=f"{descriptors} descriptors")
    assert stor.samples() == samples


def assert_answered(received, status):
    """This one answer is all there is, and there is no 100 Continue before it."""
    answer = parse(received)
    assert answer.status == status
    assert answer.complete
    assert answer.headers["connection"] == "close"
    if status == 200:
        assert len(json.loads(answer.body)) == 2
    else:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body.count(b"\n") == 1


def test_with_expect_the_body_is_not_asked_for(refused):
    with refused.stor.connect() as sock:
        begun = time.monotonic()
        sock.sendall(refused.expecting_head)
        received = receive_all(sock)
        assert time.monotonic() - begun < 1
    assert_answered(received, refused.status)


def test_without_expect_nothing_of_the_body_is_waited_for(refused):
    with refused.stor.connect() as sock:
        begun = time.monotonic()
        sock.sendall(refused.head)
        received = receive_all(sock)
        assert time.monotonic() - begun < 1
    assert_answered(received, refused.status)


def test_a_client_that_sends_before_it_reads(refused):
    piece = bytes(MIB)
    with refused.stor.connect() as sock:
        sock.sendall(refused.head)
        for _ in range(BLIND_BYTES // MIB):
            sock.sendall(piece)
        received = receive_all(sock)
    assert_answered(received, refused.status)


@pytest.mark.parametrize("refused", [401, 412, 200], indirect=True)
def test_a_client_that_sends_chunks_before_it_reads(refused):
    head = refused.head.replace(b"Content-Length: %d" % LENGTH, b"Transfer-Encoding: chunked")
    with refused.stor.connect() as sock:
        sock.sendall(head)
        for _ in range(BLIND_BYTES // MIB):
            sock.sendall(CHUNK)
        received = receive_all(sock)
    assert_answered(received, refused.status)


def test_a_client_that_trickles(refused):
    with refused.stor.connect() as sock:
        for at in range(0, len(refused.head), 50):
            sock.sendall(refused.head[at : at + 50])
            time.sleep(0.01)
        for _ in range(20):
            sock.sendall(bytes(1000))
            time.sleep(0.02)
        received = receive_all(sock)
    assert_answered(received, refused.status)


def test_a_client_that_trickles_and_reads(refused):
    with refused.stor.connect() as sock:
        sock.sendall(refused.head)
        begun = time.monotonic()
        while select.select([sock], [], [], 0.01)[0] == []:
            assert time.monotonic() - begun < 1
            sock.sendall(bytes(1000))
        received = receive_all(sock)
        for _ in range(10):
            sock.sendall(bytes(1000))
            time.sleep(0.02)
    assert_answered(received, refused.status)


def test_clients_that_neither_send_nor_go_away(servers):
    limited, unlimited, _ = servers
    with nothing_left_in(limited), nothing_left_in(unlimited), contextlib.ExitStack() as stack:
        socks = []
        for status in (401, 412, 200, 413, 507):
            found = refusal(status, servers)
            sock = stack.enter_context(found.stor.connect())
            sock.sendall(found.head)
            socks.append((sock, status))
        for sock, status in socks:
            assert_answered(receive_all(sock), status)
        for stor in (limited, unlimited):
            poll(lambda stor=stor: stor.at_rest, 8, "the end of connections without a purpose")


def test_the_limit_itself_is_taken_and_one_byte_more_is_not(servers):
    limited, _, _ = servers
    assert limited.put(bytes(1_000_000)).status == 201
    assert limited.put(bytes(1_000_001)).status == 413
    with nothing_left_in(limited):
        more = iter([bytes(1_000_001)])
        assert limited.request("POST", sha_of(bytes(1_000_001)), more).status == 413


def test_chunks_beyond_the_limit_that_never_end(servers):
    limited, _, _ = servers
    with nothing_left_in(limited), limited.connect() as sock:
        given = [("Authorization", AUTHORIZATION), ("Transfer-Encoding", "chunked")]
        sock.sendall(request_bytes("POST", f"/{sha_of(b'unknown')}", given))
        for _ in range(BLIND_BYTES // MIB):
            sock.sendall(CHUNK)
        assert_answered(receive_all(sock), 413)


def test_the_connection_goes_on_after_an_answer_to_a_whole_body(servers):
    limited, _, _ = servers
    with nothing_left_in(limited):
        connection = http.client.HTTPConnection("127.0.0.1", limited.port, timeout=10)
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request(
                "POST", f"/{sha_of(b'other')}", b"wrong", {"Authorization": AUTHORIZATION}
            )
            answer = connection.getresponse()
            assert answer.status == 412
            assert sha_of(b"wrong") in answer.read().decode()
        assert connection.sock is first
        connection.close()
