"""Many samples in one request: lists of shas that are asked about, and the index told in order."""

import re
from collections.abc import Awaitable, Callable, Mapping

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.errors import Unavailable
from stor.http.answer import INTERNAL_ERROR, Answer, answer_to
from stor.http.upload import ClientGone, Flow, Head, Intake
from stor.reader import show

#: How many shas one list may have.
MAX_SHAS = 1_000_000

SHA_BYTES = 32

#: A list as text is no longer than with CRLF after each sha and an empty line after that: empty
#: lines are skipped, and a body of nothing else would never end.
TEXT_BYTES = 68

#: What all lists together keep in memory.
TOTAL_BYTES = 4 * MAX_SHAS * SHA_BYTES

#: When a client whose list was one too many may try again.
RETRY_SECONDS = 5

#: What is asked or written in one turn of the reactor: some milliseconds.
SLICE = 1000

#: With this many bytes of a body that may not be looked at yet, its socket is no longer read.
EARLY_BYTES = 64 * 1024

#: How many samples one listing has, and how many where nothing is said.
MAX_LISTED = 1_000_000
LISTED = 10_000

STORED, MISSING, UNKNOWN = b"+", b"-", b"?"

_SHA = re.compile(rb"[0-9a-fA-F]{64}")


class BadRequest(Exception):
    """What was asked makes no sense; the text says why."""


class ListTooLong(Exception):
    """A list has more than it may."""

    def __init__(self, max_shas: int) -> None:
        super().__init__(f"too large: a list has at most {max_shas} shas; send it in parts")


class ShaList:
    """Shas as they come in a body, 32 bytes each in memory. Checked while they come."""

    def __init__(self, *, octets: bool, max_shas: int = MAX_SHAS) -> None:
        """`octets`: 32 bytes a sha, else lines of 64 hexadecimal digits."""
        self.octets = octets
        self.raw = bytearray()
        self._max_shas = max_shas
        self._received_bytes = 0
        self._lines = 0
        self._begun = b""

    def __len__(self) -> int:
        return len(self.raw) // SHA_BYTES

    @property
    def kept_bytes(self) -> int:
        """What is in memory."""
        return len(self.raw) + len(self._begun)

    def expect(self, length: int) -> None:
        """Expect this many bytes. Raises `ListTooLong`, `BadRequest`."""
        each = SHA_BYTES if self.octets else TEXT_BYTES
        if length > self._max_shas * each:
            raise ListTooLong(self._max_shas)
        if self.octets and length % SHA_BYTES:
            raise self._odd(length)

    def add(self, data: bytes) -> None:
        """Take in a piece of the body. Raises `ListTooLong`, `BadRequest`."""
        self._received_bytes += len(data)
        if self.octets:
            if self._received_bytes > self._max_shas * SHA_BYTES:
                raise ListTooLong(self._max_shas)
            self.raw += data
            return
        lines = (self._begun + data).split(b"\n")
        self._begun = lines.pop()
        for line in lines:
            self._add_line(line)
        if len(self._begun) > 65:  # 64 digits and a CR
            self._add_line(self._begun)
        if self._received_bytes > self._max_shas * TEXT_BYTES:
            raise ListTooLong(self._max_shas)

    def end(self) -> None:
        """The body has ended. Raises `ListTooLong`, `BadRequest`."""
        if self.octets and self._received_bytes % SHA_BYTES:
            raise self._odd(self._received_bytes)
        begun, self._begun = self._begun, b""
        self._add_line(begun)

    def _add_line(self, line: bytes) -> None:
        self._lines += 1
        line = line.removesuffix(b"\r")
        if not line:
            return
        if not _SHA.fullmatch(line):
            expected = "expected the 64 hexadecimal digits of a SHA-256"
            raise BadRequest(f"malformed list: line {self._lines}: {expected}")
        if len(self) >= self._max_shas:
            raise ListTooLong(self._max_shas)
        self.raw += bytes.fromhex(line.decode("ascii"))

    @staticmethod
    def _odd(length: int) -> BadRequest:
        expected = f"expected a multiple of {SHA_BYTES}, the length of a SHA-256"
        return BadRequest(f"malformed list: {length} bytes: {expected}")


class Lists:
    """What all lists of the process share: the memory for them."""

    def __init__(self, max_shas: int = MAX_SHAS, total_bytes: int = TOTAL_BYTES) -> None:
        self.max_shas = max_shas
        self._total_bytes = total_bytes
        self.kept_bytes = 0

    def keep(self, more: int) -> None:
        """Count `more` bytes, or fewer. Raises `Unavailable` when it is too much in all."""
        self.kept_bytes += more
        if more > 0 and self.kept_bytes > self._total_bytes:
            raise Unavailable("too many lists of shas at once", RETRY_SECONDS)


