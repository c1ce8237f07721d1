"""Uploads that are gone on with, as draft-ietf-httpbis-resumable-upload-11 has them."""

import json
import random

import pytest
from twisted.internet.defer import Deferred

from stor.mirror.partial import KEPT_SECONDS, SYNC_BYTES
from stor.status import PartialUploads
from tests.conformance import MIB, QuickFiles, sample
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    HeldPools,
    assert_one_line,
    chunked,
    no_bug_logged,
)
from tests.support.metrics import Exported
from tests.support.rig import Rig, digest_of, request_bytes

CONTENT = sample(3 * MIB + 5)
SHA = str(digest_of(CONTENT))
PART = ("Content-Type", "application/partial-upload")
ALL, SOME = ("Upload-Complete", "?1"), ("Upload-Complete", "?0")
PROBLEMS = "https://iana.org/assignments/http-problem-types#"


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path, files=lambda label: QuickFiles())


def at(offset):
    return ("Upload-Offset", str(offset))


def of(length):
    return ("Upload-Length", str(length))


def upload(rig, method, *headers, body=None, sha=SHA):
    return rig.request(method, f"/{sha}/upload", [AUTHORIZED, *headers], body)


def begin(rig, content, *headers, body=b""):
    """Begin an upload with its first part."""
    path = f"/{digest_of(content)}"
    response = rig.request("POST", path, [AUTHORIZED, *(headers or (SOME,))], body)
    assert response.status == 201, response.text
    return response


def go_on(rig, offset, body, *headers, sha=SHA):
    return upload(rig, "PATCH", PART, at(offset), *headers, body=body, sha=sha)


def state(rig, sha=SHA):
    """What HEAD tells: complete or not, offset and length."""
    response = upload(rig, "HEAD", sha=sha)
    if response.status == 404:
        return None
    assert response.status == 204
    assert response.headers["cache-control"] == "no-store"
    headers = response.headers
    return headers["upload-complete"], int(headers["upload-offset"]), headers.get("upload-length")


def partials(rig):
    return sorted(path for root in rig.roots for path in root.glob(".stor/partial/*"))


def cut(rig, head, body):
    """Send so much of a body and go away."""
    connection = rig.connect()
    connection.send(head + body)
    connection.close()
    return connection


def problem(response, kind):
    assert response.headers["content-type"] == "application/problem+json"
    told = json.loads(response.body)
    assert told["type"] == PROBLEMS + kind
    assert told["title"]
    return told


def assert_stored(rig, content=CONTENT):
    assert [path.read_bytes() for path in rig.copies(content)] == [content] * 2
    assert not partials(rig)
    assert not rig.staged()
    assert rig.get(content).body == content


def test_a_whole_body_is_told_where_it_can_be_gone_on_with_and_stored(rig):
    head = request_bytes(
        "POST", f"/{SHA}", [AUTHORIZED, ALL, ("Content-Length", str(len(CONTENT)))]
    )
    connection = rig.connect()
    connection.send(head)
    assert connection.informed == [
        {"Location": f"/{SHA}/upload", "Upload-Limit": f"max-age={KEPT_SECONDS:.0f}"}
    ]
    connection.send(CONTENT)
    (response,) = connection.responses(["POST"])
    assert (response.status, response.headers["upload-complete"]) == (201, "?1")
    assert json.loads(response.body) == [str(path) for path in rig.copies(CONTENT)]
    assert_stored(rig)
    assert state(rig) == ("?1", len(CONTENT), str(len(CONTENT)))


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_is_cut_and_gone_on_with_by_somebody_else(rig, method):
    head = [AUTHORIZED, ALL, ("Content-Length", str(len(CONTENT)))]
    cut(rig, request_bytes(method, f"/{SHA}", head), CONTENT[: MIB + 7])
    assert state(rig) == ("?0", MIB + 7, str(len(CONTENT)))
    assert len(partials(rig)) == 2
    assert rig.get(CONTENT).status == 404
    response = go_on(rig, MIB + 7, CONTENT[MIB + 7 :], ALL)
    assert (response.status, response.headers["upload-complete"]) == (201, "?1")
    assert json.loads(response.body) == [str(path) for path in rig.copies(CONTENT)]
    assert_stored(rig)


