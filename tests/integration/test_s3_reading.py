"""Samples that only S3 has, from real engines."""

import base64
import os

import pytest

from tests.integration.process import MIB, poll, sha_of

SIZES = [0, 1, 100_000, 262_144, 262_145, 3 * MIB + 1]
CONTENTS = [os.urandom(size) for size in SIZES]


@pytest.fixture(scope="module", params=["swift", "ceph"])
def engine(request):
    return request.getfixturevalue(request.param)


def s3_key(sha):
    return f"{sha[:2]}/{sha[2:4]}/{sha[4:6]}/{sha}"


def s3_keys(engine, of_bucket, *, tls=False, **credentials):
    """The configuration of an engine."""
    return {
        "s3_enabled": True,
        "s3_credentials": {
            "access_key": engine.access_key,
            "secret_key": engine.secret_key,
            "host": engine.tls_endpoint if tls else engine.endpoint,
            "bucket": of_bucket,
            "ca_file": engine.ca_file,
        }
        | credentials,
    }


def put(engine, bucket, content, sha=None):
    sha = sha or sha_of(content)
    engine.client().put_object(Bucket=bucket, Key=s3_key(sha), Body=content)
    return sha


@pytest.fixture(scope="module")
def bucket(engine):
    bucket = engine.new_bucket()
    for content in CONTENTS:
        put(engine, bucket, content)
    return bucket


@pytest.fixture(scope="module", params=[False, True], ids=["http", "https"])
def stor(request, engine, bucket, start_in_module):
    stor = start_in_module(index=False, **s3_keys(engine, bucket, tls=request.param))
    poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
    return stor


@pytest.mark.parametrize("content", CONTENTS, ids=SIZES)
class TestASampleThatOnlyS3Has:
    def test_is_served_exactly(self, stor, content):
        sha = sha_of(content)
        response = stor.get(sha)
        assert (response.status, response.body) == (200, content)
        assert response.headers["content-length"] == str(len(content))
        assert response.headers["etag"] == f'"{sha}"'
        repr_digest = base64.b64encode(bytes.fromhex(sha)).decode()
        assert response.headers["repr-digest"] == f"sha-256=:{repr_digest}:"

    def test_has_its_length_in_head(self, stor, content):
        response = stor.request("HEAD", sha_of(content))
        assert (response.status, response.body) == (200, b"")
        assert response.headers["content-length"] == str(len(content))

    def test_is_served_in_parts(self, stor, content):
        for first, last in [(0, 0), (1, 70_000), (len(content) - 1, len(content) + 5)]:
            if first < 0 or first >= len(content):
                continue
            response = stor.get(sha_of(content), Range=f"bytes={first}-{last}")
            assert (response.status, response.body) == (206, content[first : last + 1])

    def test_is_304_for_who_has_it(self, stor, content):
        sha = sha_of(content)
        assert stor.get(sha, **{"If-None-Match": f'"{sha}"'}).status == 304


class TestASampleThatNobodyHas:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_is_404(self, stor, method):
        assert stor.request(method, sha_of(b"nobody has it")).status == 404

    def test_is_404_in_parts(self, stor):
        assert stor.get(sha_of(b"nobody has it"), Range="bytes=0-5").status == 404


class TestAWrongCopy:
    """Right in length, wrong in bytes: never served as whole."""

    @pytest.fixture
    def stor(self, engine, bucket, start):
        """One that has every reason to complain."""
        stor = start(index=False, **s3_keys(engine, bucket), lookup_order=["s3", "disk"])
        poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
        yield stor
        stor.kill()

    def test_a_small_one_is_an_error(self, engine, bucket, stor):
        sha = put(engine, bucket, b"wrong", sha_of(b"right"))
        response = stor.get(sha)
        assert response.status == 500
        assert response.body.count(b"\n") == 1

    def test_a_large_one_is_cut(self, engine, bucket, stor):
        right = os.urandom(MIB)
        sha = put(engine, bucket, right[:-1] + b"x", sha_of(right))
        with pytest.raises(OSError, match=r"."):
            assert not stor.get(sha).complete
        assert stor.get(sha).status == 500

    def test_a_good_one_on_a_disk_is_served(self, engine, bucket, stor):
        right = os.urandom(1000)
        put(engine, bucket, b"x" * 1000, stor.place(right))
        assert stor.get(sha_of(right)).body == right


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        ({"secret_key": "wrong"}, "403"),
        ({"access_key": "unknown"}, "403"),
        ({"bucket": "no-such-bucket"}, "404"),
    ],
    ids=["secret", "user", "bucket"],
)
def test_a_wrong_configuration_is_503_and_says_so(engine, bucket, start, credentials, said):
    stor = start(index=False, **s3_keys(engine, bucket, **credentials))
    poll(lambda: f"({said})" in stor.get("status").text, what="a status that says why")
    sha = stor.place(b"on the disks")
    response = stor.get(sha_of(CONTENTS[2]))
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert "s3" in response.text
    assert stor.get(sha).body == b"on the disks"
    assert f"s3 is not available: s3: head_bucket: {said} ({said})" in stor.log
    stor.kill()
