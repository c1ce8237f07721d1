"""Many samples in one request: lists that are asked about, and the index told in order."""

import hashlib
import random
from bisect import bisect_left

import pytest

from stor.http.bulk import MAX_LISTED, MAX_SHAS, TEXT_BYTES, BadRequest, Lists, ListTooLong, ShaList
from stor.store import Store
from tests.support.http import AUTHORIZED, CHUNKED, assert_one_line, chunked, cuts, no_bug_logged
from tests.support.rig import Rig, request_bytes

OCTETS = ("Content-Type", "application/octet-stream")
SHAS = sorted(hashlib.sha256(b"%d" % n).digest() for n in range(5000))
A, B = SHAS[0].hex(), SHAS[1].hex()


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Known(Store):
    """A store that knows its samples: `SHAS`, whose first bit but one says what is known."""

    def __init__(self, *parts, **others):
        super().__init__(*parts, **others)
        self.samples = [(sha, n) for n, sha in enumerate(SHAS)]
        self.asked = 0
        #: How many pages are given before nothing is known any more.
        self.pages = 10**9

    def held(self, sha):
        self.asked += 1
        return b"+-?+"[sha[-1] % 4 :][:1]

    async def listed(self, begin, limit):
        self.pages -= 1
        if self.pages < 0:
            return None
        at = bisect_left(self.samples, (begin, 0))
        return self.samples[at : at + limit]


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path, store=Known)


def text_of(shas):
    return b"".join(sha.hex().encode() + b"\n" for sha in shas)


def expected(rig, shas):
    """The answer as text."""
    words = {b"-": "missing", b"?": "unknown"}
    states = [rig.store.held(sha) for sha in shas]
    lines = [
        f"{words[state]} {sha.hex()}\n"
        for sha, state in zip(shas, states, strict=True)
        if state != b"+"
    ]
    return "".join(lines) + f"end {len(shas)} {states.count(b'-')} {states.count(b'?')}\n"


LF_A, LF_B = f"{A}\n".encode(), f"{B}\n".encode()
GOOD = {
    "empty": (b"", 0),
    "one": (LF_A, 1),
    "last line without its end": (LF_A + B.encode(), 2),
    "CRLF": (LF_A.replace(b"\n", b"\r\n") * 2, 2),
    "upper case": (LF_A.upper(), 1),
    "empty lines": (b"\n\r\n" + LF_A + b"\n\n" + LF_B + b"\r\n", 2),
    "duplicates": (LF_A * 3, 3),
    "a CR at the end": (A.encode() + b"\r", 1),
}