@pytest.mark.parametrize("seed", range(5))
def test_any_cuts_give_the_same_bytes(rig, seed):
    rng, offset, content = random.Random(seed), 0, sample(MIB + 3, seed)
    sha = str(digest_of(content))
    cut(rig, request_bytes("POST", f"/{sha}", [AUTHORIZED, SOME, of(len(content)), CHUNKED]), b"")
    while offset < len(content):
        part = content[offset : offset + rng.randrange(1, 300_000)]
        last = offset + len(part) == len(content)
        kind = ALL if last else SOME
        if rng.random() < 0.5 and not last:  # cut in the middle of a chunk
            head = request_bytes(
                "PATCH", f"/{sha}/upload", [AUTHORIZED, PART, at(offset), kind, CHUNKED]
            )
            cut(rig, head, b"%x\r\n%s" % (len(part) + 5, part))
        else:
            response = go_on(rig, offset, part, kind, sha=sha)
            assert response.status == (201 if last else 204)
            assert response.headers["upload-complete"] == kind[1]
        offset += len(part)
        if not last:
            assert state(rig, sha) == ("?0", offset, str(len(content)))
    assert_stored(rig, content)


def test_an_upload_begins_empty_and_grows_by_parts(rig):
    response = begin(rig, CONTENT)
    assert response.headers["location"] == f"/{SHA}/upload"
    assert response.headers["upload-offset"] == "0"
    assert state(rig) == ("?0", 0, None)
    response = go_on(rig, 0, CONTENT[:MIB], SOME)
    assert (response.status, response.headers["upload-offset"]) == (204, str(MIB))
    # Whoever asks for the resource without knowing that there is one loses nothing.
    assert begin(rig, CONTENT).headers["upload-offset"] == str(MIB)
    assert go_on(rig, MIB, CONTENT[MIB:], SOME, of(len(CONTENT))).status == 204
    assert state(rig) == ("?0", len(CONTENT), str(len(CONTENT)))
    assert go_on(rig, len(CONTENT), b"", ALL).status == 201
    assert_stored(rig)


def test_an_upload_that_begins_anew_forgets_what_was_there(rig):
    begin(rig, CONTENT, SOME, body=b"x" * MIB)
    begin(rig, CONTENT, SOME, body=CONTENT[:1000])
    assert state(rig)[1] == 1000
    assert go_on(rig, 1000, CONTENT[1000:], ALL).status == 201
    assert_stored(rig)


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_a_small_sample_in_parts(rig, size):
    content = sample(size)
    begin(rig, content)
    assert go_on(rig, 0, content, ALL, sha=str(digest_of(content))).status == 201
    assert_stored(rig, content)


