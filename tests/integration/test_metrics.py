"""What a real statsd server and a real Prometheus get to know, and that neither is needed."""

import json
import signal
import socket
import threading
import time

import pytest

from tests.integration.load import Load
from tests.integration.process import free_port, poll, receive_all, sha_of, upload_head
from tests.integration.test_s3_reading import put, s3_keys
from tests.support.metrics import Exported, Received, assert_agree, disk_name

HELLO = b"hello"
UNKNOWN = sha_of(b"nobody has this")


class Listener:
    """A statsd server."""

    def __init__(self, host="127.0.0.1", port=0, prefix="stor.dev"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.bind((host, port))
        self._socket.settimeout(0.05)
        self.host, self.port = self._socket.getsockname()[:2]
        self._prefix = prefix
        self._datagrams = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    @property
    def keys(self):
        return {"host": self.host, "port": self.port, "prefix": self._prefix}

    @property
    def datagrams(self):
        return list(self._datagrams)

    @property
    def received(self):
        return Received(self._prefix, self._datagrams)

    def close(self):
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _receive(self):
        while not self._ended.is_set():
            try:
                self._datagrams.append(self._socket.recv(65536))
            except TimeoutError:
                continue


@pytest.fixture
def listen():
    listeners = []

    def start(*arguments, **options):
        listeners.append(Listener(*arguments, **options))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def exported(stor):
    response = stor.request("GET", "metrics", authorized=False)
    assert response.status == 200
    return Exported(response.text)


def agree(listener, stor):
    """Wait until everything that was counted has arrived; its totals."""
    deadline = time.monotonic() + 15
    while True:
        received = listener.received
        try:
            assert_agree(received, exported(stor), stor.roots)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return received.totals


def test_every_name_arrives_and_both_count_the_same(start, listen, ceph):
    listener, bucket = listen(), ceph.new_bucket()
    stor = start(
        index=False, sets=[2], statsite=listener.keys, cache_bytes=0, **s3_keys(ceph, bucket)
    )
    poll(lambda: stor.get("status").status == 200, what="an available S3")
    only_in_s3 = put(ceph, bucket, b"only in S3")
    assert stor.put(HELLO).status == 201
    assert stor.put(HELLO).status == 200
    assert {stor.get(sha_of(HELLO)).status for _ in range(20)} == {200}
    assert stor.get(only_in_s3).status == 200
    assert stor.get("malformed").status == stor.get(UNKNOWN).status == 404
    assert stor.put(HELLO, "malformed").status == stor.put(HELLO, UNKNOWN).status == 412
    sock = stor.connect()
    sock.sendall(upload_head(UNKNOWN, 10**16))
    assert receive_all(sock).startswith(b"HTTP/1.1 507 ")
    sock.close()
    for root in stor.roots:
        root.rename(f"{root}.away")
    assert stor.get(UNKNOWN).status == stor.put(b"nowhere").status == 503
    totals = agree(listener, stor)
    names = [
        *("request.get.count", "request.post.count", "healthcheck.count"),
        *("success.get.ok_hcp.count", "success.get.ok_hcp.size", "success.get.ok_hcp.time"),
        *("success.post.duplicate.count", "success.post.write.count"),
        *("error.get.malformed_sha.count", "error.get.500.count"),
        *("error.get.not_found_old.count", "error.get.not_found_hcp.count"),
        *("error.post.malformed_sha.count", "error.post.bad_sha.count"),
        *("error.post.no_space.count", "error.post.unknown.count"),
        *("lookup.time", "lookup.attempt.1.count", "lookup.attempt.3.count"),
        *("cache.time", "cache.hit", "cache.miss"),
    ]
    for root in stor.roots:
        disk = f"success.get.ok_old.{disk_name(root)}"
        names += [f"{disk}.count", f"{disk}.size", f"{disk}.time"]
    assert not [name for name in names if not totals.get(name)]
    for root in stor.roots:
        assert exported(stor).value("stor_disk_state", root=str(root), state="offline") == 1
    assert exported(stor).value("stor_s3_available") == 1
    stor.kill()  # it complains of its disks, as it should


def test_both_count_the_same_under_a_load_whose_clients_go_away(start, listen):
    listener = listen()
    stor = start(statsite=listener.keys)
    load = Load(stor.port, clients=6)
    with load.running():
        time.sleep(5)
    assert load.surprises == []
    poll(lambda: exported(stor).value("stor_http_connections") == 1, what="all connections closed")
    totals = agree(listener, stor)
    assert totals["request.get.count"] > 50
    assert totals["request.post.count"] > 50
    found = exported(stor)
    assert found.value("stor_http_requests_cut_total") > 0
    assert found.value("stor_uploads_in_progress") == found.value("stor_upload_buffered_bytes") == 0
    assert found.value("stor_disk_operations_in_progress") == 0
    assert found.value("stor_repairs_waiting") == 0
    assert max(map(len, listener.datagrams)) <= 1400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_nobody_listens_and_then_somebody_does(start, listen, host):
    port = free_port()
    stor = start(statsite={"host": host, "port": port, "prefix": "stor.dev"})
    for _ in range(20):
        assert stor.put(HELLO).status in (200, 201)
        assert stor.get(sha_of(HELLO)).body == HELLO
        time.sleep(0.02)
    address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][4][0]
    listener = listen(address, port)

    def heard():
        stor.get("status")
        return listener.received.totals["healthcheck.count"]

    poll(heard, what="a line")
    assert "statsite" not in stor.log


def test_a_host_that_is_unknown_has_no_effect(start):
    # A name with an empty part is refused at once, whatever the resolver is.
    stor = start(statsite={"host": "stats..invalid", "prefix": "stor"})
    for _ in range(20):
        assert stor.put(HELLO).status in (200, 201)
        assert stor.get(sha_of(HELLO)).body == HELLO
    poll(lambda: "statsite" in stor.log, what="a warning")
    time.sleep(0.5)
    assert stor.log.count("statsite") == 1
    assert exported(stor).value("stor_samples_stored_total", result="duplicate") == 19


def test_another_server_after_a_reload(start, listen):
    first, second = listen(), listen(prefix="other")
    stor = start(statsite=first.keys)
    stor.get("status")
    poll(lambda: first.received.totals["healthcheck.count"], what="a line")
    path = stor.directory / "config.json"
    configuration = json.loads(path.read_text())
    path.write_text(json.dumps(configuration | {"statsite": second.keys}))
    stor.signal(signal.SIGHUP)
    poll(lambda: "Reloaded" in stor.log, what="the reload")
    before = len(first.datagrams)
    stor.put(HELLO)
    poll(lambda: second.received.totals["success.post.write.count"], what="a line")
    assert len(first.datagrams) == before
    del configuration["statsite"]
    path.write_text(json.dumps(configuration))
    stor.signal(signal.SIGHUP)
    poll(lambda: stor.log.count("Reloaded") == 2, what="the reload")
    before = len(second.datagrams)
    stor.put(HELLO)
    assert exported(stor).value("stor_samples_stored_total", result="duplicate") == 1
    time.sleep(0.5)
    assert len(second.datagrams) == before


def test_what_was_counted_last_is_sent_at_the_end(start, listen):
    listener = listen()
    stor = start(statsite=listener.keys)
    stor.get("status")
    stor.stop()
    poll(lambda: listener.received.totals["healthcheck.count"] == 1, what="the last line")
