"""`kill -9` at random points of a mixed load: what was promised is there, and nothing else."""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path

import attrs
import pytest

from tests.integration.load import SOAK, Audit, Connection, Load, timed
from tests.integration.mounts import Mounts
from tests.integration.process import (
    COMPLAINTS,
    WORKERS,
    Stor,
    command_line,
    poll,
    sample_path,
    sha_of,
)
from tests.support.rig import request_bytes

UNKNOWN = sha_of(b"a sample that nobody has")

#: So many kills before the disks are emptied.
KILLS_IN_A_ROW = 50


@pytest.fixture
def mounts(tmp_path):
    with Mounts(tmp_path) as mounts:
        yield mounts


@attrs.frozen
class Start:
    """How long a start took until the disks were asked for the first time."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def of(cls, stor):
        def answer():
            stor.start()
            return stor.get(UNKNOWN)

        seconds, response = timed(answer)
        assert response.status == 404
        # proc(5): utime and stime, in clock ticks.
        ticks = Path(f"/proc/{stor.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
        return cls(seconds, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))


class Life:
    """One Stor that is killed again and again under load, always on the same disks."""

    def __init__(self, stor, seed):
        self.stor = stor
        self.load = Load(stor.port, seed)
        self.kills = self.kills_while_merging = self.asked = 0
        self.starts = []
        self.audit = Audit(stor.roots)
        self._rng = random.Random(seed)
        #: What a second host has heard of, and where it goes on.
        self._told = set()
        self._cursor = None
        self._follow()

    def end(self, seconds=0.4):
        """Let the load run, kill Stor at a random point, and see what it has left."""
        with self.load.running():
            time.sleep(self._rng.uniform(0, seconds))
            self.kills_while_merging += merging(self.stor)
            self.stor.kill()
        self.kills += 1
        assert not COMPLAINTS.search(self.stor.log), self.stor.log
        assert self.load.surprises == []
        self._audit(staging=True)

    def begin_again(self):
        """Start on the same disks; what the crash has left is gone with the first answer."""
        if self._rng.random() < 0.1:
            self._interrupt_a_start()
        if all(any(root.glob(".stor/index/base-*")) for root in self.stor.roots):
            self._lose_the_table()
        self.starts.append(Start.of(self.stor))
        # A repair that an earlier life has noted may be under way.
        poll(lambda: self.stor.staged() == [], what="an empty staging directory")
        self._audit()
        self.load.settle()
        self._audit(staging=True)
        self._ask()
        self._follow()

    def _lose_the_table(self):
        """A start without the table of names, and a kill under load while it is made anew."""
        table = self.stor.directory / "stor-state/index-table"
        table.unlink(missing_ok=True)
        self.stor.start()
        # It is made at once, or with the next look at the disks, which is not waited for.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and not (merging(self.stor) or table.exists()):
            time.sleep(0.01)
        self.end(seconds=0.1)

    def _ask(self):
        """What was acknowledged is 404 for nobody, and nobody is told to bring it."""
        connection = Connection(self.stor.port)
        for sha in self.load.acknowledged:
            answer = connection.exchange(request_bytes("HEAD", f"/{sha}"), method="HEAD")
            assert answer.status == 200, sha
            self.asked += 1
        connection.close()
        listed = "".join(f"{sha}\n" for sha in self.load.acknowledged)
        lines = self.stor.request("POST", "missing", listed).text.splitlines()
        assert not [line for line in lines if line.startswith("missing")]

    def _follow(self):
        """Nothing that was acknowledged is left out of what is told in order."""
        after = "" if self._cursor is None else f"?after={self._cursor}"
        answer = self.stor.request("GET", f"landed{after}")
        assert answer.status == 200, answer.text
        self._told.update(json.loads(line)["sha"] for line in answer.text.splitlines())
        self._cursor = answer.headers["stor-cursor"]
        assert {sha.lower() for sha in self.load.acknowledged} <= self._told

    def _interrupt_a_start(self):
        seconds = self._rng.uniform(0.1, 0.6)
        timer = threading.Timer(seconds, lambda: self.stor.signal(signal.SIGKILL))
        timer.start()
        with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
            self.stor.start()
        timer.join()
        self.stor.kill()
        self.kills += 1

    def _audit(self, staging=False):
        self.audit.check(self.load.acknowledged, self.load.paths, copies=2, staging=staging)


def crash(start_stor, kills, figures):
    """Kill so many times, on new disks every now and then."""
    lives = []
    while kills > 0:
        life = Life(start_stor(), seed=kills)
        try:
            while life.kills < min(kills, KILLS_IN_A_ROW):
                life.end()
                life.begin_again()
            life.stor.stop()
        finally:
            life.stor.kill()
        for directory in (*life.stor.roots, life.stor.directory / "stor-state"):
            _empty(directory)
        kills -= life.kills
        lives.append(life)
    assert any(life.kills_while_merging for life in lives) or not SOAK
    starts = [start.seconds for life in lives for start in life.starts]
    for life in lives:
        figures["kills under load, nothing acknowledged was missing"] += life.kills
        figures["kills while a table or a base was being made"] += life.kills_while_merging
        figures["samples asked for after kills, none of them 404"] += life.asked
        figures["requests between kills"] += life.load.requests
        figures["samples acknowledged between kills"] += len(life.load.acknowledged)
        figures["files read after kills, each right"] += life.audit.files_read
    print(f"a start takes {statistics.median(starts):.2f} s and at most {max(starts):.2f} s")
    for life in lives:
        assert len(life.load.acknowledged) > life.kills, "a load that stores nothing tests nothing"
        third = len(life.starts) // 3
        if third < 3:
            continue  # too few to compare
        first, last = (
            min(start.cpu_seconds for start in starts)
            for starts in (life.starts[:third], life.starts[-third:])
        )
        assert last < 1.5 * first, "starts take more and more"


def merging(stor):
    """Whether a child process makes a table or a base."""
    return any(b"stor.index.merge" in command_line(pid) for pid in stor.descendants)


def _empty(directory):
    """Remove all that is in a directory, which may be a mount point."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class TestKill:
    def test_directories(self, tmp_path, figures):
        crash(
            lambda: Stor.configured(tmp_path / "stor"),
            350 if SOAK else 10 if WORKERS > 1 else 20,
            figures,
        )

    def test_file_systems_without_o_tmpfile(self, tmp_path, mounts, figures):
        disks = [mounts.hanging(f"disk{number}", mib=1024) for number in range(4)]
        with pytest.raises(OSError, match="not supported"):
            os.open(disks[0].point, os.O_TMPFILE | os.O_RDWR)
        pairs = [[str(disk) for disk in pair] for pair in (disks[:2], disks[2:])]

        def start_stor():
            return Stor.configured(tmp_path / "stor", storage_pairs=pairs, require_mount=True)

        crash(start_stor, 150 if SOAK else 5 if WORKERS > 1 else 10, figures)


