"""A bucket without an engine: `stor.s3.bucket.Bucket`, as far as reading goes."""

from stor.digest import Digest
from stor.errors import Unavailable
from stor.s3.client import Stat
from stor.s3.source import S3Source


class MemoryBucket:
    """Has these samples; with a `fault` it does not answer."""

    def __init__(self, *contents):
        self.contents = {Digest.of(content): content for content in contents}
        self.fault = None
        self.corrupt = set()
        self.requests = self.errors = 0
        self.client = self
        self.bucket = "samples"

    def place(self, digest):
        return f"s3://{self.bucket}/{digest.s3_key}"

    async def look(self, digest):
        content = self._asked(digest)
        return None if content is None else Stat(len(content), 0)

    async def open(self, digest, *, part):
        content = self._asked(digest)
        if content is None:
            return None
        source = S3Source(self, digest, len(content), 0, None)
        source.whole = content
        return source

    def _asked(self, digest):
        if self.fault is not None:
            raise Unavailable(self.fault)
        self.requests += 1
        return self.contents.get(digest)
