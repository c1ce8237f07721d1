"""What one disk holds, sorted by SHA-256: `.stor/index/base-FIRST-LAST`, made from its journal."""

import re
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import attrs

from stor.disk.disk import INDEX_DIRECTORY, Disk, write_all
from stor.disk.journal import Journal

#: sha, size, inode.
_ENTRY = struct.Struct("<32sQQ")
_SHA_BYTES = 32

#: An entry of this size says that the name has left.
_LEFT_SIZE = 2**64 - 1

_BLOCK_BYTES = 4096
_BLOCK_ENTRIES = (_BLOCK_BYTES - 4) // _ENTRY.size
_USED_BYTES = _BLOCK_ENTRIES * _ENTRY.size
#: How many blocks are read at once.
_CHUNK_BLOCKS = 128

_MAGIC = b"STORBASE"
_VERSION = 1
#: magic, version, UUID of the disk, first and last segment, entries, highest sequence number.
_FOOTER = struct.Struct("<8sI16sQQQQ")
_CHECKSUM = struct.Struct("<I")
_FOOTER_BYTES = _FOOTER.size + _CHECKSUM.size

_NAME = re.compile(r"base-(\d{12})-(\d{12})", re.ASCII)
_NEW_PATH = f"{INDEX_DIRECTORY}/base.new"

#: How many segments are sorted in memory at a time: 25 MB.
_SEGMENTS_AT_ONCE = 4

#: A search that takes more steps than this meets names that are not spread evenly.
_RECKONED_STEPS = 8

#: A run is merged with the ones after it once they have a quarter of its entries.
_RATIO = 4

#: No more than this waits to be written.
_SYNC_BYTES = 8 * 1024 * 1024


class Entry(NamedTuple):
    """A sample that a disk holds."""

    sha: bytes
    size: int
    inode: int


class BaseDamaged(Exception):
    """What the base or the journal say is not all that the disk holds."""


