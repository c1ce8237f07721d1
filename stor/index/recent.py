"""What came since the table was made: a log in shared memory, and what a process knows from it."""

import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

import attrs

from stor.index import memory

#: How many processes may read beside the one that writes.
READERS_LIMIT = 256

_MAGIC = int.from_bytes(b"STORRCN1", "little")
#: The words of the header, of 64 bits each, then one for each reader.
_MAGIC_WORD, _PUBLISHED_WORD, _FIRST_WORD = range(3)
_READER_WORDS = 8
#: What a reader says before it knows any table; without a reader it is 0.
_KNOWS_NOTHING = 1

_HEADER_BYTES = 65536
#: Where the secret of the host is in the header.
SECRET_OFFSET = 32768

#: sha, a number, set, kind.
_RECORD = struct.Struct("<32sQHH")
_CHECKSUM = struct.Struct("<I")
RECORD_BYTES = _RECORD.size + _CHECKSUM.size

#: The memory grows by this many records, which are mapped together.
_PART_RECORDS = 65536
_PART_BYTES = _PART_RECORDS * RECORD_BYTES

#: How often a record that seems to be half written is read again.
_ATTEMPTS = 1000
_ATTEMPT_SECONDS = 0.001


class Event(IntEnum):
    """What a record tells."""

    HELD = 1  # a set holds a name from now on
    LEFT = 2  # and no longer
    SET = 3  # the UUID of the set with this number
    COMPLETE = 4  # what the index says of a set is all that it holds
    INCOMPLETE = 5  # no longer
    BEGIN = 6  # a table is made from all records below; what else they told follows once more
    TABLE = 7  # the generation of the table to use


class RecentDamaged(Exception):
    """What other processes have written cannot be read."""


class Named(NamedTuple):
    """A name that a set holds, or holds no longer."""

    sha: bytes
    set_number: int
    held: bool


