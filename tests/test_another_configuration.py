"""Another configuration comes into force: what has begun ends under the one that it began with."""

import pytest

from stor.http.auth import Attempts, Authenticator
from stor.http.proxies import Proxies
from tests.conformance import sample
from tests.support.http import no_bug_logged
from tests.support.rig import AUTHORIZATION, Rig, digest_of, request_bytes

SMALL, OTHER, LARGE = sample(1000), sample(1001), sample(3 * 1024 * 1024)

PUT = [("Authorization", AUTHORIZATION)]
AS_TEXT = [("Content-Type", "text/plain")]

#: Each is a request, what becomes of it before the change, and the change and what that makes of
#: the same request behind it.
UNDER_WAY = {
    "a size that is too large now": ("POST", SMALL, PUT, 201, {"max_upload_bytes": 10}, 413),
    "a user who is gone now": ("POST", SMALL, PUT, 201, "others", 401),
    "an upload where none may begin now": ("POST", SMALL, PUT, 201, {"max_uploads": 0}, 503),
    "a list of one who may not read now": ("list", SMALL, AS_TEXT, 200, {"read_auth": True}, 401),
    "a list that is too long now": ("list", SMALL, AS_TEXT, 200, "short lists", 413),
}


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def changes(rig, what):
    if what == "others":
        return {"authenticator": Authenticator(["other:password"], Attempts(rig.clock))}
    if what == "short lists":
        return {"lists": type(rig.budgets.lists)(max_shas=1)}
    return what


@pytest.mark.parametrize("case", UNDER_WAY)
def test_what_has_begun_ends_as_it_began_and_the_next_goes_by_the_new_one(tmp_path, case):
    method, content, headers, before, change, after = UNDER_WAY[case]
    rig = Rig(tmp_path, (2,))
    body, path = content, f"/{digest_of(content)}"
    if method == "list":
        method, path = "POST", "/missing"
        body = b"".join(f"{digest_of(bytes([n]))}\n".encode() for n in range(3))
    asked = request_bytes(method, path, headers, body)
    connection = rig.connect()
    connection.send(asked[:-10])
    rig.reconfigure(**changes(rig, change))
    connection.send(asked[-10:])
    (first,) = connection.responses([method])
    assert first.status == before
    if before == 201:  # that one is stored now, and 200 whatever its size
        body = OTHER
        path = f"/{digest_of(OTHER)}"
    assert rig.request(method, path, headers, body).status == after


def test_a_sample_that_is_being_sent_is_sent_whole_to_one_who_may_not_read_now(tmp_path):
    rig = Rig(tmp_path, (2,))
    assert rig.put(LARGE).status == 201
    connection = rig.connect()
    connection.taking = False
    connection.send(request_bytes("GET", f"/{digest_of(LARGE)}"))
    rig.reconfigure(read_auth=True)
    connection.send(request_bytes("GET", f"/{digest_of(LARGE)}"))
    connection.taking = True
    connection.settle()
    first, second = connection.responses(["GET", "GET"])
    assert (first.status, first.body == LARGE) == (200, True)
    assert second.status == 401


def test_a_client_is_known_by_the_proxies_that_were_trusted_when_it_asked(tmp_path):
    rig = Rig(tmp_path, (2,))
    headers = [("X-Forwarded-For", "203.0.113.7"), *PUT]
    asked = request_bytes("POST", f"/{digest_of(SMALL)}", headers, SMALL)
    rig.reconfigure(proxies=Proxies(("192.0.2.0/24",)))
    connection = rig.connect()
    connection.send(asked[:-10])
    rig.reconfigure(proxies=Proxies())
    connection.send(asked[-10:])
    assert connection.responses()[0].status == 201
    assert rig.get(SMALL, headers[:1]).status == 200
    assert [served.peer for served in rig.served] == ["203.0.113.7", "192.0.2.1"]
