"""One storage root: looking up, opening, staging and freeing space on one plain disk."""

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import attrs

from stor.digest import Digest
from stor.disk.copy import Copy, DamagedCopy, MadeSums, OpenCopy
from stor.disk.durable import Blocks, Claims, DurableDirectories
from stor.disk.page_cache import PageCache
from stor.disk.syscalls import Syscalls, is_regular
from stor.disk.verified import Mark, Verified, VerifiedSmall
from stor.errors import Damaged

T = TypeVar("T")

OWN_DIRECTORY = ".stor"
STAGING_DIRECTORY = f"{OWN_DIRECTORY}/tmp"
QUARANTINE_DIRECTORY = f"{OWN_DIRECTORY}/quarantine"
REPAIR_DIRECTORY = f"{OWN_DIRECTORY}/repair"
#: What is still to be copied to S3.
OUTBOX_DIRECTORY = f"{OWN_DIRECTORY}/s3"
#: Uploads that are not complete: see `stor.disk.partial`.
PARTIAL_DIRECTORY = f"{OWN_DIRECTORY}/partial"
#: What is known of the disk's samples: see `stor.disk.journal` and `stor.disk.base`.
INDEX_DIRECTORY = f"{OWN_DIRECTORY}/index"
OWN_DIRECTORIES = (
    OWN_DIRECTORY,
    STAGING_DIRECTORY,
    QUARANTINE_DIRECTORY,
    REPAIR_DIRECTORY,
    OUTBOX_DIRECTORY,
    PARTIAL_DIRECTORY,
    INDEX_DIRECTORY,
)

#: Samples up to this size are read and verified whole before their first byte is sent.
SMALL_BYTES = 256 * 1024

_VERIFY_CHUNK_BYTES = 1024 * 1024

#: What one disk can make use of.
_BLOCKS_BYTES = 2 * 1024 * 1024

_NO_NAMELESS_FILES = (errno.EOPNOTSUPP, errno.EISDIR)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class DiskAway(Exception):
    """The root is not the disk it should be: missing, not mounted. Nothing was read or written."""


@attrs.frozen
class Room:
    """What a disk has left. Of two, the one with the higher `number` was measured later.

    It is that of the monotonic clock, which all processes share (clock_gettime(2)).
    """

    free_bytes: int
    free_inodes: int
    block_bytes: int = 4096
    number: int = 0
    #: The size of the disk, 0 while it is not known.
    total_bytes: int = 0


def write_all(files: Syscalls, fd: int, data: bytes) -> None:
    """Append all of `data` to an open file. Raises `OSError`."""
    rest = memoryview(data)
    while rest:
        written = files.write(fd, rest)
        if written <= 0:
            raise OSError(errno.EIO, "write(2) wrote nothing")
        rest = rest[written:]


@contextmanager
def replacing(
    files: Syscalls,
    path: str,
    root_fd: int,
    create: Callable[[Callable[[], int]], int] = lambda make: make(),
) -> Iterator[int]:
    """A new file, to be written, that takes the place of the one at `path` in the end.

    A crash leaves the one or the other; the new one once the caller has synced its directory.
    `create` calls what makes the file. Raises `OSError`.
    """
    new = f"{path}.new"
    with suppress(FileNotFoundError):  # the usual case: no write was interrupted
        files.unlink(new, root_fd)
    fd = create(lambda: files.create(new, root_fd))
    try:
        yield fd
        files.sync(fd)
    finally:
        files.close(fd)
    files.rename(new, path, root_fd)


