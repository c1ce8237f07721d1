"""What a connection knows of all others, and of who answers."""

import enum
from collections import OrderedDict
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime

from stor.http.access import Observer, RequestIds
from stor.http.answer import Answer
from stor.http.pace import Buffers, Wait
from stor.http.request import Serving

#: A connection as its process has it.
Channel_contra = TypeVar("Channel_contra", contravariant=True)

#: How long a request waits until the process that answers it takes its connection, and the pause
#: between two tries.
HAND_OVER_SECONDS = 1.0
HAND_OVER_RETRY_SECONDS = 0.01


@attrs.frozen
class Handed:
    """A connection that another process goes on with, at the boundary of a request.

    `unread` is the request as far as it was received, and all behind it; `head_seconds` is how
    long ago its first byte came, `peer` and `port` are the client's.
    """

    unread: bytes
    peer: str
    port: int
    head_seconds: float


class Given(enum.Enum):
    """What became of a connection that was to be handed over."""

    GONE = "another process has it"
    CROWDED = "the other process has taken no more for a moment"
    NOBODY = "the other process is not there"


class Elsewhere(Protocol[Channel_contra]):
    """The other processes of this Stor, to whom connections are handed over."""

    def answers(self, channel: Channel_contra, line: bytes, rest: bytes) -> bool:
        """Whether another process answers the request that begins with `line`.

        `rest` is what was received behind that line.
        """

    def give(self, channel: Channel_contra, handed: Handed) -> Given:
        """Hand a connection over; once it is `GONE`, its transport is no part of this process."""


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

    #: Whether connections have to end with their answers, to make room for others.
    crowded: bool
    #: The connections whose next byte begins a request, those that have waited longest first.
    at_rest: OrderedDict[Any, None]

    #: The memory that all connections hold.
    buffers: Buffers
    request_ids: RequestIds
    #: Told of every request that is over, and of what was refused before it was one.
    served: Observer

    def admit(self, channel: Any) -> None:
        """Take a new connection into account; it or another may be one too many."""

    def wait(self, channel: Any, what: Wait | None) -> None:
        """Take note of what a connection waits for; `None`: a request is under way."""

    def too_many(self) -> Answer:
        """What one that is too many is told."""

    def lost(self, channel: Any) -> None:
        """Forget a channel whose connection has ended."""
