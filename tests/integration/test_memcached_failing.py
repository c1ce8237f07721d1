"""A memcached that goes away, hangs or talks nonsense while samples are asked for."""

import os
import re
import socket
import threading
import time

import pytest

from tests.engines.memcached import Memcached
from tests.integration.load import percentile
from tests.integration.process import free_port, sha_of
from tests.integration.test_hung_disk import Client

SETS = (1,) * 12

#: What a memcached that fails may add to the 99th percentile.
ADDED_SECONDS = 0.05


@pytest.fixture
def memcached(tmp_path):
    """One that may fail."""
    with Memcached(tmp_path / "memcached") as server:
        yield server


def address(server):
    return "{}:{}".format(*server.address)


class Nonsense:
    """A server that answers anything with garbage."""

    def __init__(self):
        self.address = ("127.0.0.1", free_port())
        self._server = socket.create_server(self.address)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._server.close()

    def _serve(self):
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=[sock], daemon=True).start()

    def _talk(self, sock):
        with sock:
            while sock.recv(4096):
                sock.sendall(b"VALUE \xff\0 garbage -1\r\n" + os.urandom(100) + b"\r\nEND\r\n")


def place_far_and_wide(stor, samples):
    """Samples of which each is on one of the sets; their names."""
    return [
        stor.place(b"sample %d " % number + os.urandom(20), [stor.roots[number % len(stor.roots)]])
        for number in range(samples)
    ]


@pytest.mark.alone
class TestDuringALoad:
    @pytest.mark.parametrize("trouble", ["killed", "hung"])
    def test_it_costs_no_error_and_little_time(self, memcached, start, trouble):
        stor = start(index=False, sets=SETS, memcached_servers=[address(memcached)])
        shas = iter(place_far_and_wide(stor, 4000))
        client = Client(lambda: stor.get(next(shas)), 0.002)
        try:
            time.sleep(2)
            begun = time.monotonic()
            with memcached.killed() if trouble == "killed" else memcached.paused():
                time.sleep(3)
                ended = time.monotonic()
            time.sleep(1)
        finally:
            client.end()
        assert {answer.status for answer in client.answers} == {200}
        before, during, after = (
            percentile([answer.seconds for answer in client.between(*times)], 0.99)
            for times in [(0, begun), (begun, ended), (ended, float("inf"))]
        )
        assert during < before + ADDED_SECONDS
        assert after < before + ADDED_SECONDS

    def test_garbage_is_as_if_nothing_was_there(self, start):
        server = Nonsense()
        try:
            stor = start(index=False, sets=SETS, memcached_servers=[address(server)])
            for sha in place_far_and_wide(stor, 100):
                assert stor.get(sha).status == 200
            assert stor.get(sha_of(b"nobody has it")).status == 404
            assert stor.put(b"new").status == 201
        finally:
            server.close()


def lookups(stor):
    """How many GETs there were, and how many disks were asked for them."""
    text = stor.get("metrics").text
    found = {
        kind: float(re.search(rf"^stor_lookup_attempts_{kind}(?:{{}})? (\S+)$", text, re.M)[1])
        for kind in ("count", "sum")
    }
    return found["count"], found["sum"]


@pytest.mark.parametrize("shared", [True, False], ids=["with memcached", "without"])
def test_what_another_process_has_stored_is_found_at_once_with_memcached(memcached, start, shared):
    servers = {"memcached_servers": [address(memcached)] if shared else []}
    stor = start(index=False, sets=SETS, **servers)
    shas = []
    for number in range(200):
        content = b"%d" % number
        shas.append(sha_of(content))
        assert stor.put(content).status == 201
    stor.stop()
    stor.start()  # which has seen none of them
    gets, attempts = lookups(stor)
    for sha in shas:
        assert stor.get(sha).status == 200
    more_gets, more_attempts = lookups(stor)
    each = (more_attempts - attempts) / (more_gets - gets)
    # One of 12 disks at random is asked first, then the next: 6.5 on average.
    assert each < 1.1 if shared else each > 5


def test_a_place_where_the_sample_is_not_any_more_costs_a_lookup_only(memcached, start):
    stor = start(index=False, sets=SETS, memcached_servers=[address(memcached)])
    content = os.urandom(300_000)
    assert stor.put(content).status == 201
    (path,) = stor.copies(sha_of(content))
    other = next(root for root in stor.roots if not path.is_relative_to(root))
    stor.place(content, [other])
    path.unlink()
    stor.stop()
    stor.start()
    answer = stor.get(sha_of(content))
    assert (answer.status, answer.body) == (200, content)
    stor.copies(sha_of(content))[0].unlink()
    assert stor.get(sha_of(content)).status == 404
