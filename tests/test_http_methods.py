"""Methods, versions, and what an error looks like."""

import itertools

import attrs
import pytest
from twisted.internet.defer import fail
from twisted.logger import LogLevel

from stor import __version__
from stor.digest import Digest
from tests.support.http import (
    AUTHORIZED,
    assert_one_line,
    assert_stored,
    logged_events,
    no_bug_logged,
)
from tests.support.network import Connection
from tests.support.rig import Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))
UNKNOWN = "0" * 64
OF_A_SAMPLE, OF_A_PAGE = "GET, HEAD, POST, PUT", "GET, HEAD"


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("methods"), max_upload_bytes=100)
    rig.put(HELLO)
    return rig


METHODS = ["DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO", "MKCOL", "X-Y!#$%&'*+"]
SAMPLES = {
    "stored": f"/{SHA}",
    "upper case, slash, query": f"/{SHA.upper()}/?x",
    "unknown": f"/{UNKNOWN}",
    "malformed": "/x",
    "slashes": "//",
    "absolute": f"http://stor.example/{SHA}",
}
PAGES = ["/", "/?x", "/status", "/status/", "/status?x", "/metrics", "http://stor.example"]
LENGTHS = {"no length": [], "length 0": [("Content-Length", "0")]}


@pytest.mark.parametrize("headers", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", SAMPLES.values(), ids=SAMPLES)
def test_other_methods_are_not_allowed_on_samples(rig, target, method, headers):
    response = rig.request(method, target, headers)
    assert_one_line(response, 405)
    assert response.headers["allow"] == OF_A_SAMPLE


@pytest.mark.parametrize(
    ("method", "target"), [("OPTIONS", "*"), ("CONNECT", "stor.example:80"), ("CONNECT", "*")]
)
def test_nor_are_those_that_are_about_no_path(rig, method, target):
    response = rig.request(method, target)
    assert_one_line(response, 405)
    assert response.headers["allow"] == "GET, HEAD, POST, PUT"


@pytest.mark.parametrize("headers", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    ("method", "target"),
    [
        *itertools.product(METHODS, PAGES),
        *itertools.product(("POST", "PUT"), [page for page in PAGES if "status" in page]),
    ],
)
def test_pages_are_only_read(rig, target, method, headers):
    response = rig.request(method, target, [AUTHORIZED, *headers])
    assert_one_line(response, 405)
    assert response.headers["allow"] == OF_A_PAGE


NO_FILES = {
    "root": "/",
    "root with a query": "/?x",
    "absolute root": "http://stor.example",
    "slashes": "//",
    "directory": "/x/",
    "two slashes after a sha": f"/{SHA}//",
    "sha in a directory": f"/a/{SHA}",
    "below a page": "/status/x",
    "encoded slash": "/%2F",
}


@pytest.mark.parametrize("headers", [[], [AUTHORIZED]], ids=["stranger", "writer"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("target", NO_FILES.values(), ids=NO_FILES)
def test_where_nothing_can_be_stored_it_says_how_to_store(rig, target, method, headers):
    response = rig.request(method, target, headers, HELLO)
    assert_one_line(response, 400)
    assert "curl -u USER -T FILE URL/$(sha256sum FILE | cut -c 1-64)" in response.text


@pytest.mark.parametrize("name", ["x", "file.txt", SHA[1:], f"{SHA}.dat"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_misspelt_sha_says_how_to_store(rig, name, method):
    """`curl -T file URL/` puts the name of the file after the slash."""
    response = rig.request(method, f"/{name}", [AUTHORIZED], HELLO)
    assert_one_line(response, 412)
    assert response.text.startswith("malformed sha: ")
    assert "curl -u USER -T FILE URL/$(sha256sum FILE | cut -c 1-64)" in response.text


NOT_THE_FILE = {
    "range": ([("Content-Range", "bytes 0-4/5")], 400, "without Content-Range"),
    "malformed range": ([("Content-Range", "")], 400, "without Content-Range"),
    "form": ([("Content-Type", "multipart/form-data; boundary=x")], 415, "curl -T FILE"),
    "form in capitals": ([("Content-Type", "Multipart/Form-Data")], 415, "curl -T FILE"),
    "gzip": ([("Content-Encoding", "gzip")], 415, "without Content-Encoding"),
    "unknown encoding": ([("Content-Encoding", "x")], 415, "without Content-Encoding"),
    "gzip in a list": ([("Content-Encoding", "identity, gzip")], 415, "without Content-Encoding"),
    "gzip in a second line": (
        [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")],
        415,
        "without Content-Encoding",
    ),
}


@pytest.mark.parametrize("target", [f"/{SHA}", f"/{UNKNOWN}", "/x", "/missing"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(("headers", "status", "advice"), NOT_THE_FILE.values(), ids=NOT_THE_FILE)
def test_a_body_that_is_not_the_file_is_told_what_to_do(
    rig, target, method, headers, status, advice
):
    if (method, target) == ("PUT", "/missing"):
        status, advice = 405, "POST"
    connection = rig.connect()
    waiting = [("Content-Length", "5"), ("Expect", "100-continue")]
    connection.send(request_bytes(method, target, [AUTHORIZED, *waiting, *headers]))
    (response,) = connection.responses([method])
    assert_one_line(response, status)
    assert advice in response.text
    assert not connection.continued
    assert response.headers.get("accept-encoding") == (
        "identity" if "Content-Encoding" in advice else None
    )


@pytest.mark.parametrize("value", ["identity", "Identity", "identity, identity", ""])
def test_an_encoding_that_changes_nothing_is_taken(tmp_path, value):
    rig = Rig(tmp_path)
    assert_stored(rig, HELLO, rig.put(HELLO, headers=[("Content-Encoding", value)]))


#: What browsers and crawlers ask every site for.
OF_EVERY_SITE = [
    "/favicon.ico",
    "/favicon.ico?v=2",
    "/robots.txt",
    "/sitemap.xml",
    "/apple-touch-icon.png",
    "/apple-touch-icon-120x120-precomposed.png",
    "/.well-known/security.txt",
    "/.well-known/",
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("target", OF_EVERY_SITE)
def test_what_every_site_is_asked_for_is_not_there_and_no_misspelt_sha(rig, target, method):
    response = rig.request(method, target)
    if method == "GET":
        assert_one_line(response, 404)
        assert response.text.startswith("not found")
    assert response.status == 404
    served = rig.served[-1]
    assert (served.route, served.causes) == ("other", ())


@pytest.mark.parametrize("target", ["/x", f"/{SHA}x", "/favicon", "/xrobots.txt", "/index.html"])
def test_any_other_name_is_a_misspelt_sha(rig, target):
    assert rig.request("GET", target).text.startswith("malformed sha")
    served = rig.served[-1]
    assert (served.route, served.causes) == ("sample", ("malformed_sha",))


@pytest.mark.parametrize("method", ["get", "Get", "head", "post", "put", "pUT"])
@pytest.mark.parametrize(
    ("target", "allowed"), [(f"/{SHA}", OF_A_SAMPLE), ("/", OF_A_PAGE), ("/status", OF_A_PAGE)]
)
def test_methods_are_case_sensitive(rig, target, allowed, method):
    """RFC 9110, 9.1."""
    response = rig.request(method, target)
    assert_one_line(response, 405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "POST", "PUT", "post"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_of_a_method_that_is_not_allowed_is_not_waited_for(rig, method, framing):
    header = {"length": ("Content-Length", "5"), "chunked": ("Transfer-Encoding", "chunked")}
    connection = rig.connect()
    connection.send(request_bytes(method, "/status", [header[framing]]))
    (response,) = connection.responses([method])
    assert_one_line(response, 405)
    assert response.headers["allow"] == OF_A_PAGE
    assert response.headers["connection"] == "close"


ERRORS = {
    "malformed sha": ("GET", "/x", [], None, 404),
    "not found": ("GET", f"/{UNKNOWN}", [], None, 404),
    "nothing to store at": ("POST", "/", [], b"", 400),
    "part of a file": ("PUT", f"/{SHA}", [("Content-Range", "bytes 0-0/5")], b"h", 400),
    "compressed": ("POST", f"/{SHA}", [("Content-Encoding", "gzip")], b"", 415),
    "malformed sha to store": ("POST", "/x", [AUTHORIZED], b"", 412),
    "no credentials": ("POST", f"/{UNKNOWN}", [], b"", 401),
    "mismatch": ("POST", f"/{UNKNOWN}", [AUTHORIZED], b"x", 412),
    "too large": ("POST", f"/{UNKNOWN}", [AUTHORIZED], b"x" * 101, 413),
    "too large for GET": ("GET", f"/{SHA}", [("Content-Length", "1048577")], None, 413),
    "precondition": ("GET", f"/{SHA}", [("If-Match", '"x"')], None, 412),
    "range": ("GET", f"/{SHA}", [("Range", "bytes=5-")], None, 416),
    "method": ("DELETE", f"/{SHA}", [], None, 405),
    "no Host": ("GET", "/", [("Host", "twice")], None, 400),
    "not HTTP": ("GET", "/ /", [], None, 400),
    "headers": ("GET", "/", [("X", "x" * 20000)], None, 431),
}


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status"), ERRORS.values(), ids=ERRORS
)
def test_every_error_is_one_line_of_plain_text(rig, method, target, headers, body, status):
    assert_one_line(rig.request(method, target, headers, body), status)


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status"), ERRORS.values(), ids=ERRORS
)
def test_every_error_says_when_and_who(rig, method, target, headers, body, status):
    """RFC 9110, 6.6.1: a server with a clock sends Date with every 4xx too."""
    response = rig.request(method, target, headers, body)
    assert response.headers["server"] == f"Stor/{__version__}"
    assert response.headers["date"].endswith(" GMT")


def test_nothing_of_the_request_is_echoed_into_an_error(rig):
    for target in ("/<b>", "/%3Cb%3E", "/?<b>", "/<script>alert(1)</script>"):
        for method in ("GET", "POST", "DELETE"):
            assert b"<" not in rig.request(method, target).body
    assert b"<" not in rig.request("GET", "/", [("Host", "<b>"), ("X", "<b>")]).body


@pytest.mark.parametrize("target", ["/", f"/{SHA}", f"/{UNKNOWN}"], ids=["root", "sample", "none"])
@pytest.mark.parametrize("connection_header", [None, "keep-alive", "Keep-Alive", "close"])
@pytest.mark.parametrize("host", [True, False])
def test_http_1_0_is_answered_and_closed(rig, target, connection_header, host):
    lines = [f"GET {target} HTTP/1.0"]
    lines += ["Host: stor.example"] if host else []
    lines += [f"Connection: {connection_header}"] if connection_header else []
    connection = rig.connect()
    connection.send("\r\n".join([*lines, "", ""]).encode())
    (response,) = connection.responses()
    assert response.status == (200 if target in ("/", f"/{SHA}") else 404)
    assert response.headers["connection"] == "close"
    assert response.headers["content-length"] == str(len(response.body))
    assert connection.closed
    assert not connection.aborted


@pytest.mark.parametrize("target", ["/", "/status", f"/{SHA}", f"/{UNKNOWN}", "/x"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "value", [None, "keep-alive", "Keep-Alive", "upgrade", "closed", "x-close"]
)
def test_http_1_1_keeps_the_connection(rig, target, method, value):
    connection = rig.connect()
    headers = [("Connection", value)] if value else []
    for _ in range(3):
        connection.send(request_bytes(method, target, headers))
    responses = connection.responses([method] * 3)
    assert len({response.status for response in responses}) == 1
    assert len(responses) == 3
    assert "connection" not in responses[0].headers
    assert not connection.closed


CLOSE = {
    "close": ["close"],
    "upper case": ["CLOSE"],
    "capital": ["Close"],
    "last of a list": ["keep-alive, close"],
    "first of a list": ["close, x"],
    "in a list without spaces": ["x,close,y"],
    "with tabs": ["x,\tclose\t,y"],
    "empty elements": [",,close,"],
    "in the second line": ["x", "close"],
    "in the first line": ["close", "x"],
}


@pytest.mark.parametrize("values", CLOSE.values(), ids=CLOSE)
@pytest.mark.parametrize("target", ["/", f"/{SHA}"], ids=["root", "sample"])
def test_connection_close_is_honoured_and_announced(rig, values, target):
    """A list of tokens in any case, over any number of lines (RFC 9110, 5.3 and 7.6.1)."""
    connection = rig.connect()
    connection.send(request_bytes("GET", target, [("Connection", value) for value in values]))
    (response,) = connection.responses()
    assert response.headers["connection"] == "close"
    assert response.complete
    assert connection.closed
    assert not connection.aborted


def test_the_version_of_the_answer_is_the_request_s_at_most(rig):
    for version in ("HTTP/1.0", "HTTP/1.1"):
        connection = rig.connect()
        connection.send(request_bytes("GET", "/", version=version))
        assert connection.received.startswith(f"{version} 200 ".encode())


class Broken:
    """A `Reception` that has a bug: it fails at once, or later."""

    def __init__(self, late):
        self._late = late

    def receive(self, request):
        return None

    def answer(self, request):
        if self._late:
            return fail(ZeroDivisionError())
        raise ZeroDivisionError


class TestBugs:
    @pytest.fixture(autouse=True)
    def _no_bug(self):
        """Here there is one."""

    @pytest.mark.parametrize("late", [False, True])
    def test_a_bug_is_an_error_like_any_other(self, tmp_path, late):
        """No HTML, and nothing that a cache would keep."""
        site = Rig(tmp_path).site
        site.serve(attrs.evolve(site.serving, reception=Broken(late), fast_path=None))
        connection = Connection(site, site.clock)
        with logged_events(LogLevel.critical) as events:
            connection.send(request_bytes("GET", f"/{SHA}"))
        assert_one_line(connection.responses()[0], 500)
        assert len(events) == 1
