"""Long work of every kind on real file systems, under load, killed at random moments."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stor.cli.admin_client import Failed
from stor.cli.admin_client import Stor as Admin
from tests.integration.clients import Clients
from tests.integration.load import SOAK
from tests.integration.mounts import Mounts
from tests.integration.process import (
    START_SECONDS,
    Stor,
    poll,
    sample_path,
    sha_of,
)
from tests.integration.test_jobs import run

KILLS = 20 if SOAK else 2
SMALL, LARGE = (3000, 6) if SOAK else (500, 3)

#: How long a job may take until its end, once it may work as fast as it can.
END_SECONDS = 180

#: The more often the writer ends, the longer its parent waits before it starts another.
WRITER_SECONDS = 120

#: What is no file of a sample, and may be on a disk.
_OWN = (".stor", "lost+found")


class World:
    """Three sets on file systems of their own, ext4 and XFS, filled; clients at work."""

    def __init__(self, path, mounts, workers, seed):
        self.rng = random.Random(seed)
        self.mounts = mounts
        kinds = (mounts.ext4, mounts.ext4, mounts.xfs)
        self.disks = [
            [make(f"set{n}-{disk}", mib=320 if make == mounts.xfs else 128) for disk in range(2)]
            for n, make in enumerate(kinds)
        ]
        self.keys = {
            "storage_pairs": [[str(disk) for disk in pair] for pair in self.disks],
            "require_mount": True,
            "admin_socket": str(path / "admin.sock"),
            "state_directory": str(path / "state"),
            "scrub_days": 0,
            "workers": workers,
        }
        self.stor = Stor.configured(path, **self.keys)
        self.admin = Admin(self.keys["admin_socket"])
        self.workers = workers
        self.clients = Clients(self.stor)

    def samples(self, small=SMALL, large=LARGE):
        sizes = [int(4 ** self.rng.uniform(0, 8)) for _ in range(small)]
        sizes += [self.rng.randrange(2**20, 10 * 2**20) for _ in range(large)]
        return [self.rng.randbytes(size) for size in sizes]

    def fill(self, contents):
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda one: self.stor.put(one).status, contents)) <= {200, 201}
        self.clients.stored |= {sha_of(content): content for content in contents}

    def kill(self):
        """Kill what writes; with workers, the others go on."""
        if self.workers == 1:
            self.stor.kill()
            self.stor.start()
            return
        pid = self.stor.children["stor-writer"]
        os.kill(pid, signal.SIGKILL)

        def again():
            return self.stor.children.get("stor-writer") not in (None, pid)

        poll(again, WRITER_SECONDS, "another writer")

    def ask(self, name, **order):
        """What the socket for operators says, once somebody answers there."""

        def answer():
            try:
                return [self.admin.post(name, **order) if order else self.admin.get(name)]
            except Failed as error:
                if error.__cause__ is None:  # it was refused
                    raise
                return None

        (said,) = poll(answer, START_SECONDS, "an answer to an operator")
        return said

    def jobs(self, kind=None):
        """The jobs, of one kind or of all."""
        return [job for job in self.ask("jobs") if kind in (None, job["kind"])]

    def some(self, numbers):
        """The jobs with these numbers."""
        return [job for job in self.jobs() if job["id"] in numbers]

    def sets(self):
        """What is said of the sets."""
        return self.ask("status")["sets"]

    def complete(self):
        """Wait until all disks are complete."""
        poll(
            lambda: all(disk["complete"] for one in self.sets() for disk in one["disks"]),
            END_SECONDS,
            "complete disks",
        )

    def roots(self, number):
        """The disks of a set."""
        return self.keys["storage_pairs"][number]

    def state(self, disk):
        """How Stor says that a disk is."""
        disks = [one for each in self.sets() for one in each["disks"]]
        return {one["root"]: one["state"] for one in disks}[str(disk)]

    def only_set(self, number):
        """Have only one set take new samples; or, with `None`, all."""
        self.keys["writable_pairs_regex"] = ".*" if number is None else f"/set{number}-"
        self.stor.reload(**self.keys)

    def on(self, number):
        """The samples on the disks of a set."""
        return [path for disk in self.disks[number] for path in disk.kept.glob("??/??/??/*.dat")]

    def fullest(self):
        """The number of the set with most samples."""
        return max(range(3), key=lambda number: len(self.on(number)))

    def audit(self):
        """Every sample that was promised is on one set, on both disks, whole; no file is wrong."""
        assert not self.clients.wrong, self.clients.wrong[:5]
        wanted = dict(self.clients.stored)
        found = {}
        for number, pair in enumerate(self.disks):
            for disk in pair:
                for path in disk.kept.glob("*/??/??/*"):
                    if path.parts[len(disk.kept.parts)] in _OWN:
                        continue
                    sha = path.stem.lower()
                    assert path.relative_to(disk.kept) == Path(sample_path(sha)), path
                    assert sha_of(path.read_bytes()) == sha, path
                    found.setdefault(sha, []).append(number)
                assert not list(disk.kept.glob(".stor/tmp/*"))
        lost = [sha for sha in wanted if sha not in found]
        assert not lost, (len(lost), lost[:3])
        # What no client was told of may be on one disk: a kill between its two names leaves that.
        twice = {sha: where for sha, where in found.items() if sha in wanted or len(where) > 1}
        odd = {sha: where for sha, where in twice.items() if len(where) != 2 or len({*where}) > 1}
        assert not odd, (len(odd), list(odd.items())[:3])


@pytest.fixture(params=[1, 2], ids=["alone", "with a reader"])
def world(request, tmp_path):
    with Mounts(tmp_path) as mounts:
        world = World(tmp_path, mounts, request.param, seed=request.node.name)
        yield world
        world.stor.kill()


def per_second(megabytes):
    return {"bytes_per_second": megabytes * 1e6}


def drain(world):
    """All of a set that has something; one that was drained takes samples again."""
    for job in world.jobs("drain"):
        if job["state"] == "done":
            world.ask("cancel", job=job["id"])
    return world.ask("drain", roots=world.roots(world.fullest())[:1], rate=per_second(0.5))


def scrub(world):
    """The disks of a set, of whose copies some are bad or gone."""
    number = world.fullest()
    some = world.rng.sample([path for path in world.on(number) if path.stat().st_size < 9000], 6)
    for path in {path.name: path for path in some}.values():
        world.rng.choice([Path.unlink, lambda path: path.write_bytes(b"wrong")])(path)
    return world.ask("scrub", roots=world.roots(number), rate=per_second(0.5))


def rescan(world):
    """All disks. Some walks are over before anything is killed."""
    return world.ask("rescan", roots=[])


def first_walk(world):
    """All disks as an older Stor has left them, which knows of no index.

    What takes no longer than some seconds is no job: then it may be anywhere, or over.
    """
    world.stor.kill()
    for pair in world.disks:
        for disk in pair:
            shutil.rmtree(disk.kept / ".stor")
    shutil.rmtree(world.keys["state_directory"])
    world.clients.forget_what_landed()
    world.stor.start()
    until = time.monotonic() + world.rng.uniform(0, 3)
    while not (jobs := world.jobs("walk")) and time.monotonic() < until:
        time.sleep(0.02)
    return jobs


def rebuild(world):
    """A disk that is blank again, and adopted."""
    world.complete()
    world.only_set(1)
    world.fill([world.rng.randbytes(300_000) for _ in range(10)])
    world.only_set(None)
    known = {job["id"] for job in world.jobs("rebuild")}
    disk = world.disks[1][world.rng.randrange(2)]
    disk.unmount()
    poll(lambda: world.state(disk) == "offline", 60, "a disk that is known to be away")
    for path in disk.kept.iterdir():
        shutil.rmtree(path)
    disk.mount()
    adopt = ["adopt", "--config", "config.json", str(disk)]
    poll(lambda: run(world.stor, *adopt)[0] == 0, 60, "an adopted disk")
    begun = lambda: [job for job in world.jobs("rebuild") if job["id"] not in known]  # noqa: E731
    jobs = poll(begun, 60, "a rebuild")
    with contextlib.suppress(Failed):  # it may be over already
        world.ask("rate", job=jobs[0]["id"], rate=per_second(0.5))
    return jobs


def rebalance(world):
    """One set is much fuller than another."""
    world.only_set(world.rng.randrange(2))
    world.fill([world.rng.randbytes(300_000) for _ in range(40)])
    world.only_set(None)
    return world.ask("rebalance", rate=per_second(1))


def drill(world):
    """On each set, as if that had begun before Stor did."""
    world.ask("scrub", sha=next(iter(world.clients.stored)))
    world.stor.stop(60)
    path = Path(world.keys["state_directory"]) / "jobs.json"
    kept = json.loads(path.read_text())
    for pair in world.keys["storage_pairs"]:
        changed = {"id": kept["next"], "kind": "drill", "state": "waiting", "reason": None}
        changed |= {"scope": {"roots": pair, "prefix": "", "sha": None}, "ended": None, "share": 0}
        kept["jobs"].append(kept["jobs"][0] | changed)
        kept["next"] += 1
    path.write_text(json.dumps(kept))
    world.stor.start()
    return world.jobs("drill")[-3:]


#: Processes that answer: one, or one more that reads.
ALONE, WITH_A_READER = 1, 2

KINDS = drain, scrub, rescan, first_walk, rebuild, rebalance, drill


def shown(value):
    """What a test's name says of a parameter."""
    names = {ALONE: "alone", WITH_A_READER: "with a reader"}
    return value.__name__ if callable(value) else names[value]


