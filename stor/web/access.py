"""What is said of a request that is over."""

from collections.abc import Callable

import attrs
from twisted.logger import Logger


@attrs.frozen
class Served:
    """A request that is over, well or badly.

    `outcome` is "done", or "cut" when the client got less than the whole answer. `source` is
    where the sample came from. `bytes` count bodies alone.
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


#: Told of every request that is over.
Observer = Callable[[Served], None]


class AccessLog:
    """One line a request, those whose client went away too."""

    log = Logger()

    def __call__(self, served: Served) -> None:
        """Write the line."""
        self.log.info(
            "{peer} {method} {path} {status} {sent_bytes} B sent, {received_bytes} B received, "
            "{milliseconds} ms, {outcome}, {source}",
            peer=served.peer,
            method=served.method,
            path=served.path,
            status=served.status,
            sent_bytes=served.sent_bytes,
            received_bytes=served.received_bytes,
            milliseconds=round(served.seconds * 1000, 1),
            outcome=served.outcome,
            source=served.source,
        )
