"""Only the disk that belongs at a storage root is used there; any other gets not one byte."""

import errno
import os
import shutil

import attrs
import pytest

from stor.disk.disk import DiskAway
from stor.disk.identity import KnownDisks, Marker, Remembered
from stor.disk.syscalls import Syscalls
from stor.mirror.health import State
from tests.conformance import QuickFiles, sample
from tests.support.host import CHANGING, LABELS, SAMPLES, Host, member, states
from tests.support.http import assert_one_line, no_bug_logged
from tests.support.rig import digest_of
from tests.support.staging import begin


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def host(quick_path):
    return Host(quick_path)


def assert_untouched(rig, label):
    """The disk is offline, said to be so, and nothing on it was changed by this Stor."""
    assert member(rig, label).health.state is State.OFFLINE
    status = rig.request("GET", "/status")
    assert status.status == 503
    assert f"{member(rig, label).root}: offline: " in status.text
    for content in SAMPLES:
        rig.get(content)
        rig.put(content)
    for n in range(20):
        rig.put(b"new %d" % n)
    rig.rounds(3)
    assert not CHANGING & {call.name for call in rig.disks[label].calls}


def assert_samples_on(rig, label):
    """What the other disk of the set holds is served."""
    at_home = [content for content in SAMPLES if label in str(rig.copies(content))]
    assert at_home
    for content in at_home:
        assert rig.get(content).body == content


def test_nothing_changes_when_the_same_disks_come_back(host):
    markers = {label: host.filled and host.marker(label) for label in LABELS}
    for _ in range(3):
        rig = host.start()
        assert set(states(rig).values()) == {State.ONLINE}
        assert rig.request("GET", "/status").body == b"OK\n"
        assert {label: host.marker(label) for label in LABELS} == markers
        changed = [c for f in rig.disks.values() for c in f.calls if c.name == "rename"]
        assert not changed
        for content in SAMPLES:
            assert rig.get(content).body == content


@pytest.mark.parametrize(
    ("one", "other"), [("set0/disk0", "set0/disk1"), ("set0/disk1", "set1/disk1")]
)
def test_swapped_disks_are_not_used(host, one, other):
    assert host.filled
    markers = {label: host.marker(label) for label in LABELS}
    host.swap(one, other)
    rig = host.start()
    for label, wrong in ((one, other), (other, one)):
        fault = member(rig, label).health.fault
        assert fault.startswith(f"{host.path / label}: this is disk {markers[wrong]['uuid']} ")
        assert f"{markers[label]['uuid']} belongs here" in fault
        assert_untouched(rig, label)
    host.swap(one, other)
    rig.rounds(1)
    assert set(states(rig).values()) == {State.ONLINE}


def test_a_disk_that_is_mounted_at_two_roots_is_used_at_its_own(host):
    assert host.filled
    shutil.rmtree(host.path / "set1/disk1")
    (host.path / "set1/disk1").symlink_to(host.path / "set0/disk0")
    rig = host.start()
    assert_untouched(rig, "set1/disk1")
    assert member(rig, "set0/disk0").health.state is State.ONLINE


def test_one_new_disk_at_two_roots_is_used_at_one(host):
    (host.path / "set0/disk0").mkdir(parents=True)
    (host.path / "set0/disk1").symlink_to("disk0")
    rig = host.start()
    used = [label for label, state in states(rig).items() if state is State.ONLINE]
    assert len({"set0/disk0", "set0/disk1"} & set(used)) == 1
    (other,) = {"set0/disk0", "set0/disk1"} - set(used)
    assert "this is the disk that belongs at" in member(rig, other).health.fault
    for n in range(10):
        assert "set1" in rig.put(b"%d" % n).text


