"""The few system calls that Stor makes on its disks."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["Syscalls", "is_regular"]

#: For what Python's `os` does not have. Calls made through it let go of the interpreter's lock.
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_RENAME_EXCHANGE = 2
_FALLOC_FL_KEEP_SIZE = 1
#: More than a `struct statfs` has, of which the first is the type.
_STATFS_LONGS = 32


#: The same numbers on every architecture (openat2(2), cachestat(2)).
_SYS_OPENAT2, _SYS_CACHESTAT = 437, 451
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_MAP_FAILED = ctypes.c_void_p(-1).value


class _OpenHow(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _CacheStatRange(ctypes.Structure):
    """`struct cachestat_range`."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    """`struct cachestat`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "written_back", "evicted", "recently_evicted")
    )


class _Locked:
    """Calls that never wait: letting go of the interpreter's lock for them would take longer."""

    def __init__(self) -> None:
        library = ctypes.PyDLL(None, use_errno=True)
        number, pointer, size = ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t
        fd = ctypes.c_int
        self.openat2 = library["syscall"]
        self.openat2.restype = number
        self.openat2.argtypes = (number, fd, ctypes.c_char_p, pointer, size)
        self.cachestat = library["syscall"]
        self.cachestat.restype = number
        self.cachestat.argtypes = (number, fd, pointer, pointer, ctypes.c_uint)
        self.mmap = library["mmap"]
        self.mmap.restype = pointer
        self.mmap.argtypes = (pointer, size, fd, fd, fd, ctypes.c_int64)
        self.mincore = library["mincore"]
        self.mincore.argtypes = (pointer, size, ctypes.c_char_p)
        self.munmap = library["munmap"]
        self.munmap.argtypes = (pointer, size)


#: What `os.fsencode` goes by, whose call takes as long as the rest of this.
_OF_PATHS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

_LOCKED = _Locked()
_HOW_BYTES = ctypes.sizeof(_OpenHow)
_TO_READ, _TO_LOOK = (
    ctypes.byref(_OpenHow(flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_CACHED))
    for flags in (os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME, os.O_PATH)
)


