"""Real S3 engines, of this file alone, whose nodes are killed under load."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engines.ceph import Ceph
from tests.engines.swift import Swift
from tests.integration.load import Load, timed
from tests.integration.process import poll, sha_of
from tests.integration.test_hung_disk import Client
from tests.integration.test_s3_reading import put, s3_keys
from tests.integration.test_s3_writing import notes, start_when_available, waiting

ANSWER_SECONDS = 10
SIZES = {0: 1, 1000: 10, 100_000: 5, 300_000: 2}
ACTIONS = {"post": 3, "again": 1, "get": 5, "head": 1, "unknown": 1}


@pytest.fixture(scope="module", params=[Swift, Ceph])
def engine(request, tmp_path_factory):
    """An engine of three nodes, for the only test that is left with one of them."""
    with request.param(tmp_path_factory.mktemp("failing") / "engine", nodes=3) as engine:
        yield engine


@pytest.fixture(scope="module")
def bucket(engine):
    return engine.new_bucket()


@pytest.fixture(scope="module")
def stors(engine, bucket, start_in_module, tmp_path_factory):
    """One that copies to S3 and one that has nothing else."""
    spool = {"spool_directory": str(tmp_path_factory.mktemp("spool")), "storage_pairs": []}
    ways = [{"s3_write": "copy"}, {"s3_write": "only", **spool}]
    stors = [
        start_when_available(start_in_module, **s3_keys(engine, bucket), **way) for way in ways
    ]
    yield stors
    for stor in stors:
        stor.kill()  # they have every reason to complain


@pytest.fixture
def watch(stors):
    """Asks for the status all the time."""
    client = Client(lambda: stors[0].get("status"), 0.05)
    yield client
    client.end()


def test_nodes_are_killed_one_after_the_other(engine, bucket, stors, watch):
    copying, alone = stors
    in_s3 = [put(engine, bucket, os.urandom(1000)) for _ in range(5)]
    loads = [Load(stor.port, clients=2, actions=ACTIONS, sizes=SIZES) for stor in stors]
    with at_once([load.run for load in loads], 60):
        poll(lambda: min(load.requests for load in loads) > 20, 60, "some load")
        engine.nodes[0].kill()
    # One is missed by nobody.
    assert [load.surprises for load in loads] == [[], []]
    assert [load.lost for load in loads] == [0, 0]

    engine.nodes[1].kill()
    with at_once([load.run for load in loads], 20):
        asked = [*in_s3, *(sha_of(b"nobody has %d" % number) for number in range(5))]
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda sha: timed(copying.get, sha), asked))
        posts = [timed(alone.put, os.urandom(1000)) for _ in range(3)]
    for seconds, answer in [*answers, *posts]:
        assert seconds < ANSWER_SECONDS
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) > 0
    # The node that is left may still answer, and then rightly.
    assert {answer.status for _, answer in answers[:5]} <= {200, 503}
    assert {answer.status for _, answer in answers[5:]} <= {404, 503}
    assert {answer.status for _, answer in posts} == {503}
    for load in loads:
        assert {surprise.status for surprise in load.surprises} <= {503}
        assert load.lost == 0
    # Nothing that was acknowledged is lost: it is on the disks, and still to be copied.
    content = os.urandom(1000)
    assert copying.put(content).status == 201
    for sha, sample in loads[0].acknowledged.items():
        seconds, answer = timed(copying.get, sha)
        assert (answer.status, answer.body) == (200, sample.content)
        assert seconds < 1
    assert waiting(copying) > 0
    assert len(notes(copying)) >= waiting(copying)

    watch.end()
    assert max(answer.seconds for answer in watch.answers) < 1
    assert {answer.status for answer in watch.answers} <= {200, 503}

    # With two nodes again all of it is there, and what was to be copied is.
    engine.nodes[1].start()
    for stor in stors:
        poll(lambda stor=stor: put_again(stor), 60, "a usable S3")
    poll(lambda: waiting(copying) == 0, 60, "all copies")
    acknowledged = loads[1].acknowledged | loads[0].acknowledged
    for sha, sample in acknowledged.items():
        answer = alone.get(sha)
        assert (answer.status, answer.body) == (200, sample.content)


@contextlib.contextmanager
def at_once(functions, argument):
    """Call them while this block runs; they have ended when it has."""
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(function, argument) for function in functions]
        yield
        for call in running:
            call.result()


def put_again(stor):
    """Whether S3 takes samples."""
    stor.signal(signal.SIGHUP)  # asks S3 anew, which is sooner than the next probe
    time.sleep(1)
    return stor.get("status").body == b"OK\n" and stor.put(os.urandom(10)).status == 201
