"""SIGHUP, and what a service manager does: nobody is refused or cut, and it is told how it is."""

import base64
import fcntl
import json
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.integration.load import Load
from tests.integration.process import (
    configure,
    endpoint,
    free_port,
    place,
    poll,
    refused_start,
    sha_of,
)
from tests.support.metrics import Exported
from tests.support.rig import PASSWORD, USER

RELOADS = 20
RESTARTS = 20

#: What clients do that never ask for what a configuration has taken away.
ACTIONS = {"post": 6, "chunked": 2, "again": 3, "get": 6, "head": 2, "unknown": 2}
SIZES = {0: 1, 4096: 8, 65_536: 4, 300_000: 3, 2_000_000: 1}


def two_and_one(directory):
    """Two sets that stay and are written, and one that comes and goes."""
    staying = [[str(directory / f"set{s}" / f"disk{d}") for d in range(2)] for s in range(2)]
    coming = [str(directory / "coming" / f"disk{d}") for d in range(2)]
    for root in (*staying[0], *staying[1], *coming):
        os.makedirs(root)
    return staying, coming


def paths_of(answer):
    assert answer.status == 201, answer.text
    return json.loads(answer.body)


def listens(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def assert_all_answered(load):
    assert load.surprises == []
    assert load.lost == 0, load.counts
    assert load.requests > 200, "a load that is none"


def test_another_configuration_is_in_force_and_no_request_is_lost(start, tmp_path, figures):
    staying, coming = two_and_one(tmp_path)
    kept = place(b"on the set that comes and goes", coming)
    rng = random.Random(7)
    # What does not change in the loop comes first, so that each reload changes all the rest.
    stor = start(storage_pairs=staying)
    load = Load(stor.port, actions=ACTIONS, sizes=SIZES)

    def stored_by(user, password):
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        content = rng.randbytes(100)
        authorization = {"Authorization": f"Basic {credentials}"}
        return stor.request("POST", sha_of(content), content, authorization)

    ports = [free_port() for _ in range(RELOADS)]
    with load.running():
        for n, port in enumerate(ports):
            present, written = n % 2 == 0, n % 3 % 2
            said = stor.reload(
                storage_pairs=[*staying, coming] if present else staying,
                writable_pairs_regex=f"/set{written}/",
                listen=[endpoint(stor.port), endpoint(port)],
                max_upload_bytes=3_000_000 + n,
                basic_auth=[f"{USER}:{PASSWORD}", f"other:{n}"],
            )
            assert "Reloaded: " in said
            assert stor.get(kept).status == (200 if present else 404)
            (one, _) = paths_of(stor.put(rng.randbytes(100)))
            assert one.startswith(staying[written][0])
            too_large = stor.request("POST", "0" * 64, bytes(3_000_001 + n))
            assert f"at most {3_000_000 + n} bytes" in too_large.text
            assert stored_by("other", n - 1).status == 401
            assert stored_by("other", n).status == 201
            assert listens(port)
            assert not any(map(listens, ports[:n]))
            time.sleep(0.1)
    assert_all_answered(load)
    figures["requests during reloads, none lost"] += load.requests


def test_another_password(start):
    stor = start()
    stor.reload(basic_auth=f"{USER}:another")
    assert stor.put(b"with the old password").status == 401
    stor.reload(basic_auth=f"{USER}:{PASSWORD}")
    assert stor.put(b"with the old password").status == 201


def test_an_upload_under_way_ends_on_the_set_that_is_left_out_and_comes_back(start, tmp_path):
    staying, coming = two_and_one(tmp_path)
    only_coming = {"storage_pairs": [*staying, coming], "writable_pairs_regex": "/coming/"}
    stor = start(**only_coming)
    content = random.Random(3).randbytes(3_000_000)
    sha = sha_of(content)

    def body():
        """Every tenth, and in between what the operator does."""
        step = len(content) // 10
        yield content[:step]
        poll(stor.staged, what="an upload that has begun")
        stor.reload(storage_pairs=staying)
        yield content[step : 2 * step]
        assert "Reloaded" in stor.reload(**only_coming)
        yield content[2 * step :]

    answer = stor.request("POST", sha, body(), {"Content-Length": str(len(content))})
    assert all(path.startswith(str(tmp_path / "coming")) for path in paths_of(answer))
    assert stor.get(sha).body == content


def test_threads_do_not_add_up(start, tmp_path):
    """A disk that comes back has the threads that it had."""
    staying, coming = two_and_one(tmp_path)
    kept = place(b"on the set that comes and goes", coming)
    stor = start(storage_pairs=staying)

    def threads():
        return len(os.listdir(f"/proc/{stor.pid}/task"))

    def come_and_go():
        stor.reload(storage_pairs=[*staying, coming])
        assert stor.get(kept).status == 200
        stor.reload(storage_pairs=staying)

    for _ in range(3):
        come_and_go()
    before = threads()
    for _ in range(5):
        come_and_go()
    # Its readers are begun as they are needed: four a disk at most.
    assert threads() <= before + 4


def test_what_waits_for_the_next_start_is_said_as_long_as_it_does(start, tmp_path):
    stor, other = start(workers=1), str(tmp_path / "other")

    def waiting(**changes):
        said = stor.reload(**{"workers": 1} | changes)
        keys = ("workers", "log_format", "state_directory")
        return [key for key in keys if f"{key} is in force after the next start" in said]

    assert waiting(workers=2) == ["workers"]
    assert waiting(workers=2, max_uploads=7) == ["workers"]
    assert waiting(workers=2, state_directory=other) == ["workers", "state_directory"]
    assert waiting(state_directory=other) == ["state_directory"]
    assert waiting() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_prometheus_is_told_of_a_reload_that_was_refused(start, workers):
    stor = start(workers=workers)

    def told():
        found = Exported(stor.request("GET", "metrics").body.decode())
        name = "stor_config_last_reload"
        seconds = found.value(f"{name}_success_timestamp_seconds")
        assert abs(seconds - time.time()) < 600
        return found.value(f"{name}_successful"), seconds

    good, at_start = told()
    stor.reload(workers=workers, reserve_bytes="much")
    assert told() == (0, at_start)
    stor.reload(workers=workers, reserve_bytes="1 MB")
    assert told()[0] == good == 1
    stor.signal()
    with pytest.raises(AssertionError, match="Not reloaded"):
        stor.ended()


@pytest.mark.parametrize("workers", [1, 2])
def test_certificates_that_are_not_there_are_refused_and_all_stays(start, tmp_path, workers):
    stor = start(workers=workers)
    keys = {"access_key": "a", "secret_key": "s", "host": "https://127.0.0.1:1"}
    s3 = {"s3_enabled": True, "s3_credentials": {**keys, "ca_file": str(tmp_path / "gone.pem")}}
    said = stor.reload(workers=workers, basic_auth="somebody:else", **s3)
    fault = f"s3_credentials.ca_file: {tmp_path}/gone.pem: No such file or directory"
    assert f"Not reloaded: config.json: {fault}" in said
    assert "Traceback" not in stor.log
    assert stor.put(b"under the old one").status == 201
    stor.signal()
    with pytest.raises(AssertionError, match="Not reloaded"):
        stor.ended()


def test_a_bad_configuration_is_refused_with_every_fault_and_the_old_one_stays(start):
    stor = start()
    said = stor.reload(workers=0, listen=["tcp:http"], reserve_byte=5)
    for fault in (
        'reserve_byte: unknown key, did you mean "reserve_bytes"?',
        'listen[0]: expected a Twisted endpoint such as "tcp:8080" (invalid literal',
        "workers: expected a whole number from 1 up to 128, found 0",
    ):
        assert f"Not reloaded: config.json: {fault}" in said
    assert "Traceback" not in stor.log
    assert stor.put(b"under the old one").status == 201
    assert "Reloaded: " in stor.reload()
    stor.signal()
    with pytest.raises(AssertionError, match="Not reloaded"):
        stor.ended()


def test_a_port_that_is_not_to_be_had_leaves_all_as_it_was(start, tmp_path):
    stor, other = start(), free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = endpoint(taken.getsockname()[1])
        said = stor.reload(listen=[endpoint(other), where], basic_auth="somebody:else")
    assert f"Not reloaded: listen: {where}: " in said
    assert "Address already in use" in said
    assert not listens(other)
    assert stor.put(b"with the old password").status == 201
    stor.kill()


def test_a_signal_that_comes_with_the_port_waits_for_the_first_look_at_the_disks(start):
    stor = start()
    for _ in range(5):
        stor.stop()
        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(stor.start)
            poll(lambda: listens(stor.port), what="a port that is open")
            stor.signal(signal.SIGHUP)
            starting.result(20)
        poll(lambda: "Reloaded: " in stor.log, what="a reload")
        assert stor.get("status").body == b"OK\n"


# The service manager.


@pytest.fixture
def manager(tmp_path):
    """The socket that a service manager is told things at; its path."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(20)
        yield sock, path


def messages(sock, until):
    """What is said up to and with `until`: each as a dict, with the time of its arrival."""
    found = []
    while not found or until not in found[-1][1]:
        fields = dict(line.split("=", 1) for line in sock.recv(4096).decode().splitlines())
        found.append((time.monotonic(), fields))
    return found


def without_watchdog(found):
    return [fields for _, fields in found if "WATCHDOG" not in fields]


def test_the_service_manager_is_told_what_happens_in_its_order(start, manager):
    sock, path = manager
    stor = start(variables={"NOTIFY_SOCKET": path})
    assert without_watchdog(messages(sock, "READY")) == [{"READY": "1"}]

    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    stor.reload()
    reloading, ready = without_watchdog(messages(sock, "READY"))
    assert ready == {"READY": "1"}
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(reloading["MONOTONIC_USEC"]) / 1e6 <= time.monotonic()

    stor.stop()
    assert without_watchdog(messages(sock, "STOPPING")) == [{"STOPPING": "1"}]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(4096)


def test_ready_means_that_requests_are_answered(start, manager):
    sock, path = manager
    stor = start(variables={"NOTIFY_SOCKET": path})
    content = b"stored at the first try"
    for _ in range(3):
        stor.stop()
        messages(sock, "STOPPING")
        stor.start()
        messages(sock, "READY")
        assert stor.put(content).status in (200, 201)


def test_the_watchdog_is_fed_three_times_in_its_period(start, manager):
    sock, path = manager
    start(variables={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1500000"})
    messages(sock, "READY")
    times = [messages(sock, "WATCHDOG")[-1][0] for _ in range(6)]
    intervals = [later - before for before, later in pairwise(times)]
    assert sum(intervals) / len(intervals) == pytest.approx(0.5, rel=0.2)
    assert max(intervals) < 1.5


@pytest.fixture
def listener():
    """A listening socket that stays open whoever else listens at it."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as sock:
        # Out of the way of the numbers that a service manager hands sockets over as.
        fd = fcntl.fcntl(sock, fcntl.F_DUPFD, 100)
        with socket.socket(fileno=fd) as kept:
            yield kept


@pytest.mark.parametrize("by", ["index=0", "name=stor-http"])
def test_restarts_under_load_lose_no_request(start, listener, figures, by):
    stor = start(
        port=listener.getsockname()[1],
        listen=[f"systemd:domain=INET:{by}"],
        sockets=[listener],
        variables={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "stor-http"},
    )
    load = Load(stor.port, actions=ACTIONS, sizes=SIZES)
    restarts = RESTARTS // 2  # by either description
    with load.running():
        for _ in range(restarts):
            before = load.requests
            stor.stop(20)
            stor.start()
            poll(lambda before=before: load.requests > before + 20, what="requests")
    assert_all_answered(load)
    figures["requests during restarts, none lost"] += load.requests


def test_a_socket_of_the_service_manager_is_taken_once(start, listener):
    """Its number is another file's afterwards, which must not be closed."""
    systemd = "systemd:domain=INET:index=0"
    port = listener.getsockname()[1]
    stor = start(
        port=port,
        listen=[systemd],
        sockets=[listener],
        variables={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "stor-http"},
    )
    other = free_port()
    assert "Reloaded: " in stor.reload(listen=[endpoint(other)])
    assert listens(other)
    said = stor.reload(listen=[endpoint(other), systemd])
    assert f"Not reloaded: listen: {systemd}: the service manager's socket was taken" in said
    stor.port = other
    assert stor.put(b"all is well").status == 201
    stor.kill()


def test_a_socket_that_the_service_manager_has_not_given(tmp_path):
    configure(tmp_path, listen=["systemd:domain=INET:name=stor-http"])
    status, output, errors = refused_start("stor", "--config", "config.json", directory=tmp_path)
    assert (status, output) == (1, "")
    assert "listen[0]: expected a Twisted endpoint" in errors
    assert errors.count("\n") == 1


def test_regrouped_sets_are_not_used_before_their_markers_were_looked_at(start, tmp_path):
    """A disk of another set is refused in the moment of the reload, and gets not one sample."""
    roots = [str(tmp_path / name) for name in ("a", "b", "c", "d")]
    for root in roots:
        os.mkdir(root)
    a, b, c, d = roots
    stor = start(storage_pairs=[[a, b], [c, d]])
    stor.reload(storage_pairs=[[a, c], [b, d]])
    status = stor.get("status")
    before = stor.samples()
    assert stor.put(os.urandom(1000)).status == 503
    assert stor.samples() == before
    assert status.status == 503
    assert status.text.count("this disk belongs to another set than") == 2
    assert stor.get(sha_of(b"absent")).status == 503
    stor.reload(storage_pairs=[[a, b], [c, d]])
    assert stor.get("status").body == b"OK\n"
    assert stor.put(os.urandom(1000)).status == 201
