"""Sums of a large sample's blocks, so that any part of a copy is checked before it is sent.

A sum is CRC-32C (RFC 3720, appendix B.4): it finds every burst of up to 32 wrong bits, and costs
less than a tenth of SHA-256 where the processor has an instruction for it. Whether the sums
themselves are the sample's, its SHA-256 has said when they were made.
"""

import hashlib
import struct
import sys
from array import array
from collections.abc import Iterator
from threading import Lock

import attrs
from crc32c import crc32c

from stor.digest import Digest

#: The smallest block. Up to nine sums, those of 2.25 MiB, lie in ext4's inode with the rest of it.
MIN_BLOCK_BYTES = 256 * 1024

#: The sums of one sample, encoded: less than the block that ext4 has for all attributes of a file.
MAX_ENCODED_BYTES = 3584

#: Parts in which a block is read that is too large to be held whole.
PIECE_BYTES = 64 * 1024

_VERSION = 1
#: Version, log2 of the block size, padding, size of the sample, the first bytes of its SHA-256.
_HEAD = struct.Struct("<BBxxQ8s")
_SUM = struct.Struct("<I")
_MAX_SUMS = (MAX_ENCODED_BYTES - _HEAD.size - _SUM.size) // _SUM.size
_MAX_BLOCK_LOG2 = 48

_POLYNOMIAL = 0x82F63B78  # reflected, as the sums are
_ONE = 0x80000000


class BadSums(Exception):
    """What was kept as the sums of a sample cannot be them."""


