"""The host's table: for every name that its disks hold, the set that has it; 6.3 to 6.9 bytes each.

A table of our own rather than LMDB, which takes six times the memory and is no faster; without
numpy, which would halve the time of the rare table that is made from the disks, and no other's.
Figures: bench/README.md, "The index".
"""

import hashlib
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import attrs

from stor.disk.disk import write_all
from stor.disk.syscalls import Syscalls
from stor.index import memory

#: How many sets can have a number.
SETS_LIMIT = 512

SECRET_BYTES = 32

ENTRY_BYTES = 6
SET_BITS = 9
#: Of the key, beside what the bucket says of it.
REST_BITS = 8 * ENTRY_BYTES - SET_BITS
KEY_BITS = 64
_KEY_MASK = 2**KEY_BITS - 1
_SET_MASK = 2**SET_BITS - 1

#: A bucket has 8 to 16 entries when the table is built, and up to this many as it grows.
_BUILT_ENTRIES = 16
_CROWDED_ENTRIES = 32

#: What the table is better made anew with, and what it never has.
_WORN_BITS = 12
UNKNOWN_LIMIT = 24

_MAGIC = b"STORTABL"
_VERSION = 2
#: magic, version, host, generation, entries, sequence number, recent names, bits of the bucket,
#: bits that are unknown, sets, disks, checksum of all that follows the header.
_HEADER = struct.Struct("<8sI16sQQQQIIIII")
_CHECKSUM = struct.Struct("<I")
#: The UUID of each set, and how many names it has.
_SET = struct.Struct("<16sQ")
#: See `TableDisk`.
_DISK = struct.Struct("<16sQQH6x")
HEADER_BYTES = 65536

#: The most disks that a table can list; further ones are learnt as if they were in none.
DISKS_LIMIT = 1300

_COPY_BYTES = 8 * 1024 * 1024


class TableDamaged(Exception):
    """What should be a table of this host cannot be used as one."""


class Keys:
    """What names are called in the tables of a host: 64 bits, which only who has its secret knows.

    So nobody can make a sample that seems to be there.
    """

    def __init__(self, secret: bytes) -> None:
        """`secret` has `SECRET_BYTES`."""
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"the secret has {len(secret)} bytes, not {SECRET_BYTES}")
        self.secret = secret
        self._hasher = hashlib.blake2b(digest_size=8, key=secret)
        #: Tells a host from another one.
        self.host = hashlib.blake2b(b"host", digest_size=16, key=secret).digest()

    def key(self, sha: bytes) -> int:
        """What a name is called."""
        hasher = self._hasher.copy()
        hasher.update(sha)
        return int.from_bytes(hasher.digest(), "big")


class SetNames(NamedTuple):
    """One of the sets, and how many names a table has of it."""

    uuid: str
    names: int


@attrs.frozen
class TableDisk:
    """A disk of a set, with this UUID, all of whose names are in a table.

    Those that its journal had up to the sequence number `highest`; `journal` tells that journal
    from another one that the disk may have later.
    """

    uuid: str
    journal: int
    highest: int
    set_number: int


