"""`stor put` of a large file while connections are cut, Stor is killed and a disk is lost."""

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.integration.load import SOAK
from tests.integration.process import MIB, Stor, environment, poll, sha_of
from tests.support.rig import PASSWORD, USER

STOR = Path(sys.executable).parent / "stor"

#: More than this times its size is never sent.
MOST = 1.02

CUTS, SIZE = (50, 300 * MIB) if SOAK else (8, 40 * MIB)

#: Few enough for a machine that does more than this.
BYTES_PER_SECOND = 25e6

_PIECE_BYTES = 16 * 1024
_BUFFER_BYTES = 32 * 1024


class Cutter:
    """A way to a port that counts what clients send, and is cut at some of these counts.

    `cuts` are pairs of a count and what is done then, before the connection ends.
    """

    def __init__(self, port, cuts, bytes_per_second=BYTES_PER_SECOND):
        self._port = port
        self._bytes_per_second = bytes_per_second
        self._cuts = sorted(cuts, key=lambda cut: cut[0])
        self._lock = threading.Lock()
        self.sent_bytes = 0
        self._away = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def left(self):
        return len(self._cuts)

    def close(self):
        self._listening.close()

    @contextlib.contextmanager
    def away(self):
        """Nobody is there: who connects is cut off, and nothing takes the port meanwhile."""
        self._away = True
        yield
        self._away = False

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, socket.socket() as server, contextlib.suppress(OSError):
            if self._away:
                return
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            server.connect(("127.0.0.1", self._port))
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            while data := client.recv(_PIECE_BYTES):
                server.sendall(data)
                time.sleep(len(data) / self._bytes_per_second)
                if self._count(len(data)):
                    return

    def _count(self, count):
        """Whether the way is cut after so many more bytes."""
        with self._lock:
            self.sent_bytes += count
            if not self._cuts or self.sent_bytes < self._cuts[0][0]:
                return False
            _, act = self._cuts.pop(0)
            act()
            return True


def _copy(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


def put(port, path, *arguments):
    url = f"http://{USER}:{PASSWORD}@127.0.0.1:{port}"
    return subprocess.Popen(
        [STOR, "put", "--json", *arguments, path],
        env=environment(STOR_URL=url, HOME="/nonexistent"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def partials(stor):
    return [path for root in stor.roots for path in root.glob(".stor/partial/*")]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "large"
    rng = random.Random(1)
    path.write_bytes(b"".join(rng.randbytes(MIB) for _ in range(SIZE // MIB)))
    yield path
    path.unlink()


@pytest.mark.parametrize("seed", [1])
def test_what_is_cut_off_goes_on_where_it_was(tmp_path, file, seed):
    rng = random.Random(seed)
    stor = Stor.configured(tmp_path / "stor")
    lost = []

    def kill():
        with way.away():
            stor.kill()
            stor.start()

    def lose_a_disk():
        """The first disk of the set that has the upload; once."""
        root = partials(stor)[0].parents[2]
        root.rename(f"{root}.lost")
        lost.append(root)

    acts = [lambda: None] * CUTS
    acts[CUTS // 2] = lose_a_disk
    for n in range(1, CUTS, 8 if not SOAK else 6):
        acts[n] = kill if acts[n] is not lose_a_disk else acts[n]
    offsets = sorted(rng.randrange(MIB, SIZE) for _ in acts)
    way = Cutter(stor.port, list(zip(offsets, acts, strict=True)))
    try:
        process = put(way.port, file)
        output, errors = process.communicate(timeout=300 if SOAK else 120)
        assert process.returncode == 0, errors
        assert json.loads(output)["state"] == "stored"
        assert way.left == 0
        assert lost
        assert way.sent_bytes <= MOST * SIZE + CUTS * 2000, way.sent_bytes / SIZE
        sha = sha_of(file.read_bytes())
        assert sha_of(stor.get(sha).body) == sha
        copies = stor.copies(sha)
        assert len(copies) == 2
        assert {sha_of(copy.read_bytes()) for copy in copies} == {sha}
        assert not partials(stor)
        for root in lost:
            Path(f"{root}.lost").rename(root)
    finally:
        way.close()
        stor.remove()


def test_what_gets_on_is_tried_for_longer(start, file):
    stor = start()
    cuts = [(offset, lambda: None) for offset in range(4 * MIB, 40 * MIB, 6 * MIB)]
    way = Cutter(stor.port, cuts, bytes_per_second=10e6)
    try:
        begun = time.monotonic()
        output, errors = put(way.port, file, "--retry", "2").communicate(timeout=90)
        assert time.monotonic() - begun > 2
        assert json.loads(output)["state"] == "stored", errors
        assert way.left == 0
    finally:
        way.close()


def test_several_processes_hand_an_upload_to_the_one_that_writes(start, tmp_path, file):
    stor = start(workers=2)
    way = Cutter(stor.port, [(offset, lambda: None) for offset in (5 * MIB, 20 * MIB)])
    try:
        output, errors = put(way.port, file).communicate(timeout=60)
        assert json.loads(output)["state"] == "stored", errors
        assert way.left == 0
        assert way.sent_bytes <= MOST * SIZE
    finally:
        way.close()


def test_a_restart_is_gone_on_from_at_once(tmp_path, file):
    """No upload in parts holds up the end of Stor."""
    stor = Stor.configured(tmp_path / "stor")
    way = Cutter(stor.port, [])
    try:
        process = put(way.port, file)
        poll(lambda: way.sent_bytes > 8 * MIB, what="a part of the file")
        begun = time.monotonic()
        with way.away():
            stor.stop()
            assert time.monotonic() - begun < 8
            stor.start()
        output, errors = process.communicate(timeout=60)
        assert json.loads(output)["state"] == "stored", errors
        assert way.sent_bytes <= MOST * SIZE + MIB
        stor.stop()
    finally:
        way.close()
        stor.remove()


def test_two_that_store_the_same_file_at_once(start, file):
    stor = start()
    way = Cutter(stor.port, [])
    try:
        processes = [put(way.port, file) for _ in range(2)]
        states = []
        for process in processes:
            output, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
            states.append(json.loads(output)["state"])
        assert "stored" in states
        sha = sha_of(file.read_bytes())
        assert sha_of(stor.get(sha).body) == sha
        assert len(stor.copies(sha)) == 2
        assert not partials(stor)
    finally:
        way.close()