def is_over(jobs):
    return all(job["state"] in ("done", "failed", "cancelled") for job in jobs)


def killed_in_the_middle(world, begin, figures):
    """Kill at random moments of jobs that `begin` gives, often enough, and see the end."""
    kills = 0
    while kills < KILLS:
        numbers = {job["id"] for job in begin(world)}
        if not numbers:
            world.kill()
            kills += 1
        while kills < KILLS and not is_over(world.some(numbers)):
            time.sleep(world.rng.uniform(0, 0.5))
            world.kill()
            kills += not is_over(world.some(numbers))
        for job in world.some(numbers):
            with contextlib.suppress(Failed):  # it is over
                world.ask("rate", job=job["id"], rate={})
        poll(lambda numbers=numbers: is_over(world.some(numbers)), END_SECONDS, "the end")
        for job in world.some(numbers):
            assert (job["state"], job["errors"]) == ("done", []), job
            assert job["not_mended"] == 0, job
    figures[f"kill -9 in the middle of a {begin.__name__}, workers {world.workers}"] += kills


#: What is killed, and how many processes answer: all of it only in the long form.
KILLED = [*((kind, ALONE) for kind in KINDS), (drain, WITH_A_READER), (rebuild, WITH_A_READER)]
if SOAK:
    KILLED = [*itertools.product(KINDS, (ALONE, WITH_A_READER))]


