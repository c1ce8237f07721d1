"""The states of a disk: what moves them, what is said of them, and what is still done."""

import errno
import json
import os
import shutil

import pytest
from twisted.logger import LogLevel, formatEvent

from stor.mirror.health import AGAIN_SECONDS, State
from tests.conformance import MIB, QuickFiles, sample
from tests.support.http import assert_one_line, logged_events, no_bug_logged
from tests.support.rig import FaultyRig, digest_of

BROKEN = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.EUCLEAN)
REFUSING = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT)
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(quick_path):
    return FaultyRig(quick_path, kind=QuickFiles)


def refuse_writing(files, error):
    """The disk can be read and nothing else."""
    for call in ("open_nameless", "create", "make_directory", "name", "unlink", "rename"):
        files.fail_always(call, error)


def picture(rig, label):
    """What `/status` says of a disk."""
    response = rig.request("GET", "/status", [("Accept", "application/json")])
    disks = [d for s in json.loads(response.body)["sets"] for d in s["disks"]]
    (found,) = [disk for disk in disks if disk["root"].endswith(label)]
    return found


def member(rig, label):
    return next(m for m in rig.members if m.root.endswith(label))


def read_from(rig, label, times=1):
    """Ask one disk for a sample that it has not."""
    for _ in range(times):
        disk = member(rig, label)
        disk.read(disk.disk.look, digest_of(b"absent")).addErrback(lambda _: None)


@pytest.mark.parametrize("error", BROKEN, ids=errno.errorcode.get)
def test_three_errors_in_a_row_make_a_disk_suspect_until_the_next_probe(rig, error):
    disk = member(rig, "set0/disk0")
    before = disk.health.since
    rig.clock.advance(7)
    rig.disks["set0/disk0"].fail_always("*", error)
    for state in (State.ONLINE, State.ONLINE, State.SUSPECT, State.SUSPECT):
        read_from(rig, "set0/disk0")
        assert disk.health.state is state
    assert disk.health.since == before + 7
    said = picture(rig, "set0/disk0")
    assert said["state"] == "suspect"
    assert said["errors"] == 4
    assert said["since"] == pytest.approx(rig.wall_seconds())
    assert "I/O errors in a row" in said["reason"]
    assert os.strerror(error) in said["reason"]
    status = rig.request("GET", "/status")
    assert status.status == 503
    assert status.text.startswith(f"{disk.root}: suspect: ")
    assert status.text.count("\n") == 1
    rig.heal()
    rig.clock.advance(5)
    rig.probe()
    assert disk.health.state is State.ONLINE
    assert disk.health.since == before + 12
    assert rig.request("GET", "/status").body == b"OK\n"


def test_errors_with_a_success_between_them_change_nothing(rig):
    disk = member(rig, "set0/disk0")
    for _ in range(10):
        rig.disks["set0/disk0"].fail_always("*", errno.EIO)
        read_from(rig, "set0/disk0", 2)
        rig.heal()
        read_from(rig, "set0/disk0")
    assert disk.health.state is State.ONLINE
    assert disk.health.errors_total == 20
    assert rig.request("GET", "/status").body == b"OK\n"


@pytest.mark.parametrize("error", OURS, ids=errno.errorcode.get)
def test_what_the_process_lacks_is_no_fault_of_the_disk(rig, error):
    rig.disks["set0/disk0"].fail_always("open_directory", error)
    read_from(rig, "set0/disk0", 10)
    assert member(rig, "set0/disk0").health.state is State.ONLINE


@pytest.mark.parametrize("sets", [(2,), (2, 2)])
def test_a_disk_that_fails_every_call_is_suspect_after_three_uploads(quick_path, sets):
    """Cleaning up after a failed upload is no success."""
    rig = FaultyRig(quick_path, sets, kind=QuickFiles)
    rig.disks["set0/disk0"].fail_always("*", errno.EIO)
    disk = member(rig, "set0/disk0")
    for n in range(20):
        assert rig.put(b"%d" % n).status == (503 if sets == (2,) else 201)
        if disk.health.state is State.SUSPECT:
            break
    assert disk.health.state is State.SUSPECT
    assert disk.health.errors_total <= 6 or len(sets) > 1


