"""Every system call of an upload and of a download fails once, in every way, on every disk.

Which calls there are is found out by counting those of a run without a fault.
"""

import errno
import json
import os
import re
import shutil
from contextlib import suppress
from itertools import count

import pytest
from crc32c import crc32c

from stor.disk.copy import SUMS_ATTRIBUTE
from stor.disk.disk import SMALL_BYTES
from stor.mirror.health import State
from tests.conformance import MIB, QuickFiles, descriptors, sample, without_nameless_files
from tests.durability import assert_durable_order, history
from tests.support.files import Call
from tests.support.http import CHUNKED, assert_one_line, chunked, no_bug_logged, upload_head
from tests.support.rig import FaultyRig, digest_of, request_bytes

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "ENOENT")
POST_FAULTS = (*ERRORS, "short write", "hang")
READ_ERRORS = ("EIO", "EACCES", "ENOENT", "ESTALE")

#: An upload and a download have ended within this time, whatever hangs.
POST_SECONDS = 29
GET_SECONDS = 12

BODIES = {"small": 5000, "300 KB": 300_000, "chunked": 300_001, "3 MB": 3 * MIB}
CASES = {body: (body, QuickFiles) for body in BODIES} | {
    "named": ("small", without_nameless_files),
    "new": ("small", QuickFiles),
    "new and named": ("small", without_nameless_files),
}

#: Those where the index knows that nobody has the sample, which then goes to the disks in rounds.
LEARNT = ("new", "new and named")

#: In the short form every so many-th call meets a fault, another one for each fault; with a second
#: set and without one.
EVERY = {"small": (2, 4), "named": (4, 8), "300 KB": (4, 8), "chunked": (4, 8), "3 MB": (8, 8)}
EVERY |= {"new": (1, 1), "new and named": (4, 8)}


#: Some descriptors are closed by who wants nothing any more, and a copy can do without block sums.
UNHEARD = ("close", "get_attribute", "set_attribute")


class Trial:
    """One request to a Stor of which one disk fails one call."""

    def __init__(self, path, sets=(2, 2), fault=None, kind=QuickFiles, seed=0, *, learnt=False):
        hangs = fault == "hang"
        self.rig = FaultyRig(path, sets, kind=kind, threads=hangs, seed=seed, learnt=learnt)
        self.fault = fault
        self.descriptors = descriptors()
        self.rig.log.clear()
        for files in self.rig.disks.values():
            files.calls.clear()

    def arm(self, disk, n):
        """The disk's n-th call from now on is the one that fails."""
        if self.fault == "hang":
            self.rig.hang(disk, n)
        elif self.fault == "short write":
            self.rig.disks[disk].short_write_at(n)
        else:
            self.rig.disks[disk].fail_at(n, getattr(errno, self.fault))

    def request(self, data, seconds, method="POST"):
        """What is answered within so many seconds."""
        connection = self.rig.connect()
        connection.send(data)
        for _ in range(seconds):
            if connection.closed or any(r.complete for r in connection.responses([method])):
                break
            connection.wait(1)
        return connection.responses([method])[0] if connection.received else None

    def settle(self):
        """Everything works again, and what was late comes to its end."""
        self.rig.heal()
        self.rig.clock.advance(60)

    def assert_nothing_left(self):
        """Nothing that a request needs on its way is there any more."""
        rig = self.rig
        assert not rig.staged()
        for mirror in rig.mirrors.mirrors:
            assert mirror.reserved.total() == (0, 0)
        assert rig.mirrors.turns.idle
        assert rig.uploads.buffered_bytes == 0
        assert rig.mirrors.repairs.waiting == 0
        assert descriptors() == self.descriptors

    def assert_state(self, disk):
        """One error changes no state, but for a root that is not there: then the disk is away.

        What EROFS says of the disk has been looked into by now.
        """
        files = self.rig.disks[disk]
        changed = {State.ONLINE}
        if self.fault == "ENOENT" and str(files.failed_args[0]).removesuffix("/.").endswith(disk):
            changed = {State.OFFLINE}
        for member in self.rig.members:
            expected = changed if member.root.endswith(disk) else {State.ONLINE}
            assert member.health.state in expected
        self.rig.probe()
        assert {member.health.state for member in self.rig.members} == {State.ONLINE}


def upload(body):
    """The bytes of a request that stores a sample, and the sample."""
    content = sample(BODIES[body])
    if body == "chunked":
        return upload_head(content, CHUNKED) + chunked([content[:100], content[100:]]), content
    return upload_head(content, ("Content-Length", str(len(content)))) + content, content


