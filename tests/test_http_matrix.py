"""Requests that read: which targets name a sample, and every header of the answers."""

import base64
import os
import random
import re
import shutil
from datetime import UTC, datetime

import pytest

from stor import __version__
from stor.digest import Digest
from tests.support.files import RecordingFiles
from tests.support.http import Disks, no_bug_logged
from tests.support.rig import Rig

HELLO = b"hello"
SHA = str(Digest.of(HELLO))
MIXED = "".join(c.upper() if i % 3 else c for i, c in enumerate(SHA))
UNKNOWN = "0" * 64
SIZES = (0, 1, 5, 262143, 262144, 262145, 1024 * 1024 + 1)
IMF_FIXDATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d{2} "
    r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d{2}:\d{2}:\d{2} GMT"
)


def sample(size):
    return HELLO if size == 5 else random.Random(size).randbytes(size)


def percent(text):
    return "".join(f"%{ord(c):02x}" for c in text)


def imf_fixdate(text):
    """Strictly as Go's http.ParseTime and RFC 9110, 5.6.7, have it; seconds since the epoch."""
    assert IMF_FIXDATE.fullmatch(text)
    moment = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    assert moment.strftime("%a, %d %b %Y %H:%M:%S GMT") == text, "the day of the week is wrong"
    return moment.timestamp()


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("matrix"))
    for size in SIZES:
        assert rig.put(sample(size)).status == 201
    return rig


