"""Conditional requests, in the order of RFC 9110, 13.2.2."""

import itertools
import os
from datetime import UTC, datetime

import pytest

from stor.digest import Digest
from stor.http.conditions import parse_date
from tests.support.files import RecordingFiles
from tests.support.http import Disks, no_bug_logged
from tests.support.rig import Rig

HELLO = b"hello"
SHA = str(Digest.of(HELLO))
ETAG = f'"{SHA}"'
OTHER = f'"{"0" * 64}"'
MODIFIED = 1_700_000_000


def imf(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def rfc_850(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%A, %d-%b-%y %H:%M:%S GMT")


def asctime(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%a %b %e %H:%M:%S %Y")


DATE, OLDER, NEWER = imf(MODIFIED), imf(MODIFIED - 1), imf(MODIFIED + 1)


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("conditions"), sets=(2,))
    rig.put(HELLO)
    for path in rig.copies(HELLO):
        os.utime(path, ns=(MODIFIED * 10**9 + 999_999_999,) * 2)
    return rig


def assert_not_modified(response):
    """RFC 9110, 15.4.5: what a cache needs, and no Content-Length that is not the sample's."""
    assert response.status == 304
    assert response.body == b""
    headers = dict(response.headers)
    assert headers.pop("date").endswith(" GMT")
    assert headers.pop("server").startswith("Stor/")
    assert headers.pop("x-request-id")
    assert headers == {
        "etag": ETAG,
        "last-modified": DATE,
        "cache-control": "public, max-age=31536000, immutable",
    }


def assert_answer(response, status, method="GET"):
    if status == 304:
        assert_not_modified(response)
        return
    assert response.status == status
    if method == "HEAD":
        assert response.body == b""
    elif status == 412:
        assert response.text == "precondition failed: the sample is another\n"
    else:
        assert response.body == HELLO


#: One value of If-None-Match, and the answer.
NONE_MATCH = {
    "the tag": (ETAG, 304),
    "the tag, weak": (f"W/{ETAG}", 304),
    "an asterisk": ("*", 304),
    "an asterisk and spaces": ("  * ", 304),
    "first of a list": (f"{ETAG}, {OTHER}", 304),
    "last of a list": (f"{OTHER}, {ETAG}", 304),
    "weak, last of a list": (f'"a", W/"b", W/{ETAG}', 304),
    "a list without spaces": (f'"a",{ETAG},"b"', 304),
    "a list with empty elements": (f',, "a",,{ETAG},', 304),
    "a list with a tag that holds a comma": (f'"a,b", {ETAG}', 304),
    "a list of 200": (", ".join([*(f'"{n}"' for n in range(200)), ETAG]), 304),
    "another tag": (OTHER, 200),
    "another, weak": (f"W/{OTHER}", 200),
    "a list of others": ('"a", "b", W/"c"', 200),
    "the tag in upper case": (ETAG.upper(), 200),
    "the tag cut": (f'"{SHA[:-1]}"', 200),
    "the tag and more": (f'"{SHA}x"', 200),
    "the empty tag": ('""', 200),
    "without quotes": (SHA, 200),
    "one quote": (f'"{SHA}', 200),
    "single quotes": (f"'{SHA}'", 200),
    "quoted asterisk": ('"*"', 200),
    "nothing": ("", 200),
    "spaces": ("  ", 200),
    "a comma": (",", 200),
    "nonsense": ("@@@ \xff", 200),
    "the tag between others' quotes": (f'"a"{SHA}"b"', 200),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("value", "status"), NONE_MATCH.values(), ids=NONE_MATCH)
def test_if_none_match(rig, value, status, method):
    assert_answer(rig.get(SHA, [("If-None-Match", value)], method), status, method)


@pytest.mark.parametrize("lines", [*itertools.permutations([ETAG, OTHER, '"x"'])])
def test_a_list_may_be_spread_over_several_lines(rig, lines):
    """RFC 9110, 5.3: they mean what one line with commas means."""
    assert_answer(rig.get(SHA, [("If-None-Match", line) for line in lines]), 304)
    assert_answer(rig.get(SHA, [("If-Match", line) for line in lines]), 200)


#: One value of If-Match, and the answer.
MATCH = {
    "the tag": (ETAG, 200),
    "an asterisk": ("*", 200),
    "in a list": (f'"a", {ETAG}', 200),
    "in a list after itself, weak": (f"W/{ETAG}, {ETAG}", 200),
    "the tag, weak": (f"W/{ETAG}", 412),
    "another tag": (OTHER, 412),
    "a list of others": ('"a", "b"', 412),
    "the tag in upper case": (ETAG.upper(), 412),
    "without quotes": (SHA, 412),
    "nothing": ("", 412),
    "nonsense": ("@@@", 412),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("value", "status"), MATCH.values(), ids=MATCH)
def test_if_match(rig, value, status, method):
    assert_answer(rig.get(SHA, [("If-Match", value)], method), status, method)


NO_DATES = {
    "nothing": "",
    "a word": "yesterday",
    "a number": "1700000000",
    "no year": "Tue, 14 Nov 22:13:20 GMT",
    "no month": "Tue, 14 Xyz 2030 22:13:20 GMT",
    "no time": "Tue, 14 Nov 2030 GMT",
    "an hour too many": "Tue, 14 Nov 2030 25:13:20 GMT",
    "a day too many": "Tue, 32 Nov 2030 22:13:20 GMT",
    "letters in the time": "Tue, 14 Nov 2030 aa:bb:cc GMT",
    "ISO 8601": "2030-11-14T22:13:20Z",
    "a huge year": "Tue, 14 Nov 99999999999999999999 22:13:20 GMT",
    "a year of thousands of digits": f"Tue, 14 Nov {'9' * 5000} 22:13:20 GMT",
    "not ASCII": "\xff\xfe",
    "two dates": f"{NEWER}, {NEWER}",
}
SINCE = {
    "equal": (DATE, False),
    "older": (OLDER, True),
    "newer": (NEWER, False),
    "much older": ("Thu, 01 Jan 1970 00:00:00 GMT", True),
    "to come": ("Thu, 31 Dec 2099 23:59:59 GMT", False),
    "equal, as RFC 850 had it": (rfc_850(MODIFIED), False),
    "older, as RFC 850 had it": (rfc_850(MODIFIED - 1), True),
    "equal, as asctime has it": (asctime(MODIFIED), False),
    "older, as asctime has it": (asctime(MODIFIED - 1), True),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("value", "modified"), SINCE.values(), ids=SINCE)
def test_since_a_date(rig, value, modified, method):
    """All three forms of RFC 9110, 5.6.7; a sample's time counts in whole seconds."""
    response = rig.get(SHA, [("If-Modified-Since", value)], method)
    assert_answer(response, 200 if modified else 304, method)
    response = rig.get(SHA, [("If-Unmodified-Since", value)], method)
    assert_answer(response, 412 if modified else 200, method)


#: By the time that it is: what a date says.
READ = {
    # IMF-fixdate.
    ("2026-11-20T12:00:00", "Sun, 06 Nov 1994 08:49:37 GMT"): "1994-11-06T08:49:37",
    ("2026-11-20T12:00:00", "Thu, 01 Jan 1970 00:00:00 GMT"): "1970-01-01T00:00:00",
    ("2026-11-20T12:00:00", "Thu, 29 Feb 2024 00:00:00 GMT"): "2024-02-29T00:00:00",
    ("2026-11-20T12:00:00", "Wed, 29 Feb 2023 00:00:00 GMT"): None,
    # RFC 850: two digits of the year that are no more than 50 years ahead.
    ("2026-11-20T12:00:00", "Sunday, 06-Nov-94 08:49:37 GMT"): "1994-11-06T08:49:37",
    ("2026-11-20T12:00:00", "Friday, 20-Nov-26 12:00:00 GMT"): "2026-11-20T12:00:00",
    ("2026-11-20T12:00:00", "Wednesday, 20-Nov-75 12:00:00 GMT"): "2075-11-20T12:00:00",
    ("2026-11-20T12:00:00", "Friday, 20-Nov-76 12:00:00 GMT"): "2076-11-20T12:00:00",
    ("2026-11-20T12:00:00", "Friday, 20-Nov-76 12:01:00 GMT"): "1976-11-20T12:01:00",
    ("2026-11-20T12:00:00", "Saturday, 21-Nov-76 00:00:00 GMT"): "1976-11-21T00:00:00",
    ("2026-11-20T12:00:00", "Sunday, 06-Nov-70 08:49:37 GMT"): "2070-11-06T08:49:37",
    ("2099-01-01T00:00:00", "Sunday, 06-Nov-94 08:49:37 GMT"): "2094-11-06T08:49:37",
    ("1999-12-31T23:59:59", "Sunday, 06-Nov-94 08:49:37 GMT"): "1994-11-06T08:49:37",
    ("2024-02-29T00:00:00", "Thursday, 29-Feb-96 00:00:00 GMT"): "1996-02-29T00:00:00",
    ("2026-11-20T12:00:00", "Sunday, 06-Nov-1994 08:49:37 GMT"): None,
    # asctime.
    ("2026-11-20T12:00:00", "Sun Nov  6 08:49:37 1994"): "1994-11-06T08:49:37",
    ("2026-11-20T12:00:00", "Wed Nov 16 08:49:37 1994"): "1994-11-16T08:49:37",
    # A leap second.
    ("2026-11-20T12:00:00", "Sat, 31 Dec 2016 23:59:60 GMT"): "2017-01-01T00:00:00",
    ("2026-11-20T12:00:00", "Saturday, 31-Dec-16 23:59:60 GMT"): "2017-01-01T00:00:00",
    ("2026-11-20T12:00:00", "Sat Dec 31 23:59:60 2016"): "2017-01-01T00:00:00",
    ("2026-11-20T12:00:00", "Sat, 31 Dec 2016 23:59:61 GMT"): None,
    ("2026-11-20T12:00:00", "Sat, 31 Dec 2016 23:60:00 GMT"): None,
    ("2026-11-20T12:00:00", "Sat, 31 Dec 2016 24:00:00 GMT"): None,
    # Case counts, and the zone is written out.
    ("2026-11-20T12:00:00", "Sun, 06 nov 1994 08:49:37 GMT"): None,
    ("2026-11-20T12:00:00", "Sun, 06 Nov 1994 08:49:37 UTC"): None,
    ("2026-11-20T12:00:00", "Sun, 06 Nov 0000 08:49:37 GMT"): None,
}


@pytest.mark.parametrize(("read", "expected"), READ.items(), ids=str)
def test_what_a_date_says(read, expected):
    """RFC 9110, 5.6.7."""
    now, value = read
    seconds = parse_date(value.encode(), seconds_of(now))
    assert seconds == (None if expected is None else seconds_of(expected))


def seconds_of(text):
    return int(datetime.fromisoformat(text + "+00:00").timestamp())


@pytest.mark.parametrize("value", NO_DATES.values(), ids=NO_DATES)
@pytest.mark.parametrize("name", ["If-Modified-Since", "If-Unmodified-Since"])
def test_what_is_no_date_is_ignored(rig, name, value):
    """RFC 9110, 13.1.3 and 13.1.4."""
    assert_answer(rig.get(SHA, [(name, value)]), 200)


def expected(match, unmodified, none_match, modified):
    """RFC 9110, 13.2.2, step by step."""
    if match is not None:
        if match != ETAG:
            return 412
    elif unmodified is not None and unmodified == OLDER:
        return 412
    if none_match is not None:
        return 304 if none_match == ETAG else 200
    if modified is not None and modified != OLDER:
        return 304
    return 200


TAGS, DATES = (None, ETAG, OTHER), (None, OLDER, DATE)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_all_together_are_taken_in_order(rig, method):
    names = ("If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since")
    for values in itertools.product(TAGS, DATES, TAGS, DATES):
        headers = [(n, v) for n, v in zip(names, values, strict=True) if v is not None]
        response = rig.get(SHA, headers[::-1], method)
        assert_answer(response, expected(*values), method)


@pytest.mark.parametrize("headers", [[("If-Match", OTHER)], [("If-None-Match", ETAG)]])
@pytest.mark.parametrize("value", ["bytes=0-0", "bytes=100-", "bytes=0-0,1-1"])
def test_a_range_comes_after_the_conditions(rig, headers, value):
    status = 412 if headers[0][0] == "If-Match" else 304
    assert_answer(rig.get(SHA, [*headers, ("Range", value)]), status)


def test_a_range_of_what_has_passed_the_conditions(rig):
    headers = [("If-Match", ETAG), ("If-None-Match", OTHER), ("Range", "bytes=1-2")]
    response = rig.get(SHA, headers)
    assert (response.status, response.body) == (206, b"el")


CONDITIONS = [
    ("If-None-Match", "*"),
    ("If-None-Match", ETAG),
    ("If-Match", "*"),
    ("If-Modified-Since", NEWER),
]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(("target", "status"), [("/x", 404), (f"/{'1' * 64}", 404), ("/", 200)])
def test_conditions_are_on_what_there_is(rig, condition, target, status):
    """RFC 9110, 13.2.1: they do not count where the answer would not be the sample anyway."""
    assert rig.request("GET", target, [condition]).status == status


@pytest.mark.parametrize("condition", CONDITIONS[:2])
def test_conditions_do_not_keep_from_storing(rig, condition):
    assert rig.put(b"conditional", headers=[condition]).status in (200, 201)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("If-None-Match", ETAG)], 304),
        ([("If-None-Match", "*")], 304),
        ([("If-Modified-Since", NEWER)], 304),
        ([("If-Match", OTHER)], 412),
        ([("If-Unmodified-Since", OLDER)], 412),
    ],
)
@pytest.mark.parametrize("size", [5, 300_000])
def test_a_sample_is_not_opened_to_say_that_it_has_not_changed(tmp_path, headers, status, size):
    disks = Disks(RecordingFiles)
    rig = Rig(tmp_path, files=disks)
    content = HELLO.ljust(size, b"o")
    headers = [(name, value.replace(SHA, str(Digest.of(content)))) for name, value in headers]
    rig.put(content)
    for path in rig.copies(content):
        os.utime(path, (MODIFIED, MODIFIED))
    for recorded in disks.values():
        recorded.calls.clear()
    assert rig.get(content, headers).status == status
    names = {call.name for recorded in disks.values() for call in recorded.calls}
    assert "stat" in names
    assert not names & {"open_to_read", "read"}


def test_a_304_of_a_keep_alive_connection_is_followed_by_the_next_answer(rig):
    connection = rig.connect()
    request = f"GET /{SHA} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {ETAG}\r\n\r\n".encode()
    connection.send(request * 3)
    for response in connection.responses():
        assert_not_modified(response)
    assert len(connection.responses()) == 3
    assert not connection.closed
