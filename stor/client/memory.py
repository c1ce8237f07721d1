"""A Stor in memory, for the tests of programs that use `Client`."""

from collections.abc import Sequence

from stor.client.api import (
    MISSING,
    STORED,
    ContentMismatch,
    NotStored,
    Samples,
)
from stor.client.listing import PAGE, Landed, Listed
from stor.client.transfer import Body, Sink
from stor.digest import Digest


class MemoryClient(Samples):
    """What `Client` does, without a server: everything is kept in `samples`, and nothing fails."""

    def __init__(self) -> None:
        self.samples: dict[Digest, bytes] = {}

    async def send(self, digest: Digest, body: Body) -> bool:
        """See `Client.send`."""
        if digest in self.samples:
            return False
        content = await body.read(0, body.size)
        if Digest.of(content) != digest:
            raise ContentMismatch(f"412: content mismatch: the body is not {digest}")
        self.samples[digest] = content
        return True

    async def receive(self, digest: Digest, sink: Sink) -> None:
        """See `Client.receive`."""
        if digest not in self.samples:
            raise NotStored("404: not found: no storage holds this sample")
        await sink.begin()
        await sink.add(self.samples[digest], last=True)

    async def batch(self, digests: Sequence[Digest], sink: Sink) -> bool:
        """See `Client.batch`: it does not know that."""
        return False

    async def missing(self, digests: Sequence[Digest]) -> bytes:
        """See `Client.missing`."""
        return b"".join(STORED if digest in self.samples else MISSING for digest in digests)

    async def index(self, after: Digest | None) -> list[Listed]:
        """See `Client.index`."""
        return [
            Listed(digest, len(content))
            for digest, content in sorted(self.samples.items(), key=lambda item: item[0].raw)
            if after is None or digest.raw > after.raw
        ][:PAGE]

    async def landed(self, cursor: str | None, wait_seconds: int = 0) -> Landed:
        """See `Client.landed`: what was put into `samples`, in order; no time passes."""
        begin = len(self.samples) if cursor is None else int(cursor)
        landed = list(self.samples.items())[begin : begin + PAGE]
        found = [Listed(digest, len(content)) for digest, content in landed]
        return Landed(found, str(begin + len(found)))

    async def wait(self, seconds: float) -> None:
        """See `Client.wait`: no time passes."""

    def stop(self) -> None:
        """See `Client.stop`."""

    async def close(self) -> None:
        """See `Client.close`."""
