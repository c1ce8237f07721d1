"""What an error says of a disk: errno by errno, operation by operation.

What the kernel says of one file, and whatever clients ask for, changes nothing for others.
"""

import errno
import os
from itertools import count

import pytest

from stor.disk.errnos import Fault, fault_of
from stor.mirror.health import State
from stor.mirror.member import PROBE_SOON_SECONDS
from tests.conformance import MIB, QuickFiles, sample
from tests.support.http import assert_one_line, no_bug_logged
from tests.support.rig import FaultyRig, digest_of

#: Of one file, of the room, of this process; a sample that has a bad sector.
OF_FILES = (
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
)
OF_ROOM = (errno.ENOSPC, errno.EDQUOT)
OF_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
OF_DISKS = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.EUCLEAN)

BODIES = {"small": 5000, "large": 3 * MIB}

TIMES = 10

#: What is counted.
ALONE = "ways in which one file fails, and all others are well"


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(quick_path):
    return FaultyRig(quick_path, (2,), kind=QuickFiles)


def states(rig):
    return {member.health.state for member in rig.members}


def pass_time(rig):
    """As long as it takes until a disk has been probed on suspicion."""
    rig.clock.advance(PROBE_SOON_SECONDS)


def everywhere(rig, call, error):
    for files in rig.disks.values():
        files.fail_always(call, error)


def test_each_errno_is_somebody_s_fault():
    """What is in no list is looked into, as what may be the disk's."""
    expected = dict.fromkeys(errno.errorcode, Fault.DISK)
    expected |= dict.fromkeys(
        (*OF_FILES, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EMLINK, errno.EXDEV),
        Fault.FILE,
    )
    expected |= dict.fromkeys(
        (errno.EBUSY, errno.ETXTBSY, errno.EINVAL, errno.EOPNOTSUPP, errno.EOVERFLOW), Fault.FILE
    )
    expected |= dict.fromkeys(OF_ROOM, Fault.ROOM)
    expected |= dict.fromkeys((*OF_PROCESS, errno.ENOBUFS, errno.EAGAIN), Fault.PROCESS)
    expected[errno.EROFS] = Fault.WRITING
    assert {n: fault_of(OSError(n, os.strerror(n))) for n in errno.errorcode} == expected
    assert fault_of(OSError("of nobody knows what")) is Fault.DISK


@pytest.mark.parametrize("error", [*OF_FILES, *OF_PROCESS, *OF_DISKS], ids=errno.errorcode.get)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("body", BODIES)
def test_one_sample_that_cannot_be_read_is_no_fault_of_its_disks(rig, body, method, error, figures):
    """However often it is asked for; nobody else notices."""
    content, other = sample(BODIES[body]), sample(7000, 1)
    rig.put(content)
    rig.put(other)
    for files in rig.disks.values():
        files.fail_file(digest_of(content).disk_path, error)
    for n in range(TIMES):
        response = rig.get(content, method=method)
        assert response.status in (500, 503)
        assert states(rig) == {State.ONLINE}
        pass_time(rig)
        assert states(rig) == {State.ONLINE}
        assert rig.put(b"new %d" % n).status == 201
        assert rig.get(other).body == other
    assert rig.request("GET", "/status").body == b"OK\n"
    figures[ALONE] += 1


@pytest.mark.parametrize("error", [*OF_FILES, *OF_DISKS], ids=errno.errorcode.get)
def test_a_copy_that_cannot_be_read_is_passed_over_for_the_other_one(rig, error, figures):
    content = sample(5000)
    rig.put(content)
    rig.disks["set0/disk0"].fail_file(digest_of(content).disk_path, error)
    for _ in range(TIMES):
        assert rig.get(content).body == content
        pass_time(rig)
    assert states(rig) == {State.ONLINE}
    figures[ALONE] += 1


