"""Memory that the processes of one Stor share."""

import mmap
import os
import struct
import zlib

#: A value with its number and its length, before its bytes: two of them make a record.
_HEADER = struct.Struct("<QQI4x")

#: How often a value that is being replaced is read again.
_TRIES = 3


class Record:
    """The latest value that one process has published for all.

    Values take turns in two slots, each with a number that grows and a checksum over all of it. A
    reader that is overtaken by two new values, and a process that is killed while it publishes,
    leave a checksum that is wrong; the other slot then has the latest whole value.
    """

    def __init__(self, memory: memoryview) -> None:
        """`memory` is the record's part of what is shared, zeroed at first."""
        half = len(memory) // 2
        self._slots = (memory[:half], memory[half:])
        self._limit_bytes = half - _HEADER.size

    def publish(self, value: bytes) -> None:
        """Replace the latest value. One process at a time. Raises `ValueError` when too large."""
        if len(value) > self._limit_bytes:
            raise ValueError(f"{len(value)} bytes, at most {self._limit_bytes} can be shared")
        latest = self.read()
        number = 1 if latest is None else latest[0] + 1
        slot = self._slots[number % 2]
        slot[_HEADER.size : _HEADER.size + len(value)] = value
        slot[: _HEADER.size] = _HEADER.pack(number, len(value), _checksum(number, value))

    def read(self, after: int = 0) -> tuple[int, bytes] | None:
        """The latest value and its number.

        `None` when none is newer than `after`, or none is whole.
        """
        for _ in range(_TRIES):
            headers = [_HEADER.unpack_from(slot) for slot in self._slots]
            # A slot that is not whole may have any number.
            for slot, (number, length, checksum) in sorted(
                zip(self._slots, headers, strict=True), key=lambda one: one[1], reverse=True
            ):
                if number == after:
                    return None
                if number == 0 or length > self._limit_bytes:
                    continue
                value = bytes(slot[_HEADER.size : _HEADER.size + length])
                if _checksum(number, value) == checksum:
                    return number, value
        return None


class Number:
    """A number that one process writes, whole, and all read."""

    def __init__(self, words: memoryview | None = None, place: int = 0) -> None:
        """`words` are those that are shared; without them the number is this process's own."""
        self._words = memoryview(bytearray(8)).cast("q") if words is None else words
        self._place = place

    @property
    def value(self) -> int:
        """What was written last."""
        return int(self._words[self._place])

    @value.setter
    def value(self, value: int) -> None:
        self._words[self._place] = value


class Count:
    """How many there are of something: in this process, and in all of a Stor."""

    def __init__(self, numbers: "list[Number] | None" = None, place: int = 0) -> None:
        """`numbers` are those of all processes; this one writes the one at `place`."""
        self._numbers = numbers or [Number()]
        self._own = self._numbers[place]

    @property
    def mine(self) -> int:
        """In this process."""
        return self._own.value

    @mine.setter
    def mine(self, number: int) -> None:
        self._own.value = number

    @property
    def total(self) -> int:
        """In all processes."""
        return sum(number.value for number in self._numbers)

    @property
    def ahead(self) -> bool:
        """Whether this process has more than another one."""
        return self.mine > min(number.value for number in self._numbers)


def make(size_bytes: int) -> int:
    """The descriptor of new memory, zeroed. Pages that nobody writes take no memory."""
    fd = os.memfd_create("stor", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes)
    return fd


def mapped(fd: int) -> memoryview:
    """What is behind the descriptor of shared memory."""
    return memoryview(mmap.mmap(fd, os.fstat(fd).st_size))


def _checksum(number: int, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(_HEADER.pack(number, len(value), 0)))
