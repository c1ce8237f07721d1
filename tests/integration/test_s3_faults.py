"""An S3 engine that hangs, refuses, cuts, lies or crawls."""

import contextlib
import gzip
import http.client
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stor.app import S3_THREADS
from stor.config import S3
from stor.digest import Digest
from stor.fleet import DISK_READERS, DISK_WRITERS
from stor.s3.client import S3Client, S3Failed
from tests.engines.certificate import Certificate
from tests.integration.bad_engine import BadEngine, start_over
from tests.integration.load import percentile, timed
from tests.integration.process import MIB, free_port, poll, sha_of
from tests.integration.test_hung_disk import Client
from tests.support.rig import request_bytes

#: Within so long a client has the head of an answer, and hears more of it.
HEAD_SECONDS = 10
SILENCE_SECONDS = 30

SMALL, LARGE = 100_000, MIB + 1


@pytest.fixture(scope="module")
def engine():
    with BadEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def stor(engine, start_in_module):
    """One for those troubles after which S3 is still asked."""
    stor = start_over(engine, start_in_module)
    yield stor
    stor.kill()  # it has every reason to complain


@pytest.fixture
def fresh(engine, start):
    """One for troubles after which S3 is not asked any more."""
    stor = start_over(engine, start)
    yield stor
    stor.kill()


def received(stor, sha, *headers):
    """All that comes for a GET, whole or not: its head and its body."""
    with stor.connect(SILENCE_SECONDS) as sock:
        sock.sendall(request_bytes("GET", f"/{sha}", [*headers, ("Connection", "close")]))
        found = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(MIB):
                found += data
    head, _, body = bytes(found).partition(b"\r\n\r\n")
    return head, body


def hang(answer):
    answer.hang()


def refuse_403(answer):
    answer.refuse(403, "AccessDenied")


def refuse_503(answer):
    answer.refuse(503, "SlowDown")


def other_404(answer):
    answer.refuse(404, "NoSuchBucket")


def endless_404(answer):
    answer.refuse_without_end(404)


def endless_500(answer):
    answer.refuse_without_end(500)


@pytest.mark.alone
@pytest.mark.parametrize(
    "trouble", [hang, refuse_403, refuse_503, other_404, endless_404, endless_500]
)
def test_what_the_disks_hold_goes_on_and_the_rest_is_503(engine, fresh, trouble):
    stor = fresh
    on_disk = stor.place(os.urandom(65_536))
    in_s3 = engine.put(os.urandom(1000))
    stor.get(in_s3)
    before = len(stor.descriptors())
    client = Client(lambda: stor.get(on_disk), 0.005)
    try:
        time.sleep(0.5)
        begun = time.monotonic()
        with engine.in_trouble(trouble), ThreadPoolExecutor(8) as pool:
            asked = [in_s3, sha_of(b"nobody has it")] * 4
            answers = list(pool.map(lambda sha: timed(stor.get, sha), asked))
            # A probe finds out: after three failures in a row, or the next one of every 15 s where
            # the engine speaks of one sample at a time.
            poll(lambda: b"OK" not in stor.get("status").body, 30, "an unavailable S3")
            # Some trouble is over before the next GET of what a disk holds.
            poll(lambda: client.between(begun, time.monotonic()), what="a GET from a disk")
            ended = time.monotonic()
            # By now S3 is known not to be available: this is answered at once.
            answers.append(timed(stor.request, "HEAD", in_s3))
            picture = json.loads(stor.get("status", Accept="application/json").body)["s3"]
    finally:
        client.end()
    for seconds, answer in answers:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert seconds < HEAD_SECONDS
    assert all("s3: " in answer.text for _, answer in answers[:-1])
    assert answers[-1][0] < 1
    assert not picture["available"]
    assert {answer.status for answer in client.answers} == {200}
    quiet, loud = (
        percentile([answer.seconds for answer in client.between(*times)], 0.99)
        for times in [(0, begun), (begun, ended)]
    )
    assert loud < max(2 * quiet, 0.25)
    # Not only the next probe asks S3 again.
    stor.signal(signal.SIGHUP)
    poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
    assert stor.get(in_s3).status == 200
    # Eight connections to S3 may be kept for later.
    poll(lambda: len(stor.descriptors()) <= before + 8, what="descriptors as before")