@attrs.frozen
class _Run:
    """A sorted file, made from the segments `first` to `last`."""

    first: int
    last: int
    entries: int
    highest: int

    @property
    def path(self) -> str:
        return f"{INDEX_DIRECTORY}/base-{self.first:012}-{self.last:012}"

    @property
    def blocks(self) -> int:
        return -(-self.entries // _BLOCK_ENTRIES)


class Base:
    """The sorted files of a disk, each made from a range of its journal's segments, without a gap.

    What a later one says of a name counts. `extend` adds what the journal has gained, and merges
    files of similar size, so that there are few of them and each sample is rewritten few times.
    A file has its name once it is durable; a crash leaves the files from before, or also those that
    were merged, which are passed over. What is wrong is said in `damage`, when it is met.

    Blocking; memory is flat. Others that have opened the base may read what they have opened while
    one process extends it, once.
    """

    def __init__(self, disk: Disk, uuid: str) -> None:
        """An empty base; see `open`."""
        self._disk = disk
        self._uuid = UUID(uuid).bytes
        self._runs: tuple[_Run, ...] = ()
        #: Why the base does not have all that the disk held, `None` as far as is known.
        self.damage: str | None = None

    @classmethod
    def open(cls, disk: Disk, uuid: str, root_fd: int) -> "Base":
        """The base of the disk with this UUID. Raises `OSError`."""
        base = cls(disk, uuid)
        runs: list[_Run] = []
        for first, last in sorted(
            _ranges(disk, root_fd), key=lambda range_: (range_[0], -range_[1])
        ):
            covered = runs[-1].last if runs else 0
            if last <= covered:
                continue  # merged, and not yet removed
            if first != covered + 1:
                base._damaged(f"segments {covered + 1} to {first - 1} are in none of its files")
            runs.append(base._run(first, last, root_fd))
        base._runs = tuple(runs)
        return base

    @property
    def covered(self) -> int:
        """The last segment of the journal that the base is made from; 0: none."""
        return self._runs[-1].last if self._runs else 0

    @property
    def highest(self) -> int:
        """The highest sequence number of what the base is made from."""
        return max((run.highest for run in self._runs), default=0)

    @property
    def entries(self) -> int:
        """How many entries there are: those of a name that came and left may be several."""
        return sum(run.entries for run in self._runs)

    def find(self, sha: bytes, root_fd: int) -> Entry | None:
        """What the base says of one sample. Raises `OSError`."""
        for run in reversed(self._runs):
            with _Reader(self, run, root_fd) as reader:
                for data in reader.block(reader.place(sha)):
                    if data[:_SHA_BYTES] == sha:
                        entry = Entry(*_ENTRY.unpack(data))
                        return None if entry.size == _LEFT_SIZE else entry
        return None

    def inodes(self, shas: Sequence[bytes], journal: Journal, root_fd: int) -> list[int]:
        """The inode of each of some sorted samples, 0 where nothing is known of it.

        They may be wrong: whoever goes by them only saves time. Raises `OSError`.
        """
        new, _ = _told(journal, self.covered + 1, journal.sealed + 1, root_fd)
        found = [_ENTRY.unpack(new[sha])[2] if sha in new else 0 for sha in shas]
        for run in reversed(self._runs):
            with _Reader(self, run, root_fd) as reader:
                for at, sha in enumerate(shas):
                    if not found[at]:
                        found[at] = reader.inode(sha)
        return found

    def entries_from(
        self, begin: bytes, root_fd: int, journal: Journal | None = None
    ) -> Iterator[Entry]:
        """The samples whose SHA-256 is `begin` or above, in order. Raises `OSError`.

        With the `journal` also those that came since the base was extended.
        """
        new: dict[bytes, bytes] = {}
        if journal is not None:
            new, _ = _told(journal, self.covered + 1, journal.sealed + 1, root_fd)
        later = sorted(data for sha, data in new.items() if sha >= begin)
        source = iter([later] if later else [])
        for chunk in self._chunks(self._runs, begin, root_fd, source, keep_left=False):
            for data in chunk:
                yield Entry(*_ENTRY.unpack(data))

    def names(self, root_fd: int) -> Iterator[list[bytes]]:
        """The SHA-256s of all samples, in order, many at a time. Raises `OSError`."""
        for chunk in self._chunks(self._runs, b"", root_fd, keep_left=False):
            yield [data[:_SHA_BYTES] for data in chunk]

    def extend(
        self,
        journal: Journal,
        root_fd: int,
        pace: Callable[[int], None] = lambda length: None,
        *,
        despite_damage: bool = False,
    ) -> None:
        """Take in what the sealed segments of the journal have.

        `pace` is told how many bytes were read or written, and may wait. Damage that is met in base
        or journal ends it before anything is replaced: once the disk is not taken to be complete
        any more, durably, it can be taken in `despite_damage`. Raises `BaseDamaged`, `OSError`.
        """
        before = set(self._runs)
        self._remove_merged(before, root_fd)
        while self.covered < journal.sealed:
            first = self.covered + 1
            last = min(first + _SEGMENTS_AT_ONCE - 1, journal.sealed)
            new, highest = _told(journal, first, last, root_fd)
            merged = self._mergeable(len(new))
            if merged:
                first, highest = merged[0].first, max(highest, *(run.highest for run in merged))
            kept = self._runs[: len(self._runs) - len(merged)]
            source = iter([[new[sha] for sha in sorted(new)]] if new else [])
            chunks = self._chunks(merged, b"", root_fd, source, keep_left=bool(kept), pace=pace)
            run = self._write(
                _Run(first, last, 0, highest),
                chunks,
                root_fd,
                pace,
                lambda: None if despite_damage else self._require_whole(journal),
            )
            self._runs = (*kept, run)
            self._remove_merged(before, root_fd)

    def _require_whole(self, journal: Journal) -> None:
        damage = self.damage or journal.damage
        if damage is not None:
            raise BaseDamaged(damage)

    def _mergeable(self, entries: int) -> Sequence[_Run]:
        """The newest runs to merge with this many entries."""
        begin = len(self._runs)
        while begin and self._runs[begin - 1].entries < _RATIO * entries:
            begin -= 1
            entries += self._runs[begin].entries
        return self._runs[begin:]

    def _chunks(
        self,
        runs: Sequence[_Run],
        begin: bytes,
        root_fd: int,
        *sources: Iterator[list[bytes]],
        keep_left: bool,
        pace: Callable[[int], None] = lambda length: None,
    ) -> Iterator[list[bytes]]:
        """The entries of runs, and of what is newer than those, as one, from `begin` on."""
        readers = [_Reader(self, run, root_fd) for run in runs]
        try:
            merged = _merged([*(reader.chunks(begin, pace) for reader in readers), *sources])
            for chunk in merged:
                if keep_left:
                    yield chunk
                else:
                    yield [data for data in chunk if data[_SHA_BYTES:40] != b"\xff" * 8]
        finally:
            for reader in readers:
                reader.close()

    def _write(
        self,
        run: _Run,
        chunks: Iterator[list[bytes]],
        root_fd: int,
        pace: Callable[[int], None],
        check: Callable[[], None],
    ) -> _Run:
        """Make a file of entries, durably; it gets its name if `check`, then, does not raise."""
        files = self._disk.files
        with suppress(FileNotFoundError):  # the usual case: no crash has left one
            files.unlink(_NEW_PATH, root_fd)
        fd = self._disk.in_own_directory(root_fd, lambda: files.create(_NEW_PATH, root_fd))
        try:
            blocks, entries, unsynced, rest = 0, 0, 0, b""
            seed = self._seed(run)
            for chunk in chunks:
                entries += len(chunk)
                rest += b"".join(chunk)
                whole = len(rest) // _USED_BYTES
                data = _blocks(rest[: whole * _USED_BYTES], blocks, seed)
                blocks, rest = blocks + whole, rest[whole * _USED_BYTES :]
                write_all(files, fd, data)
                unsynced += len(data)
                if unsynced >= _SYNC_BYTES:
                    files.sync(fd)
                    unsynced = 0
                pace(len(data))
            run = attrs.evolve(run, entries=entries)
            write_all(files, fd, _blocks(rest, blocks, seed) + self._footer(run))
            files.sync(fd)
            files.forget_cached(fd)
        finally:
            files.close(fd)
        check()
        files.rename(_NEW_PATH, run.path, root_fd)
        self._disk.sync_directory(INDEX_DIRECTORY, root_fd)
        return run

    def _remove_merged(self, before: set[_Run], root_fd: int) -> None:
        """Remove files that are part of others, but not those that readers may have opened."""
        kept = {(run.first, run.last) for run in {*self._runs, *before}}
        for first, last in _ranges(self._disk, root_fd) - kept:
            if last <= self.covered:
                self._disk.files.unlink(_Run(first, last, 0, 0).path, root_fd)

    def _run(self, first: int, last: int, root_fd: int) -> _Run:
        """A file, as its footer says. An empty one where that is damaged."""
        files, run = self._disk.files, _Run(first, last, 0, 0)
        fd = files.open_to_read(run.path, root_fd)
        try:
            size = files.fstat(fd).st_size
            footer = files.read(fd, _FOOTER_BYTES, max(0, size - _FOOTER_BYTES))
        finally:
            files.close(fd)
        if len(footer) == _FOOTER_BYTES:
            magic, version, uuid, its_first, its_last, entries, highest = _FOOTER.unpack_from(
                footer
            )
            found = _Run(its_first, its_last, entries, highest)
            if (
                footer == self._footer(found)
                and (its_first, its_last) == (first, last)
                and size == found.blocks * _BLOCK_BYTES + _FOOTER_BYTES
            ):
                return found
            if magic == _MAGIC and version == _VERSION and uuid != self._uuid:
                self._damaged(f"{run.path} is another disk's, {UUID(bytes=uuid)}")
                return run
        self._damaged(f"the end of {run.path} is")
        return run

    def _footer(self, run: _Run) -> bytes:
        data = _FOOTER.pack(
            _MAGIC, _VERSION, self._uuid, run.first, run.last, run.entries, run.highest
        )
        return data + _CHECKSUM.pack(zlib.crc32(data))

    def _seed(self, run: _Run) -> int:
        """What the checksums of a file begin with: blocks of another are none of its own."""
        return zlib.crc32(self._uuid + struct.pack("<QQ", run.first, run.last))

    def _damaged(self, reason: str) -> None:
        if self.damage is None:
            self.damage = f"{self._disk.root}: the base of the index is damaged: {reason}"


class _Reader:
    """One sorted file, open."""

    def __init__(self, base: Base, run: _Run, root_fd: int) -> None:
        self._base = base
        self._files = base._disk.files
        self._run = run
        self._seed = base._seed(run)
        self._fd: int | None = self._files.open_to_read(run.path, root_fd)
        #: The block that `inode` has read last, and its entries.
        self._near = 0
        self._entries: list[bytes] = []

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back, once."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._files.close(fd)

    def place(self, sha: bytes) -> int:
        """The number of the block where an entry is, or would be."""
        low, high = 0, self._run.blocks
        while low < high:
            middle = (low + high) // 2
            block = self.block(middle)
            # What is in a damaged block is in none: any other will do.
            if block and block[0][:_SHA_BYTES] <= sha:
                low = middle + 1
            else:
                high = middle
        return max(0, low - 1)

    def inode(self, sha: bytes) -> int:
        """What a sample's inode was, 0 if it has none here.

        Names are spread evenly, so that the distance from the block that was read last can be
        reckoned: of sorted names each takes a block or two, many together take each block once.
        """
        low, high, steps = 0, self._run.blocks, 0
        if not self._entries and high:
            self._near = int.from_bytes(sha[:8], "big") * high >> 64
            self._entries = self.block(self._near)
        while self._entries:  # a damaged block has none
            first, last = _sha(self._entries[0]), _sha(self._entries[-1])
            if first <= sha <= last:
                data = self._entries[bisect_left(self._entries, sha, key=_sha)]
                return Entry(*_ENTRY.unpack(data)).inode if _sha(data) == sha else 0
            low, high = (low, self._near) if sha < first else (self._near + 1, high)
            if low >= high:
                return 0
            distance = int.from_bytes(sha[:8], "big") - int.from_bytes(first[:8], "big")
            reckoned = self._near + (distance * self._run.blocks >> 64)
            steps += 1
            even = steps <= _RECKONED_STEPS
            self._near = min(max(reckoned, low), high - 1) if even else (low + high) // 2
            self._entries = self.block(self._near)
        return 0

    def block(self, number: int) -> list[bytes]:
        """The entries of a block."""
        return self._read(number, 1)

    def chunks(self, begin: bytes, pace: Callable[[int], None]) -> Iterator[list[bytes]]:
        """All entries from `begin` on."""
        for number in range(self.place(begin) if begin else 0, self._run.blocks, _CHUNK_BLOCKS):
            # Who reads from the beginning reads all, once.
            chunk = self._read(number, _CHUNK_BLOCKS, once=not begin)
            if chunk and _sha(chunk[0]) < begin:
                chunk = [data for data in chunk if data[:_SHA_BYTES] >= begin]
            if chunk:
                yield chunk
            pace(len(chunk) * _ENTRY.size)

    def _read(self, number: int, blocks: int, *, once: bool = False) -> list[bytes]:
        if self._fd is None:
            raise ValueError("read of a closed file")
        blocks = min(blocks, self._run.blocks - number)
        if blocks <= 0:
            return []
        length = blocks * _BLOCK_BYTES
        offset = number * _BLOCK_BYTES
        data = self._files.read(self._fd, length, offset)
        if once:
            self._files.forget_cached(self._fd, length, offset)
        view, used = memoryview(data), []
        for block in range(number, number + blocks):
            begin = (block - number) * _BLOCK_BYTES
            part = view[begin : begin + _USED_BYTES]
            checksum = zlib.crc32(part, self._seed ^ block)
            if data[begin + _BLOCK_BYTES - 4 : begin + _BLOCK_BYTES] != _CHECKSUM.pack(checksum):
                self._base._damaged(f"block {block} of {self._run.path} is")
                continue
            length = min(_BLOCK_ENTRIES, self._run.entries - block * _BLOCK_ENTRIES) * _ENTRY.size
            used.append(part[:length])
        joined = b"".join(used)
        return [joined[at : at + _ENTRY.size] for at in range(0, len(joined), _ENTRY.size)]


def _told(journal: Journal, first: int, last: int, root_fd: int) -> tuple[dict[bytes, bytes], int]:
    """What the segments from `first` to `last` say of names, and their highest number."""
    told: dict[bytes, bytes] = {}
    highest = 0
    for number in range(first, last + 1):
        for record in journal.segment(number, root_fd):
            size = _LEFT_SIZE if record.kind.is_gone else record.size
            told[record.sha] = _ENTRY.pack(record.sha, size, record.inode)
            highest = max(highest, record.sequence)
    return told, highest


def _sha(data: bytes) -> bytes:
    return data[:_SHA_BYTES]


def _merged(sources: Sequence[Iterator[list[bytes]]]) -> Iterator[list[bytes]]:
    """Sorted entries of several sources as one, in order; of two with one name the later counts."""
    ahead = [(chunk, source) for source in sources if (chunk := next(source, None))]
    while ahead:
        if len(ahead) == 1:
            yield ahead[0][0]
            yield from ahead[0][1]
            return
        bound = min(_sha(chunk[-1]) for chunk, _ in ahead)
        parts, still = [], []
        for chunk, source in ahead:
            end = bisect_right(chunk, bound, key=_sha)
            parts.append(chunk[:end])
            rest: list[bytes] | None = chunk[end:]
            if rest or (rest := next(source, None)):
                still.append((rest, source))
        newest = {_sha(data): data for part in parts for data in part}
        yield [newest[sha] for sha in sorted(newest)]
        ahead = still


def _blocks(data: bytes, number: int, seed: int) -> bytes:
    """Entries as blocks with checksums, from block `number` on; the last one is filled up."""
    parts = []
    for begin in range(0, len(data), _USED_BYTES):
        used = data[begin : begin + _USED_BYTES].ljust(_USED_BYTES, b"\0")
        checksum = zlib.crc32(used, seed ^ (number + begin // _USED_BYTES))
        parts += [used.ljust(_BLOCK_BYTES - 4, b"\0"), _CHECKSUM.pack(checksum)]
    return b"".join(parts)


def _ranges(disk: Disk, root_fd: int) -> set[tuple[int, int]]:
    """The ranges of segments of which there are files. Raises `OSError`."""
    try:
        fd = disk.files.open_directory(INDEX_DIRECTORY, root_fd)
    except FileNotFoundError:
        return set()
    try:
        matches = [_NAME.fullmatch(name) for name in disk.files.list(fd)]
    finally:
        disk.files.close(fd)
    return {(int(match[1]), int(match[2])) for match in matches if match}
