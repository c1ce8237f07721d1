"""What is said of a request that is over."""

import time
from collections.abc import Callable
from typing import NamedTuple

from twisted.logger import ILogObserver, globalLogPublisher

from stor.logs import AS_IT_STANDS, INFO

#: The name that lines of requests have in the log.
_NAMESPACE = "stor.web.access.AccessLog"


class Served(NamedTuple):
    """A request that is over, well or badly.

    `outcome` is "done", or "cut" when the client got less than the whole answer. `source` is
    where the sample came from, `storage` the disk's root or `s3`. `bytes` count bodies alone.
    `status` is 0 when none was sent. `route` is what was asked for, a `sample` or the name of a
    page, and `causes` say why it was not to be had, as `stor.web.answer.Answer` has them.
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


def together(*observers: Observer) -> Observer:
    """One observer for several."""

    def tell(served: Served) -> None:
        for observer in observers:
            observer(served)

    return tell


class AccessLog:
    """One line a request, those whose client went away too."""

    def __init__(
        self, publish: ILogObserver = globalLogPublisher, seconds: Callable[[], float] = time.time
    ) -> None:
        """`publish` is told of each as an event, without a `Logger`, which takes long to make it.

        `seconds` is the time of day.
        """
        self._publish = publish
        self._seconds = seconds

    def __call__(self, served: Served) -> None:
        """Write the line."""
        milliseconds = round(served.seconds * 1000, 1)
        self._publish(
            {
                "log_level": INFO,
                "log_namespace": _NAMESPACE,
                "log_source": self,
                "log_time": self._seconds(),
                "log_format": AS_IT_STANDS,
                "line": f"{served.peer} {served.method} {served.path} {served.status} "
                f"{served.sent_bytes} B sent, {served.received_bytes} B received, "
                f"{milliseconds} ms, {served.outcome}, {served.source}",
                "peer": served.peer,
                "method": served.method,
                "path": served.path,
                "status": served.status,
                "sent_bytes": served.sent_bytes,
                "received_bytes": served.received_bytes,
                "milliseconds": milliseconds,
                "outcome": served.outcome,
                "source": served.source,
            }
        )