@pytest.mark.alone
class TestStart:
    SAMPLES_A_DISK = 10_000 if SOAK else 1000

    def test_reads_no_directory_of_samples(self, mounts, start):
        """The kernel notes when a directory was read last (mount(8), strictatime)."""
        disks = [mounts.tmpfs(name, options="strictatime") for name in ("disk0", "disk1")]
        stor = start(storage_pairs=[[str(disk) for disk in disks]], require_mount=True)
        stor.stop()
        empty = self._start(stor)
        for disk in disks:
            self._fill(disk.kept)
        directories = [path for disk in disks for path in disk.kept.glob("??/??")]
        directories += {path.parent for path in directories}
        before = [path.stat().st_atime_ns for path in directories]
        full = self._start(stor)
        assert [path.stat().st_atime_ns for path in directories] == before
        print(f"without samples: {empty}; with {2 * self.SAMPLES_A_DISK} files: {full}")
        assert full.cpu_seconds < 1.5 * empty.cpu_seconds

    def _fill(self, root):
        for number in range(self.SAMPLES_A_DISK):
            path = root / sample_path(sha_of(b"%d" % number))
            os.makedirs(path.parent, exist_ok=True)
            path.touch()

    def _start(self, stor):
        start = Start.of(stor)
        # After a clean end it would be seen that there are more files by now, and these be walked.
        stor.kill()
        return start
