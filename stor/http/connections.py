"""What a connection knows of all others, and of who answers."""

from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime

from stor.http.access import Observer, RequestIds
from stor.http.answer import Answer
from stor.http.elsewhere import Elsewhere
from stor.http.pace import Buffers, Wait
from stor.http.request import Serving


class Connections(Protocol):
    """Who knows all connections."""

    channels: set[Any]
    clock: IReactorTime
    #: Who answers.
    serving: Serving
    #: Whether every connection is to end with the answer that is under way.
    draining: bool
    #: Seconds after which a connection without a byte is cut.
    timeOut: float
    #: Who answers what this process does not, if there is anybody.
    elsewhere: Elsewhere[Any] | None

    #: The memory that all connections hold.
    buffers: Buffers
    request_ids: RequestIds
    #: Told of every request that is over, and of what was refused before it was one.
    served: Observer

    def admit(self, channel: Any) -> None:
        """Take a new connection into account; it or another may be one too many."""

    @property
    def crowded(self) -> bool:
        """Whether connections have to end with their answers, to make room for others."""

    def wait(self, channel: Any, what: Wait | None) -> None:
        """Take note of what a connection waits for; `None`: a request is under way."""

    def too_many(self) -> Answer:
        """What one that is too many is told."""

    def lost(self, channel: Any) -> None:
        """Forget a channel whose connection has ended."""