class Syscalls:
    """Linux system calls as one object, so that a test can record them or make them fail.

    Each method is the call of its name; `OSError` is what the kernel said. Paths are relative to
    `directory_fd`, an open directory: a disk that is unmounted between two calls cannot make the
    second one land on the file system below (openat(2), "Rationale").
    """

    def open_directory(self, path: str, directory_fd: int | None = None) -> int:
        """open(2) of a directory, which fsync(2) also accepts."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)

    def open_to_read(self, path: str, directory_fd: int) -> int:
        """open(2) of a regular file; a symbolic link is ELOOP, a FIFO does not block."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, flags, dir_fd=directory_fd)

    def open_cached(self, path: str) -> int:
        """openat2(2) with RESOLVE_CACHED, to read: EAGAIN rather than waiting for a disk.

        Reading it writes no time of access (O_NOATIME): EPERM when the file is another user's.
        """
        return _openat2(path, _TO_READ)

    def look_cached(self, path: str) -> int:
        """The same with O_PATH: for fstat(2) alone, of whatever has the name."""
        return _openat2(path, _TO_LOOK)

    def cached(self, fd: int, length: int) -> bool:
        """cachestat(2): whether all of a file's first `length` bytes are in memory.

        ENOSYS before Linux 6.5.
        """
        part, found = _CacheStatRange(0, length), _CacheStat()
        if _LOCKED.cachestat(_SYS_CACHESTAT, fd, ctypes.byref(part), ctypes.byref(found), 0):
            _raise_errno()
        return bool(found.cached >= -(-length // mmap.PAGESIZE))

    def mapped(self, fd: int, length: int) -> bool:
        """mincore(2): the same, of a file that is this user's; takes longer."""
        address = _LOCKED.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            _raise_errno()
        pages = -(-length // mmap.PAGESIZE)
        found = ctypes.create_string_buffer(pages)
        try:
            if _LOCKED.mincore(address, length, found):
                _raise_errno()
        finally:
            _LOCKED.munmap(address, length)
        return all(byte & 1 for byte in found.raw)

    def read_cached(self, fd: int, length: int, offset: int) -> bytearray:
        """preadv2(2) with RWF_NOWAIT: what is in memory from `offset` on, EAGAIN if nothing is.

        Linux begins to read what is not, which waits where a disk's queue is full.
        """
        buffer = bytearray(length)
        del buffer[os.preadv(fd, [buffer], offset, os.RWF_NOWAIT) :]
        return buffer

    def open_to_append(self, path: str, directory_fd: int) -> int:
        """open(2) with O_APPEND of a file that is there: every write goes to its end."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, dir_fd=directory_fd)

    def open_to_update(self, path: str, directory_fd: int) -> int:
        """open(2) of a file that is there, to read it, and to write at its end."""
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, flags, dir_fd=directory_fd)

    def open_nameless(self, path: str, directory_fd: int) -> int:
        """open(2) with O_TMPFILE: a file without a name, gone with its last descriptor."""
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        return os.open(path, flags, 0o644, dir_fd=directory_fd)

    def create(self, path: str, directory_fd: int) -> int:
        """open(2) with O_CREAT and O_EXCL: EEXIST rather than an existing file."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o644, dir_fd=directory_fd)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def stat(self, path: str, directory_fd: int | None = None) -> os.stat_result:
        """fstatat(2) with AT_SYMLINK_NOFOLLOW; without `directory_fd` lstat(2)."""
        return os.stat(path, dir_fd=directory_fd, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        """fstat(2)."""
        return os.fstat(fd)

    def fstatvfs(self, fd: int) -> os.statvfs_result:
        """fstatvfs(3)."""
        return os.fstatvfs(fd)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """pread(2): up to `length` bytes, fewer only at the end of the file or on a signal."""
        return os.pread(fd, length, offset)

    def splice(self, fd: int, length: int, offset: int, pipe_fd: int) -> int:
        """splice(2): move up to `length` bytes of a file into a pipe, as pages, not as copies."""
        return os.splice(fd, pipe_fd, length, offset_src=offset)

    def advise_sequential(self, fd: int) -> None:
        """posix_fadvise(2) POSIX_FADV_SEQUENTIAL: read ahead twice as far."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def forget_cached(self, fd: int, length: int = 0, offset: int = 0) -> None:
        """posix_fadvise(2) POSIX_FADV_DONTNEED: what is read next there comes from the device.

        A `length` of 0 is all of the rest.
        """
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """write(2): how many bytes were written, possibly fewer than given."""
        return os.write(fd, data)

    def allocate(self, fd: int, length: int) -> None:
        """fallocate(2): ENOSPC now rather than in the middle of the body; EOPNOTSUPP if it cannot.

        Where the file system cannot, posix_fallocate(3) would write a byte to every block instead.
        """
        _allocate(fd, 0, length)

    def reserve(self, fd: int, length: int) -> None:
        """The same with FALLOC_FL_KEEP_SIZE: the file is no longer than what is written to it."""
        _allocate(fd, _FALLOC_FL_KEEP_SIZE, length)

    def truncate(self, fd: int, length: int) -> None:
        """ftruncate(2): what is reserved behind `length` is given back, too."""
        os.ftruncate(fd, length)

    def get_attribute(self, fd: int, name: str) -> bytes:
        """fgetxattr(2): ENODATA when the file has none of that name."""
        return os.getxattr(fd, name)

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        """fsetxattr(2): ENOSPC, E2BIG or ERANGE when the file system has no room for it there."""
        os.setxattr(fd, name, value)

    def remove_attribute(self, fd: int, name: str) -> None:
        """fremovexattr(2): ENODATA when the file has none of that name."""
        os.removexattr(fd, name)

    def set_modified(self, fd: int, modified_ns: int) -> None:
        """futimens(3): both times, nanoseconds since the epoch."""
        os.utime(fd, ns=(modified_ns, modified_ns))

    def sync(self, fd: int) -> None:
        """fsync(2), of a file or of a directory."""
        os.fsync(fd)

    def type_of(self, fd: int) -> int:
        """fstatfs(2): the magic number of the file system that an open file is on."""
        status = (ctypes.c_long * _STATFS_LONGS)()
        if _LIBC.fstatfs(fd, status):
            _raise_errno()
        return int(status[0])

    def begin_sync(self, fd: int, length: int, offset: int) -> None:
        """sync_file_range(2) with SYNC_FILE_RANGE_WRITE: begin to write a part, wait for nothing.

        It does not say whether the part has reached the disk.
        """
        arguments = (ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)
        if _LIBC.sync_file_range(fd, *arguments):
            _raise_errno()

    def sync_all(self, fd: int) -> None:
        """syncfs(2): everything on the file system that an open file or directory is on.

        From Linux 5.8 on it fails when any write there has failed since `fd` was opened.
        """
        if _LIBC.syncfs(fd):
            _raise_errno()

    def name(self, fd: int, path: str, directory_fd: int) -> None:
        """linkat(2): give the open file a name; EEXIST rather than over an existing one.

        Through /proc/self/fd, which unlike AT_EMPTY_PATH needs no capability (open(2), O_TMPFILE).
        """
        os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=directory_fd, follow_symlinks=True)

    def make_directory(self, path: str, directory_fd: int) -> None:
        """mkdirat(2)."""
        os.mkdir(path, 0o755, dir_fd=directory_fd)

    def remove_directory(self, path: str, directory_fd: int) -> None:
        """unlinkat(2) with AT_REMOVEDIR: ENOTEMPTY unless empty."""
        os.rmdir(path, dir_fd=directory_fd)

    def unlink(self, path: str, directory_fd: int) -> None:
        """unlinkat(2)."""
        os.unlink(path, dir_fd=directory_fd)

    def link(self, path: str, new_path: str, directory_fd: int) -> None:
        """linkat(2): a second name, within one disk; EEXIST rather than over an existing one."""
        at = directory_fd
        os.link(path, new_path, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)

    def rename(self, path: str, new_path: str, directory_fd: int) -> None:
        """renameat(2), within one disk."""
        os.rename(path, new_path, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)

    def may_write(self, path: str, directory_fd: int) -> bool:
        """faccessat(2): whether names can be made in a directory."""
        return os.access(path, os.W_OK | os.X_OK, dir_fd=directory_fd, effective_ids=True)

    def exchange(self, path: str, other_path: str, directory_fd: int) -> None:
        """renameat2(2) with RENAME_EXCHANGE: two names change files, and neither is ever gone.

        EINVAL or ENOSYS where the file system, or the kernel, cannot.
        """
        paths = os.fsencode(path), os.fsencode(other_path)
        if not hasattr(_LIBC, "renameat2"):  # a C library older than the call
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if _LIBC.renameat2(directory_fd, paths[0], directory_fd, paths[1], _RENAME_EXCHANGE):
            _raise_errno()

    def list(self, directory_fd: int) -> list[str]:
        """getdents(2): the names in an open directory."""
        return os.listdir(directory_fd)

    def list_inodes(self, directory_fd: int) -> Sequence[tuple[str, int]]:
        """getdents(2): the names in an open directory, each with its inode number."""
        with os.scandir(directory_fd) as entries:
            return [(entry.name, entry.inode()) for entry in entries]

    def lock(self, fd: int) -> None:
        """flock(2), exclusive: `BlockingIOError` rather than waiting. Ends with the descriptor."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _openat2(path: str, how: object) -> int:
    name = path.encode(*_OF_PATHS)
    fd: int = _LOCKED.openat2(_SYS_OPENAT2, _AT_FDCWD, name, how, _HOW_BYTES)
    if fd < 0:
        _raise_errno()
    return fd


def _allocate(fd: int, mode: int, length: int) -> None:
    while _LIBC.fallocate(fd, mode, ctypes.c_int64(0), ctypes.c_int64(length)):
        if ctypes.get_errno() != errno.EINTR:
            _raise_errno()


def _raise_errno() -> NoReturn:
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error))


def is_regular(status: os.stat_result) -> bool:
    """Whether `status` is that of a regular file."""
    return stat.S_ISREG(status.st_mode)
