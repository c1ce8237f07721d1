"""Several processes as one Stor: one is killed, all count as one, none outlives the others."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.load import Audit, Load
from tests.integration.process import (
    MIB,
    connections,
    descriptors,
    poll,
    sha_of,
    upload_head,
)
from tests.support.rig import request_bytes

WORKERS = 4


def figures_of(stor):
    """All samples of `/metrics` by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(stor.request("GET", "metrics").text)
        for sample in family.samples
    }


def status_of(stor):
    answer = stor.request("GET", "status", headers={"Accept": "application/json"})
    return json.loads(answer.body)


@pytest.mark.parametrize("victim", range(WORKERS))
def test_a_worker_that_is_killed_takes_its_requests_along_and_no_other(start, victim, figures):
    stor = start(workers=WORKERS)
    load = Load(stor.port, seed=victim, clients=8)
    with load.running():
        time.sleep(1.0)
        pids = stor.workers
        assert len(pids) == WORKERS
        pid = pids[victim]
        os.kill(pid, signal.SIGSTOP)  # now its connections can be counted
        mine = len(connections(stor.port) & set(descriptors(pid)))
        lost_before = load.lost
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        poll(lambda: len(set(stor.workers) - {pid}) == WORKERS, 2.0, "a worker in its place")
        poll(lambda: f"Pool {victim + 1} is back" in stor.log, 2.0, "one that serves")
        back = time.monotonic() - killed
        time.sleep(1.0)
        lost = load.lost - lost_before
    assert load.surprises == []
    assert lost <= mine
    assert load.requests > 200, "a load that is none"
    load.settle()
    poll(lambda: stor.staged() == [], 20, "nothing that the dead worker has left")
    Audit(stor.roots).check(load.acknowledged, load.paths, copies=2)
    assert "(pid" in stor.log
    assert f"Pool {victim + 1} (pid {pid}) has ended: signal 9" in stor.log
    stor.signal()
    assert stor._process.wait(10) == 0
    stor.kill()
    figures["milliseconds until a killed worker is back, the longest"] = max(
        figures["milliseconds until a killed worker is back, the longest"], round(1000 * back)
    )


def test_all_workers_answer_and_count_as_one(start):
    stor = start(workers=WORKERS)
    content = b"one for all"
    assert stor.put(content).status == 201
    sha = sha_of(content)
    before = figures_of(stor)
    for _ in range(60):
        assert stor.get(sha).body == content
    after = figures_of(stor)
    name = ("stor_http_requests_total", ("method", "GET"), ("route", "sample"), ("status", "200"))
    assert after[name] - before.get(name, 0) == 60
    # Once, whoever says it.
    assert [value for (name, *_), value in after.items() if name == "stor_build_info"] == [1.0]
    states = [v for (n, *_), v in after.items() if n == "stor_disk_state"]
    assert sorted(states) == [0.0] * (3 * len(stor.roots)) + [1.0] * len(stor.roots)
    status = status_of(stor)
    assert status["available"]
    assert status["warnings"] == []
    assert [len(of_set["disks"]) for of_set in status["sets"]] == [2, 2]


def test_what_a_dead_worker_has_counted_stays_counted(start):
    stor = start(workers=2)
    sha = sha_of(b"")
    for _ in range(40):
        stor.get(sha)
    name = ("stor_http_requests_total", ("method", "GET"), ("route", "sample"), ("status", "404"))
    before = figures_of(stor)[name]
    assert before >= 40
    for pid in stor.workers:
        os.kill(pid, signal.SIGKILL)
    poll(lambda: stor.log.count("is back") == 2, 5, "two new workers")
    assert figures_of(stor)[name] == before
    stor.kill()


def test_a_damaged_copy_found_by_one_worker_is_mended_and_served_by_all(start):
    stor = start(workers=WORKERS, sets=(2,))
    content = os.urandom(50_000)
    sha = stor.place(content)
    bad = stor.copies(sha)[0]
    bad.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for _ in range(40):
        answer = stor.get(sha)
        assert (answer.status, answer.body) == (200, content)

    def mended():
        assert stor.get(sha).body == content
        return [path.read_bytes() == content for path in stor.copies(sha)] == [True, True]

    poll(mended, 20, "two good copies")
    assert stor.put(content).status == 200
    assert any(bad.parents[3].glob(".stor/quarantine/*.dat.*"))


def test_a_missing_copy_is_put_back_before_a_post_is_answered(start):
    stor = start(workers=WORKERS, sets=(2,))
    for n in range(8):
        content = b"lacking %d" % n
        sha = stor.place(content, stor.roots[:1])
        assert stor.put(content).status == 200
        assert [path.read_bytes() for path in stor.copies(sha)] == [content, content]


def test_a_disk_that_is_away_is_away_for_all(start):
    stor = start(workers=WORKERS)
    away = stor.roots[0]
    away.rename(away.with_name("gone"))
    poll(lambda: stor.request("GET", "status").status == 503, 30, "a disk that is missed")
    content = [b"%d" % n for n in range(30)]
    assert {stor.put(one).status for one in content} == {201}
    assert not away.exists()
    away.with_name("gone").rename(away)
    poll(lambda: stor.request("GET", "status").status == 200, 30, "a disk that is back")


def test_limits_are_those_of_all_workers_together(start):
    stor = start(workers=WORKERS, max_uploads=5)
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


def test_nobody_outlives_the_supervisor(start):
    stor = start(workers=WORKERS)
    pids = stor.pids
    assert len(pids) == WORKERS + 2
    stor.kill()
    poll(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 5, "the end of all")
    stor.start()
    assert stor.put(b"after that").status == 201


def test_a_nursery_that_is_killed_is_replaced_when_it_is_needed(start):
    stor = start(workers=2)
    first = stor.workers
    os.kill(stor.nursery, signal.SIGKILL)
    poll(lambda: "another follows" in stor.log, what="a word of it")
    assert {stor.put(b"%d" % n).status for n in range(10)} == {201}
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    poll(lambda: stor.log.count("is back") == 2, 15, "workers of another nursery")
    assert {stor.put(b"again %d" % n).status for n in range(10)} == {201}
    stor.kill()


def test_ended_by_a_signal_it_leaves_nobody(start):
    stor = start(workers=WORKERS)
    pids = stor.pids
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids[1:]]
    assert sorted(names) == ["stor-nursery", *(f"stor-worker-{n}" for n in range(1, WORKERS + 1))]
    stor.signal()
    stor.ended(10)
    poll(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 2, "the end of all")


def test_one_sample_posted_by_many_is_made_once_whoever_takes_it(start):
    """Beside `test_many_at_once`: small bodies, on connections that stay."""
    stor = start(workers=WORKERS)
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


def test_idle_connections_are_spread(start):
    stor = start(workers=2)
    socks = [stor.connect() for _ in range(60)]
    for sock in socks:
        sock.sendall(request_bytes("GET", "/"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    shares = [len(connections(stor.port) & set(descriptors(pid))) for pid in stor.workers]
    assert sum(shares) == 60
    assert min(shares) >= 20
    for sock in socks:
        sock.close()