NAMES_OF_A_SAMPLE = {
    "lower case": f"/{SHA}",
    "upper case": f"/{SHA.upper()}",
    "mixed case": f"/{MIXED}",
    "trailing slash": f"/{SHA}/",
    "empty query": f"/{SHA}?",
    "query": f"/{SHA}?download=1&x=%00",
    "query with slashes": f"/{SHA}?/../..//",
    "slash and query": f"/{SHA}/?download=1",
    "upper case, slash and query": f"/{SHA.upper()}/?x",
    "one digit percent-encoded": f"/{percent(SHA[0])}{SHA[1:]}",
    "last digit percent-encoded": f"/{SHA[:-1]}{percent(SHA[-1])}",
    "all digits percent-encoded": f"/{percent(SHA)}",
    "percent-encoded in upper case": f"/{percent(SHA).upper()}",
    "absolute": f"http://stor.example/{SHA}",
    "absolute with port": f"http://stor.example:8080/{SHA}",
    "absolute, https": f"https://stor.example/{SHA}",
    "absolute, scheme in upper case": f"HTTP://stor.example/{SHA}",
    "absolute for another host": f"http://192.0.2.7/{SHA}",
    "absolute with slash and query": f"http://stor.example/{SHA.upper()}/?x=http://y/z",
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", NAMES_OF_A_SAMPLE.values(), ids=NAMES_OF_A_SAMPLE)
def test_a_sample_has_one_name_in_many_spellings(rig, target, method):
    response = rig.request(method, target)
    assert (response.status, response.headers["etag"]) == (200, f'"{SHA}"')
    assert response.body == (HELLO if method == "GET" else b"")


NO_NAMES = {
    "63 digits": f"/{SHA[:63]}",
    "65 digits": f"/{SHA}0",
    "1 digit": "/2",
    "g first": f"/g{SHA[1:]}",
    "g in the middle": f"/{SHA[:32]}g{SHA[33:]}",
    "G last": f"/{SHA[:63]}G",
    "sign": f"/+{SHA[1:]}",
    "0x": f"/0x{SHA[2:]}",
    "underscore": f"/{SHA[:10]}_{SHA[11:]}",
    "encoded slash alone": "/%2F",
    "encoded slash before": f"/%2F{SHA}",
    "encoded slash inside": f"/{SHA[:30]}%2F{SHA[31:]}",
    "dots": "/..",
    "dots and slash": "/../",
    "encoded dots": "/%2e%2e",
    "encoded dots, twice encoded": "/%252e%252e%252f",
    "up and down": f"/../{SHA}",
    "encoded up and down": f"/%2e%2e%2f{SHA}",
    "dot": f"/./{SHA}",
    "system file": "/../../../../etc/passwd",
    "Stor's own directory": "/.stor/disk.json",
    "path on the disk": f"/{Digest.of(HELLO).disk_path}",
    "NUL": "/%00",
    "NUL before": f"/%00{SHA}",
    "NUL after": f"/{SHA}%00",
    "line feed after": f"/{SHA}%0A",
    "line feed after, lower case": f"/{SHA}%0a",
    "line feed for the last digit": f"/{SHA[:63]}%0A",
    "carriage return and line feed after": f"/{SHA}%0D%0A",
    "space after": f"/{SHA}%20",
    "space before": f"/%20{SHA}",
    "two slashes after": f"/{SHA}//",
    "two slashes alone": "//",
    "three slashes alone": "///",
    "two slashes before": f"//{SHA}",
    "two slashes before status": "//status",
    "something below": f"/{SHA}/x",
    "itself below": f"/{SHA}/{SHA}",
    "extension": f"/{SHA}.dat",
    "fragment": f"/{SHA}#x",
    "not ASCII": "/%ff",
    "64 bytes that are not ASCII": "/" + "%ff" * 64,
    "digits of another script": "/" + "%D9%A2" * 64,
    "full-width digits": "/" + "%EF%BC%92" * 64,
    "percent alone": "/%",
    "percent and no digits": "/%zz",
    "sha and percent alone": f"/{SHA}%",
    "markup": "/%3Cscript%3Ealert(1)%3C/script%3E",
    "very long": "/" + "a" * 16000,
    "very long and encoded": "/" + "%61" * 5000,
    "status in upper case": "/STATUS",
    "below status": "/status/x",
    "absolute, two slashes": f"http://stor.example//{SHA}",
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", NO_NAMES.values(), ids=NO_NAMES)
def test_what_is_no_sha_is_not_found(rig, target, method):
    response = rig.request(method, target)
    assert response.status == 404
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    line = b"malformed sha: expected the 64 hexadecimal digits of a SHA-256\n"
    assert response.headers["content-length"] == str(len(line))
    assert response.body == (line if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    "target",
    ["*", SHA, f"x{SHA}", "status", "?x", "%2F", f"\\{SHA}", f"ftp://x/{SHA}", f"http:/{SHA}"],
)
def test_a_target_that_is_no_path_and_no_url_names_nothing(rig, target, method):
    """RFC 9112, 3.2. An answer to HEAD has no body, even this one (RFC 9110, 9.3.2)."""
    whole = method == "OPTIONS" and target == "*"  # RFC 9110, 9.3.7: of all that is here
    assert rig.request(method, target).status == (405 if whole else 400)


def test_no_disk_is_asked_for_what_is_no_sha(tmp_path):
    disks = Disks(RecordingFiles)
    rig = Rig(tmp_path, files=disks)
    before = [len(f.calls) for f in disks.values()]
    for target in NO_NAMES.values():
        rig.request("GET", target)
    assert [len(f.calls) for f in disks.values()] == before


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", [UNKNOWN, UNKNOWN + "/", UNKNOWN + "?x", "f" * 64, "F" * 64])
def test_a_sample_that_nobody_has_is_not_found(rig, name, method):
    response = rig.request(method, f"/{name}")
    assert response.status == 404
    assert response.body == (
        b"not found: no storage holds this sample\n" if method == "GET" else b""
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_sample_comes_with_every_header(rig, size):
    content = sample(size)
    response = rig.get(content)
    assert response.status == 200
    assert response.body == content
    headers = dict(response.headers)
    imf_fixdate(headers.pop("date"))
    assert headers.pop("x-request-id") == rig.served[-1].request_id
    assert imf_fixdate(headers.pop("last-modified")) <= rig.wall_seconds()
    digest = base64.b64encode(Digest.of(content).raw).decode()
    assert headers == {
        "server": f"Stor/{__version__}",
        "content-type": "application/octet-stream",
        "content-length": str(size),
        "etag": f'"{Digest.of(content)}"',
        "accept-ranges": "bytes",
        "cache-control": "public, max-age=31536000, immutable",
        "x-content-type-options": "nosniff",
        "repr-digest": f"sha-256=:{digest}:",
    }


@pytest.mark.parametrize("target", [*(f"/{Digest.of(sample(s))}" for s in SIZES), "/", "/status"])
def test_head_has_the_headers_of_get_and_no_body(rig, target):
    get, head = (rig.request(method, target) for method in ("GET", "HEAD"))
    assert head.status == get.status == 200
    varies = {"date": "", "x-request-id": ""}
    assert head.headers | varies == get.headers | varies
    assert list(head.headers) == list(get.headers)
    assert head.body == b""
    assert int(get.headers["content-length"]) == len(get.body)


def test_head_reads_nothing_of_the_sample(tmp_path):
    disks = Disks(RecordingFiles)
    rig = Rig(tmp_path, sets=(2,), files=disks)
    rig.put(HELLO)
    for _ in range(20):  # what the file system can do is tried once on each disk
        assert rig.get(HELLO, method="HEAD").status == 200
    for recorded in disks.values():
        recorded.calls.clear()
    assert rig.get(HELLO, method="HEAD").status == 200
    assert {c.name for f in disks.values() for c in f.calls} <= {
        "open_directory",
        "look_cached",
        "fstat",
        "stat",
        "close",
    }


@pytest.mark.parametrize("seconds", [-(10**9), -1, 0, 1, 86400, 10**9])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_last_modified_is_the_file_s_time_and_never_in_the_future(tmp_path, seconds, method):
    rig = Rig(tmp_path, sets=(1,))
    rig.put(HELLO)
    now = int(rig.wall_seconds())
    (copy,) = rig.copies(HELLO)
    os.utime(copy, (now + seconds, now + seconds))
    response = rig.get(HELLO, method=method)
    assert imf_fixdate(response.headers["last-modified"]) == now + min(seconds, 0)


def test_last_modified_is_the_time_of_the_upload(tmp_path):
    rig = Rig(tmp_path)
    rig.clock.advance(-1000)
    uploaded = int(rig.wall_seconds())
    rig.put(HELLO)
    rig.clock.advance(1000)
    assert imf_fixdate(rig.get(HELLO).headers["last-modified"]) == uploaded


@pytest.mark.parametrize("target", ["/", "/?x", "/?", "http://stor.example", "http://h/?x"])
def test_the_root_says_who_answers(rig, target):
    response = rig.request("GET", target)
    assert (response.status, response.text) == (200, f"This is Stor {__version__}")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_not_found_means_that_every_set_has_answered(tmp_path, method):
    """One dead disk of a set leaves the other one to answer; without both it is 503."""
    rig = Rig(tmp_path)
    shutil.rmtree(rig.roots[0])
    rig.probe()
    assert rig.get(UNKNOWN, method=method).status == 404
    shutil.rmtree(rig.roots[1])
    rig.probe()
    response = rig.get(UNKNOWN, method=method)
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    if method == "GET":
        assert response.text.count("\n") == 1
        for root in rig.roots[:2]:
            assert f"{root}: not a directory" in response.text


def test_a_sample_is_served_while_other_disks_are_away(tmp_path):
    rig = Rig(tmp_path)
    rig.put(HELLO)
    kept = rig.copies(HELLO)[0]
    for root in rig.roots:
        if root not in kept.parents:
            shutil.rmtree(root)
    rig.probe()
    assert rig.get(HELLO).body == HELLO
    assert rig.get(HELLO, method="HEAD").status == 200
