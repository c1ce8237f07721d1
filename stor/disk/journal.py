"""What happened to the names on one disk, in order: `.stor/index/journal-N`."""

import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from threading import Lock
from typing import NamedTuple
from uuid import UUID

from stor.disk.disk import INDEX_DIRECTORY, Disk, write_all

#: After that many records a segment is followed by the next: 5 MB, which fit into memory.
SEGMENT_RECORDS = 65536

_MAGIC = b"STORJRNL"
_VERSION = 2

#: magic, version, number, UUID of the disk, highest sequence number before, records before, time,
#: lowest sequence number from here on.
_HEADER = struct.Struct("<8sIQ16sQIQQ")
_HEADER_BYTES = _HEADER.size + 4

#: sha, sequence number, size, inode, time, records known to be durable, kind.
_RECORD = struct.Struct("<32sQQQQII")
RECORD_BYTES = _RECORD.size + 4

_CHECKSUM = struct.Struct("<I")
_NAME = "journal-"
_NEW_PATH = f"{INDEX_DIRECTORY}/journal.new"


class Kind(IntEnum):
    """What happened to a name."""

    STORED = 1  # by a client
    MOVED = 2  # from another set
    FOUND = 3  # on the disk, where the index did not know it
    LEFT = 4  # the name is gone
    UNSTORED = 5  # the name was never made: its upload has not ended

    @property
    def is_gone(self) -> bool:
        """Whether there is no such name from then on."""
        return self in (Kind.LEFT, Kind.UNSTORED)


_KINDS = {int(kind): kind for kind in Kind}


class Record(NamedTuple):
    """One thing that happened. `sequence` is the same on all disks of the set."""

    sha: bytes
    sequence: int
    size: int
    inode: int
    time_ns: int
    kind: Kind


class Event(NamedTuple):
    """What is about to happen to a name: its records on all disks of the set say so.

    Whatever has a number below `low` has ended.
    """

    sequence: int
    time_ns: int
    kind: Kind
    low: int


class Position(NamedTuple):
    """A place in a journal: a segment, and how many of its records lie before."""

    segment: int
    records: int


class JournalDamaged(Exception):
    """A segment cannot be read as one of this disk's."""


class _Header(NamedTuple):
    #: Of the records in the segments before.
    highest: int
    #: How many records of the segment before count.
    previous: int
    time_ns: int
    #: No record from here on has a lower sequence number, unless nothing came of it. In the first
    #: segment of all, 0 says that the disk was empty before, as all of its set were.
    low: int


