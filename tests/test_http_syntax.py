"""What is no HTTP, or could be read in two ways: 400, and the connection ends."""

import shutil

import pytest

from stor.digest import Digest
from stor.http.channel import LINGER_IDLE_SECONDS
from tests.support.http import assert_nothing_kept, assert_one_line, descriptors, no_bug_logged
from tests.support.rig import AUTHORIZATION, Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))
HOST = b"Host: stor.example\r\n"
NEXT = request_bytes("GET", "/")
UPLOAD = f"POST /{SHA} HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZATION}\r\n".encode()


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return Rig(tmp_path_factory.mktemp("syntax"))


@pytest.fixture
def empty(rig):
    yield rig
    for root in rig.roots:
        for directory in root.glob("??"):
            shutil.rmtree(directory)


def assert_refused(rig, data, status=400, piece=None):
    """One answer, a clean end, and nothing of what follows is taken for a request."""
    before = descriptors()
    connection = rig.connect()
    data += NEXT
    for begin in range(0, len(data), piece or len(data)):
        connection.send(data[begin : begin + (piece or len(data))])
    (response,) = connection.responses()
    assert_one_line(response, status)
    assert response.headers["connection"] == "close"
    assert connection.transport.write_closed
    connection.send(NEXT)
    connection.send(b"x" * 100_000)
    assert connection.unread == 0
    connection.wait(LINGER_IDLE_SECONDS)
    assert connection.closed
    assert len(connection.responses()) == 1
    assert_nothing_kept(rig)
    assert descriptors() == before


REQUEST_LINES = {
    "one word": b"garbage\r\n",
    "two words": b"GET /\r\n",
    "four words": b"GET / x HTTP/1.1\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n",
    "space at the end": b"GET / HTTP/1.1 \r\n",
    "space at the beginning": b" GET / HTTP/1.1\r\n",
    "tabs": b"GET\t/\tHTTP/1.1\r\n",
    "no target": b"GET  HTTP/1.1\r\n",
    "no method": b" / HTTP/1.1\r\n",
    "method with colon": b"GE:T / HTTP/1.1\r\n",
    "method with NUL": b"GE\0T / HTTP/1.1\r\n",
    "method that is not ASCII": b"G\xc3\x89T / HTTP/1.1\r\n",
    "target with NUL": b"GET /\0 HTTP/1.1\r\n",
    "target with control character": b"GET /\x1f HTTP/1.1\r\n",
    "target with carriage return": b"GET /\r HTTP/1.1\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\n",
    "HTTP/01.1": b"GET / HTTP/01.1\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n",
    "HTTP/2": b"GET / HTTP/2\r\n",
    "HTTP/1": b"GET / HTTP/1\r\n",
    "http/1.1": b"GET / http/1.1\r\n",
    "another protocol": b"GET / ICY/1.1\r\n",
    "no version": b"GET / \r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(20, 200)) + b"\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a response": b"HTTP/1.1 200 OK\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\r\n",
}