def calls_of_upload(path, body, sets, kind, *, learnt=False):
    """The names of the calls that each disk gets when nothing fails."""
    trial = Trial(path, sets, kind=kind, learnt=learnt)
    assert trial.request(upload(body)[0], 1).status == 201
    return {label: [c.name for c in files.calls] for label, files in trial.rig.disks.items()}


def assert_no_second_sync(files):
    """A file that could not be synced is neither synced again nor given a name."""
    if files.failed != "sync":
        return
    for call in files.calls[files.failed_after :]:
        if call.args[:1] == files.failed_args[:1]:
            assert call.name not in ("sync", "name")
            if call.name == "close":
                return
    raise AssertionError("the file is still open")


def assert_acknowledged(trial, content, response):
    """Every disk of one set has it, exactly, and had it durably before the answer."""
    paths = json.loads(response.body)
    sets = [
        [f"{member.root}/{digest_of(content).disk_path}" for member in mirror.members]
        for mirror in trial.rig.mirrors.mirrors
    ]
    assert paths in sets
    log = [*trial.rig.log, ("", Call("answer", digest_of(content).disk_path, (content,)))]
    home = [label for label in trial.rig.disks if any(f"/{label}/" in path for path in paths)]
    assert len(home) == len(paths)
    assert_durable_order(history(log), home)
    return paths


def assert_upload(trial, content, disk, response):
    """All that is promised of an upload that met a fault; with another set it has succeeded."""
    assert response is not None
    assert response.complete
    alone = len(trial.rig.mirrors.mirrors) == 1
    full = trial.fault in ("ENOSPC", "EDQUOT")
    assert response.status in ({201, 507 if full else 503} if alone else {201})
    paths = assert_acknowledged(trial, content, response) if response.status == 201 else []
    if not paths:
        assert re.fullmatch(r"[a-z].*\n", response.text)
    if trial.fault != "hang":
        assert trial.rig.disks[disk].failed is not None
        assert [str(path) for path in trial.rig.copies(content)] == paths
    trial.settle()
    assert [str(path) for path in trial.rig.copies(content)] == paths
    assert all(path.read_bytes() == content for path in trial.rig.copies(content))
    if trial.fault in ERRORS:
        assert_no_second_sync(trial.rig.disks[disk])
    trial.assert_nothing_left()
    trial.assert_state(disk)
    assert trial.rig.get(content).status == (200 if paths else 404)
    assert trial.rig.put(content).status == (200 if paths else 201)
    assert trial.rig.get(content).body == content
    assert trial.rig.put(sample(100)).status == 201
    trial.assert_nothing_left()


def every_upload(path, case, sets, fault, figures, soak):
    """Put a sample once for each call that it takes, which then fails."""
    body, kind = CASES[case]
    request, content = upload(body)
    every, learnt = 1 if soak else EVERY[case][sets == (2,)], case in LEARNT
    n = 0
    with no_bug_logged():
        counted = calls_of_upload(path / "count", body, sets, kind, learnt=learnt)
        for disk, calls in counted.items():
            for call, name in enumerate(calls):
                if fault == "short write" and name != "write":
                    continue
                if (call + POST_FAULTS.index(fault)) % every:
                    continue
                trial = Trial(path / f"{n}", sets, fault, kind, learnt=learnt)
                trial.arm(disk, call)
                try:
                    assert_upload(trial, content, disk, trial.request(request, POST_SECONDS))
                except BaseException as error:
                    error.add_note(f"{fault} at call {call} of {disk}: {name}")
                    raise
                shutil.rmtree(path / f"{n}")
                n += 1
    figures["uploads with one fault"] += n


def test_there_are_enough_combinations(quick_path):
    calls = calls_of_upload(quick_path, "small", (2, 2), QuickFiles)
    home = [names for names in calls.values() if "sync" in names]
    assert len(home) == 2
    assert all(names.count("sync") >= 5 for names in home)
    assert sum(map(len, calls.values())) * len(ERRORS) > 200


@pytest.mark.parametrize("fault", POST_FAULTS)
@pytest.mark.parametrize("case", CASES)
def test_an_upload_goes_to_the_other_set(quick_path, case, fault, figures, soak):
    every_upload(quick_path, case, (2, 2), fault, figures, soak)


@pytest.mark.parametrize("fault", POST_FAULTS)
@pytest.mark.parametrize("case", CASES)
def test_an_upload_without_another_set_leaves_nothing(quick_path, case, fault, figures, soak):
    every_upload(quick_path, case, (2,), fault, figures, soak)


