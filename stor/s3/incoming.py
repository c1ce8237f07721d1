"""A sample on its way in, where S3 alone keeps samples."""

import attrs
from twisted.internet.defer import DeferredLock

from stor.digest import Digest
from stor.s3.bucket import Bucket
from stor.s3.client import Stat
from stor.s3.sending import send
from stor.s3.spool import Spool, SpooledBody


@attrs.define
class _Contest:
    """The uploads of one sample that are in flight here; the first to be stored wins."""

    lock: DeferredLock = attrs.field(factory=DeferredLock)
    looking: DeferredLock = attrs.field(factory=DeferredLock)
    uploads: int = 0
    stored: bool = False
    #: What the bucket said, once it was asked for all of them.
    looked: bool = False
    found: Stat | None = None


class S3Puts:
    """The samples that are being put into a bucket, so that many uploads of one leave one."""

    def __init__(self, bucket: Bucket, spool: Spool) -> None:
        self._bucket = bucket
        self._spool = spool
        self._contests: dict[Digest, _Contest] = {}

    def expect(self, digest: Digest, length: int | None) -> "S3Incoming":
        """Begin to put a sample; `length` in bytes when it is known. Ends with `leave`."""
        contest = self._contests.setdefault(digest, _Contest())
        contest.uploads += 1
        return S3Incoming(self, self._bucket, self._spool, digest, length, contest)

    def ended(self, digest: Digest) -> None:
        """One upload of the sample fewer."""
        contest = self._contests[digest]
        contest.uploads -= 1
        if not contest.uploads:
            del self._contests[digest]


class S3Incoming:
    """Implements `stor.store.Put`. The body is spooled until its hash is known to be right."""

    def __init__(
        self,
        puts: S3Puts,
        bucket: Bucket,
        spool: Spool,
        digest: Digest,
        length: int | None,
        contest: _Contest,
    ) -> None:
        self._puts = puts
        self._bucket = bucket
        self._spool = spool
        self._digest = digest
        self._length = length
        self._contest = contest
        self._body: SpooledBody | None = None
        self._replace = False
        self._left = False

    async def stored(self) -> list[str] | None:
        """The sample's place when the bucket has it with the right size. Raises `Unavailable`."""
        contest = self._contest
        await contest.looking.acquire()
        try:
            if not contest.looked:
                contest.found = await self._bucket.look(self._digest)
                contest.looked = True
        finally:
            contest.looking.release()
        if contest.stored:
            return self._paths
        found = contest.found
        if found is None:
            return None
        self._replace = self._digest in self._bucket.corrupt or (
            self._length is not None and found.size != self._length
        )
        return None if self._replace else self._paths

    async def begin(self) -> None:
        """Have room in the spool. Raises `NoRoom`, `Unavailable`."""
        self._body = await self._spool.open(self._length)

    async def add(self, chunks: list[bytes], last: bool) -> None:
        """Spool more of the body. Raises `NoRoom`, `Unavailable`."""
        await self._begun().add(chunks)

    async def commit(self) -> tuple[list[str], bool]:
        """Have S3 confirm the sample: its place, and whether this upload made it.

        Raises `Unavailable`.
        """
        contest, body = self._contest, self._begun()
        await contest.lock.acquire()
        try:
            if contest.stored:
                return self._paths, False
            created = await send(
                self._bucket, self._digest, body.size, body.read, replace=self._replace
            )
            contest.stored = True
            return self._paths, created
        finally:
            contest.lock.release()

    async def leave(self) -> None:
        """The end, good or bad. Never raises."""
        if self._left:
            return
        self._left = True
        if self._body is not None:
            self._body.close()
        self._puts.ended(self._digest)

    @property
    def _paths(self) -> list[str]:
        return [self._bucket.place(self._digest)]

    def _begun(self) -> SpooledBody:
        if self._body is None:
            raise ValueError("an upload writes only after begin()")
        return self._body
