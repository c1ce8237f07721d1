"""What was never stored does not seem to be, whatever records a crash or a failure has left."""

import errno
import shutil

import pytest
from twisted.internet.defer import Deferred

from tests.conformance import MIB, QuickFiles, sample
from tests.support.host import Host
from tests.support.http import AUTHORIZED, no_bug_logged
from tests.support.rig import close_indexes, digest_of

SIZES = pytest.mark.parametrize("size", [0, 1000, MIB], ids=["empty", "small", "large"])


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield
    close_indexes()


class Ending(QuickFiles):
    """A disk that does nothing more, from the call on that is to name a copy; or from the next."""

    ends = None

    def name(self, fd, path, directory_fd):
        if self.ends == "before" and path.endswith(".dat"):
            self.fail_always("*", errno.EIO)
        super().name(fd, path, directory_fd)
        if self.ends == "after" and path.endswith(".dat"):
            self.fail_always("*", errno.EIO)


def started(host, rounds=3):
    """A Stor that has looked at its disks a few times."""
    close_indexes()
    rig = host.start(sets=(2,), kind=Ending)
    for _ in range(rounds):
        rig.clock.pump([0.1] * 20)
        rig.rounds(1)
    return rig


def crashed(host, content, ends):
    """A Stor that ends in the middle of an upload; what each disk does by its place in the set."""
    rig = started(host)
    assert rig.put(b"stored before").status == 201
    for files, end in zip(rig.disks.values(), ends, strict=True):
        files.ends = end
    assert rig.put(content).status == 503


def ended(rig):
    """It stops as it should: the next start has no crash to make up for."""
    Deferred.fromCoroutine(rig.mirrors.learning.end())


def said(rig, content):
    """Whether `/index`, `/missing` and GET have a sample."""
    sha = str(digest_of(content))
    return (
        sha in rig.request("GET", "/index", [AUTHORIZED]).text,
        f"missing {sha}" not in rig.request("POST", "/missing", [AUTHORIZED], sha.encode()).text,
        rig.get(content).status == 200,
    )


NOWHERE, STORED = (False,) * 3, (True,) * 3


def failed(host, content):
    """A Stor whose upload has just failed for want of a name on one of two disks."""
    rig = started(host)
    failing = rig.disks["set0/disk1"]
    failing.fail_always("name", errno.EIO)
    assert rig.put(content).status == 503
    failing.heal()
    return rig


@SIZES
def test_an_upload_that_a_crash_has_ended_before_its_name_is_denied_ever_after(quick_path, size):
    host, content = Host(quick_path), sample(size)
    crashed(host, content, ("before", "before"))
    for _ in range(3):  # at once, and in every later start
        rig = started(host, rounds=0)
        assert said(rig, content)[1:] == NOWHERE[1:]
        rig = started(host)
        assert said(rig, content) == NOWHERE
        assert said(rig, b"stored before") == STORED
        assert rig.put(b"stored after").status in (200, 201)
        ended(rig)
    assert rig.put(content).status == 201
    for _ in range(3):
        assert said(started(host), content) == STORED


@SIZES
@pytest.mark.parametrize("ends", [("after", "before"), ("before", "after")])
def test_what_has_a_name_on_one_disk_is_there(quick_path, size, ends):
    host, content = Host(quick_path), sample(size)
    crashed(host, content, ends)
    for _ in range(3):
        assert said(started(host), content) == STORED
    rig = started(host)
    assert rig.put(content).status == 200
    assert len(rig.copies(content)) == 2


@SIZES
@pytest.mark.parametrize("end", ["stop", "crash"])
def test_what_a_failed_upload_has_recorded_is_denied_ever_after(quick_path, size, end):
    host, content = Host(quick_path), sample(size)
    rig = failed(host, content)
    assert said(rig, content) == NOWHERE
    rig.clock.pump([0.1] * 20)
    rig.rounds(3)
    for _ in range(2):
        if end == "stop":
            ended(rig)
        rig = started(host)
        assert said(rig, content) == NOWHERE


@SIZES
def test_what_was_removed_by_hand_and_asked_for_is_denied_ever_after(quick_path, size):
    host, content = Host(quick_path), sample(size)
    rig = started(host)
    assert rig.put(content).status == 201
    for path in rig.copies(content):
        path.unlink()
    assert rig.get(content).status == 404
    rig.rounds(2)
    for _ in range(2):
        ended(rig)
        rig = started(host)
        assert said(rig, content) == NOWHERE


@SIZES
def test_with_a_disk_away_nothing_is_recorded_that_it_could_not_confirm(quick_path, size):
    """That disk may be the only one that has the sample."""
    host, content = Host(quick_path), sample(size)
    crashed(host, content, ("before", "after"))
    disk = quick_path / "set0" / "disk1"
    disk.rename(disk.with_name("away"))
    assert started(host).get(content).status in (404, 503)
    shutil.rmtree(disk, ignore_errors=True)
    disk.with_name("away").rename(disk)
    assert said(started(host), content) == STORED


@SIZES
@pytest.mark.parametrize("later", [False, True])
def test_what_a_failed_upload_has_recorded_just_before_the_end_is_denied_ever_after(
    quick_path, size, later
):
    """No look at the disks comes between: it is made up for by the next start, or a later one."""
    host, content = Host(quick_path), sample(size)
    rig = failed(host, content)
    ended(rig)
    if later:  # one that ends before it has looked
        close_indexes()
        rig = host.start(sets=(2,), kind=Ending)
        ended(rig)
    for _ in range(2):
        rig = started(host)
        assert said(rig, content) == NOWHERE
        ended(rig)


def test_a_crash_is_made_up_for_once(quick_path):
    """Also where nothing is stored in the starts that follow, none of which ends as it should."""
    host = Host(quick_path)
    crashed(host, sample(1000), ("before", "after"))
    synced = []
    for _ in range(4):
        close_indexes()
        rig = host.start(sets=(2,), kind=Ending)
        synced.append(sum(call.name == "sync_all" for _, call in rig.log))
        rig.clock.pump([0.1] * 20)
        rig.rounds(3)
    assert synced[0] > 0
    assert synced[2:] == [0, 0]
