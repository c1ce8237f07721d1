"""A walk over a disk sees every sample once, says what it could not see, and goes on anywhere."""

import errno
import os
import shutil
from collections import Counter

import pytest

from stor.digest import Digest
from stor.disk.disk import Disk, DiskAway
from stor.disk.walk import walk
from tests.conformance import descriptors
from tests.support.files import FaultyFiles, RecordingFiles
from tests.support.index import IndexDisk, sha

#: Some share their directories.
NAMES = [sha(number) for number in range(60)]
NAMES += [name[:3] + other[3:] for name, other in zip(NAMES[:9], NAMES[9:18], strict=True)]


@pytest.fixture
def disk(quick_path):
    return IndexDisk(quick_path / "disk")


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = descriptors()
    yield
    assert descriptors() == before


def lay(disk, names=NAMES):
    """Samples of different sizes."""
    for size, name in enumerate(names):
        path = disk.root / Digest(name).disk_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))


def samples(batches):
    return [sample for batch in batches for sample in batch.samples]


def test_every_sample_is_seen_once_with_its_size_and_inode(disk):
    lay(disk)
    seen = samples(walk(disk.disk))
    assert Counter(sample.sha for sample in seen) == Counter(NAMES)
    for sample in seen:
        status = (disk.root / Digest(sample.sha).disk_path).stat()
        assert (sample.size, sample.inode) == (status.st_size, status.st_ino)


def test_an_empty_disk_has_none(disk):
    assert samples(walk(disk.disk)) == []


def test_directories_and_files_come_in_the_order_of_their_inodes(quick_path):
    files = RecordingFiles()
    disk = IndexDisk(quick_path / "disk", files)
    names = [b"\x12" + name[1:] for name in NAMES]
    lay(disk, names)
    files.calls.clear()
    list(walk(disk.disk))
    inodes = {"open_directory": [], "stat": []}
    for call in files.calls:
        if call.path and call.path.count("/") == {"open_directory": 2, "stat": 3}.get(call.name):
            inodes[call.name].append((disk.root / call.path).stat().st_ino)
    assert len(inodes["stat"]) == len(names)
    for order in inodes.values():
        assert order == sorted(order)


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_walk_goes_on_where_it_was(disk, size):
    names = NAMES[:20] + [b"\x12" + name[1:] for name in NAMES[:10]]
    lay(disk, names)
    batches = list(walk(disk.disk, batch_directories=size))
    for number, batch in enumerate(batches):
        rest = list(walk(disk.disk, batch.cursor, batch_directories=size))
        seen = samples(batches[: number + 1]) + samples(rest)
        assert Counter(sample.sha for sample in seen) == Counter(names)


def test_what_is_no_sample_is_told_and_what_is_stors_own_is_not(disk):
    lay(disk)
    name = Digest(NAMES[0]).disk_path
    (disk.root / "lost+found").mkdir()
    (disk.root / ".stor").mkdir()
    strays = ["notes.txt", "zz", "ab", "AB", "AC/note", f"{name[:2]}/0", name.lower(), f"{name}.1"]
    strays += [f"{name[:9]}{Digest(NAMES[1]).disk_path[9:]}", f"{name[:9]}directory"]
    for stray in strays:
        path = disk.root / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    directory = disk.root / f"{name[:9]}{name[9:15]}{'0' * 58}.dat"
    directory.mkdir()
    link = disk.root / f"{name[:9]}{name[9:15]}{'1' * 58}.dat"
    link.symlink_to("/etc/passwd")
    seen = list(walk(disk.disk))
    assert {sample.sha for sample in samples(seen)} == set(NAMES)
    told = {stray for batch in seen for stray in batch.strays}
    lower = name.lower().partition("/")[0]
    expected = {stray for stray in strays if stray != name.lower()} | {lower}
    expected |= {str(path.relative_to(disk.root)) for path in (directory, link)}
    assert told == expected


def test_whatever_cannot_be_read_is_told_and_the_rest_is_seen(quick_path):
    hit, reached = 0, set()
    lay(IndexDisk(quick_path / "disk"), NAMES[:6])
    while True:
        files = FaultyFiles()
        disk = IndexDisk(quick_path / "disk", files)
        files.fail_at(hit, errno.EIO)
        try:
            batches = list(walk(disk.disk))
        except OSError:  # the root itself
            batches = None
        if files.failed is None:
            break
        hit += 1
        if batches is None or files.failed == "close":
            continue
        reached.add(files.failed)
        seen = {sample.sha for sample in samples(batches)}
        told = [unreadable.path for batch in batches for unreadable in batch.unreadable]
        assert len(told) == 1
        paths = {Digest(name).disk_path for name in set(NAMES[:6]) - seen}
        assert all(told == ["."] or path.startswith(told[0]) for path in paths)
        assert paths
    assert reached == {"open_directory", "list_inodes", "stat"}


def test_a_disk_that_goes_away_ends_the_walk(disk, quick_path):
    lay(disk)
    batches = walk(disk.disk)
    next(batches)
    shutil.rmtree(disk.root)
    with pytest.raises(DiskAway):
        list(batches)
    other = Disk(str(quick_path), disk.files)
    other.identify(os.stat("/proc").st_dev)
    with pytest.raises(DiskAway):
        list(walk(other))


def test_a_walk_is_no_faster_than_it_may_be(disk):
    lay(disk)
    reads = []
    list(walk(disk.disk, pace=reads.append))
    directories = {directory for name in NAMES for directory in Digest(name).directories}
    assert sum(reads) == 1 + len(directories) + len(NAMES)
