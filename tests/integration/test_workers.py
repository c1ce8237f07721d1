"""One writer and several readers as one Stor: whoever answers, whoever is killed."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stor.disk.copy import SUMS_ATTRIBUTE
from tests.engines.process import Process
from tests.integration.load import Audit, Load
from tests.integration.process import (
    MIB,
    connections,
    descriptors,
    endpoint,
    free_port,
    parse,
    poll,
    receive_all,
    sha_of,
    upload_head,
)
from tests.integration.test_tls import Secure
from tests.support.http import AUTHORIZED, chunked, cuts
from tests.support.rig import request_bytes

WORKERS = 3
WRITER, READERS = "stor-writer", [f"stor-reader-{n}" for n in range(1, WORKERS)]

#: A GET is answered within this time, on the connections of a reader, while the writer is away.
GAP_SECONDS = 0.1

STARTING = "the process that stores samples is starting"


@pytest.fixture
def several(start):
    """A Stor of one writer and two readers, all of which answer."""

    def begin(**keys):
        stor = start(**{"workers": WORKERS} | keys)
        poll(lambda: set(stor.children) == {WRITER, *READERS}, 30, "all processes")
        poll(lambda: status_of(stor)["warnings"] == [], 30, "all processes answering")
        return stor

    return begin


def figures_of(stor):
    """All samples of `/metrics` by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(stor.request("GET", "metrics").text)
        for sample in family.samples
    }


def status_of(stor):
    answer = stor.request("GET", "status", headers={"Accept": "application/json"})
    return json.loads(answer.body) if answer.body.startswith(b"{") else {"warnings": [answer.text]}


def share(stor, name):
    """How many of the connections to a Stor one of its processes has."""
    return len(connections(stor.port) & set(descriptors(stor.children[name])))


