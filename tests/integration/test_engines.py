"""The real engines that other tests rest on, and what differs between them."""

import base64
import hashlib
import os
import urllib.error
import urllib.request

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from pymemcache.client.base import Client

from tests.engines.swift import Swift
from tests.integration.process import MIB, poll

SAMPLE = os.urandom(100_000)
WRONG = b"something else"


@pytest.fixture(params=["swift", "ceph"])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(engine):
    return engine.new_bucket()


def refusal(call, *arguments, **keys):
    """The status and the code of the error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(*arguments, **keys)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def fetch(url):
    """The status and the body that a URL gives."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def read(client, bucket, **keys):
    return client.get_object(Bucket=bucket, Key="a/b", **keys)["Body"].read()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_what_is_put_is_there(engine, bucket, tls):
    client = engine.client(tls=tls)
    client.put_object(Bucket=bucket, Key="a/b", Body=SAMPLE)
    assert client.head_object(Bucket=bucket, Key="a/b")["ContentLength"] == len(SAMPLE)
    assert read(client, bucket) == SAMPLE
    assert read(client, bucket, Range="bytes=10-99") == SAMPLE[10:100]


def test_an_object_in_parts_is_one(engine, bucket):
    client, name = engine.client(), {"Bucket": bucket, "Key": "a/b"}
    bodies = [os.urandom(5 * MIB), os.urandom(MIB)]
    upload = client.create_multipart_upload(**name)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        part = client.upload_part(**name, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    assert refusal(client.head_object, **name) == (404, "404")
    client.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": parts})
    assert read(client, bucket) == b"".join(bodies)


def test_a_missing_key_and_a_missing_bucket_are_404(engine, bucket):
    client = engine.client()
    assert refusal(read, client, bucket) == (404, "NoSuchKey")
    assert refusal(client.head_object, Bucket=bucket, Key="a/b") == (404, "404")
    assert refusal(read, client, "no-such-bucket") == (404, "NoSuchBucket")


def test_a_wrong_secret_is_refused(engine, bucket):
    client = engine.client(secret_key="wrong")
    assert refusal(read, client, bucket) == (403, "SignatureDoesNotMatch")
    assert refusal(client.head_object, Bucket=bucket, Key="a/b") == (403, "403")


def test_an_unknown_key_is_refused(engine, bucket):
    code = {"Swift": "SignatureDoesNotMatch", "Ceph": "InvalidAccessKeyId"}[type(engine).__name__]
    assert refusal(read, engine.client(access_key="nobody:here"), bucket) == (403, code)


def test_a_body_with_another_md5_is_refused(engine, bucket):
    client, md5 = engine.client(), base64.b64encode(hashlib.md5(WRONG).digest()).decode()
    keys = {"Bucket": bucket, "Key": "a/b", "Body": SAMPLE, "ContentMD5": md5}
    assert refusal(client.put_object, **keys) == (400, "BadDigest")
    assert refusal(read, client, bucket) == (404, "NoSuchKey")


def test_a_body_with_another_sha_256_is_refused_by_one_engine_only(engine, bucket):
    """So whoever writes to an engine must look at what it keeps."""
    client, sha = engine.client(), base64.b64encode(hashlib.sha256(WRONG).digest()).decode()
    keys = {"Bucket": bucket, "Key": "a/b", "Body": SAMPLE, "ChecksumSHA256": sha}
    if isinstance(engine, Swift):
        assert refusal(client.put_object, **keys) == (400, "BadDigest")
    else:
        client.put_object(**keys)
        assert read(client, bucket) == SAMPLE


def test_an_object_that_exists_can_be_kept_from_being_replaced(engine, bucket):
    client, name = engine.client(), {"Bucket": bucket, "Key": "a/b"}
    client.put_object(**name, Body=SAMPLE, IfNoneMatch="*")
    keys = name | {"Body": WRONG, "IfNoneMatch": "*"}
    assert refusal(client.put_object, **keys) == (412, "PreconditionFailed")
    assert read(client, bucket) == SAMPLE


def test_a_signed_url_is_good_for_its_time_and_its_object(engine, bucket):
    client, name = engine.client(), {"Bucket": bucket, "Key": "a/b"}
    client.put_object(**name, Body=SAMPLE)
    url = client.generate_presigned_url("get_object", name, ExpiresIn=100)
    assert fetch(url) == (200, SAMPLE)
    assert fetch(url.replace("a/b", "a/c"))[0] == 403
    brief = client.generate_presigned_url("get_object", name, ExpiresIn=1)
    poll(lambda: fetch(brief)[0] == 403, what="the end of the URL's time")
    anonymous, _, _ = url.partition("?")
    assert fetch(anonymous)[0] == (400 if isinstance(engine, Swift) else 403)


def test_boto3_s_own_settings_over_https_suit_one_engine_only(engine, bucket):
    """Its chunked bodies with trailing checksums: so Stor asks for checksums when required."""
    client = engine.client(tls=True, request_checksum_calculation="when_supported")
    keys = {"Bucket": bucket, "Key": "a/b", "Body": SAMPLE}
    if isinstance(engine, Swift):
        client.put_object(**keys)
        assert read(client, bucket) == SAMPLE
    else:
        assert refusal(client.put_object, **keys)[0] == 411


def test_swift_goes_on_without_one_of_three_nodes_and_refuses_writes_without_two(tmp_path):
    with Swift(tmp_path / "swift", nodes=3) as swift:
        client, name = swift.client(), {"Bucket": swift.new_bucket(), "Key": "a/b"}
        client.put_object(**name, Body=SAMPLE)
        with swift.nodes[0].killed():
            client.put_object(**name, Body=WRONG)
            assert read(client, name["Bucket"]) == WRONG
            with swift.nodes[1].killed():
                assert refusal(client.put_object, **name, Body=SAMPLE)[0] == 503
        client.put_object(**name, Body=SAMPLE)
        assert read(client, name["Bucket"]) == SAMPLE


def test_ceph_goes_on_without_one_of_three_nodes_and_hangs_without_two(ceph):
    client, name = ceph.client(), {"Bucket": ceph.new_bucket(), "Key": "a/b"}
    client.put_object(**name, Body=SAMPLE)
    with ceph.nodes[0].killed():
        client.put_object(**name, Body=WRONG)
        assert read(client, name["Bucket"]) == WRONG
        with ceph.nodes[1].killed(), pytest.raises(ReadTimeoutError):
            ceph.client(read_timeout=5).put_object(**name, Body=SAMPLE)
    client.put_object(**name, Body=SAMPLE)
    assert read(client, name["Bucket"]) == SAMPLE


def test_an_engine_that_hangs_takes_connections_and_says_nothing(engine, bucket):
    with engine.front.paused(), pytest.raises(ReadTimeoutError):
        read(engine.client(read_timeout=1), bucket)
    assert refusal(read, engine.client(), bucket) == (404, "NoSuchKey")


def test_memcached_keeps_values_until_it_ends(memcached):
    client = Client(memcached.address, timeout=5)
    client.set("key", b"value")
    assert client.get("key") == b"value"
    client.close()
    with memcached.killed(), pytest.raises(ConnectionRefusedError):
        client.get("key")
    assert client.get("key") is None
    client.close()
