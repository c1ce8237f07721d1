"""What a Stor tells of its samples: `GET /index`, a page of all there are, and `GET /landed`."""

import json
import re

import attrs

from stor.digest import Digest

#: What one page has: a line of /index is about 80 bytes long, one of /landed 150.
PAGE = 10_000
INDEX_BYTES = PAGE * 90 + 100

#: A longer line is none.
_LINE_BYTES = 1000

_CURSOR = re.compile(r"[0-9A-Za-z_.-]{1,100}")


class Enough(Exception):
    """So many lines have come that the rest is asked for later."""


@attrs.frozen
class Listed:
    """A sample, as a Stor lists it."""

    digest: Digest
    size: int


@attrs.frozen
class Landed:
    """What landed, in order, and the cursor to go on from."""

    samples: list[Listed]
    cursor: str


def index_page(content: bytes) -> list[Listed]:
    """The samples of a page of `GET /index`. Raises `ValueError` unless it is whole."""
    *lines, end = content.decode("ascii").removesuffix("\n").split("\n")
    if end != f"end {len(lines)}":
        raise ValueError("it has no end")
    found = []
    for line in lines:
        sha, _, size = line.partition(" ")
        found.append(Listed(Digest.parse(sha), _size(size)))
    return found


def is_cursor(text: object) -> bool:
    """Whether this may be one: it goes into a URL, and into a file."""
    return isinstance(text, str) and _CURSOR.fullmatch(text) is not None


class LandedLines:
    """A `Sink` for an answer of `GET /landed`: each whole line is good by itself."""

    #: It is never resumed by bytes: the cursor of the last line does that.
    received_bytes = 0

    def __init__(self) -> None:
        self.samples: list[Listed] = []
        self.cursor = ""
        self._begun = b""

    async def begin(self) -> None:
        """See `Sink`."""

    async def add(self, data: bytes, *, last: bool) -> None:
        """See `Sink`. Raises `Enough`, and `ValueError` for what is no such line."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > _LINE_BYTES:
            raise ValueError("a line is too long")
        for line in lines:
            told = json.loads(line)
            if not isinstance(told, dict) or not is_cursor(told.get("cursor")):
                raise ValueError("a line has no cursor")
            self.samples.append(Listed(Digest.parse(str(told.get("sha"))), _size(told.get("size"))))
            self.cursor = told["cursor"]
        if len(self.samples) >= PAGE and not last:
            raise Enough


def _size(found: object) -> int:
    text = str(found)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("a line has no size")
    return int(text)
