"""Whose turn it is to give a sample its name: one process's at a time."""

from collections.abc import Sequence
from typing import Protocol

from stor.digest import Digest


class Change(Protocol):
    """Something that is done to a sample's names, as `stor.mirror.write.MirrorWrite` does it."""

    async def over(self) -> None:
        """Wait until no disk has anything left to do for it. Never raises."""


class Turns(Protocol):
    """Which process of a Stor may look at a sample's names, or change them.

    Uploads of one process know of each other (`stor.mirror.put`), and share its turn.
    """

    async def take(self, digest: Digest) -> None:
        """Wait for the turn with a sample. Raises `Unavailable` when that takes too long."""

    def give_back(self, digest: Digest) -> None:
        """Let others have their turn: nothing was changed."""

    def end(self, digest: Digest, changes: Sequence[Change]) -> None:
        """Let others have their turn once `changes` are over: names may be others now."""

    def seen(self, digest: Digest) -> int:
        """Another number after each change that another process has made. In one's turn."""


class NoTurns:
    """There is one process, and it is always its turn."""

    async def take(self, digest: Digest) -> None:
        """See `Turns.take`."""

    def give_back(self, digest: Digest) -> None:
        """See `Turns.give_back`."""

    def end(self, digest: Digest, changes: Sequence[Change]) -> None:
        """See `Turns.end`."""

    def seen(self, digest: Digest) -> int:
        """See `Turns.seen`."""
        return 0
