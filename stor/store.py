"""The tiers as one store: all that the web wing knows of where samples are."""

from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from stor.content import Content
from stor.digest import Digest
from stor.disks.incoming import Arrivals
from stor.disks.member import Member
from stor.disks.mirrors import Mirrors
from stor.disks.search import Search
from stor.errors import Damaged, NotFound, StorError, Unavailable


class Incoming(Protocol):
    """One upload of a sample: `stored`, `begin`, `add` …, `commit`; in the end always `leave`."""

    async def stored(self) -> list[str] | None:
        """The sample's paths when it is stored, made whole first where it is not whole."""

    async def begin(self) -> None:
        """Have a place for the sample. Raises `NoRoom`, `Unavailable`."""

    async def add(self, chunks: list[bytes], last: bool) -> None:
        """Write more of the body. Raises `NoRoom`, `Unavailable`."""

    async def commit(self) -> tuple[list[str], bool]:
        """Make the sample durable: its paths, and whether this upload made it."""

    async def leave(self) -> None:
        """The end, good or bad: what is not committed leaves nothing behind. Never raises."""


@attrs.frozen
class Found:
    """What a client is told of a sample without reading it."""

    size: int
    modified_ns: int


@attrs.frozen
class Status:
    """How the storages are. `problems` is empty when all of them are available."""

    problems: list[str]
    warnings: list[str]
    sets: list[dict[str, Any]]
    repairs: dict[str, int]


class Store:
    """Find, open and take samples."""

    def __init__(self, mirrors: Mirrors, ready: Deferred[None], unasked: str | None = None) -> None:
        """`ready` fires when the disks' states are known first; nothing is answered before.

        `unasked` names a place that could hold samples and cannot be asked.
        """
        self._mirrors = mirrors
        self._ready = ready
        self._arrivals = Arrivals(mirrors, ready)
        self._unasked = unasked

    async def find(self, digest: Digest) -> Found:
        """The sample's size and time, without reading it. Raises like `open`."""
        await self._ready
        search = self._mirrors.search(digest)
        try:
            copy = await search.look()
        finally:
            search.close()
        if copy is None:
            raise self._missing(search)
        return Found(copy.size, copy.modified_ns)

    async def open(self, digest: Digest) -> Content[Any]:
        """The sample, ready to be read. The caller closes it.

        Raises `NotFound` when every place answered and none has it, `Unavailable` when one did
        not answer, `Damaged` when there are copies and none is good.
        """
        await self._ready
        search = self._mirrors.search(digest)
        source = await search.next()
        if source is None:
            raise self._missing(search)
        return Content(digest, source, search, self._mirrors.clock)

    def expect(self, digest: Digest, length: int | None) -> Incoming:
        """Begin to take a sample; `length` in bytes when it is known."""
        return self._arrivals.expect(digest, length)

    def status(self) -> Status:
        """How the storages are, as last seen: never asks a disk."""
        problems = [
            f"{member.root}: {member.health.state.value}: {member.health.fault}"
            for member in self._mirrors.members
            if member.health.fault
        ]
        if self._unasked:
            problems.append(self._unasked)
        sets = [
            {
                "writable": mirror.writable,
                "disks": [self._picture(member) for member in mirror.members],
            }
            for mirror in self._mirrors.mirrors
        ]
        warnings = [warning for mirror in self._mirrors.mirrors for warning in mirror.warnings]
        repairs = self._mirrors.repairs
        return Status(
            problems, warnings, sets, {"waiting": repairs.waiting, "done": repairs.mended_total}
        )

    def _missing(self, search: Search) -> StorError:
        unanswered = search.unanswered
        if unanswered is None and search.damaged:
            return Damaged(f"damaged: no good copy is left ({'; '.join(search.damaged)})")
        unanswered = unanswered or self._unasked
        if unanswered is not None:
            return Unavailable(f"a storage that could hold the sample did not answer: {unanswered}")
        return NotFound()

    def _picture(self, member: Member) -> dict[str, Any]:
        health = member.health
        picture = {
            "root": member.root,
            "state": health.state.value,
            "since": health.since,
            "reason": health.fault,
            "free_bytes": health.room.free_bytes,
            "free_inodes": health.room.free_inodes,
            "errors": health.errors_total,
        }
        if health.rebuilding:
            picture["rebuilt"] = round(self._mirrors.rebuilds.progress.get(member, 0.0), 3)
        return picture
