"""What is said of requests that are over, and when."""

import re

import pytest
from twisted.internet.task import Clock
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory

from stor.errors import NotFound
from stor.http.access import Afterwards, RequestIds, Served, word
from stor.http.channel import LINGER_SECONDS
from stor.http.fast_path import FastPath
from stor.http.pace import HEAD_SECONDS, WINDOW_SECONDS
from stor.http.proxies import Proxies, network_of
from tests.support.network import Connection
from tests.support.rig import AUTHORIZATION, Rig, digest_of, request_bytes

CONTENT = b"content" * 100
NAME = str(digest_of(CONTENT))
WRONG = "Basic Ym9iOnNlY3JldA=="  # bob:secret


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


def served(path):
    return Served("192.0.2.1", "GET", path, 200, 4096, 0, 0.0, "done")


def test_requests_are_told_of_in_order_when_the_turn_is_over(clock, told):
    afterwards = Afterwards(clock.callLater, told.append)
    for turn in (["/a", "/b"], ["/c"]):
        told.clear()
        for path in turn:
            afterwards(served(path))
        assert told == []
        clock.advance(0)
        assert told == [served(path) for path in turn]
    assert clock.getDelayedCalls() == []


def test_at_the_end_none_is_left_untold(clock, told):
    afterwards = Afterwards(clock.callLater, told.append)
    afterwards(served("/a"))
    afterwards.tell()
    assert told == [served("/a")]
    clock.advance(0)
    assert len(told) == 1


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path, cache_bytes=1_000_000)
    rig.put(CONTENT)
    return rig


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (("GET", f"/{NAME}", []), (200, "-", "-")),
        (("GET", f"/{NAME}", [("Range", "bytes=0-9")]), (206, "-", "bytes=0-9")),
        (("GET", f"/{NAME}", [("Range", "a b" * 1000)]), (200, "-", word(b"a b" * 1000))),
        # Nobody has looked whether he is bob.
        (("GET", f"/{NAME}", [("Authorization", WRONG)]), (200, "-", "-")),
        (("POST", f"/{NAME}", [("Authorization", WRONG)], CONTENT), (401, "bob", "-")),
        (("POST", f"/{NAME}", [("Authorization", "Basic c2VjcmV0")], CONTENT), (401, "-", "-")),
        (("POST", f"/{NAME}", [("Authorization", AUTHORIZATION)], CONTENT), (200, "writer", "-")),
        (("POST", "/x", [("Authorization", WRONG)], CONTENT), (412, "-", "-")),
    ],
)
def test_who_asked_for_what(rig, request_, expected):
    rig.request(*request_)
    last = rig.served[-1]
    assert (last.status, last.user, last.part) == expected
    assert "secret" not in repr(last)


def test_an_upload_names_the_disks_that_have_it(rig):
    content = b"another"
    for status in (201, 200):
        assert rig.put(content).status == status
        copies = rig.copies(content)
        assert sorted(rig.served[-1].storage.split(",")) == [str(c.parents[3]) for c in copies]


@pytest.mark.parametrize("headers", [[], [("Cookie", "the ordinary way")]])
def test_a_request_has_a_name_of_its_own(rig, headers):
    rig.get(NAME)
    names = [rig.get(NAME, headers).headers["x-request-id"] for _ in range(3)]
    assert [served.request_id for served in rig.served[-3:]] == names
    assert len(set(names)) == 3


@pytest.mark.parametrize("name", ["f3", "0191d5c4-7a2e-7c3b", "Root=1-67891233:a/b+c=", "x" * 64])
def test_a_name_that_came_with_a_request_is_kept(rig, name):
    for path in (f"/{NAME}", "/status", "/malformed"):
        assert rig.request("GET", path, [("X-Request-ID", name)]).headers["x-request-id"] == name
        assert rig.served[-1].request_id == name


