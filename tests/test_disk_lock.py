"""One Stor at a time uses a disk."""

import errno
import os
import shutil

import pytest

from stor.disk.disk import Disk, DiskAway
from stor.disk.identity import LOCK_PATH, DiskLock
from tests.conformance import QuickFiles, descriptors


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    return root


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def stors(root):
    """Two Stors' locks of one disk."""
    locks = [lock_of(root) for _ in range(2)]
    yield locks
    for lock in locks:
        lock.release()


def lock_of(root, files=None):
    disk = Disk(str(root), files or QuickFiles())
    disk.identify(root.stat().st_dev)
    return DiskLock(disk)


@pytest.mark.parametrize("writable", [True, False])
def test_a_disk_that_one_stor_uses_is_away_for_another(root, stors, writable):
    """Also where the other one only reads."""
    first, second = stors
    for _ in range(3):  # each probe takes it again
        first.take(writable=True)
        with pytest.raises(DiskAway, match=f"{root}: another Stor uses this disk: end it, or "):
            second.take(writable=writable)
        assert (first.held, second.held) == (True, False)
    first.release()
    second.take(writable=writable)
    with pytest.raises(DiskAway, match="another Stor"):
        first.take(writable=True)


def test_a_disk_in_the_place_of_another_is_locked_in_its_turn(root, stors):
    """What was held is let go, for whoever has that disk now."""
    first, second = stors
    first.take(writable=True)
    shutil.move(root, root.with_name("moved"))
    root.mkdir()
    first.take(writable=True)
    with pytest.raises(DiskAway, match="another Stor"):
        second.take(writable=True)
    moved = lock_of(root.with_name("moved"))
    moved.take(writable=True)
    assert moved.held
    moved.release()


def test_a_disk_that_is_not_written_needs_no_lock_made_for_it(root, stors):
    first, _ = stors
    first.take(writable=False)
    assert not first.held
    assert os.listdir(root) == []


@pytest.mark.parametrize("call", ["lock", "create", "open_to_read"])
def test_a_disk_that_cannot_be_locked_is_not_held(root, call):
    lock = lock_of(root, QuickFiles())
    lock.take(writable=True)
    lock.release()
    if call == "create":
        (root / LOCK_PATH).unlink()
    lock = lock_of(root, files := QuickFiles())
    files.fail_always(call, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        lock.take(writable=True)
    assert not lock.held
    files.heal()
    lock.take(writable=True)
    assert lock.held
    lock.release()