class ListBody(Intake):
    """The body of a request that is a list, from its head until the request is over.

    `answer` fires once: with a refusal, perhaps long before the body has ended, or with `None`
    when the list is whole and good.
    """

    log = Logger()

    def __init__(
        self,
        lists: Lists,
        head: Head,
        flow: Flow,
        shas: ShaList,
        authorize: Callable[[], Awaitable[None]],
    ) -> None:
        """`authorize` raises when the client may not ask."""
        super().__init__(flow)
        self.shas = shas
        self._lists = lists
        self._head = head
        self._authorize = authorize
        self._kept_bytes = 0
        self.answer: Deferred[Answer | None] = Deferred()

    def start(self) -> None:
        """Take the decisions that come before the body."""
        Deferred.fromCoroutine(self._run()).addErrback(self._explain).addCallback(self._finish)

    @property
    def _crowded(self) -> bool:
        return self._waiting_bytes >= EARLY_BYTES

    def release(self) -> None:
        """The request is over: keep nothing."""
        self._take()
        self._lists.keep(-self._kept_bytes)
        self._kept_bytes = 0

    async def _run(self) -> None:
        await self._authorize()
        self.shas.expect(self._head.length or 0)
        self._flow.proceed()
        last = False
        while not last:
            chunks = await self._next(1)
            last = self._ended
            for chunk in chunks:
                self.shas.add(chunk)
                self._count()
            self._read_on()
        self.shas.end()
        self._count()

    def _count(self) -> None:
        more = self.shas.kept_bytes - self._kept_bytes
        self._kept_bytes += more
        self._lists.keep(more)

    def _explain(self, failure: Failure) -> Answer:
        if failure.check(BadRequest):
            return Answer.line(400, str(failure.value))
        if failure.check(ListTooLong):
            return Answer.line(413, str(failure.value))
        if failure.check(ClientGone):
            return Answer.line(400, "the body is incomplete")
        answer = answer_to(failure.value)
        if answer is None:
            self.log.failure("Reading a list for {name!r}", failure, name=self._head.name)
        return answer or INTERNAL_ERROR

    def _finish(self, answer: Answer | None) -> None:
        self._close()
        self.answer.callback(answer)


class Made:
    """What answers have in common that are made while they are sent: nothing is held open."""

    sendable = False

    async def send(self, splice_pipe: object, offset: int, length: int) -> bool:
        """Nothing is sent past memory."""
        return False

    def close(self) -> None:
        """Nothing more is read."""

    def give_up(self) -> None:
        """The client is gone."""


class MissingAnswer(Made):
    """What is said of each sha of a list."""

    def __init__(
        self,
        shas: ShaList,
        held: Callable[[bytes], bytes],
        clock: IReactorTime,
        *,
        octets: bool | None = None,
    ) -> None:
        """`held` gives `STORED`, `MISSING` or `UNKNOWN` at once.

        `octets` says in which form; by default that of the list.
        """
        self._shas = shas
        self._octets = shas.octets if octets is None else octets
        self._held = held
        self._clock = clock
        self._at = 0
        self._states = bytearray()
        self._end = b""

    async def prepare(self, gone: Callable[[], bool]) -> None:
        """Ask about every sha, a slice a turn; no further once the client is gone."""
        raw, held = self._shas.raw, self._held
        for begin in range(0, len(raw), SLICE * SHA_BYTES):
            if begin:
                await deferLater(self._clock, 0)
            if gone():
                return
            for at in range(begin, min(begin + SLICE * SHA_BYTES, len(raw)), SHA_BYTES):
                self.say(held(bytes(raw[at : at + SHA_BYTES])))
        self.finish()

    def say(self, state: bytes) -> None:
        """Say this of the next sha."""
        self._states += state

    def finish(self) -> None:
        """All is said."""
        counts = len(self._states), self._states.count(MISSING), self._states.count(UNKNOWN)
        self._end = b"" if self._octets else b"end %d %d %d\n" % counts

    @property
    def content_type(self) -> str:
        """In the form that was asked in."""
        octets = self._octets
        return "application/octet-stream" if octets else "text/plain; charset=utf-8"

    @property
    def size(self) -> int:
        """How many bytes the answer has."""
        if self._octets:
            return len(self._states)
        told = len(self._states) - self._states.count(STORED)
        return told * len(b"missing %s\n" % bytes(64)) + len(self._end)

    async def read(self, offset: int, length: int) -> bytes:
        """The next bytes, whichever `offset` says; none at the end."""
        if self._octets:
            return bytes(self._states[offset : offset + length])
        while self._at < len(self._states):
            begin, self._at = self._at, self._at + SLICE
            lines = self._lines(begin)
            if lines:
                return lines
        end, self._end = self._end, b""
        return end

    def _lines(self, begin: int) -> bytes:
        lines = []
        for at, state in enumerate(self._states[begin : begin + SLICE], begin):
            if state != STORED[0]:
                word = "missing" if state == MISSING[0] else "unknown"
                sha = self._shas.raw[at * SHA_BYTES : (at + 1) * SHA_BYTES].hex()
                lines.append(f"{word} {sha}\n")
        return "".join(lines).encode("ascii")


