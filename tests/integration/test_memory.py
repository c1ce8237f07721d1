"""Memory does not grow with what is sent, and nothing passes through `$TMPDIR`."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import pytest

from tests.integration.process import MIB, parse, poll, receive_all, sample_path, upload_head
from tests.support.rig import request_bytes

PIECES = 120
SIZE = PIECES * MIB
CLIENTS = 8


@pytest.fixture(scope="module")
def block():
    """What the samples are made of, each after a header of its own."""
    return os.urandom(MIB)


def pieces(number, block):
    """A sample of 120 MiB, a mebibyte at a time."""
    yield b"%016d" % number + block[16:]
    for _ in range(PIECES - 1):
        yield block


def sha_of_sample(number, block):
    hasher = hashlib.sha256()
    for piece in pieces(number, block):
        hasher.update(piece)
    return hasher.hexdigest()


def upload(stor, sha, number, block):
    with stor.connect(60) as sock:
        sock.sendall(upload_head(sha, SIZE, ("Connection", "close")))
        for piece in pieces(number, block):
            sock.sendall(piece)
        return parse(receive_all(sock)).status


def download(stor, sha):
    """The length and the sha of what is sent."""
    hasher, received = hashlib.sha256(), 0
    with stor.connect(60) as sock:
        sock.sendall(request_bytes("GET", f"/{sha}", version="HTTP/1.0"))
        head, _, piece = read_head(sock).partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % SIZE in head
        # The head may come alone.
        for each in chain([piece], iter(partial(sock.recv, MIB), b"")):
            hasher.update(each)
            received += len(each)
    return received, hasher.hexdigest()


def read_head(sock):
    received = b""
    while b"\r\n\r\n" not in received:
        data = sock.recv(1024)
        assert data, "the end, before the head was complete"
        received += data
    return received


class Watch:
    """Looks at a directory all the time, from a thread of its own, until it is left."""

    def __init__(self, directory):
        self.found = set()
        self._directory = directory
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _look(self):
        while not self._end.wait(0.005):
            self.found.update(os.listdir(self._directory))


def test_eight_big_uploads_at_once(start, tmp_path, block):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    stor = start(variables={"TMPDIR": str(temporary)})
    assert stor.put(b"a first one").status == 201
    with ThreadPoolExecutor(CLIENTS) as pool:
        shas = list(pool.map(sha_of_sample, range(CLIENTS), [block] * CLIENTS))
        before = stor.memory_kib()
        stor.forget_peak()
        with Watch(temporary) as watch:
            numbers = range(CLIENTS)
            codes = list(pool.map(lambda n: upload(stor, shas[n], n, block), numbers))
        assert codes == [201] * CLIENTS
        assert watch.found == set()
        assert stor.memory_kib("VmHWM") - before < 100 * 1024
        assert [len(stor.copies(sha)) for sha in shas] == [2] * CLIENTS

        stor.forget_peak()
        found = list(pool.map(lambda sha: download(stor, sha), shas))
        assert found == [(SIZE, sha) for sha in shas]
        assert stor.memory_kib("VmHWM") - before < 100 * 1024
    poll(lambda: stor.at_rest, what="no connection and no open file")
    assert stor.memory_kib() - before < 100 * 1024


def test_clients_that_stop_reading(start, big_file, figures):
    stor = start(index=False)
    for root in stor.roots[:2]:
        path = root / sample_path(big_file.sha)
        path.parent.mkdir(parents=True)
        os.link(big_file.path, path)
    assert stor.get(big_file.sha, Range="bytes=0-9").status == 206
    before = stor.memory_kib()
    readers = [stor.connect(receive_buffer_bytes=4096) for _ in range(20)]
    try:
        for sock in readers:
            sock.sendall(request_bytes("GET", f"/{big_file.sha}"))
        for sock in readers:
            assert len(sock.recv(1024)) > 0
        grown = watch_until_steady(stor.memory_kib) - before
        figures["KiB taken by 20 clients that stop reading"] = max(0, grown)
        assert grown < 60 * 1024
        assert stor.get(big_file.sha, Range="bytes=-10").status == 206
    finally:
        for sock in readers:
            sock.close()
    poll(lambda: stor.at_rest, what="no connection and no open file")


def watch_until_steady(measure, seconds=1.0):
    """The most that was measured, when it has not become more for some time."""
    most, since = measure(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.02)
        if (now := measure()) > most:
            most, since = now, time.monotonic()
    return most
