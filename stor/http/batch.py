"""Many samples in one answer: a TAR that is made while it is sent."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from stor.digest import Digest
from stor.errors import NotFound
from stor.http.answer import answer_to
from stor.http.bulk import MISSING, SHA_BYTES, STORED, UNKNOWN, Made, MissingAnswer, ShaList

_BLOCK = 512

#: What follows the kind of a member.
_END = bytes(100) + b"ustar\00000" + bytes(_BLOCK - 148 - 8 - 1 - 100 - 8)
_END_SUM = sum(_END)

#: What a ustar header can say of a size: 11 octal digits.
_USTAR_BYTES = 8 * 1024**3

#: What one small sample takes at most that was opened ahead of its turn: it is whole in memory.
_WHOLE_BYTES = 256 * 1024

#: How many samples one answer opens ahead: as many disks work for it at once.
_AHEAD = 16

#: What all answers together have ahead in memory.
AHEAD_BYTES = 16 * 1024 * 1024

#: How many shas are sorted at a time, where another order is asked for: what that takes in memory
#: is bounded, and the answer begins soon.
WINDOW = 65_536

#: As many samples are opened in one turn of the reactor when none of them waits for a disk.
_TURN = 50


class Sample(Protocol):
    """What `stor.store.Store.open` gives."""

    size: int
    modified_ns: int
    whole: bytes | None

    async def read(self, offset: int, length: int) -> bytes:
        """From 1 to `length` verified bytes from `offset`."""

    def close(self) -> None:
        """Nothing more is read."""


class Whole(Protocol):
    """A sample that is whole in memory, and right: `stor.disk.page_cache.CachedCopy`, read."""

    content: bytes | bytearray | None
    modified_ns: int


Open = Callable[[Digest], Awaitable[Sample]]


class Ahead:
    """What all answers of the process share: the memory for samples that wait for their turn."""

    def __init__(self, total_bytes: int = AHEAD_BYTES) -> None:
        self._total_bytes = total_bytes
        self.kept_bytes = 0

    def take(self) -> bool:
        """Whether one more sample may be opened ahead; `release` gives its place back."""
        if self.kept_bytes + _WHOLE_BYTES > self._total_bytes:
            return False
        self.kept_bytes += _WHOLE_BYTES
        return True

    def release(self) -> None:
        """One that was ahead has its turn."""
        self.kept_bytes -= _WHOLE_BYTES


@attrs.define
class _Opening:
    """A sample that is being opened; `ahead`: before its turn."""

    digest: Digest
    opened: Deferred[Sample | bytes]
    ahead: bool

    @property
    def is_whole(self) -> bool:
        """Whether nothing has to wait for it any more."""
        opened: Any = self.opened.result if self.opened.called else None
        return isinstance(opened, bytes) or (opened is not None and opened.whole is not None)


class BatchAnswer(Made):
    """The samples of a list, each a member that is named by its sha: in its order, or in another.

    What is not there is listed in a last member, `missing.txt`, in the form of `POST /missing`.
    Memory does not grow with the list beyond the list itself.
    """

    log = Logger()

    def __init__(
        self,
        shas: ShaList,
        open_sample: Open,
        ahead: Ahead,
        clock: IReactorTime,
        now_ns: int,
        *,
        at_once: Callable[[bytes], Whole | NotFound | None] = lambda raw: None,
        order: Callable[[bytes], Awaitable[bytes]] | None = None,
        window: int = WINDOW,
    ) -> None:
        """`now_ns` is the time of `missing.txt`.

        `at_once` gives what `open_sample` would, where nothing has to wait for a disk. `order`
        gives shas in the order in which they are to be sent, for `window` of them at a time.
        """
        self._shas = shas
        self._at_once = at_once
        self._order = order
        self._window = window
        #: Up to here the list is in the order in which it is sent.
        self._ordered = 0 if order is not None else len(shas.raw)
        self._now_ns = now_ns
        self._open = open_sample
        self._ahead = ahead
        self._clock = clock
        self._next = 0
        self._turn = 0
        self._openings: deque[_Opening] = deque()
        self._missing = MissingAnswer(shas, lambda sha: UNKNOWN, clock, octets=False)
        #: The large sample that is being sent, and how much of it was.
        self._sample: Sample | None = None
        self._offset = 0
        #: What follows the samples, once they are all sent.
        self._end: bytes | None = None
        self._closed = False

    async def read(self, offset: int, length: int) -> bytes:
        """The next bytes, about `length` of them; none at the end.

        Raises what reading a large sample does: what has begun cannot be ended well.
        """
        parts: list[bytes | bytearray] = []
        size = 0
        while size < length and not self._closed:
            if self._sample is None and not self._openings:
                if self._next >= self._ordered:
                    await self._put_in_order()
                before = self._next
                size += self._take_at_once(parts, length - size)
                await self._yield()
                if self._next > before:
                    continue
                if parts:  # what there is goes out before anything is waited for
                    break
            data = await self._piece(length)
            if data is None:
                continue
            if not data:
                break
            parts.append(data)
            size += len(data)
            if not self._is_ready:
                break
        return b"".join(parts)

    def _take_at_once(self, parts: list[bytes | bytearray], room: int) -> int:
        """Add the next samples for which nothing has to wait, about `room` bytes of them.

        They are the bulk of most lists, and go without a Deferred, a thread and a place ahead.
        """
        raw, end, at_once, taken = self._shas.raw, self._ordered, self._at_once, 0
        for _ in range(_TURN):
            if self._next >= end or taken >= room:
                break
            sha = bytes(raw[self._next : self._next + SHA_BYTES])
            found = at_once(sha)
            if found is None:
                break
            self._next += SHA_BYTES
            self._turn += 1
            if isinstance(found, NotFound):
                self._missing.say(MISSING)
                continue
            self._missing.say(STORED)
            content = found.content or b""
            size = len(content)
            head, padding = header(sha.hex(), size, found.modified_ns), _padding(size)
            parts += (head, content, padding)
            taken += len(head) + size + len(padding)
        return taken

    async def _put_in_order(self) -> None:
        """Sort the next part of the list, in its place."""
        begin, raw = self._ordered, self._shas.raw
        if self._order is not None and begin < len(raw):
            end = min(begin + self._window * SHA_BYTES, len(raw))
            raw[begin:end] = await self._order(bytes(raw[begin:end]))
            self._ordered = end

    def close(self) -> None:
        """Give back all that is open, also what is still to be opened. Not while a read is made."""
        self._closed = True
        sample, self._sample = self._sample, None
        if sample is not None:
            sample.close()
        while self._openings:
            opening = self._openings.popleft()
            self._release(opening)
            opening.opened.addCallback(_close)

    def give_up(self) -> None:
        """The client is gone."""
        self._closed = True
        give_up = getattr(self._sample, "give_up", None)
        if give_up is not None:
            give_up()

    @property
    def _is_ready(self) -> bool:
        """Whether the next bytes are there already."""
        openings = self._openings
        return self._sample is None and bool(openings) and bool(openings[0].opened.called)

    async def _piece(self, length: int) -> bytes | None:
        """The next bytes; none at the end; `None` where the list has to be put in order first."""
        if self._sample is not None:
            return await self._more(self._sample, length)
        while not self._closed:
            self._look_ahead()
            if not self._openings:
                return None if self._next < len(self._shas.raw) else await self._last()
            opening = self._openings[0]
            opened = await opening.opened
            self._openings.popleft()
            self._release(opening)
            if self._closed:
                _close(opened)
                return b""
            self._turn += 1
            await self._yield()
            if isinstance(opened, bytes):
                self._missing.say(opened)
                continue
            self._missing.say(STORED)
            head = header(str(opening.digest), opened.size, opened.modified_ns)
            if opened.whole is not None:
                opened.close()
                return b"%b%b%b" % (head, opened.whole, _padding(opened.size))
            self._sample, self._offset = opened, 0
            return head
        return b""

    async def _more(self, sample: Sample, length: int) -> bytes:
        data = await sample.read(self._offset, min(length, sample.size - self._offset))
        self._offset += len(data)
        if self._offset < sample.size:
            return data
        self._sample = None
        sample.close()
        return data + _padding(sample.size)

    async def _last(self) -> bytes:
        """`missing.txt` and the end."""
        missing = self._missing
        if self._end is None:
            missing.finish()
            self._end = _padding(missing.size) + bytes(2 * _BLOCK)
            return header("missing.txt", missing.size, self._now_ns)
        data = await missing.read(0, 0)
        if data or self._closed:
            return data
        self._closed = True
        return self._end

    def _look_ahead(self) -> None:
        """Open the next ones: the one whose turn it is, and more as far as there is room."""
        raw = self._shas.raw
        while self._next < self._ordered and len(self._openings) < _AHEAD:
            ahead = bool(self._openings)
            if ahead and all(opening.is_whole for opening in self._openings):
                return  # what comes after them may be there at once
            if ahead and not self._ahead.take():
                return
            digest = Digest(bytes(raw[self._next : self._next + SHA_BYTES]))
            self._next += SHA_BYTES
            opened = Deferred.fromCoroutine(self._opened(digest))
            self._openings.append(_Opening(digest, opened, ahead))

    async def _opened(self, digest: Digest) -> Sample | bytes:
        """The sample, or what is said of it where it cannot be had."""
        try:
            return await self._open(digest)
        except NotFound:
            return MISSING
        except Exception as error:
            if answer_to(error) is None:
                self.log.failure("Opening {digest}", digest=digest)
            return UNKNOWN

    def _release(self, opening: _Opening) -> None:
        if opening.ahead:
            self._ahead.release()

    async def _yield(self) -> None:
        """Let others have their turn: a list may be of samples that nobody waits for."""
        if self._turn >= _TURN:
            self._turn = 0
            await deferLater(self._clock, 0)


def header(name: str, size: int, modified_ns: int) -> bytes:
    """A member's head in the pax interchange format (POSIX.1-2017, pax)."""
    seconds = min(max(modified_ns // 10**9, 0), 8**11 - 1)
    if size < _USTAR_BYTES:
        return _ustar(name, size, seconds, b"0")
    # Each record has its own length at its beginning; that of this one has two digits.
    record = b" size=%d\n" % size
    record = b"%d%b" % (len(record) + 2, record)
    extended = _ustar("pax", len(record), seconds, b"x") + record + _padding(len(record))
    return extended + _ustar(name, 0, seconds, b"0")


def _ustar(name: str, size: int, seconds: int, kind: bytes) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (0o644, 0, 0, size, seconds)
    begin = name.encode("ascii").ljust(100, b"\0") + numbers
    # The sum of all bytes, those of the checksum itself as spaces.
    checksum = sum(begin) + sum(kind) + _END_SUM + 8 * ord(" ")
    return b"%b%06o\0 %b%b" % (begin, checksum, kind, _END)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _close(opened: Any) -> None:
    if not isinstance(opened, bytes):
        opened.close()
