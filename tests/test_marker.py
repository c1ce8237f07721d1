"""`.stor/disk.json`: written once, never half, and nobody is told of one that is not there."""

import errno
import shutil

import pytest

from stor.disk.identity import KnownDisks
from stor.mirror.health import State
from tests.conformance import QuickFiles
from tests.support.host import CHANGING, LABELS, SAMPLES, Host, member, states
from tests.support.http import no_bug_logged
from tests.support.rig import digest_of


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def host(quick_path):
    return Host(quick_path)


def test_first_use_marks_every_disk(host):
    rig = host.start()
    markers = {label: host.marker(label) for label in LABELS}
    assert len({marker["uuid"] for marker in markers.values()}) == 4
    for label, marker in markers.items():
        assert marker["disks"] == {str(host.path / o): markers[o]["uuid"] for o in LABELS}
        assert (marker["set"] == markers["set0/disk0"]["set"]) == label.startswith("set0")
        assert marker["replaces"] == []
        of_set = [markers[o]["uuid"] for o in LABELS if o[:4] == label[:4]]
        assert marker["complete"] == sorted(of_set)
        names = [call.name for call in rig.disks[label].calls if call.path]
        assert "sync" in names
    assert set(states(rig).values()) == {State.ONLINE}


DAMAGED = [b"", b"{", b"null", b"[]", b'{"uuid": 1}', b"\0" * 100, b"\xff" * 100, b'{"uuid": "x"}']


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_marker_keeps_the_disk_from_being_used(host, data):
    assert host.filled
    marker = host.path / "set0/disk0/.stor/disk.json"
    right = marker.read_bytes()
    marker.write_bytes(data)
    rig = host.start()
    assert ".stor/disk.json is damaged" in member(rig, "set0/disk0").health.fault
    for content in SAMPLES:
        assert rig.get(content).body == content
    assert marker.read_bytes() == data
    marker.write_bytes(right)
    rig.rounds(1)
    assert set(states(rig).values()) == {State.ONLINE}


@pytest.mark.parametrize("read_only", [{(0, 0)}, {(0, 0), (0, 1)}])
def test_a_disk_that_is_not_to_be_written_is_read_without_a_marker(host, read_only):
    path = host.path / "set0/disk0" / digest_of(SAMPLES[0]).disk_path
    path.parent.mkdir(parents=True)
    path.write_bytes(SAMPLES[0])
    rig = host.start(read_only=read_only)
    assert states(rig)["set0/disk0"] is State.READ_ONLY
    assert rig.get(SAMPLES[0]).body == SAMPLES[0]
    assert rig.request("GET", "/status").body == b"OK\n"
    assert not CHANGING & {call.name for call in rig.disks["set0/disk0"].calls}


def test_a_crash_before_the_marker_has_its_name_changes_nothing(host):
    assert host.filled
    for label in LABELS:
        (host.path / label / ".stor/disk.json.new").write_bytes(b"half")
    marker = host.marker("set0/disk0")
    rig = host.start()
    assert set(states(rig).values()) == {State.ONLINE}
    assert host.marker("set0/disk0") == marker


def test_a_crash_in_the_middle_of_first_use(host):
    """Wherever the first use of a disk is interrupted, the next start completes it."""

    class Crashing(QuickFiles):
        at = 2**62

        def _before(self, name, args):
            if self.label == "set0/disk0" and len(self.calls) >= self.at:
                self._raise(name, args, errno.EIO)

    for at in range(len(host.start().disks["set0/disk0"].calls)):
        shutil.rmtree(host.path)
        Crashing.at = at
        host.start(kind=Crashing)
        rig = host.start()
        assert set(states(rig).values()) == {State.ONLINE}
        assert rig.put(b"content").status == 201


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename", "make_directory"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_marker_that_could_not_be_written_is_written_later(host, call, error):
    class Failing(QuickFiles):
        def __init__(self, label, log):
            super().__init__(label, log)
            if label == "set0/disk0":
                self.fail_always(call, error)

    rig = host.start(kind=Failing)
    rig.heal()
    rig.rounds(2)
    assert set(states(rig).values()) == {State.ONLINE}
    assert host.marker("set0/disk0")["disks"].keys() == {str(host.path / o) for o in LABELS}


def test_nobody_is_told_of_a_disk_before_it_carries_its_marker():
    """Or else a disk whose first marker is lost would not be let in for one that never was."""
    known = KnownDisks([["/a", "/b"], ["/c"]])
    for root in ("/a", "/b", "/c"):
        assert known.judge(root, None, empty=True, writable=True).waits
    known.stop_waiting()
    markers = {
        root: known.judge(root, None, empty=True, writable=True).marker
        for root in ("/a", "/b", "/c")
    }
    assert [set(marker.disks) for marker in markers.values()] == [{"/a"}, {"/b"}, {"/c"}]
    assert markers["/a"].set == markers["/b"].set != markers["/c"].set
    known.marked("/b", markers["/b"])
    again = known.judge("/a", None, empty=True, writable=True).marker
    assert set(again.disks) == {"/a", "/b"}
    assert again.set == markers["/b"].set
    known = known.judge("/c", markers["/c"], empty=False, writable=True).marker
    assert set(known.disks) == {"/b", "/c"}


def test_a_short_write_leaves_no_short_marker(host):
    class Short(QuickFiles):
        def write(self, fd, data):
            return super().write(fd, data[:100])

    host.start(kind=Short)
    rig = host.start()
    assert set(states(rig).values()) == {State.ONLINE}