@pytest.mark.parametrize("disk", ["set0/disk0", "set0/disk1"])
@pytest.mark.parametrize("fault", ERRORS)
def test_an_upload_that_puts_a_copy_back_is_answered(quick_path, disk, fault, figures):
    content = sample(300_000)
    for n in count():
        rig = FaultyRig(quick_path / f"{n}", (2,), kind=QuickFiles)
        rig.put(content)
        rig.copies(content)[1].unlink()
        rig.disks[disk].fail_at(n, getattr(errno, fault))
        with no_bug_logged():
            assert rig.put(content).status in (200, 201, 503, 507)
        if rig.disks[disk].failed is None:
            break
        rig.heal()
        rig.probe()
        assert rig.get(content).body == content
        assert rig.put(content).status == 200
        assert [path.read_bytes() for path in rig.copies(content)] == [content] * 2
        shutil.rmtree(quick_path / f"{n}")
        figures["uploads with one fault"] += 1
    assert n > 10


DOWNLOADS = {
    "small": ("GET", 5000, []),
    "large": ("GET", 3 * MIB, []),
    "part": ("GET", 3 * MIB, [("Range", "bytes=1000000-2000000")]),
    "first part": ("GET", 300_000, [("Range", "bytes=0-9")]),
    "head": ("HEAD", 3 * MIB, []),
}


def resealed(body):
    """Block sums with a right sum of themselves."""
    return body + crc32c(body).to_bytes(4, "little")


#: What the block sums that are kept with both copies are like: the error that reading them gives,
#: or what is there instead of them.
SUMS = {
    "kept": lambda sums: sums,
    "absent": lambda sums: None,
    "EIO": errno.EIO,
    "EACCES": errno.EACCES,
    "empty": lambda sums: b"",
    "torn": lambda sums: sums[:-1],
    "of another version": lambda sums: resealed(bytes([9]) + sums[1:-4]),
    "of another sample": lambda sums: resealed(sums[:12] + bytes(8) + sums[20:-4]),
    "too many": lambda sums: resealed(sums[:-4] + bytes(4)),
    "too few": lambda sums: resealed(sums[:-8]),
}


class Download:
    """A kind of download, from a Stor at `path` that holds the sample on one of two pairs.

    `sums`: what the block sums of both copies are like.
    """

    def __init__(self, path, kind, sums="kept"):
        self.path = path
        self._sums = SUMS[sums]
        self.method, size, self.headers = DOWNLOADS[kind]
        self.content = sample(size)
        rig = FaultyRig(path, kind=QuickFiles)
        assert rig.put(self.content).status == 201
        self.home = [label for label in rig.disks if any(label in str(p) for p in rig.samples())]
        self._copies = rig.copies(self.content)
        self._kept = size > SMALL_BYTES and os.getxattr(self._copies[0], SUMS_ATTRIBUTE)

    def trial(self, fault, seed):
        """A Stor that asks its disks in an order of its own for each seed."""
        if callable(self._sums) and self._kept:
            self._replace_sums(self._sums(self._kept))
        trial = Trial(self.path, fault=fault, seed=seed)
        if not callable(self._sums):
            for files in trial.rig.disks.values():
                files.fail_always("get_attribute", self._sums)
        return trial

    def _replace_sums(self, sums):
        for copy in self._copies:
            with suppress(OSError):
                os.removexattr(copy, SUMS_ATTRIBUTE)
            if sums is not None:
                os.setxattr(copy, SUMS_ATTRIBUTE, sums)

    def run(self, trial):
        """What is answered."""
        data = request_bytes(self.method, f"/{digest_of(self.content)}", self.headers)
        return trial.request(data, GET_SECONDS, self.method)

    def assert_right(self, response):
        """It is whole, and the bytes are those that were asked for."""
        assert response is not None
        assert response.complete
        if self.method == "HEAD":
            assert response.status == 200
            assert response.headers["content-length"] == str(len(self.content))
        elif self.headers:
            first, last = map(int, re.findall(r"\d+", self.headers[0][1]))
            assert response.status == 206
            assert response.body == self.content[first : last + 1]
        else:
            assert response.status == 200
            assert response.body == self.content

    def calls(self):
        """Disks, orders and calls: all that can fail, each disk of the pair being asked first."""
        found = {}
        for seed in range(100):
            trial = self.trial(None, seed)
            self.assert_right(self.run(trial))
            asked = {label: len(f.calls) for label, f in trial.rig.disks.items() if f.calls}
            found.setdefault(next(d for d in self.order(trial) if d in self.home), (seed, asked))
            if len(found) == 2:
                return [
                    (seed, disk, call)
                    for seed, asked in found.values()
                    for disk, calls in asked.items()
                    for call in range(calls)
                ]
        raise AssertionError("one copy is always asked first")

    def order(self, trial):
        """The disks in the order in which they were asked."""
        return list(dict.fromkeys(label for label, _ in trial.rig.log))


