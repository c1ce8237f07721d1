"""Who may store, and with `read_auth` read: from the configuration, and from an htpasswd file."""

import base64
import os

import bcrypt
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from stor.errors import Unauthorized
from stor.htpasswd import HtpasswdError, read_htpasswd
from stor.http.accounts import ANSWER_SECONDS, LOOK_SECONDS, REMEMBERED_SECONDS, Accounts
from stor.http.auth import Authenticator
from stor.threads import Busy
from tests.support.http import AUTHORIZED, assert_one_line, no_bug_logged
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import Rig


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def hashed(password, prefix=b"2b"):
    """As cheap as bcrypt gets."""
    return bcrypt.hashpw(password, bcrypt.gensalt(4)).replace(b"$2b$", b"$" + prefix + b"$", 1)


def basic(credentials):
    return b"Basic " + base64.b64encode(credentials)


def outcome(authenticator, credentials):
    """What becomes of a request: "passed", "refused", or `None` while that is not known."""
    found = []
    checking = Deferred.fromCoroutine(authenticator.check(basic(credentials)))
    checking.addCallbacks(lambda _: found.append("passed"), found.append)
    if not found or found == ["passed"]:
        return found[0] if found else None
    return "refused" if found[0].check(Unauthorized) else found[0].value


class TestConfigured:
    @pytest.mark.parametrize(
        ("credentials", "expected"),
        [
            (b"anna:one", "passed"),
            (b"anna:two", "passed"),
            (b"bert:three:with::colons:", "passed"),
            ("zoë:пароль".encode(), "passed"),
            (b"anna:three", "refused"),
            (b"bert:three", "refused"),
            (b"bert:three:with::colons", "refused"),
            (b"bert:one", "refused"),
            (b"anna:", "refused"),
            (b":one", "refused"),
            (b"anna", "refused"),
            (b"anna:one\0", "refused"),
            (b"", "refused"),
        ],
    )
    def test_each_of_a_list(self, credentials, expected):
        known = ["anna:one", "anna:two", "bert:three:with::colons:", "zoë:пароль"]
        assert outcome(Authenticator(known), credentials) == expected

    @pytest.mark.parametrize(
        "authorization",
        [None, b"", b"Basic", b"Basic !!!", b"Bearer YTpi", b"YTpi"],
    )
    def test_what_is_no_basic_authorization(self, authorization):
        checking = Deferred.fromCoroutine(Authenticator(["a:b"]).check(authorization))
        failures = []
        checking.addErrback(failures.append)
        assert failures[0].check(Unauthorized)

    def test_the_scheme_in_either_case(self):
        assert Deferred.fromCoroutine(Authenticator(["a:b"]).check(b"bAsIc YTpi")).called


class Users:
    """An htpasswd file, and an Authenticator that goes by it."""

    def __init__(self, path, hashing=None, looking=None):
        self.path = path
        self.clock = Clock()
        self.write(anna=hashed(b"one"), bert=hashed(b"two", b"2y"), carl=hashed(b"3", b"2a"))
        self.hashing = CountingPool(hashing or InlinePool())
        self.looking = CountingPool(looking or InlinePool())
        known = read_htpasswd(str(path))
        accounts = Accounts(known, self.hashing, self.looking, self.clock)
        self.authenticator = Authenticator([], accounts)

    def write(self, **users):
        """Replace the file as a careful editor does."""
        new = self.path.with_suffix(".new")
        new.write_bytes(b"".join(b"%b:%b\n" % (u.encode(), h) for u, h in users.items()))
        os.replace(new, self.path)

    def outcome(self, credentials):
        return outcome(self.authenticator, credentials)


class CountingPool:
    """Counts what another worker is given."""

    def __init__(self, inner):
        self.inner, self.jobs = inner, 0

    def run(self, function, *args):
        self.jobs += 1
        return self.inner.run(function, *args)


@pytest.fixture
def users(tmp_path):
    return Users(tmp_path / "users")


