"""What is decided on an upload before its body: credentials, and the order of all refusals."""

import base64
import itertools

import pytest

from stor.digest import Digest
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    assert_nothing_kept,
    assert_one_line,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import PASSWORD, USER, Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


RIGHT = basic(f"{USER}:{PASSWORD}")
ACCEPTED = {
    "as curl writes it": RIGHT,
    "lower-case scheme": RIGHT.replace("Basic", "basic"),
    "upper-case scheme": RIGHT.replace("Basic", "BASIC"),
    "two spaces": RIGHT.replace(" ", "  "),
}
REFUSED = {
    "none": None,
    "empty": "",
    "scheme alone": "Basic",
    "scheme and a space": "Basic ",
    "wrong user": basic(f"reader:{PASSWORD}"),
    "wrong password": basic(f"{USER}:wrong"),
    "empty password": basic(f"{USER}:"),
    "no colon": basic(USER),
    "empty user": basic(f":{PASSWORD}"),
    "password cut": basic(f"{USER}:{PASSWORD[:-1]}"),
    "password longer": basic(f"{USER}:{PASSWORD}x"),
    "password in upper case": basic(f"{USER}:{PASSWORD.upper()}"),
    "colon twice": basic(f"{USER}::{PASSWORD}"),
    "NUL after": basic(f"{USER}:{PASSWORD}\0"),
    "line feed after": basic(f"{USER}:{PASSWORD}\n"),
    "not ASCII": basic(f"{USER}:pässword"),
    "not encoded": f"Basic {USER}:{PASSWORD}",
    "broken base64": RIGHT[:-1] + "!",
    "base64 without its padding": basic(f"{USER}:{PASSWORD}").rstrip("=")[:-1],
    "base64 with a space inside": RIGHT[:12] + " " + RIGHT[12:],
    "base64 that is not ASCII": "Basic \xff\xfe",
    "two pairs": f"{RIGHT}, {RIGHT}",
    "wrong scheme": RIGHT.replace("Basic", "Bearer"),
    "scheme run together": RIGHT.replace(" ", ""),
    "tab for a space": RIGHT.replace(" ", "\t"),
    "no scheme": RIGHT.removeprefix("Basic "),
    "Digest": f'Digest username="{USER}", realm="stor", response="{PASSWORD}"',
    "8 KB": "Basic " + "A" * 8000,
}


@pytest.mark.parametrize("value", ACCEPTED.values(), ids=ACCEPTED)
def test_the_right_credentials_pass(tmp_path, value):
    rig = Rig(tmp_path)
    assert rig.request("POST", f"/{SHA}", [("Authorization", value)], HELLO).status == 201


@pytest.fixture
def untouched(tmp_path):
    return Rig(tmp_path)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_other_credentials_do_not(untouched, value, method):
    headers = [] if value is None else [("Authorization", value)]
    response = untouched.request(method, f"/{SHA}", headers, HELLO)
    assert_one_line(response, 401)
    assert response.headers["www-authenticate"] == 'Basic realm="stor"'
    assert_nothing_kept(untouched)


def test_reading_needs_no_credentials(tmp_path):
    rig = Rig(tmp_path)
    rig.put(HELLO)
    for headers in ([], [("Authorization", basic("wrong:wrong"))]):
        assert rig.request("GET", f"/{SHA}", headers).status == 200


SMALL, LARGE, LIMIT = 20, 100, 50
STATUS = {"malformed": 412, "unauthorized": 401, "stored": 200, "too large": 413, "no room": 507}


def content(stored, size):
    return (b"stored" if stored else b"new").ljust(size)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """One with room and one without, each with a stored sample on either side of the limit."""
    found = {}
    for full in (False, True):
        path = tmp_path_factory.mktemp("full" if full else "room")
        before = Rig(path)
        for size in (SMALL, LARGE):
            assert before.put(content(True, size)).status == 201
        reserve_bytes = 2**60 if full else 0
        found[full] = Rig(path, max_upload_bytes=LIMIT, reserve_bytes=reserve_bytes)
    return found


@pytest.mark.parametrize("expect", [False, True], ids=["at once", "Expect"])
@pytest.mark.parametrize(
    "facts",
    [set(facts) for n in range(1, 6) for facts in itertools.combinations(STATUS, n)],
    ids=lambda facts: ", ".join(name for name in STATUS if name in facts),
)
def test_the_first_of_all_reasons_is_the_answer(rooms, facts, expect):
    """412 malformed, 401, 200 stored, 413, 507: all of them without a byte of the body."""
    rig = rooms["no room" in facts]
    before = rig.samples()
    body = content("stored" in facts, LARGE if "too large" in facts else SMALL)
    name = "malformed" if "malformed" in facts else Digest.of(body)
    headers = [] if "unauthorized" in facts else [AUTHORIZED]
    headers += [("Expect", "100-continue")] if expect else []
    connection = rig.connect()
    head = request_bytes("POST", f"/{name}", [*headers, ("Content-Length", str(len(body)))])
    connection.send(head)
    (response,) = connection.responses()
    assert response.status == next(STATUS[name] for name in STATUS if name in facts)
    assert response.headers["connection"] == "close"
    assert not connection.continued
    connection.send(body)
    assert len(connection.responses()) == 1
    connection.close()
    assert rig.samples() == before


@pytest.mark.parametrize("fact", ["malformed", "unauthorized", "stored", "no room"])
def test_a_refusal_of_a_request_without_a_body_costs_no_connection(rooms, fact):
    rig = rooms[fact == "no room"]
    rooms[False].put(b"")
    name = {"malformed": "malformed", "stored": Digest.of(b"")}.get(fact, SHA)
    headers = [] if fact == "unauthorized" else [AUTHORIZED]
    connection = rig.connect()
    connection.send(request_bytes("POST", f"/{name}", headers) + request_bytes("GET", "/"))
    first, second = connection.responses()
    assert first.status == STATUS[fact]
    assert "connection" not in first.headers
    assert second.status == 200
    assert not connection.closed


@pytest.mark.parametrize("length", [10**15, 10**18, 2**63 - 1, 2**63, 2**64, 10**30, 10**100])
def test_more_than_any_disk_has_is_no_room(untouched, length):
    connection = untouched.connect()
    connection.send(upload_head(SHA, ("Content-Length", str(length))))
    (response,) = connection.responses()
    assert_one_line(response, 507)
    connection.close()
    assert_nothing_kept(untouched)


def test_the_reserve_is_not_written_to_by_chunks_either(tmp_path):
    rig = Rig(tmp_path, reserve_bytes=2**60)
    connection = rig.connect()
    connection.send(upload_head(SHA, CHUNKED))
    (response,) = connection.responses()
    assert_one_line(response, 507)
    connection.close()
    assert_nothing_kept(rig)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("target", ["/x", f"/{SHA[:63]}", f"/{SHA}0", f"/{SHA}%0A", "/.."])
def test_storing_under_a_malformed_sha_is_412(untouched, target, method):
    """Also for those who may not store at all."""
    for headers in ([AUTHORIZED], []):
        response = untouched.request(method, target, headers, HELLO)
        assert_one_line(response, 412)
        assert response.text.startswith("malformed sha")
    assert_nothing_kept(untouched)
