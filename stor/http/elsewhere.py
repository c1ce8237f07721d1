"""A connection that another process of this Stor goes on with, and who passes it on."""

import enum
from typing import Protocol, TypeVar

import attrs

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