@pytest.mark.parametrize("when", ["at the start", "while running"])
@pytest.mark.parametrize("emptied", [[0], [1], [2], [0, 1], [2, 3], [0, 2], [1, 2, 3]], ids=str)
def test_an_emptied_disk_gets_nothing(host, emptied, when):
    rig = host.filled
    for index in emptied:
        host.empty(LABELS[index])
    if when == "at the start":
        rig = host.start()
    else:
        for files in rig.disks.values():
            files.calls.clear()
        rig.rounds(1)
    for index in emptied:
        assert_untouched(rig, LABELS[index])
        assert os.listdir(rig.roots[index]) == []
    for index in {0, 1, 2, 3} - set(emptied):
        assert_samples_on(rig, LABELS[index])
    dead = [s for s in (0, 1) if {2 * s, 2 * s + 1} <= set(emptied)]
    # What a set holds is still known after it has gone away.
    assert_one_line(rig.get(b"absent"), 503 if dead and when == "at the start" else 404)


def test_the_disks_of_the_older_stor_are_taken_as_they_are(host):
    for content in SAMPLES:
        for label in ("set0/disk0", "set0/disk1"):
            path = host.path / label / digest_of(content).disk_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    rig = host.start()
    assert set(states(rig).values()) == {State.ONLINE}
    assert host.marker("set0/disk0")["set"] == host.marker("set0/disk1")["set"]
    for content in SAMPLES:
        assert rig.get(content).body == content
        assert rig.put(content).status == 200


class Missing(QuickFiles):
    """A host whose disk `set0/disk1` is not there."""

    def __init__(self, label, log):
        super().__init__(label, log)
        if label == "set0/disk1":
            self.fail_always("open_directory", errno.ENOENT)


@pytest.mark.parametrize("known", [("/a", "/b"), ("/a",), ("/b",)])
def test_an_empty_mount_point_is_no_new_disk_where_another_is_remembered(known):
    """Whichever file system it is on, and whoever else is away."""
    remembered = {root: Remembered(Marker.new().uuid, True) for root in known}
    disks = KnownDisks([["/a", "/b"]], remembered)
    for patient in (True, False):
        if not patient:
            disks.stop_waiting()
        found = {r: disks.judge(r, None, empty=True, writable=True) for r in ("/a", "/b")}
        for root in known:
            assert f"{remembered[root].uuid} belongs here" in found[root].refusal
    assert disks.remembered().items() >= remembered.items()


def test_what_is_left_out_is_named_until_somebody_else_has_its_samples():
    alone, pair = Marker.new(), Marker.new()
    remembered = {
        "/alone": Remembered(alone.uuid, True),
        "/one": Remembered(pair.uuid, True),
        "/new": Remembered(Marker.new().uuid, False),
    }
    disks = KnownDisks([["/two"], ["/moved"]], remembered)
    assert disks.left_out() == ["/alone", "/one"]
    other = attrs.evolve(Marker.new(), complete=(pair.uuid,))
    disks.judge("/two", other, empty=False, writable=True)
    assert disks.left_out() == ["/alone"]
    disks.judge("/moved", alone, empty=False, writable=True)
    assert disks.left_out() == []
    assert disks.remembered().keys() == {*remembered, "/two", "/moved"}


def test_an_older_disk_is_taken_although_its_sibling_is_missing(host):
    path = host.path / "set0/disk0" / digest_of(SAMPLES[0]).disk_path
    path.parent.mkdir(parents=True)
    path.write_bytes(SAMPLES[0])
    rig = host.start(kind=Missing)
    assert states(rig)["set0/disk0"] is State.ONLINE
    assert host.marker("set0/disk0")["uuid"]
    assert rig.get(SAMPLES[0]).body == SAMPLES[0]


def test_an_empty_disk_waits_for_its_sibling(host):
    rig = host.start(kind=Missing)
    rig.rounds(5)
    assert states(rig)["set0/disk0"] is State.OFFLINE
    fault = member(rig, "set0/disk0").health.fault
    assert f"{host.path / 'set0/disk1'}, which could tell" in fault
    assert "stor adopt" in fault
    assert not (host.path / "set0/disk0/.stor").exists()
    for n in range(5):
        assert "set1" in rig.put(b"%d" % n).text
    rig.heal()
    rig.rounds(2)
    assert set(states(rig).values()) == {State.ONLINE}
    assert host.marker("set0/disk0")["set"] == host.marker("set0/disk1")["set"]


