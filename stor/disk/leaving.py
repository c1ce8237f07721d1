"""Samples that leave a disk, as another set has them: recorded in its journal first, then removed.

Blocking. A crash in between leaves files whose newest record is `LEFT`: nothing puts them back on
another disk, and who comes across them removes them.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs

from stor.digest import Digest, MalformedDigest
from stor.disk.disk import Disk, DiskAway
from stor.disk.journal import Event, Kind, Position, Record
from stor.disk.names import DiskNames


@attrs.define
class Leaving:
    """Samples that leave one disk; each method runs in a thread of it, given its root.

    The order: `record`, `sync_record`, `recorded`, on every disk of the set before `remove` on any.
    """

    disk: Disk
    names: DiskNames | None
    digests: Sequence[Digest]
    event: Event
    _position: Position | None = None

    def record(self, root_fd: int) -> None:
        """Tell the journal that they are to leave. Raises `DiskAway`, `OSError`."""
        if self.names is None or not self.names.written:
            raise DiskAway(f"{self.disk.root}: its journal is not open")
        number, time_ns, kind, low = self.event
        records = [Record(one.raw, number, 0, 0, time_ns, kind) for one in self.digests]
        self._position = self.names.journal.append(records, root_fd, low)

    def sync_record(self, root_fd: int) -> None:
        """Bring that to stable storage. Raises `OSError`."""
        if self.names is not None:
            try:
                self.names.journal.sync(root_fd)
            except OSError:
                self.record_lost()
                raise

    def recorded(self) -> None:
        """It is on stable storage. Raises `OSError` when a record before is lost."""
        if self.names is not None and self._position is not None:
            self.names.journal.synced(self._position)

    def record_lost(self) -> None:
        """A sync that was to bring it there has failed."""
        if self.names is not None:
            self.names.journal.failed()

    def remove(self, root_fd: int) -> dict[Digest, OSError]:
        """Remove their copies; what keeps some of them from going. Never raises."""
        kept = {}
        for digest in self.digests:
            try:
                with suppress(FileNotFoundError):
                    self.disk.files.unlink(digest.disk_path, root_fd)
            except OSError as error:
                kept[digest] = error
        return kept

    def sync_removed(self, root_fd: int) -> None:
        """Bring that to stable storage: nothing comes back with a loss of power."""
        self.disk.files.sync_all(root_fd)


def has_left(disk: Disk, names: DiskNames, digest: Digest) -> bool:
    """Whether the newest that a disk knows of a sample is that it has left.

    Raises `DiskAway`, `OSError`.
    """
    with disk.entered() as root_fd:
        newest = names.journal.newest(digest.raw, root_fd)
        return newest is not None and newest.kind is Kind.LEFT


@attrs.define
class Remains:
    """What is left of a disk: how many samples, and the paths of what is none."""

    samples: int = 0
    strays: list[str] = attrs.field(factory=list)


def remove_directories(disk: Disk, first: str, pace: Callable[[int], None]) -> Remains:
    """Remove the empty directories below one of the first level, and itself; what is left there.

    Raises `DiskAway`, `OSError`.
    """
    remains = Remains()
    with disk.entered() as root_fd:
        for second in _below(disk, first, root_fd, remains):
            for leaf in _below(disk, second, root_fd, remains):
                pace(1)
                if not _removed(disk, leaf, root_fd):
                    for path in _below(disk, leaf, root_fd, remains):
                        if _is_sample(path):
                            remains.samples += 1
                        else:
                            remains.strays.append(f"{disk.root}/{path}")
            _removed(disk, second, root_fd)
        _removed(disk, first, root_fd)
    return remains


def sync_disk(disk: Disk) -> None:
    """Bring all that was done to stable storage. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        disk.durable_directories.clear()
        disk.files.sync_all(root_fd)


def _below(disk: Disk, path: str, root_fd: int, remains: Remains) -> list[str]:
    """The paths in a directory; what is none stays."""
    try:
        fd = disk.files.open_directory(path, root_fd)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        remains.strays.append(f"{disk.root}/{path}")
        return []
    try:
        return [f"{path}/{name}" for name in sorted(disk.files.list(fd))]
    finally:
        disk.files.close(fd)


def _removed(disk: Disk, path: str, root_fd: int) -> bool:
    """Remove a directory unless something is in it, or it is none; whether it is gone."""
    try:
        disk.files.remove_directory(path, root_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _is_sample(path: str) -> bool:
    with suppress(MalformedDigest):
        return Digest.parse(path[-68:].removesuffix(".dat")).disk_path == path
    return False