@pytest.mark.parametrize("error", [*OF_FILES, *OF_ROOM, *OF_PROCESS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["write", "allocate", "name", "make_directory"])
@pytest.mark.parametrize("body", BODIES)
def test_uploads_that_fail_for_a_reason_of_their_own_are_no_fault_of_the_disk(
    rig, body, call, error, figures
):
    """They are told so in one line: what it was, and where."""
    reading = sample(7000, 1)
    rig.put(reading)
    failing = rig.disks["set0/disk1"]
    failing.fail_always(call, error)
    for n in range(TIMES):
        response = rig.put(sample(BODIES[body], n))
        if body == "small" and call == "allocate":
            assert response.status == 201  # it is not called
            continue
        full = error in (*OF_ROOM, errno.EFBIG)
        assert_one_line(response, 507 if full else 503)
        if not full:
            assert f"{rig.members[1].root}: " in response.text
            assert os.strerror(error) in response.text
        elif error == errno.EFBIG:
            assert f"{rig.members[1].root} takes no file of this size" in response.text
        assert states(rig) == {State.ONLINE}
        assert rig.get(reading).body == reading
    assert {member.health.errors_total for member in rig.members} == {0}
    assert not rig.staged()
    rig.heal()
    assert rig.put(b"new").status == 201
    figures[ALONE] += 1


@pytest.mark.parametrize("error", [*OF_FILES, *OF_DISKS], ids=errno.errorcode.get)
def test_an_upload_that_one_set_does_not_take_goes_to_another(quick_path, error):
    rig = FaultyRig(quick_path, kind=QuickFiles)
    for label in ("set0/disk0", "set1/disk0"):
        rig.disks[label].fail_always("name", error)
        for n in range(TIMES):
            response = rig.put(b"%s, %d" % (label.encode(), n))
            assert response.status == 201
            assert label[:4] not in response.text
        rig.heal()
        pass_time(rig)
        assert states(rig) == {State.ONLINE}


@pytest.mark.parametrize("error", OF_DISKS, ids=errno.errorcode.get)
def test_errors_over_three_files_in_a_row_are_suspicious_and_a_probe_decides(rig, error):
    contents = [sample(5000, n) for n in range(3)]
    for content in contents:
        rig.put(content)
        for files in rig.disks.values():
            files.fail_file(digest_of(content).disk_path, error)
    for content in contents[:2] * 5:
        assert rig.get(content).status == 503
        assert states(rig) == {State.ONLINE}
    assert rig.get(contents[2]).status == 503
    assert states(rig) == {State.SUSPECT}
    pass_time(rig)
    assert states(rig) == {State.ONLINE}


@pytest.mark.parametrize(
    ("failing", "state"),
    [
        ({"read": errno.EIO}, State.OFFLINE),
        ({"fstatvfs": errno.EIO}, State.OFFLINE),
        ({"open_directory": errno.ENODEV}, State.OFFLINE),
        ({"sync": errno.EIO}, State.SUSPECT),
        ({"write": errno.EIO, "open_nameless": errno.EIO}, State.SUSPECT),
        ({"open_nameless": errno.EROFS, "create": errno.EROFS}, State.READ_ONLY),
        # What a file system does when its device has died (ext4, errors=remount-ro).
        ({"open_nameless": errno.EROFS, "create": errno.EROFS, "read": errno.EIO}, State.OFFLINE),
        ({"*": errno.EIO}, State.OFFLINE),
        ({"*": errno.ENODEV}, State.OFFLINE),
    ],
    ids=str,
)
def test_one_error_has_the_disk_probed_soon_and_that_decides(rig, failing, state):
    """A dead disk is offline, not read-only."""
    disk, files, digest = rig.members[0], rig.disks["set0/disk0"], digest_of(b"stored")
    rig.put(b"stored")
    files.fail_file(digest.disk_path, errno.EIO)
    for call, error in failing.items():
        files.fail_always(call, error)
    disk.read(disk.disk.open, digest, about=digest).addErrback(lambda _: None)
    assert disk.health.state is State.ONLINE
    pass_time(rig)
    assert disk.health.state is state
    status = rig.request("GET", "/status")
    assert status.status == 503
    assert status.text.startswith(f"{disk.root}: {state.value}: ")
    rig.heal()
    rig.probe()
    assert disk.health.state is State.ONLINE
    assert rig.request("GET", "/status").body == b"OK\n"


@pytest.mark.parametrize("error", OF_PROCESS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open_directory", "open_to_read", "open_nameless"])
def test_a_probe_that_this_process_could_not_make_says_nothing_of_the_disk(rig, call, error):
    everywhere(rig, call, error)
    for _ in range(TIMES):
        rig.probe()
        assert states(rig) == {State.ONLINE}
    rig.heal()
    pass_time(rig)
    assert rig.put(b"new").status == 201


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_no_names_can_be_made_nothing_is_written(rig, error):
    """Such as a file system without hard links (link(2), EPERM): said before the first upload."""
    rig.disks["set0/disk1"].fail_always("name", error)
    rig.probe()
    disk = rig.members[1]
    assert disk.health.state is State.READ_ONLY
    status = rig.request("GET", "/status")
    assert status.status == 503
    assert f"{disk.root}: cannot be written: samples cannot be named" in status.text
    assert_one_line(rig.put(b"new"), 503)
    assert not rig.staged()
    rig.heal()
    rig.probe()
    assert rig.request("GET", "/status").body == b"OK\n"


def test_a_root_that_belongs_to_somebody_else_is_not_written_and_status_says_why(quick_path):
    class Foreign(QuickFiles):
        def may_write(self, path, directory_fd):
            return self.label != "set0/disk0" and super().may_write(path, directory_fd)

    rig = FaultyRig(quick_path, kind=Foreign)
    disk = rig.members[0]
    assert disk.health.state is State.READ_ONLY
    assert "this user may not make directories in it" in rig.request("GET", "/status").text
    assert "set1" in rig.put(b"new").text


class Closed(QuickFiles):
    """One of the directories of samples belongs to somebody else."""

    def may_write(self, path, directory_fd):
        return path != "AB" and super().may_write(path, directory_fd)


def test_a_directory_that_belongs_to_somebody_else_is_found_with_the_first_upload(quick_path):
    rig = FaultyRig(quick_path, (2,), kind=Closed)
    disk, closed, open_ = rig.disks["set0/disk1"], sample_in("AB"), sample_in("AC")
    (rig.roots[1] / "AB").mkdir()
    (rig.roots[1] / "AC").mkdir()
    disk.fail_file(digest_of(closed).directories[1], errno.EACCES)
    disk.fail_file(digest_of(open_).directories[1], errno.EACCES)
    assert rig.put(open_).status == 503
    pass_time(rig)
    assert rig.request("GET", "/status").body == b"OK\n"
    assert rig.put(closed).status == 503
    pass_time(rig)
    assert [member.health.state for member in rig.members] == [State.ONLINE, State.READ_ONLY]
    assert "this user may not write in AB (" in rig.request("GET", "/status").text
    for _ in range(3):  # as long as it is closed
        rig.probe()
        assert rig.members[1].health.state is State.READ_ONLY
    (rig.roots[1] / "AB").rmdir()
    rig.probe()
    assert rig.request("GET", "/status").body == b"OK\n"


def sample_in(directory):
    """A sample whose name begins like that."""
    contents = (b"%d" % n for n in count())
    return next(c for c in contents if digest_of(c).directories[0] == directory)


@pytest.mark.parametrize("kind", ["file at AA/BB", "link", "directory", "FIFO"])
def test_what_stands_where_a_sample_should_is_an_error_about_that_name(rig, kind, figures):
    content = sample(5000)
    digest = digest_of(content)
    path = rig.roots[0] / digest.disk_path
    if kind == "file at AA/BB":
        path = rig.roots[0] / digest.disk_path[:5]
    path.parent.mkdir(parents=True)
    if kind == "link":
        path.symlink_to("elsewhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.write_bytes(b"stray")
    for n in range(TIMES):
        assert rig.get(content).status in (404, 500, 503)
        assert rig.get(content, method="HEAD").status in (404, 500, 503)
        if kind == "file at AA/BB":
            response = rig.put(content)
            assert_one_line(response, 503)
            assert str(rig.roots[0]) in response.text
        pass_time(rig)
        assert states(rig) == {State.ONLINE}
        assert rig.put(b"%d new" % n).status == 201
    if kind != "file at AA/BB":
        assert rig.put(content).status == 201
        assert rig.get(content).body == content
    figures[ALONE] += 1
