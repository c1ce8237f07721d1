"""Many copies on their way onto one disk, with one sync for all of them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.disk.disk import Disk, DiskAway
from stor.disk.journal import Event
from stor.disk.loading import Loaded
from stor.disk.names import DiskNames
from stor.disk.staged import StagedCopy
from stor.disk.verification import PART_SECONDS


class StagedBatch:
    """Copies that get their names together. Plain blocking Python, one call at a time.

    The order is that of `StagedCopy`: `stage` all, `sync` bodies and records, `name` all and sync
    the names; `close` in the end. A crash before `name` leaves nothing but records too many; after
    it each name has the right bytes or is not there. A copy that cannot be made or named, for a
    reason of its own, is left out: it leaves nothing behind.
    """

    def __init__(self, disk: Disk, shares: Callable[[int], bool]) -> None:
        """`shares` says of the open root whether one syncfs(2) may stand for many syncs.

        Raises `DiskAway`, `OSError`.
        """
        self._disk = disk
        self._shares = shares
        # Opened first: a write that fails from now on fails the sync (syncfs(2)).
        self._root_fd: int | None = disk.enter()
        self._staged: dict[Digest, StagedCopy] = {}
        self._todo: deque[Loaded] = deque()
        self._large: StagedCopy | None = None

    @property
    def digests(self) -> set[Digest]:
        """The samples that are staged."""
        return set(self._staged)

    def add(self, samples: Iterable[Loaded]) -> None:
        """Stage these, too."""
        self._todo.extend(samples)

    def stage(self, seconds: Callable[[], float] = time.monotonic) -> bool:
        """Write bodies for a moment; whether all are written. Raises `DiskAway`."""
        until = seconds() + PART_SECONDS
        while self._todo:
            sample = self._todo.popleft()
            with suppress(OSError):
                copy = StagedCopy.begin(self._disk, self._root, None, BlockSummer())
                try:
                    copy.write([sample.content])
                    copy.seal(sample.digest, sample.modified_ns)
                except BaseException:
                    copy.discard()
                    raise
                self._staged[sample.digest] = copy
            if seconds() >= until:
                break
        return not self._todo

    def begin_large(self, length: int) -> None:
        """Begin the body of a large copy. Raises `OSError`."""
        self._large = StagedCopy.begin(self._disk, self._root, length, BlockSummer())

    def append(self, data: bytes, *, sync: bool) -> None:
        """Append to the large copy; `sync` what was written of it so far. Raises `OSError`."""
        if self._large is None:
            raise ValueError("a large copy is written before it is begun")
        self._large.write([data])
        if sync:
            self._large.sync()
            self._large.forget_cached()

    def end_large(self, digest: Digest, modified_ns: int) -> None:
        """The large copy is whole. Raises `OSError`."""
        copy, self._large = self._large, None
        if copy is not None:
            self._staged[digest] = copy
            copy.seal(digest, modified_ns)

    def sync(self, names: DiskNames | None, events: Mapping[Digest, Event]) -> None:
        """Bring all bodies, and a record of each, to stable storage.

        `names` is what the disk knows of its names, `events` what it is to say. Raises `DiskAway`
        when its journal is not open, `OSError`: then nothing of it is ever named.
        """
        if not self._staged:
            return
        position = journal = None
        if events:
            if names is None or not names.written:
                raise DiskAway(f"{self._disk.root}: its journal is not open")
            journal = names.journal
            low = min(names.event_here(events[digest]).low for digest in self._staged)
            records = [copy.entry(digest, events[digest]) for digest, copy in self._staged.items()]
            position = journal.append(records, self._root, low)
        try:
            if self._shares(self._root):
                self._sync_all()
            else:
                for copy in self._staged.values():
                    copy.sync()
                if journal is not None:
                    journal.sync(self._root)
        except OSError:
            if journal is not None:
                journal.failed()
            raise
        if journal is not None and position is not None:
            journal.synced(position)
        for copy in self._staged.values():
            copy.forget_cached()

    def name(self) -> set[Digest]:
        """Give all their names, durably: those that have them. Raises `OSError`.

        To be called after `sync`. What has a name already stays, or is replaced, as
        `StagedCopy.name` has it.
        """
        named: dict[Digest, StagedCopy] = {}
        for digest, copy in list(self._staged.items()):
            try:
                copy.name(digest, self._root)
            except OSError:
                copy.discard()
                del self._staged[digest]
            else:
                named[digest] = copy
        if named and self._shares(self._root):
            self._sync_all()
        else:
            for digest, copy in named.items():
                copy.sync_directories(digest, self._root)
        for digest, copy in named.items():
            copy.published(digest)
            copy.keep()
            del self._staged[digest]
        return set(named)

    def close(self) -> None:
        """Leave nothing behind of what has no durable name. Never raises."""
        for copy in [*self._staged.values(), *([self._large] if self._large else [])]:
            copy.discard()
        self._staged, self._large = {}, None
        self._todo.clear()
        fd, self._root_fd = self._root_fd, None
        if fd is not None:
            self._disk.leave(fd)

    @property
    def _root(self) -> int:
        if self._root_fd is None:
            raise ValueError("a batch is used after it is closed")
        return self._root_fd

    def _sync_all(self) -> None:
        self._disk.files.sync_all(self._root)
        # Ext2, and ext4 without a journal, do not flush the disk's own cache at the end of
        # syncfs(2), where any fsync(2) does.
        self._disk.files.sync(self._root)
