"""A sample's name: the SHA-256 of its bytes."""

import hashlib
import re
from functools import cached_property
from typing import Protocol

import attrs

_SIXTY_FOUR_HEX_DIGITS = re.compile(r"[0-9a-fA-F]{64}")


class MalformedDigest(ValueError):
    """The text is not 64 hexadecimal digits."""

    def __init__(self) -> None:
        super().__init__("malformed sha: expected the 64 hexadecimal digits of a SHA-256")


@attrs.frozen
class Digest:
    """The 32 bytes of a SHA-256 (FIPS 180-4). Two spellings of one sample are one `Digest`."""

    raw: bytes = attrs.field(repr=lambda raw: raw.hex())

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read 64 hexadecimal digits in either case, and nothing else: no space, sign or newline.

        Raises `MalformedDigest`.
        """
        if not is_digest(text):
            raise MalformedDigest
        return cls(bytes.fromhex(text))

    @classmethod
    def of(cls, content: bytes) -> "Digest":
        """The digest of `content`."""
        return cls(hashlib.sha256(content).digest())

    def __str__(self) -> str:
        return self.raw.hex()

    @cached_property
    def directories(self) -> tuple[str, str, str]:
        """The directories that hold the sample below a storage root, outermost first."""
        name = self.raw.hex().upper()
        outer, middle, inner = name[:2], name[2:4], name[4:6]
        return outer, f"{outer}/{middle}", f"{outer}/{middle}/{inner}"

    @property
    def disk_path(self) -> str:
        """The sample's path below a storage root: `AA/BB/CC/<64 digits>.dat`, all upper case."""
        name = self.raw.hex().upper()
        return f"{name[:2]}/{name[2:4]}/{name[4:6]}/{name}.dat"

    @property
    def s3_key(self) -> str:
        """The sample's key in a bucket: `aa/bb/cc/<64 digits>`, all lower case."""
        name = self.raw.hex()
        return f"{name[:2]}/{name[2:4]}/{name[4:6]}/{name}"


def is_digest(text: str) -> bool:
    """Whether `Digest.parse` can read it."""
    return _SIXTY_FOUR_HEX_DIGITS.fullmatch(text) is not None


class Hasher(Protocol):
    """A running hash, as hashlib makes them."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """The hash of all bytes taken in."""
