"""One disk's copy of a sample: what is known of it, and the bytes of an open one."""

import errno
from array import array
from contextlib import suppress
from typing import Protocol

import attrs
from crc32c import crc32c

from stor.block_sums import PIECE_BYTES, BadSums, BlockSummer, BlockSums
from stor.digest import Digest, Hasher
from stor.disk.syscalls import Syscalls
from stor.disk.verified import Mark, Verified
from stor.errors import Changed, Damaged

#: Where a copy's block sums are kept (xattr(7)).
SUMS_ATTRIBUTE = "user.stor.sums"

#: A larger block is checked before it is read a second time, to be given in parts.
_WHOLE_BYTES = 512 * 1024

#: A smaller one is read in pieces that stay in the processor's cache until they are checked.
_CHECK_BYTES = 128 * 1024

#: So much is checked before it is sent, in one go: what a pipe takes.
_AHEAD_BYTES = 1024 * 1024

#: How far back something may still be on its way to a client: more than a socket's buffers hold.
_ON_ITS_WAY_BYTES = 64 * 1024 * 1024

#: What a file system says that has not enough room for an attribute (ext4 with blocks of 1 KiB).
_NO_ROOM_THERE = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)

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
    """What a disk says of its copy of a sample, without reading it. `storage` is its root.

    `mark` tells its file from another that has the name later.
    """

    path: str
    size: int
    modified_ns: int
    storage: str
    mark: Mark | None = None


class DamagedCopy(Damaged):
    """A file that has a sample's name and is not the sample; `mark` tells it from another."""

    def __init__(self, reason: str, mark: Mark | None) -> None:
        super().__init__(reason)
        self.mark = mark


@attrs.frozen
class MadeSums:
    """Block sums that were made while all of a copy was read, by who does not write them.

    The copy is on `storage`, and its file had this mark.
    """

    storage: str
    mark: Mark
    sums: BlockSums


def mark_of(error: BaseException | None) -> Mark | None:
    """The mark of the file that turned out to be bad, where it is known."""
    return error.mark if isinstance(error, DamagedCopy) else None


