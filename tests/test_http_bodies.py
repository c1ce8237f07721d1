"""POST and PUT: a body on its way in, whole or cut, in whatever pieces it comes."""

import os
import random
import stat

import pytest

from stor.digest import Digest
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    assert_nothing_kept,
    assert_stored,
    chunked,
    cuts,
    descriptors,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("size", [0, 1, 5, 262144, 262145, 1024 * 1024, 1024 * 1024 + 1, 3_000_000])
def test_a_sample_is_stored_once(rig, method, size):
    content = random.Random(size).randbytes(size)
    first = rig.put(content, method=method)
    assert_stored(rig, content, first)
    again = rig.put(content, method=method)
    assert_stored(rig, content, again, 200)
    assert again.body == first.body
    other = "PUT" if method == "POST" else "POST"
    assert rig.put(content, method=other, name=str(Digest.of(content)).upper()).body == first.body


def test_a_copy_is_readable_by_all(rig):
    rig.put(HELLO)
    mask = os.umask(0o022)
    os.umask(mask)
    for path in rig.copies(HELLO):
        assert path.stat().st_mode == stat.S_IFREG | 0o644 & ~mask
        assert path.parent.stat().st_mode == stat.S_IFDIR | 0o755 & ~mask


@pytest.mark.parametrize(
    "target",
    [f"/{SHA}", f"/{SHA.upper()}", f"/{SHA}/", f"/{SHA}?x=1", f"/{SHA}/?x", f"http://x/{SHA}"],
)
def test_a_sample_is_stored_under_any_spelling(rig, target):
    assert_stored(rig, HELLO, rig.request("POST", target, [AUTHORIZED], HELLO))


def test_the_connection_goes_on_after_an_upload(rig):
    connection = rig.connect()
    for n in range(5):
        content = b"%d" % n
        connection.send(request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content))
    responses = connection.responses()
    assert [response.status for response in responses] == [201] * 5
    assert not any("connection" in response.headers for response in responses)


def test_no_length_means_no_body(rig):
    response = rig.request("POST", f"/{Digest.of(b'')}", [AUTHORIZED])
    assert_stored(rig, b"", response)
    assert rig.request("POST", f"/{SHA}", [AUTHORIZED]).status == 412


TYPES = [
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=utf-8",
    "multipart/mixed; boundary=x",
    "application/octet-stream",
    "application/json",
    "text/plain",
    "nonsense",
    "",
]


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_no_content_type_makes_a_form_of_a_body(rig, content_type, method):
    """It streams like any other: while it comes, it goes to the disks and not to memory."""
    content = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a=b&" * 600_000
    headers = [AUTHORIZED, ("Content-Type", content_type), ("Content-Length", len(content))]
    connection = rig.connect()
    connection.send(request_bytes(method, f"/{Digest.of(content)}", headers))
    for begin in range(0, len(content), 100_000):
        connection.send(content[begin : begin + 100_000])
        assert rig.uploads.buffered_bytes < 512 * 1024
    (response,) = connection.responses()
    assert_stored(rig, content, response)


@pytest.mark.parametrize(
    "sent", [b"", b"hell", b"hello!", b"Hello", b"x" * 300_000, b"x" * 2_000_000]
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_mismatch_names_both_hashes_and_keeps_nothing(rig, sent, framing):
    before = descriptors()
    connection = rig.connect()
    if framing == "chunked":
        connection.send(upload_head(SHA, CHUNKED) + chunked([sent]))
    else:
        connection.send(request_bytes("POST", f"/{SHA}", [AUTHORIZED], sent))
    (response,) = connection.responses()
    assert response.status == 412
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert SHA in response.text
    assert str(Digest.of(sent)) in response.text
    assert response.text.count("\n") == 1
    assert_nothing_kept(rig)
    assert descriptors() == before
    connection.send(request_bytes("POST", f"/{SHA}", [AUTHORIZED], HELLO))
    assert_stored(rig, HELLO, connection.responses()[1])


SHAPES = {
    "one chunk": chunked([HELLO]),
    "a chunk a byte": chunked([b"h", b"e", b"l", b"l", b"o"]),
    "two chunks": chunked([b"hel", b"lo"]),
    "leading zeros": b"00005\r\nhello\r\n000\r\n\r\n",
    "extension": chunked([HELLO], b";a"),
    "extension with value": chunked([b"he", b"llo"], b";a=b;c=d"),
    "extension, quoted": chunked([HELLO], b';a="b c"'),
    "extension of 900 bytes": chunked([HELLO], b";" + b"a" * 900),
    "trailer": chunked([HELLO], trailers=b"X: y\r\n"),
    "trailers": chunked([HELLO], trailers=b"X: y\r\n" * 100),
    "trailers that say otherwise": chunked(
        [HELLO], trailers=b"Content-Length: 9\r\nAuthorization: x\r\nTransfer-Encoding: gzip\r\n"
    ),
}


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_chunks_is_one_body(rig, body, piece):
    connection = rig.connect()
    data = upload_head(HELLO, CHUNKED) + body + request_bytes("GET", "/")
    for begin in range(0, len(data), piece):
        connection.send(data[begin : begin + piece])
    stored, after = connection.responses()
    assert_stored(rig, HELLO, stored)
    assert after.status == 200


@pytest.mark.parametrize("digits", [b"40000", b"3E8", b"3e8", b"000003e8"])
def test_a_chunk_s_size_is_hexadecimal_in_either_case(rig, digits):
    content = b"x" * int(digits, 16)
    connection = rig.connect()
    connection.send(upload_head(content, CHUNKED) + digits + b"\r\n" + content + b"\r\n0\r\n\r\n")
    assert_stored(rig, content, connection.responses()[0])


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_comes_byte_by_byte(rig, framing):
    content = random.Random(1).randbytes(700)
    if framing == "length":
        data = request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content)
    else:
        data = upload_head(content, CHUNKED) + chunked([content[:300], content[300:]])
    connection = rig.connect()
    for byte in data:
        connection.send(bytes([byte]))
    assert_stored(rig, content, connection.responses()[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_comes_in_random_pieces(rig, framing, seed):
    rng = random.Random(seed)
    content = rng.randbytes(rng.choice([1000, 262_144, 1_500_000]))
    if framing == "length":
        data = request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content)
    else:
        data = upload_head(content, CHUNKED) + chunked(
            cuts(content, 50, rng), rng.choice([b"", b";x=y"])
        )
    connection = rig.connect()
    for piece in cuts(data, 60, rng):
        connection.send(piece)
    assert_stored(rig, content, connection.responses()[0])