@pytest.mark.parametrize(("body", "count"), GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("pieces", [1, 7, 300])
def test_a_list_is_read_in_whatever_pieces_it_comes(body, count, pieces):
    shas = ShaList(octets=False)
    for piece in cuts(body, pieces, random.Random(pieces)):
        shas.add(piece)
    shas.end()
    assert len(shas) == count
    assert shas.kept_bytes == 32 * count


DIGITS = A.encode()
BAD = {
    "short": (b"abc\n", 1),
    "63 digits": (LF_A + DIGITS[:-1], 2),
    "65 digits": (LF_A + DIGITS + b"0", 2),
    "no digit": (LF_A + b"\n" + DIGITS[:-1] + b"g\n", 3),
    "NUL": (LF_A + DIGITS[:-1] + b"\0\n", 2),
    "a NUL after it": (DIGITS + b"\0\n", 1),
    "a space before it": (b" " + DIGITS, 1),
    "a space in it": (DIGITS[:30] + b"  " + DIGITS[:30] + b"00\n", 1),
    "CR twice": (DIGITS + b"\r\r\n", 1),
    "CR alone as the end": (DIGITS + b"\r" + DIGITS + b"\n", 1),
    "not ASCII": ("é".encode() * 32 + b"\n", 1),
    "no line at all": (b"a" * 100_000, 1),
    "a tab": (LF_A * 9 + b"\t\n", 10),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(("body", "line"), BAD.values(), ids=BAD)
def test_a_malformed_line_is_named_by_its_number(rig, body, line, framing):
    if framing == "length":
        response = rig.request("POST", "/missing", body=body)
    else:
        connection = rig.connect()
        connection.send(request_bytes("POST", "/missing", [CHUNKED]))
        connection.send(chunked([body[n : n + 50] for n in range(0, len(body), 50)]))
        (response,) = connection.responses(["POST"])
    assert_one_line(response, 400)
    assert f"line {line}: expected the 64 hexadecimal digits" in response.text
    assert rig.store.asked == 0
    assert rig.budgets.lists.kept_bytes == 0


@pytest.mark.parametrize("length", [1, 31, 33, 64 * 32 + 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_octets_are_32_bytes_each(rig, length, framing):
    body = bytes(length)
    if framing == "length":
        response = rig.request("POST", "/missing", [OCTETS], body)
    else:
        connection = rig.connect()
        connection.send(request_bytes("POST", "/missing", [OCTETS, CHUNKED]) + chunked([body]))
        (response,) = connection.responses(["POST"])
    assert_one_line(response, 400)
    assert str(length) in response.text
    assert "32" in response.text


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 5000])
def test_text_and_octets_say_the_same(rig, count):
    rng = random.Random(count)
    shas = [rng.choice(SHAS) for _ in range(count)]
    text = rig.request("POST", "/missing", body=text_of(shas))
    octets = rig.request("POST", "/missing", [OCTETS], b"".join(shas))
    assert (text.status, octets.status) == (200, 200)
    assert text.text == expected(rig, shas)
    assert octets.body == b"".join(map(rig.store.held, shas))
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert octets.headers["content-type"] == "application/octet-stream"
    for response in (text, octets):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-length"] == str(len(response.body))
    assert rig.budgets.lists.kept_bytes == 0


def test_a_chunked_list_is_taken(rig):
    connection = rig.connect()
    connection.send(request_bytes("POST", "/missing", [CHUNKED]))
    connection.send(chunked(cuts(text_of(SHAS[:300]), 40, random.Random(1))))
    (response,) = connection.responses(["POST"])
    assert response.text == expected(rig, SHAS[:300])


def test_a_client_that_waits_for_100_is_asked_to_go_on(rig):
    connection = rig.connect()
    head = [("Expect", "100-continue"), ("Content-Length", "65")]
    connection.send(request_bytes("POST", "/missing", head))
    assert bytes(connection.received) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.received.clear()
    connection.send(LF_A)
    (response,) = connection.responses(["POST"])
    assert response.text == expected(rig, SHAS[:1])


REFUSED = {
    "too long": ([("Content-Length", str(MAX_SHAS * TEXT_BYTES + 1))], 413),
    "too many octets": ([OCTETS, ("Content-Length", str(MAX_SHAS * 32 + 32))], 413),
    "multipart": ([("Content-Type", "multipart/form-data; boundary=x")], 415),
    "compressed": ([("Content-Encoding", "gzip")], 415),
}


@pytest.mark.parametrize(("headers", "status"), REFUSED.values(), ids=REFUSED)
def test_what_can_be_refused_before_the_body_is(rig, headers, status):
    if "Content-Length" not in dict(headers):
        headers = [*headers, ("Content-Length", "65")]
    connection = rig.connect()
    connection.send(request_bytes("POST", "/missing", [*headers, ("Expect", "100-continue")]))
    (response,) = connection.responses(["POST"])
    assert_one_line(response, status)


@pytest.mark.parametrize("octets", [False, True])
def test_a_list_has_at_most_so_many(octets):
    def taken(count):
        shas = ShaList(octets=octets, max_shas=10)
        shas.add(SHAS[0] * count if octets else LF_A * count)
        shas.end()
        return len(shas)

    assert taken(10) == 10
    with pytest.raises(ListTooLong, match="at most 10 shas"):
        taken(11)


def test_empty_lines_without_end_are_too_long():
    shas = ShaList(octets=False, max_shas=10)
    shas.add(b"\n" * 680)
    with pytest.raises(ListTooLong):
        shas.add(b"\n")
    assert shas.kept_bytes == 0


def test_of_a_million_lines_the_bad_one_is_named_and_32_bytes_a_sha_are_kept():
    shas = ShaList(octets=False)
    slice_ = text_of(SHAS)
    for _ in range(199):
        shas.add(slice_)
    assert len(shas) == 995_000
    assert shas.kept_bytes == 32 * 995_000
    with pytest.raises(BadRequest, match="line 999999:"):
        shas.add(text_of(SHAS[:4998]) + b"x\n" + LF_A)


def test_too_many_lists_at_once_are_503_and_those_that_end_make_room(rig):
    rig.reconfigure(lists=Lists(max_shas=100, total_bytes=150 * 32))
    connection = rig.connect()
    connection.send(request_bytes("POST", "/missing", [CHUNKED]) + b"1964\r\n" + LF_A * 100)
    response = rig.request("POST", "/missing", body=LF_A * 100)
    assert_one_line(response, 503)
    assert response.headers["retry-after"] == "5"
    connection.close()
    assert rig.budgets.lists.kept_bytes == 0
    assert rig.request("POST", "/missing", body=LF_A * 100).status == 200


def test_a_client_that_stops_reading_holds_little(rig):
    shas = [sha for sha in SHAS if rig.store.held(sha) != b"+"] * 10
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("POST", "/missing", body=text_of(shas)))
    assert 0 < len(connection.transport.outgoing) < 512 * 1024
    connection.take()
    assert len(connection.transport.outgoing) < 512 * 1024
    connection.wait(121)
    assert connection.aborted
    assert rig.budgets.lists.kept_bytes == 0


def test_a_client_that_stops_sending_is_cut_and_leaves_nothing(rig):
    connection = rig.connect()
    connection.send(request_bytes("POST", "/missing", [("Content-Length", "6500")]) + LF_A * 10)
    assert rig.budgets.lists.kept_bytes == 320
    connection.wait(600)
    assert connection.closed or connection.aborted
    assert rig.budgets.lists.kept_bytes == 0


def test_who_may_read_may_ask(rig):
    rig.reconfigure(read_auth=True)
    connection = rig.connect()
    head = [("Expect", "100-continue"), ("Content-Length", "65")]
    connection.send(request_bytes("POST", "/missing", head))
    (response,) = connection.responses(["POST"])
    assert_one_line(response, 401)
    assert rig.request("POST", "/missing", [AUTHORIZED], LF_A).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "FOO"])