@attrs.define
class OpenCopy:
    """A copy being read. Owns `fd` until `close`; `whole` is set, and verified, when small.

    `mark` is that of the file when it was opened, and `verified` is told once all of it was read
    from here and is right; `proven` says that this was so not long ago. `sums` are those of its
    blocks; `own_sums` those that are kept with it.
    """

    files: Syscalls
    digest: Digest
    copy: Copy
    fd: int | None
    whole: bytes | None = None
    verified: Verified | None = None
    mark: Mark | None = None
    proven: bool = False
    sums: BlockSums | None = None
    own_sums: BlockSums | None = None
    #: Whether sums that are made on the way may be written to the file; else they are here.
    keeps_sums: bool = False
    made_sums: MadeSums | None = None
    _summer: BlockSummer = attrs.field(factory=BlockSummer)
    _checked_bytes: int = 0
    _block: "_CheckedBlock | None" = None

    @property
    def misfit(self) -> bool:
        """Whether the file has another size than the sample: parts of it may be good."""
        return self.mark is not None and self.mark.size != self.copy.size

    def take_sums(self, size: int | None = None) -> None:
        """Know the block sums that are kept with the file, of this or any size, and go by that."""
        sums = kept_sums(self.files, self._opened(), self.digest, size)
        if sums is not None:
            self.copy = attrs.evolve(self.copy, size=sums.size)
        self.sums = self.own_sums = sums

    def read(self, offset: int, length: int, hasher: Hasher | None) -> bytes:
        """Exactly `length` bytes from `offset`, which are also given to `hasher`.

        With a hasher the read that reaches the end of the file compares the hash, so the last
        part of a damaged copy is never returned. When it is right and all of it was read here, the
        copy is known to be so, and its block sums are kept with it. Raises `Damaged`, or `OSError`
        with the hasher untouched.
        """
        data = read_exactly(self.files, self._opened(), length, offset)
        if hasher is None:
            return data
        hasher.update(data)
        self._summer.update(data, offset)
        if offset + length == self.copy.size:
            if hasher.digest() != self.digest.raw:
                raise DamagedCopy(
                    f"{self.copy.path}: content does not have the SHA-256 of its name",
                    self.copy.mark,
                )
            if self.verified:
                self.is_right(self._summer.finish(self.digest))
        return data

    def read_checked(self, offset: int, length: int) -> bytes:
        """From 1 to `length` bytes from `offset`, from blocks that have the right sums.

        Raises `Damaged` when one has not, `OSError`.
        """
        sums = self._sums()
        begin, end = sums.block(offset)
        if end - begin > _WHOLE_BYTES:
            return self._read_large(begin, end, offset, length)
        last = sums.block(min(offset + length, self.copy.size) - 1)[1]
        try:
            return self._read_blocks(begin, last, offset, length)
        except (Damaged, OSError):
            if last == end:
                raise
            # A later block may be to blame, which another copy has.
            return self._read_blocks(begin, end, offset, length)

    def send(self, splice_pipe: Outflow, offset: int, length: int) -> bool:
        """Send up to `length` bytes from `offset` on, until `splice_pipe` takes no more.

        A copy that is not `proven` has each block checked before it is sent. What is in the pipe
        already stands at `offset`. `False` when the file system cannot do this. Raises `Damaged`
        before a wrong block, `Changed` when the file is no longer what it was when it was opened,
        and `OSError`; then the splice_pipe is of no more use.
        """
        fd = self._opened()
        end = offset + length
        offset += splice_pipe.level
        checked = end if self.proven else offset
        while splice_pipe.flush() and offset < end:
            if offset >= checked:
                checked = self._check_ahead(offset, min(end, offset + _AHEAD_BYTES))
            try:
                moved = self.files.splice(fd, min(end, checked) - offset, offset, splice_pipe.inlet)
            except OSError as error:
                if error.errno in _NO_SPLICING:
                    return False
                raise
            splice_pipe.level += moved
            offset += moved
            # After the pages were taken: what was changed before is not sent.
            mark = Mark.of(self.files.fstat(fd))
            if not moved or mark != self.mark:
                self._only_sums_are_new(mark, offset)
                checked = offset
        return True

    def is_right(self, sums: BlockSums) -> None:
        """What was read of the file since it had `mark` is right, and has these sums: keep them.

        Not those of a part: another copy may have given the rest. What was changed meanwhile is
        nothing that is known.
        """
        mark = Mark.of(self.files.fstat(self._opened()))
        if mark != self.mark or mark.size != sums.size:
            return
        if not sums.agree_with(self.own_sums):
            if self.keeps_sums:
                keep_sums(self.files, self._opened(), sums)
                self.mark = Mark.of(self.files.fstat(self._opened()))
            else:
                self.made_sums = MadeSums(self.copy.storage, mark, sums)
        if self.verified and mark.same_but_for_ctime(self.mark):
            self.verified.add(self.digest, self.mark)
            self.proven = True

    def close(self) -> None:
        """Give the descriptor back, once."""
        fd, self.fd = self.fd, None
        if fd is not None:
            self.files.close(fd)

    def _opened(self) -> int:
        if self.fd is None:
            raise ValueError("read of a closed copy")
        return self.fd

    def _sums(self) -> BlockSums:
        if self.sums is None:
            raise ValueError("a copy without block sums has no blocks to check")
        return self.sums

    def _read_blocks(self, begin: int, end: int, offset: int, length: int) -> bytes:
        """What is wanted of the blocks from `begin` up to `end`, all of which are right."""
        data = read_exactly(self.files, self._opened(), end - begin, begin)
        view = memoryview(data)
        for first, last in self._sums().blocks(begin, end):
            self._compare(first, last, crc32c(view[first - begin : last - begin]))
        exact = (begin, end) == (offset, offset + length)
        return data if exact else data[offset - begin :][:length]

    def _read_large(self, begin: int, end: int, offset: int, length: int) -> bytes:
        """A part of a block that is checked in pieces first, and again in those that are given."""
        block = self._block
        if block is None or block.begin != begin:
            block = self._check_block(begin, end)
        first = offset - offset % PIECE_BYTES
        last = min(-(-(offset + length) // PIECE_BYTES) * PIECE_BYTES, end)
        data = read_exactly(self.files, self._opened(), last - first, first)
        view = memoryview(data)
        for at in range(first, last, PIECE_BYTES):
            if (
                crc32c(view[at - first :][:PIECE_BYTES])
                != block.pieces[(at - begin) // PIECE_BYTES]
            ):
                raise Changed(f"{self.copy.path}: was changed while it was being sent")
        return data[offset - first :][:length]

    def _check_ahead(self, begin: int, end: int) -> int:
        """Where the blocks end that are right: that of `begin`, and those after it, up to `end`.

        What is wrong with a later one is said when it is its turn. Raises `Damaged`, `OSError`.
        """
        first, checked = self._sums().block(begin)
        self._check_block(first, checked)
        with suppress(Damaged, OSError):
            for block in self._sums().blocks(checked, end):
                self._check_block(*block)
                checked = block[1]
        return checked

    def _check_block(self, begin: int, end: int) -> "_CheckedBlock":
        """Compare a block with its sum, in pieces. Raises `Damaged`, `OSError`."""
        whole, pieces = 0, array("I")
        large = end - begin > _WHOLE_BYTES
        piece_bytes = PIECE_BYTES if large else _CHECK_BYTES
        for at in range(begin, end, piece_bytes):
            size = min(piece_bytes, end - at)
            data = read_exactly(self.files, self._opened(), size, at)
            whole = crc32c(data, whole)
            if large:
                pieces.append(crc32c(data))
        self._compare(begin, end, whole)
        self._block = _CheckedBlock(begin, pieces)
        return self._block

    def _compare(self, begin: int, end: int, found: int) -> None:
        if found != self._sums().of_block(begin):
            raise Damaged(f"{self.copy.path}: the bytes from {begin} to {end} are not those stored")
        if begin == self._checked_bytes:
            self._checked_bytes = end
            if end == self.copy.size:
                self.is_right(self._sums())

    def _only_sums_are_new(self, mark: Mark, end: int) -> None:
        """Go on with a file that got block sums after it was opened, and has this mark since.

        Writing them moves ctime, as any other change does. So what may still be on its way to the
        client, up to `end`, is checked by them, and all that follows. Raises `Changed`, `OSError`.
        """
        changed = Changed(f"{self.copy.path}: was changed while it was being sent")
        if self.own_sums or mark == self.mark or not mark.same_but_for_ctime(self.mark):
            raise changed
        sums = kept_sums(self.files, self._opened(), self.digest, self.copy.size)
        if sums is None:
            raise changed
        self.mark, self.sums, self.own_sums, self.proven = mark, sums, sums, False
        try:
            for begin, last in sums.blocks(max(0, end - _ON_ITS_WAY_BYTES), end):
                self._check_block(begin, last)
        except Damaged as error:
            raise changed from error


@attrs.frozen
class _CheckedBlock:
    """A large block that was right, and the sums of its pieces."""

    begin: int
    pieces: "array[int]"


def kept_sums(
    files: Syscalls, fd: int, digest: Digest, size: int | None = None
) -> BlockSums | None:
    """The block sums that are kept with a copy, `None` when there are none that can be used."""
    try:
        return BlockSums.parse(files.get_attribute(fd, SUMS_ATTRIBUTE), digest, size)
    except (OSError, BadSums):  # whatever an attribute is like, the copy itself may be good
        return None


def keep_sums(files: Syscalls, fd: int, sums: BlockSums) -> None:
    """Keep block sums with a copy, coarser ones where its file system has less room for them.

    Where it has none, or refuses, the copy goes without: that says nothing of the disk.
    """
    kept: BlockSums | None = sums
    while kept is not None:
        try:
            files.set_attribute(fd, SUMS_ATTRIBUTE, kept.encode())
        except OSError as error:
            if error.errno not in _NO_ROOM_THERE:
                return
            kept = kept.coarser()
        else:
            return


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