@pytest.mark.parametrize(("begin", "world"), KILLED, indirect=["world"], ids=shown)
def test_killed(world, begin, figures):
    world.fill(world.samples())
    with world.clients.working():
        killed_in_the_middle(world, begin, figures)
        world.complete()
    assert not world.clients.untold()
    clients, what = world.clients, f"while a {begin.__name__} is killed"
    figures[f"samples read {what}, each right"] += clients.reads
    figures[f"samples stored {what}, each kept on both disks"] += len(clients.stored)
    print(clients.reads, clients.unavailable, clients.lost_connections, clients.refused)
    world.audit()


@contextlib.contextmanager
def lost(world, disk):
    """It is gone for a while; all that its set holds is at risk then, and nothing else."""
    disk.unmount()
    poll(lambda: world.state(disk) == "offline", 60, "a disk that is known to be away")
    told = world.ask("at-risk")
    assert [str(disk) in one["roots"] for one in told["sets"]] == [True]
    assert f"{disk}: not mounted" in told["sets"][0]["reason"]
    yield
    disk.mount()
    poll(lambda: world.state(disk) == "online", 60, "a disk that is back")
    disk.assert_bare_untouched()


@contextlib.contextmanager
def read_only(world, disk):
    """The kernel lets nothing be written there."""
    disk.remount("ro")
    poll(lambda: world.state(disk) != "online", 60, "a disk that is known to be read-only")
    yield
    disk.remount("rw")
    poll(lambda: world.state(disk) == "online", 60, "a disk that is back")


@contextlib.contextmanager
def full(world, disk):
    """Somebody else has taken all that was free there."""
    hog = disk.kept / "hog"
    with hog.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**20))
    yield
    hog.unlink()


@contextlib.contextmanager
def paused(world, disk):
    """The operator changes its mind, and the configuration."""
    (job,) = [job for job in world.jobs() if job["state"] == "running"]
    world.ask("pause", job=job["id"])
    world.only_set(2)
    assert world.some({job["id"]})[0]["state"] == "paused"
    world.kill()
    assert world.some({job["id"]})[0]["state"] == "paused"
    yield
    world.only_set(None)
    world.ask("resume", job=job["id"])


@contextlib.contextmanager
def torn(world, disk):
    """The jobs file is damaged: Stor says so, and the operator asks for the job again."""
    world.stor.kill()
    path = Path(world.keys["state_directory"]) / "jobs.json"
    path.write_bytes(path.read_bytes()[:-20])
    world.stor.start()
    poll(lambda: "jobs.json in the state directory is damaged" in world.stor.log, 30, "a line")
    yield


