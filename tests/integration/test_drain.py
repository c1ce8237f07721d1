"""A set is drained while it is used, its Stor killed in the middle; then it is taken out."""

import http.client
import json
import random
import threading
import time

import pytest

from tests.integration.process import Stor, poll, sha_of
from tests.integration.test_jobs import asked, run

SAMPLES = [random.Random(n).randbytes(4000 + 40 * n) for n in range(300)]
SAMPLES += [random.Random(n).randbytes(600_000) for n in range(300, 306)]


class Load:
    """Clients that read what is stored, and store more; what they have met."""

    def __init__(self, stor, stored):
        self.stor, self.stored = stor, dict(stored)
        self.wrong, self.reads, self.lost_connections = [], 0, 0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=work, args=(seed,), daemon=True)
            for seed, work in enumerate((self._read, self._read, self._write))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _read(self, seed):
        rng = random.Random(seed)
        while not self._over.is_set():
            sha = rng.choice(list(self.stored))
            try:
                answer = self.stor.get(sha)
            except (OSError, http.client.HTTPException):
                self.lost_connections += 1
                time.sleep(0.05)
                continue
            self.reads += 1
            # 503: the process has just started, and is looking at its disks.
            if answer.status != 503 and (answer.status, answer.body) != (200, self.stored[sha]):
                self.wrong.append((sha, answer.status))

    def _write(self, seed):
        number = 0
        while not self._over.is_set():
            number += 1
            content = random.Random(f"new {number}").randbytes(3000)
            try:
                status = self.stor.put(content).status
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            if status in (200, 201):
                self.stored[sha_of(content)] = content
            time.sleep(0.02)


def on(stor, number):
    """The samples on the disks of a set."""
    return [path for path in stor.samples() if f"/set{number}/" in str(path)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_is_drained_under_load_over_a_kill_and_taken_out(tmp_path, workers):
    keys = {"admin_socket": str(tmp_path / "admin.sock"), "workers": workers, "scrub_days": 0}
    stor = Stor.configured(tmp_path, **keys)
    for content in SAMPLES:
        assert stor.put(content).status == 201
    root, twin = map(str, stor.roots[:2])
    held = len(on(stor, 0)) // 2
    (plan,) = asked(stor, "drain", root, "--dry-run")
    assert (plan["roots"], plan["samples"]) == ([root, twin], held)
    assert f"{held} samples" in run(stor, "drain", root, "--dry-run")[1]
    load = Load(stor, {sha_of(content): content for content in SAMPLES})
    try:
        (job,) = asked(stor, "drain", root, "--rate", "0.4")
        assert job["kind"] == "drain"
        assert not asked(stor, "status")["sets"][0]["writable"]
        poll(lambda: asked(stor, "jobs")[0]["bytes_done"] > 0, 60, "some progress")
        stor.kill()
        assert on(stor, 0)
        stor.start()
        assert not asked(stor, "status")["sets"][0]["writable"]
        asked(stor, "rate", str(job["id"]), "none")
        poll(lambda: asked(stor, "jobs")[0]["state"] in ("done", "failed"), 90, "the end")
    finally:
        load.stop()
    (told,) = asked(stor, "jobs")
    assert (told["state"], told["errors"]) == ("done", [])
    assert not load.wrong
    assert load.reads > 100
    assert load.lost_connections  # it was killed
    assert "the set can be taken out of storage_pairs" in run(stor, "jobs", "--all")[1]
    assert not on(stor, 0)
    for sha, content in load.stored.items():
        assert len(stor.copies(sha)) == 2
        assert stor.get(sha).body == content
    rest = [list(map(str, stor.roots[2:]))]
    said = stor.reload(storage_pairs=rest, **keys)
    assert "was taken out" not in said
    status = stor.request("GET", "status", headers={"Accept": "application/json"})
    assert status.status == 200
    assert not json.loads(status.body)["warnings"]
    for sha, content in load.stored.items():
        assert stor.get(sha).body == content
    stor.stop()


def test_what_cannot_be_drained_is_one_line(tmp_path):
    keys = {"admin_socket": str(tmp_path / "admin.sock"), "sets": (2,)}
    stor = Stor.configured(tmp_path, **keys)
    for words, said in (
        (("drain", "/nowhere"), "stor: /nowhere: in no set: expected a storage root, one of "),
        (("drain", str(stor.roots[0])), "stor: no other set could take the samples: none is "),
        (("rebalance",), "stor: there are no two sets that may be written: nothing can be "),
    ):
        for more in ((), ("--dry-run",)):
            status, output, errors = run(stor, *words, *more)
            assert (status, output, errors.count("\n")) == (1, "", 1)
            assert errors.startswith(said)
    stor.stop()


def test_sets_that_are_about_as_full_are_left_alone(tmp_path):
    stor = Stor.configured(tmp_path, admin_socket=str(tmp_path / "admin.sock"))
    status, output, _ = run(stor, "rebalance", "--dry-run")
    assert (status, output) == (0, "nothing to move\n")
    status, output, _ = run(stor, "rebalance", "--wait")
    assert status == 0
    assert "rebalance" in output
    assert "done" in output
    stor.stop()