@attrs.frozen
class Listing:
    """Which samples to list: from `begin` up to `end`, and how many."""

    begin: int
    end: int
    limit: int

    @classmethod
    def parse(cls, given: Mapping[bytes, list[bytes]]) -> "Listing":
        """Read the parameters of a query. Raises `BadRequest`."""
        check_parameters(given, "prefix", "after", "limit")
        prefix = given.get(b"prefix", [b""])[0]
        if not re.fullmatch(rb"[0-9a-fA-F]{0,64}", prefix):
            raise BadRequest("prefix: expected 0 to 64 hexadecimal digits")
        begin, end = (int(prefix.ljust(64, fill), 16) for fill in (b"0", b"f"))
        if b"after" in given:
            if not _SHA.fullmatch(given[b"after"][0]):
                raise BadRequest("after: expected the 64 hexadecimal digits of a SHA-256")
            begin = max(begin, int(given[b"after"][0], 16) + 1)
        limit = given.get(b"limit", [b"%d" % LISTED])[0]
        if not re.fullmatch(rb"[0-9]{1,9}", limit) or not 1 <= int(limit) <= MAX_LISTED:
            raise BadRequest(f"limit: expected a number from 1 to {MAX_LISTED}")
        return cls(begin, end, int(limit))


def check_parameters(given: Mapping[bytes, list[bytes]], *known: str) -> None:
    """Raise `BadRequest` for a parameter that is none of those `known`, or given twice."""
    for encoded, values in given.items():
        name = encoded.decode("latin-1")
        if name not in known:
            *most, last = known
            expected = f"{', '.join(most)} or {last}" if most else last
            raise BadRequest(f"unknown parameter {show(name)}: expected {expected}")
        if len(values) > 1:
            raise BadRequest(f"{name}: expected it once")


Listed = Callable[[bytes, int], Awaitable[list[tuple[bytes, int]] | None]]


class ListingAnswer(Made):
    """The samples of a listing, a line each."""

    def __init__(self, listing: Listing, listed: Listed) -> None:
        """`listed` gives the samples from a sha on, sorted; `None`: not all are known yet."""
        self._begin = listing.begin
        self._last = listing.end
        self._left = listing.limit
        self._listed = listed
        self._count = 0
        self._first: bytes | None = None
        self._ended = False

    async def prepare(self) -> None:
        """Have the first lines. Raises `Unavailable`."""
        self._first = await self._next()

    async def read(self, offset: int, length: int) -> bytes:
        """The next lines; none at the end. Raises `Unavailable`."""
        first, self._first = self._first, None
        return await self._next() if first is None else first

    async def _next(self) -> bytes:
        if self._ended:
            return b""
        wanted = min(SLICE, self._left)
        samples: list[tuple[bytes, int]] | None = []
        if wanted and self._begin <= self._last:
            samples = await self._listed(self._begin.to_bytes(SHA_BYTES, "big"), wanted)
        if samples is None:
            reason = "a set has no complete disk that can be read now: /status says why"
            raise Unavailable(reason, RETRY_SECONDS)
        last = self._last.to_bytes(SHA_BYTES, "big")
        lines = [f"{sha.hex()} {size}\n" for sha, size in samples if sha <= last]
        self._count += len(lines)
        self._left -= len(lines)
        if len(lines) < wanted or not wanted:
            self._ended = True
            lines.append(f"end {self._count}\n")
        else:
            self._begin = int.from_bytes(samples[-1][0], "big") + 1
        return "".join(lines).encode("ascii")