def connected_to(stor, name):
    """A connection that a certain process has taken."""
    for _ in range(200):
        sock = stor.connect()
        sock.sendall(request_bytes("HEAD", f"/{'0' * 64}"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 404 ")
        if share(stor, name) > 0 and _is_at(stor, name, sock):
            return sock
        sock.close()
    raise AssertionError(f"no connection is taken by {name}")


def _is_at(stor, name, sock):
    address, port = sock.getsockname()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}") and fields[1].endswith(f":{stor.port:04X}"):
            return f"socket:[{fields[9]}]" in descriptors(stor.children[name])
    raise AssertionError(f"no connection of {address}:{port}")


def post(content):
    return upload_head(sha_of(content), len(content)) + content


def get(content, method="GET"):
    return request_bytes(method, f"/{sha_of(content)}")


class Answers:
    """Reads responses off a connection, one after the other."""

    def __init__(self, sock):
        self._sock = sock
        self._received = b""

    def next(self, method="GET"):
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self.more()
        head = self._received[:end].decode("latin-1")
        length = int(re.search(r"(?i)\r\ncontent-length: (\d+)", head)[1])
        length = 0 if method == "HEAD" else length
        while len(self._received) < end + 4 + length:
            self.more()
        body = self._received[end + 4 : end + 4 + length]
        self._received = self._received[end + 4 + length :]
        return int(head.split()[1]), body

    def expect(self, text):
        """These bytes come next."""
        while len(self._received) < len(text):
            self.more()
        assert self._received.startswith(text)
        self._received = self._received[len(text) :]

    def more(self):
        """Wait for more."""
        data = self._sock.recv(65536)
        assert data, f"the connection has ended after {self._received!r}"
        self._received += data


# Connections are handed over.


@pytest.mark.parametrize("seed", range(8))
def test_pipelined_requests_of_all_kinds_keep_their_order(start_in_module, seed):
    stor = module_stor(start_in_module)
    rng = random.Random(seed)
    sent, expected, stored = b"", [], [b""]
    stor.put(b"")
    for n in range(40):
        kind = rng.choice(["GET", "HEAD", "POST", "chunked", "status", "missing"])
        content = rng.choice(stored)
        if kind in ("POST", "chunked"):
            content = rng.randbytes(rng.choice([16, 4000, 70_000, 300_000]))
            stored.append(content)
            head = [AUTHORIZED, ("Transfer-Encoding", "chunked")]
            whole = request_bytes("POST", f"/{sha_of(content)}", head) + chunked([content])
            sent += post(content) if kind == "POST" else whole
            expected.append((kind, 201, None))
        elif kind == "status":
            sent += request_bytes("GET", "/status")
            expected.append((kind, 200, b"OK\n"))
        elif kind == "missing":
            sent += get(rng.randbytes(16))
            expected.append((kind, 404, None))
        else:
            sent += get(content, kind)
            expected.append((kind, 200, content if kind == "GET" else b""))
        del n
    with stor.connect() as sock:
        pieces = cuts(sent, rng.choice([1, 5, 60]), rng)
        sending = threading.Thread(target=lambda: [sock.sendall(piece) for piece in pieces])
        sending.start()
        answers = Answers(sock)
        for kind, status, body in expected:
            found = answers.next(kind)
            assert found[0] == status
            assert body in (None, found[1])
        sending.join()


def module_stor(start_in_module, made=[]):  # noqa: B006 - one for all tests that leave it alone
    if not made or not made[0].running:
        made[:] = [start_in_module(workers=WORKERS, index=False)]
        poll(lambda: status_of(made[0])["warnings"] == [], 30, "all processes answering")
    return made[0]


def test_100_continue_and_a_client_that_sends_no_more(several):
    stor = several()
    content = os.urandom(100_000)
    with connected_to(stor, READERS[0]) as sock:
        sock.sendall(get(b"unknown"))
        sock.sendall(upload_head(sha_of(content), len(content), ("Expect", "100-continue")))
        answers = Answers(sock)
        assert answers.next()[0] == 404
        answers.expect(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.sendall(content + get(content))
        sock.shutdown(socket.SHUT_WR)
        assert answers.next()[0] == 201
        assert answers.next() == (200, content)
        assert sock.recv(1) == b""
    # All at once, with the end.
    another = os.urandom(5000)
    with connected_to(stor, READERS[0]) as sock:
        sock.sendall(get(content) + post(another) + get(another))
        sock.shutdown(socket.SHUT_WR)
        answers = Answers(sock)
        assert [answers.next()[0] for _ in range(3)] == [200, 201, 200]
        assert sock.recv(1) == b""


def test_it_is_the_writer_who_stores_and_a_reader_who_gets_it_back(several):
    stor = several()
    content = b"handed over"
    with connected_to(stor, READERS[0]) as sock:
        answers = Answers(sock)
        sock.sendall(post(content))
        assert answers.next()[0] == 201
        assert _is_at(stor, WRITER, sock)
        sock.sendall(get(content))
        assert answers.next() == (200, content)
        assert _is_at(stor, READERS[0], sock)
    log = stor.log_so_far()
    lines = [line for line in log.splitlines() if f"POST /{sha_of(content)} 201" in line]
    assert len(lines) == 1
    assert " 127.0.0.1 writer POST" in lines[0]


def test_the_pooled_connections_of_a_proxy_do_not_all_end_with_the_writer(several, tmp_path):
    stor = several()
    port = free_port()
    (tmp_path / "haproxy.cfg").write_text(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend in
    bind 127.0.0.1:{port}
    default_backend stor
backend stor
    http-reuse always
    server one 127.0.0.1:{stor.port} pool-max-conn 64
""")
    command = ["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"]

    def answers():
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True

    proxy = Process(tmp_path, "haproxy", command, answers)
    proxy.start()
    try:
        proxy.wait()
        load = Load(port, clients=12, actions={"post": 3, "get": 3}, sizes={1000: 1, 100_000: 1})
        load.run(400)
        assert load.surprises == []
        assert load.lost == 0
        # They have all posted by now. Those that only read go back to those who only read.
        reading = Load(port, clients=12, actions={"unknown": 1})
        reading.run(400)
        assert reading.surprises == []
        assert share(stor, WRITER) < sum(share(stor, name) for name in READERS)
    finally:
        proxy.kill()


def test_tls_is_served_beside_what_all_serve(start, tmp_path):
    secure = Secure(start, tmp_path, workers=WORKERS)
    poll(lambda: status_of(secure.stor)["warnings"] == [], 30, "all processes answering")
    content = b"over TLS"
    for _ in range(10):
        with secure.connect() as sock:
            sock.sendall(post(content + b"%d" % _) + get(content + b"%d" % _))
            answers = Answers(sock)
            assert [answers.next()[0] for _ in range(2)] == [201, 200]
    for n in range(10):
        assert secure.stor.get(sha_of(content + b"%d" % n)).status == 200


def test_a_unix_socket_is_shared_too(several, tmp_path):
    path = str(tmp_path / "socket")
    port = free_port()
    stor = several(port=port, listen=[endpoint(port), f"unix:{path}"])
    for n in range(12):
        content = b"%d" % n
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(path)
            sock.sendall(get(b"unknown") + post(content) + get(content))
            answers = Answers(sock)
            assert [answers.next()[0] for _ in range(3)] == [404, 201, 200]
    stor.stop()
    assert not os.path.exists(path)


# A process is killed.


@pytest.mark.parametrize("victim", READERS)
def test_a_reader_that_is_killed_takes_its_connections_along_and_no_other(several, victim, figures):
    stor = several()
    load = Load(stor.port, seed=len(victim), clients=8)
    with load.running():
        time.sleep(1.0)
        pid = stor.children[victim]
        os.kill(pid, signal.SIGSTOP)  # now its connections can be counted
        mine = share(stor, victim)
        lost_before = load.lost
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        poll(lambda: stor.children.get(victim, pid) != pid, 20, "a reader in its place")
        name = victim.removeprefix("stor-")
        poll(lambda: f"The {name} is back" in stor.log, 30, "one that serves")
        back = time.monotonic() - killed
        time.sleep(1.0)
        lost = load.lost - lost_before
    assert load.surprises == []
    assert lost <= mine
    assert load.requests > 100, "a load that is none"
    load.settle()
    Audit(stor.roots).check(load.acknowledged, load.paths, copies=2)
    assert f"The {name} (pid {pid}) has ended: signal 9" in stor.log
    stor.signal()
    assert stor._process.wait(20) == 0
    figures["milliseconds until a killed reader is back, the longest"] = max(
        figures["milliseconds until a killed reader is back, the longest"], round(1000 * back)
    )
    stor.kill()


class Watch:
    """Asks a reader for a sample again and again, and notes the longest time without an answer."""

    def __init__(self, stor, name, content):
        self._sock, self._content = connected_to(stor, name), content
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest = 0.0
        self.answers = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self._sock.close()

    def restart(self):
        self.longest, self.answers = 0.0, 0

    def _run(self):
        answers, request = Answers(self._sock), get(self._content)
        while not self._over.is_set():
            begun = time.monotonic()
            self._sock.sendall(request)
            if answers.next() != (200, self._content):
                return
            self.longest = max(self.longest, time.monotonic() - begun)
            self.answers += 1


def test_readers_go_on_while_the_writer_is_replaced_and_nothing_is_lost(several, figures):
    stor = several()
    content = os.urandom(4096)
    assert stor.put(content).status == 201
    load = Load(stor.port, seed=1, clients=4)
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(Watch(stor, name, content)) for name in READERS]
        stack.enter_context(load.running())
        time.sleep(1.0)
        for watch in watches:
            watch.restart()
        pid = stor.children[WRITER]
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        poll(lambda: "The writer is back" in stor.log, 30, "another writer")
        back = time.monotonic() - killed
        gap = max(watch.longest for watch in watches)
        assert all(watch.answers > 20 for watch in watches), "readers that do not go on"
        time.sleep(1.0)
    away = [one for one in load.surprises if one.status == 503 and STARTING in one.line]
    assert [one for one in load.surprises if one not in away] == []
    assert load.counts["post 201"] > 0
    # Nobody waits for the writer, on however slow a machine.
    assert gap <= max(GAP_SECONDS, back / 3)
    load.settle()
    poll(lambda: stor.staged() == [], 20, "nothing that the dead writer has left")
    Audit(stor.roots).check(load.acknowledged, load.paths, copies=2)
    assert stor.put(b"after that").status == 201
    for name, seconds in (("without an answer of a reader", gap), ("until a writer is back", back)):
        figures[f"milliseconds {name}, the longest"] = round(1000 * seconds)
    stor.kill()


def test_without_a_writer_what_it_answers_is_503_and_when_to_come_again(several):
    stor = several()
    content = b"read on"
    assert stor.put(content).status == 201
    reading, writing = connected_to(stor, READERS[0]), connected_to(stor, READERS[0])
    # In its place is one that never gets to serve.
    pid = stor.children[WRITER]
    os.kill(pid, signal.SIGKILL)
    poll(lambda: stor.children.get(WRITER, pid) != pid or not _exists(pid), 10, "its end")
    for request in (post(b"not now"), request_bytes("GET", "/status")):
        with contextlib.ExitStack() as stack:
            stack.callback(writing.close)
            writing.sendall(request)
            answer = parse(receive_all(writing))
            if answer.status == 503:
                assert answer.headers["retry-after"] == "1"
                assert STARTING in answer.text
            else:  # it was quick
                assert answer.status in (200, 201)
        writing = connected_to(stor, READERS[0])
    reading.sendall(get(content))
    assert Answers(reading).next() == (200, content)
    poll(lambda: "The writer is back" in stor.log, 30, "another writer")
    writing.sendall(post(b"now"))
    assert Answers(writing).next()[0] == 201
    for sock in (reading, writing):
        sock.close()
    stor.kill()


def test_what_a_killed_writer_has_not_taken_is_answered_at_once(several, figures):
    """Not by the next one, whose start takes seconds."""
    stor = several()
    writing = [connected_to(stor, reader) for reader in READERS for _ in range(3)]
    pid = stor.children[WRITER]
    os.kill(pid, signal.SIGSTOP)  # it takes nothing from now on
    for number, sock in enumerate(writing):
        sock.sendall(post(b"%d" % number))
    for reader in READERS:
        poll(
            lambda reader=reader: share(stor, reader) == 0, 10, "connections that were handed over"
        )
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for sock in writing:
        with sock:
            answer = parse(receive_all(sock))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1"), answer.text
            assert STARTING in answer.text
    took = time.monotonic() - killed
    figures["milliseconds until a writer's clients are told that it ended"] = round(1000 * took)
    poll(lambda: "The writer is back" in stor.log, 30, "another writer")
    assert time.monotonic() - killed > took
    stor.kill()


def _exists(pid):
    return os.path.exists(f"/proc/{pid}")


def test_nobody_outlives_the_parent(several):
    stor = several()
    pids = stor.pids
    assert len(pids) == WORKERS + 1
    stor.signal(signal.SIGKILL)
    poll(lambda: not any(map(_exists, pids[1:])), 5, "the end of all")
    stor.kill()
    stor.start()
    poll(lambda: stor.put(b"after that").status == 201, 30, "a writer")


def test_ended_by_a_signal_it_leaves_nobody(several):
    stor = several()
    pids = stor.pids
    stor.signal()
    stor.ended(20)
    poll(lambda: not any(map(_exists, pids)), 2, "the end of all")


# What one knows counts for all.


def test_all_answer_and_count_as_one(several):
    stor = several()
    content = b"one for all"
    assert stor.put(content).status == 201
    name = ("stor_http_requests_total", ("method", "GET"), ("route", "sample"), ("status", "200"))
    before = figures_of(stor).get(name, 0)
    for _ in range(60):
        assert stor.get(sha_of(content)).body == content
    poll(lambda: figures_of(stor)[name] - before == 60, 10, "the figures of all")
    after = figures_of(stor)
    # Once, whoever says it.
    assert [value for (name, *_), value in after.items() if name == "stor_build_info"] == [1.0]
    states = [v for (n, *_), v in after.items() if n == "stor_disk_state"]
    assert sorted(states) == [0.0] * (3 * len(stor.roots)) + [1.0] * len(stor.roots)
    page = stor.request("GET", "", headers={"Accept": "text/html"})
    assert b"<html" in page.body
    assert stor.request("GET", "").text.startswith("This is Stor ")


@pytest.mark.parametrize("victims", [READERS, [WRITER]])
def test_what_a_dead_process_has_counted_stays_counted(several, victims):
    stor = several()
    sha = sha_of(b"")
    name = ("stor_http_requests_total", ("method", "GET"), ("route", "sample"), ("status", "404"))
    before = figures_of(stor).get(name, 0)
    for _ in range(40):
        stor.get(sha)
    poll(lambda: figures_of(stor)[name] - before == 40, 10, "the figures of all")
    time.sleep(1.5)  # until the writer has said it, too
    for victim in victims:
        os.kill(stor.children[victim], signal.SIGKILL)
    poll(lambda: stor.log.count("is back") == len(victims), 30, "new processes")
    assert figures_of(stor)[name] - before == 40
    stor.kill()


def test_a_damaged_copy_that_a_reader_meets_is_mended_and_served_by_all(several):
    stor = several(index=False, sets=(2,))
    content = os.urandom(50_000)
    sha = stor.place(content)
    bad = stor.copies(sha)[0]
    bad.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with connected_to(stor, READERS[0]) as sock:
        answers = Answers(sock)

        def mended():
            sock.sendall(get(content))
            assert answers.next() == (200, content)
            return [path.read_bytes() == content for path in stor.copies(sha)] == [True, True]

        poll(mended, 20, "two good copies")
    for _ in range(20):
        assert stor.get(sha).body == content
    assert stor.put(content).status == 200
    assert any(bad.parents[3].glob(".stor/quarantine/*.dat.*"))


def test_block_sums_that_a_reader_makes_the_writer_keeps(several):
    """And whoever is being sent the same copy meanwhile gets all of it."""
    stor = several(index=False, sets=(2,))
    content = os.urandom(MIB) * 30
    sha = stor.place(content)
    with connected_to(stor, READERS[0]) as sock, connected_to(stor, READERS[0]) as slow:
        answers = Answers(sock)

        def kept():
            slow_answers = Answers(slow)
            slow.sendall(get(content))
            slow_answers.more()  # its answer has begun, and waits to be read
            for _ in range(2):
                sock.sendall(get(content))
                assert answers.next() == (200, content)
            assert slow_answers.next() == (200, content)
            names = [os.listxattr(path) for path in stor.copies(sha)]
            return all(SUMS_ATTRIBUTE in of_copy for of_copy in names)

        poll(kept, 30, "block sums with both copies")
    assert stor.put(content).status == 200
    assert not any(path for root in stor.roots for path in root.glob(".stor/quarantine/*"))


def test_a_reader_goes_by_the_index_and_a_writer_that_is_killed_leaves_it_what_is_known(several):
    stor = several(cache_bytes=0)
    poll(lambda: all(one["indexed"] for one in status_of(stor)["sets"]), 10, "all names known")
    kept, by_hand = os.urandom(1000), os.urandom(1000)
    assert stor.put(kept).status == 201
    stor.place(by_hand)

    def answers(name):
        with connected_to(stor, name) as sock:
            read = Answers(sock)
            sock.sendall(get(kept) + get(by_hand))
            return [read.next() for _ in range(2)]

    for reader in READERS:
        (first, body), (second, _) = answers(reader)
        # It has asked no disk for what nobody has stored.
        assert (first, body, second) == (200, kept, 404)
    os.kill(stor.children[WRITER], signal.SIGKILL)
    (first, body), _ = answers(READERS[0])
    assert (first, body) == (200, kept)
    poll(lambda: stor.children.get(WRITER), 30, "another writer")
    poll(lambda: status_of(stor)["warnings"] == [], 30, "all processes answering")
    poll(lambda: all(one["indexed"] for one in status_of(stor)["sets"]), 10, "all names known")
    (first, body), _ = answers(READERS[1])
    assert (first, body) == (200, kept)
    stor.kill()


def test_a_disk_that_is_away_is_away_for_all(several):
    stor = several()
    away = stor.roots[0]
    away.rename(away.with_name("gone"))
    poll(lambda: stor.request("GET", "status").status == 503, 30, "a disk that is missed")
    time.sleep(0.5)
    # What nobody has may be there.
    assert {stor.get(sha_of(b"%d" % n)).status for n in range(20)} <= {404, 503}
    assert {stor.put(b"%d" % n).status for n in range(20)} == {201}
    assert not away.exists()
    away.with_name("gone").rename(away)
    poll(lambda: stor.request("GET", "status").status == 200, 30, "a disk that is back")
    poll(lambda: {stor.get(sha_of(b"new %d" % n)).status for n in range(20)} == {404}, 10)


def test_all_is_well_with_a_location_cache(several, memcached):
    host, server_port = memcached.address
    stor = several(memcached_servers=[f"{host}:{server_port}"])
    content = b"somewhere"
    assert stor.put(content).status == 201
    assert {stor.get(sha_of(content)).status for _ in range(20)} == {200}
    status = status_of(stor)
    assert status["available"]
    assert [server["answers"] for server in status["memcached"]] == [True]
    page = stor.request("GET", "", headers={"Accept": "text/html"})
    assert (page.status, b"memcached" in page.body) == (200, True)


def test_limits_are_those_of_all_processes_together(several):
    stor = several(max_uploads=5)
    content = os.urandom(MIB)
    socks = []
    for n in range(5):
        sock = stor.connect()
        sha = sha_of(content + b"%d" % n)
        sock.sendall(upload_head(sha, MIB + 1, ("Expect", "100-continue")))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        socks.append(sock)
    for _ in range(8):
        refused = stor.put(os.urandom(10))
        assert refused.status == 503
        assert "max_uploads" in refused.text
    for sock in socks:
        sock.close()
    poll(lambda: stor.put(b"there is room again").status == 201, what="room for an upload")


def test_one_sample_posted_by_many_is_made_once_whoever_takes_it(several):
    """Beside `test_many_at_once`: small bodies, on connections that stay."""
    stor = several()
    rng = random.Random(4)
    for _ in range(20):
        content = rng.randbytes(rng.choice([0, 1, 5000, 300_000]) or 7)
        sha = sha_of(content)
        socks = [stor.connect() for _ in range(12)]
        for sock in socks:
            sock.sendall(upload_head(sha, len(content)))
        for sock in socks:
            sock.sendall(content)
        statuses = Counter(int(sock.recv(4000).split()[1]) for sock in socks)
        assert statuses == {201: 1, 200: 11}
        assert len(stor.copies(sha)) == 2
        for sock in socks:
            sock.close()


def test_idle_connections_are_spread(several):
    stor = several()
    socks = [stor.connect() for _ in range(60)]
    for sock in socks:
        sock.sendall(request_bytes("HEAD", f"/{'0' * 64}"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 404 ")
    shares = [share(stor, name) for name in (WRITER, *READERS)]
    assert sum(shares) == 60
    assert min(shares) >= 10
    for sock in socks:
        sock.close()


def test_nothing_of_the_current_directory_is_imported(start_with, tmp_path):
    port = free_port()
    planted = tmp_path / "planted"
    for name in ("pickle", "socket", "stor", "twisted", "klein", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(planted)!r}, 'w').close()\n")
    configuration = {
        "storage_pairs": [[str(tmp_path / "disk")]],
        "basic_auth": "writer:writer_pass",
        "listen": [endpoint(port)],
        "require_mount": False,
        "workers": 2,
    }
    (tmp_path / "disk").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    stor = start_with("stor", "--config", "config.json", port=port)
    assert stor.put(b"stored").status == 201
    poll(lambda: len(stor.children) == 2, what="both processes")
    assert not planted.exists()


def test_each_process_takes_no_more_than_60_mib(several, figures):
    stor = several()
    for n in range(100):
        content = b"%d" % n
        assert stor.put(content).status == 201
        assert stor.get(sha_of(content)).body == content
    for name, pid in stor.children.items():
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            kib = int(re.search(r"^Pss: +(\d+) kB", rollup.read(), re.MULTILINE)[1])
        figures[f"MiB that {name} takes"] = kib // 1024
        assert kib <= 60 * 1024
