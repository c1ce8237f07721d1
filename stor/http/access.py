"""What is said of a request that is over."""

import itertools
import re
import secrets
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted
from typing import NamedTuple, Protocol
from urllib.parse import quote

import attrs
from twisted.logger import Logger

from stor.paths import printable

#: How much of what a client has sent the log shows in one field.
_WORD_BYTES = 64

#: What of a word stands in the log as it is; the rest is percent-encoded.
_WORD_CHARACTERS = "!#$&'()*+,-./:;=?@[]_{|}~"

#: A request's name is taken from its client when it looks like this.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,64}")


class Served(NamedTuple):
    """A request that is over, well or badly.

    `outcome` is "done", or "cut" when the client got less than the whole answer. `storage` is
    where the sample came from, or is now: a disk's root or `s3`, several roots with commas after an
    upload. `bytes` count bodies alone. `status` is 0 when none was sent. `route` is what was asked
    for, a `sample` or the name of a page, and `causes` say why it was not to be had, as
    `stor.http.answer.Answer` has them. `user` is as whom the client asked, where that mattered:
    with 401 in vain. `part` is its Range.
    """

    peer: str
    method: str
    path: str
    status: int
    sent_bytes: int
    received_bytes: int
    seconds: float
    outcome: str
    route: str = "sample"
    storage: str | None = None
    causes: tuple[str, ...] = ()
    user: str = "-"
    part: str = "-"
    request_id: str = "-"

    @classmethod
    def unbegun(
        cls, peer: str, method: bytes, path: str, status: int, sent_bytes: int, request_id: str
    ) -> "Served":
        """What was refused before it was a request, of which little may be known."""
        about = (peer, word(method), path, status, sent_bytes, 0, 0.0, "done", "other")
        return cls(*about, request_id=request_id)


#: Told of every request that is over.
Observer = Callable[[Served], None]

#: The reactor's way to have something done later.
CallLater = Callable[[float, Callable[[], None]], object]


def word(text: bytes | None) -> str:
    """What a client has sent as one word of a log line, `-` for nothing."""
    if not text:
        return "-"
    return quote(text[:_WORD_BYTES], safe=_WORD_CHARACTERS)


class RequestIds:
    """The names of requests: those that clients or proxies give them, else made here."""

    def __init__(self) -> None:
        self._begin = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """A name that no other request has."""
        return f"{self._begin}-{next(self._numbers):x}"

    def given(self, name: bytes | None) -> str:
        """The name that came with a request, if it is short and plain, else `next`."""
        if name is None or _REQUEST_ID.fullmatch(name) is None:
            return self.next()
        return name.decode("ascii")


def together(*observers: Observer) -> Observer:
    """One observer for several."""

    def tell(served: Served) -> None:
        for observer in observers:
            observer(served)

    return tell


class Afterwards:
    """Tells an observer of requests once the answers of this turn of the reactor are sent.

    Answers do not wait for what is said of others; and many told in one go take half the time of
    as many told between system calls, which leave the processor's caches to the kernel.
    """

    def __init__(self, call_later: CallLater, observer: Observer) -> None:
        """`call_later` is the reactor's."""
        self._call_later = call_later
        self._observer = observer
        self._waiting: list[Served] = []

    def __call__(self, served: Served) -> None:
        """A request is over."""
        if not self._waiting:
            self._call_later(0, self.tell)
        self._waiting.append(served)

    def tell(self) -> None:
        """Tell now of all that is still untold: at the end no further turn may come."""
        waiting, self._waiting = self._waiting, []
        for served in waiting:
            self._observer(served)


#: Rates are those of the last minute, in steps of a few seconds.
RATE_SECONDS = 60
_RATE_STEP_SECONDS = 5


@attrs.define
class Step:
    """What a few seconds have brought."""

    gets: int = 0
    posts: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@attrs.frozen
