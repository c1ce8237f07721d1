"""Samples in memory, Stor's or the kernel's: bounded, and answered as if they came from a disk."""

import random
import re
import tracemalloc

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stor.digest import Digest
from stor.disk.page_cache import CachedCopy
from stor.http.answer import SERVER
from stor.store import HotSamples
from tests.conformance import sample
from tests.support.files import MemoryFiles
from tests.support.http import Disks, no_bug_logged
from tests.support.rig import Rig, digest_of, request_bytes

SMALL = sample(4096)
PLACE = "/mnt/data1"


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path, sets=(2, 2), cache_bytes=1_000_000)
    rig.put(SMALL)
    return rig


def get(connection, target, *headers, method="GET", version="HTTP/1.1"):
    """The bytes that are answered, but for the Date and the request's name."""
    before = len(connection.received)
    connection.send(request_bytes(method, target, headers, version=version))
    return re.sub(rb"\r\n(Date|X-Request-Id): [^\r]*", b"", connection.received[before:])


def hot_sample(content):
    return CachedCopy(Digest.of(content), PLACE, "/mnt/a", len(content), 0, content)


class TestBounds:
    def test_it_never_holds_more_than_it_may(self):
        rng = random.Random(1)
        hot = HotSamples(100_000)
        for _ in range(500):
            content = rng.randbytes(rng.choice([0, 10, 1000, 20_000, 99_500]))
            hot.add(hot_sample(content))
            assert hot.used_bytes <= 100_000
        hot.shrink(0)
        assert (len(hot), hot.used_bytes) == (0, 0)

    def test_what_was_asked_for_longest_ago_goes_first(self):
        hot = HotSamples(10_000)
        contents = [sample(3000, seed) for seed in range(3)]
        for content in contents[:2]:
            hot.add(hot_sample(content))
        hot.get(Digest.of(contents[0]).raw)
        hot.add(hot_sample(contents[2]))
        kept = [hot.get(Digest.of(content).raw) is not None for content in contents]
        assert kept == [True, False, True]

    def test_a_cache_of_nothing_holds_nothing(self):
        hot = HotSamples(0)
        hot.add(hot_sample(b""))
        assert len(hot) == 0


REQUESTS = {
    "plain": ([], {}),
    "as curl": ([("User-Agent", "curl/7.88.1"), ("Accept", "*/*")], {}),
    "keep-alive": ([("Connection", "keep-alive")], {}),
    "close": ([("Connection", "close")], {}),
    "upper case": ([], {"upper": True}),
    "trailing slash": ([], {"suffix": "/"}),
    "query": ([], {"suffix": "?x=y"}),
    "HEAD": ([], {"method": "HEAD"}),
    "HTTP/1.0": ([], {"version": "HTTP/1.0"}),
    "range": ([("Range", "bytes=5-10")], {}),
    "range beyond": ([("Range", "bytes=5000-")], {}),
    "etag": ([("If-None-Match", "*")], {}),
    "date": ([("If-Modified-Since", "Sun, 06 Nov 2033 08:49:37 GMT")], {}),
    "two hosts": ([("Host", "another")], {}),
    "body": ([("Content-Length", "0")], {}),
    "folded": ([("X-A", "b\r\n c")], {}),
    "strange": ([("X-A", "\x01")], {}),
}


#: How a sample is answered: from Stor's memory, from the kernel's, or the ordinary way.
WAYS = ("hot", "cached", "ordinary")


def rig_for(way, path):
    """One that answers plain requests for a sample in this way."""
    rig = Rig(
        path,
        sets=(2, 2),
        files=Disks(MemoryFiles),
        cache_bytes=1_000_000 if way == "hot" else 0,
    )
    rig.put(SMALL)
    rig.get(SMALL)
    for member in rig.members:
        member.disk.look(digest_of(SMALL))
    rig.rounds(2)
    if way == "ordinary":
        rig.site.serve(attrs.evolve(rig.site.serving, fast_path=None))
    else:
        plain = request_bytes("GET", f"/{digest_of(SMALL)}")
        assert rig.site.serving.fast_path.answer(plain, "-", SERVER) is not None
    assert len(rig.store.hot) == (way == "hot")
    return rig


@pytest.fixture
def all_ways(tmp_path):
    return [rig_for(way, tmp_path) for way in WAYS]


@pytest.mark.parametrize(("headers", "form"), REQUESTS.values(), ids=REQUESTS)
def test_the_answer_is_the_same_wherever_it_comes_from(all_ways, headers, form):
    name = str(digest_of(SMALL))
    target = f"/{name.upper() if form.get('upper') else name}{form.get('suffix', '')}"
    how = {key: form[key] for key in ("method", "version") if key in form}
    answers = {get(rig.connect(), target, *headers, **how) for rig in all_ways}
    assert len(answers) == 1


