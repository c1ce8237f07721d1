"""What was stored, told in order to those who follow it."""

import json
import re
from collections.abc import Mapping

import attrs

from stor.errors import Gone, Unavailable
from stor.http.bulk import BadRequest, Made, check_parameters
from stor.store import Feed

#: How long a client may wait for the first sample.
MAX_WAIT_SECONDS = 60.0

#: In one turn of the reactor: some milliseconds.
_PAGE = 1000

_CURSOR = re.compile(rb"([0-9a-f]{8})-([0-9]{1,19})")


@attrs.frozen
class Following:
    """From where on to tell what landed, `None`: from now on; and how long to wait for it."""

    cursor: tuple[str, int] | None
    wait_seconds: float

    @classmethod
    def parse(cls, given: Mapping[bytes, list[bytes]]) -> "Following":
        """Read the parameters of a query. Raises `BadRequest`."""
        check_parameters(given, "after", "wait")
        cursor = None
        if b"after" in given:
            match = _CURSOR.fullmatch(given[b"after"][0])
            if match is None or int(match[2]) >= 2**63:
                raise BadRequest("after: expected the cursor of an earlier answer")
            cursor = match[1].decode("ascii"), int(match[2])
        wait = given.get(b"wait", [b"0"])[0]
        if not re.fullmatch(rb"[0-9]{1,3}", wait) or int(wait) > MAX_WAIT_SECONDS:
            raise BadRequest(f"wait: expected whole seconds from 0 to {MAX_WAIT_SECONDS:.0f}")
        return cls(cursor, float(wait))

    def begin(self, feed: Feed) -> int:
        """After which number to begin. Raises `Gone`, `Unavailable`."""
        end = feed.end
        if self.cursor is None:
            return end
        host, number = self.cursor
        if host != feed.host:
            raise Gone("the cursor is another host's, or its state_directory was lost")
        if number > end and not feed.whole:
            raise Unavailable("a disk that is away may know what the cursor is about")
        if number > end:
            raise Gone("the cursor is of another time of this host")
        return number


class LandedAnswer(Made):
    """A JSON object a line for each sample that landed after a number."""

    def __init__(self, feed: Feed, number: int) -> None:
        self._feed = feed
        self._host = feed.host
        #: Everything up to this number was told.
        self.number = number
        self._first: bytes | None = None

    @property
    def cursor(self) -> str:
        """Where to go on."""
        return f"{self._host}-{self.number}"

    async def prepare(self) -> bool:
        """Have the first lines; whether there are any. Raises `Gone`, `Unavailable`."""
        self._first = await self._next()
        return bool(self._first)

    async def read(self, offset: int, length: int) -> bytes:
        """The next lines; none at the end. Raises like `prepare`."""
        first, self._first = self._first, None
        return await self._next() if first is None else first

    async def _next(self) -> bytes:
        lines: list[str] = []
        while not lines:
            page = await self._feed.after(self.number, _PAGE)
            if page.end == self.number:
                break
            for record in page.records:
                told = {
                    "sha": record.sha.hex(),
                    "size": record.size,
                    "time": record.time_ns / 1e9,
                    "cursor": f"{self._host}-{record.sequence}",
                }
                lines.append(json.dumps(told) + "\n")
            self.number = page.end
        return "".join(lines).encode("ascii")