def test_a_suspect_disk_is_read_last_and_not_written(rig):
    contents = [sample(5000, n) for n in range(20)]
    for content in contents:
        rig.put(content)
    rig.disks["set0/disk0"].fail_always("*", errno.EIO)
    read_from(rig, "set0/disk0", 3)
    rig.heal()
    asked = rig.disks["set0/disk0"].calls
    before = len(asked)
    for content in contents:
        assert rig.get(content).body == content
    assert len(asked) == before
    for n in range(20):
        response = rig.put(b"new %d" % n)
        assert response.status == 201
        assert "set1" in response.text
    assert not {"write", "create", "open_nameless"} & {call.name for call in asked[before:]}
    for content in contents:
        rig.copies(content)[1].unlink()
    rig.rounds(0)
    before = len(asked)
    served = [content for content in contents if rig.get(content).body == content]
    assert served == contents
    assert len(asked) > before


def test_a_suspect_disk_answers_for_no_one(quick_path):
    rig = FaultyRig(quick_path, (1,), kind=QuickFiles)
    assert_one_line(rig.get(b"absent"), 404)
    rig.disks["set0/disk0"].fail_always("*", errno.EIO)
    for n in range(5):
        assert_one_line(rig.get(b"absent %d" % n), 503)
    rig.heal()
    assert_one_line(rig.get(b"absent"), 503)
    assert_one_line(rig.put(b"new"), 503)
    rig.probe()
    assert_one_line(rig.get(b"absent"), 404)


@pytest.mark.parametrize("error", REFUSING, ids=errno.errorcode.get)
def test_a_disk_that_refuses_writes_is_read_and_said_to_be_ill(rig, error):
    contents = [sample(5000, n) for n in range(20)]
    for content in contents:
        rig.put(content)
    refuse_writing(rig.disks["set0/disk1"], error)
    rig.probe()
    disk = member(rig, "set0/disk1")
    assert disk.health.state is State.READ_ONLY
    status = rig.request("GET", "/status")
    assert status.status == 503
    assert status.text == (
        f"{disk.root}: read-only: {disk.root}: cannot be written: {os.strerror(error)}\n"
    )
    for content in contents:
        assert rig.get(content).body == content
        assert rig.put(content).status == 200
    assert_one_line(rig.get(b"absent"), 404)
    for n in range(10):
        response = rig.put(b"new %d" % n)
        assert response.status == 201
        assert "set1" in response.text
    rig.heal()
    rig.probe()
    assert disk.health.state is State.ONLINE
    assert rig.request("GET", "/status").body == b"OK\n"


@pytest.mark.parametrize("probed", [False, True], ids=["not known yet", "known"])
@pytest.mark.parametrize("error", [*BROKEN, *REFUSING], ids=errno.errorcode.get)
@pytest.mark.parametrize("sets", [(2,), (2, 2)])
def test_no_upload_is_a_500_because_of_a_disk_that_refuses(quick_path, sets, error, probed):
    rig = FaultyRig(quick_path, sets, kind=QuickFiles)
    refuse_writing(rig.disks["set0/disk1"], error)
    if probed:
        rig.probe()
    for n in range(10):
        response = rig.put(b"new %d" % n)
        if sets == (2, 2):
            assert response.status == 201
            assert "set1" in response.text
        else:
            assert_one_line(response, 503)
    assert not rig.staged()


