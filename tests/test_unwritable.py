"""Disks that take no new samples although they should: said so, with the reason and since when."""

import errno
import json
import os

import pytest
from twisted.logger import LogLevel, capturedLogs, formatEvent

from stor.mirror.health import Cause, State
from tests.conformance import QuickFiles, sample
from tests.support.http import assert_one_line, no_bug_logged
from tests.support.metrics import Exported
from tests.support.rig import FaultyRig

RESERVE_BYTES = 1024 * 1024
BLOCK_BYTES = 4096

CONTENT = sample(5000)


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Sized(QuickFiles):
    """A disk of which the test says how much is left on it: blocks and inodes."""

    def __init__(self, label, log):
        super().__init__(label, log)
        self.free_blocks, self.free_inodes = 10**6, 10**6

    def fstatvfs(self, fd):
        status = list(super().fstatvfs(fd))
        status[1] = BLOCK_BYTES
        status[2], status[4] = 10**6, self.free_blocks
        status[5], status[7] = 10**6, self.free_inodes
        return os.statvfs_result(status)


@pytest.fixture
def rig(quick_path):
    return FaultyRig(quick_path, kind=Sized, reserve_bytes=RESERVE_BYTES)


def fill(rig, label, what="bytes"):
    """Up to its reserve."""
    disk = rig.disks[label]
    if what == "bytes":
        disk.free_blocks = RESERVE_BYTES // BLOCK_BYTES
    else:
        disk.free_inodes = 19


def picture(rig):
    """The sets, as `/status` has them, and the problems and warnings."""
    response = rig.request("GET", "/status", [("Accept", "application/json")])
    found = json.loads(response.body)
    return found["sets"], found["problems"], found["warnings"]


def exported(rig):
    return Exported(rig.request("GET", "/metrics").text)


def unwritable(rig, member):
    """The causes that Prometheus is told of."""
    value, root = exported(rig).value, member.root
    return [c for c in Cause if value("stor_disk_unwritable", root=root, cause=c.value)]


def said(logs):
    return [
        event["why"] for event in logs if event["log_level"] is LogLevel.warn and "why" in event
    ]


def lines(logs):
    """What the log has of disks' states."""
    return [formatEvent(event) for event in logs if "state" in event]


def test_a_disk_that_was_away_says_for_how_long_and_one_that_is_in_order_says_nothing(rig):
    disk, root = rig.members[1], rig.roots[1]
    with capturedLogs() as logs:
        rig.probe()
        root.rename(f"{root}.away")
        rig.probe()
        rig.clock.advance(200)
        rig.probe()
        os.rename(f"{root}.away", root)
        rig.probe()
    assert lines(logs) == [
        f"{disk.root} is offline: {disk.root}: not a directory",
        f"{disk.root} is online again after 3 min",
    ]


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_disk_that_is_full_up_to_its_reserve_takes_no_samples_and_says_so(rig, what):
    disk = rig.members[1]
    assert unwritable(rig, disk) == []
    rig.clock.advance(7)
    fill(rig, "set0/disk1", what)
    with capturedLogs() as logs:
        for _ in range(3):  # it is said once
            rig.probe()
            rig.clock.advance(5)
    (why,) = said(logs)
    assert why.startswith("full")
    sets, problems, warnings = picture(rig)
    assert [of_set["writable"] for of_set in sets] == [False, True]
    told = sets[0]["disks"][1]
    assert told["state"] == "online"
    assert told["reason"] is None
    assert told["unwritable"]["cause"] == "full"
    assert told["unwritable"]["reason"] == why
    assert told["unwritable"]["since"] == pytest.approx(rig.wall_seconds() - 15)
    assert sets[0]["disks"][0]["unwritable"] is None
    assert problems == []
    assert warnings == [f"{disk.root}: takes no new samples: {why}"]
    assert rig.request("GET", "/status").body == b"OK\n"
    assert unwritable(rig, disk) == [Cause.FULL]
    assert exported(rig).value("stor_sets_writable") == 1
    page = rig.request("GET", "/", [("Accept", "text/html")]).text
    assert why in page
    assert "takes no new samples for 15 s" in page
    for n in range(5):
        assert "set1" in rig.put(b"%d" % n).text
    rig.disks["set0/disk1"].free_blocks = rig.disks["set0/disk1"].free_inodes = 10**6
    with capturedLogs() as logs:
        rig.probe()
    assert lines(logs) == [f"{disk.root} is online again after 15 s"]
    assert unwritable(rig, disk) == []
    assert picture(rig)[2] == []


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_disk_that_the_kernel_keeps_from_being_written_is_no_disk_that_the_operator_holds(
    rig, error
):
    ill, held = rig.members[1], rig.members[2]
    (rig.roots[2] / ".stor" / "read-only").touch()
    for call in ("open_nameless", "create"):
        rig.disks["set0/disk1"].fail_always(call, error)
    with capturedLogs() as logs:
        rig.probe()
    assert [member.health.state for member in (ill, held)] == [State.READ_ONLY] * 2
    assert said(logs) == [f"{ill.root}: cannot be written: {os.strerror(error)}"]
    informed = [e["why"] for e in logs if e["log_level"] is LogLevel.info and "why" in e]
    assert informed == ["held by the operator"]
    assert unwritable(rig, ill) == [Cause.REFUSED]
    assert unwritable(rig, held) == []
    sets, problems, _ = picture(rig)
    assert [problem.startswith(f"{ill.root}: read-only: ") for problem in problems] == [True]
    assert [disk["held"] for of_set in sets for disk in of_set["disks"]] == [0, 0, 1, 0]
    assert sets[0]["disks"][1]["unwritable"]["cause"] == "refused"
    assert sets[1]["disks"][0]["unwritable"] is None