class _Log:
    """The records in the memory `fd`, mapped as they are needed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._header = memory.mapped(fd, _HEADER_BYTES)
        #: One store writes a whole word: no process reads half of one.
        self.words = memoryview(self._header).cast("Q")
        if self.words[_MAGIC_WORD] != _MAGIC:
            raise RecentDamaged("the shared memory is of another version")
        self._mapped: dict[int, mmap.mmap] = {}

    def close(self) -> None:
        self.words.release()
        self._header.close()
        self.unmap(2**63)

    def unmap(self, end: int) -> None:
        """Records below `end` are not needed any more."""
        for part in [part for part in self._mapped if (part + 1) * _PART_RECORDS <= end]:
            self._mapped.pop(part).close()

    def read(self, number: int) -> tuple[bytes, int, int, int] | None:
        """A record, `None` when it was dropped. Raises `RecentDamaged`."""
        for _ in range(_ATTEMPTS):
            if number < self.words[_FIRST_WORD]:
                return None
            mapping, offset = self._place(number)
            data = mapping[offset : offset + RECORD_BYTES]
            (checksum,) = _CHECKSUM.unpack_from(data, _RECORD.size)
            if zlib.crc32(data[: _RECORD.size], number & 0xFFFFFFFF) == checksum:
                return _RECORD.unpack_from(data)
            # This processor has not seen all yet that another has written.
            time.sleep(_ATTEMPT_SECONDS)
        raise RecentDamaged(f"recent name {number} is damaged")

    def append(self, sha: bytes, value: int, set_number: int, kind: Event) -> int:
        """The number of a new record, which counts when this returns."""
        number = self.words[_PUBLISHED_WORD]
        data = _RECORD.pack(sha, value, set_number, kind)
        end = _HEADER_BYTES + (number // _PART_RECORDS + 1) * _PART_BYTES
        if number % _PART_RECORDS == 0 and os.fstat(self.fd).st_size < end:
            os.ftruncate(self.fd, end)
        mapping, offset = self._place(number)
        checksum = _CHECKSUM.pack(zlib.crc32(data, number & 0xFFFFFFFF))
        mapping[offset : offset + RECORD_BYTES] = data + checksum
        self.words[_PUBLISHED_WORD] = number + 1
        return number

    def drop(self, end: int) -> None:
        """Give back the memory of records below `end`."""
        first = self.words[_FIRST_WORD]
        self.words[_FIRST_WORD] = max(first, end)
        self.unmap(end)
        for part in range(first // _PART_RECORDS, end // _PART_RECORDS):
            mapping, _ = self._place(part * _PART_RECORDS)
            mapping.madvise(mmap.MADV_REMOVE)
        self.unmap(end)

    def _place(self, number: int) -> tuple[mmap.mmap, int]:
        part, at = divmod(number, _PART_RECORDS)
        mapping = self._mapped.get(part)
        if mapping is None:
            begin = _HEADER_BYTES + part * _PART_BYTES
            mapping = self._mapped[part] = memory.mapped(self.fd, _PART_BYTES, begin)
        return mapping, at * RECORD_BYTES


@attrs.define
class _Part:
    """What came from one `BEGIN` to the next: the events of each name, oldest first.

    An event is the number of a set, doubled, and one more where the set holds the name.
    """

    begin: int
    end: int = 0
    names: dict[bytes, tuple[int, ...]] = attrs.field(factory=dict)
    #: How many names each set has gained.
    gained: dict[int, int] = attrs.field(factory=dict)

    def add(self, number: int, sha: bytes, set_number: int, held: bool) -> None:
        self.names[sha] = (*self.names.get(sha, ()), set_number << 1 | held)
        self.gained[set_number] = self.gained.get(set_number, 0) + (1 if held else -1)
        self.end = number + 1


class Recent:
    """The log, as one process knows it. One process writes, others read; not for several threads.

    Records are only ever appended, each with a checksum, and count once the number of them is
    written, which is last. So a reader that finds this number unchanged knows all. The records
    that a table was made from are dropped once every living reader has confirmed that table. The
    memory outlives its processes: the next writer takes over where the last one ended.
    """

    def __init__(self, fd: int, reader: int | None = None) -> None:
        """`fd` is what `create` made; `reader` is this process's number, `None` for the writer.

        Raises `RecentDamaged`.
        """
        self._log = _Log(fd)
        self._words = self._log.words
        self._reader = reader
        #: The UUIDs of all sets, by their numbers.
        self.sets: list[str] = []
        #: The numbers of the sets of which the index knows all that they hold.
        self.complete: frozenset[int] = frozenset()
        #: The table to use; 0: none.
        self.generation = 0
        if reader is not None:
            self._words[_READER_WORDS + reader] = _KNOWS_NOTHING
        self._seen = self._words[_FIRST_WORD]
        self._parts = [_Part(self._seen)]
        self.refresh()

    @staticmethod
    def create(secret: bytes) -> int:
        """The memory of an empty log, as a descriptor that child processes may inherit."""
        fd = memory.create("stor-recent")
        os.ftruncate(fd, _HEADER_BYTES)
        os.pwrite(fd, _MAGIC.to_bytes(8, "little"), 0)
        os.pwrite(fd, secret, SECRET_OFFSET)
        return fd

    def close(self) -> None:
        """Give the memory back."""
        self._log.close()

    @property
    def published(self) -> int:
        """How many records there are, those that were dropped included."""
        return self._words[_PUBLISHED_WORD]

    @property
    def first(self) -> int:
        """How many of them were dropped."""
        return self._words[_FIRST_WORD]

    @property
    def names(self) -> int:
        """How many names this process knows from the log."""
        return sum(len(part.names) for part in self._parts)

    def refresh(self) -> bool:
        """Learn what is new; whether anything is. Raises `RecentDamaged`."""
        published = self._words[_PUBLISHED_WORD]
        if published == self._seen:
            return False
        while self._seen < published:
            data = self._log.read(self._seen)
            if data is None:  # dropped before this process has begun: what counts follows
                self._seen = self.first
                continue
            self._learn(self._seen, *data)
            self._seen += 1
        return True

    def events(self, sha: bytes) -> tuple[int, ...]:
        """What came of a name, oldest first; for `applied`."""
        found: tuple[int, ...] = ()
        for part in self._parts:
            events = part.names.get(sha)
            if events is not None:
                found = found + events if found else events
        return found

    def gained(self, set_number: int) -> int:
        """How many more names a set has than the table has of it."""
        return sum(part.gained.get(set_number, 0) for part in self._parts)

    def uses(self, generation: int, recent: int) -> None:
        """A table is in use in this process, made from the records below `recent`."""
        kept = []
        for part in self._parts:
            if part.begin >= recent:
                kept.append(part)
            elif part.end > recent:
                kept.append(self._cut(part, recent))
        self._seen = max(self._seen, recent)
        self._parts = kept or [_Part(self._seen)]
        self._log.unmap(recent)
        if self._reader is not None:
            self._words[_READER_WORDS + self._reader] = generation + 1

    # What follows is for the writer.

    def add(self, sha: bytes, set_number: int, *, held: bool) -> None:
        """A set holds a name from now on, or no longer. All processes know when this returns."""
        self._append(sha, 0, set_number, Event.HELD if held else Event.LEFT)

    def add_set(self, uuid: str) -> int:
        """The number of a set that has none yet."""
        number = len(self.sets)
        self._append(_padded(uuid), 0, number, Event.SET)
        return number

    def set_complete(self, set_number: int, complete: bool) -> None:
        """Whether the index knows all that a set holds."""
        kind = Event.COMPLETE if complete else Event.INCOMPLETE
        self._append(bytes(32), 0, set_number, kind)

    def begin_table(self) -> int:
        """A merge begins of all records below the number that this returns."""
        recent = self._append(bytes(32), 0, 0, Event.BEGIN)
        for number, uuid in enumerate(self.sets):
            self._append(_padded(uuid), 0, number, Event.SET)
            self.set_complete(number, number in self.complete)
        return recent

    def publish_table(self, generation: int) -> None:
        """There is a table that all processes are to use from now on."""
        self._append(bytes(32), generation, 0, Event.TABLE)

    def confirmed(self, generation: int) -> bool:
        """Whether all living readers use this table or a newer one."""
        words = self._words[_READER_WORDS : _READER_WORDS + READERS_LIMIT]
        return all(word == 0 or word > generation for word in words)

    def drop(self, recent: int) -> None:
        """No process needs the records below `recent` any more: see `confirmed`."""
        self._log.drop(recent)

    def _append(self, sha: bytes, value: int, set_number: int, kind: Event) -> int:
        number = self._log.append(sha, value, set_number, kind)
        self._learn(number, sha, value, set_number, kind)
        self._seen = number + 1
        return number

    def _learn(self, number: int, sha: bytes, value: int, set_number: int, kind: int) -> None:
        if kind in (Event.HELD, Event.LEFT):
            self._parts[-1].add(number, sha, set_number, kind == Event.HELD)
        elif kind == Event.BEGIN:
            self._parts.append(_Part(number))
        elif kind == Event.SET:
            uuid = str(UUID(bytes=sha[:16]))
            if set_number == len(self.sets):
                self.sets.append(uuid)
            elif self.sets[set_number] != uuid:
                raise RecentDamaged(f"set {set_number} is {uuid} and {self.sets[set_number]}")
        elif kind == Event.COMPLETE:
            self.complete |= {set_number}
        elif kind == Event.INCOMPLETE:
            self.complete -= {set_number}
        elif kind == Event.TABLE:
            self.generation = value
        else:
            raise RecentDamaged(f"recent name {number} is of an unknown kind, {kind}")

    def _cut(self, part: _Part, recent: int) -> _Part:
        """A part without the records below `recent`."""
        kept = _Part(recent)
        for number in range(recent, part.end):
            data = self._log.read(number)
            if data is not None and data[3] in (Event.HELD, Event.LEFT):
                kept.add(number, data[0], data[2], data[3] == Event.HELD)
        return kept


def reader_offset(reader: int) -> int:
    """Where in the memory a reader says what it knows: one word, 0 when there is none."""
    return 8 * (_READER_WORDS + reader)


def named(fd: int, first: int, end: int) -> Iterator[Named]:
    """What the records from `first` to `end`, without that, say of names.

    Raises `RecentDamaged`.
    """
    log = _Log(fd)
    try:
        for number in range(first, end):
            data = log.read(number)
            if data is None:
                raise RecentDamaged(f"recent name {number} was dropped")
            if data[3] in (Event.HELD, Event.LEFT):
                yield Named(data[0], data[2], data[3] == Event.HELD)
    finally:
        log.close()


def applied(events: Iterable[int], sets: tuple[int, ...]) -> tuple[int, ...]:
    """The sets that hold a name which `sets` held before these events, the newest first."""
    for event in events:
        number = event >> 1
        others = tuple([other for other in sets if other != number])
        sets = (number, *others) if event & 1 else others
    return sets


def _padded(uuid: str) -> bytes:
    return UUID(uuid).bytes.ljust(32, b"\0")