def test_a_disk_that_was_emptied_while_its_sibling_was_away_is_found_out(host):
    assert host.filled
    host.empty("set0/disk0")
    for label in LABELS[2:]:  # nobody else remembers
        host.empty(label)
    rig = host.start(kind=Missing)
    assert states(rig)["set0/disk0"] is State.OFFLINE
    rig.heal()
    rig.rounds(2)
    assert states(rig)["set0/disk1"] is State.ONLINE
    assert "belongs here" in member(rig, "set0/disk0").health.fault
    assert_untouched(rig, "set0/disk0")
    assert os.listdir(host.path / "set0/disk0") == []


class Unmounted(QuickFiles):
    """Files of a disk in whose place another file system is, from its call `at` on."""

    at = 2**62

    def fstat(self, fd):
        return self._moved(super().fstat(fd))

    def stat(self, *args):
        return self._moved(super().stat(*args))

    def _moved(self, status):
        if len(self.calls) <= self.at:
            return status
        return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))


@pytest.mark.parametrize("size", [2000, 2**21])
def test_a_disk_that_is_unmounted_under_an_upload_gets_nothing_more(host, size):
    """Once the root is another file system, nothing is done relative to it."""

    def upload(at):
        shutil.rmtree(host.path)
        rig = host.start(kind=Unmounted, seed=1)
        files = rig.disks["set0/disk1"]
        files.calls.clear()
        files.at = at
        response = rig.put(sample(size, "new"))
        assert response.status == 201
        return rig, files.calls, response.text

    rig, calls, paths = upload(2**62)
    assert "set0" in paths
    root = str(rig.roots[1])
    visits = [n for n, call in enumerate(calls) if (call.name, call.path) == ("fstat", root)]
    assert visits
    for at in visits:
        rig, calls, paths = upload(at)
        assert "set1" in paths
        assert (calls[at + 1].name, calls[at + 1].args) == ("close", calls[at].args)
        assert not CHANGING & {call.name for call in calls[at:]}
        assert states(rig)["set0/disk1"] is State.OFFLINE
        assert "another file system is mounted there" in member(rig, "set0/disk1").health.fault
        assert not rig.staged()


@pytest.mark.parametrize("gone_from", [1, 2])
def test_a_disk_that_is_unmounted_under_a_look_does_not_say_that_nothing_is_there(host, gone_from):
    """Whichever of its calls comes after it."""
    assert host.filled
    rig = host.start(kind=Unmounted)
    disk, asked = member(rig, "set0/disk0").disk, []

    class Leaving(Syscalls):
        def stat(self, *args):
            asked.append(args)
            status = super().stat(*args)
            if len(asked) < gone_from:
                return status
            return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))

    disk.files = Leaving()
    with pytest.raises(DiskAway):
        disk.look(digest_of(b"absent"))
    assert len(asked) == 2


def test_an_unmounted_disk_is_the_file_system_of_the_root(host):
    """Both at the start and between two calls."""
    assert host.filled
    device = os.stat(host.path).st_dev
    rig = host.start(forbidden_device=device)
    for label in LABELS:
        assert "not mounted, it is on the file system of /" in member(rig, label).health.fault
        assert not CHANGING & {call.name for call in rig.disks[label].calls}
    response = rig.put(b"new")
    assert_one_line(response, 503)
    assert "not mounted" in response.text
    assert_one_line(rig.get(SAMPLES[0]), 503)


def test_nothing_is_done_below_a_root_that_is_not_the_disk(host):
    disk = member(host.filled, "set0/disk0").disk
    device = os.stat(disk.root).st_dev
    disk.identify(device + 1)
    before = len(disk.files.calls)
    digest = digest_of(SAMPLES[0])
    for attempt in (
        lambda: disk.look(digest),
        lambda: disk.open(digest),
        lambda: disk.check(digest, 2000),
        lambda: disk.verify(digest),
        disk.room,
        lambda: begin(disk, 2000),
    ):
        with pytest.raises(DiskAway):
            attempt()
    seen = {call.name for call in disk.files.calls[before:]}
    assert seen == {"stat", "open_directory", "fstat", "close"}
