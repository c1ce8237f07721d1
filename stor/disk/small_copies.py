"""Small samples on their way onto one disk, many at a time, with one sync for all of them."""

from collections.abc import Callable, Iterable, Sequence

import attrs

from stor.digest import Digest
from stor.disk.disk import Disk, DiskAway, Room
from stor.disk.journal import Event, Journal
from stor.disk.names import DiskNames
from stor.disk.staged import StagedCopy


class Small:
    """A sample that is whole in memory and on its way to the disks of a set."""

    def __init__(self, digest: Digest, content: bytes, modified_ns: int) -> None:
        """`modified_ns` is what every copy says of its age."""
        self.digest = digest
        self.content = content
        self.modified_ns = modified_ns
        #: What its records say, from when they are about to be made.
        self.event: Event | None = None
        #: Whether it was given up, and a disk could not take its name back.
        self.shown = False
        #: Whether a disk had a good copy with its name before.
        self.was_there = False


@attrs.frozen
class Round:
    """What a disk has done: the samples that failed there, with why.

    `room` is what is left on it, if bodies were written.
    """

    room: Room | None
    failed: dict[Small, OSError]


class SmallCopies:
    """The copies of small samples that have no durable name yet. Plain blocking Python.

    The order is that of `StagedCopy`, in two rounds: in one the body and the record of a sample
    are written, in a later one it gets its name; what was done in a round is on stable storage
    when that returns. Between the two every disk of the set has to have done the first. A crash
    leaves records too many, and names with the right bytes or none.
    """

    def __init__(self, disk: Disk, shares: Callable[[int], bool]) -> None:
        """`shares` says of the open root whether one syncfs(2) may stand for many syncs."""
        self._disk = disk
        self._shares = shares
        self._staged: dict[Small, StagedCopy] = {}

    def round(
        self, names: DiskNames | None, named: Sequence[Small], fresh: Sequence[Small]
    ) -> Round:
        """Name some samples, write others, and bring all that to stable storage.

        One round at a time. Raises `DiskAway`, `OSError`: then nothing counts that it has done.
        The caller gives up whatever fails.
        """
        # Opened first: a write that fails from now on fails the sync (syncfs(2)).
        root_fd = self._disk.enter()
        try:
            return self._round(names, named, fresh, root_fd)
        finally:
            self._disk.leave(root_fd)

    def _round(
        self,
        names: DiskNames | None,
        named: Sequence[Small],
        fresh: Sequence[Small],
        root_fd: int,
    ) -> Round:
        failed: dict[Small, OSError] = {}
        for small in named:
            try:
                if not self._staged[small].name(small.digest, root_fd):
                    small.was_there = True
            except OSError as error:
                failed[small] = error
        for small in fresh:
            try:
                self._write(small, root_fd)
            except OSError as error:
                failed[small] = error
        written = [small for small in fresh if small not in failed] if failed else fresh
        if written and written[0].event is not None:
            self._record_and_sync(names, named, written, failed, root_fd)
        else:
            self._sync(None, named, written, failed, root_fd)
        for small in named:
            if small not in failed:
                self._staged[small].published(small.digest)
        return Round(self._disk.room_of(root_fd) if fresh else None, failed)

    def keep(self, smalls: Iterable[Small]) -> None:
        """These have their names on every disk of the set. Not during a round; never waits."""
        for small in smalls:
            self._staged.pop(small).keep()

    def give_up(self, smalls: Iterable[Small]) -> None:
        """Leave nothing behind of these, and no name, unless they are `shown`. Never raises."""
        for small in smalls:
            copy = self._staged.pop(small, None)
            if copy is not None:
                copy.discard()
                small.shown = small.shown or copy.shows_name

    def _write(self, small: Small, root_fd: int) -> None:
        self._staged[small] = copy = StagedCopy.begin(self._disk, root_fd, None)
        copy.write([small.content])
        copy.seal(small.digest, small.modified_ns)

    def _record_and_sync(
        self,
        names: DiskNames | None,
        named: Sequence[Small],
        written: Sequence[Small],
        failed: dict[Small, OSError],
        root_fd: int,
    ) -> None:
        if names is None or not names.written:
            raise DiskAway(f"{self._disk.root}: its journal is not open")
        journal = names.journal
        events = [small.event for small in written if small.event is not None]
        try:
            records = [
                self._staged[small].entry(small.digest, event)
                for small, event in zip(written, events, strict=True)
            ]
            position = journal.append(records, root_fd, names.event_here(events[0]).low)
        except OSError as error:
            failed.update(dict.fromkeys(written, error))
            self._sync(None, named, (), failed, root_fd)
            return
        self._sync(journal, named, written, failed, root_fd)
        try:
            journal.synced(position)
        except OSError as error:
            failed.update({small: error for small in written if small not in failed})

    def _sync(
        self,
        journal: Journal | None,
        named: Sequence[Small],
        written: Sequence[Small],
        failed: dict[Small, OSError],
        root_fd: int,
    ) -> None:
        """Bring it all to stable storage; one alone is synced by itself."""
        if len(named) + len(written) > 1 and self._shares(root_fd):
            try:
                self._disk.files.sync_all(root_fd)
                # Ext2, and ext4 without a journal, do not flush the disk's own cache at the end of
                # syncfs(2), where any fsync(2) does.
                self._disk.files.sync(root_fd)
            except OSError:
                if journal is not None:
                    journal.failed()
                raise
            return
        for small in written:
            try:
                self._staged[small].sync()
            except OSError as error:
                failed[small] = error
        if journal is not None:
            try:
                journal.sync(root_fd)
            except OSError as error:
                journal.failed()
                failed.update({small: error for small in written if small not in failed})
        for small in named:
            if small not in failed:
                try:
                    self._staged[small].sync_directories(small.digest, root_fd)
                except OSError as error:
                    failed[small] = error