@attrs.frozen
class BlockSums:
    """The sums of all blocks of one sample; the last block may be shorter than the others."""

    digest: Digest
    size: int
    block_bytes: int
    sums: "array[int]"

    @classmethod
    def parse(cls, data: bytes, digest: Digest, size: int | None = None) -> "BlockSums":
        """Decode what `encode` made for this sample, of any or this size. Raises `BadSums`."""
        if len(data) < _HEAD.size + _SUM.size:
            raise BadSums(f"block sums of {len(data)} bytes: too short")
        body = data[: -_SUM.size]
        if crc32c(body) != _SUM.unpack_from(data, len(body))[0]:
            raise BadSums("block sums: damaged, or not whole")
        version, log2, its_size, prefix = _HEAD.unpack_from(body)
        if version != _VERSION:
            raise BadSums(f"block sums of version {version}: expected {_VERSION}")
        if prefix != digest.raw[:8] or size not in (None, its_size):
            raise BadSums("block sums: they are those of another sample")
        if not MIN_BLOCK_BYTES <= 1 << log2 <= 1 << _MAX_BLOCK_LOG2:
            raise BadSums(f"block sums of blocks of 2^{log2} bytes: not a size that is used")
        if len(body) != _HEAD.size + _SUM.size * _count(its_size, 1 << log2):
            raise BadSums(f"block sums: {len(body)} bytes are not one sum for each block")
        return cls(digest, its_size, 1 << log2, _numbers(body[_HEAD.size :]))

    def encode(self) -> bytes:
        """As kept with a copy: at most `MAX_ENCODED_BYTES` after `BlockSummer.finish`."""
        log2 = self.block_bytes.bit_length() - 1
        head = _HEAD.pack(_VERSION, log2, self.size, self.digest.raw[:8])
        body = head + b"".join(map(_SUM.pack, self.sums))
        return body + _SUM.pack(crc32c(body))

    def coarser(self) -> "BlockSums | None":
        """The same with blocks twice as large; `None` when there is one block only."""
        if len(self.sums) < 2:
            return None
        merged = array("I")
        for index in range(0, len(self.sums) - 1, 2):
            begin = (index + 1) * self.block_bytes
            length = min(self.block_bytes, self.size - begin)
            merged.append(_join(self.sums[index], self.sums[index + 1], length))
        if len(self.sums) % 2:
            merged.append(self.sums[-1])
        return BlockSums(self.digest, self.size, self.block_bytes * 2, merged)

    def agree_with(self, others: "BlockSums | None") -> bool:
        """Whether `others` are the same, be it of larger blocks."""
        mine: BlockSums | None = self
        while others is not None and mine is not None and mine.block_bytes < others.block_bytes:
            mine = mine.coarser()
        return others is not None and mine == others

    def block(self, offset: int) -> tuple[int, int]:
        """Where the block with the byte at `offset` begins and ends."""
        begin = offset - offset % self.block_bytes
        return begin, min(begin + self.block_bytes, self.size)

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The blocks that the bytes from `begin` up to `end` touch."""
        while begin < end:
            block = self.block(begin)
            yield block
            begin = block[1]

    def of_block(self, offset: int) -> int:
        """The sum of the block with the byte at `offset`."""
        return self.sums[offset // self.block_bytes]

    def fits(self, begin: int, block: bytes | memoryview) -> bool:
        """Whether `block` is the whole block that begins at `begin`."""
        whole = (begin, begin + len(block)) == self.block(begin)
        return whole and crc32c(block) == self.of_block(begin)


class BlockSummer:
    """Makes the sums of a sample from its bytes, in order, whatever its length will be.

    Its methods may be called in any thread. Copies that are written at once share one: each gives
    it all bytes, in order, and what one has given is not summed again for the others.
    """

    def __init__(self, hasher: "hashlib._Hash | None" = None) -> None:
        """`hasher` is given all bytes, too, where it is not known yet whether they are right."""
        self.size = 0
        self._hasher = hasher
        self._lock = Lock()
        self._sums = array("I")
        self._sum = 0

    def update(self, data: bytes, at: int | None = None) -> None:
        """Take the next bytes; of those that begin `at` what is next, if anything is."""
        with self._lock:
            if at is None:
                self._add(memoryview(data))
            elif at <= self.size:
                self._add(memoryview(data)[self.size - at :])

    def _add(self, rest: memoryview) -> None:
        while rest:
            room = MIN_BLOCK_BYTES - self.size % MIN_BLOCK_BYTES
            part, rest = rest[:room], rest[room:]
            self._sum = crc32c(part, self._sum)
            if self._hasher is not None:
                self._hasher.update(part)
            self.size += len(part)
            if self.size % MIN_BLOCK_BYTES == 0:
                self._sums.append(self._sum)
                self._sum = 0

    def denies(self, digest: Digest, size: int) -> bool:
        """Whether all that was given was hashed, and is not the sample, which has `size` bytes."""
        hasher = self._hasher
        return hasher is not None and (self.size, hasher.digest()) != (size, digest.raw)

    def finish(self, digest: Digest) -> BlockSums:
        """The sums of all that was given, which is the sample; few enough to be kept with it."""
        sums = array("I", self._sums)
        if self.size % MIN_BLOCK_BYTES:
            sums.append(self._sum)
        made = BlockSums(digest, self.size, MIN_BLOCK_BYTES, sums)
        while len(made.sums) > _MAX_SUMS and (coarser := made.coarser()) is not None:
            made = coarser
        return made


def _count(size: int, block_bytes: int) -> int:
    return -(-size // block_bytes)


def _numbers(data: bytes) -> "array[int]":
    numbers = array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _join(first: int, second: int, second_bytes: int) -> int:
    """The sum of two parts, from their sums and the length of the second.

    The second's bytes shift the first's polynomial by as many bits, modulo the CRC's.
    """
    return _times(_shift(8 * second_bytes), first) ^ second


def _shift(bits: int) -> int:
    """X to the power of `bits`, modulo the polynomial."""
    power, square = _ONE, _ONE >> 1
    while bits:
        if bits & 1:
            power = _times(power, square)
        square = _times(square, square)
        bits >>= 1
    return power


def _times(left: int, right: int) -> int:
    """The product of two polynomials, modulo the CRC's. Bit 31 is x^0."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = left << 1 & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product
