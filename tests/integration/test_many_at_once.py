"""Many clients at once: of one sample, of many, and of nothing at all."""

import contextlib
import json
import os
import random
import selectors
import socket
import time
from collections import Counter

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.web.client import HTTPConnectionPool

from tests.integration.process import MIB, poll, sha_of, upload_head
from tests.support.rig import PASSWORD, USER

TIMEOUT_SECONDS = 60


@pytest.fixture
def pool():
    """Connections that are kept, and closed in the end."""
    found = HTTPConnectionPool(reactor)
    found.maxPersistentPerHost = 50
    yield found
    pytest_twisted.blockon(found.closeCachedConnections())


@pytest.fixture
def threads():
    """Threads for clients that wait for their sockets."""
    found = ThreadPool(0, 40)
    found.start()
    yield found
    found.stop()


async def post(stor, sha, content, pool):
    """Store a sample; the status and the paths, or whatever else is said."""
    answer = await treq.post(
        stor.url(sha), data=content, auth=(USER, PASSWORD), pool=pool, timeout=TIMEOUT_SECONDS
    )
    text = await treq.text_content(answer)
    return answer.code, json.loads(text) if answer.code in (200, 201) else text


async def get(stor, sha, pool):
    answer = await treq.get(stor.url(sha), pool=pool, timeout=TIMEOUT_SECONDS)
    return answer.code, await treq.content(answer)


def at_once(coroutines):
    """The outcomes of all, in order."""
    return gatherResults([Deferred.fromCoroutine(c) for c in coroutines], consumeErrors=True)


async def until(condition, what):
    """Like `poll`, while the clients go on."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not come true"
        await deferLater(reactor, 0.02)


async def assert_one_made_it(stor, content, answers):
    """One answer is 201, the rest are 200, all name the same files, one on each disk of a set."""
    assert Counter(code for code, _ in answers) == {201: 1, 200: len(answers) - 1}
    paths = answers[0][1]
    assert [found for _, found in answers] == [paths] * len(answers)
    assert [str(path) for path in stor.samples()] == paths
    assert len(paths) == 2
    assert [path.read_bytes() == content for path in stor.samples()] == [True, True]
    await until(lambda: stor.at_rest, "no connection and no open file")


@pytest_twisted.ensureDeferred
async def test_a_hundred_posts_of_one_sample(start):
    stor, content = start(), os.urandom(MIB)
    sha, each_its_own = sha_of(content), HTTPConnectionPool(reactor, persistent=False)
    answers = await at_once(post(stor, sha, content, each_its_own) for _ in range(100))
    await assert_one_made_it(stor, content, answers)


@pytest_twisted.ensureDeferred
async def test_a_hundred_posts_of_one_sample_a_third_of_them_cut_off(start, threads):
    stor, content = start(), os.urandom(MIB)
    sha, each_its_own = sha_of(content), HTTPConnectionPool(reactor, persistent=False)
    rng = random.Random(1)

    def cut_off(offset):
        with stor.connect() as sock:
            sock.sendall(upload_head(sha, len(content)))
            sock.sendall(content[:offset])

    cuts = [rng.randrange(len(content)) for _ in range(33)]
    cutting = [deferToThreadPool(reactor, threads, cut_off, offset) for offset in cuts]
    answers = await at_once(post(stor, sha, content, each_its_own) for _ in range(67))
    await gatherResults(cutting)
    await assert_one_made_it(stor, content, answers)


@pytest_twisted.ensureDeferred
async def test_right_and_wrong_contents_under_one_name(start):
    stor, content = start(), os.urandom(MIB)
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    sha, each_its_own = sha_of(content), HTTPConnectionPool(reactor, persistent=False)
    sent = [content, wrong] * 25
    random.Random(2).shuffle(sent)
    answers = await at_once(post(stor, sha, body, each_its_own) for body in sent)
    right = [answer for body, answer in zip(sent, answers, strict=True) if body == content]
    await assert_one_made_it(stor, content, right)
    codes = {code for body, (code, _) in zip(sent, answers, strict=True) if body == wrong}
    assert codes <= {412, 200}, "200 is for those that came when it was stored already"


@pytest_twisted.ensureDeferred
async def test_a_thousand_samples_on_fifty_connections(start, pool):
    stor, rng = start(), random.Random(3)
    contents = {sha_of(content): content for content in (rng.randbytes(1024) for _ in range(1000))}
    turns = DeferredSemaphore(50)
    answers = await gatherResults(
        [
            turns.run(lambda s, c: Deferred.fromCoroutine(post(stor, s, c, pool)), sha, content)
            for sha, content in contents.items()
        ]
    )
    assert Counter(code for code, _ in answers) == {201: 1000}
    assert sorted(path for _, paths in answers for path in paths) == sorted(
        str(path) for path in stor.samples()
    )
    fetched = await gatherResults(
        [turns.run(lambda s: Deferred.fromCoroutine(get(stor, s, pool)), sha) for sha in contents]
    )
    assert fetched == [(200, content) for content in contents.values()]
    assert stor.staged() == []


@pytest.mark.alone
def test_a_burst_of_connections_does_not_wait(start):
    stor = start()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        begun = time.monotonic()
        for _ in range(500):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", stor.port))
            selector.register(sock, selectors.EVENT_WRITE)
        while selector.get_map():
            for key, _ in selector.select(1):
                selector.unregister(key.fileobj)
            # A connection that is not taken at once is asked for again after a second.
            assert time.monotonic() - begun < 0.9
    poll(lambda: stor.at_rest, what="no connection and no open file")


@pytest.mark.alone
def test_idle_connections_do_not_hinder_a_get(start):
    stor = start(index=False)
    sha = stor.place(os.urandom(65536), stor.roots[:2])
    stor.get(sha)
    alone = seconds_of_gets(stor, sha)
    before = stor.memory_kib()
    with contextlib.ExitStack() as stack:
        for n in range(500):
            sock = stack.enter_context(stor.connect())
            # Some say nothing at all, some stop in the middle of a request.
            sock.sendall([b"", b"GET / HTTP/1.1\r\n", upload_head(sha, 5)[:-2]][n % 3])
        among_many = seconds_of_gets(stor, sha)
        assert stor.memory_kib() - before < 20 * 1024
    assert among_many < max(2 * alone, 0.05)
    poll(lambda: stor.at_rest, what="no connection and no open file")


def seconds_of_gets(stor, sha):
    """How long the middle one of fifty takes."""
    taken = []
    for _ in range(50):
        begun = time.monotonic()
        assert stor.get(sha).status == 200
        taken.append(time.monotonic() - begun)
    return sorted(taken)[25]
