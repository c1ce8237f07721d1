"""Copies of samples on their way onto one disk: one while it comes, small ones many at a time."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import attrs

from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.disk.copy import keep_sums, read_exactly
from stor.disk.disk import SMALL_BYTES, Disk, DiskAway, Room, write_all
from stor.disk.journal import Event, Journal, Position, Record
from stor.disk.names import DiskNames
from stor.disk.syscalls import is_regular
from stor.disk.verified import Mark
from stor.errors import Damaged, Unavailable

#: A failed upload takes its empty directories along (`discard`), perhaps between another upload's
#: mkdir and link. The first attempt makes no directory that is known to be there.
_LINK_ATTEMPTS = 4

#: The kernel is told to begin writing to the disk whenever this much has been added.
_SEND_BYTES = 8 * 1024 * 1024

#: A file system that allocates no room in advance.
NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS)

#: What no system call takes for an open file (EBADF): the number of a descriptor that is closed may
#: be another file's by now.
_CLOSED = -1


@attrs.define
class StagedCopy:
    """A file that has no final name yet. Plain blocking Python, called in the disk's threads.

    Each step is given the disk's root, open: see `Disk.entered`.

    The order that makes a copy durable, each step on every disk of the mirror before the next on
    any: `write` …, `seal`, `record`, `sync` and `sync_record`, `recorded`, `name`,
    `sync_directories`. Each sync may also be that of the whole file system. A crash before `name`
    leaves nothing but a record too many; after `name` it leaves the right bytes or, where the
    directory had not reached the disk, nothing: the journal knows every name that a crash can
    leave. After a failure of any step `discard`
    leaves no name, no temporary and no space behind. A file whose fsync failed is never synced
    again: the kernel reports a lost write once (fsync(2)).

    It owns its descriptor: no other object uses it, and nobody calls a step before the last one has
    returned, however long that hangs. So it is never closed under a call.
    """

    disk: Disk
    _fd: int
    _temporary: str | None
    _summer: BlockSummer | None
    _claimed: Digest | None = None
    _made_name: bool = False
    _made: list[str] = attrs.field(factory=list)
    _written_bytes: int = 0
    _sent_bytes: int = 0
    _record: tuple[Journal, Position] | None = None

    @classmethod
    def begin(
        cls, disk: Disk, root_fd: int, length: int | None, summer: BlockSummer | None = None
    ) -> "StagedCopy":
        """A new staged copy, with `length` bytes allocated when known.

        `summer` makes the sums of all copies that are written at once; a small one has none.
        Raises `OSError` (ENOSPC, EDQUOT: there is no room); then nothing stays.
        """
        staged = cls(disk, *disk.open_staging(root_fd), summer)
        try:
            if length:
                staged._allocate(length)
        except BaseException:
            staged.discard()
            raise
        return staged

    def room(self) -> Room:
        """What is left on the disk beside the copy. Raises `OSError`."""
        return self.disk.room_of(self._fd)

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append `chunks`. Raises `OSError`.

        The kernel writes it to the disk meanwhile, so that neither the sync at the end nor those of
        others on the same disk take long.
        """
        for chunk in chunks:
            write_all(self.disk.files, self._fd, chunk)
            if self._summer is not None:
                self._summer.update(chunk, self._written_bytes)
            self._written_bytes += len(chunk)
        unsent_bytes = self._written_bytes - self._sent_bytes
        if unsent_bytes >= _SEND_BYTES:
            self.disk.files.begin_sync(self._fd, unsent_bytes, self._sent_bytes)
            self._sent_bytes = self._written_bytes

    def read_back(self, offset: int, length: int) -> bytes:
        """`length` bytes of what has been written. Raises `Damaged`, `DiskAway`, `OSError`."""
        if self._fd != _CLOSED:
            return read_exactly(self.disk.files, self._fd, length, offset)
        if self._claimed is None:
            raise Damaged(f"{self.disk.root}: nothing is left of what was written")
        with self.disk.entered() as root_fd:
            fd = self.disk.files.open_to_read(self._claimed.disk_path, root_fd)
            try:
                return read_exactly(self.disk.files, fd, length, offset)
            finally:
                self.disk.files.close(fd)

    def seal(self, digest: Digest, modified_ns: int) -> None:
        """Say how old the content is, which is complete; keep its block sums.

        Raises `OSError`; `Unavailable` when it was hashed, and is not the sample.
        """
        summer = self._summer
        size = self._written_bytes
        if summer is not None and summer.denies(digest, size):
            raise Unavailable(
                "the upload was to go on on another set, and a storage gave back "
                "other bytes than were written to it; nothing was kept"
            )
        if summer is not None and size > SMALL_BYTES and summer.size == size:
            keep_sums(self.disk.files, self._fd, summer.finish(digest))
        self.disk.files.set_modified(self._fd, modified_ns)

    def record(
        self,
        journal: Journal,
        digest: Digest,
        event: Event,
        root_fd: int,
    ) -> None:
        """Tell the disk's journal of the name that the copy is about to get. Raises `OSError`."""
        self._record = journal, journal.append([self.entry(digest, event)], root_fd, event.low)

    def entry(self, digest: Digest, event: Event) -> Record:
        """What a journal says of the copy. Raises `OSError`, also when the file is not as large."""
        status = self.disk.files.fstat(self._fd)
        size = self._written_bytes
        if status.st_size != size:
            what = f"{self.disk.root}: a file has {status.st_size} bytes, {size} were written"
            raise OSError(errno.EIO, what)
        return Record(digest.raw, event.sequence, size, status.st_ino, event.time_ns, event.kind)

    def forget_cached(self) -> None:
        """Nobody is going to read it soon: what is on the disk leaves the memory."""
        with suppress(OSError):
            self.disk.files.forget_cached(self._fd)

    def sync(self) -> None:
        """Bring content and times to stable storage. Raises `OSError`."""
        self.disk.files.sync(self._fd)

    def sync_record(self, root_fd: int) -> None:
        """Bring the record to stable storage. Raises `OSError`."""
        if self._record is not None:
            journal, _ = self._record
            try:
                journal.sync(root_fd)
            except OSError:
                journal.failed()
                raise

    def recorded(self) -> None:
        """The record is on stable storage. Raises `OSError` when one before it is lost."""
        if self._record is not None:
            journal, position = self._record
            journal.synced(position)

    def record_lost(self) -> None:
        """A sync that was to bring the record to stable storage has failed."""
        if self._record is not None:
            journal, _ = self._record
            journal.failed()

    def name(self, digest: Digest, root_fd: int, bad: str | None = None) -> bool:
        """Give the file its final name, atomically, never over a good copy; whether it got it.

        What has the name already stays when it is known to be the sample (it is synced, the staged
        file is not used); else the two change places, and it is in quarantine. `bad` says why it
        is known not to be, where that is known. Raises `OSError`.
        """
        self.disk.claims.begin(digest)
        self._claimed = digest
        try:
            self._link(digest, root_fd)
        except FileExistsError:
            self._name_over(digest, root_fd, bad)
        if self._temporary is not None:
            self.disk.files.unlink(self._temporary, root_fd)
            self._temporary = None
        return self._made_name

    def sync_directories(self, digest: Digest, root_fd: int) -> None:
        """Bring the name to stable storage, with every directory on the way. Raises `OSError`."""
        missing = self.disk.durable_directories.missing(digest)
        child: str | None = None
        for path in reversed((".", *digest.directories)):
            if child is None or child in missing:
                self.disk.sync_directory(path, root_fd)
            child = path

    def published(self, digest: Digest) -> None:
        """The name is on stable storage: no descriptor has to be open any more.

        `keep` or `discard` is still to come.
        """
        self.disk.durable_directories.add(digest)
        self._release()

    def keep(self) -> None:
        """A copy that has its name keeps it. Never waits for the disk."""
        digest, self._claimed = self._claimed, None
        if digest is not None:
            self.disk.claims.succeed(digest)

    @property
    def shows_name(self) -> bool:
        """Whether it has given a file the name, and not taken that back."""
        return self._made_name

    def close(self) -> None:
        """`keep`, and give the descriptors back, once."""
        self.keep()
        self._release()

    def discard(self) -> None:
        """Leave nothing behind: no name, no temporary, no directory, no open descriptor.

        Never raises: a disk that fails here has failed before, and what could be kept of it is
        only a nameless file; or a whole copy, where the disk went away after `published`.
        """
        if self._temporary is not None or self._claimed is not None or self._made:
            with suppress(OSError, DiskAway), self.disk.entered() as root_fd:
                self._undo(root_fd)
        if self._temporary is not None:
            self.disk.unswept = True
        self.close()

    def _allocate(self, length: int) -> None:
        try:
            self.disk.files.allocate(self._fd, length)
        except OSError as error:
            # The body will show whether there is room.
            if error.errno not in NO_ALLOCATION:
                raise

    def _undo(self, root_fd: int) -> None:
        files = self.disk.files
        digest, self._claimed = self._claimed, None
        if digest is not None:
            self.disk.durable_directories.forget(digest)
            with suppress(OSError):
                self.disk.claims.fail(digest, lambda: self._unlink(digest, root_fd))
        if self._temporary is not None:
            with suppress(OSError):
                files.unlink(self._temporary, root_fd)
                self._temporary = None
        for path in reversed(self._made):
            with suppress(OSError):
                files.remove_directory(path, root_fd)

    def _release(self) -> None:
        fd, self._fd = self._fd, _CLOSED
        if fd != _CLOSED:
            try:
                self.disk.files.close(fd)
            except OSError:
                return  # close(2) reports nothing that sync has not

    def _unlink(self, digest: Digest, root_fd: int) -> None:
        self.disk.files.unlink(digest.disk_path, root_fd)
        self._made_name = False
        self.disk.sync_directory(digest.directories[-1], root_fd)

    def _link(self, digest: Digest, root_fd: int) -> None:
        self._name_file(digest, root_fd)
        self.disk.claims.made(digest)
        self._made_name = True

    def _name_over(self, digest: Digest, root_fd: int, bad: str | None) -> None:
        try:
            reason = self._unfit(digest, root_fd, bad)
        except FileNotFoundError:  # it has gone by now
            return self._link(digest, root_fd)
        if reason is not None:
            self.disk.replace(digest, reason, self._fd, root_fd)
            # The name was there before: a failure of another disk does not take it away.
            self.disk.claims.replaced(digest)
            self._made_name = True
        return None

    def _name_file(self, digest: Digest, root_fd: int) -> None:
        # On a disk that is filled the directories are there, though it may not be known.
        name, path, missing = self.disk.files.name, digest.disk_path, True
        for _ in range(_LINK_ATTEMPTS):
            try:
                return name(self._fd, path, root_fd)
            except FileNotFoundError:
                if not missing:
                    self.disk.durable_directories.forget(digest)
                missing = self._make_directories(digest, root_fd)
        return name(self._fd, path, root_fd)

    def _make_directories(self, digest: Digest, root_fd: int) -> bool:
        """Make those that are not known to be there; whether there were any."""
        missing = self.disk.durable_directories.missing(digest)
        for path in missing:
            try:
                self.disk.files.make_directory(path, root_fd)
            except FileExistsError:
                continue
            self._made.append(path)
        return bool(missing)

    def _unfit(self, digest: Digest, root_fd: int, bad: str | None) -> str | None:
        """Why what has the sample's name is not relied on, `None` when it is, and is durable.

        Raises `FileNotFoundError` when nothing has it any more.
        """
        files = self.disk.files
        reason = self._flaw(digest, files.stat(digest.disk_path, root_fd), bad)
        if reason is None:
            fd = files.open_to_read(digest.disk_path, root_fd)
            try:
                files.sync(fd)
            finally:
                files.close(fd)
        return reason

    def _flaw(self, digest: Digest, status: os.stat_result, bad: str | None) -> str | None:
        """What keeps a file from being relied on. To read a large one takes longer than a step."""
        mark = Mark.of(status)
        if self.disk.claims.right(digest) or self.disk.verified.knows(digest, mark):
            return None
        path = f"{self.disk.root}/{digest.disk_path}"
        if is_regular(status) and mark.size != self._written_bytes:
            return f"{path}: had {mark.size} bytes, {self._written_bytes} were expected"
        if is_regular(status) and mark.size > SMALL_BYTES:
            return bad or f"{path}: was stored again, and was not known to be good"
        try:
            if self.disk.verify(digest) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except Damaged as error:
            return str(error)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"it could not be read: {error}"
        return None


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
