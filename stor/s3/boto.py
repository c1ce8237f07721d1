"""boto3, set up for engines of any maker."""

from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from stor.config import S3

__all__ = ["ClientError", "connect"]

CONNECT_SECONDS = 3
#: Whoever posts is to have an answer within 10 s; it is theirs, or the queue's, to try again.
READ_SECONDS = 7
_ATTEMPTS = 1


def connect(settings: S3, threads: int) -> Any:
    """A client for this many threads at once; does no I/O before it is used."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region or "us-east-1",
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        verify=settings.ca_file,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=threads,
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # None of the environment's: bodies do not go through one either (`stor.s3.http`).
            proxies={},
            # Engines other than AWS do not know the checksums of newer SDKs.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