class Nobody:
    """The index of a Stor that knows that it has nothing."""

    def at_once(self, raw, *, read):
        return NotFound(("disk",))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([("X-Request-ID", "one")], b"one"),
        ([("x-request-id", "one ")], b"one"),
        ([("X-Request-Id", "one"), ("Accept", "*/*"), ("X-Request-Id", "two")], b"two"),
        ([("Accept", "equest-")], None),
        ([("X-Request-ID", "not plain")], None),
    ],
)
def test_the_fast_path_keeps_the_name_that_came_with_a_request(lines, expected):
    """A proxy gives each request one: they are not the slow ones for that."""
    served = []
    path = FastPath(Nobody(), lambda: 0, served.append)
    pieces = path.answer(request_bytes("GET", f"/{NAME}", lines), "192.0.2.1", b"Stor")
    ((name,),) = [re.findall(rb"X-Request-Id: (.*)\r\n", b"".join(pieces))]
    assert name == expected or (expected is None and len(name) > 8)
    assert served[0].request_id == name.decode()


def test_a_name_in_an_unusual_form_is_for_the_ordinary_way():
    path = FastPath(Nobody(), lambda: 0, lambda served: None)
    assert path.answer(request_bytes("GET", f"/{NAME}", [("X-REQUEST-ID", "a")]), "-", b"S") is None


@pytest.mark.parametrize("name", [b"", b"x" * 65, b"a b", b"a\x1b[31m", b'"', b"\xc3\xa9", b"a,b"])
def test_one_that_could_mislead_readers_of_the_log_is_not(name):
    assert RequestIds().given(name) not in ("", name.decode("latin-1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "-"),
        (b"", "-"),
        (b"bob", "bob"),
        (b"a b\n<0>c", "a%20b%0A%3C0%3Ec"),
        ("bj\u00f6rn".encode(), "bj%C3%B6rn"),
        (b'"\\', "%22%5C"),
        (b"%41", "%2541"),
        (b"x" * 1000, "x" * 64),
    ],
)
def test_what_a_client_sent_is_one_word_of_the_log(text, expected):
    assert word(text) == expected


PROXIES = ["192.0.2.1", "10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "198.51.100.7"),
        ("::ffff:192.0.2.1", ["198.51.100.7"], "198.51.100.7"),
        ("192.0.2.2", ["198.51.100.7"], "192.0.2.2"),
        # What stands before the last stranger, he may have written himself.
        ("192.0.2.1", ["127.0.0.1, 198.51.100.7"], "198.51.100.7"),
        ("192.0.2.1", ["127.0.0.1", "198.51.100.7, 10.1.2.3"], "198.51.100.7"),
        ("192.0.2.1", ["10.1.2.3, 10.9.9.9"], "10.1.2.3"),
        ("2001:db8::5", ["2001:db9::1"], "2001:db9::1"),
        ("192.0.2.1", ["[2001:db9::1]:4711"], "2001:db9::1"),
        ("192.0.2.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("192.0.2.1", ["198.51.100.7, unknown"], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7, , 10.0.0.1"], "10.0.0.1"),
        ("-", ["198.51.100.7"], "-"),
    ],
)
def test_the_client_behind_proxies(peer, forwarded, expected):
    assert Proxies(PROXIES).client(peer, forwarded) == expected
    assert Proxies().client(peer, forwarded) == peer


def test_a_unix_socket_is_trusted_by_its_name():
    assert Proxies(["unix"]).client("-", ["198.51.100.7"]) == "198.51.100.7"
    assert Proxies(["unix"]).client("192.0.2.1", ["198.51.100.7"]) == "192.0.2.1"
    assert network_of("::ffff:10.0.0.0/104") == network_of("10.0.0.0/8")


@pytest.mark.parametrize("headers", [[], [("Cookie", "the ordinary way")]])
@pytest.mark.parametrize(("trusted", "expected"), [(True, "203.0.113.9"), (False, None)])
def test_the_log_and_the_limits_on_passwords_know_the_client(rig, headers, trusted, expected):
    rig.get(NAME)
    peer = rig.served[-1].peer
    proxies = Proxies([peer] if trusted else [])
    rig.reconfigure(proxies=proxies)
    rig.get(NAME, [*headers, ("X-Forwarded-For", "127.0.0.1, 203.0.113.9")])
    assert rig.served[-1].peer == (expected or peer)