def every_download(download, fault, figures):
    """Fetch a sample once for each call that it takes, which then fails; one copy is good."""
    with no_bug_logged():
        for seed, disk, call in download.calls():
            trial = download.trial(fault, seed)
            trial.arm(disk, call)
            try:
                download.assert_right(download.run(trial))
            except BaseException as error:
                error.add_note(f"{fault} at call {call} of {disk}: {trial.rig.disks[disk].failed}")
                raise
            assert trial.rig.disks[disk].failed_after is not None
            trial.settle()
            trial.assert_nothing_left()
            trial.assert_state(disk)
            copies = [path.read_bytes() for path in trial.rig.copies(download.content)]
            assert copies == [download.content] * 2
            assert not list(download.path.glob("*/*/.stor/quarantine/*"))
            assert not list(download.path.glob("*/*/.stor/repair/*"))
            figures["downloads with one fault"] += 1


@pytest.mark.parametrize("fault", [*READ_ERRORS, "hang"])
@pytest.mark.parametrize("kind", DOWNLOADS)
def test_a_download_with_one_good_copy_is_always_right(quick_path, kind, fault, figures):
    every_download(Download(quick_path, kind), fault, figures)


@pytest.mark.parametrize("fault", ["EIO", "hang"])
@pytest.mark.parametrize("kind", ["large", "part", "head"])
@pytest.mark.parametrize("sums", [sums for sums in SUMS if sums != "kept"])
def test_a_download_is_right_whatever_the_block_sums_are_like(
    quick_path, sums, kind, fault, figures
):
    every_download(Download(quick_path, kind, sums), fault, figures)


@pytest.mark.parametrize("other", ["gone", "broken"])
@pytest.mark.parametrize("fault", [*READ_ERRORS, "hang"])
@pytest.mark.parametrize("kind", ["small", "large", "part"])
def test_a_download_without_a_good_copy_never_looks_whole(quick_path, kind, fault, other, figures):
    download = Download(quick_path, kind)
    calls = download.calls()
    with no_bug_logged():
        for seed, disk, call in calls:
            if disk not in download.home:
                continue
            trial = download.trial(fault, seed)
            (twin,) = set(download.home) - {disk}
            path = quick_path / twin / digest_of(download.content).disk_path
            if other == "gone":
                path.unlink()
            else:
                trial.rig.disks[twin].fail_always("*", errno.EIO)
            trial.arm(disk, call)
            response = download.run(trial)
            assert response is not None
            if response.status in (200, 206):
                if response.complete:
                    download.assert_right(response)
            else:
                # Only an error of the other disk keeps the one without a copy from answering.
                absent = fault == "ENOENT" or (other == "gone" and fault == "hang")
                assert response.status in ({404, 503} if absent else {503})
                assert_one_line(response, response.status)
            trial.settle()
            trial.rig.rounds(2)
            trial.assert_nothing_left()
            download.assert_right(download.run(trial))
            if not path.exists():
                path.write_bytes(download.content)
            figures["downloads with two faults"] += 1


@pytest.mark.parametrize(
    "error",
    ["ENOSPC", "EDQUOT", "E2BIG", "ERANGE", "EOPNOTSUPP", "EPERM", "EACCES", "EROFS", "EIO"],
)
def test_block_sums_that_cannot_be_written_say_nothing_of_the_disk(quick_path, error):
    content = sample(3 * MIB)
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles)
    for files in rig.disks.values():
        files.fail_always("set_attribute", getattr(errno, error))
    with no_bug_logged():
        assert rig.put(content).status == 201
        assert not any(os.listxattr(path) for path in rig.copies(content))
        for _ in range(2):
            assert rig.get(content).body == content  # and sums that are made now cannot be kept
        rig.copies(content)[0].unlink()
        assert rig.put(content).status == 200
        rig.rounds(2)
    assert [path.read_bytes() for path in rig.copies(content)] == [content] * 2
    assert {member.health.state for member in rig.members} == {State.ONLINE}
    assert all(member.health.unwritable is None for member in rig.members)
    assert rig.put(sample(100)).status == 201
