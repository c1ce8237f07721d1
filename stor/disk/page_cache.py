"""What the kernel has in memory of one disk, read without ever waiting for the disk."""

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from stat import S_ISREG

import attrs

from stor.digest import Digest
from stor.disk.syscalls import Syscalls
from stor.disk.verified import Mark, VerifiedSmall
from stor.errors import Damaged

#: Larger samples are not read from here: hashing one takes the time of several answers.
READ_BYTES = 64 * 1024

#: To hash fewer bytes takes no longer than to know that they were hashed lately.
_HASHED_BYTES = 16 * 1024

#: Ext2 to ext4, XFS, btrfs, F2FS and bcachefs (statfs(2)). On these, to open a file whose name is
#: in memory, and to ask for its attributes, takes no more than memory. Through FUSE or a network it
#: takes a program or a server, which may hang, whatever openat2(2) says of the name.
_LOCAL_TYPES = (0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E)

#: What a kernel says that is too old, a sandbox that forbids the calls, or a file system that
#: cannot do it: it will say so again.
_REFUSALS = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.EOPNOTSUPP)


@attrs.define(eq=False)
class CachedCopy:
    """A copy in memory, the kernel's or Stor's; `storage` is the root of its disk, or `s3`.

    `content`, where it was read, is verified. `head` is for whoever answers with the copy to keep.
    """

    digest: Digest
    place: str
    storage: str
    size: int
    modified_ns: int
    content: bytes | bytearray | None = None
    head: bytes | None = None


class PageCache:
    """One disk's samples, as far as the kernel has them in memory. For the reactor's thread.

    Nothing is read before the disk's own thread has learnt that its file system can do this.
    """

    def __init__(
        self,
        root: str,
        files: Syscalls,
        check_device: Callable[[int], None],
        verified: VerifiedSmall,
    ) -> None:
        """`check_device` is given the `st_dev` of a file; raises `DiskAway` if it is elsewhere."""
        self._verified = verified
        self._root = root
        self._files = files
        self._check_device = check_device
        #: The file system that was found to be the disk's, `None`: to be checked.
        self.device: int | None = None
        #: Whether reading without waiting is possible here, `None` while nobody has tried.
        self.offered: bool | None = None
        #: Why it is not, if so.
        self.refusal: str | None = None
        self._is_cached = files.cached

    def forget(self) -> None:
        """Another disk is there."""
        self.offered = self.refusal = self.device = None

    def learn(self, path: str, status: os.stat_result) -> None:
        """Try what reading takes on a file that was just looked at. May wait for the disk.

        Never raises: what goes wrong may go well with the next file.
        """
        if self.offered is not None or not status.st_size or status.st_uid != os.geteuid():
            return
        with suppress(OSError):
            self.refusal = self._find_refusal(path)
            self.offered = self.refusal is None

    def _find_refusal(self, path: str) -> str | None:
        """Why reading without waiting is not possible, if so. Raises `OSError`: it may be yet."""
        try:
            fd = self._files.open_cached(path)
        except OSError as error:
            return _said("openat2", error)
        try:
            kind = self._files.type_of(fd)
            if kind not in _LOCAL_TYPES:
                return (
                    f"on a file system of type {kind:#x} opening a file may take more than memory"
                )
            try:
                self._files.read_cached(fd, 1, 0)
            except BlockingIOError:
                pass
            except OSError as error:
                return _said("preadv2 with RWF_NOWAIT", error)
            refusals = []
            for name, is_cached in (
                ("cachestat", self._files.cached),
                ("mincore", self._files.mapped),
            ):
                try:
                    is_cached(fd, 1)
                except OSError as error:
                    refusals.append(_said(name, error))
                else:
                    self._is_cached = is_cached
                    return None
            return ", ".join(refusals)
        finally:
            self._files.close(fd)

    def look(self, digest: Digest) -> CachedCopy | None:
        """The disk's copy by its name, not read; `None` when that would have to wait.

        Raises `Damaged`, `DiskAway`, `OSError`: for who may wait to look into.
        """
        if not self.offered:
            return None
        path = f"{self._root}/{digest.disk_path}"
        try:
            fd = self._files.look_cached(path)
        except BlockingIOError:
            return None
        try:
            status = self._status(path, fd)
            return CachedCopy(digest, path, self._root, status.st_size, status.st_mtime_ns)
        finally:
            self._files.close(fd)

    def read(self, digest: Digest) -> CachedCopy | None:
        """The disk's copy, read whole and verified up to `READ_BYTES`; else like `look`."""
        if not self.offered:
            return None
        path = f"{self._root}/{digest.disk_path}"
        try:
            fd = self._files.open_cached(path)
            try:
                status = self._status(path, fd)
                size = status.st_size
                copy = CachedCopy(digest, path, self._root, size, status.st_mtime_ns)
                if size > READ_BYTES:
                    return copy
                # Not by trying: Linux would begin to read what is missing.
                if size and not self._is_cached(fd, size):
                    return None
                content = self._files.read_cached(fd, size, 0)
                large = size >= _HASHED_BYTES
                proven = large and self._is_proven(digest, status, fd)
            finally:
                self._files.close(fd)
        except BlockingIOError:
            return None
        if len(content) != size:  # a part has left memory meanwhile
            return None
        if not proven:
            if hashlib.sha256(content).digest() != digest.raw:
                raise Damaged(f"{path}: content does not have the SHA-256 of its name")
            if large:
                self._verified.add(digest, Mark.of(status))
        copy.content = content
        return copy

    def _is_proven(self, digest: Digest, status: os.stat_result, fd: int) -> bool:
        """Whether what was read of a file since it had this status was right not long ago."""
        mark = Mark.of(status)
        return self._verified.knows(digest, mark) and Mark.of(self._files.fstat(fd)) == mark

    def _status(self, path: str, fd: int) -> os.stat_result:
        status = self._files.fstat(fd)
        if not S_ISREG(status.st_mode):
            raise Damaged(f"{path}: not a regular file")
        if status.st_dev != self.device:
            self._check_device(status.st_dev)
            self.device = status.st_dev
        return status


def _said(call: str, error: OSError) -> str:
    """What a kernel says that does not do this. Raises an error that says nothing of that."""
    if error.errno not in _REFUSALS:
        raise error
    return f"{call}: {error.strerror}"
