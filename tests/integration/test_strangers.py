"""One client without a password, whatever it sends: little memory, and others hardly notice."""

import contextlib
import os
import select
import statistics
import threading
import time

import pytest

from tests.integration.load import timed
from tests.integration.process import MIB, sha_of
from tests.support.rig import request_bytes

CONTENT = os.urandom(4096)
SHA = sha_of(CONTENT)

MOST_KIB = 64 * 1024
MOST_SECONDS = 0.050

SENT = {
    "GETs of a sample": request_bytes("GET", f"/{SHA}"),
    "GETs of what nobody has": request_bytes("GET", f"/{'0' * 64}"),
    "malformed paths": request_bytes("GET", "/x"),
    "POSTs without a password": request_bytes("POST", f"/{SHA}", body=b""),
    "unknown methods": request_bytes("BREW", "/x"),
    "long heads": request_bytes("GET", "/x", [(f"H{n}", "y" * 100) for n in range(100)]),
    "lists": request_bytes("POST", "/missing", body=f"{SHA}\n".encode() * 10_000),
    "heads that are none": b"no request at all\r\n\r\n",
}


class Stranger:
    """Sends the same again and again, as fast as it is read; on a new connection after an end."""

    def __init__(self, stor, request, *, reads):
        self._stor = stor
        self._data = request * max(1, MIB // len(request))
        self._reads = reads
        self._over = threading.Event()
        self.sent_bytes = 0

    @contextlib.contextmanager
    def at_work(self):
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _work(self):
        while not self._over.is_set():
            with contextlib.suppress(OSError), self._stor.connect() as sock:
                sock.setblocking(False)
                self._talk(sock)

    def _talk(self, sock):
        rest = b""
        while not self._over.is_set():
            readable, writable, _ = select.select([sock] if self._reads else [], [sock], [], 0.1)
            if readable and not sock.recv(MIB):
                return
            if writable:
                rest = rest or self._data
                sent = sock.send(rest[: 256 * 1024])
                rest = rest[sent:]
                self.sent_bytes += sent


def seconds_of_gets(stor, seconds):
    """How long each GET of another client takes."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        taken, answer = timed(stor.get, SHA)
        assert answer.body == CONTENT
        found.append(taken)
        time.sleep(0.002)
    return found


@pytest.mark.alone
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "reads nothing"])
@pytest.mark.parametrize("what", SENT)
def test_it_costs_little_and_holds_up_nobody(start, figures, what, reads):
    stor = start(sets=(2,), cache_bytes=MIB)
    assert stor.put(CONTENT).status == 201
    stranger = Stranger(stor, SENT[what], reads=reads)
    before = statistics.median(seconds_of_gets(stor, 0.5))
    memory = stor.memory_kib()
    stor.forget_peak()
    with stranger.at_work():
        during = statistics.median(seconds_of_gets(stor, 2))
    grown = max(0, stor.memory_kib("VmHWM") - memory)
    added = max(0.0, during - before)
    assert stranger.sent_bytes > 100_000
    assert grown < MOST_KIB
    assert added < MOST_SECONDS
    for figure, number in (
        ("KiB that one stranger's requests take, the most", grown),
        ("microseconds that they add to the GETs of others, the most", round(added * 1e6)),
    ):
        figures[figure] = max(figures[figure], number)