class Journal:
    """A disk's journal: segments that are only ever appended to, numbered without a gap.

    The order that makes a record count: `append`, a sync (`sync`, or one of the whole file
    system), `synced`; only then may the name be made. Opening writes nothing. A crash leaves
    every record that was synced; records that were not may be there or not, in any order, and
    what is torn at the end is cut off: the segment that begins next says how many records count.
    What is wrong before that end is said in `damage`, when it is met; then the disk may hold names
    that the journal does not know.

    Blocking. Appending and `synced` may happen in two threads; reading is done in one of them or
    in another process.
    """

    def __init__(self, disk: Disk, uuid: str, covered: int = 0) -> None:
        """An empty journal; see `open`."""
        self._disk = disk
        self._uuid = UUID(uuid).bytes
        self._lock = Lock()
        #: The numbers of the first and of the last segment on the disk; none: one is begun next.
        self._first = covered + 1
        self._last = covered
        #: Of the last segment: how many records it has, and how many are known to be durable.
        self._count = 0
        self._durable = 0
        #: Whether the next record goes into a new segment.
        self._closed = True
        #: Segments that a failure has closed, with the number of records that count.
        self._cut: dict[int, int] = {}
        #: Those that were read, by number.
        self._headers: dict[int, _Header] = {}
        #: The highest sequence number in the journal.
        self.highest = 0
        #: Whether something that is no record was behind its end: it may have been one.
        self.torn = False
        #: Why the journal does not tell all that happened, `None` as far as is known.
        self.damage: str | None = None

    @classmethod
    def open(cls, disk: Disk, uuid: str, root_fd: int, covered: int = 0) -> "Journal":
        """The journal of the disk with this UUID, of which the base covers this many segments.

        Raises `OSError`.
        """
        journal = cls(disk, uuid, covered)
        numbers = _numbers(disk, root_fd)
        last = max(numbers, default=0)
        if last < covered:
            journal._damaged(f"it ends with segment {last}, the base covers {covered}")
        elif numbers:
            journal._last, journal._first = last, min(covered + 1, last)
            while journal._first - 1 in numbers:
                journal._first -= 1
            missing = set(range(journal._first, last)) - numbers
            if missing:
                journal._damaged(f"segment {min(missing)} is missing")
            journal._find_end(root_fd)
        return journal

    @property
    def end(self) -> Position:
        """Where the journal ends."""
        return Position(self._last, self._count)

    @property
    def durable(self) -> Position:
        """How far the journal is known to be on stable storage."""
        return Position(self._last, self._durable)

    @property
    def sealed(self) -> int:
        """The last segment that is not appended to any more; 0: there is none."""
        return self._last - 1

    @property
    def first(self) -> int:
        """The oldest segment that is still there."""
        return self._first

    def append(self, records: Sequence[Record], root_fd: int, low: int = 0) -> Position:
        """Append records with one write; where they end. Raises `OSError`: then none counts.

        Whatever has a number below `low` has ended; 0: that is not known.
        """
        with self._lock:
            if self._closed or self._count >= SEGMENT_RECORDS:
                self._begin(root_fd, low)
            try:
                self._write(records, root_fd, low)
            except BaseException:
                # Part of it may be there: nothing is appended behind that.
                self._closed = True
                raise
            self._count += len(records)
            for record in records:
                self.highest = max(self.highest, record.sequence)
            return Position(self._last, self._count)

    def sync(self, root_fd: int) -> None:
        """Bring what was appended to stable storage. Raises `OSError`: then see `failed`."""
        self._sync(self._last, root_fd)

    def synced(self, position: Position) -> None:
        """All records before `position` are on stable storage.

        Raises `OSError` when some before them are not: then these do not count either.
        """
        with self._lock:
            if position.records > self._cut.get(position.segment, position.records):
                raise OSError("records of the journal before these were lost")
            if position.segment == self._last:
                self._durable = max(self._durable, position.records)

    def failed(self) -> None:
        """A sync has failed: what it was to bring to stable storage does not count.

        The kernel tells of a lost write once (fsync(2)); the segment is not synced again.
        """
        with self._lock:
            if self._count > self._durable:
                self._lose()

    def rotate(self, root_fd: int) -> None:
        """Begin a new segment, so that all that was appended before is in `sealed` ones.

        Raises `OSError`.
        """
        with self._lock:
            if self._count:
                self._begin(root_fd, 0)

    def records(self, root_fd: int, after: int = 0) -> Iterator[Record]:
        """The records with a sequence number above `after`, in the order of the journal.

        Raises `OSError`. Damage that is met is left out, and said in `damage`.
        """
        begin = self.first_after(after, root_fd) or self._first
        for number in range(begin, self._last + 1):
            for record in self.segment(number, root_fd):
                if record.sequence > after:
                    yield record

    def first_after(self, after: int, root_fd: int) -> int | None:
        """The segment from which on all records have a sequence number above `after`, or may.

        `None`: some of them were removed. Raises `OSError`.
        """
        if not self.reaches(after, root_fd):
            return None
        begin = max(self._first, self._last)
        while begin > self._first and self._before(begin, root_fd) > after:
            begin -= 1
        return begin

    def tells(self, after: int, root_fd: int) -> bool:
        """Whether it tells of all that was stored with a sequence number above `after`.

        What was on the disk before its journal is no news. Raises `OSError`.
        """
        if self._first > self._last:
            return False
        header = self._header(self._first, root_fd)
        if header is None:
            return False
        return header.highest <= after if self._first > 1 else header.low <= after + 1

    def stored(self, after: int, last: int, limit: int, root_fd: int) -> list[Record]:
        """What clients stored with sequence numbers above `after`, up to `last`.

        At least the lowest `limit` of them, in any order. Raises `OSError`.
        """
        found: list[Record] = []
        for number in range(self.first_after(after, root_fd) or self._first, self._last + 1):
            found += [
                record
                for record in self.segment(number, root_fd)
                if record.kind is Kind.STORED and after < record.sequence <= last
            ]
            if len(found) > limit and number < self._last:
                found.sort(key=lambda record: record.sequence)
                header = self._header(number + 1, root_fd)
                if header is not None and found[limit].sequence < header.low:
                    break
        return found

    def newest(self, sha: bytes, root_fd: int) -> Record | None:
        """The last record of a name, as far back as there are segments. Raises `OSError`."""
        for number in range(self._last, self._first - 1, -1):
            try:
                if sha not in self._bytes(number, root_fd):
                    continue
            except JournalDamaged as error:
                self._damaged(str(error))
                continue
            found = [record for record in self.segment(number, root_fd) if record.sha == sha]
            if found:
                return found[-1]
        return None

    def reaches(self, after: int, root_fd: int) -> bool:
        """Whether it has all records with a sequence number above `after`. Raises `OSError`."""
        if self._first > self._last:
            return self._first == 1
        header = self._header(self._first, root_fd)
        return self._first == 1 or (header is not None and header.highest <= after)

    def segment(self, number: int, root_fd: int) -> list[Record]:
        """The records of one segment. Raises `OSError`; damage is as in `records`."""
        count: int | None = self._count
        if number != self._last:
            header = self._header(number + 1, root_fd)
            count = None if header is None else header.previous
        try:
            read = self._read(number, root_fd)[:count]
        except JournalDamaged as error:
            self._damaged(str(error))
            return []
        good = [record for record, _ in filter(None, read)]
        if count is not None and len(good) < count:
            self._damaged(f"segment {number} has {len(good)} good records of {count}")
        return good

    def remove(self, before_ns: int, covered: int, root_fd: int) -> None:
        """Remove segments with no record younger than `before_ns` that the base covers.

        A crash leaves some of them. Raises `OSError`.
        """
        while self._first <= min(covered, self.sealed):
            header = self._header(self._first + 1, root_fd)
            if header is None or header.time_ns >= before_ns:
                return
            self._disk.files.unlink(_path(self._first), root_fd)
            self._headers.pop(self._first, None)
            self._first += 1

    def stored_bytes(self, root_fd: int) -> int:
        """How large all segments are. Raises `OSError`."""
        numbers = _numbers(self._disk, root_fd)
        return sum(self._disk.files.stat(_path(number), root_fd).st_size for number in numbers)

    def _begin(self, root_fd: int, low: int) -> None:
        """Begin a segment, which has its name once its header is durable."""
        # Whatever fails from here on: the header may be there, and say what counts before it.
        self._closed = True
        if self._last >= self._first and self._durable < self._count:
            try:
                self._sync(self._last, root_fd)
            except OSError:
                self._lose()
                raise
            self._durable = self._count
        number, files = self._last + 1, self._disk.files
        header = _Header(self.highest, self._count, time.time_ns(), low)
        data = _HEADER.pack(_MAGIC, _VERSION, number, self._uuid, *header)
        with suppress(FileNotFoundError):  # the usual case: no crash has left one
            files.unlink(_NEW_PATH, root_fd)
        fd = self._disk.in_own_directory(root_fd, lambda: files.create(_NEW_PATH, root_fd))
        try:
            write_all(files, fd, data + _CHECKSUM.pack(zlib.crc32(data)))
            files.sync(fd)
        finally:
            files.close(fd)
        files.rename(_NEW_PATH, _path(number), root_fd)
        self._disk.sync_directory(INDEX_DIRECTORY, root_fd)
        self._headers[number] = header
        self._last, self._count, self._durable, self._closed = number, 0, 0, False

    def _lose(self) -> None:
        """What is not known to be durable in the last segment does not count."""
        self._count = self._cut[self._last] = self._durable
        self._closed = True

    def _write(self, records: Sequence[Record], root_fd: int, low: int) -> None:
        """Write records behind those that count."""
        fd = self._open_end(root_fd)
        if fd is None:
            self._lose()
            self._begin(root_fd, low)
            fd = self._disk.files.open_to_append(_path(self._last), root_fd)
        try:
            write_all(self._disk.files, fd, self._encode(records))
        finally:
            self._disk.files.close(fd)

    def _open_end(self, root_fd: int) -> int | None:
        """The last segment, to be appended to; `None` when somebody else has changed it."""
        files = self._disk.files
        try:
            fd = files.open_to_append(_path(self._last), root_fd)
        except FileNotFoundError:
            self._damaged(f"segment {self._last} is gone")
            return None
        try:
            size = files.fstat(fd).st_size
        except BaseException:
            files.close(fd)
            raise
        if size == _offset(self._count):
            return fd
        self._damaged(f"segment {self._last} has {size} bytes, not {_offset(self._count)}")
        files.close(fd)
        return None

    def _encode(self, records: Sequence[Record]) -> bytes:
        seed = self._seed(self._last)
        parts = []
        for record in records:
            data = _RECORD.pack(*record[:5], self._durable, record.kind)
            parts += [data, _CHECKSUM.pack(zlib.crc32(data, seed))]
        return b"".join(parts)

    def _sync(self, number: int, root_fd: int) -> None:
        fd = self._disk.files.open_to_append(_path(number), root_fd)
        try:
            self._disk.files.sync(fd)
        finally:
            self._disk.files.close(fd)

    def _find_end(self, root_fd: int) -> None:
        """Learn how many records of the last segment count."""
        try:
            self.highest = self._require_header(self._last, root_fd).highest
            read = self._read(self._last, root_fd)
        except JournalDamaged as error:
            self._damaged(str(error))
            if self._last > self._first:
                before = self.segment(self._last - 1, root_fd)
                self.highest = max((record.sequence for record in before), default=0)
            return
        good = [None if found is None else found[1] for found in read]
        end = good.index(None) if None in good else len(good)
        self.torn = end < len(good)
        # Records behind the end may have reached the disk before those at the end. They do not
        # count, unless one of them says that the end was durable when it was written.
        durable = max((count for count in good if count is not None), default=0)
        if durable > end:
            self._damaged(f"record {end} of segment {self._last} is damaged")
            end = max(number for number, count in enumerate(good, 1) if count is not None)
        self._count = end
        self.highest = max(
            [self.highest, *(found[0].sequence for found in read[:end] if found is not None)]
        )

    def _read(self, number: int, root_fd: int) -> list[tuple[Record, int] | None]:
        """The records of a segment, each with what was known to be durable; `None`: damaged."""
        self._require_header(number, root_fd)
        data = self._bytes(number, root_fd)
        seed, view = self._seed(number), memoryview(data)
        found: list[tuple[Record, int] | None] = []
        for offset in range(_HEADER_BYTES, len(data), RECORD_BYTES):
            record = None
            if offset + RECORD_BYTES <= len(data):
                end = offset + _RECORD.size
                (checksum,) = _CHECKSUM.unpack_from(data, end)
                if zlib.crc32(view[offset:end], seed) == checksum:
                    sha, sequence, size, inode, time_ns, durable, kind = _RECORD.unpack_from(
                        data, offset
                    )
                    if kind in _KINDS:
                        whole = Record(sha, sequence, size, inode, time_ns, _KINDS[kind])
                        record = whole, durable
            found.append(record)
        return found

    def _before(self, number: int, root_fd: int) -> int:
        """The highest sequence number before a segment."""
        header = self._header(number, root_fd)
        return self.highest if header is None else header.highest

    def _header(self, number: int, root_fd: int) -> _Header | None:
        """The header of a segment, `None` when it is damaged."""
        try:
            return self._require_header(number, root_fd)
        except JournalDamaged as error:
            self._damaged(str(error))
            return None

    def _require_header(self, number: int, root_fd: int) -> _Header:
        header = self._headers.get(number)
        if header is None:
            data = self._bytes(number, root_fd, _HEADER_BYTES)
            header = self._headers[number] = self._parse(number, data)
        return header

    def _parse(self, number: int, data: bytes) -> _Header:
        if len(data) < _HEADER_BYTES:
            raise JournalDamaged(f"segment {number} has no whole header")
        magic, version, its_number, uuid, *fields = _HEADER.unpack_from(data)
        if (magic, *_CHECKSUM.unpack_from(data, _HEADER.size)) != (
            _MAGIC,
            zlib.crc32(data[: _HEADER.size]),
        ):
            raise JournalDamaged(f"the header of segment {number} is damaged")
        if version != _VERSION:
            raise JournalDamaged(f"segment {number} has version {version}, not {_VERSION}")
        if (its_number, uuid) != (number, self._uuid):
            raise JournalDamaged(
                f"segment {number} is another's: {its_number} of {UUID(bytes=uuid)}"
            )
        return _Header(*fields)

    def _bytes(self, number: int, root_fd: int, limit: int | None = None) -> bytes:
        files = self._disk.files
        try:
            fd = files.open_to_read(_path(number), root_fd)
        except FileNotFoundError as error:
            raise JournalDamaged(f"segment {number} is missing") from error
        try:
            length = files.fstat(fd).st_size if limit is None else limit
            parts = []
            got = 0
            while got < length and (data := files.read(fd, length - got, got)):
                parts.append(data)
                got += len(data)
            return b"".join(parts)
        finally:
            files.close(fd)

    def _seed(self, number: int) -> int:
        """What the checksums of a segment begin with: records of another are none of its own."""
        return zlib.crc32(self._uuid + struct.pack("<Q", number))

    def _damaged(self, reason: str) -> None:
        if self.damage is None:
            self.damage = f"{self._disk.root}/{INDEX_DIRECTORY}: the journal is damaged: {reason}"


def _path(number: int) -> str:
    return f"{INDEX_DIRECTORY}/{_NAME}{number:012}"


def _offset(records: int) -> int:
    return _HEADER_BYTES + records * RECORD_BYTES


def _numbers(disk: Disk, root_fd: int) -> set[int]:
    """The numbers of all segments. Raises `OSError`."""
    try:
        fd = disk.files.open_directory(INDEX_DIRECTORY, root_fd)
    except FileNotFoundError:
        return set()
    try:
        names = disk.files.list(fd)
    finally:
        disk.files.close(fd)
    digits = [name.removeprefix(_NAME) for name in names if name.startswith(_NAME)]
    return {int(number) for number in digits if number.isdecimal() and number.isascii()}
