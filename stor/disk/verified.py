"""Which copies were read whole lately and found to be right, by what tells a file from another."""

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from stor.digest import Digest

#: How long a verified copy is trusted before its content is read again.
FRESH_SECONDS = 600.0

#: How many copies are remembered of each disk, half a KiB each.
KNOWN_COPIES = 2048


#: How many small copies are remembered at least, of all disks, 100 bytes each.
KNOWN_SMALL_COPIES = 32_768

#: A file that changed later than this ago may change again and show the same time (ctime has the
#: resolution of the kernel's clock tick).
_SETTLED_NS = 10**9


class Mark(NamedTuple):
    """What changes when a file is written to or replaced (inode(7)); no process can set ctime."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Mark":
        """The mark of a file."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def same_but_for_ctime(self, other: "Mark | None") -> bool:
        """Whether at most an attribute was written, or the file got another name, in between."""
        return other is not None and self == other._replace(changed_ns=self.changed_ns)


class Verified:
    """A bounded memory of one disk's verified copies. Its methods may be called in any thread.

    It says of a file, not of a name, that its content was right: what another process does to a
    sample makes another file of it, or another mark.
    """

    def __init__(
        self, seconds: Callable[[], float] = time.monotonic, limit: int = KNOWN_COPIES
    ) -> None:
        self._seconds = seconds
        self._limit = limit
        self._lock = Lock()
        self._known: OrderedDict[Digest, tuple[Mark, float]] = OrderedDict()

    def add(self, digest: Digest, mark: Mark) -> None:
        """All of the file that had this mark before it was read has been read, and is right."""
        with self._lock:
            self._known[digest] = (mark, self._seconds())
            self._known.move_to_end(digest)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)

    def knows(self, digest: Digest, mark: Mark) -> bool:
        """Whether the file with this mark was right, not long ago."""
        with self._lock:
            known, seconds = self._known.get(digest, (None, 0.0))
            return known == mark and self._seconds() - seconds < FRESH_SECONDS


class VerifiedSmall:
    """The same of very many small copies, of all disks. For one thread.

    What is remembered of a copy is a hash of 64 bits, which nobody else can compute.
    """

    def __init__(
        self,
        seconds: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
        limit: int = KNOWN_SMALL_COPIES,
    ) -> None:
        self._seconds = seconds
        self._now_ns = now_ns
        self._limit = limit
        self._secret = secrets.token_bytes(16)
        self._begun = seconds()
        #: Those since `_begun`, and those of the time before.
        self._new: set[int] = set()
        self._old: set[int] = set()

    def add(self, digest: Digest, mark: Mark) -> None:
        """What was read of the file since it had this mark is all of it, and is right."""
        if self._now_ns() - mark.changed_ns > _SETTLED_NS:
            self._turn()
            self._new.add(hash((self._secret, digest.raw, mark)))

    def knows(self, digest: Digest, mark: Mark) -> bool:
        """Whether the file with this mark was right, not long ago."""
        self._turn()
        key = hash((self._secret, digest.raw, mark))
        return key in self._new or key in self._old

    def _turn(self) -> None:
        age = self._seconds() - self._begun
        if age < FRESH_SECONDS / 2 and len(self._new) < self._limit:
            return
        self._old = self._new if age < FRESH_SECONDS else set()
        self._new = set()
        self._begun = self._seconds()
