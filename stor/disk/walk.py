"""Walking all samples of one disk, in the order in which they lie there."""

import re
import time
from collections.abc import Callable, Iterator, Sequence

import attrs

from stor.disk.disk import OWN_DIRECTORY, Disk
from stor.disk.syscalls import is_regular

#: A rest is as long as the reads before it, but no longer than this at a time, and none for less.
_REST_SECONDS = 0.5
_SHORT_SECONDS = 0.005

_DIGITS = re.compile(r"[0-9A-F]{2}")
_NAME = re.compile(r"[0-9A-F]{64}\.dat")
_NAME_LENGTH = 68
#: What a file system, or Stor, has at the top.
_NOT_OURS = (OWN_DIRECTORY, "lost+found")


@attrs.frozen
class WalkedSample:
    """A file that has the name of a sample, in its place."""

    sha: bytes
    size: int
    inode: int


@attrs.frozen
class Unreadable:
    """A directory or a file of which the disk does not say what it is."""

    path: str
    error: OSError


@attrs.frozen
class Batch:
    """A part of a disk.

    `cursor` is where the walk can go on after it. `strays` are the paths of what is no sample and
    not Stor's own; `unreadable` are what may be samples, or hold some, that were not seen.
    """

    cursor: str
    samples: tuple[WalkedSample, ...] = ()
    strays: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    #: How much of the disk is done with it, from 0 to 1.
    share: float = 0.0


