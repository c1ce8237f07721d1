"""Turns with a sample among processes. Implements `stor.turns.Turns`."""

import fcntl
import mmap
import os
from collections import Counter
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from stor.digest import Digest
from stor.errors import Unavailable
from stor.threads import settle
from stor.turns import Change

#: A process whose turn it is not asks again after so long.
RETRY_SECONDS = 0.005

#: A process that has waited for so long gives up: a disk may hang in another's turn.
PATIENCE_SECONDS = 30.0

#: Samples share numbers of changes: one that grows for another sample costs one more look.
_CHANGES = 4096

_ROW_BYTES = _CHANGES * 8


class ProcessTurns:
    """A turn is a lock of one byte of a file that all processes have open, at the digest's place.

    The kernel gives it to one process (fcntl(2), F_SETLK), and takes it back when that one ends,
    however it ends. In that file each process also counts the changes it has made.
    """

    def __init__(self, fd: int, process: int, processes: int, clock: IReactorTime) -> None:
        """`process` is this one's number. `fd` is never to be closed, nor this to be dropped.

        All locks of a process go with the first descriptor of the file that it closes (fcntl(2)),
        and a mapping has one of its own.
        """
        self._fd = fd
        self._clock = clock
        self._mine = process
        self._counts = memoryview(mmap.mmap(fd, processes * _ROW_BYTES)).cast("q")
        #: How many in this process are in their turn with a byte.
        self._held: Counter[int] = Counter()

    @staticmethod
    def make(processes: int) -> int:
        """The descriptor of a new file of turns."""
        fd = os.memfd_create("stor-turns", os.MFD_CLOEXEC)
        os.ftruncate(fd, processes * _ROW_BYTES)
        return fd

    async def take(self, digest: Digest) -> None:
        """See `Turns.take`."""
        byte = _byte(digest)
        deadline = self._clock.seconds() + PATIENCE_SECONDS
        while not self._held[byte] and not self._lock(byte):
            if self._clock.seconds() > deadline:
                raise Unavailable("the sample is being stored, by a process that does not get on")
            await deferLater(self._clock, RETRY_SECONDS)
        self._held[byte] += 1

    def give_back(self, digest: Digest) -> None:
        """See `Turns.give_back`."""
        byte = _byte(digest)
        self._held[byte] -= 1
        if not self._held[byte]:
            del self._held[byte]
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)

    def end(self, digest: Digest, changes: Sequence[Change]) -> None:
        """See `Turns.end`."""
        over = [Deferred.fromCoroutine(change.over()) for change in changes]

        def ended(_: object) -> None:
            self._counts[self._mine * _CHANGES + _number(digest)] += 1
            self.give_back(digest)

        Deferred.fromCoroutine(settle(over)).addCallback(ended)

    def seen(self, digest: Digest) -> int:
        """See `Turns.seen`."""
        number = _number(digest)
        return sum(self._counts[number::_CHANGES]) - self._counts[self._mine * _CHANGES + number]

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError:
            return False
        return True


def _byte(digest: Digest) -> int:
    # Offsets are signed, and one more has to fit.
    return int.from_bytes(digest.raw[:8]) >> 2


def _number(digest: Digest) -> int:
    return int.from_bytes(digest.raw[8:10]) % _CHANGES