#: What is asked of an upload of CONTENT that has 1000 bytes of all, and how that is answered.
REFUSED = {
    "an offset too low": ("PATCH", [PART, at(999), SOME], b"x", 409),
    "an offset too high": ("PATCH", [PART, at(1001), ALL], b"x", 409),
    "no offset": ("PATCH", [PART, SOME], b"x", 400),
    "an offset of another type": ("PATCH", [PART, at("?1"), SOME], b"x", 400),
    "a negative offset": ("PATCH", [PART, at(-1), SOME], b"x", 400),
    "an offset of 16 digits": ("PATCH", [PART, at("1" * 16), SOME], b"x", 400),
    "nothing about the end": ("PATCH", [PART, at(1000)], b"x", 400),
    "no boolean about the end": ("PATCH", [PART, at(1000), ("Upload-Complete", "1")], b"x", 400),
    "no content type": ("PATCH", [at(1000), SOME], b"x", 415),
    "another content type": ("PATCH", [("Content-Type", "text/plain"), at(1000), SOME], b"x", 415),
    "an encoding": ("PATCH", [PART, at(1000), SOME, ("Content-Encoding", "gzip")], b"x", 415),
    "another length": ("PATCH", [PART, at(1000), SOME, of(5000)], b"x", 400),
    "a shorter end": ("PATCH", [PART, at(1000), ALL], b"x", 400),
    "a longer end": ("PATCH", [PART, at(1000), ALL], b"x" * len(CONTENT), 400),
    "a part too long": ("PATCH", [PART, at(1000), SOME], b"x" * len(CONTENT), 400),
    "no credentials": ("PATCH", None, b"x", 401),
    "a state without credentials": ("HEAD", None, None, 401),
    "an end without credentials": ("DELETE", None, None, 401),
    "a GET": ("GET", [], None, 405),
    "a POST": ("POST", [ALL], b"x", 405),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_the_upload_stays(rig, case):
    method, headers, body, status = REFUSED[case]
    begin(rig, CONTENT, SOME, of(len(CONTENT)), body=CONTENT[:1000])
    if headers is None:
        response = rig.request(method, f"/{SHA}/upload", [PART, at(1000), SOME], body)
    else:
        response = upload(rig, method, *headers, body=body)
    assert response.status == status, response.text
    if status == 409:
        told = problem(response, "mismatching-upload-offset")
        assert (told["expected-offset"], told["provided-offset"]) == (1000, int(headers[1][1]))
        assert response.headers["upload-offset"] == "1000"
    elif "length" in case or "end" in case.split() or "long" in case:
        if status == 400 and "nothing" not in case and "boolean" not in case:
            problem(response, "inconsistent-upload-length")
    elif method != "HEAD":
        assert_one_line(response, status)
    if status == 415 and "type" in case:
        assert response.headers["accept-patch"] == "application/partial-upload"
    if status == 405:
        assert response.headers["allow"] == "HEAD, PATCH, DELETE"
    assert state(rig) == ("?0", 1000, str(len(CONTENT)))
    assert go_on(rig, 1000, CONTENT[1000:], ALL).status == 201
    assert_stored(rig)


def test_what_is_refused_is_refused_before_the_body(rig):
    begin(rig, CONTENT, SOME, of(len(CONTENT)), body=CONTENT[:1000])
    for headers, status in (
        ([AUTHORIZED, PART, at(0), ALL], 409),
        ([AUTHORIZED, at(1000), ALL], 415),
        ([PART, at(1000), ALL], 401),
    ):
        more = [("Content-Length", str(len(CONTENT) - 1000)), ("Expect", "100-continue")]
        connection = rig.connect()
        connection.send(request_bytes("PATCH", f"/{SHA}/upload", [*headers, *more]))
        assert connection.responses(["PATCH"])[0].status == status
        assert not connection.continued
    connection = rig.connect()
    more = [("Content-Length", str(len(CONTENT) - 1000)), ("Expect", "100-continue")]
    head = [AUTHORIZED, PART, at(1000), ALL, *more]
    connection.send(request_bytes("PATCH", f"/{SHA}/upload", head))
    assert connection.continued
    connection.send(CONTENT[1000:])
    assert connection.responses(["PATCH"])[0].status == 201
    assert_stored(rig)


def test_lengths_that_differ_from_the_beginning_are_refused(rig):
    response = rig.request("POST", f"/{SHA}", [AUTHORIZED, ALL, of(5)], CONTENT[:6])
    assert response.status == 400
    problem(response, "inconsistent-upload-length")
    assert not partials(rig)


def test_an_upload_that_grows_beyond_its_length_is_over(rig):
    begin(rig, CONTENT, SOME, of(2000), body=CONTENT[:1000])
    connection = rig.connect()
    head = [AUTHORIZED, PART, at(1000), SOME, CHUNKED]
    connection.send(request_bytes("PATCH", f"/{SHA}/upload", head) + chunked([CONTENT[:1001]]))
    (response,) = connection.responses(["PATCH"])
    assert response.status == 400
    problem(response, "inconsistent-upload-length")
    assert state(rig) is None
    assert not partials(rig)


def test_an_end_in_chunks_that_is_too_short_is_refused(rig):
    begin(rig, CONTENT, SOME, of(len(CONTENT)), body=CONTENT[:1000])
    connection = rig.connect()
    head = request_bytes("PATCH", f"/{SHA}/upload", [AUTHORIZED, PART, at(1000), ALL, CHUNKED])
    connection.send(head + chunked([CONTENT[1000:2000]]))
    (response,) = connection.responses(["PATCH"])
    assert response.status == 400
    problem(response, "inconsistent-upload-length")
    assert state(rig) == ("?0", 2000, str(len(CONTENT)))


def test_a_body_that_is_another_is_412_and_nothing_is_kept(rig):
    begin(rig, CONTENT, SOME, body=b"x")
    response = go_on(rig, 1, CONTENT[1:], ALL)
    assert (response.status, response.headers["upload-complete"]) == (412, "?1")
    assert SHA in response.text
    assert not partials(rig)
    assert not rig.samples()
    assert state(rig) is None
    assert rig.mirrors.learning.landed.end == rig.mirrors.learning.numbers.next - 1
    assert rig.put(CONTENT).status == 201


def test_what_is_unknown_is_404_and_what_is_stored_is_over(rig):
    assert state(rig) is None
    assert go_on(rig, 0, b"x", SOME).status == 404
    assert upload(rig, "DELETE").status == 404
    assert rig.request("HEAD", "/abc/upload", [AUTHORIZED]).status == 404
    assert rig.put(CONTENT).status == 201
    assert state(rig) == ("?1", len(CONTENT), str(len(CONTENT)))
    for headers, body in (([ALL], CONTENT), ([SOME], b"1"), ([SOME, of(len(CONTENT))], b"")):
        response = rig.request("POST", f"/{SHA}", [AUTHORIZED, *headers], body)
        assert (response.status, response.headers["upload-complete"]) == (200, "?1")
        assert json.loads(response.body) == [str(path) for path in rig.copies(CONTENT)]
    response = go_on(rig, 0, b"x", SOME)
    assert response.status == 400
    problem(response, "inconsistent-upload-length")
    response = go_on(rig, len(CONTENT), b"", ALL)
    assert (response.status, response.headers["location"]) == (410, f"/{SHA}")
    problem(response, "completed-upload")


def test_an_upload_is_cancelled(rig):
    begin(rig, CONTENT, SOME, body=CONTENT[:1000])
    connection = rig.connect()
    head = [AUTHORIZED, PART, at(1000), ALL, ("Content-Length", str(len(CONTENT) - 1000))]
    connection.send(request_bytes("PATCH", f"/{SHA}/upload", head) + CONTENT[1000:MIB])
    assert upload(rig, "DELETE").status == 204
    connection.settle()
    assert connection.responses(["PATCH"])[0].status == 409
    assert not partials(rig)
    assert state(rig) is None


@pytest.mark.parametrize("newer", ["HEAD", "PATCH", "POST"])
def test_a_newer_request_ends_the_older(rig, newer):
    older = rig.connect()
    head = [AUTHORIZED, ALL, ("Content-Length", str(len(CONTENT)))]
    older.send(request_bytes("POST", f"/{SHA}", head) + CONTENT[:MIB])
    offset = MIB
    if newer == "POST":
        begin(rig, CONTENT, SOME, of(len(CONTENT)), body=CONTENT[:5])
        offset = 5
    elif newer == "HEAD":
        assert state(rig) == ("?0", MIB, str(len(CONTENT)))
    else:
        assert go_on(rig, MIB, CONTENT[MIB : MIB + 1], SOME).status == 204
        offset += 1
    older.settle()
    (response,) = older.responses(["POST"])
    assert response.status == 409
    assert int(response.headers["retry-after"]) > 0
    older.send(b"x" * 1000)  # it has not heard that it is over
    assert go_on(rig, offset, CONTENT[offset:], ALL).status == 201
    assert_stored(rig)


@pytest.mark.parametrize("seed", range(20))
def test_clients_that_go_on_at_once_leave_one_sample(tmp_path, seed):
    """Whatever the order of their jobs: right bytes, and each is told what became of its part."""
    rng, pools = random.Random(seed), HeldPools()
    rig = Rig(tmp_path, worker=pools, files=lambda label: QuickFiles())

    def run(*clients):
        busy = True
        while busy:
            for client in clients:
                client.settle()
            busy = pools.held > 0
            pools.step()

    def ask(method, path, *headers, body=None, steps=0):
        client = rig.connect()
        client.send(request_bytes(method, path, [AUTHORIZED, *headers], body))
        for _ in range(steps):
            pools.step()
            client.settle()
        return client

    def told(client, method):
        run(client)
        return client.responses([method])[0]

    pools.release()
    first = ask("POST", f"/{SHA}", SOME, body=CONTENT[:MIB])
    assert told(first, "POST").status == 201
    part, resource = (PART, at(MIB), ALL), f"/{SHA}/upload"
    clients = [
        ask("PATCH", resource, *part, body=CONTENT[MIB:], steps=rng.randrange(12)) for _ in range(4)
    ]
    run(*clients)
    statuses = [client.responses(["PATCH"])[0].status for client in clients]
    assert statuses.count(201) <= 1
    assert set(statuses) <= {201, 400, 409}
    if 201 not in statuses:  # each has ended the one before, and knew of too little
        offset = int(told(ask("HEAD", resource), "HEAD").headers["upload-offset"])
        part = (PART, at(offset), ALL)
        last = ask("PATCH", resource, *part, body=CONTENT[offset:])
        assert told(last, "PATCH").status == 201
    assert [path.read_bytes() for path in rig.copies(CONTENT)] == [CONTENT] * 2
    assert not partials(rig)


def test_a_plain_post_is_not_kept_from_storing(rig):
    begin(rig, CONTENT, SOME, body=CONTENT[:1000])
    assert rig.put(CONTENT).status == 201
    assert state(rig) == ("?1", len(CONTENT), str(len(CONTENT)))
    rig.clock.advance(KEPT_SECONDS + 1)


def test_what_has_come_is_told_now_and_then(rig):
    content = sample(2 * SYNC_BYTES + MIB)
    sha = digest_of(content)
    connection = rig.connect()
    head = [AUTHORIZED, ALL, ("Content-Length", str(len(content)))]
    connection.send(request_bytes("POST", f"/{sha}", head) + content)
    assert connection.responses(["POST"])[0].status == 201
    told = [int(one["Upload-Offset"]) for one in connection.informed if "Upload-Offset" in one]
    assert told
    assert all(0 < offset < len(content) for offset in told)


def test_http_1_0_is_told_nothing_meanwhile(rig):
    connection = rig.connect()
    head = request_bytes("POST", f"/{SHA}", [AUTHORIZED, ALL], CONTENT, version="HTTP/1.0")
    connection.send(head)
    assert not connection.informed
    assert connection.responses(["POST"])[0].status == 201


def test_larger_than_the_limit(tmp_path):
    rig = Rig(tmp_path, max_upload_bytes=MIB)
    for headers in ([SOME, of(MIB + 1)], [ALL]):
        body = CONTENT[: MIB + 1] if headers == [ALL] else b""
        response = rig.request("POST", f"/{SHA}", [AUTHORIZED, *headers], body)
        assert response.status == 413
        assert response.headers["upload-limit"].startswith(f"max-size={MIB}, max-age=")
    begin(rig, CONTENT, SOME, body=CONTENT[:MIB])
    response = go_on(rig, MIB, b"x", SOME)
    assert response.status == 413
    assert "upload-limit" in response.headers
    assert state(rig)[1] == MIB
    connection = rig.connect()
    head = request_bytes("PATCH", f"/{SHA}/upload", [AUTHORIZED, PART, at(MIB), SOME, CHUNKED])
    connection.send(head + chunked([b"x"]))
    assert connection.responses(["PATCH"])[0].status == 413


def test_one_more_than_are_taken_at_once_is_503_and_loses_nothing(tmp_path):
    rig = Rig(tmp_path, max_uploads=1)
    begin(rig, CONTENT, SOME, body=CONTENT[:1000])
    other = rig.connect()
    other.send(request_bytes("POST", f"/{'0' * 64}", [AUTHORIZED, ("Content-Length", "9")]))
    response = go_on(rig, 1000, CONTENT[1000:], ALL)
    assert (response.status, response.headers["retry-after"]) == (503, "2")
    other.close()
    assert go_on(rig, 1000, CONTENT[1000:], ALL).status == 201


def test_no_room_is_507_and_what_came_before_stays(tmp_path):
    rig = Rig(tmp_path, (2,))
    begin(rig, CONTENT, SOME, body=CONTENT[:1000])
    rig.mirrors.reconfigure(rig.mirrors.mirrors, rig.mirrors.known_disks, 2**60)
    huge = request_bytes("POST", f"/{'0' * 64}", [AUTHORIZED, SOME, of(2**45)], b"")
    connection = rig.connect()
    connection.send(huge)
    assert connection.responses(["POST"])[0].status == 507
    assert state(rig)[1] == 1000


def test_what_runs_when_stor_stops_is_kept_for_the_next(rig):
    connection = rig.connect()
    head = [AUTHORIZED, ALL, ("Content-Length", str(len(CONTENT)))]
    connection.send(request_bytes("POST", f"/{SHA}", head) + CONTENT[:MIB])
    rig.uploads.stop()
    connection.settle()
    (response,) = connection.responses(["POST"])
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    response = go_on(rig, MIB, CONTENT[MIB:], ALL)
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    again = Rig(rig.roots[0].parent.parent)
    assert state(again) == ("?0", MIB, str(len(CONTENT)))
    assert go_on(again, MIB, CONTENT[MIB:], ALL).status == 201
    assert_stored(again)


def test_what_nobody_goes_on_with_is_removed_after_a_day(rig):
    begin(rig, CONTENT, SOME, body=CONTENT[:1000])
    rig.clock.advance(KEPT_SECONDS - 60)
    expire(rig)
    response = upload(rig, "HEAD")
    assert 0 < int(response.headers["upload-limit"].rpartition("max-age=")[2]) <= 60
    rig.clock.advance(120)
    assert state(rig) is None
    rig.clock.advance(KEPT_SECONDS)
    expire(rig)
    assert not partials(rig)


def expire(rig):
    done = []
    Deferred.fromCoroutine(rig.store.partials.expire()).addCallback(done.append)
    assert done == [None]


@pytest.mark.parametrize("status", [201, 200])
def test_what_is_kept_of_a_sample_goes_once_that_is_stored(rig, status):
    if status == 200:
        rig.put(CONTENT)
        (rig.roots[2] / ".stor/partial").mkdir(parents=True, exist_ok=True)
        (rig.roots[2] / ".stor/partial" / SHA.upper()).write_bytes(CONTENT[:1000])
    else:
        begin(rig, CONTENT, SOME, body=CONTENT[:1000])
        expire(rig)
    assert partials(rig)
    assert rig.put(CONTENT).status == status
    expire(rig)
    assert not partials(rig)
    assert rig.get(CONTENT).body == CONTENT
    assert rig.store.partials.kept == PartialUploads()


def test_what_is_under_way_is_kept_also_of_a_sample_that_is_stored(rig):
    content = sample(2 * MIB)
    connection = rig.connect()
    head = request_bytes("POST", f"/{digest_of(content)}", [AUTHORIZED, SOME, CHUNKED])
    connection.send(head + b"%x\r\n" % len(content) + content[: MIB + 1000])
    assert rig.put(content).status == 201
    before = partials(rig)
    assert before
    expire(rig)
    assert partials(rig) == before
    connection.close()
    expire(rig)
    assert not partials(rig)


def test_how_many_are_kept_and_what_they_take_is_told(rig):
    contents = [sample(8 * MIB), sample(MIB)]
    for content in contents:
        begin(rig, content, SOME, of(len(content)), body=content[:1000])
    expire(rig)
    held = sum(path.stat().st_blocks * 512 for path in partials(rig))
    assert held >= 2 * 9 * MIB
    exported = Exported(rig.get("metrics").text)
    assert exported.value("stor_partial_uploads") == 2
    assert exported.value("stor_partial_upload_bytes") == held
    told = json.loads(rig.get("status", [("Accept", "application/json")]).body)
    assert told["partial_uploads"] == {"count": 2, "bytes": held}
    # Soon, and not after ten minutes: it ends with its last part.
    upload(rig, "DELETE", sha=str(digest_of(contents[0])))
    assert go_on(rig, 1000, contents[1][1000:], ALL, sha=str(digest_of(contents[1]))).status == 201
    expire(rig)
    assert Exported(rig.get("metrics").text).value("stor_partial_uploads") == 0


def test_room_is_reserved_for_the_whole(rig):
    content = sample(8 * MIB)
    begin(rig, content, SOME, of(len(content)), body=content[:1000])
    for path in partials(rig):
        assert path.stat().st_size == 1000
        assert path.stat().st_blocks * 512 >= len(content)
    assert state(rig, str(digest_of(content)))[1] == 1000
    for path in partials(rig):
        assert path.stat().st_blocks * 512 >= len(content)
