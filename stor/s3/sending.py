"""One sample on its way into a bucket."""

from collections.abc import Awaitable, Callable

from twisted.logger import Logger

from stor.digest import Digest
from stor.errors import Unavailable
from stor.s3.bucket import Bucket
from stor.s3.client import PART_BYTES, Part, S3Failed, part_bytes

#: From 1 to `length` bytes of the sample from `offset` on, as `Content.read` gives them.
Read = Callable[[int, int], Awaitable[bytes]]

_log = Logger()


async def send(
    bucket: Bucket, digest: Digest, size: int, read: Read, *, replace: bool = False
) -> bool:
    """Store a sample of `size` bytes and see that it is there; whether it was not there before.

    `replace` puts it over one that is known to be bad. Raises `Unavailable`, or what `read`
    raises; then nothing is stored.
    """
    try:
        if size <= PART_BYTES:
            content = await _gather(read, 0, size)
            created = await bucket.worker.run(bucket.client.put, digest, content, replace)
        else:
            await _send_parts(bucket, digest, size, read)
            created = True
        stat = await bucket.worker.run(bucket.client.head, digest)
    except S3Failed as error:
        raise Unavailable(str(error)) from error
    if stat is None or stat.size != size:
        raise Unavailable(f"s3: {digest} was stored, and is not there with its {size} bytes")
    bucket.corrupt.discard(digest)
    return created


async def _send_parts(bucket: Bucket, digest: Digest, size: int, read: Read) -> None:
    client, run = bucket.client, bucket.worker.run
    upload = await run(client.begin, digest)
    parts: list[Part] = []
    length = part_bytes(size)
    try:
        for offset in range(0, size, length):
            content = await _gather(read, offset, min(length, size - offset))
            number = len(parts) + 1
            parts.append(await run(client.put_part, digest, upload, number, content))
        await run(client.complete, digest, upload, parts)
    except BaseException:
        try:
            await run(client.abort, digest, upload)
        except S3Failed as error:
            _log.warn("{error}; parts of {digest} stay", error=str(error), digest=str(digest))
        raise


async def _gather(read: Read, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    got = 0
    while got < length:
        data = await read(offset + got, length - got)
        parts.append(data)
        got += len(data)
    return b"".join(parts)
