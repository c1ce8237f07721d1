"""What is counted: every name of the specification, the same for statsd and for Prometheus."""

import os
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from twisted.logger import LogLevel, capturedLogs, formatEvent

from stor.digest import Digest
from stor.gauges import Reloads
from stor.http.download import STALL_SECONDS
from stor.location import S3, Locations, mirror_place
from stor.mirror.health import State
from stor.statsd import FLUSH_SECONDS
from tests.conformance import sample
from tests.support.bucket import MemoryBucket
from tests.support.files import FaultyFiles
from tests.support.http import AUTHORIZED, Disks, HeldPools, no_bug_logged, upload_head
from tests.support.metrics import Exported, Received, assert_agree, disk_name, expectations
from tests.support.rig import Rig, request_bytes
from tests.support.statsd import Network

REPOSITORY = Path(__file__).parent.parent

HELLO = b"hello"
UNKNOWN = "0" * 64
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Watched(Rig):
    """A Stor with S3 that a statsd server hears of."""

    def __init__(self, path, sets=(2, 2), *, in_s3=(), **options):
        super().__init__(path, sets, **options)
        self.network = Network()
        self.metrics.send_to(self.network.statsd(self.clock))
        self.clock.advance(0)
        self.bucket = MemoryBucket(*in_s3)
        places = {
            mirror_place("host", [m.root for m in s.members]): s for s in self.mirrors.mirrors
        }
        locations = Locations([*places, S3], [], self.clock)
        self.reconfigure(
            bucket=self.bucket, order=("disk", "s3"), locations=locations, places=places
        )

    def received(self):
        """What the statsd server knows by now."""
        self.clock.advance(FLUSH_SECONDS)
        return Received("stor.dev", self.network.datagrams)

    def exported(self):
        """What Prometheus gets now."""
        response = self.request("GET", "/metrics")
        assert response.status == 200
        return Exported(response.text)

    def agreed(self):
        """The totals by statsd's names, on which both agree."""
        received, exported = self.received(), self.exported()
        assert_agree(received, exported, self.roots)
        return {name: total for name, total in received.totals.items() if total}


def everything(rig):
    """A load that touches every name; what of it has to be counted, by statsd's names."""
    in_s3 = next(iter(rig.bucket.contents.values()))
    assert rig.put(HELLO).status == 201
    assert rig.put(HELLO).status == 200
    assert rig.put(b"another", method="PUT").status == 201
    assert rig.get(HELLO).status == rig.get(HELLO, method="HEAD").status == 200
    assert rig.get(in_s3).status == 200
    assert rig.get("xyz").status == rig.get(UNKNOWN).status == 404
    assert rig.put(HELLO, name="xyz").status == rig.put(b"x", name=UNKNOWN).status == 412
    connection = rig.connect()
    connection.send(upload_head(UNKNOWN, ("Content-Length", 10**16)))
    assert connection.responses()[0].status == 507
    assert rig.request("GET", "/status").status == 200
    for path in rig.copies(b"another"):
        path.write_bytes(b"damaged")
    assert rig.get(b"another").status == 500
    for root in rig.roots:
        shutil.rmtree(root)
    rig.probe()
    assert rig.put(b"nowhere").status == 503
    return {
        "request.get.count": 6,
        "request.post.count": 7,
        "success.get.ok_hcp.count": 1,
        "success.get.ok_hcp.size": len(in_s3),
        "success.post.duplicate.count": 1,
        "success.post.write.count": 2,
        "error.get.malformed_sha.count": 1,
        "error.get.not_found_old.count": 1,
        "error.get.not_found_hcp.count": 1,
        "error.get.500.count": 1,
        "error.post.malformed_sha.count": 1,
        "error.post.bad_sha.count": 1,
        "error.post.no_space.count": 1,
        "error.post.unknown.count": 1,
        "healthcheck.count": 1,
        # Not asked for what the kernel has in memory.
        "cache.hit": 1,
        "cache.miss": 2,
    }


