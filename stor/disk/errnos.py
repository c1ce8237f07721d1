"""Whose fault an error is: one file's, the disk's, its room's, or this process's. One table.

What the kernel says of one file says nothing of the disk that it is on. What may be said of the
disk, a probe confirms.
"""

import enum
import errno


class Fault(enum.Enum):
    """What an error is about."""

    #: One name or file: its mode, its owner, its kind, a limit on its size. The disk is well.
    FILE = "file"
    #: The disk is full, or a quota is.
    ROOM = "room"
    #: This process, or the host, has too little of something.
    PROCESS = "process"
    #: The file system is mounted read-only.
    WRITING = "writing"
    #: Perhaps the disk: a bad sector, or all of it. Whatever is not known is looked into as well.
    DISK = "disk"


_FAULTS = {
    Fault.FILE: (
        errno.EACCES,
        errno.EPERM,  # immutable (chattr(1)), or a file system without hard links
        errno.EFBIG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,  # a socket
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.EMLINK,
        errno.EXDEV,  # something is mounted below the root
        errno.EBUSY,
        errno.ETXTBSY,
        errno.EINVAL,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
    ),
    Fault.ROOM: (errno.ENOSPC, errno.EDQUOT),
    Fault.PROCESS: (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN),
    Fault.WRITING: (errno.EROFS,),
}
_FAULT_OF = {number: fault for fault, numbers in _FAULTS.items() for number in numbers}


def fault_of(error: OSError) -> Fault:
    """What an error is about."""
    return _FAULT_OF.get(error.errno or 0, Fault.DISK)