@attrs.frozen
class Leaves:
    """The lowest directories below one of the first level, by inode: each with its path.

    `unreadable` are the directories that may hold more of them.
    """

    first: str
    entries: tuple[tuple[int, str], ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


@attrs.define
class _Found:
    """What a batch is made from."""

    samples: list[WalkedSample] = attrs.field(factory=list)
    strays: list[str] = attrs.field(factory=list)
    unreadable: list[Unreadable] = attrs.field(factory=list)

    def batch(self, cursor: str, share: float = 0.0) -> Batch:
        return Batch(cursor, tuple(self.samples), tuple(self.strays), tuple(self.unreadable), share)


def walk(
    disk: Disk,
    cursor: str = "",
    pace: Callable[[int], None] = lambda reads: None,
    batch_directories: int = 1024,
) -> Iterator[Batch]:
    """All samples of a disk, in batches; from a `cursor` on, which an earlier walk gave.

    The directories below one of the first level are read in the order of their inodes, and so are
    the inodes of the files in `batch_directories` of them: a disk is up to 30 times faster that way
    than in the order of names. What is stored or removed meanwhile may be seen or not. `pace` is
    told how many reads of the disk come next, and may wait. Raises `DiskAway`, `OSError`: the root
    is gone.
    """
    done, _, done_inode = cursor.partition("/")
    found = _Found()
    with disk.entered() as root_fd:
        pace(1)
        firsts = [name for _, name in _directories(disk, root_fd, ".", found)]
    if not cursor:
        yield found.batch("")
    for number, first in enumerate(sorted(firsts)):
        if first < done:
            continue
        found = _Found()
        with disk.entered() as root_fd:
            every = leaves = _leaves(disk, root_fd, first, pace, found)
        if first == done:
            leaves = [leaf for leaf in leaves if leaf[0] > int(done_inode)]
        for begin in range(0, max(1, len(leaves)), batch_directories):
            batch = leaves[begin : begin + batch_directories]
            with disk.entered() as root_fd:
                _look(disk, root_fd, batch, pace, found)
            left = len(leaves) - begin - len(batch)
            share = (number + 1 - left / max(1, len(every))) / len(firsts)
            yield found.batch(f"{first}/{batch[-1][0] if batch else 0}", share)
            found = _Found()


def first_directories(disk: Disk) -> tuple[list[str], tuple[Unreadable, ...]]:
    """The directories of the first level, sorted; and the root itself if it cannot be read.

    Raises `DiskAway`, `OSError`.
    """
    found = _Found()
    with disk.entered() as root_fd:
        firsts = sorted(name for _, name in _directories(disk, root_fd, ".", found))
    return firsts, tuple(found.unreadable)


def leaves_of(disk: Disk, first: str, pace: Callable[[int], None]) -> Leaves:
    """The lowest directories below one of the first level. Raises `DiskAway`, `OSError`."""
    found = _Found()
    with disk.entered() as root_fd:
        entries = _leaves(disk, root_fd, first, pace, found)
    return Leaves(first, tuple(entries), tuple(found.unreadable))


def samples_in(disk: Disk, leaves: Sequence[tuple[int, str]], pace: Callable[[int], None]) -> Batch:
    """The samples in some of the lowest directories, by inode. Raises `DiskAway`, `OSError`."""
    found = _Found()
    with disk.entered() as root_fd:
        _look(disk, root_fd, list(leaves), pace, found)
    return found.batch("")


def names_in(
    disk: Disk, leaves: Sequence[str], pace: Callable[[int], None]
) -> tuple[dict[bytes, int], tuple[Unreadable, ...]]:
    """The names of samples in some of the lowest directories, none of which is looked at itself.

    Each with its inode; and the directories that cannot be read. Raises `DiskAway`, `OSError`.
    """
    found = _Found()
    names: dict[bytes, int] = {}
    with disk.entered() as root_fd:
        for leaf in leaves:
            pace(1)
            names.update(
                (bytes.fromhex(name[:-4]), inode)
                for name, inode in _entries(disk, root_fd, leaf, found)
                if _is_name(name, leaf)
            )
    return names, tuple(found.unreadable)


class HalfTheTime:
    """A pace: rests as long as the reads have taken, but no longer than `_REST_SECONDS` at once."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, reads: int) -> None:
        """More reads come next."""
        took = time.monotonic() - self._began
        if took > _SHORT_SECONDS:
            time.sleep(min(took, _REST_SECONDS))
        self._began = time.monotonic()


def first_samples(disk: Disk, begin: bytes, limit: int) -> list[WalkedSample]:
    """The first samples of a disk from `begin` on, in the order of their names, `limit` at most.

    Raises `DiskAway`, `OSError`, also when a part of the disk cannot be read.
    """
    least = begin.hex().upper()
    found = _Found()
    samples: list[WalkedSample] = []
    with disk.entered() as root_fd:
        for leaf in _sorted_leaves(disk, root_fd, least, found):
            one = _Found()
            _look(disk, root_fd, [(0, leaf)], lambda reads: None, one)
            found.unreadable += one.unreadable
            samples += sorted(
                (sample for sample in one.samples if sample.sha >= begin),
                key=lambda sample: sample.sha,
            )
            if found.unreadable:
                break
            if len(samples) >= limit:
                return samples[:limit]
    if found.unreadable:
        raise found.unreadable[0].error
    return samples


def _sorted_leaves(disk: Disk, root_fd: int, least: str, found: _Found) -> Iterator[str]:
    """The lowest directories with samples of the name `least` or above, in order."""
    for _, first in sorted(_directories(disk, root_fd, ".", found), key=_name):
        if first < least[:2]:
            continue
        for _, second in sorted(_directories(disk, root_fd, first, found), key=_name):
            if second.replace("/", "") < least[:4]:
                continue
            for _, leaf in sorted(_directories(disk, root_fd, second, found), key=_name):
                if leaf.replace("/", "") >= least[:6]:
                    yield leaf


def _name(directory: tuple[int, str]) -> str:
    return directory[1]


def _leaves(
    disk: Disk, root_fd: int, first: str, pace: Callable[[int], None], found: _Found
) -> list[tuple[int, str]]:
    """The lowest directories below one of the first level, by inode."""
    pace(1)
    seconds = sorted(_directories(disk, root_fd, first, found))
    leaves = []
    for _, second in seconds:
        pace(1)
        leaves += _directories(disk, root_fd, second, found)
    return sorted(leaves)


def _look(
    disk: Disk,
    root_fd: int,
    leaves: list[tuple[int, str]],
    pace: Callable[[int], None],
    found: _Found,
) -> None:
    """The samples in some of the lowest directories."""
    files = []
    for _, leaf in leaves:
        pace(1)
        for name, inode in _entries(disk, root_fd, leaf, found):
            if _is_name(name, leaf):
                files.append((inode, f"{leaf}/{name}"))
            else:
                found.strays.append(f"{leaf}/{name}")
    for inode, path in sorted(files):
        pace(1)
        try:
            status = disk.files.stat(path, root_fd)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            found.unreadable.append(Unreadable(path, error))
            continue
        if is_regular(status):
            sha = bytes.fromhex(path[-_NAME_LENGTH:-4])
            found.samples.append(WalkedSample(sha, status.st_size, inode))
        else:
            found.strays.append(path)


def _is_name(name: str, leaf: str) -> bool:
    """Whether a sample may have this name in one of the lowest directories."""
    return _NAME.fullmatch(name) is not None and name.startswith(leaf.replace("/", ""))


def _directories(disk: Disk, root_fd: int, path: str, found: _Found) -> list[tuple[int, str]]:
    """The directories in one of the upper levels, each with its inode."""
    below = "" if path == "." else f"{path}/"
    directories = []
    for name, inode in _entries(disk, root_fd, path, found):
        if _DIGITS.fullmatch(name):
            directories.append((inode, f"{below}{name}"))
        elif below or name not in _NOT_OURS:
            found.strays.append(f"{below}{name}")
    return directories


def _entries(disk: Disk, root_fd: int, path: str, found: _Found) -> Sequence[tuple[str, int]]:
    """The names in a directory, each with its inode."""
    for _ in range(2):  # it was listed; a disk may not have been itself for a moment
        try:
            fd = disk.files.open_directory(path, root_fd)
            try:
                return disk.files.list_inodes(fd)
            finally:
                disk.files.close(fd)
        except FileNotFoundError:
            continue  # removed meanwhile, when it is so the second time, too
        except NotADirectoryError:
            found.strays.append(path)
        except OSError as error:
            found.unreadable.append(Unreadable(path, error))
        break
    return ()
