"""What Stor does on a disk beside storing samples outlives a power failure too."""

import errno
import os

import pytest

from stor.digest import Digest
from stor.disk.disk import Disk
from stor.disk.probe import try_writing
from stor.disk.syscalls import Syscalls
from tests.conformance import QuickFiles, sample
from tests.support.rig import FaultyRig
from tests.support.staging import begin, name

CONTENT = sample(5000)
DIGEST = Digest.of(CONTENT)
DIRECTORY = DIGEST.directories[-1]


def disk_at(root):
    root.mkdir()
    disk = Disk(str(root), QuickFiles())
    disk.identify(root.stat().st_dev)
    return disk


def staged_on(disk):
    staged = begin(disk, None)
    staged.write([CONTENT])
    staged.seal(Digest.of(CONTENT), 10**9)
    staged.sync()
    return staged


def first_use(path):
    """The directories are there before anything is kept in them."""
    disk = disk_at(path / "disk")
    staged_on(disk).discard()
    made = [("make_directory", f".stor/{name}") for name in ("tmp", "quarantine", "repair")]
    return disk.files, [*made, ("sync", ".stor"), ("sync", "."), ("open_nameless", ".stor/tmp")]


def marking(path):
    """A disk is known by its marker from the moment on that it is used."""
    files = FaultyRig(path, (1,), kind=QuickFiles).disks["set0/disk0"]
    new = ".stor/disk.json.new"
    written = [("create", new), ("write", new), ("sync", new), ("rename", ".stor/disk.json")]
    return files, [*written, ("sync", ".stor"), ("sync", ".")]


def replacing(path):
    """Why a bad copy was replaced is known before it is, and where it is before all else."""
    disk = disk_at(path / "disk")
    bad = path / "disk" / DIGEST.disk_path
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"bad")
    staged = staged_on(disk)
    assert name(staged, DIGEST)
    staged.close()
    (moved,) = [call.args[0] for call in disk.files.calls if call.name == "exchange"]
    reason = [(name, f"{moved}.reason") for name in ("create", "write", "sync")]
    synced = [("sync", ".stor/quarantine"), ("sync", DIRECTORY)]
    return disk.files, [*reason, ("name", moved), ("exchange", DIGEST.disk_path), *synced]


def replacing_by_renaming(path):
    """Where names cannot be exchanged, nothing is lost of a bad copy either."""
    disk = disk_at(path / "disk")
    disk.files.fail_always("exchange", errno.EINVAL)
    bad = path / "disk" / DIGEST.disk_path
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"bad")
    staged = staged_on(disk)
    assert name(staged, DIGEST)
    staged.close()
    aside, _ = [call.path for call in disk.files.calls if call.name == "rename"]
    (moved,) = [call.path for call in disk.files.calls if call.name == "link"]
    reason = [(name, f"{moved}.reason") for name in ("create", "write", "sync")]
    renamed = [("rename", aside), ("link", moved), ("rename", DIGEST.disk_path)]
    return disk.files, [*reason, *renamed, ("sync", ".stor/quarantine"), ("sync", DIRECTORY)]


def noting(path):
    """What is to be repaired is known after a restart."""
    rig = FaultyRig(path, (2,), kind=QuickFiles)
    rig.put(CONTENT)
    rig.copies(CONTENT)[1].unlink()
    rig.mirrors.repairs.report(DIGEST, rig.mirrors.mirrors[0])
    note = f".stor/repair/{DIGEST}"
    return rig.disks["set0/disk0"], [("create", note), ("sync", ".stor/repair"), ("unlink", note)]


def taking_back(path):
    """A name that an upload could not make durable does not come back."""
    disk = disk_at(path / "disk")
    staged = staged_on(disk)
    name(staged, DIGEST)
    staged.discard()
    steps = [("name", DIGEST.disk_path), ("unlink", DIGEST.disk_path), ("sync", DIRECTORY)]
    return disk.files, steps


@pytest.mark.parametrize(
    "upkeep",
    [first_use, marking, replacing, replacing_by_renaming, noting, taking_back],
    ids=lambda f: f.__name__,
)
def test_each_step_is_durable_before_the_next_one_relies_on_it(tmp_path, upkeep):
    files, steps = upkeep(tmp_path)
    calls = iter([(call.name, call.path) for call in files.calls])
    for step in steps:
        assert step in calls, f"{step} is missing, or comes too early"


@pytest.mark.parametrize("call", ["lock", "write", "sync"])
def test_a_file_that_cannot_even_be_closed_is_not_left_behind(tmp_path, call):
    disk = disk_at(tmp_path / "disk")
    disk.files.fail_always("open_nameless", errno.EOPNOTSUPP)
    assert try_writing(disk) is None
    disk.files.fail_always(call, errno.EIO)
    disk.files.fail_always("close", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        try_writing(disk)
    assert os.listdir(tmp_path / "disk/.stor/tmp") == []


def test_a_sync_is_the_kernel_s():
    """fsync(2) of a pipe is EINVAL, which nobody is told who does not ask."""
    ends = os.pipe()
    with pytest.raises(OSError, match="Invalid argument") as refused:
        Syscalls().sync(ends[0])
    assert refused.value.errno == errno.EINVAL
    for end in ends:
        os.close(end)
