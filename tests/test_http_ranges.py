"""Parts of a sample: Range and If-Range (RFC 9110, 14)."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.digest import Digest
from stor.http.conditions import Unsatisfiable, Validators, select_range
from tests.support.http import descriptors, no_bug_logged
from tests.support.rig import Rig, request_bytes

SMALL = b"0123456789"
LARGE = random.Random(7).randbytes(1_050_000)
SAMPLES = {"small": SMALL, "large": LARGE}


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("ranges"))
    for content in (b"", b"x", SMALL, LARGE):
        assert rig.put(content).status == 201
    return rig


def assert_part(response, content, begin, end):
    """206 with the bytes from `begin` up to `end`, and the headers of the sample."""
    assert response.status == 206
    assert response.body == content[begin:end]
    headers = response.headers
    assert headers["content-range"] == f"bytes {begin}-{end - 1}/{len(content)}"
    assert headers["content-length"] == str(end - begin)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["etag"] == f'"{Digest.of(content)}"'
    assert headers["accept-ranges"] == "bytes"
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "last-modified" in headers
    assert "repr-digest" in headers


def assert_whole(response, content):
    assert response.status == 200
    assert response.body == content
    assert response.headers["content-length"] == str(len(content))
    assert "content-range" not in response.headers


N = len(SMALL)
PARTS = {
    "first": ("bytes=0-0", 0, 1),
    "second": ("bytes=1-1", 1, 2),
    "last": (f"bytes={N - 1}-{N - 1}", N - 1, N),
    "last, open": (f"bytes={N - 1}-", N - 1, N),
    "last, as a suffix": ("bytes=-1", N - 1, N),
    "middle": ("bytes=3-6", 3, 7),
    "open": ("bytes=4-", 4, N),
    "suffix": ("bytes=-4", N - 4, N),
    "whole": (f"bytes=0-{N - 1}", 0, N),
    "whole, open": ("bytes=0-", 0, N),
    "whole, as a suffix": (f"bytes=-{N}", 0, N),
    "end beyond the end": (f"bytes=2-{N}", 2, N),
    "end far beyond the end": ("bytes=2-99999999999999999999", 2, N),
    "suffix longer than the sample": (f"bytes=-{N + 1}", 0, N),
    "suffix much longer than the sample": ("bytes=-99999999999999999999", 0, N),
    "leading zeros": ("bytes=0003-00000006", 3, 7),
    "thousands of leading zeros": (f"bytes={'0' * 3000}3-{'0' * 3000}6", 3, 7),
    "thousands of digits": (f"bytes=3-{'9' * 5000}", 3, N),
    "suffix of thousands of digits": (f"bytes=-{'9' * 5000}", 0, N),
    "unit in upper case": ("BYTES=3-6", 3, 7),
    "unit in mixed case": ("Bytes=3-6", 3, 7),
}


@pytest.mark.parametrize(("value", "begin", "end"), PARTS.values(), ids=PARTS)
def test_a_part_of_a_small_sample(rig, value, begin, end):
    assert_part(rig.get(SMALL, [("Range", value)]), SMALL, begin, end)


L = len(LARGE)


@pytest.mark.parametrize(
    ("value", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        (f"bytes={L - 1}-", L - 1, L),
        ("bytes=-1", L - 1, L),
        ("bytes=0-", 0, L),
        (f"bytes=-{L + 1}", 0, L),
        ("bytes=524287-524288", 524287, 524289),
        ("bytes=524288-", 524288, L),
        ("bytes=1-", 1, L),
        ("bytes=0-524287", 0, 524288),
        ("bytes=100-1049000", 100, 1049001),
        ("bytes=-1000000", L - 1000000, L),
    ],
)
def test_a_part_of_a_large_sample(rig, value, begin, end):
    assert_part(rig.get(LARGE, [("Range", value)]), LARGE, begin, end)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (SMALL, f"bytes={N}-"),
        (SMALL, f"bytes={N}-{N}"),
        (SMALL, f"bytes={N + 1}-{N + 5}"),
        (SMALL, "bytes=99999999999999999999-"),
        (SMALL, f"bytes={'9' * 5000}-"),
        (SMALL, "bytes=-0"),
        (SMALL, "bytes=-000"),
        (b"", "bytes=0-"),
        (b"", "bytes=0-0"),
        (b"", "bytes=-0"),
        (b"x", "bytes=1-"),
        (LARGE, f"bytes={L}-"),
        (LARGE, "bytes=-0"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else f"{len(value)} B",
)
def test_a_part_beyond_the_end(rig, content, value):
    before = descriptors()
    response = rig.get(content, [("Range", value)])
    assert response.status == 416
    assert response.headers["content-range"] == f"bytes */{len(content)}"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert str(len(content)) in response.text
    assert response.text.count("\n") == 1
    assert descriptors() == before


@pytest.mark.parametrize("value", ["bytes=-1", "bytes=-5"])
def test_the_last_bytes_of_nothing_are_nothing(rig, value):
    """No Content-Range can describe them: the whole, of 0 bytes."""
    assert_whole(rig.get(b"", [("Range", value)]), b"")


IGNORED = {
    "two": "bytes=0-1,4-5",
    "two with spaces": "bytes=0-1, 4-5",
    "two that touch": "bytes=0-4,5-9",
    "overlapping": "bytes=0-5,3-8",
    "the same twice": "bytes=0-0,0-0",
    "one inside the other": "bytes=0-,5-6",
    "a suffix and a part": "bytes=-1,0-0",
    "one beyond the end": "bytes=0-0,100-",
    "all beyond the end": "bytes=100-,200-",
    "1000": "bytes=" + ",".join(f"{i}-{i}" for i in range(1000)),
    "1000 times the whole": "bytes=" + ",".join(["0-"] * 1000),
    "empty": "",
    "no unit": "0-5",
    "unit alone": "bytes",
    "nothing after the unit": "bytes=",
    "hyphen alone": "bytes=-",
    "no hyphen": "bytes=5",
    "two hyphens": "bytes=1-2-3",
    "double hyphen": "bytes=1--2",
    "negative": "bytes=-1-2",
    "end before the beginning": "bytes=5-3",
    "end before the beginning, of many digits": f"bytes=1{'0' * 30}-1{'0' * 25}",
    "letters": "bytes=a-b",
    "hexadecimal": "bytes=0x0-0x5",
    "sign": "bytes=+0-5",
    "decimal point": "bytes=0.0-5",
    "underscore": "bytes=0-1_0",
    "space in a number": "bytes=1 2-",
    "space around the hyphen": "bytes=1 - 2",
    "space before the equals sign": "bytes =0-5",
    "semicolon": "bytes=0-5;6-7",
    "trailing letter": "bytes=0-5x",
    "comma after": "bytes=0-5,",
    "colon for equals sign": "bytes:0-5",
    "as Content-Range has it": "bytes 0-5/10",
    "quoted": '"bytes=0-5"',
    "other unit": "items=0-5",
    "unit in the plural": "bytess=0-5",
    "digits of another script": "bytes=\xd9\xa0-\xd9\xa5",
    "superscript": "bytes=\xb2-\xb3",
}


@pytest.mark.parametrize("value", IGNORED.values(), ids=IGNORED)
def test_several_ranges_and_malformed_ones_mean_the_whole(rig, value):
    """RFC 9110, 14.2: a server may ignore Range, and has to when it is malformed."""
    assert_whole(rig.get(SMALL, [("Range", value)]), SMALL)


@pytest.mark.parametrize("content", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("value", ["bytes=2-3", "bytes=0-1", "bytes=9999999-", "x"])
def test_several_range_headers_mean_the_whole(rig, content, value):
    connection = rig.connect()
    headers = [("Range", "bytes=0-1"), ("Range", value)]
    connection.send(request_bytes("GET", f"/{Digest.of(content)}", headers))
    (response,) = connection.responses()
    assert_whole(response, content)


@pytest.mark.parametrize("value", ["bytes=0-0", "bytes=5-", "bytes=100-", "bytes=-0", "x"])
@pytest.mark.parametrize("content", SAMPLES.values(), ids=SAMPLES)
def test_head_knows_no_ranges(rig, content, value):
    """RFC 9110, 14.2: Range is for GET."""
    response = rig.get(content, [("Range", value)], method="HEAD")
    assert response.status == 200
    assert response.headers["content-length"] == str(len(content))
    assert "content-range" not in response.headers


ETAG = f'"{Digest.of(SMALL)}"'
#: If-Range, and whether the range counts.
IF_RANGE = {
    "the entity tag": (ETAG, True),
    "another entity tag": ('"x"', False),
    "the tag of another sample": (f'"{Digest.of(LARGE)}"', False),
    "the tag as a weak one": (f"W/{ETAG}", False),
    "the tag in upper case": (ETAG.upper(), False),
    "the tag without quotes": (ETAG.strip('"'), False),
    "a list with the tag": (f'"x", {ETAG}', False),
    "the tag twice": (f"{ETAG}, {ETAG}", False),
    "an asterisk": ("*", False),
    "nothing": ("", False),
    "no date": ("yesterday", False),
    "a date long ago": ("Sun, 06 Nov 1994 08:49:37 GMT", False),
    "a date to come": ("Fri, 31 Dec 2100 23:59:59 GMT", False),
}


@pytest.mark.parametrize(("value", "counts"), IF_RANGE.values(), ids=IF_RANGE)
def test_if_range_has_to_be_exactly_what_the_sample_is_known_by(rig, value, counts):
    response = rig.get(SMALL, [("Range", "bytes=3-6"), ("If-Range", value)])
    if counts:
        assert_part(response, SMALL, 3, 7)
    else:
        assert_whole(response, SMALL)


def test_if_range_with_the_exact_date(rig):
    date = rig.get(SMALL).headers["last-modified"]
    response = rig.get(SMALL, [("Range", "bytes=3-6"), ("If-Range", date)])
    assert_part(response, SMALL, 3, 7)
    for other in (date.replace("GMT", "UTC"), date.lower(), date[5:], f"{date} "[1:]):
        assert_whole(rig.get(SMALL, [("Range", "bytes=3-6"), ("If-Range", other)]), SMALL)


@pytest.mark.parametrize("value", [ETAG, '"x"'])
def test_if_range_without_range_means_nothing(rig, value):
    assert_whole(rig.get(SMALL, [("If-Range", value)]), SMALL)


def test_a_range_beyond_the_end_of_another_version_means_the_whole(rig):
    response = rig.get(SMALL, [("Range", "bytes=100-"), ("If-Range", '"x"')])
    assert_whole(response, SMALL)


@pytest.mark.parametrize(
    "content", [LARGE[:250_000], LARGE], ids=["verified at once", "verified on the way"]
)
def test_resuming_over_1000_random_cuts_gives_the_same_bytes(tmp_path, content):
    """The client goes away at a random byte and asks for the rest, a thousand times."""
    rig = Rig(tmp_path, sets=(2,))
    rig.put(content)
    before, timers = descriptors(), len(rig.clock.getDelayedCalls())
    rng = random.Random(11)
    etag = ("If-Range", f'"{Digest.of(content)}"')
    got = b""
    for cut in sorted(rng.sample(range(1, len(content)), 1000)):
        connection = rig.connect()
        connection.stop_taking()
        headers = [("Range", f"bytes={len(got)}-"), etag]
        connection.send(request_bytes("GET", f"/{Digest.of(content)}", headers))
        head_bytes = connection.transport.outgoing.index(b"\r\n\r\n") + 4
        connection.take(head_bytes + cut - len(got))
        connection.close()
        (response,) = connection.responses()
        assert response.status == 206
        assert response.headers["content-range"].startswith(f"bytes {len(got)}-")
        got += response.body
        assert len(got) == cut
    assert descriptors() == before
    assert len(rig.clock.getDelayedCalls()) == timers
    last = rig.get(content, [("Range", f"bytes={len(got)}-"), etag])
    assert got + last.body == content


def test_random_parts_are_the_parts_of_the_whole(rig):
    rng = random.Random(5)
    for _ in range(60):
        begin, end = sorted(rng.sample(range(len(LARGE) + 1), 2))
        assert_part(rig.get(LARGE, [("Range", f"bytes={begin}-{end - 1}")]), LARGE, begin, end)


NOW = Validators(b'"x"', 1_700_000_000)


def reference(value, size):
    """What RFC 9110, 14.1.2, says of one range, in as few words as it takes."""
    match = re.fullmatch(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", value, re.IGNORECASE)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        selected = range(size)[-int(last) :] if int(last) else range(0)
        if size == 0 and int(last):
            return None
    elif last and int(last) < int(first):
        return None
    else:
        selected = range(int(first), min(int(last) + 1, size) if last else size)
    return (selected[0], selected[-1] + 1) if selected else Unsatisfiable


NUMBERS = st.one_of(
    st.just(""),
    st.integers(0, 30).map(str),
    st.integers(0, 10**30).map(str),
    st.integers(0, 30).map(lambda n: f"{n:040d}"),
)
RANGES = st.one_of(
    st.builds("bytes={}-{}".format, NUMBERS, NUMBERS),
    st.builds(
        "{}={}-{}{}".format, st.sampled_from(["bytes", "BYTES", "x"]), NUMBERS, NUMBERS, NUMBERS
    ),
    st.text("bytes=0123456789-, \t", max_size=20),
    st.lists(st.builds("{}-{}".format, NUMBERS, NUMBERS), max_size=4).map(
        lambda parts: "bytes=" + ",".join(parts)
    ),
)


@settings(database=None, derandomize=True, max_examples=500, deadline=None)
@given(RANGES, st.one_of(st.integers(0, 40), st.integers(0, 10**15)))
def test_select_range_does_what_the_rfc_says(value, size):
    try:
        selected = select_range(value.encode(), None, size, NOW)
    except Unsatisfiable:
        selected = Unsatisfiable
    assert selected == reference(value, size)


@settings(database=None, derandomize=True, max_examples=500, deadline=None)
@given(st.binary(max_size=30), st.integers(0, 40))
def test_select_range_stays_inside_the_sample_whatever_it_is_given(value, size):
    try:
        part = select_range(b"bytes=" + value, None, size, NOW)
    except Unsatisfiable:
        return
    if part is not None:
        begin, end = part
        assert 0 <= begin < end <= size
