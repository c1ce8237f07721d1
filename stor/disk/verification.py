"""Copies that are read whole, one after the other and a part at a time, and what that shows."""

import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import attrs

from stor.digest import Digest, Hasher
from stor.disk.copy import OpenCopy
from stor.disk.disk import Disk
from stor.disk.walk import WalkedSample
from stor.errors import Damaged

#: What is read in one go: some 10 ms of a hard disk, for which a client may have to wait.
PART_BYTES = 1024 * 1024

#: A part ends after this long: reading small samples takes longer than their size suggests.
PART_SECONDS = 0.05


class Gone(Damaged):
    """A copy that had its name a moment ago has not any more."""


@attrs.frozen
class Verdict:
    """What was found out of a copy; `error` says what is wrong with it, if anything."""

    sample: WalkedSample
    error: Damaged | OSError | None = None


@attrs.frozen
class Part:
    """What one go has read, and the copies that it came to the end of. `ended`: no more is left."""

    read_bytes: int
    verdicts: tuple[Verdict, ...]
    ended: bool


class Verification:
    """Reads the copies of samples on one disk, from the disk itself, and keeps none in memory.

    Plain blocking Python, one call at a time. A copy that is right gets the block sums that it
    lacks. `close` gives back what is open.
    """

    def __init__(
        self,
        disk: Disk,
        samples: Iterable[WalkedSample],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._samples = iter(samples)
        self._seconds = seconds
        self._current: _Reading | None = None

    @property
    def reading(self) -> bool:
        """Whether a copy is open."""
        return self._current is not None

    def go_on(self, most_bytes: int = PART_BYTES, most_samples: int | None = None) -> Part:
        """Read the next part, which is limited in bytes, samples and time. Raises `DiskAway`."""
        begun, read = self._seconds(), 0
        verdicts: list[Verdict] = []
        while read < most_bytes and self._seconds() - begun < PART_SECONDS:
            if len(verdicts) == most_samples:
                break
            reading = self._current or self._next()
            if reading is None:
                return Part(read, tuple(verdicts), ended=True)
            self._current = reading
            try:
                read += reading.go_on(most_bytes - read)
            except (Damaged, OSError) as error:
                verdicts.append(Verdict(reading.sample, error))
                self.close()
            except BaseException:
                self.close()
                raise
            else:
                if reading.ended:
                    verdicts.append(Verdict(reading.sample))
                    self.close()
        return Part(read, tuple(verdicts), ended=False)

    def close(self) -> None:
        """Give back what is open."""
        if self._current is not None:
            self._current.close()
        self._current = None

    def _next(self) -> "_Reading | None":
        sample = next(self._samples, None)
        return None if sample is None else _Reading(self._disk, sample)


class _Reading:
    """One copy, from its beginning to its end."""

    def __init__(self, disk: Disk, sample: WalkedSample) -> None:
        self._disk = disk
        self.sample = sample
        self._opened: OpenCopy | None = None
        self._hasher: Hasher = hashlib.sha256()
        self._offset = 0
        self.ended = False

    def go_on(self, most_bytes: int) -> int:
        """Read on: how many bytes. Raises `Damaged`, `DiskAway`, `OSError`."""
        opened = self._opened or self._open()
        length = min(most_bytes, opened.copy.size - self._offset)
        opened.read(self._offset, length, self._hasher)
        self._offset += length
        self.ended = self._offset == opened.copy.size
        return length

    def close(self) -> None:
        """Give the descriptor back, and the memory of what was read."""
        if self._opened is not None:
            with suppress(OSError):  # nothing of the sample is at stake
                self._forget(self._opened)
            self._opened.close()

    def _open(self) -> OpenCopy:
        digest = Digest(self.sample.sha)
        opened = self._disk.open_whole(digest)
        if opened is None:
            raise Gone(f"{self._disk.root}/{digest.disk_path}: it was gone")
        self._opened = opened
        # What is in memory may be right where the disk is not.
        self._forget(opened)
        return opened

    def _forget(self, opened: OpenCopy) -> None:
        if opened.fd is not None:
            self._disk.files.forget_cached(opened.fd)
