"""One bucket through boto3: signing, and the calls that write. Blocking, for a pool of its own."""

import base64
import hashlib
from threading import Lock
from typing import Any

import attrs

from stor.config import S3
from stor.digest import Digest
from stor.metrics import S3_STORAGE

#: A signed URL is used at once; the clocks of the two hosts may differ.
_SIGNED_SECONDS = 900

#: Samples up to this size are put with one call; larger ones in parts of at least this size.
PART_BYTES = 8 * 1024 * 1024
_PARTS = 10_000


class S3Failed(Exception):
    """The engine refused or did not answer; the message says what it said."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


@attrs.frozen
class Stat:
    """What an engine says of a sample without giving it."""

    size: int
    modified_ns: int
    storage: str = S3_STORAGE


@attrs.frozen
class Part:
    """A part of a multipart upload that the engine has."""

    number: int
    etag: str


class S3Client:
    """Calls on one bucket. Thread-safe; made without I/O, connected when first used."""

    def __init__(self, settings: S3, threads: int) -> None:
        self.bucket = settings.bucket
        self._settings = settings
        self._threads = threads
        self._lock = Lock()
        self._made: Any = None

    def sign(self, method: str, digest: Digest) -> str:
        """A URL that lets its holder do `method`, GET or HEAD. Raises `S3Failed`."""
        return self._sign(f"{method.lower()}_object", Bucket=self.bucket, Key=digest.s3_key)

    def sign_check(self) -> str:
        """A URL whose HEAD says whether the bucket is there and ours to use. Raises `S3Failed`."""
        return self._sign("head_bucket", Bucket=self.bucket)

    def head(self, digest: Digest) -> Stat | None:
        """Size and time of the sample, `None` when there is none. Raises `S3Failed`."""
        try:
            found = self._call("head_object", Bucket=self.bucket, Key=digest.s3_key)
        except S3Failed as error:
            if error.status == 404:
                return None
            raise
        return Stat(int(found["ContentLength"]), int(found["LastModified"].timestamp()) * 10**9)

    def put(self, digest: Digest, content: bytes, replace: bool) -> bool:
        """Store a small sample, its checksum confirmed; whether it was not there before.

        With `replace` whatever is there is overwritten. Raises `S3Failed`.
        """
        condition = {} if replace else {"IfNoneMatch": "*"}
        try:
            self._call(
                "put_object",
                Bucket=self.bucket,
                Key=digest.s3_key,
                Body=content,
                # Some engines look at the one, some at the other.
                ContentMD5=_md5(content),
                ChecksumSHA256=base64.b64encode(digest.raw).decode("ascii"),
                ContentType="application/octet-stream",
                **condition,
            )
        except S3Failed as error:
            if error.status in (409, 412):  # another was quicker (RFC 9110, 13.1.2)
                return False
            raise
        return True

    def begin(self, digest: Digest) -> str:
        """Begin to store a large sample: the id of the upload. Raises `S3Failed`."""
        begun = self._call(
            "create_multipart_upload",
            Bucket=self.bucket,
            Key=digest.s3_key,
            ContentType="application/octet-stream",
        )
        return str(begun["UploadId"])

    def put_part(self, digest: Digest, upload: str, number: int, content: bytes) -> Part:
        """Store the `number`-th part, from 1. Raises `S3Failed`."""
        stored = self._call(
            "upload_part",
            Bucket=self.bucket,
            Key=digest.s3_key,
            UploadId=upload,
            PartNumber=number,
            Body=content,
            ContentMD5=_md5(content),
        )
        return Part(number, stored["ETag"])

    def complete(self, digest: Digest, upload: str, parts: list[Part]) -> None:
        """Make one sample of its parts. Raises `S3Failed`."""
        self._call(
            "complete_multipart_upload",
            Bucket=self.bucket,
            Key=digest.s3_key,
            UploadId=upload,
            MultipartUpload={
                "Parts": [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
            },
        )

    def abort(self, digest: Digest, upload: str) -> None:
        """Forget a large sample that was begun. Raises `S3Failed`."""
        self._call("abort_multipart_upload", Bucket=self.bucket, Key=digest.s3_key, UploadId=upload)

    def _sign(self, name: str, **parameters: str) -> str:
        expires = {"ExpiresIn": _SIGNED_SECONDS}
        return str(self._call("generate_presigned_url", name, Params=parameters, **expires))

    def _call(self, name: str, *arguments: Any, **parameters: Any) -> Any:
        # Takes 9 MB and a tenth of a second, for which most Stors have no use.
        from stor.s3.boto import BotoCoreError, ClientError, connect  # noqa: PLC0415

        with self._lock:
            if self._made is None:
                self._made = connect(self._settings, self._threads)
        try:
            return getattr(self._made, name)(*arguments, **parameters)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "unknown")
            raise S3Failed(f"s3: {name}: {code} ({status})", status) from error
        except BotoCoreError as error:
            raise S3Failed(f"s3: {name}: {error}") from error


def part_bytes(size: int) -> int:
    """The size of the parts of a sample of `size` bytes, so that there are not too many."""
    return max(PART_BYTES, -(-size // _PARTS))


def _md5(content: bytes) -> str:
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")
