"""Samples that are read whole into memory, one after the other, to be put elsewhere."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import attrs

from stor.digest import Digest, Hasher
from stor.disk.copy import OpenCopy
from stor.disk.disk import Disk
from stor.disk.verification import PART_SECONDS
from stor.errors import Damaged


@attrs.frozen
class Loaded:
    """A sample in memory, which has the SHA-256 of its name."""

    digest: Digest
    content: bytes
    modified_ns: int


@attrs.frozen
class LoadedPart:
    """What one go has read.

    `large` are larger than may be loaded, and were not read; `bad` have no copy there that is
    right and can be read. `ended`: no more is left.
    """

    samples: tuple[Loaded, ...]
    large: tuple[Digest, ...]
    bad: tuple[Digest, ...]
    ended: bool

    @property
    def read_bytes(self) -> int:
        """How much it was."""
        return sum(len(sample.content) for sample in self.samples)


class Loading:
    """Reads samples on one disk in the order given, and keeps nothing in the kernel's memory.

    Plain blocking Python, one call at a time; nothing is open between calls.
    """

    def __init__(
        self,
        disk: Disk,
        digests: Iterable[Digest],
        most_bytes: int,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`most_bytes` is the size of the largest sample that is loaded."""
        self._disk = disk
        self._todo = deque(digests)
        self._most_bytes = most_bytes
        self._seconds = seconds

    def go_on(self, part_bytes: int, room_bytes: int, room_samples: int) -> LoadedPart:
        """Read on, until it is `part_bytes`, or took a moment, or the room is used up.

        Raises `DiskAway`.
        """
        begun, read = self._seconds(), 0
        samples: list[Loaded] = []
        large: list[Digest] = []
        bad: list[Digest] = []
        while self._todo and read < part_bytes and len(samples) < room_samples:
            digest = self._todo.popleft()
            try:
                opened = self._disk.open_whole(digest)
                if opened is None:
                    bad.append(digest)
                    continue
                try:
                    size = opened.copy.size
                    if size > self._most_bytes:
                        large.append(digest)
                    elif size > room_bytes - read:
                        self._todo.appendleft(digest)
                        break
                    else:
                        samples.append(self._load(opened))
                        read += size
                finally:
                    opened.close()
            except (Damaged, OSError):  # whoever mends it finds out what it is
                bad.append(digest)
            if self._seconds() - begun >= PART_SECONDS:
                break
        return LoadedPart(tuple(samples), tuple(large), tuple(bad), ended=not self._todo)

    def _load(self, opened: OpenCopy) -> Loaded:
        content = opened.read(0, opened.copy.size, hashlib.sha256())
        _forget(self._disk, opened)
        return Loaded(opened.digest, content, opened.copy.modified_ns)


class Streaming:
    """Reads one large sample from its beginning to its end. Blocking; `close` in the end."""

    def __init__(self, disk: Disk, digest: Digest) -> None:
        """Raises `Damaged`, `DiskAway`, `OSError`."""
        opened = disk.open_whole(digest)
        if opened is None:
            raise Damaged(f"{disk.root}/{digest.disk_path}: it was gone")
        self._disk = disk
        self._opened = opened
        self._hasher: Hasher = hashlib.sha256()
        self._offset = 0
        self.digest = digest
        self.size = opened.copy.size
        self.modified_ns = opened.copy.modified_ns

    @property
    def ended(self) -> bool:
        """Whether all was read; then its hash is right."""
        return self._offset == self.size

    def go_on(self, most_bytes: int) -> bytes:
        """The next part. Raises `Damaged`, also instead of the last part, and `OSError`."""
        length = min(most_bytes, self.size - self._offset)
        data = self._opened.read(self._offset, length, self._hasher)
        self._offset += length
        return data

    def close(self) -> None:
        """Give the descriptor back, and the memory of what was read."""
        _forget(self._disk, self._opened)
        self._opened.close()


def _forget(disk: Disk, opened: OpenCopy) -> None:
    if opened.fd is not None:
        with suppress(OSError):  # nothing of the sample is at stake
            disk.files.forget_cached(opened.fd)
