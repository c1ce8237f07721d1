"""Looking for a sample in S3."""

from twisted.logger import Logger

from stor.digest import Digest
from stor.errors import Damaged, Unavailable
from stor.s3.bucket import Bucket
from stor.s3.client import Stat
from stor.s3.source import S3Source


class S3Search:
    """The one copy of a sample that S3 has or has not. The same face as `stor.mirror.search`."""

    log = Logger()
    tier = "s3"

    def __init__(self, bucket: Bucket, digest: Digest, *, part: bool) -> None:
        """`part` means that only a part of the sample will be read."""
        self.attempts = 0
        self.mirror: None = None
        self.damaged: list[str] = []
        self.unanswered: str | None = None
        self._bucket = bucket
        self._digest = digest
        self._part = part
        self._asked = False

    @property
    def consulted(self) -> bool:
        """See `stor.lookup.Search`."""
        return self.attempts > 0

    async def look(self) -> Stat | None:
        """The copy by its name; `None` when there is none or it is not known. Never raises."""
        if self._done():
            return None
        try:
            return await self._bucket.look(self._digest)
        except Unavailable as error:
            self.unanswered = str(error)
        return None

    async def next(self) -> S3Source | None:
        """The copy, to be read; `None` when there is none or it is not known. Never raises."""
        if self._done():
            return None
        try:
            return await self._bucket.open(self._digest, part=self._part)
        except Damaged as error:
            self.damaged.append(str(error))
            self._bucket.corrupt.add(self._digest)
            self.log.error("Damaged: {error}", error=str(error))
        except Exception as error:
            self.unanswered = str(error)
        return None

    async def twin(self, source: S3Source) -> None:
        """There is no second copy."""

    def mark_corrupt(self, source: S3Source, reason: str) -> None:
        """The copy has turned out to be bad: it is not served again for a while."""
        self.log.error("Damaged: {reason}", reason=reason)
        self._bucket.corrupt.add(self._digest)

    def suspect(self, source: S3Source) -> None:
        """The copy could not be read. The log has said so."""

    def close(self) -> None:
        """No more is wanted."""

    def _done(self) -> bool:
        if self._asked:
            return True
        self._asked = True
        self.attempts += 1
        if self._digest in self._bucket.corrupt:
            self.damaged.append(f"s3: the copy of {self._digest} is known to be bad")
            return True
        return False
