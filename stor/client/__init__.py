"""For programs that talk to a Stor: `Client`, and `MemoryClient` for their tests.

Knows HTTP, and nothing of what is behind it. docs/clients.md shows how it is used.
"""

from stor.client.api import (
    Again,
    Client,
    ClientError,
    ContentMismatch,
    CursorGone,
    GivenUp,
    NotStored,
    Refused,
    Stopped,
    Unauthorized,
)
from stor.client.memory import MemoryClient

__all__ = [
    "Again",
    "Client",
    "ClientError",
    "ContentMismatch",
    "CursorGone",
    "GivenUp",
    "MemoryClient",
    "NotStored",
    "Refused",
    "Stopped",
    "Unauthorized",
]