@pytest.mark.parametrize("read_only", [{(0, 0)}, {(0, 1)}, {(0, 0), (0, 1)}])
def test_a_disk_that_the_configuration_keeps_is_read_and_well(quick_path, read_only):
    first = FaultyRig(quick_path, kind=QuickFiles)
    contents = [sample(5000, n) for n in range(20)]
    for content in contents:
        first.put(content)
    rig = FaultyRig(quick_path, kind=QuickFiles, read_only=read_only)
    assert rig.request("GET", "/status").body == b"OK\n"
    for s, d in read_only:
        assert picture(rig, f"set{s}/disk{d}")["state"] == "read-only"
        assert picture(rig, f"set{s}/disk{d}")["reason"] is None
    for content in contents:
        assert rig.get(content).body == content
        assert rig.put(content).status == 200
    for n in range(10):
        response = rig.put(b"new %d" % n)
        assert response.status == 201
        assert "set1" in response.text
    for s, d in read_only:
        names = {call.name for call in rig.disks[f"set{s}/disk{d}"].calls}
        assert not {"write", "create", "open_nameless", "make_directory", "unlink"} & names


def test_a_sample_directory_that_refuses_names_is_an_error_about_that_place(quick_path):
    """The disk is well: what belongs elsewhere on it is stored there."""
    refused = digest_of(b"refused").directories[0]

    class Foreign(QuickFiles):
        def _before(self, name, args):
            path = self._path(name, args) or ""
            if name in ("make_directory", "name") and path.startswith(f"{refused}/"):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    rig = FaultyRig(quick_path, (2,), kind=Foreign)
    assert rig.put(b"stored").status == 201
    response = rig.put(b"refused")
    assert_one_line(response, 503)
    assert refused in response.text
    assert rig.request("GET", "/status").body == b"OK\n"
    assert rig.put(b"stored too").status == 201


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_what_is_wrong_with_one_file_is_told_once_an_hour_however_often_it_is_asked_for(
    quick_path, error
):
    refused = set()

    class Refusing(QuickFiles):
        def _before(self, name, args):
            if name == "open_to_read" and args[0] in refused:
                raise OSError(error, os.strerror(error), args[0])

    rig = FaultyRig(quick_path, (2,), kind=Refusing)
    contents = [b"one", b"another"]
    for content in contents:
        assert rig.put(content).status == 201
    refused.update(digest_of(content).disk_path for content in contents)

    def told_of():
        """How often it is told of each while all are asked for."""
        with logged_events(LogLevel.warn) as events:
            for _ in range(10):
                for content in contents:
                    assert rig.get(content).status == 503
        lines = [formatEvent(event) for event in events]
        lines = [line for line in lines if os.strerror(error) in line]
        return [sum(digest_of(content).disk_path in line for line in lines) for content in contents]

    assert told_of() == [2, 2]  # on each of two disks
    assert told_of() == [0, 0]
    rig.clock.advance(AGAIN_SECONDS)
    assert told_of() == [2, 2]


def test_without_a_writable_set_there_is_no_room(quick_path):
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles, read_only={(0, 0), (0, 1)})
    response = rig.put(b"new")
    assert_one_line(response, 507)
    assert "writable_pairs_regex" in response.text


def test_the_operator_keeps_a_disk_from_being_written_with_a_file(rig):
    mark = rig.roots[1] / ".stor" / "read-only"
    mark.touch()
    rig.probe()
    disk = member(rig, "set0/disk1")
    assert disk.health.state is State.READ_ONLY
    assert disk.health.fault is None
    assert rig.request("GET", "/status").body == b"OK\n"
    before = len(rig.disks["set0/disk1"].calls)
    rig.probe()
    for n in range(10):
        assert "set1" in rig.put(b"new %d" % n).text
    names = {call.name for call in rig.disks["set0/disk1"].calls[before:]}
    assert not {"write", "create", "open_nameless", "make_directory", "unlink"} & names
    mark.unlink()
    rig.probe()
    assert disk.health.state is State.ONLINE


