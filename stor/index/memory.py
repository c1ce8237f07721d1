"""Memory that the processes of a host share: a memfd, mapped and locked."""

import ctypes
import mmap
import os

_LIBC = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> int:
    """Empty memory, as a descriptor that child processes may inherit. Raises `OSError`."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


def mapped(fd: int, length: int, offset: int = 0) -> mmap.mmap:
    """A part of the memory, to be read and written. Raises `OSError`."""
    return mmap.mmap(fd, length, offset=offset)


def locked(mapping: mmap.mmap) -> bool:
    """Keep all of a mapping in memory (mlock(2)); whether that is allowed (RLIMIT_MEMLOCK)."""
    first = ctypes.c_char.from_buffer(mapping)
    address = ctypes.c_void_p(ctypes.addressof(first))
    del first  # or the mapping could not be closed
    return int(_LIBC.mlock(address, ctypes.c_size_t(len(mapping)))) == 0
