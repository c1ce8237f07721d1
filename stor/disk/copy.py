"""One disk's copy of a sample: what is known of it, and the bytes of an open one."""

import errno
from typing import Protocol

import attrs

from stor.digest import Digest, Hasher
from stor.disk.syscalls import Syscalls
from stor.disk.verified import Mark, Verified
from stor.errors import Damaged

#: What a file system says that cannot splice.
_NO_SPLICING = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Outflow(Protocol):
    """A pipe with a socket at its end, as `stor.zero_copy.SplicePipe` is."""

    inlet: int
    level: int

    def flush(self) -> bool:
        """Send what is in the pipe; whether it is empty now and may be filled again."""


@attrs.frozen
class Copy:
    """What a disk says of its copy of a sample, without reading it. `storage` is its root."""

    path: str
    size: int
    modified_ns: int
    storage: str


@attrs.define
class OpenCopy:
    """A copy being read. Owns `fd` until `close`; `whole` is set, and verified, when small.

    `mark` is that of the file when it was opened, and `verified` is told once all of it was read
    from here and is right; `proven` says that this was so not long ago.
    """

    files: Syscalls
    digest: Digest
    copy: Copy
    fd: int | None
    whole: bytes | None = None
    verified: Verified | None = None
    mark: Mark | None = None
    proven: bool = False
    _hashed_bytes: int = 0

    def read(self, offset: int, length: int, hasher: Hasher | None) -> bytes:
        """Exactly `length` bytes from `offset`, which are also given to `hasher`.

        With a hasher the read that reaches the end of the file compares the hash, so the last
        part of a damaged copy is never returned. Raises `Damaged`, or `OSError` with the hasher
        untouched.
        """
        if self.fd is None:
            raise ValueError("read of a closed copy")
        data = read_exactly(self.files, self.fd, length, offset)
        if hasher is not None:
            hasher.update(data)
            if offset + length == self.copy.size and hasher.digest() != self.digest.raw:
                raise Damaged(f"{self.copy.path}: content does not have the SHA-256 of its name")
            # The hash may be that of bytes some of which another copy has given.
            if offset == self._hashed_bytes:
                self._hashed_bytes += length
            if self.verified and self.mark and self._hashed_bytes == self.copy.size:
                self.verified.add(self.digest, self.mark)
        return data

    def send(self, splice_pipe: Outflow, offset: int, length: int) -> bool:
        """Send up to `length` bytes from `offset` on, until `splice_pipe` takes no more.

        What is in its pipe already stands at `offset`. `False` when the file system cannot do
        this. Raises `Damaged` when the file is no longer what it was when it was opened, and
        `OSError`; then the splice_pipe is of no more use.
        """
        if self.fd is None:
            raise ValueError("read of a closed copy")
        end = offset + length
        offset += splice_pipe.level
        while splice_pipe.flush() and offset < end:
            try:
                moved = self.files.splice(self.fd, end - offset, offset, splice_pipe.inlet)
            except OSError as error:
                if error.errno in _NO_SPLICING:
                    return False
                raise
            # After the pages were taken: what was changed before is not sent.
            if not moved or Mark.of(self.files.fstat(self.fd)) != self.mark:
                raise Damaged(f"{self.copy.path}: was changed while it was being sent")
            splice_pipe.level += moved
            offset += moved
        return True

    def close(self) -> None:
        """Give the descriptor back, once."""
        fd, self.fd = self.fd, None
        if fd is not None:
            self.files.close(fd)


def read_exactly(files: Syscalls, fd: int, length: int, offset: int) -> bytes:
    """`length` bytes of an open file from `offset`. Raises `Damaged` when the file ends before."""
    data = files.read(fd, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    got = len(data)
    while data and got < length:
        data = files.read(fd, length - got, offset + got)
        parts.append(data)
        got += len(data)
    if got < length:
        raise Damaged(f"the copy ends at byte {offset + got}, {offset + length} were expected")
    return b"".join(parts)