@pytest.mark.parametrize("error", FULL, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["write", "allocate", "open_nameless", "make_directory", "name"])
def test_a_full_disk_stays_online(rig, call, error):
    contents = [sample(5000, n) for n in range(10)]
    for content in contents:
        rig.put(content)
    for label in ("set0/disk0", "set1/disk0"):
        rig.disks[label].fail_always(call, error)
    for n in range(10):
        response = rig.put(sample(2 * MIB, n))
        assert_one_line(response, 507)
        rig.probe()
    assert {m.health.state for m in rig.members} == {State.ONLINE}
    assert {m.health.errors_total for m in rig.members} == {0}
    assert rig.request("GET", "/status").body == b"OK\n"
    for content in contents:
        assert rig.get(content).body == content
    assert not rig.staged()
    rig.heal()
    assert rig.put(b"new").status == 201


def test_a_full_disk_is_taken_into_use(quick_path):
    """It cannot be given a marker yet; it gets one when there is room."""

    class Full(QuickFiles):
        def __init__(self, label, log):
            super().__init__(label, log)
            if label == "set0/disk0":
                self.fail_always("create", errno.ENOSPC)

    content = sample(5000)
    path = quick_path / "set0" / "disk0" / digest_of(content).disk_path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    rig = FaultyRig(quick_path, kind=Full)
    assert {m.health.state for m in rig.members} == {State.ONLINE}
    assert rig.get(content).body == content
    assert not (rig.roots[0] / ".stor" / "disk.json").exists()
    rig.heal()
    rig.probe()
    assert (rig.roots[0] / ".stor" / "disk.json").exists()


@pytest.mark.parametrize(
    ("call", "state"),
    [
        ("open_directory", State.OFFLINE),
        ("fstatvfs", State.OFFLINE),
        ("read", State.OFFLINE),
        ("write", State.SUSPECT),
        ("sync", State.SUSPECT),
        ("name", State.SUSPECT),
    ],
)
def test_a_disk_that_a_probe_cannot_read_is_offline_and_one_it_cannot_write_suspect(
    rig, call, state
):
    """Until a probe passes."""
    disk = member(rig, "set1/disk1")
    rig.disks["set1/disk1"].fail_always(call, errno.EIO)
    rig.clock.advance(3)
    rig.probe()
    assert disk.health.state is state
    assert disk.health.since == rig.clock.seconds()
    assert disk.health.fault.startswith(f"{disk.root}: ")
    assert disk.health.fault.endswith(": [Errno 5] Input/output error")
    rig.clock.advance(3)
    rig.probe()
    assert disk.health.since == rig.clock.seconds() - 3
    rig.heal()
    rig.probe()
    assert disk.health.state is State.ONLINE


def test_a_disk_that_vanishes_is_offline_with_the_first_operation(rig):
    contents = [sample(5000, n) for n in range(20)]
    for content in contents:
        rig.put(content)
    shutil.rmtree(rig.roots[0])
    for content in contents:
        assert rig.get(content).body == content
    disk = member(rig, "set0/disk0")
    assert disk.health.state is State.OFFLINE
    assert disk.health.fault == f"{disk.root}: not a directory"
    assert disk.health.errors_total == 0
    assert not rig.roots[0].exists()
    for n in range(5):
        assert "set1" in rig.put(b"new %d" % n).text


@pytest.mark.parametrize("away", [[0], [0, 1], [0, 2], [0, 1, 2, 3]])
def test_uploads_with_disks_away(rig, away):
    for index in away:
        rig.roots[index].rename(rig.roots[index].with_name("away"))
        if index % 2 == 0 and index + 1 in away:
            rig.roots[index].with_name("away").rename(rig.roots[index].with_name("away too"))
    rig.probe()
    response = rig.put(b"new")
    whole = [s for s in (0, 1) if not {2 * s, 2 * s + 1} & set(away)]
    if whole:
        assert response.status == 201
        assert f"set{whole[0]}" in response.text
    else:
        assert_one_line(response, 503)
        for index in away:
            assert f"{rig.roots[index]}: not a directory" in response.text
    assert not any(rig.roots[index].exists() for index in away)