class PerSecond:
    """Rates a second over the last minute; requests for samples alone."""

    gets: float
    posts: float
    sent_bytes: float
    received_bytes: float


class Rates:
    """Counts requests for samples by the time when they were over."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` is the clock."""
        self._seconds = seconds
        self._begun = seconds()
        self._steps: dict[int, Step] = {}

    def served(self, served: Served) -> None:
        """A request is over."""
        if served.route != "sample":
            return
        number = int(self._seconds()) // _RATE_STEP_SECONDS
        step = self._steps.get(number)
        if step is None:
            self._steps[number] = step = Step()
            self._forget(number)
        if served.method in ("GET", "HEAD"):
            step.gets += 1
        else:
            step.posts += 1
        step.sent_bytes += served.sent_bytes
        step.received_bytes += served.received_bytes

    def now(self) -> PerSecond:
        """The rates, at this moment."""
        now = self._seconds()
        self._forget(int(now) // _RATE_STEP_SECONDS)
        steps = self._steps.values()
        seconds = min(max(now - self._begun, 1.0), float(RATE_SECONDS))
        return PerSecond(
            sum(step.gets for step in steps) / seconds,
            sum(step.posts for step in steps) / seconds,
            sum(step.sent_bytes for step in steps) / seconds,
            sum(step.received_bytes for step in steps) / seconds,
        )

    def _forget(self, number: int) -> None:
        oldest = number - RATE_SECONDS // _RATE_STEP_SECONDS
        self._steps = {n: step for n, step in self._steps.items() if n > oldest}


#: Whose lines those of requests are.
_LOGGER = "stor.http.access.AccessLog"


class Lines(Protocol):
    """A log that takes a line without an event, as `stor.logs.LineObserver`."""

    #: Whether lines have more of an event than its text.
    has_fields: bool

    def say(self, logger: str, text: str, fields: str = "") -> bool:
        """Write a line; `False` when an event has to be made instead."""


class AccessLog:
    """One line a request, those whose client went away too."""

    log = Logger()

    def __init__(self, lines: Lines | None = None) -> None:
        """To make an event takes longer than to answer a small request; `lines` do without."""
        self._lines = lines

    def __call__(self, served: Served) -> None:
        """Write the line."""
        lines = self._lines
        if lines is not None and lines.has_fields:
            said = lines.say(_LOGGER, f"{served.method} {served.path}", _members(served))
        else:
            said = lines is not None and lines.say(_LOGGER, _text(served))
        if not said:
            self.log.info("{line}", line=_text(served))


# These two take a part of the time that a small answer takes: no call that is not needed, no
# attribute twice, and no `json.dumps`.


def _text(served: Served) -> str:
    """The line for people."""
    peer, method, path, status, sent, received, seconds, outcome, _, storage, *more = served
    _, user, part, request_id = more
    took = f"{seconds * 1000:.1f}" if seconds else "0.0"
    storage = storage or "-"
    if not storage.isprintable():
        storage = word(printable(storage).encode())
    return (
        f"{peer} {user} {method} {path} {status} {sent} B sent, {received} B received, "
        f"{took} ms, {outcome}, {storage}, range {part}, id {request_id}"
    )


def _members(served: Served) -> str:
    """The fields as members of a JSON object, with a comma before each."""
    peer, method, path, status, sent, received, seconds, outcome, _, storage, *more = served
    _, user, part, request_id = more
    took = f"{seconds * 1000:.1f}" if seconds else "0.0"
    # Of all these only paths may have what JSON has in another way.
    return (
        f', "peer": "{peer}", "user": "{user}", "method": "{method}", "path": {quoted(path)}, '
        f'"status": {status}, "sent_bytes": {sent}, "received_bytes": {received}, '
        f'"milliseconds": {took}, "outcome": "{outcome}", "storage": {quoted(storage or "-")}, '
        f'"range": "{part}", "request_id": "{request_id}"'
    )
