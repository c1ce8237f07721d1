"""Samples on their way to real S3 engines."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.process import MIB, poll, sha_of
from tests.integration.test_s3_reading import engine, put, s3_key, s3_keys

__all__ = ["engine"]

COPY_SECONDS = 5


@pytest.fixture(scope="class")
def bucket(engine):
    return engine.new_bucket()


@pytest.fixture
def stored(engine, bucket):
    """What the bucket has under a sample's name, `None` when it has nothing."""
    client = engine.client()

    def stored(sha):
        try:
            answer = client.get_object(Bucket=bucket, Key=s3_key(sha))
        except client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read()

    return stored


def start_when_available(start, **keys):
    stor = start(**keys)
    poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
    return stor


def waiting(stor):
    status = stor.get("status", Accept="application/json")
    return json.loads(status.body)["s3"]["copies"]["waiting"]


def notes(stor):
    return [path for root in stor.roots for path in root.glob(".stor/s3/*")]


class TestCopies:
    @pytest.fixture(scope="class")
    @classmethod
    def stor(cls, engine, bucket, start_in_module):
        return start_when_available(start_in_module, **s3_keys(engine, bucket), s3_write="copy")

    @pytest.mark.parametrize("size", [0, 1000, 300_000, 20 * MIB + 1])
    def test_a_sample_is_in_s3_soon(self, stor, stored, size):
        content = os.urandom(size)
        assert stor.put(content).status == 201
        poll(lambda: stored(sha_of(content)) is not None, COPY_SECONDS, "the copy")
        assert stored(sha_of(content)) == content
        poll(lambda: not notes(stor), what="no note")
        assert waiting(stor) == 0

    def test_what_is_there_already_is_not_sent_again(self, engine, bucket, stor, stored):
        content = os.urandom(1000)
        put(engine, bucket, content)
        assert stor.put(content).status == 201
        poll(lambda: not notes(stor), what="no note")
        assert stored(sha_of(content)) == content

    def test_a_wrong_one_is_replaced(self, engine, bucket, stor, stored):
        content = os.urandom(1000)
        put(engine, bucket, b"too short", sha_of(content))
        assert stor.put(content).status == 201
        poll(lambda: stored(sha_of(content)) == content, COPY_SECONDS, "the right copy")

    def test_a_kill_between_the_answer_and_the_copy_loses_nothing(
        self, engine, bucket, start, stored
    ):
        keys = s3_keys(engine, bucket) | {"s3_write": "copy"}
        stor = start_when_available(start, **keys)
        contents = [os.urandom(size) for size in [100, 1000, 300_000, 9 * MIB] * 5]
        for content in contents:
            assert stor.put(content).status == 201
        stor.kill()
        assert not all(stored(sha_of(content)) for content in contents)
        stor.start()
        missing = {sha_of(content): content for content in contents}
        for sha, content in missing.items():
            poll(lambda sha=sha: stored(sha) is not None, 20, "the copy")
            assert stored(sha) == content
        poll(lambda: not notes(stor), what="no note")


class TestS3Alone:
    """No disks at all: what one stores the other serves."""

    @pytest.fixture(scope="class")
    @classmethod
    def spools(cls, tmp_path_factory):
        return [tmp_path_factory.mktemp("spool") for _ in range(2)]

    @pytest.fixture(scope="class")
    @classmethod
    def stors(cls, engine, bucket, start_in_module, spools):
        keys = s3_keys(engine, bucket) | {"s3_write": "only", "storage_pairs": []}
        return [
            start_when_available(start_in_module, **keys, spool_directory=str(spool))
            for spool in spools
        ]

    @pytest.mark.parametrize("size", [0, 1000, 300_000, 20 * MIB + 1])
    def test_each_serves_what_the_other_has_stored(self, stors, stored, bucket, size):
        first, second = stors
        content = os.urandom(size)
        sha = sha_of(content)
        response = first.put(content)
        assert response.status == 201
        assert json.loads(response.body) == [f"s3://{bucket}/{s3_key(sha)}"]
        assert stored(sha) == content
        assert second.get(sha).body == content
        assert second.put(content).status == 200
        assert second.request("HEAD", sha).headers["content-length"] == str(size)

    def test_a_wrong_body_is_412_and_nothing_is_kept(self, stors, stored):
        response = stors[0].put(b"wrong", sha_of(b"right"))
        assert response.status == 412
        assert stored(sha_of(b"right")) is None

    def test_a_wrong_copy_is_replaced(self, engine, bucket, stors, stored):
        put(engine, bucket, b"too short", sha_of(b"the right one"))
        assert stors[0].put(b"the right one").status == 201
        assert stored(sha_of(b"the right one")) == b"the right one"

    def test_a_hundred_posts_of_one_sample_at_once(self, stors, stored):
        content = os.urandom(100_000)
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: stors[0].put(content).status, range(100)))
        assert Counter(answers) == {201: 1, 200: 99}
        assert stored(sha_of(content)) == content

    def test_the_spool_is_empty_afterwards(self, stors, spools):
        stors[0].put(os.urandom(300_000))
        assert [list(spool.iterdir()) for spool in spools] == [[], []]