def test_missing_is_posted(rig, method):
    response = rig.request(method, "/missing", [AUTHORIZED])
    assert response.status == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "FOO"])
def test_the_index_is_read(rig, method):
    response = rig.request(method, "/index", [AUTHORIZED])
    assert_one_line(response, 405)
    assert response.headers["allow"] == "GET, HEAD"


def listed(rig, query=""):
    response = rig.request("GET", f"/index{query}", [AUTHORIZED])
    assert response.status == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    return response.text


def test_the_index_is_told_in_order(rig):
    lines = [f"{sha.hex()} {size}\n" for sha, size in rig.store.samples]
    assert listed(rig) == "".join(lines) + "end 5000\n"
    for limit in (1, 999, 1000, 1001, 4999, 5000, 5001):
        count = min(limit, 5000)
        assert listed(rig, f"?limit={limit}") == "".join(lines[:count]) + f"end {count}\n"


@pytest.mark.parametrize("prefix", ["", "0", "f", "aB", "7C4", A, "f" * 64, "0" * 64])
def test_a_prefix_is_of_digits_in_either_case(rig, prefix):
    lines = [
        f"{sha.hex()} {size}\n"
        for sha, size in rig.store.samples
        if sha.hex().startswith(prefix.lower())
    ]
    assert listed(rig, f"?prefix={prefix}") == "".join(lines) + f"end {len(lines)}\n"


def test_pages_after_one_another_are_the_whole(rig):
    found, after = [], ""
    while True:
        *lines, end = listed(rig, f"?prefix=3&limit=17{after}").splitlines()
        assert end == f"end {len(lines)}"
        found += lines
        if len(lines) < 17:
            break
        after = f"&after={lines[-1].split()[0].upper()}"
    assert found == [f"{s.hex()} {n}" for s, n in rig.store.samples if s.hex()[0] == "3"]
    assert listed(rig, f"?after={'f' * 64}") == "end 0\n"


FAULTS = {
    "prefix=g": "prefix",
    f"prefix={'0' * 65}": "prefix",
    "after=00": "after",
    "after=": "after",
    "limit=0": "limit",
    "limit=-1": "limit",
    "limit=x": "limit",
    "limit=": "limit",
    "limit=%D9%A1": "limit",
    f"limit={MAX_LISTED + 1}": "limit",
    f"limit={'9' * 5000}": "limit",
    "limit=1&limit=2": "limit",
    "prefx=ab": 'unknown parameter "prefx": expected prefix, after or limit',
    "p%0A%ff=": 'unknown parameter "p\\n\\u00ff": expected prefix, after or limit',
    f"{'x' * 5000}=": 'unknown parameter "xxx',
}


@pytest.mark.parametrize(("query", "named"), FAULTS.items())
def test_a_bad_parameter_is_named(rig, query, named):
    response = rig.request("GET", f"/index?{query}", [AUTHORIZED])
    assert_one_line(response, 400)
    assert response.text.startswith(named)
    assert "expected" in response.text


def test_strangers_list_only_where_that_is_public(rig):
    assert_one_line(rig.request("GET", "/index"), 401)
    rig.reconfigure(public_listing=True)
    assert rig.request("GET", "/index?limit=1").text == f"{A} 0\nend 1\n"


def test_head_of_the_index_has_no_body(rig):
    response = rig.request("HEAD", "/index", [AUTHORIZED])
    assert (response.status, response.body) == (200, b"")


def test_an_index_that_is_not_known_is_503_and_one_that_is_lost_midway_is_cut(rig):
    rig.store.pages = 0
    response = rig.request("GET", "/index", [AUTHORIZED])
    assert_one_line(response, 503)
    assert response.headers["retry-after"] == "5"
    rig.store.pages = 2
    response = rig.request("GET", "/index", [AUTHORIZED])
    assert not response.complete
    assert "end" not in response.text


def test_a_client_that_does_not_read_the_index_holds_little(rig):
    connection = rig.connect()
    connection.stop_taking()
    connection.send(request_bytes("GET", "/index", [AUTHORIZED]))
    assert rig.store.pages > 10**9 - 4
    assert 0 < len(connection.transport.outgoing) < 256 * 1024


def test_a_store_that_knows_nothing_yet_says_so(tmp_path):
    rig = Rig(tmp_path, knows=False)
    assert rig.request("POST", "/missing", body=LF_A).text == f"unknown {A}\nend 1 0 1\n"
    assert_one_line(rig.request("GET", "/index", [AUTHORIZED]), 503)