def test_every_name_is_sent_and_both_count_the_same(tmp_path):
    rig = Watched(tmp_path, (2,), in_s3=[b"only in S3"], seed=1)
    expected = everything(rig)
    totals = rig.agreed()
    received = rig.received()
    assert expectations(rig.exported(), rig.roots).keys() >= received.names
    assert {name: totals[name] for name in expected} == expected
    # Two GETs from two disks at random, and any of them may have been the HEAD's.
    disks = [f"success.get.ok_old.{disk_name(root)}" for root in rig.roots]
    assert sum(totals.get(f"{disk}.count", 0) for disk in disks) == 2
    assert sum(totals.get(f"{disk}.size", 0) for disk in disks) == len(HELLO)
    assert sum(received.lines[f"{disk}.time"] for disk in disks) == 2
    attempts = [total for name, total in totals.items() if name.startswith("lookup.attempt.")]
    assert sum(attempts) == received.lines["lookup.time"] == 5
    assert received.lines["cache.time"] == 3
    assert totals["lookup.attempt.3.count"] >= 2, "two disks and S3, in vain"


@pytest.mark.parametrize("plain", [True, False])
def test_a_404_by_the_index_is_counted_as_one_of_the_disks(tmp_path, plain):
    """On the fast path and on the ordinary way, which a conditional request takes."""
    rig = Watched(tmp_path, (2,))
    rig.reconfigure(bucket=None, order=("disk",))
    rig.rounds(1)
    (mirror,) = rig.mirrors.mirrors
    assert rig.mirrors.names.known(mirror)
    headers = [] if plain else [("If-None-Match", '"another"')]
    assert rig.get(UNKNOWN, headers=headers).status == 404
    assert rig.agreed()["error.get.not_found_old.count"] == 1


@pytest.mark.parametrize("seed", range(5))
def test_both_count_the_same_whatever_happens(tmp_path, seed):
    """Requests in any order, some of whose clients go away."""
    rng = random.Random(seed)
    contents = [sample(size) for size in (0, 5, 5000, 300_000, MIB)]
    options = {"max_upload_bytes": MIB - 1, "cache_bytes": 10_000 if seed % 2 else 0}
    rig = Watched(tmp_path, in_s3=contents[:2], seed=seed, **options)

    def leave(data):
        connection = rig.connect()
        connection.stop_taking()
        connection.send(data[: rng.randrange(1, len(data) + 1)])
        connection.take(rng.randrange(100_000))
        connection.close()

    def step(content):
        method = rng.choice(["GET", "HEAD"])
        names = [str(Digest.of(content)), UNKNOWN, "x", "status", "", "metrics"]
        name = rng.choice([names[0], *names])
        return rng.choice(
            [
                lambda: rig.get(name, method=method),
                lambda: rig.get(content, [("Range", "bytes=1-3")]),
                lambda: rig.get(content, [("If-None-Match", "*")]),
                lambda: rig.put(content),
                lambda: rig.put(content, name=rng.choice(names)),
                lambda: rig.request("POST", f"/{UNKNOWN}", body=b""),
                lambda: rig.request("BREW", f"/{name}"),
                lambda: leave(request_bytes("GET", f"/{name}")),
                lambda: leave(request_bytes("POST", f"/{name}", [AUTHORIZED], content)),
            ]
        )

    for _ in range(200):
        step(rng.choice(contents))()
    totals = rig.agreed()
    assert totals["request.get.count"] > 20
    assert totals["request.post.count"] > 20


def test_a_sample_in_memory_counts_for_the_disk_that_it_came_from(tmp_path):
    rig = Watched(tmp_path, (1,), cache_bytes=10_000)
    rig.put(HELLO)
    for _ in range(5):
        rig.get(HELLO)
    rig.get(HELLO, method="HEAD")
    rig.get(HELLO, [("Range", "bytes=1-2")])
    totals, disk = rig.agreed(), f"success.get.ok_old.{disk_name(rig.roots[0])}"
    assert (totals[f"{disk}.count"], totals[f"{disk}.size"]) == (7, 5 * len(HELLO) + 2)
    assert totals["lookup.attempt.1.count"] == 1
    exported = rig.exported()
    assert exported.value("stor_hot_hits_total") == 6
    assert exported.value("stor_hot_samples") == 1
    assert exported.value("stor_hot_bytes") > len(HELLO)