HEADERS = [
    ("Accept", "*/*"),
    ("User-Agent", "Go-http-client/1.1"),
    ("user-agent", ""),
    ("Connection", "keep-alive"),
    ("Connection", "Keep-Alive, TE"),
    ("Connection", "close"),
    ("Host", "another"),
    ("Range", "bytes=0-0"),
    ("Range", "bytes=4096-"),
    ("Range", "lines=1-2"),
    ("If-Range", '"x"'),
    ("If-None-Match", "*"),
    ("If-None-Match", '"x"'),
    ("If-Match", '"x"'),
    ("If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("Authorization", "Basic eDp5"),
    ("Expect", "100-continue"),
    ("Content-Length", "0"),
    ("Transfer-Encoding", "chunked"),
    ("Cookie", "a=b"),
    ("X-Forwarded-For", "192.0.2.7"),
    ("Via", "1.1 proxy"),
    ("Bad Name", "x"),
    ("X-Latin", "\xe9"),
]


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # nothing changes in the rigs
)
@given(
    headers=st.lists(st.sampled_from(HEADERS), max_size=4),
    method=st.sampled_from(["GET"] * 6 + ["HEAD"] * 3 + ["get", "head", "DELETE"]),
    version=st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/2.0"]),
    name=st.sampled_from(
        [str(digest_of(SMALL))] * 4
        + [str(digest_of(SMALL)).upper(), str(digest_of(b"")), "g" * 64, "ab " * 21 + "c", "0" * 63]
    ),
    suffix=st.sampled_from([""] * 6 + ["/", "?", "?a=b", "%0A", " "]),
)
def test_the_fast_path_says_just_what_the_ordinary_way_says(
    all_ways, headers, method, version, name, suffix
):
    answers = set()
    for rig in all_ways:
        connection = rig.connect()
        answer = get(connection, f"/{name}{suffix}", *headers, method=method, version=version)
        # And the connection is good for as much, or as little, afterwards.
        answers.add((answer, connection.closed, get(connection, "/")))
    assert len(answers) == 1


def test_a_hot_sample_needs_no_disk(rig):
    rig.get(SMALL)
    for path in rig.copies(SMALL):
        path.unlink()
    assert rig.get(SMALL).body == SMALL
    assert rig.get(SMALL, [("Range", "bytes=1-2")]).body == SMALL[1:3]
    assert rig.get(SMALL, method="HEAD").status == 200


def test_only_what_was_verified_is_hot(rig):
    for path in rig.copies(SMALL):
        path.write_bytes(b"x" * len(SMALL))
    assert rig.get(SMALL).status == 500
    assert len(rig.store.hot) == 0


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_many_requests_in_pieces_are_answered_in_order(rig, size):
    rig.get(SMALL)
    head = request_bytes("GET", f"/{digest_of(SMALL)}")
    data = head * 5 + request_bytes("GET", "/") + head * 5
    connection = rig.connect()
    for begin in range(0, len(data), size):
        connection.send(data[begin : begin + size])
    bodies = [response.body for response in connection.responses()]
    assert bodies[:5] == bodies[6:] == [SMALL] * 5
    assert bodies[5].startswith(b"This is Stor")


def test_one_that_takes_nothing_is_not_answered_into_memory(rig):
    rig.get(SMALL)
    connection = rig.connect()
    connection.stop_taking()
    for _ in range(100):
        connection.send(request_bytes("GET", f"/{digest_of(SMALL)}"))
    assert len(connection.transport.outgoing) < 100_000
    while connection.unread or connection.transport.outgoing:
        connection.take()
    assert [response.body for response in connection.responses()] == [SMALL] * 100


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("content", [SMALL, b"nobody has it"], ids=["stored", "missing"])
def test_each_is_told_of_as_it_is_the_ordinary_way(tmp_path, method, content):
    told = set()
    for rig in (rig_for(way, tmp_path) for way in WAYS):
        rig.get(content, method=method)
        served = rig.served[-1]
        of_a_disk = served.storage is not None
        told.add((served._replace(seconds=0, request_id="-", storage=None), of_a_disk))
    assert len(told) == 1


def test_what_is_known_of_heads_is_bounded(rig):
    """Whoever asks with ever other headers, short or long, fills no memory with them."""
    rig.get(SMALL)
    connection = rig.connect()
    tracemalloc.start()
    try:
        for length in (10, 1500, 12_000):
            for number in range(1500):
                header = ("X-Real-IP", f"{number} {'x' * length}")
                connection.send(request_bytes("GET", f"/{digest_of(SMALL)}", [header]))
                connection.received.clear()
                rig.served.clear()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000
