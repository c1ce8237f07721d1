"""A sample on its way in: is it stored already, where does it go, who was first."""

import attrs
from twisted.internet.defer import Deferred, DeferredLock

from stor.digest import Digest
from stor.disks.mirror import MirrorWrite, Survey
from stor.disks.mirrors import Mirrors
from stor.errors import Unavailable


@attrs.define
class _Contest:
    """The uploads of one sample that are in flight; the first to be committed wins."""

    lock: DeferredLock = attrs.field(factory=DeferredLock)
    uploads: int = 0
    stored: list[str] | None = None


class Arrivals:
    """The samples that are being put, so that many uploads of one leave one sample."""

    def __init__(self, mirrors: Mirrors, ready: Deferred[None]) -> None:
        """`ready` fires when the disks' states are known first."""
        self.ready = ready
        self._mirrors = mirrors
        self._contests: dict[Digest, _Contest] = {}

    def expect(self, digest: Digest, length: int | None) -> "Incoming":
        """Begin to put a sample; `length` in bytes when it is known. Ends with `Incoming.leave`.

        Whatever is committed from here on counts for this upload too.
        """
        contest = self._contests.setdefault(digest, _Contest())
        contest.uploads += 1
        return Incoming(self, self._mirrors, digest, length, contest)

    def ended(self, digest: Digest) -> None:
        """One upload of the sample fewer."""
        contest = self._contests[digest]
        contest.uploads -= 1
        if not contest.uploads:
            del self._contests[digest]


@attrs.define
class Incoming:
    """One upload of a sample. `stored`, `begin`, `add` …, `commit`; in the end always `leave`."""

    _arrivals: Arrivals
    _mirrors: Mirrors
    _digest: Digest
    _length: int | None
    _contest: _Contest
    _home: Survey | None = None
    _write: MirrorWrite | None = None
    _left: bool = False

    async def stored(self) -> list[str] | None:
        """The sample's paths when every available disk of one mirror has a good copy.

        Raises `Unavailable` when a disk that should have one did not say.
        """
        await self._arrivals.ready
        surveys = await self._mirrors.survey(self._digest, self._length)
        homes = [survey for survey in surveys if survey.known]
        for survey in homes:
            if survey.paths and not survey.lacking:
                return survey.paths
        self._home = next((survey for survey in homes if survey.lacking), None)
        if self._home is not None and self._home.trouble is not None:
            raise Unavailable(
                f"a storage of the set that holds the sample failed: {self._home.trouble.value}"
            )
        return None

    async def begin(self) -> None:
        """Choose the mirror and have room there. Raises `NoRoom`, `Unavailable`.

        A sample that some disks of a mirror have, or have damaged, is made whole there.
        """
        if self._home is not None:
            members = [member for member, _ in self._home.answers if member.writable]
            mirror = self._home.mirror
            self._write = self._mirrors.write_on(mirror, members, self._digest, self._length)
        else:
            self._write = await self._mirrors.place(self._digest, self._length)
        await self._write.prepare()

    async def add(self, chunks: list[bytes], last: bool) -> None:
        """Write more of the body everywhere. Raises `NoRoom`, `Unavailable`."""
        await self._begun().add(chunks, last)

    async def commit(self) -> tuple[list[str], bool]:
        """Make the sample durable on every disk: its paths, and whether this upload made it.

        Raises `Unavailable`.
        """
        write, contest = self._begun(), self._contest
        await contest.lock.acquire()
        try:
            if contest.stored is not None:
                return contest.stored, False
            contest.stored, created = await write.commit()
            return contest.stored, created
        finally:
            contest.lock.release()

    async def leave(self) -> None:
        """The end, good or bad: what is not committed leaves nothing behind. Never raises."""
        if self._left:
            return
        self._left = True
        try:
            if self._write is not None:
                await self._write.discard()
        finally:
            self._arrivals.ended(self._digest)

    def _begun(self) -> MirrorWrite:
        if self._write is None:
            raise ValueError("an upload writes only after begin()")
        return self._write