class Disk:
    """Plain blocking Python; every method is called in one of the disk's own threads.

    Every operation but `look` opens the root first, looks whether it is on the right file system,
    and works relative to that descriptor: a disk that is unmounted at any moment cannot make a byte
    land on the file system below it.
    """

    def __init__(
        self,
        root: str,
        files: Syscalls,
        forbidden_device: int | None = None,
        blocks: Blocks | None = None,
        *,
        keeps_sums: bool = True,
        verified_small: VerifiedSmall | None = None,
    ) -> None:
        """`forbidden_device`: the `st_dev` that means "not mounted", with `require_mount`.

        `blocks` are those that the disk shares with others, to know its directories by.
        `keeps_sums`: block sums that a copy lacks are written to it once it was read whole; a
        process that only reads does not. `verified_small` is what it shares with others, too, for
        the reactor's thread.
        """
        self.root = root
        #: What is mounted there, also where a symbolic link leads to it.
        self._root_itself = f"{root}/."
        self.files = files
        self._forbidden_device = forbidden_device
        self._keeps_sums = keeps_sums
        self._device: int | None = None
        self._nameless_files = True
        self._exchanges = True
        #: Whether there may be staged files that nobody writes any more.
        self.unswept = True
        #: How many bad copies were moved to the quarantine.
        self.quarantined_total = 0
        self.claims = Claims()
        self.verified = Verified()
        self.durable_directories = DurableDirectories(blocks or Blocks(_BLOCKS_BYTES))
        self.page_cache = PageCache(
            root,
            files,
            partial(self._check_mount, probing=False),
            verified_small or VerifiedSmall(),
        )

    def forbid(self, device: int | None) -> None:
        """From now on `device` means "not mounted"; with `None` none does."""
        self._forbidden_device = device
        self.page_cache.device = None

    def identify(self, device: int) -> None:
        """From now on the disk is the file system with this `st_dev` and no other."""
        if device != self._device:
            self.durable_directories.clear()
            self.page_cache.forget()
            self._device = device

    @contextmanager
    def entered(self, *, probing: bool = False) -> Iterator[int]:
        """The root as an open directory, on the right file system.

        `probing` is for finding out which one it is. Raises `DiskAway`, or `OSError` when the
        disk itself fails.
        """
        fd = self.enter(probing=probing)
        try:
            yield fd
        finally:
            self.leave(fd)

    def leave(self, fd: int) -> None:
        """Close a root that was entered. Never raises."""
        try:
            self.files.close(fd)
        except OSError:
            return  # only read from: what close(2) says of it costs nobody what was opened

    def enter(self, *, probing: bool = False) -> int:
        """Like `entered`; the caller leaves it."""
        try:
            fd = self.files.open_directory(self.root)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._no_root() from error
        try:
            self._check_mount(self.files.fstat(fd).st_dev, probing)
        except BaseException:
            self.files.close(fd)
            raise
        return fd

    def _check_root(self) -> None:
        """Raise `DiskAway` unless the root is a directory of the right file system."""
        try:
            device = self.files.stat(self._root_itself).st_dev
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._no_root() from error
        self._check_mount(device, False)

    def _no_root(self) -> DiskAway:
        return DiskAway(f"{self.root}: not a directory")

    def _check_mount(self, device: int, probing: bool) -> None:
        if device == self._forbidden_device:
            raise DiskAway(
                f"{self.root}: not mounted, it is on the file system of / "
                "(mount the disk, or set require_mount to false)"
            )
        if not probing and device != self._device:
            raise DiskAway(f"{self.root}: another file system is mounted there than before")

    def look(self, digest: Digest) -> Copy | None:
        """The disk's copy by its name, `None` when there is none. Does not read the content.

        Raises `Damaged` when what has the name is no regular file, `DiskAway`, `OSError`.
        """
        # A miss asks every disk: two calls instead of four, which an open root would take.
        status, trouble = None, None
        try:
            status = self.files.stat(self._path(digest))
        except FileNotFoundError:
            pass
        except NotADirectoryError as error:
            trouble = error
        # After the file: that nothing was there is the disk's word only if it has not gone before.
        self._check_root()
        if trouble is not None:
            raise trouble
        return None if status is None else self._copy(digest, status)

    def open(self, digest: Digest) -> OpenCopy | None:
        """The disk's copy, open; `None` when there is none. A small one is read whole and verified.

        One that has block sums is as large as they say, whatever there is of it. Raises `Damaged`,
        `DiskAway`, `OSError`; then nothing stays open.
        """
        copy = self._open(digest)
        if copy is None:
            return None
        try:
            if copy.copy.size > SMALL_BYTES:
                copy.take_sums(copy.copy.size if copy.proven else None)
            else:
                self._read_small(copy)
        except BaseException:
            copy.close()
            raise
        return copy

    def _read_small(self, copy: OpenCopy) -> None:
        try:
            copy.whole = copy.read(0, copy.copy.size, hashlib.sha256())
        except Damaged:
            # What is left of a large sample has its block sums.
            copy.take_sums()
            if copy.copy.size <= SMALL_BYTES:
                raise
        else:
            copy.close()

    def _open(self, digest: Digest) -> OpenCopy | None:
        """The disk's copy, open and not read."""
        with self.entered() as root_fd:
            try:
                fd = self.files.open_to_read(digest.disk_path, root_fd)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise Damaged(f"{self._path(digest)}: not a regular file") from error
                raise
        copy = OpenCopy(self.files, digest, Copy("", 0, 0, self.root), fd)
        try:
            copy.copy = self._copy(digest, self.files.fstat(fd))
            copy.mark = copy.copy.mark
            if copy.mark is not None and copy.copy.size > SMALL_BYTES:
                copy.verified, copy.keeps_sums = self.verified, self._keeps_sums
                copy.proven = self.verified.knows(digest, copy.mark)
                self.files.advise_sequential(fd)
        except BaseException:
            copy.close()
            raise
        return copy

    def check(self, digest: Digest, length: int | None) -> Copy | None:
        """The disk's copy if it can be the sample, `length` bytes long; a small one is verified.

        Raises `Damaged` when it can not, `DiskAway`, `OSError`.
        """
        copy: Copy | None
        if length is not None and length > SMALL_BYTES:
            copy = self.look(digest)
        else:
            opened = self.open(digest)
            if opened is None:
                return None
            opened.close()
            copy = opened.copy
            if opened.misfit:
                reason = f"{copy.path}: is not the {copy.size} bytes long that were stored"
                raise DamagedCopy(reason, copy.mark)
        if copy is not None and length is not None and copy.size != length:
            reason = f"{copy.path}: has {copy.size} bytes, {length} were expected"
            raise DamagedCopy(reason, copy.mark)
        return copy

    def verify(self, digest: Digest) -> Copy | None:
        """Read the whole copy and compare its hash. Raises `Damaged`, `DiskAway`, `OSError`."""
        opened = self.open_whole(digest)
        if opened is None:
            return None
        try:
            size, hasher = opened.copy.size, hashlib.sha256()
            for offset in range(0, max(1, size), _VERIFY_CHUNK_BYTES):
                opened.read(offset, min(_VERIFY_CHUNK_BYTES, size - offset), hasher)
        finally:
            opened.close()
        return opened.copy

    def open_whole(self, digest: Digest) -> OpenCopy | None:
        """The disk's copy, open and not read yet; `None` when there is none.

        To be read from its beginning to its end, with a hasher. Raises `Damaged`, `DiskAway`,
        `OSError`; then nothing stays open.
        """
        opened = self._open(digest)
        if opened is not None and opened.copy.size > SMALL_BYTES:
            opened.take_sums(opened.copy.size)
        return opened

    def keep_sums(self, made: MadeSums) -> None:
        """Keep block sums that another process has made with the copy, if that is still the same.

        Raises `Damaged`, `DiskAway`, `OSError`.
        """
        opened = self.open(made.sums.digest)
        if opened is None:
            return
        try:
            if opened.mark == made.mark:
                opened.is_right(made.sums)
        finally:
            opened.close()

    def room(self) -> Room:
        """What is left for unprivileged use. Raises `DiskAway`, `OSError`."""
        with self.entered() as root_fd:
            return self.room_of(root_fd)

    def room_of(self, fd: int) -> Room:
        """What is left on the file system of an open file or directory."""
        # What was allocated before this is seen by the next call, of whichever process.
        number = time.monotonic_ns()
        status = self.files.fstatvfs(fd)
        # A file system that makes its inodes as it goes (btrfs) says 0 of 0.
        free_inodes = status.f_favail if status.f_files else 2**63
        block = status.f_frsize
        free, total = status.f_bavail * block, status.f_blocks * block
        return Room(free, free_inodes, block, number, total)

    def open_staging(self, root_fd: int) -> tuple[int, str | None]:
        """A new file that no crash can leave behind, and its temporary name if it needs one."""
        if self._nameless_files:
            try:
                return self.in_own_directory(
                    root_fd, lambda: self.files.open_nameless(STAGING_DIRECTORY, root_fd)
                ), None
            except OSError as error:
                if error.errno not in _NO_NAMELESS_FILES:
                    raise
                self._nameless_files = False
        name = f"{STAGING_DIRECTORY}/{secrets.token_hex(16)}"
        fd = self.in_own_directory(root_fd, lambda: self.files.create(name, root_fd))
        try:
            self.files.lock(fd)
        except BaseException:
            with suppress(OSError):  # what was never written cannot be lost
                self.files.close(fd)
            self.remove_staged(name, root_fd)
            raise
        return fd, name

    def remove_staged(self, name: str, root_fd: int) -> None:
        """Remove a staged file that nobody needs; what cannot be removed now is swept later."""
        try:
            self.files.unlink(name, root_fd)
        except OSError:
            self.unswept = True

    def replace(self, digest: Digest, reason: str, fd: int, root_fd: int) -> None:
        """Give an open file the sample's name, and what has it a name in quarantine, durably.

        Both in one step: whoever asks for the name finds the one file or the other. A crash before
        it leaves the new file in the quarantine. Raises `OSError`, with nothing changed before
        that step.
        """
        with self._kept_aside(digest, reason, root_fd) as path:
            self.files.name(fd, path, root_fd)
            # By renaming: once it has no name, a file that was made without one never gets one.
            staged = f"{STAGING_DIRECTORY}/{secrets.token_hex(16)}"
            try:
                if self._exchange(path, digest.disk_path, root_fd):
                    return
                self.files.lock(fd)  # so that it is not swept
                self.files.rename(path, staged, root_fd)
            except BaseException:
                with suppress(OSError):  # what went wrong before says more
                    self.files.unlink(path, root_fd)
                raise
            try:
                self._rename_over(staged, digest.disk_path, path, root_fd)
            except BaseException:
                self.remove_staged(staged, root_fd)
                raise

    def _exchange(self, path: str, name: str, root_fd: int) -> bool:
        """Let two names change files; `False` where the file system cannot do that."""
        if self._exchanges:
            try:
                self.files.exchange(path, name, root_fd)
            except OSError as error:
                if error.errno not in _NO_EXCHANGE:
                    raise
                self._exchanges = False
        return self._exchanges

    def _rename_over(self, staged: str, name: str, path: str, root_fd: int) -> None:
        """Give a staged file the name of another, which is to have the name `path` instead.

        The other one has both names first, so that `name` is never gone; except where it can have
        only one: a directory, or what is another user's (proc_sys_fs(5), protected_hardlinks).
        """
        try:
            self.files.link(name, path, root_fd)
        except PermissionError:
            self.files.rename(name, path, root_fd)
            undo = partial(self.files.rename, path, name, root_fd)
        else:
            undo = partial(self.files.unlink, path, root_fd)
        try:
            self.files.rename(staged, name, root_fd)
        except BaseException:
            undo()
            raise

    @contextmanager
    def _kept_aside(self, digest: Digest, reason: str, root_fd: int) -> Iterator[str]:
        """A free name in quarantine, with the reason beside it, which goes when nothing comes."""
        name = os.path.basename(digest.disk_path)
        path = f"{QUARANTINE_DIRECTORY}/{name}.{secrets.token_hex(4)}"
        fd = self.in_own_directory(root_fd, lambda: self.files.create(f"{path}.reason", root_fd))
        try:
            try:
                write_all(self.files, fd, f"{reason}\n".encode())
                self.files.sync(fd)
            finally:
                self.files.close(fd)
            yield path
        except BaseException:
            with suppress(OSError):
                self.files.unlink(f"{path}.reason", root_fd)
            raise
        self.quarantined_total += 1
        # The quarantine first: at no moment is what was moved on stable storage in neither place.
        for directory in (QUARANTINE_DIRECTORY, digest.directories[-1]):
            self.sync_directory(directory, root_fd)

    def sync_directory(self, path: str, root_fd: int) -> None:
        """Make the entries of a directory below the root durable (fsync(2), second paragraph)."""
        fd = self.files.open_directory(path, root_fd)
        try:
            self.files.sync(fd)
        finally:
            self.files.close(fd)

    def in_own_directory(self, root_fd: int, use: Callable[[], T]) -> T:
        """What `use` returns, after making Stor's own directories if it misses one."""
        try:
            return use()
        except FileNotFoundError:
            for path in OWN_DIRECTORIES:
                with suppress(FileExistsError):
                    self.files.make_directory(path, root_fd)
            for path in (OWN_DIRECTORY, "."):
                self.sync_directory(path, root_fd)
            return use()

    def _copy(self, digest: Digest, status: os.stat_result) -> Copy:
        mark = Mark.of(status)
        if not is_regular(status):
            raise DamagedCopy(f"{self._path(digest)}: not a regular file", mark)
        path = self._path(digest)
        self.page_cache.learn(path, status)
        return Copy(path, status.st_size, status.st_mtime_ns, self.root, mark)

    def _path(self, digest: Digest) -> str:
        return f"{self.root}/{digest.disk_path}"