#: The trouble, the set that has it (the first is drained), and how many processes answer.
OF_ALL = [(paused, 0, ALONE), (torn, 0, ALONE)]
OF_A_DISK = [
    *((lost, 0, ALONE), (lost, 2, WITH_A_READER)),
    *((read_only, 0, WITH_A_READER), (full, 2, ALONE)),
]
if SOAK:
    OF_A_DISK = [*itertools.product((lost, read_only, full), (0, 2), (ALONE, WITH_A_READER))]


@pytest.mark.parametrize(("trouble", "of_set", "world"), OF_A_DISK + OF_ALL, indirect=["world"])
def test_trouble_in_the_middle_of_a_drain(world, trouble, of_set):
    world.only_set(0)
    world.fill([world.rng.randbytes(20_000) for _ in range(200)])
    world.only_set(None)
    drain = {"roots": world.roots(0), "rate": per_second(0.2)}
    with world.clients.working():
        (job,) = world.ask("drain", **drain)
        poll(lambda: world.some({job["id"]})[0]["samples_done"] > 10, 60, "some that have moved")
        with trouble(world, world.disks[of_set][1]):
            if trouble is torn:
                (job,) = world.ask("drain", **drain)
            before = world.clients.reads
            poll(lambda: world.clients.reads > before + 50, 60, "reads meanwhile")
        with contextlib.suppress(Failed):  # it is over
            world.ask("rate", job=job["id"], rate={})
        poll(lambda: is_over(world.some({job["id"]})), END_SECONDS, "the end")
        (ended,) = world.some({job["id"]})
        assert (ended["state"], ended["errors"]) == ("done", [])
        poll(lambda: not world.ask("status")["at_risk"], 90, "no sample at risk")
        assert not world.on(0)
    assert not world.clients.untold()
    world.audit()


#: Of what, which disk of the set, and how many processes answer.
LOST = [(rebuild, 0, WITH_A_READER), (rebalance, 1, ALONE)]
if SOAK:
    LOST = [*itertools.product((rebuild, rebalance), (0, 1), (ALONE, WITH_A_READER))]


@pytest.mark.parametrize(("begin", "disk", "world"), LOST, indirect=["world"])
def test_a_disk_is_lost_in_the_middle(world, begin, disk):
    """One of the set that is filled anew, or gives; reads go on, and all ends right."""
    world.fill(world.samples(small=100, large=1))
    with world.clients.working():
        numbers = {job["id"] for job in begin(world)}
        wanted = world.roots(1) if begin is rebuild else world.roots(world.fullest())
        (lose,) = [one for pair in world.disks for one in pair if str(one) == wanted[disk]]
        with lost(world, lose):
            before = world.clients.reads
            poll(lambda: world.clients.reads > before + 50, 60, "reads meanwhile")
        for number in numbers:
            with contextlib.suppress(Failed):  # it is over
                world.ask("rate", job=number, rate={})
        world.complete()
        poll(lambda: is_over(world.some(numbers)), END_SECONDS, "the end")
        assert {job["state"] for job in world.some(numbers)} == {"done"}
        poll(lambda: not world.ask("status")["at_risk"], 90, "no sample at risk")
    assert not world.clients.untold()
    world.audit()


def test_a_configuration_that_takes_the_set_of_a_job_away_ends_it(world):
    world.only_set(0)
    # Several batches: when the first has moved, the others take half a minute more.
    world.fill([world.rng.randbytes(4000) for _ in range(1000)])
    world.only_set(None)
    (job,) = world.ask("drain", roots=world.roots(0), rate=per_second(0.1))
    (other,) = world.ask("scrub", roots=world.roots(2)[:1])
    poll(lambda: world.some({job["id"]})[0]["samples_done"], 60, "some that have moved")
    with pytest.raises(Failed, match=r"^job \d+ drains .*: wait for its end, or cancel it first$"):
        world.admin.post("rebalance")
    every = world.keys["storage_pairs"]
    world.keys["storage_pairs"] = every[1:]
    world.stor.reload(**world.keys)
    poll(lambda: is_over(world.some({job["id"], other["id"]})), 60, "the end")
    ended, _ = world.some({job["id"], other["id"]})
    assert (ended["state"], ended["reason"][:10]) == ("cancelled", "no set has")
    world.keys["storage_pairs"] = every
    world.stor.reload(**world.keys)
    (again,) = world.ask("drain", roots=world.roots(0))
    poll(lambda: is_over(world.some({again["id"]})), END_SECONDS, "the end")
    assert world.some({again["id"]})[0]["state"] == "done"
    world.audit()
