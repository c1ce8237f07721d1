"""Files to be stored: found, hashed and read. Blocking: for threads."""

import errno
import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import attrs

from stor.digest import Digest

#: What is read and hashed in one go.
_PIECE_BYTES = 1024 * 1024

#: How often a file that changes meanwhile is read anew.
ATTEMPTS = 3

#: A sha, and perhaps what follows a dot.
_NAMED = re.compile(r"([0-9a-fA-F]{64})(?:\.[0-9A-Za-z]+)?")

_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


class Changed(Exception):
    """A file is not what it was when it was hashed."""


@attrs.frozen
class Problem:
    """Why something that was asked for is passed over."""

    path: str
    reason: str


@attrs.frozen
class Hashed:
    """A file as it was: what tells whether it is the same still, and its name as a sample."""

    path: str
    digest: Digest
    size: int
    modified_ns: int


def walk(paths: Iterable[str]) -> Iterator[str | Problem]:
    """Every file that is named or below a directory that is named, one directory at a time.

    Symbolic links to files are followed, those to directories only where they are named.
    """
    for path in paths:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except (OSError, ValueError) as error:
            yield Problem(path, reason(error))
            continue
        if is_directory:
            yield from _below(path)
        else:
            yield path


def _below(directory: str) -> Iterator[str | Problem]:
    try:
        entries = os.scandir(directory)
    except OSError as error:
        yield Problem(directory, reason(error))
        return
    with entries:
        while True:
            try:
                entry = next(entries, None)
            except OSError as error:
                yield Problem(directory, reason(error))
                return
            if entry is None:
                return
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                yield Problem(entry.path, "a symbolic link to a directory, which is not followed")
            else:
                yield entry.path


def lines(file: BinaryIO, separator: bytes = b"\n") -> Iterator[str]:
    """The names of a list, one a line; with NUL for `separator` they may have newlines."""
    rest = b""
    while data := file.read1(_PIECE_BYTES) if hasattr(file, "read1") else file.read(_PIECE_BYTES):
        *whole, rest = (rest + data).split(separator)
        for line in whole:
            if line:
                yield os.fsdecode(line)
    if rest:
        yield os.fsdecode(rest)


def hash_file(path: str) -> Hashed | Problem:
    """Hash a file; where it changes meanwhile, again."""
    for _ in range(ATTEMPTS):
        try:
            found = _hash(path)
        except (OSError, ValueError) as error:
            return Problem(path, reason(error))
        if found is not None:
            return found
    return changing(path)


def named(path: str) -> Digest | None:
    """The sample that a file is, going by its name, as `stor get` names files."""
    found = _NAMED.fullmatch(os.path.basename(path))
    return None if found is None else Digest.parse(found[1])


def named_file(path: str) -> Hashed | Problem | None:
    """A file that is a sample going by its name, not read; `None`: it is not."""
    digest = named(path)
    if digest is None:
        return None
    try:
        status = os.stat(path)
        _expect_file(status)
    except (OSError, ValueError) as error:
        return Problem(path, reason(error))
    return Hashed(path, digest, status.st_size, status.st_mtime_ns)


def changing(path: str) -> Problem:
    """What is said of a file that does not keep still."""
    return Problem(path, f"it changes while it is read; tried {ATTEMPTS} times")


def _hash(path: str) -> Hashed | None:
    fd = _open(path)
    try:
        before = os.fstat(fd)
        hasher, size = hashlib.sha256(), 0
        while data := os.read(fd, min(_PIECE_BYTES, max(before.st_size - size, 0) + 1)):
            hasher.update(data)
            size += len(data)
            if size > before.st_size:
                break
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if (size, after.st_size, after.st_mtime_ns) != (before.st_size, size, before.st_mtime_ns):
        return None
    return Hashed(path, Digest(hasher.digest()), size, before.st_mtime_ns)


def _open(path: str) -> int:
    _expect_file(os.stat(path))
    # Nobody can make it a FIFO in between that is waited for.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _expect_file(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _expect_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"{kind}, not a file")


class OpenFile:
    """A file that was hashed, opened to be sent."""

    def __init__(self, hashed: Hashed) -> None:
        """Raises `Changed`, `OSError`."""
        self._hashed = hashed
        #: A thread may still read while another one closes: the number of a descriptor that is
        #: closed may be another file's a moment later.
        self._lock = threading.Lock()
        self._fd = _open(hashed.path)
        try:
            self.expect_unchanged()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises `Changed`, `OSError`."""
        with self._lock:
            data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise Changed
        return data

    def expect_unchanged(self) -> None:
        """Raises `Changed`, `OSError`."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._hashed.size, self._hashed.modified_ns):
            raise Changed

    def close(self) -> None:
        """Close it."""
        with self._lock:
            fd, self._fd = self._fd, -1
            os.close(fd)


def reason(error: OSError | ValueError) -> str:
    """What an error means, without the path: whoever tells of it names that."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "no name that a file can have"


def quoted(path: str) -> tuple[str, str]:
    """A name as `sha256sum` writes it in a line, and what comes before the line."""
    if not any(character in path for character in "\\\n\r"):
        return path, ""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return escaped, "\\"