@pytest.mark.parametrize("piece", [None, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("line", REQUEST_LINES.values(), ids=REQUEST_LINES)
def test_a_garbage_request_line_is_refused(rig, line, piece):
    assert_refused(rig, line + HOST + b"\r\n", piece=piece)


HEADERS = {
    "no colon": b"Nonsense\r\n",
    "no name": b": x\r\n",
    "space before the colon": b"X : y\r\n",
    "tab before the colon": b"X\t: y\r\n",
    "space in the name": b"X Y: z\r\n",
    "control character in the name": b"X\x01: y\r\n",
    "name that is not ASCII": b"\xc3\xa9: y\r\n",
    "NUL in the value": b"X: y\0z\r\n",
    "carriage return in the value": b"X: y\rz\r\n",
    "line feed in the value": b"X: y\nZ: z\r\n",
    "fold before the first": b" folded\r\n",
    "a second request line": b"GET / HTTP/1.1\r\n",
}


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("line", HEADERS.values(), ids=HEADERS)
def test_a_malformed_header_is_refused(rig, line, position):
    if position == "last" and line.startswith(b" "):
        line = b"X\r\n" + line
    headers = line + HOST if position == "first" else HOST + line
    assert_refused(rig, b"GET / HTTP/1.1\r\n" + headers + b"\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"X-Host: x\r\n",
        b"Host: a\r\nHost: b\r\n",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nX: y\r\nhOST: a\r\n",
    ],
)
@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n", f"GET /{SHA} HTTP/1.1\r\n".encode()])
def test_host_is_named_once(rig, headers, line):
    """RFC 9112, 3.2."""
    assert_refused(rig, line + headers + b"\r\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("target", ["/", f"/{SHA}", f"http://x/{SHA}"])
@pytest.mark.parametrize(
    "host",
    [
        *("a b", "a\r\n b", "a:b", "a:1:2", "::1", "[::1", "[::1]x", "[]", "[a b]", "a\tb", "é"),
        *("a/b", "http://a", "a?", "a#", "<b>", "a@b", "@", '"a"', "a\\b", "%", "%4", "%4g"),
    ],
)
def test_a_host_that_is_none_is_refused(rig, target, host, version):
    """RFC 9112, 3.2."""
    assert_refused(rig, f"GET {target} HTTP/{version}\r\nHost: {host}\r\n\r\n".encode())


@pytest.mark.parametrize(
    "target",
    [
        *("http://", f"http:///{SHA}", f"http://:80/{SHA}", "https://?x", f"http://u@a/{SHA}"),
        *(f"http://a:b/{SHA}", f"http://[::1/{SHA}", f"http:/{SHA}"),
    ],
)
def test_a_url_without_a_host_is_refused(rig, target):
    """RFC 9110, 4.2.1 and 4.2.4."""
    assert_refused(rig, f"GET {target} HTTP/1.1\r\n".encode() + HOST + b"\r\n")


HOSTS = [
    *("", "x", "x:", ":80", "[::1]", "[::1]:8080", "[fe80::1%25eth0]", "127.0.0.1:99999", "*"),
    *("a_b.c", "xn--9ca", "a%41", "a,b", "a" * 8000, "a  ", "\ta"),
]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host[:20] or "empty")
def test_no_answer_depends_on_what_host_says(rig, host):
    connection = rig.connect()
    for target in ("/", "/status", f"/{SHA}"):
        connection.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    responses = connection.responses()
    assert [response.status for response in responses] == [200, 200, 404]
    assert all(b"Location" not in connection.received for _ in responses)


def test_a_folded_value_is_one_value(rig, tmp_path):
    """RFC 9112, 5.2: what begins with a space goes on with the line before, and is no header."""
    stored = Rig(tmp_path)
    stored.put(HELLO)
    headers = f'If-None-Match: "x",\r\n\t"{SHA}"\r\nX: y\r\n Content-Length: 5\r\n'.encode()
    connection = stored.connect()
    connection.send(f"GET /{SHA} HTTP/1.1\r\n".encode() + HOST + headers + b"\r\n" + NEXT)
    assert [response.status for response in connection.responses()] == [304, 200]


def test_one_empty_line_before_a_request_is_ignored(rig):
    """RFC 9112, 2.2."""
    connection = rig.connect()
    connection.send(b"\r\n" + NEXT)
    assert [response.status for response in connection.responses()] == [200]


LARGE = {
    "request line": f"GET /{'a' * 20000} HTTP/1.1\r\n".encode() + HOST,
    "query": f"GET /{SHA}?{'a' * 20000} HTTP/1.1\r\n".encode() + HOST,
    "method": b"G" * 20000 + b" / HTTP/1.1\r\n" + HOST,
    "one header": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 20000 + b"\r\n",
    "name of a header": b"GET / HTTP/1.1\r\n" + HOST + b"X" * 20000 + b": x\r\n",
    "many headers": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"".join(b"X: %098d\r\n" % i for i in range(200)),
    "a folded header": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"X: y\r\n"
    + (b" " + b"y" * 99 + b"\r\n") * 200,
}


@pytest.mark.parametrize("piece", [None, 1000, 17], ids=["at once", "1000 B a time", "17 B a time"])
@pytest.mark.parametrize("head", LARGE.values(), ids=LARGE)
def test_20_kb_of_headers_are_too_much(rig, head, piece):
    assert_refused(rig, head + b"\r\n", 431, piece)


@pytest.mark.parametrize("head", LARGE.values(), ids=LARGE)
def test_an_upload_with_20_kb_of_headers_keeps_nothing(rig, head):
    length = b"Content-Length: 5\r\nAuthorization: " + AUTHORIZATION.encode() + b"\r\n"
    assert_refused(rig, head.replace(b"GET", b"POST") + length + b"\r\nhello", 431)


def test_a_line_that_never_ends_is_refused(rig):
    connection = rig.connect()
    connection.send(b"GET /" + b"a" * 20000)
    (response,) = connection.responses()
    assert response.status == 431


def test_600_headers_are_too_many(rig):
    lines = b"".join(b"X: %d\r\n" % i for i in range(600))
    assert_refused(rig, b"GET / HTTP/1.1\r\n" + HOST + lines + b"\r\n")


@pytest.mark.parametrize(
    "headers",
    [b"X: " + b"x" * 15000 + b"\r\n", b"".join(b"X-%d: y\r\n" % i for i in range(450))],
    ids=["15 KB", "450 headers"],
)
def test_many_headers_are_fine(rig, headers):
    connection = rig.connect()
    connection.send((b"GET / HTTP/1.1\r\n" + HOST + headers + b"\r\n") * 3)
    assert [response.status for response in connection.responses()] == [200, 200, 200]


AMBIGUOUS = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "length 0 and chunked": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    "length and identity": b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
    "identity and length": b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n",
    "one length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "two lengths, one 0": b"Content-Length: 0\r\nContent-Length: 5\r\n",
    "two lengths in a list": b"Content-Length: 5, 5\r\n",
    "two lengths in a fold": b"Content-Length: 5\r\n 5\r\n",
    "length +5": b"Content-Length: +5\r\n",
    "length -1": b"Content-Length: -1\r\n",
    "length -0": b"Content-Length: -0\r\n",
    "length 0x5": b"Content-Length: 0x5\r\n",
    "length 5.0": b"Content-Length: 5.0\r\n",
    "length 5e0": b"Content-Length: 5e0\r\n",
    "length 5_0": b"Content-Length: 5_0\r\n",
    "length 5;": b"Content-Length: 5;\r\n",
    "length in words": b"Content-Length: five\r\n",
    "length of another script": b"Content-Length: \xd9\xa5\r\n",
    "length and vertical tab": b"Content-Length: 5\x0b\r\n",
    "empty length": b"Content-Length:\r\n",
    "length of 5000 digits": b"Content-Length: " + b"1" * 5000 + b"\r\n",
    "space before the colon of the length": b"Content-Length : 5\r\n",
    "line feed before the length": b"X: y\nContent-Length: 5\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "chunked, chunked": b"Transfer-Encoding: chunked, chunked\r\n",
    "gzip": b"Transfer-Encoding: gzip\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "gzip and chunked": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n",
    "chunked and identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n",
    "chunked with parameter": b"Transfer-Encoding: chunked;q=1\r\n",
    "chunked and vertical tab": b"Transfer-Encoding: chunked\x0b\r\n",
    "quoted chunked": b'Transfer-Encoding: "chunked"\r\n',
    "empty coding": b"Transfer-Encoding:\r\n",
    "space before the colon of the coding": b"Transfer-Encoding : chunked\r\n",
    "length and folded chunked": b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n",
}