class TestAClientThatGoesAway:
    def test_in_the_middle_of_an_answer(self, tmp_path):
        rig = Watched(tmp_path)
        content = sample(4 * MIB)
        rig.put(content)
        connection = rig.connect()
        connection.stop_taking()
        connection.send(request_bytes("GET", f"/{Digest.of(content)}"))
        connection.take(MIB)
        connection.close()
        totals, exported = rig.agreed(), rig.exported()
        assert totals["request.get.count"] == 1
        assert not [name for name in totals if name.startswith(("success.get", "error."))]
        assert exported.value("stor_http_requests_cut_total", method="GET") == 1
        sent = exported.value("stor_http_response_size_bytes_sum", method="GET")
        head = connection.received.index(b"\r\n\r\n") + 4
        assert len(connection.received) - head <= sent < len(content)

    def test_because_it_does_not_take_the_answer(self, tmp_path):
        rig = Watched(tmp_path)
        content = sample(4 * MIB)
        rig.put(content)
        connection = rig.connect()
        connection.stop_taking()
        connection.send(request_bytes("GET", f"/{Digest.of(content)}"))
        connection.wait(STALL_SECONDS)
        exported = rig.exported()
        assert exported.value("stor_http_requests_cut_total", method="GET") == 1
        seconds = exported.value("stor_http_request_duration_seconds_sum", method="GET")
        assert seconds >= STALL_SECONDS

    def test_before_an_answer(self, tmp_path):
        disks = HeldPools()
        rig = Watched(tmp_path, worker=disks)
        connection = rig.connect()
        connection.send(request_bytes("GET", f"/{UNKNOWN}"))
        connection.close()
        disks.release()
        assert rig.agreed()["request.get.count"] == 1
        requests = "stor_http_requests_total"
        assert rig.exported().value(requests, route="sample", method="GET", status="0") == 1

    def test_in_the_middle_of_a_body(self, tmp_path):
        rig = Watched(tmp_path)
        connection = rig.connect()
        connection.send(upload_head(HELLO, ("Content-Length", 5)) + HELLO[:3])
        exported = rig.exported()
        assert exported.value("stor_uploads_in_progress") == 1
        assert exported.value("stor_upload_buffered_bytes") == 3
        connection.close()
        exported = rig.exported()
        assert exported.value("stor_uploads_in_progress") == 0
        assert exported.value("stor_upload_buffered_bytes") == 0
        assert exported.value("stor_http_request_size_bytes_sum", method="POST") == 3
        assert rig.agreed() == {"request.post.count": 1}

    def test_while_its_sample_is_made_durable(self, tmp_path):
        """It was never told that its sample is stored, which it is."""
        disks = HeldPools()
        rig = Watched(tmp_path, worker=disks)
        connection = rig.connect()
        connection.send(request_bytes("POST", f"/{Digest.of(HELLO)}", [AUTHORIZED], HELLO))
        connection.close()
        disks.release()
        assert len(rig.copies(HELLO)) == 2
        assert rig.agreed() == {"request.post.count": 1}
        assert rig.exported().value("stor_uploads_in_progress") == 0


def test_the_last_reload_is_told_and_a_refused_one_leaves_its_time():
    now = [1000.0]
    reloads = Reloads(wall_seconds=lambda: now[0])

    def told():
        return [family.values[()] for family in reloads.collect()]

    reloads.note(good=True)
    assert told() == [1, 1000]
    now[0] = 2000.0
    reloads.note(good=False)
    assert told() == [0, 1000]
    reloads.note(good=True)
    assert told() == [1, 2000]


