"""What is said of a request that is over."""

from collections.abc import Callable
from typing import NamedTuple

from twisted.logger import Logger


class Served(NamedTuple):
    """A request that is over, well or badly.

    `outcome` is "done", or "cut" when the client got less than the whole answer. `source` is
    where the sample came from, `storage` the disk's root or `s3`. `bytes` count bodies alone.
    `status` is 0 when none was sent. `route` is what was asked for, a `sample` or the name of a
    page, and `causes` say why it was not to be had, as `stor.http.answer.Answer` has them.
    """

    peer: str
    method: str
    path: str
    status: int
    sent_bytes: int
    received_bytes: int
    seconds: float
    outcome: str
    source: str = "-"
    route: str = "sample"
    storage: str | None = None
    causes: tuple[str, ...] = ()


#: Told of every request that is over.
Observer = Callable[[Served], None]

#: The reactor's way to have something done later.
CallLater = Callable[[float, Callable[[], None]], object]


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


class AccessLog:
    """One line a request, those whose client went away too."""

    log = Logger()

    def __init__(self, say: Callable[[str], bool] = lambda text: False) -> None:
        """`say` writes a line if the text is all that the log has of it.

        To make an event takes longer than to answer a small request.
        """
        self._say = say

    def __call__(self, served: Served) -> None:
        """Write the line."""
        milliseconds = round(served.seconds * 1000, 1)
        line = (
            f"{served.peer} {served.method} {served.path} {served.status} "
            f"{served.sent_bytes} B sent, {served.received_bytes} B received, "
            f"{milliseconds} ms, {served.outcome}, {served.source}"
        )
        if self._say(line):
            return
        self.log.info(
            # One field alone: to format eight of them would take longer than a small answer does.
            "{line}",
            line=line,
            peer=served.peer,
            method=served.method,
            path=served.path,
            status=served.status,
            sent_bytes=served.sent_bytes,
            received_bytes=served.received_bytes,
            milliseconds=milliseconds,
            outcome=served.outcome,
            source=served.source,
        )