@pytest.mark.parametrize("body", [b"hello", b"5\r\nhello\r\n0\r\n\r\n"], ids=["plain", "chunked"])
@pytest.mark.parametrize("headers", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_body_of_uncertain_length_is_refused(empty, headers, body):
    assert_refused(empty, UPLOAD + headers + b"\r\n" + body)
    assert_refused(empty, b"GET / HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body)


CHUNKS = {
    "no hex digit": b"g\r\nhello\r\n0\r\n\r\n",
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "two sizes": b"5 5\r\nhello\r\n0\r\n\r\n",
    "bare line feed after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare line feeds": b"5\nhello\n0\n\n\r\n",
    "bare line feed in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\0b\r\nhello\r\n0\r\n\r\n",
    "longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "ends in a line feed": b"5\r\nhello\n0\r\n\r\n",
    "does not end": b"5\r\nhello0\r\n\r\n",
    "second one malformed": b"5\r\nhello\r\nx\r\n\r\n",
    "size line of 2000 bytes": b"5;" + b"a" * 2000 + b"\r\nhello\r\n0\r\n\r\n",
    "size of 2000 digits": b"0" * 2000 + b"5\r\nhello\r\n0\r\n\r\n",
    "size line that never ends": b"5;" + b"a" * 3000,
    "trailers of 100 KB": b"5\r\nhello\r\n0\r\n" + b"X: %098d\r\n" % 1 * 1000 + b"\r\n",
}


@pytest.mark.parametrize("piece", [None, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS)
def test_a_malformed_chunk_is_refused(empty, body, piece):
    if piece and len(body) > 10_000:
        piece = 1000
    assert_refused(empty, UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n" + body, piece=piece)