@attrs.frozen
class Contents:
    """What a table is made of, and from.

    Everything with a number below `sequence` is in it, and the first `recent` of the recent names.
    Of the key, `unknown_bits` at the end of an entry are not known: the table has grown since it
    was built.
    """

    generation: int
    entries: int
    sequence: int
    recent: int
    bucket_bits: int
    unknown_bits: int
    sets: tuple[SetNames, ...]
    disks: tuple[TableDisk, ...] = ()

    @property
    def fan_out_offset(self) -> int:
        """Where the table says where each bucket begins."""
        return HEADER_BYTES + -(-self.entries * ENTRY_BYTES // 8) * 8

    @property
    def length(self) -> int:
        """In bytes."""
        return self.fan_out_offset + 4 * ((1 << self.bucket_bits) + 1)

    @property
    def worn(self) -> bool:
        """Whether too much of the keys is unknown: the table is better made anew from the disks.

        Until then one of some millions of names that are not there seems to be.
        """
        return self.unknown_bits > _WORN_BITS

    def known(self, disk: TableDisk) -> int | None:
        """Up to which sequence number the table has all that the journal of a disk tells.

        Above that is what ended after the table was begun, and what another host has put on the
        disk since. `None`: the table may lack any of it.
        """
        for its in self.disks:
            if attrs.evolve(its, highest=disk.highest) == disk and disk.journal:
                return None if its.highest > disk.highest else min(self.sequence - 1, its.highest)
        return None

    def encode(self, host: bytes, checksum: int) -> bytes:
        """The header."""
        data = _HEADER.pack(
            _MAGIC,
            _VERSION,
            host,
            self.generation,
            self.entries,
            self.sequence,
            self.recent,
            self.bucket_bits,
            self.unknown_bits,
            len(self.sets),
            len(self.disks),
            checksum,
        )
        sets = b"".join(_SET.pack(UUID(one.uuid).bytes, one.names) for one in self.sets)
        disks = b"".join(
            _DISK.pack(UUID(uuid).bytes, *fields)
            for uuid, *fields in map(attrs.astuple, self.disks)
        )
        data = (data + sets + disks).ljust(HEADER_BYTES - _CHECKSUM.size, b"\0")
        return data + _CHECKSUM.pack(zlib.crc32(data))

    @classmethod
    def parse(cls, data: bytes, host: bytes) -> tuple["Contents", int]:
        """Read a header; also the checksum of what follows. Raises `TableDamaged`."""
        if len(data) < HEADER_BYTES or data[: len(_MAGIC)] != _MAGIC:
            raise TableDamaged("it is no table")
        if data[-_CHECKSUM.size :] != _CHECKSUM.pack(zlib.crc32(data[: -_CHECKSUM.size])):
            raise TableDamaged("its header is damaged")
        (
            _,
            version,
            its_host,
            generation,
            entries,
            sequence,
            recent,
            bits,
            unknown_bits,
            sets,
            disks,
            checksum,
        ) = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise TableDamaged(f"it has version {version}, not {_VERSION}")
        if its_host != host:
            raise TableDamaged("it is another host's, or made with another secret")
        end = _HEADER.size + sets * _SET.size
        known = _SET.iter_unpack(data[_HEADER.size : end])
        names = tuple(SetNames(str(UUID(bytes=uuid)), number) for uuid, number in known)
        whole = _DISK.iter_unpack(data[end : end + disks * _DISK.size])
        in_it = tuple(TableDisk(str(UUID(bytes=uuid)), *fields) for uuid, *fields in whole)
        found = cls(generation, entries, sequence, recent, bits, unknown_bits, names, in_it)
        return found, checksum


class Table:
    """A table in memory. Nobody changes it, so that any process may look names up."""

    def __init__(self, fd: int, keys: Keys) -> None:
        """The table in the memory `fd`, which is not closed. Raises `TableDamaged`, `OSError`."""
        data = os.pread(fd, HEADER_BYTES, 0)
        self.contents, _ = Contents.parse(data, keys.host)
        if os.fstat(fd).st_size != self.contents.length:
            raise TableDamaged("its length is not what its header says")
        self._hasher = keys._hasher
        self._mapping = memory.mapped(fd, self.contents.length)
        self._find = self._mapping.find
        self._view = memoryview(self._mapping)
        self._fan_out = self._view[self.contents.fan_out_offset :].cast("I")
        self._bits = self.contents.bucket_bits
        self._shift = KEY_BITS - self._bits
        self._unknown = self.contents.unknown_bits
        #: Whole bytes of an entry that are sought; then the rest is compared.
        self._needle_bytes = (REST_BITS - self._unknown) // 8
        self._needle_shift = REST_BITS - 8 * self._needle_bytes

    def lock(self) -> bool:
        """Keep it in memory; whether that is allowed."""
        return memory.locked(self._mapping)

    def close(self) -> None:
        """Give the memory back."""
        self._fan_out.release()
        self._view.release()
        self._mapping.close()

    def sets_of(self, sha: bytes) -> tuple[int, ...]:
        """The numbers of the sets that hold a name; of one in a hundred thousand millions, wrongly.

        None for a name that was put in is left out.
        """
        hasher = self._hasher.copy()
        hasher.update(sha)
        key = int.from_bytes(hasher.digest(), "big")
        bucket = key >> self._shift
        begin = HEADER_BYTES + ENTRY_BYTES * self._fan_out[bucket]
        end = HEADER_BYTES + ENTRY_BYTES * self._fan_out[bucket + 1]
        rest = ((key << self._bits) & _KEY_MASK) >> (KEY_BITS - REST_BITS)
        needle = (rest >> self._needle_shift).to_bytes(self._needle_bytes, "big")
        at = self._find(needle, begin, end)
        if at < 0:
            return ()
        found: tuple[int, ...] = ()
        while at >= 0:
            if (at - begin) % ENTRY_BYTES:
                at = self._find(needle, at + 1, end)
                continue
            value = int.from_bytes(self._mapping[at : at + ENTRY_BYTES], "big")
            if (value >> SET_BITS ^ rest) >> self._unknown == 0:
                found += (value & _SET_MASK,)
            at = self._find(needle, at + ENTRY_BYTES, end)
        return found

    def offsets(self, first: int, last: int) -> "array[int]":
        """How many entries lie before each of the buckets `first` to `last`, without the latter."""
        return array("I", self._fan_out[first:last].tobytes())

    def entries(self, first: int, last: int) -> bytes:
        """The entries with the numbers `first` to `last`, without the latter."""
        begin = HEADER_BYTES + first * ENTRY_BYTES
        return self._mapping[begin : HEADER_BYTES + last * ENTRY_BYTES]


def entry(key: int, bits: int) -> tuple[int, int]:
    """The bucket of a key, where buckets take this many bits, and its entry there for set 0."""
    rest = ((key << bits) & _KEY_MASK) >> (KEY_BITS - REST_BITS)
    return key >> (KEY_BITS - bits), rest << SET_BITS


def bucket_bits(entries: int, before: int = 0) -> int:
    """How many bits of the key the buckets of a table with this many entries take.

    Those of the table `before` it, unless its buckets would be crowded.
    """
    if entries <= _CROWDED_ENTRIES << before:
        return before
    return ((entries - 1) // _BUILT_ENTRIES).bit_length()


class TableWriter:
    """A table being made, in memory or in a file: entries in order, then where buckets begin.

    It can be used once `finish` has returned: the header is written last.
    """

    def __init__(self, fd: int, keys: Keys, bits: int) -> None:
        """`fd` is emptied; `bits` of the key say which bucket an entry is in."""
        os.ftruncate(fd, 0)
        self._fd = fd
        self._keys = keys
        self.bits = bits
        self._entries = 0
        self._checksum = 0
        self._end = HEADER_BYTES
        self._parts: list[bytes | memoryview] = []
        self._waiting_bytes = 0
        self._offsets: array[int] = array("I")

    def add(self, offsets: "array[int]", entries: bytes) -> None:
        """The next buckets, one for each of `offsets`: how many entries lie before it.

        They count from anywhere, as they do in another table from which these are copied.
        """
        if offsets:
            shift = self._entries - offsets[0]
            self._offsets.extend(map(shift.__add__, offsets) if shift else offsets)
        self._entries += len(entries) // ENTRY_BYTES
        self._put(entries)

    def finish(
        self,
        *,
        generation: int,
        sequence: int,
        recent: int,
        unknown_bits: int,
        sets: Sequence[SetNames],
        disks: Sequence[TableDisk] = (),
    ) -> Contents:
        """All buckets were added: make it a table."""
        contents = Contents(
            generation=generation,
            entries=self._entries,
            sequence=sequence,
            recent=recent,
            bucket_bits=self.bits,
            unknown_bits=unknown_bits,
            sets=tuple(sets),
            disks=tuple(disks[:DISKS_LIMIT]),
        )
        self._offsets.append(self._entries)
        if len(self._offsets) != (1 << self.bits) + 1:
            raise ValueError(f"{len(self._offsets) - 1} buckets of {1 << self.bits}")
        self._flush()
        self._put(bytes(contents.fan_out_offset - self._end))
        self._put(memoryview(self._offsets).cast("B"))
        self._flush()
        _write(self._fd, contents.encode(self._keys.host, self._checksum), 0)
        return contents

    def _put(self, data: bytes | memoryview) -> None:
        self._parts.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _COPY_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._parts)
        self._checksum = zlib.crc32(data, self._checksum)
        _write(self._fd, data, self._end)
        self._end += len(data)
        self._parts, self._waiting_bytes = [], 0


def load(path: str, fd: int, keys: Keys, generation: int, recent: int) -> Contents:
    """Bring the table that was saved at `path` into the memory `fd`, if it is right.

    There it has this `generation`, and the first `recent` of the recent names are taken to be in
    it. Raises `TableDamaged`, or `OSError`: there is none, or it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        header = file.read(HEADER_BYTES)
        contents, expected = Contents.parse(header, keys.host)
        if os.fstat(file.fileno()).st_size != contents.length:
            raise TableDamaged("its length is not what its header says")
        os.ftruncate(fd, 0)
        checksum, at = 0, HEADER_BYTES
        while data := file.read(_COPY_BYTES):
            checksum = zlib.crc32(data, checksum)
            _write(fd, data, at)
            at += len(data)
    if checksum != expected or at != contents.length:
        raise TableDamaged("it is damaged")
    contents = attrs.evolve(contents, generation=generation, recent=recent)
    _write(fd, contents.encode(keys.host, checksum), 0)
    return contents


def save(fd: int, path: str, files: Syscalls) -> None:
    """Keep the table in the memory `fd` at `path`, durably, in place of the one there.

    A crash leaves the one before. Raises `OSError`: the same.
    """
    starts = range(0, os.fstat(fd).st_size, _COPY_BYTES)
    keep((os.pread(fd, _COPY_BYTES, start) for start in starts), path, files)


def keep(parts: Iterable[bytes], path: str, files: Syscalls, mode: int = 0o644) -> None:
    """Write a file, durably, in place of the one there, which a crash leaves. Raises `OSError`."""
    directory, name = os.path.split(path)
    directory_fd = files.open_directory(directory or ".")
    try:
        with suppress(FileNotFoundError):  # the usual case: no crash has left one
            files.unlink(f"{name}.new", directory_fd)
        fd = files.create(f"{name}.new", directory_fd)
        try:
            os.fchmod(fd, mode)
            for part in parts:
                write_all(files, fd, part)
                # Else a sync in the end would hold up all that is written there meanwhile.
                files.sync(fd)
                files.forget_cached(fd)
        finally:
            files.close(fd)
        files.rename(f"{name}.new", name, directory_fd)
        files.sync(directory_fd)
    finally:
        files.close(directory_fd)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
