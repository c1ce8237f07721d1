"""One disk, and one copy on its way onto it: what is read, what is kept, what is left behind."""

import errno
import hashlib
import os
import stat
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from stor.digest import Digest
from stor.disk.copy import OpenCopy
from stor.disk.disk import SMALL_BYTES, Disk, DiskAway
from stor.disk.probe import sweep
from stor.disk.staged import StagedCopy
from stor.disk.syscalls import Syscalls
from stor.errors import Damaged
from tests.conformance import QuickFiles, descriptors, sample, without_nameless_files
from tests.support.staging import begin, name, sync_directories

SMALL, LARGE = sample(5000), sample(SMALL_BYTES + 1)
MODIFIED_NS = 981173106 * 10**9


def disk_at(root, files=None, **options):
    """The disk at `root`, known by its file system."""
    root.mkdir(exist_ok=True)
    disk = Disk(str(root), files or QuickFiles(), **options)
    disk.identify(root.stat().st_dev)
    return disk


@pytest.fixture
def root(tmp_path):
    return tmp_path / "disk"


@pytest.fixture(params=[QuickFiles, without_nameless_files], ids=["nameless", "named"])
def disk(request, root):
    return disk_at(root, request.param())


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = descriptors()
    yield
    assert descriptors() == before


def path_of(disk, content):
    path = os.path.join(disk.root, Digest.of(content).disk_path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def lay(disk, content, damaged=None):
    """A copy of `content` as a file that was there before, or other bytes in its place."""
    path = path_of(disk, content)
    Path(path).write_bytes(content if damaged is None else damaged)
    return path


def tree(disk):
    """Everything on a disk, Stor's own directories left out."""
    return sorted(
        os.path.join(directory, name)
        for directory, directories, names in os.walk(disk.root)
        for name in directories + names
        if "/.stor" not in os.path.join(directory, name) or name in names
    )


def quarantined(disk):
    """What is in quarantine; the reason is beside each."""
    directory = os.path.join(disk.root, ".stor/quarantine")
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    kept = [name for name in names if not name.endswith(".reason")]
    assert names == sorted(kept + [f"{name}.reason" for name in kept])
    return [os.path.join(directory, name) for name in kept]


def link_to_the_content(path):
    other = f"{path}.elsewhere"
    Path(other).write_bytes(SMALL)
    os.symlink(other, path)


NO_FILES = {
    "FIFO": os.mkfifo,
    "directory": os.mkdir,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "dangling link": lambda path: os.symlink("/nonexistent/file", path),
    "link": link_to_the_content,
}

ASKING = {
    "look": Disk.look,
    "open": Disk.open,
    "check": lambda disk, digest: disk.check(digest, len(SMALL)),
    "check of unknown length": lambda disk, digest: disk.check(digest, None),
    "verify": Disk.verify,
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_regular_file_is_damaged_and_never_blocks(disk, make, ask):
    make(path_of(disk, SMALL))
    with pytest.raises(Damaged, match="not a regular file"):
        ask(disk, Digest.of(SMALL))


def flip(content, place):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGES = {
    "first bit": lambda content: flip(content, 0),
    "middle bit": lambda content: flip(content, len(content) // 2),
    "last bit": lambda content: flip(content, -1),
    "empty": lambda content: b"",
    "shorter": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "another": lambda content: sample(len(content), seed=1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_small_copy_is_never_opened(disk, damage):
    lay(disk, SMALL, damage(SMALL))
    for ask in (disk.open, disk.verify, lambda digest: disk.check(digest, len(SMALL))):
        with pytest.raises(Damaged):
            ask(Digest.of(SMALL))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_last_part_of_a_damaged_large_copy_is_never_read(disk, damage):
    lay(disk, LARGE, damage(LARGE))
    with pytest.raises(Damaged):
        disk.verify(Digest.of(LARGE))
    with suppress(Damaged):  # the empty one is small
        copy, hasher = disk.open(Digest.of(LARGE)), hashlib.sha256()
        copy.read(0, 1000, hasher)
        with pytest.raises(Damaged):
            copy.read(1000, copy.copy.size - 1000, hasher)
        copy.close()


def test_a_good_copy_is_what_it_is_named_for(disk):
    for content in (b"", SMALL, sample(SMALL_BYTES), LARGE):
        path = lay(disk, content)
        os.utime(path, ns=(MODIFIED_NS, MODIFIED_NS))
        digest = Digest.of(content)
        opened = disk.open(digest)
        assert opened.copy == disk.look(digest) == disk.check(digest, len(content))
        assert opened.copy == disk.verify(digest)
        assert (opened.copy.path, opened.copy.size) == (path, len(content))
        assert opened.copy.modified_ns == MODIFIED_NS
        assert opened.whole == (content if len(content) <= SMALL_BYTES else None)
        opened.close()
        opened.close()


def test_a_copy_that_ends_too_early_while_it_is_read_is_damaged(disk):
    path = lay(disk, LARGE)
    opened = disk.open(Digest.of(LARGE))
    os.truncate(path, 1000)
    with pytest.raises(Damaged):
        opened.read(900, 200, None)
    opened.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [*((name, SMALL) for name in ASKING), ("look", LARGE), ("open", LARGE), ("verify", LARGE)],
)
def test_a_disk_that_fails_is_no_damage_and_costs_no_descriptor(root, name, content):
    files, ask = QuickFiles(), ASKING[name]
    disk = disk_at(root, files)
    lay(disk, content)
    for n in range(100):
        files.fail_at(n, errno.EIO)
        try:
            opened = ask(disk, Digest.of(content))
        except OSError:
            assert files.failed
        else:
            files.heal()
            if isinstance(opened, OpenCopy):
                opened.close()
            if not files.failed:
                break
    assert n >= 2


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_an_absent_copy_is_none_and_an_absent_disk_is_away(root, ask):
    disk = disk_at(root)
    assert ask(disk, Digest.of(SMALL)) is None
    root.rmdir()
    with pytest.raises(DiskAway, match="not a directory"):
        ask(disk, Digest.of(SMALL))
    root.write_bytes(b"a file")
    with pytest.raises(DiskAway, match="not a directory"):
        ask(disk, Digest.of(SMALL))


def test_a_disk_on_the_wrong_file_system_is_neither_read_nor_written(root):
    root.mkdir()
    device = root.stat().st_dev
    unmounted = disk_at(root, forbidden_device=device)
    swapped = disk_at(root)
    swapped.identify(device + 1)
    for disk in (unmounted, swapped):
        lay(disk, SMALL)
        for ask in ASKING.values():
            with pytest.raises(DiskAway):
                ask(disk, Digest.of(SMALL))
        with pytest.raises(DiskAway):
            begin(disk, 1000)
        with pytest.raises(DiskAway):
            sweep(disk)
        assert not (root / ".stor").exists()


def test_a_file_system_that_makes_inodes_as_it_goes_has_enough(root):
    class NoCount(Syscalls):
        def fstatvfs(self, fd):
            fields = list(super().fstatvfs(fd))
            fields[5:8] = [0, 0, 0]
            return os.statvfs_result(fields)

    assert disk_at(root, NoCount()).room().free_inodes > 10**15


STEPS = [
    lambda staged, digest: staged.write([SMALL[:1000], b"", SMALL[1000:]]),
    lambda staged, digest: staged.seal(digest, MODIFIED_NS),
    lambda staged, digest: staged.sync(),
    name,
    sync_directories,
    StagedCopy.published,
]


def store(disk, content=SMALL):
    """Put a copy on one disk; whether it got its name."""
    staged = begin(disk, len(content))
    staged.write([content])
    staged.seal(Digest.of(content), MODIFIED_NS)
    staged.sync()
    named = name(staged, Digest.of(content))
    sync_directories(staged, Digest.of(content))
    staged.close()
    staged.discard()
    return named


def test_a_staged_copy_becomes_the_file(disk):
    assert store(disk)
    path = path_of(disk, SMALL)
    assert Path(path).read_bytes() == SMALL
    assert os.stat(path).st_mtime_ns == MODIFIED_NS
    assert os.stat(path).st_nlink == 1
    assert os.listdir(os.path.join(disk.root, ".stor/tmp")) == []


def test_the_kernel_begins_early_to_write_what_is_large(root):
    disk = disk_at(root, QuickFiles())
    staged = begin(disk, None)
    for _ in range(40):
        staged.write([bytes(1_000_000)])
    begun = [call.args[1:] for call in disk.files.calls if call.name == "begin_sync"]
    end = 0
    for length, offset in begun:
        assert offset == end  # each byte once, in order
        end += length
    assert 40_000_000 - end < 10_000_000
    assert 1 < len(begun) < 6
    staged.discard()


@pytest.mark.parametrize("length", [None, 5000])
@pytest.mark.parametrize("steps", range(len(STEPS) + 1))
def test_discard_leaves_nothing_after_any_step(disk, steps, length):
    before = tree(disk)
    staged = begin(disk, length)
    assert staged.room().free_bytes > 0
    for step in STEPS[:steps]:
        step(staged, Digest.of(SMALL))
    staged.discard()
    staged.discard()
    assert tree(disk) == before
    assert disk.durable_directories.missing(Digest.of(SMALL)) == list(Digest.of(SMALL).directories)


@pytest.mark.parametrize("neighbour", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.ENOENT])
@pytest.mark.parametrize("nameless", [True, False])
def test_discard_leaves_nothing_after_a_failure_anywhere(root, nameless, error, neighbour):
    files = QuickFiles() if nameless else without_nameless_files()
    disk = disk_at(root, files)
    store(disk, b"the disk is in use")
    if neighbour:
        os.makedirs(root / Digest.of(SMALL).directories[1])
    before = tree(disk)
    for n in range(100):
        staged = None
        files.fail_at(n, error)
        with suppress(OSError, DiskAway):
            staged = begin(disk, 5000)
            for step in STEPS:
                step(staged, Digest.of(SMALL))
        hit = files.failed
        files.fail_at(10**6, error)
        if staged is not None:
            staged.discard()
        assert tree(disk) == before
        if not hit:
            break
    assert 15 < n < 99


def test_a_good_copy_that_is_there_already_stays(disk):
    path = lay(disk, SMALL)
    before = os.stat(path)
    assert not store(disk)
    staged = begin(disk, 5000)
    for step in STEPS:
        step(staged, Digest.of(SMALL))
    staged.discard()
    assert os.stat(path).st_ino == before.st_ino
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    assert quarantined(disk) == []
    assert os.listdir(os.path.join(disk.root, ".stor/tmp")) == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_copy_goes_to_quarantine_and_is_replaced(disk, damage):
    path = lay(disk, SMALL, damage(SMALL))
    assert store(disk)
    assert Path(path).read_bytes() == SMALL
    assert [Path(kept).read_bytes() for kept in quarantined(disk)] == [damage(SMALL)]


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_goes_to_quarantine_and_is_replaced(disk, make):
    path = path_of(disk, SMALL)
    make(path)
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    assert store(disk)
    assert Path(path).read_bytes() == SMALL
    assert [stat.S_IFMT(os.lstat(kept).st_mode) for kept in quarantined(disk)] == [kind]


def test_quarantine_keeps_every_bad_copy(disk):
    for number in range(5):
        lay(disk, SMALL, b"bad %d" % number)
        assert store(disk)
    kept = sorted(Path(path).read_bytes() for path in quarantined(disk))
    assert kept == [b"bad %d" % number for number in range(5)]
    calls = [(call.name, call.path) for call in disk.files.calls]
    moved = max(place for place, (name, _) in enumerate(calls) if name == "exchange")
    assert ("sync", ".stor/quarantine") in calls[moved:]


class NoExchange(QuickFiles):
    """A file system where two names cannot change files in one step."""

    def exchange(self, *args):
        self.asked = getattr(self, "asked", 0) + 1
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_a_file_system_that_cannot_exchange_names_is_asked_once(root):
    disk = disk_at(root, NoExchange())
    for number in range(3):
        lay(disk, SMALL, b"bad %d" % number)
        assert store(disk)
        assert Path(path_of(disk, SMALL)).read_bytes() == SMALL
    assert len(quarantined(disk)) == 3
    assert disk.files.asked == 1


FILE_SYSTEMS = {"exchange": QuickFiles, "no exchange": NoExchange}


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("files", FILE_SYSTEMS.values(), ids=FILE_SYSTEMS)
def test_a_name_is_never_gone_while_a_bad_copy_is_replaced(root, files, damage, content):
    """At every moment, which may be that of a crash, the name has right bytes or those before.

    The next process may sweep in that moment, too.
    """
    seen = []

    class Watching(files):
        def _before(self, name, args):
            seen.append(Path(path).read_bytes())
            sweep(disk_at(root))

    disk = disk_at(root, Watching())
    path = lay(disk, content, damage(content))
    assert store(disk, content)
    assert set(seen) == {damage(content), content}
    assert seen[-1] == Path(path).read_bytes() == content
    assert [Path(kept).read_bytes() for kept in quarantined(disk)] == [damage(content)]


def test_a_directory_that_has_a_samples_name_keeps_it_until_the_sample_has_it(root):
    """It cannot have two names, as a file of another user cannot; but it can be exchanged."""

    class Watching(QuickFiles):
        def _before(self, name, args):
            assert os.path.lexists(path)

    disk = disk_at(root, Watching())
    path = path_of(disk, SMALL)
    os.mkdir(path)
    assert store(disk)
    assert Path(path).read_bytes() == SMALL


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EPERM])
@pytest.mark.parametrize("files", FILE_SYSTEMS.values(), ids=FILE_SYSTEMS)
def test_a_replacement_of_which_any_two_calls_fail_takes_no_name_and_loses_no_file(
    root, files, error
):
    class Failing(files):
        calls_until = ()

        def _before(self, name, args):
            self.calls_until = [n - 1 for n in self.calls_until]
            if -1 in self.calls_until:
                self._raise(name, args, error)
            return super()._before(name, args)

    disk = disk_at(root, Failing())
    path = lay(disk, SMALL, b"bad")
    for first, later in product(range(60), range(5)):
        disk.files.calls_until = (first, first + later)
        staged = None
        with suppress(OSError, DiskAway):
            staged = begin(disk, None)
            staged.write([SMALL])
            name(staged, Digest.of(SMALL))
        over = min(disk.files.calls_until) >= 0
        disk.files.calls_until = ()
        if staged is not None:
            staged.discard()
        kept = [Path(entry).read_bytes() for entry in (root / ".stor/quarantine").glob("*")]
        found = Path(path).read_bytes()
        assert found in (b"bad", SMALL)
        assert b"bad" in (found, *kept)
        Path(path).write_bytes(b"bad")
        for entry in (root / ".stor/quarantine").glob("*"):
            entry.unlink()
    assert over


@pytest.mark.parametrize("length", [SMALL_BYTES + 1, SMALL_BYTES + 2])
def test_a_large_copy_is_not_read_by_a_step_that_has_little_time(root, length):
    disk, content = disk_at(root), sample(SMALL_BYTES + 1)
    lay(disk, content, sample(length, seed=1))
    assert store(disk, content)
    assert not [call for call in disk.files.calls if call.name == "read"]
    assert len(quarantined(disk)) == 1


def test_a_large_copy_that_was_verified_lately_stays(root):
    disk = disk_at(root)
    path = lay(disk, LARGE)
    before = os.stat(path)
    assert disk.verify(Digest.of(LARGE))
    assert not store(disk, LARGE)
    assert os.stat(path).st_ino == before.st_ino
    assert quarantined(disk) == []


def test_of_two_large_copies_on_their_way_the_second_relies_on_the_first(root):
    disk = disk_at(root)
    lay(disk, LARGE, flip(LARGE, 0))
    first, second = begin(disk, None), begin(disk, None)
    for staged in (first, second):
        staged.write([LARGE])
        staged.sync()
    assert name(first, Digest.of(LARGE))
    assert not name(second, Digest.of(LARGE))
    second.close()
    first.discard()
    assert Path(path_of(disk, LARGE)).read_bytes() == LARGE
    assert len(quarantined(disk)) == 1


def test_what_has_taken_a_bad_ones_place_stays_when_another_disk_fails(disk):
    path = lay(disk, SMALL, b"bad")
    staged = begin(disk, None)
    staged.write([SMALL])
    staged.sync()
    assert name(staged, Digest.of(SMALL))
    staged.discard()
    assert Path(path).read_bytes() == SMALL


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("error", [errno.EPERM, errno.EIO, errno.EBUSY])
def test_a_bad_copy_that_cannot_be_moved_leaves_nothing_in_quarantine(root, error, exchanges):
    """An immutable file, say (chattr(1))."""
    disk = disk_at(root, QuickFiles() if exchanges else NoExchange())
    path = lay(disk, SMALL, b"bad")
    for call in ("exchange", "rename"):
        disk.files.fail_always(call, error)
    for _ in range(3):
        staged = begin(disk, None)
        staged.write([SMALL])
        with pytest.raises(OSError, match=os.strerror(error)):
            name(staged, Digest.of(SMALL))
        staged.discard()
    assert os.listdir(root / ".stor/quarantine") == []
    assert Path(path).read_bytes() == b"bad"
    disk.files.heal()
    assert store(disk)
    assert len(quarantined(disk)) == 1


def test_a_name_is_never_given_over_another_file(disk):
    path = lay(disk, SMALL, b"precious")
    with disk.entered() as root_fd:
        fd, temporary = disk.open_staging(root_fd)
        with pytest.raises(FileExistsError):
            disk.files.name(fd, Digest.of(SMALL).disk_path, root_fd)
        disk.files.close(fd)
        if temporary:
            disk.files.unlink(temporary, root_fd)
    assert Path(path).read_bytes() == b"precious"


def test_room_is_not_reserved_by_writing_where_the_file_system_cannot(root):
    disk = disk_at(root, QuickFiles())
    disk.files.fail_always("allocate", errno.EOPNOTSUPP)
    staged = begin(disk, 10**9)
    assert not [call for call in disk.files.calls if call.name == "write"]
    staged.discard()


def test_room_is_reserved_by_the_kernel_or_not_at_all(tmp_path):
    """A pipe has no blocks; posix_fallocate(3) of glibc would write to what the kernel refuses."""
    ends = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        Syscalls().allocate(ends[1], 4096)
    for end in ends:
        os.close(end)
    with Path(tmp_path / "file").open("wb") as file:
        Syscalls().allocate(file.fileno(), 1_000_000)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1_000_000


@pytest.mark.parametrize("call", ["open_directory", "fstat", "unlink"])
def test_what_a_failing_disk_keeps_of_an_upload_is_swept_when_it_is_well(root, call):
    disk = disk_at(root, without_nameless_files())
    assert sweep(disk) == 0
    assert not disk.unswept
    staged = begin(disk, 5000)
    disk.files.fail_always(call, errno.EIO)
    staged.discard()
    assert disk.unswept
    disk.files.heal()
    assert sweep(disk) == 1
    assert not disk.unswept
    assert os.listdir(root / ".stor/tmp") == []


def leftover(disk, name, content=b"half a body"):
    directory = os.path.join(disk.root, ".stor/tmp")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    Path(path).write_bytes(content)
    return path


def test_the_sweep_removes_what_nobody_writes_any_more(disk):
    paths = [leftover(disk, "0" * 32), leftover(disk, "f" * 32, b"")]
    assert sweep(disk) == 2
    assert not any(os.path.exists(path) for path in paths)
    assert sweep(disk) == 0


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOENT, errno.EACCES])
@pytest.mark.parametrize("call", ["open_to_read", "lock", "unlink"])
def test_what_a_sweep_could_not_remove_is_left_for_the_next_one(root, call, error):
    disk = disk_at(root, QuickFiles())
    leftover(disk, "0" * 32)
    disk.files.fail_always(call, error)
    assert sweep(disk) == 0
    assert disk.unswept
    disk.files.heal()
    assert sweep(disk) == 1
    assert not disk.unswept


def test_the_sweep_keeps_what_another_process_is_writing(root):
    writer, sweeper = disk_at(root, without_nameless_files()), disk_at(root)
    staged = begin(writer, 5000)
    leftover(sweeper, "0" * 32)
    assert sweep(sweeper) == 1
    for step in STEPS:
        step(staged, Digest.of(SMALL))
    staged.close()
    assert Path(path_of(writer, SMALL)).read_bytes() == SMALL


def test_a_disk_without_a_staging_directory_has_nothing_to_sweep(root):
    assert sweep(disk_at(root)) == 0
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_the_sweep_is_not_stopped_by_what_it_does_not_know(disk, make):
    make(os.path.join(os.path.dirname(leftover(disk, "0" * 32)), "unknown"))
    leftover(disk, "f" * 32)
    sweep(disk)
    assert not {"0" * 32, "f" * 32} & set(os.listdir(os.path.join(disk.root, ".stor/tmp")))
