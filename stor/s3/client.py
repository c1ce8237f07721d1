"""One bucket through boto3: signing, and the calls that write. Blocking, for a pool of its own."""

import base64
import hashlib
from collections.abc import Mapping
from enum import Enum
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


class Meaning(Enum):
    """What an engine's refusal is about."""

    #: The bucket does not have the sample.
    ABSENT = "absent"
    #: This sample cannot be had; it says nothing of any other.
    SAMPLE = "sample"
    #: Perhaps bucket or engine: a probe tells.
    ENGINE = "engine"


#: By status and code. All else, also a 404 without a code, is `ENGINE`: a 404 may be a wrong
#: bucket's, or a proxy's on the way.
_MEANINGS = {
    (404, "NoSuchKey"): Meaning.ABSENT,
    # Archived (Glacier and the like).
    (403, "InvalidObjectState"): Meaning.SAMPLE,
    # Where all are refused the probe finds out by itself.
    (403, "AccessDenied"): Meaning.SAMPLE,
    # Encrypted with a key that the request would have to bring, or with one that is gone.
    (400, "InvalidRequest"): Meaning.SAMPLE,
    (400, "KMS.DisabledException"): Meaning.SAMPLE,
    (400, "KMS.KMSInvalidStateException"): Meaning.SAMPLE,
    (400, "KMS.NotFoundException"): Meaning.SAMPLE,
    (405, "MethodNotAllowed"): Meaning.SAMPLE,
    (451, "UnavailableForLegalReasons"): Meaning.SAMPLE,
}


def meaning_of(status: int | None, code: str) -> Meaning:
    """What a refusal with this status, and this code in its body, is about."""
    return _MEANINGS.get((status or 0, code), Meaning.ENGINE)


class S3Failed(Exception):
    """The engine refused or did not answer; the message says what it said."""

    def __init__(
        self, reason: str, meaning: Meaning = Meaning.ENGINE, status: int | None = None
    ) -> None:
        super().__init__(reason)
        self.meaning = meaning
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
        #: Whether the engine knows `If-None-Match` with a PUT: it has not said that it does not.
        self._conditional = True

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
        modified = found.get("LastModified")
        seconds = 0 if modified is None else int(modified.timestamp())
        return Stat(int(_field(found, "head_object", "ContentLength")), seconds * 10**9)

    def put(self, digest: Digest, content: bytes, replace: bool) -> bool:
        """Store a small sample, its checksum confirmed; whether it was not there before.

        With `replace` whatever is there is overwritten. Raises `S3Failed`.
        """
        if replace:
            self._put(digest, content)
            return True
        if self._conditional:
            try:
                self._put(digest, content, IfNoneMatch="*")
            except S3Failed as error:
                if error.status in (409, 412):  # another was quicker (RFC 9110, 13.1.2)
                    return False
                if error.status != 501:  # Not Implemented
                    raise
            else:
                return True
        # Without the condition the last of several wins, with the same bytes.
        found = self.head(digest)
        if found is not None and found.size == len(content):
            return False
        self._put(digest, content)
        self._conditional = False  # now it is known to have been the condition
        return True

    def begin(self, digest: Digest) -> str:
        """Begin to store a large sample: the id of the upload. Raises `S3Failed`."""
        begun = self._call(
            "create_multipart_upload",
            Bucket=self.bucket,
            Key=digest.s3_key,
            ContentType="application/octet-stream",
        )
        return str(_field(begun, "create_multipart_upload", "UploadId"))

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
        return Part(number, str(_field(stored, "upload_part", "ETag")))

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

    def _put(self, digest: Digest, content: bytes, **condition: str) -> None:
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

    def _sign(self, name: str, **parameters: str) -> str:
        expires = {"ExpiresIn": _SIGNED_SECONDS}
        return str(self._call("generate_presigned_url", name, Params=parameters, **expires))

    def _call(self, name: str, *arguments: Any, **parameters: Any) -> Any:
        # Takes 9 MB and a tenth of a second, for which most Stors have no use.
        from stor.s3.boto import ClientError, connect  # noqa: PLC0415

        try:
            with self._lock:
                if self._made is None:
                    self._made = connect(self._settings, self._threads)
            return getattr(self._made, name)(*arguments, **parameters)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "unknown")
            reason = f"s3: {name}: {code} ({status})"
            raise S3Failed(reason, meaning_of(status, code), status) from error
        except Exception as error:
            # An answer that makes no sense raises whatever botocore stumbles over.
            raise S3Failed(f"s3: {name}: {error or type(error).__name__}") from error


def _field(answer: Mapping[str, Any], name: str, field: str) -> Any:
    """What an answer has to have. Raises `S3Failed`."""
    try:
        return answer[field]
    except KeyError:
        raise S3Failed(f"s3: {name}: an answer without {field}") from None


def part_bytes(size: int) -> int:
    """The size of the parts of a sample of `size` bytes, so that there are not too many."""
    return max(PART_BYTES, -(-size // _PARTS))


def _md5(content: bytes) -> str:
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")
