"""`Syscalls` that record what is called, and that fail when they are told to."""

import inspect
import os
from typing import NamedTuple

from stor.disk.syscalls import Syscalls

#: The names of all system calls.
CALLS = tuple(
    name
    for name, method in inspect.getmembers(Syscalls, inspect.isfunction)
    if not name.startswith("_")
)


#: What returns a descriptor of what the path names.
_OPENING = (
    *("open_directory", "open_to_read", "open_to_append", "open_to_update", "create"),
    *("open_cached", "look_cached"),
)


class Call(NamedTuple):
    """One system call; `path` is what its descriptor or path argument names below the root."""

    name: str
    path: str | None
    args: tuple


class RecordingFiles(Syscalls):
    """The real calls, each noted in `calls` when it has succeeded.

    With `log`, a list shared by several disks, calls are also noted there as `(label, Call)`, so
    that their order across disks can be told.
    """

    def __init__(self, label="", log=None):
        self.label = label
        self.calls = []
        self.log = log
        self._paths = {}

    def _before(self, name, args):
        """For subclasses: runs before the call is made; may raise, or return other arguments."""

    def _path(self, name, args):
        for argument in reversed(args):
            if isinstance(argument, str):
                return argument
        return self._paths.get(args[0]) if args else None

    def _record(self, name, args, result):
        path = self._path(name, args)
        if name in _OPENING:
            self._paths[result] = path
        elif name == "open_nameless":
            self._paths[result] = "(nameless)"
        elif name == "name":
            self._paths[args[0]] = path
        call = Call(name, path, args)
        if name == "close":
            self._paths.pop(args[0], None)
        self.calls.append(call)
        if self.log is not None:
            self.log.append((self.label, call))


def replace_calls(files, replacement):
    """Have each call of a class of files be `replacement(name)`."""
    for name in CALLS:
        call = replacement(name)
        call.__name__ = name
        setattr(files, name, call)


def _recorded(name):
    def call(self, *args):
        args = self._before(name, args) or args
        result = getattr(super(RecordingFiles, self), name)(*args)
        self._record(name, args, result)
        return result

    return call


replace_calls(RecordingFiles, _recorded)


class FaultyFiles(RecordingFiles):
    """Fails calls on demand.

    `fail_at(n, error)`: the n-th call from now on (0 is the next) raises `error`, an errno.
    `fail_always(name, error)`: every call of that name raises, until `heal`; "*" is every name.
    `fail_file(path, error)`: every call about that file raises, by its path or its descriptor.
    `short_write_at(n)`: the n-th call, if it is a write, writes only half.
    `hang_at(n, hang)`: the n-th call and all that follow wait in `hang()`, until `heal`.
    `full`: no room is left, though no call fails. `rots`: reads of samples and of staged files get
    a wrong first byte.

    `failed` is the name of the last call that was hit, `failed_args` its arguments, `failed_after`
    the number of calls that were made before it.
    """

    def __init__(self, label="", log=None):
        super().__init__(label, log)
        self._countdown = None
        self._fault = None
        self._always, self._files = {}, {}
        self.full = self.rots = False
        self.failed = self.failed_args = self.failed_after = None

    def fstatvfs(self, fd):
        status = super().fstatvfs(fd)
        # f_bfree, f_bavail
        return os.statvfs_result((*status[:3], 0, 0, *status[5:10])) if self.full else status

    def read(self, fd, length, offset):
        data = super().read(fd, length, offset)
        if not (self.rots and data) or _is_own(os.readlink(f"/proc/self/fd/{fd}")):
            return data
        return bytes([data[0] ^ 1]) + data[1:]

    def fail_at(self, n, error):
        self._arm(n, lambda name, args: self._raise(name, args, error))

    def short_write_at(self, n):
        self._arm(n, _shortened)

    def hang_at(self, n, hang):
        def wait(name, args):
            self._countdown = 0
            hang()

        self._arm(n, wait)

    def fail_always(self, name, error):
        self._always[name] = error

    def fail_file(self, path, error):
        self._files[path] = error

    def heal(self):
        self._countdown = self._fault = None
        self._always, self._files = {}, {}
        self.full = self.rots = False

    def _arm(self, n, fault):
        self._countdown, self._fault = n, fault
        self.failed = self.failed_args = self.failed_after = None

    def _before(self, name, args):
        if self._always or self._files:
            error = self._always.get(name, self._always.get("*")) or self._file_error(name, args)
            if error is not None:
                self._raise(name, args, error)
        if self._countdown is None:
            return None
        self._countdown -= 1
        if self._countdown >= 0:
            return None
        self._countdown, fault = None, self._fault
        self.failed, self.failed_args, self.failed_after = name, args, len(self.calls)
        return fault(name, args)

    def _file_error(self, name, args):
        path = self._path(name, args) or ""
        return next((e for file, e in self._files.items() if path.endswith(file)), None)

    def _raise(self, name, args, error):
        self.failed = name
        if name == "close":  # the descriptor is gone even then (close(2), "Dealing with errors")
            Syscalls.close(self, *args)
            self._record(name, args, None)
        raise OSError(error, os.strerror(error))


class MemoryFiles(FaultyFiles):
    """A disk on a local file system that the kernel has in memory, whatever it is really on."""

    def type_of(self, fd):
        super().type_of(fd)
        return 0xEF53

    def open_cached(self, path):
        self._before("open_cached", (path,))
        return self._opened("open_cached", (path,), os.O_RDONLY | os.O_NONBLOCK)

    def cached(self, fd, length):
        self._before("cached", (fd, length))
        self._record("cached", (fd, length), True)
        return True

    def look_cached(self, path):
        self._before("look_cached", (path,))
        return self._opened("look_cached", (path,), os.O_PATH)

    def read_cached(self, fd, length, offset):
        self._before("read_cached", (fd, length, offset))
        data = bytearray(os.pread(fd, length, offset))
        self._record("read_cached", (fd, length, offset), data)
        return data

    def _opened(self, name, args, flags):
        fd = os.open(args[0], flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._record(name, args, fd)
        return fd


def _is_own(path):
    """Whether a file is one that says something of the disk, not one that a client has sent."""
    return ".stor/" in path and not any(f".stor/{own}/" in path for own in ("tmp", "partial"))


def _shortened(name, args):
    if name == "write":
        fd, data = args
        return fd, data[: max(1, len(data) // 2)]
    return None