class TestTheDisks:
    def test_operations_and_their_time(self, tmp_path):
        disks = HeldPools()
        rig = Watched(tmp_path, (1,), worker=disks)
        root = str(rig.roots[0])
        connection = rig.connect()
        connection.send(request_bytes("GET", f"/{UNKNOWN}"))
        assert rig.exported().value("stor_disk_operations_in_progress", root=root) == 1
        connection.wait(0.75)
        disks.release()
        exported = rig.exported()
        assert exported.value("stor_disk_operations_in_progress", root=root) == 0
        for name, labels in {
            "stor_disk_operation_seconds": {"root": root, "kind": "read"},
            "stor_disk_operation_duration_seconds": {"kind": "read"},
        }.items():
            assert exported.value(f"{name}_count", **labels) == 1
            assert exported.value(f"{name}_sum", **labels) == pytest.approx(0.75)
        buckets = "stor_disk_operation_duration_seconds_bucket"
        assert exported.value(buckets, kind="read", le="0.5") == 0
        assert exported.value(buckets, kind="read", le="1.0") == 1

    def test_room(self, tmp_path):
        rig = Watched(tmp_path, (2,), reserve_bytes=12345)
        for root in map(str, rig.roots):
            found = os.statvfs(root)
            exported = rig.exported()
            total = exported.value("stor_disk_total_bytes", root=root)
            assert total == found.f_frsize * found.f_blocks
            assert 0 < exported.value("stor_disk_free_bytes", root=root) < total
            assert exported.value("stor_disk_reserve_bytes", root=root) == 12345

    def test_what_becomes_of_a_disk_that_is_not_complete(self, tmp_path):
        rig = Watched(tmp_path, (2,))
        root = str(rig.roots[1])
        assert rig.exported().value("stor_disk_complete_ratio", root=root) == 1
        assert rig.exported().value("stor_disk_rebuilding", root=root) == 0

    def test_errors_and_states(self, tmp_path):
        files = Disks(FaultyFiles)
        rig = Watched(tmp_path, (2,), files=files)
        contents = [b"%d" % n for n in range(20)]
        for content in contents:
            rig.put(content)
        first, second = map(str, rig.roots)
        files["set0/disk0"].fail_always("*", 5)
        for content in contents:
            rig.get(content, [("Range", "bytes=0-")])  # from the disks, not from memory
        shutil.rmtree(second)
        rig.members[1].probe()
        exported = rig.exported()
        errors = exported.value("stor_disk_errors_total", root=first)
        assert errors == rig.members[0].health.errors_total >= 3
        states = {
            (root, state.value): exported.value("stor_disk_state", root=root, state=state.value)
            for root in (first, second)
            for state in State
        }
        assert {key for key, value in states.items() if value} == {
            (first, "suspect"),
            (second, "offline"),
        }
        assert exported.value("stor_sets_writable") == 0

    def test_room_is_what_the_disk_last_said(self, tmp_path):
        rig = Watched(tmp_path)
        exported = rig.exported()
        for member in rig.members:
            free = exported.value("stor_disk_free_bytes", root=member.root)
            assert free == member.health.room.free_bytes > 0
        assert exported.value("stor_sets") == exported.value("stor_sets_writable") == 2

    def test_nothing_is_said_of_the_room_of_a_disk_that_was_never_seen(self, tmp_path):
        """No alert for a full disk, when it is away."""
        rig = Watched(tmp_path, (1, 1), forbidden_device=tmp_path.stat().st_dev)
        names = [sample.name for sample in rig.exported().samples]
        assert "stor_disk_state" in names
        assert "stor_disk_free_bytes" not in names

    def test_repairs(self, tmp_path):
        rig = Watched(tmp_path, (2,))
        rig.put(HELLO)
        assert rig.exported().value("stor_repairs_total") == 0
        rig.copies(HELLO)[0].unlink()
        for _ in range(20):
            rig.get(HELLO)
        exported = rig.exported()
        assert exported.value("stor_repairs_total") == 1
        assert exported.value("stor_repairs_waiting") == 0
        assert len(rig.copies(HELLO)) == 2

    def test_damage_by_disk(self, tmp_path):
        """And each is a warning with its reason, once."""
        rig = Watched(tmp_path, (2,))
        rig.put(HELLO)
        bad, good = rig.copies(HELLO)
        bad.write_bytes(b"x" * len(HELLO))
        with capturedLogs() as logs:
            for _ in range(20):
                assert rig.get(HELLO).body == HELLO
        first, second = map(str, rig.roots)
        for figure in ("damaged", "restored", "quarantined"):
            name = f"stor_disk_{figure}_copies_total"
            assert rig.exported().value(name, root=first) == 1, figure
            assert rig.exported().value(name, root=second) == 0, figure
        warned = [formatEvent(e) for e in logs if e["log_level"] is LogLevel.warn]
        assert len(warned) == 2
        assert warned[0].startswith(f"Damaged: {bad}: ")
        assert warned[1] == f"Repaired {Digest.of(HELLO)} on {first} (bad or unreadable)"
        rig.rounds(2)
        good.unlink()
        for _ in range(20):
            rig.get(HELLO)
        assert rig.exported().value("stor_disk_damaged_copies_total", root=second) == 0
        assert rig.exported().value("stor_disk_restored_copies_total", root=second) == 1