class Behind:
    """A rig's site as an endpoint `haproxy:` has it."""

    def __init__(self, rig):
        self.factory = HAProxyWrappingFactory(rig.site)

    def buildProtocol(self, address):
        return self.factory.buildProtocol(address)


@pytest.mark.parametrize("headers", [[], [("Cookie", "the ordinary way")]])
@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        ((), [], "192.0.2.1"),
        (("198.51.100.7",), [], "192.0.2.1"),
        (("192.0.2.1",), [], "198.51.100.7"),
        # Whoever the proxy has talked to is believed no more than anybody.
        (("192.0.2.1",), [("X-Forwarded-For", "203.0.113.9")], "198.51.100.7"),
        (("192.0.2.1", "198.51.100.7"), [("X-Forwarded-For", "203.0.113.9")], "203.0.113.9"),
        ((), [("X-Forwarded-For", "203.0.113.9")], "192.0.2.1"),
    ],
)
def test_the_proxy_protocol_is_believed_of_trusted_proxies_alone(
    rig, headers, trusted, forwarded, expected
):
    rig.reconfigure(proxies=Proxies(trusted))
    connection = Connection(Behind(rig), rig.clock)
    connection.send(b"PROXY TCP4 198.51.100.7 192.0.2.2 4711 8080\r\n")
    connection.send(request_bytes("GET", f"/{NAME}", [*headers, *forwarded]))
    (response,) = connection.responses(["GET"])
    assert (response.status, rig.served[-1].peer) == (200, expected)


HELLO = request_bytes("GET", f"/{NAME}")
POST = f"POST /{NAME} HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZATION}\r\n"

REFUSED = {
    "no request line": (b"garbage\r\n", 0, ("-", "-", 400)),
    "no HTTP": (b"GET /a HTTP/9\r\n\r\n", 0, ("-", "-", 400)),
    "quotes": (b'G"T /"a HTTP/1.1\r\n\r\n', 0, ("-", "-", 400)),
    "two hosts": (b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 0, ("GET", "/a", 400)),
    "HEAD": (b"HEAD /a HTTP/1.1\r\n\r\n", 0, ("HEAD", "/a", 400)),
    "no path": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 0, ("GET", "a", 400)),
    "a long line": (b"GET /" + b"a" * 100_000, 0, ("-", "-", 431)),
    "long headers": (b"GET /a HTTP/1.1\r\nA: " + b"a" * 100_000, 0, ("GET", "/a", 431)),
    "a slow head": (b"GET /a HTTP/1.1\r\n", HEAD_SECONDS + 1, ("GET", "/a", 408)),
    "a slow body": (
        f"{POST}Content-Length: 999999\r\n\r\n".encode(),
        WINDOW_SECONDS + 1,
        ("POST", f"/{NAME}", 408),
    ),
    "a bad chunk": (
        f"{POST}Transfer-Encoding: chunked\r\n\r\nxyz\r\n".encode(),
        0,
        ("POST", f"/{NAME}", 400),
    ),
}


@pytest.mark.parametrize(("sent", "seconds", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_before_it_is_a_request_is_told_of_once(tmp_path, sent, seconds, expected):
    rig = Rig(tmp_path)
    connection = rig.connect()
    connection.send(sent)
    for _ in range(10 if seconds else 0):
        connection.wait(seconds / 10)
        connection.send(b"a")
    (response,) = connection.responses([expected[0]])
    (told,) = rig.served
    assert (told.method, told.path, told.status) == expected
    assert (told.sent_bytes, told.peer) == (len(response.body), "192.0.2.1")
    assert response.headers["x-request-id"] == told.request_id
    connection.wait(LINGER_SECONDS)
    connection.close()
    assert rig.served == [told]


def test_so_is_a_connection_that_is_one_too_many(tmp_path):
    rig = Rig(tmp_path, max_connections=1)
    first = rig.connect()
    first.send(f"{POST}Content-Length: 9\r\n\r\n".encode())
    second = rig.connect()
    second.send(HELLO)
    (response,) = second.responses(["GET"])
    told = rig.served[-1]
    assert (told.method, told.path, told.status) == ("GET", f"/{NAME}", 503)
    assert response.headers["x-request-id"] == told.request_id