def test_503_now_and_then_is_not_seen(engine, stor):
    content = os.urandom(SMALL)
    sha, numbers = engine.put(content), iter(range(1000))

    def every_second_one(answer):
        answer.refuse(503, "SlowDown") if next(numbers) % 2 == 0 else answer.right()

    with engine.in_trouble(every_second_one):
        assert [stor.get(sha).body for _ in range(20)] == [content] * 20


@pytest.mark.parametrize("hanging", [False, True], ids=["cut", "hung"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_body_that_ends_too_early_once_is_asked_for_from_there(engine, stor, size, hanging):
    content = os.urandom(size)
    sha = engine.put(content)
    cuts = [size // 2] if hanging else [0, 1, size // 3, 65_536, size - 1]
    for cut in cuts:
        engine.requests.clear()

        def once(answer, cut=cut):
            first = len(engine.requests) == 1
            answer.right(until=cut if first else None, hanging=hanging)

        with engine.in_trouble(once):
            head, body = received(stor, sha)
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert body == content
        assert engine.requests == [("GET", 0), ("GET", cut)]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_body_that_always_ends_at_the_same_byte_is_never_a_whole(engine, stor, size, share):
    content = os.urandom(size)
    sha = engine.put(content)
    with engine.in_trouble(lambda answer: answer.right(until=int(size * share))):
        head, body = received(stor, sha)
    if head.startswith(b"HTTP/1.1 200 "):
        assert f"content-length: {size}".encode() in head.lower()
        assert body == content[: len(body)]
        assert len(body) < size
    else:
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in head.lower()
    assert stor.get(sha).body == content


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_wrong_bytes_of_the_right_length_are_never_a_whole(engine, stor, size):
    right = os.urandom(size)
    for place in (0, size // 2, size - 1):
        wrong = bytearray(right)
        wrong[place] ^= 1
        sha = engine.put(bytes(wrong), sha_of(right[:place] + right[place + 1 :]))
        head, body = received(stor, sha)
        assert len(body) < size
        assert head.startswith(b"HTTP/1.1 200 " if size == LARGE else b"HTTP/1.1 500 ")
        assert stor.get(sha).status == 500


def test_one_kib_a_second_is_passed_on_without_a_long_silence(engine, stor):
    content = os.urandom(6 * 1024)
    sha = engine.put(content)
    with (
        engine.in_trouble(lambda answer: answer.right(bytes_per_second=1024)),
        stor.connect(SILENCE_SECONDS) as sock,
    ):
        sock.sendall(request_bytes("GET", f"/{sha}"))
        found, times = bytearray(), [time.monotonic()]
        while not found.endswith(content):
            found += sock.recv(65536)
            times.append(time.monotonic())
    silences = [after - before for before, after in itertools.pairwise(times)]
    assert silences[0] < HEAD_SECONDS
    assert max(silences[1:]) < HEAD_SECONDS
    # What came in time is not asked for again.
    assert engine.requests == [("GET", 0)]


def test_ranges_go_through_troubles_too(engine, stor):
    content = os.urandom(LARGE)
    sha = engine.put(content)

    def cut_long_ones(answer):
        first_long = answer.begin == 5000 and engine.requests.count(("GET", 5000)) == 1
        answer.right(until=300_000 if first_long else None)

    with engine.in_trouble(cut_long_ones):
        head, body = received(stor, sha, ("Range", "bytes=5000-"))
    assert head.startswith(b"HTTP/1.1 206 ")
    assert body == content[5000:]
    assert ("GET", 300_000) in engine.requests


@pytest.mark.alone
def test_two_hundred_slow_downloads_take_no_threads_and_little_memory(engine, stor):
    content = os.urandom(4 * MIB)
    sha, downloads = engine.put(content), 200
    stor.get(sha)
    # Reading, writing and probing disks; what is sent to S3; hashing, signing, and the reactor.
    threads = len(stor.roots) * (DISK_READERS + DISK_WRITERS + 3) + S3_THREADS + os.cpu_count() + 2
    descriptors, memory_kib = len(stor.descriptors()), stor.memory_kib()
    stor.forget_peak()
    heads = Counter()
    with engine.in_trouble(lambda answer: answer.right(bytes_per_second=8192)):
        socks = [stor.connect(SILENCE_SECONDS) for _ in range(downloads)]
        for sock in socks:
            sock.sendall(request_bytes("GET", f"/{sha}"))
        for sock in socks:
            heads[sock.recv(12)] += 1
        for sock in socks[: downloads // 2]:
            sock.close()  # also in the middle
        time.sleep(1)
        most = len(list(Path(f"/proc/{stor.pid}/task").iterdir()))
        grown_kib = stor.memory_kib("VmHWM") - memory_kib
        for sock in socks:
            sock.close()
        poll(lambda: len(stor.descriptors()) <= descriptors, what="descriptors as before")
    assert heads == {b"HTTP/1.1 200": downloads}
    assert most <= threads
    assert grown_kib < 100 * 1024
    poll(lambda: engine.connections <= 32, 60, what="no connection that nobody wants")


def test_over_https_too_nothing_is_left_of_what_hangs(start, tmp_path):
    with BadEngine(Certificate.make(tmp_path)) as engine:
        stor = start_over(engine, start)
        sha = engine.put(os.urandom(LARGE))
        before = len(stor.descriptors())
        with engine.in_trouble(lambda answer: answer.right(until=300_000, hanging=True)):
            for _ in range(8):
                with stor.connect() as sock:
                    sock.sendall(request_bytes("GET", f"/{sha}"))
                    assert sock.recv(12) == b"HTTP/1.1 200"
            poll(lambda: len(stor.descriptors()) <= before, 15, "descriptors as before")
        stor.kill()


def test_clients_that_read_slowly_hold_the_engine_back(engine, stor):
    content = os.urandom(64 * MIB)
    sha = engine.put(content)
    stor.get(engine.put(b"first"))
    memory_kib = stor.memory_kib()
    stor.forget_peak()
    with stor.connect(receive_buffer_bytes=65536) as sock:
        sock.sendall(request_bytes("GET", f"/{sha}"))
        assert sock.recv(12) == b"HTTP/1.1 200"
        time.sleep(2)
        assert stor.memory_kib("VmHWM") - memory_kib < 16 * 1024


@pytest.mark.parametrize("order", [["disk", "s3"], ["s3", "disk"]])
def test_either_order_finds_what_either_has(engine, start, order):
    stor = start_over(engine, start, lookup_order=order)
    engine.requests.clear()
    on_disk, in_s3, on_both = os.urandom(1000), os.urandom(1000), os.urandom(1000)
    shas = [stor.place(on_disk), engine.put(in_s3), stor.place(on_both)]
    engine.put(on_both)
    assert [stor.get(sha).body for sha in shas] == [on_disk, in_s3, on_both]
    assert stor.get(sha_of(b"nobody has it")).status == 404
    s3_first = order[0] == "s3"
    assert len(engine.requests) == (4 if s3_first else 2)
    if s3_first:
        with engine.in_trouble(lambda answer: answer.right(b"wrong")):
            assert stor.get(stor.place(b"right")).body == b"right"
        with engine.in_trouble(refuse_503):
            assert [stor.get(sha).status for sha in shas] == [200, 503, 200]
        stor.kill()


def test_s3_that_is_not_in_the_order_is_not_asked(engine, start):
    stor = start_over(engine, start, lookup_order=["disk"])
    sha = engine.put(b"only there")
    with engine.in_trouble(hang):
        assert stor.get(sha).status == 404
        assert stor.request("HEAD", sha).status == 404
    assert engine.requests == []


def test_s3_that_is_not_enabled_is_not_asked(engine, start):
    sha = engine.put(b"only there")
    stor = start(
        s3_enabled=False,
        s3_credentials=engine.credentials,
        lookup_order=["s3", "disk"],
    )
    with engine.in_trouble(hang):
        assert stor.get(sha).status == 404
        assert stor.get("status").body == b"OK\n"
    assert engine.requests == []


def test_the_end_comes_in_time_while_s3_hangs(engine, fresh):
    stor = fresh
    sha = engine.put(os.urandom(LARGE))
    answers = []

    def ask(hold):
        try:
            answers.append(stor.get(hold).status)
        except (OSError, http.client.HTTPException) as error:
            answers.append(repr(error))

    with engine.in_trouble(lambda answer: answer.right(until=500_000, hanging=True)):
        streaming = threading.Thread(target=ask, args=[sha])
        streaming.start()
        poll(lambda: engine.requests)
    with engine.in_trouble(hang):
        asking = threading.Thread(target=ask, args=[sha_of(b"nobody has it")])
        asking.start()
        poll(lambda: engine.requests)
        stor.signal()
        poll(lambda: not stor.running, 3 * HEAD_SECONDS, "the end")
    for thread in (asking, streaming):
        thread.join()
    assert 503 in answers


def test_s3_that_takes_no_connections_is_503(start):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address), socket.socket() as waiting:
            waiting.setblocking(False)
            waiting.connect_ex(address)
            stor = start(
                index=False,
                s3_enabled=True,
                s3_credentials={
                    **{"access_key": "a", "secret_key": "s"},
                    "host": f"http://127.0.0.1:{address[1]}",
                },
            )
            seconds, answer = timed(stor.get, sha_of(b"nobody has it"))
            assert (answer.status, seconds < HEAD_SECONDS) == (503, True)
            assert stor.get(stor.place(b"on the disks")).status == 200
            stor.kill()


ARCHIVED = ("archived", lambda answer: answer.refuse(403, "InvalidObjectState"))
REFUSED = ("refused", lambda answer: answer.refuse(403, "AccessDenied"))


@pytest.mark.parametrize("odd", [ARCHIVED, REFUSED, ("hung", hang)], ids=lambda odd: odd[0])
def test_a_sample_that_cannot_be_had_makes_no_other_unavailable(engine, fresh, odd):
    stor = fresh
    shas = [engine.put(os.urandom(1000)) for _ in range(2)]

    def about_one(answer):
        odd[1](answer) if answer.sha == shas[0] else answer.right()

    with engine.in_trouble(about_one), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(stor.get, [shas[0]] * 8))
        assert {answer.status for answer in answers} == {503}
        assert stor.get(shas[1]).status == 200
        assert stor.get(sha_of(b"nobody has it")).status == 404
        assert stor.get("status").body == b"OK\n"


@pytest.mark.parametrize("size", [1000, LARGE])
def test_an_object_with_a_content_encoding_is_served_as_it_is_stored(engine, stor, size):
    content = gzip.compress(os.urandom(size))
    sha = engine.put(content)
    engine.headers[sha] = {"Content-Encoding": "gzip"}
    engine.headers[lying := engine.put(b"no gzip")] = {"Content-Encoding": "gzip"}
    wanted = []

    def look(answer):
        wanted.append(answer.wanted.get_all("Accept-Encoding"))
        answer.right()

    with engine.in_trouble(look):
        response = stor.get(sha)
        assert (response.status, response.body) == (200, content)
        assert "content-encoding" not in response.headers
        assert stor.request("HEAD", sha).headers["content-length"] == str(len(content))
        assert stor.get(sha, Range="bytes=5-9").body == content[5:10]
        assert stor.get(lying).body == b"no gzip"
    assert {tuple(one) for one in wanted} == {("identity",)}


def test_no_call_goes_through_a_proxy_of_the_environment(engine, start, tmp_path):
    """A proxy that nobody listens on would fail each of them."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    names = [f"{scheme}_proxy" for scheme in ("http", "https", "all")]
    stor = start(
        variables={name: nowhere for one in names for name in (one, one.upper())},
        s3_enabled=True,
        s3_credentials=engine.credentials,
        s3_write="only",
        storage_pairs=[],
        spool_directory=str(tmp_path / "spool"),
    )
    poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
    for size in (1000, 9 * MIB):
        content = os.urandom(size)
        assert stor.put(content).status == 201
        assert engine.objects[sha_of(content)] == content
        assert stor.get(sha_of(content)).body == content


@pytest.mark.parametrize("form", ["[::1]:{}", "http://[::1]:{}"])
def test_an_engine_at_an_ipv6_address(start, tmp_path, form):
    with BadEngine(host="::1") as engine:
        port = engine.credentials["host"].rpartition(":")[2]
        stor = start(
            s3_enabled=True,
            s3_credentials=engine.credentials | {"host": form.format(port)},
            s3_write="only",
            storage_pairs=[],
            spool_directory=str(tmp_path / "spool"),
        )
        poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
        assert stor.put(b"content").status == 201
        assert stor.get(sha_of(b"content")).body == b"content"
        stor.stop()


@pytest.fixture
def client(engine):
    """The calls that write, without a Stor."""
    found = engine.credentials
    return S3Client(S3(found["access_key"], found["secret_key"], found["host"]), 1)


def test_an_engine_that_knows_no_condition_is_asked_for_it_once(engine, client):
    def unconditional(answer):
        if answer.wanted.get("If-None-Match"):
            conditions.append(answer.sha)
            answer.refuse(501, "NotImplemented")
        elif answer.method == "PUT":
            answer.stored()
        else:
            answer.right()

    conditions, contents = [], [b"put 1", b"put 2", b"put 3"]
    digests = list(map(Digest.of, contents))
    engine.put(b"put 2")
    with engine.in_trouble(unconditional):
        for digest, content in zip(digests, contents, strict=True):
            created = client.put(digest, content, replace=False)
            assert created == (content != b"put 2")
            assert not client.put(digest, content, replace=False)
    assert conditions == [str(digests[0])]
    assert [engine.objects[str(digest)] for digest in digests] == contents


def test_501_to_all_is_an_error_and_the_condition_is_asked_for_again(engine, client):
    digest = Digest.of(b"never stored")
    refuse = lambda answer: answer.refuse(501, "NotImplemented")  # noqa: E731
    with engine.in_trouble(refuse), pytest.raises(S3Failed, match=r"501"):
        client.put(digest, b"never stored", replace=False)
    asked = []
    with engine.in_trouble(lambda a: (asked.append(a.wanted.get("If-None-Match")), a.stored())):
        assert client.put(digest, b"never stored", replace=False)
    assert asked == ["*"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (lambda answer: answer.stored(upload_id=None), "an answer without UploadId"),
        (lambda answer: answer.stored(etag=None), "an answer without ETag"),
        (lambda answer: answer.say(200, b"<Odd></Odd>"), "an answer without UploadId"),
        (lambda answer: answer.say(200, b"<html>no XML"), "."),
        (lambda answer: answer.say(200, b""), "."),
    ],
    ids=["UploadId", "ETag", "another document", "no XML", "nothing"],
)
def test_an_answer_that_lacks_something_is_one_clear_error(engine, client, trouble, reason):
    digest = Digest.of(b"a part")
    with engine.in_trouble(trouble), pytest.raises(S3Failed, match=reason) as caught:
        client.put_part(digest, client.begin(digest), 1, b"a part")
    assert str(caught.value).startswith("s3: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Last-Modified": None}, 0), ({}, 784111777)],
    ids=["without", "with"],
)
def test_a_head_without_a_time_has_a_default(engine, client, headers, seconds):
    sha = engine.put(b"content of a head")
    engine.headers[sha] = headers
    stat = client.head(Digest.parse(sha))
    assert (stat.size, stat.modified_ns) == (len(b"content of a head"), seconds * 10**9)


def test_a_time_that_makes_no_sense_is_one_clear_error(engine, client):
    sha = engine.put(b"content of a head")
    engine.headers[sha] = {"Last-Modified": "a long time ago"}
    with pytest.raises(S3Failed, match=r"^s3: head_object: "):
        client.head(Digest.parse(sha))