class TestUsersOfAFile:
    @pytest.mark.parametrize(
        ("credentials", "expected"),
        [
            (b"anna:one", "passed"),
            (b"bert:two", "passed"),
            (b"carl:3", "passed"),
            (b"anna:two", "refused"),
            (b"dora:one", "refused"),
            (b"anna:", "refused"),
            (b"anna:one\0", "refused"),
            (b"anna:" + b"x" * 1000, "refused"),
            (b":one", "refused"),
        ],
    )
    def test_each_and_nobody_else(self, users, credentials, expected):
        assert users.outcome(credentials) == expected
        assert users.hashing.jobs == 1, "one that nobody knows takes as long"

    def test_a_long_password_counts_as_far_as_bcrypt_looks(self, users):
        users.write(anna=hashed(b"x" * 72))
        users.clock.advance(LOOK_SECONDS)
        assert users.outcome(b"anna:" + b"x" * 100) == "passed"
        assert users.outcome(b"anna:" + b"x" * 71) == "refused"

    def test_a_verified_password_is_not_hashed_again_for_a_while(self, users):
        for _ in range(5):
            assert users.outcome(b"anna:one") == "passed"
        assert users.hashing.jobs == 1
        users.clock.advance(REMEMBERED_SECONDS)
        assert users.outcome(b"anna:one") == "passed"
        assert users.hashing.jobs == 2

    def test_a_wrong_password_is_hashed_every_time(self, users):
        assert users.outcome(b"anna:one") == "passed"
        for _ in range(3):
            assert users.outcome(b"anna:wrong") == "refused"
        assert users.hashing.jobs == 4

    def test_no_password_is_kept(self, users):
        users.outcome(b"anna:a password that is not to be found")
        users.outcome(b"anna:one")
        kept = repr(vars(users.authenticator)) + repr(vars(users.authenticator._accounts))
        assert "a password" not in kept
        assert base64.b64encode(b"anna:one").decode() not in kept

    def test_many_who_ask_the_same_wait_for_one_hash(self, tmp_path):
        held = HeldPool()
        users = Users(tmp_path / "users", hashing=held)
        passed = []
        for _ in range(100):
            checking = users.authenticator.check(basic(b"anna:one"))
            Deferred.fromCoroutine(checking).addCallback(passed.append)
        assert (users.hashing.jobs, len(passed)) == (1, 0)
        held.release()
        assert (users.hashing.jobs, len(passed)) == (1, 100)

    def test_too_many_waiting_is_said(self, tmp_path):
        class Full:
            def run(self, function, *args):
                raise_busy = Deferred()
                raise_busy.errback(Busy("passwords: 10 operations are waiting"))
                return raise_busy

        users = Users(tmp_path / "users", hashing=Full())
        assert isinstance(users.outcome(b"anna:one"), Busy)


class TestAFileThatChanges:
    def test_is_read_again_after_a_second(self, users):
        assert users.outcome(b"anna:one") == "passed"
        users.write(anna=hashed(b"new"), dora=hashed(b"four"))
        users.clock.advance(LOOK_SECONDS)
        assert users.outcome(b"anna:one") == "refused", "a remembered one is forgotten"
        assert users.outcome(b"anna:new") == "passed"
        assert users.outcome(b"bert:two") == "refused"
        assert users.outcome(b"dora:four") == "passed"

    def test_in_place(self, users):
        content = users.path.read_bytes()
        users.path.write_bytes(content + b"dora:" + hashed(b"four") + b"\n")
        users.clock.advance(LOOK_SECONDS)
        assert users.outcome(b"dora:four") == "passed"

    def test_is_looked_at_once_a_second_at_most(self, users):
        for _ in range(50):
            users.clock.advance(LOOK_SECONDS / 10)
            users.outcome(b"anna:one")
        assert 4 <= users.looking.jobs <= 5

    @pytest.mark.parametrize("damage", [b"", b"anna:half a ha", b"anna:{SHA}xyz\n", None])
    def test_with_a_fault_changes_nothing(self, users, damage):
        good = users.path.read_bytes()
        users.path.unlink()
        if damage is not None:
            users.path.write_bytes(damage)
        for _ in range(3):
            users.clock.advance(LOOK_SECONDS)
            assert users.outcome(b"anna:one") == "passed"
        users.path.write_bytes(good + b"dora:" + hashed(b"four"))
        users.clock.advance(LOOK_SECONDS)
        assert users.outcome(b"dora:four") == "passed"

    def test_that_hangs_holds_up_a_request_for_a_while(self, tmp_path):
        held = HeldPool()
        users = Users(tmp_path / "users", looking=held)
        users.clock.advance(LOOK_SECONDS)
        passed = []
        for _ in range(3):
            checking = users.authenticator.check(basic(b"anna:one"))
            Deferred.fromCoroutine(checking).addCallback(passed.append)
        users.clock.advance(ANSWER_SECONDS)
        assert len(passed) == 3
        assert users.outcome(b"anna:one") == "passed", "at once: it is known to hang"
        assert users.looking.jobs == 1
        users.write(dora=hashed(b"four"))
        held.release()
        checking = users.authenticator.check(basic(b"dora:four"))
        Deferred.fromCoroutine(checking).addCallback(passed.append)
        held.release()
        assert len(passed) == 4