WRITING = ("open_nameless", "create", "write", "sync", "name")


@pytest.mark.parametrize("remounted", [False, True])
@pytest.mark.parametrize("calls", [("*",), ("read",), WRITING], ids=["all", "read", "writing"])
@pytest.mark.parametrize(
    "error", [errno.EIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN], ids=errno.errorcode.get
)
def test_a_dead_disk_is_not_called_read_only(rig, error, calls, remounted):
    """Nor one whose kernel has made it read-only first, as ext4 does (errors=remount-ro)."""
    ill = rig.members[1]
    files = rig.disks["set0/disk1"]
    if remounted:
        for call in ("open_nameless", "create"):
            files.fail_always(call, errno.EROFS)
        rig.probe()
        assert ill.health.state is State.READ_ONLY
    for call in calls:
        files.fail_always(call, error)
    with capturedLogs() as logs:
        rig.probe()
    expected = State.SUSPECT if calls is WRITING else State.OFFLINE
    assert ill.health.state is expected
    assert said(logs) == [ill.health.fault]
    assert os.strerror(error) in ill.health.fault
    told = [event["state"] for event in logs if "state" in event]
    assert told == [expected.value]
    sets, problems, _ = picture(rig)
    assert [problem.startswith(f"{ill.root}: {expected.value}: ") for problem in problems] == [True]
    assert sets[0]["disks"][1]["state"] == expected.value
    assert unwritable(rig, ill) == []
    value = exported(rig).value
    for state in State:
        found = value("stor_disk_state", root=ill.root, state=state.value)
        assert found == (state is expected)
    for text in (rig.request("GET", "/status").text, ill.health.fault):
        assert "read-only" not in text
        assert os.strerror(errno.EROFS) not in text


def test_a_full_disk_that_the_operator_holds_is_nobody_s_business(rig):
    (rig.roots[1] / ".stor" / "read-only").touch()
    fill(rig, "set0/disk1")
    rig.probe()
    assert unwritable(rig, rig.members[1]) == []
    assert picture(rig)[1:] == ([], [])


def test_every_set_full_is_507(rig):
    for label in rig.disks:
        fill(rig, label)
    rig.probe()
    assert_one_line(rig.put(CONTENT), 507)
    assert exported(rig).value("stor_sets_writable") == 0


class Missing(Sized):
    """A disk of the second set is not there."""

    def open_directory(self, path, directory_fd=None):
        if path.endswith("set1/disk0"):
            raise FileNotFoundError(path)
        return super().open_directory(path, directory_fd)


@pytest.mark.parametrize("how", ["away", "suspect", "refused", "away from the start"])
def test_one_set_full_and_the_other_away_is_to_be_tried_again(quick_path, how):
    kind = Missing if how == "away from the start" else Sized
    rig = FaultyRig(quick_path, kind=kind, reserve_bytes=RESERVE_BYTES)
    fill(rig, "set0/disk0")
    rig.probe()
    disk = rig.members[2]
    if how == "away":
        disk.health.probe_failed(f"{disk.root}: gone")
    elif how == "suspect":
        for _ in range(3):
            disk.health.operation_failed("EIO")
    elif how == "refused":
        disk.health.write_refused(f"{disk.root}: read-only file system")
    for n in range(3):
        response = rig.put(b"%d" % n)
        assert_one_line(response, 503)
        assert response.headers["retry-after"]
        assert disk.root in response.text


@pytest.mark.parametrize("why", ["full when it was last seen", "held by the operator"])
def test_a_set_that_is_away_and_could_take_nothing_anyway_is_no_hope(rig, why):
    fill(rig, "set0/disk0")
    if why == "held by the operator":
        (rig.roots[2] / ".stor" / "read-only").touch()
    else:
        fill(rig, "set1/disk1")
    rig.probe()
    rig.members[2].health.probe_failed("gone")
    assert_one_line(rig.put(CONTENT), 507)


def test_a_set_that_becomes_full_under_an_upload_while_the_other_is_away(rig):
    rig.members[2].health.probe_failed("gone")
    rig.disks["set0/disk0"].fail_always("write", errno.ENOSPC)
    response = rig.put(CONTENT)
    assert_one_line(response, 503)
    assert response.headers["retry-after"]
    rig.probe()
    rig.disks["set1/disk0"].fail_always("write", errno.ENOSPC)
    assert_one_line(rig.put(CONTENT), 507)


def test_without_a_set_that_the_operator_lets_be_written_there_is_no_room(rig):
    for root in rig.roots:
        (root / ".stor" / "read-only").touch()
    rig.probe()
    response = rig.put(CONTENT)
    assert_one_line(response, 507)
    assert ".stor/read-only" in response.text


class Full(QuickFiles):
    """A disk on which nothing has room until it is healed, whatever statvfs(3) says."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for call in ("create", "open_nameless", "make_directory", "write"):
            self.fail_always(call, errno.ENOSPC)


def test_a_disk_that_was_full_at_its_first_look_is_probed_before_a_sample_goes_there(quick_path):
    """Its journal could not be made then, and is, as soon as somebody stores something."""
    rig = FaultyRig(quick_path, (2,), kind=Full)
    assert rig.put(b"content").status in (503, 507)
    rig.heal()
    assert rig.put(b"content").status == 201
    assert rig.get(b"content").body == b"content"
    (mirror,) = rig.mirrors.mirrors
    assert (mirror.reserved.total(), mirror.writes) == ((0, 0), 0)