class TestThePage:
    @pytest.mark.parametrize("target", ["/metrics", "/metrics/", "/metrics?x=y", "/%6detrics"])
    def test_is_text_that_is_read_anew_each_time(self, tmp_path, target):
        rig = Watched(tmp_path)
        response = rig.request("GET", target)
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        head = rig.request("HEAD", target)
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > len(response.body) // 2

    def test_asks_no_disk(self, tmp_path):
        disks = HeldPools()
        rig = Watched(tmp_path, worker=disks)
        rig.exported()
        assert disks.held == 0

    def test_survives_any_root(self, tmp_path):
        path = tmp_path / 'a "quoted" \\ root\nof two lines'
        rig = Watched(path)
        for root in rig.roots:
            assert rig.exported().value("stor_disk_errors_total", root=str(root)) == 0

    def test_has_no_more_lines_for_methods_that_nobody_knows(self, tmp_path):
        rig = Watched(tmp_path)
        for n in range(100):
            rig.request(f"X{n}", "/status")
        exported = rig.exported()
        methods = {s.labels["method"] for s in exported.samples if "method" in s.labels}
        assert methods <= {"GET", "HEAD", "POST", "PUT", "other"}
        assert exported.value("stor_http_requests_total", method="other", status="405") == 100

    def test_no_counter_says_since_when(self, tmp_path):
        rig = Watched(tmp_path)
        assert not [s.name for s in rig.exported().samples if s.name.endswith("_created")]

    def test_two_stors_in_a_process_do_not_mix(self, tmp_path):
        one, other = Watched(tmp_path / "one"), Watched(tmp_path / "other")
        one.get(UNKNOWN)
        assert one.agreed()["request.get.count"] == 1
        assert "request.get.count" not in other.agreed()


def expressions(value):
    """Every PromQL expression in a dashboard or in rules."""
    if isinstance(value, dict):
        own = [value["expr"]] if "expr" in value else []
        return own + [found for inner in value.values() for found in expressions(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in expressions(inner)]
    return []


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yml"])
def test_dashboard_and_alerts_ask_for_what_there_is(tmp_path, name):
    # JSON is YAML, too.
    document = yaml.safe_load((REPOSITORY / "monitoring" / name).read_text())
    found = expressions(document)
    assert len(found) > 5
    known = Watched(tmp_path).exported().names
    for expression in found:
        asked = set(re.findall(r"\b(?:stor|process)_\w+", expression))
        assert asked or "up{" in expression, f"{expression} asks for nothing of Stor's"
        assert asked <= known, f"{expression} asks for {sorted(asked - known)}"


def test_what_alerts_ask_an_increase_of_begins_with_0(tmp_path):
    """Prometheus sees no increase in a series that begins with its first event."""
    exported = Watched(tmp_path).exported()
    rules = (REPOSITORY / "monitoring" / "alerts.yml").read_text()
    counted = re.findall(r"increase\((\w+)(?:\{(.*?)\})?\[", rules)
    assert len(counted) >= 4
    for name, labels in counted:
        wanted = set(re.findall(r'(\w+)="(.*?)"', labels))
        found = [s for s in exported.samples if s.name == name and wanted <= s.labels.items()]
        assert found, f"{name} with {wanted} is not there before it counts"


def test_every_figure_is_documented(tmp_path):
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    rig = Watched(tmp_path)
    families = [family.name for family in rig.exported().families]
    totals = [f"{f.name}_total" for f in rig.exported().families if f.type == "counter"]
    missing = [
        name
        for name in families
        if name.startswith("stor_")
        and not {f"`{name}`", f"`{name}_total`"} & set(re.findall(r"`[a-z0-9_]+`", text))
    ]
    assert not missing
    documented = set(re.findall(r"`(stor_[a-z0-9_]+)`", text))
    assert documented <= set(families) | set(totals)
    for name in expectations(rig.exported(), ["/DISK"]):
        assert f"`{re.sub(r'attempt.[0-9]', 'attempt.N', name)}`" in text, name