GOOD = b"anna:" + hashed(b"x") + b"\n"


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"", ["expected at least one user, found none"]),
        (b"\n# nobody\n", ["expected at least one user, found none"]),
        (GOOD * 2, ["line 2: this user stands twice"]),
        (
            GOOD + b"\nbert:$apr1$abc$defghijklmnop\ncarl:{SHA}abc\ndora:plain\nemil\n",
            [
                f"line {n}: expected a bcrypt hash, as htpasswd -B writes it, found another kind"
                for n in (3, 4, 5, 6)
            ],
        ),
        (b":" + hashed(b"x"), ["line 1: expected user:hash"]),
        (
            GOOD.replace(b"$04$", b"$31$"),
            ["line 1: expected a cost from 4 up to 15, found 31"],
        ),
    ],
    ids=["empty", "comments", "twice", "other kinds", "no user", "cost"],
)
def test_a_fault_has_its_line_and_shows_no_hash(tmp_path, content, faults):
    path = tmp_path / "users"
    path.write_bytes(content)
    with pytest.raises(HtpasswdError) as caught:
        read_htpasswd(str(path))
    assert caught.value.faults == faults


def test_comments_and_empty_lines_are_none(tmp_path):
    path = tmp_path / "users"
    path.write_bytes(b"# who may store\r\n\r\n" + GOOD.replace(b"\n", b"\r\n"))
    assert list(read_htpasswd(str(path)).hashes) == [b"anna"]


class TestReading:
    CONTENT = b"a sample"

    @pytest.fixture
    def rig(self, tmp_path):
        rig = Rig(tmp_path)
        rig.api.read_auth = True
        assert rig.put(self.CONTENT).status == 201
        return rig

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "headers", [[], [("Authorization", "Basic bm86bm8=")]], ids=["none", "wrong"]
    )
    @pytest.mark.parametrize(
        "more",
        [[], [("Range", "bytes=0-1")], [("If-None-Match", "*")]],
        ids=["plain", "range", "condition"],
    )
    def test_of_a_sample_needs_credentials(self, rig, method, headers, more):
        response = rig.get(self.CONTENT, [*headers, *more], method)
        assert response.status == 401
        assert response.headers["www-authenticate"] == 'Basic realm="stor"'
        assert "etag" not in response.headers
        if method == "GET":
            assert_one_line(response, 401)

    def test_says_nothing_of_what_there_is(self, rig):
        assert rig.get("0" * 64).status == 401

    def test_with_them_is_as_ever_but_for_caches_that_many_share(self, rig):
        response = rig.get(self.CONTENT, [AUTHORIZED])
        assert (response.status, response.body) == (200, self.CONTENT)
        assert response.headers["cache-control"] == "private, max-age=31536000, immutable"

    def test_of_what_is_in_memory_needs_them_too(self, tmp_path):
        rig = Rig(tmp_path, cache_bytes=1_000_000)
        rig.put(self.CONTENT)
        for needed in (False, True, False):
            rig.api.read_auth = needed
            for _ in range(2):
                response = rig.get(self.CONTENT)
                assert response.status == (401 if needed else 200)
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"

    @pytest.mark.parametrize("path", ["/", "/status"])
    def test_of_what_is_no_sample_is_open(self, rig, path):
        assert rig.request("GET", path).status == 200

    def test_a_malformed_sha_is_none(self, rig):
        assert rig.get("nosha").status == 404
