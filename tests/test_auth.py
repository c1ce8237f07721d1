"""Who may store, and with `read_auth` read: from the configuration, and from an htpasswd file."""

import base64
import os

import bcrypt
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from stor.errors import Unauthorized, Unavailable
from stor.htpasswd import HtpasswdError, read_htpasswd
from stor.http.auth import (
    ADDRESSES,
    ANSWER_SECONDS,
    FORGOTTEN_SECONDS,
    FREE_FAILURES,
    LONGEST_DELAY_SECONDS,
    LOOK_SECONDS,
    REMEMBERED_SECONDS,
    WAITING_CHECKS,
    Accounts,
    Attempts,
    Authenticator,
)
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


HERE, THERE = "192.0.2.1", "192.0.2.2"


def begin(authenticator, credentials, address=HERE):
    """A list of what becomes of a request: "passed", "refused" or "put off", once that is known."""
    found = []
    words = {Unauthorized: "refused", Unavailable: "put off"}
    checking = Deferred.fromCoroutine(authenticator.check(basic(credentials), address))
    checking.addCallbacks(
        lambda _: found.append("passed"),
        lambda failure: found.append(words.get(failure.type, failure.value)),
    )
    return found


def outcome(authenticator, credentials, address=HERE):
    """What becomes of a request at once, `None` while that is not known."""
    found = begin(authenticator, credentials, address)
    return found[0] if found else None


def configured(*known):
    return Authenticator(known, Attempts(Clock()))


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
        assert outcome(configured(*known), credentials) == expected

    @pytest.mark.parametrize(
        "authorization",
        [None, b"", b"Basic", b"Basic !!!", b"Bearer YTpi", b"YTpi"],
    )
    def test_what_is_no_basic_authorization(self, authorization):
        checking = Deferred.fromCoroutine(configured("a:b").check(authorization, HERE))
        failures = []
        checking.addErrback(failures.append)
        assert failures[0].check(Unauthorized)

    def test_the_scheme_in_either_case(self):
        assert Deferred.fromCoroutine(configured("a:b").check(b"bAsIc YTpi", HERE)).called


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
        self.attempts = Attempts(self.clock)
        self.authenticator = Authenticator([], self.attempts, accounts)

    def write(self, **users):
        """Replace the file as a careful editor does."""
        new = self.path.with_suffix(".new")
        new.write_bytes(b"".join(b"%b:%b\n" % (u.encode(), h) for u, h in users.items()))
        os.replace(new, self.path)

    def begin(self, credentials, address=HERE):
        return begin(self.authenticator, credentials, address)

    def outcome(self, credentials, address=HERE):
        return outcome(self.authenticator, credentials, address)


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
            checking = users.authenticator.check(basic(b"anna:one"), HERE)
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


class TestGuesses:
    """Those of one address cost it time, and nobody else."""

    def wrong(self, n):
        return b"anna:wrong %d" % n

    def seconds_until(self, users, found):
        """How long an answer takes."""
        begun = users.clock.seconds()
        while not found:
            soonest = min(call.getTime() for call in users.clock.getDelayedCalls())
            users.clock.advance(soonest - users.clock.seconds())
        return round(users.clock.seconds() - begun, 3)

    def test_each_wrong_password_is_answered_later_up_to_a_bound(self, users):
        delays = []
        for n in range(12):
            found = users.begin(self.wrong(n))
            delays.append(self.seconds_until(users, found))
            assert found == ["refused"]
        assert delays == [0, 0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2]
        users.clock.advance(FORGOTTEN_SECONDS)
        assert users.outcome(self.wrong(0)) == "refused"

    def test_guesses_at_once_wait_for_each_other(self, users):
        waiting = [users.begin(self.wrong(n)) for n in range(FREE_FAILURES + 10)]
        users.clock.pump([0.1] * 60)
        # After 0.1, 0.2, 0.4, 0.8, 1.6 and 2 s, one after the other.
        assert waiting.count(["refused"]) == FREE_FAILURES + 6

    def test_thirty_guesses_take_most_of_a_minute(self, users):
        seconds = sum(self.seconds_until(users, users.begin(self.wrong(n))) for n in range(30))
        assert seconds > 40

    @pytest.mark.parametrize(
        ("address", "guesser", "slowed"),
        [
            ("192.0.2.1", "192.0.2.1", True),
            ("192.0.2.1", "192.0.2.2", False),
            ("192.0.2.1", "::ffff:192.0.2.1", True),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
            ("2001:db8::1", "2001:db8::2", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("192.0.2.1", "2001:db8::1", False),
            ("-", "-", True),
            ("-", "192.0.2.1", False),
        ],
    )
    def test_whom_guesses_slow_down(self, users, address, guesser, slowed):
        for n in range(20):
            self.seconds_until(users, users.begin(self.wrong(n), guesser))
        assert (users.outcome(b"anna:mistyped", address) is None) == slowed

    def test_right_passwords_elsewhere_never_wait(self, tmp_path):
        held = HeldPool()
        users = Users(tmp_path / "users", hashing=held)
        guesses = [users.begin(self.wrong(n), THERE) for n in range(200)]
        assert len(held.held) == 1, "one at a time"
        found = users.begin(b"anna:one", HERE)
        held.release(2)
        assert found == ["passed"]
        assert guesses.count(["put off"]) == 200 - 1 - WAITING_CHECKS

    def test_a_right_password_where_it_was_right_before_never_waits(self, users):
        assert users.outcome(b"anna:one") == "passed"
        for n in range(50):
            users.begin(self.wrong(n))
        assert users.outcome(b"anna:one") == "passed"
        assert users.outcome(self.wrong(99)) == "put off"

    @pytest.mark.parametrize("address", [HERE, THERE])
    def test_what_is_configured_is_not_guessed_any_quicker(self, address):
        clock = Clock()
        authenticator = Authenticator(["anna:one"], Attempts(clock))
        assert outcome(authenticator, b"anna:one", address) == "passed"
        waiting = [begin(authenticator, self.wrong(n)) for n in range(100)]
        assert outcome(authenticator, b"anna:one", address) == "passed"
        assert waiting.count(["refused"]) == FREE_FAILURES
        # The right one among them is no quicker to be found out than a wrong one.
        assert outcome(authenticator, b"anna:one", "192.0.2.3") == "passed"
        clock.pump([LONGEST_DELAY_SECONDS] * 100)
        assert waiting.count(["refused"]) == FREE_FAILURES + 1 + WAITING_CHECKS

    def test_a_guess_that_waits_says_nothing_before_its_turn(self):
        clock = Clock()
        authenticator = Authenticator(["anna:one"], Attempts(clock))
        for n in range(FREE_FAILURES + 2):
            begin(authenticator, self.wrong(n))
        right = begin(authenticator, b"anna:one")
        assert right == []
        clock.pump([LONGEST_DELAY_SECONDS] * 3)
        assert right == ["passed"]

    def test_many_requests_with_one_wrong_password_are_one_guess(self, users):
        for n in range(FREE_FAILURES):
            users.begin(self.wrong(n))
        waiting = [users.begin(b"anna:old password") for _ in range(100)]
        users.clock.advance(0.1)
        assert waiting == [["refused"]] * 100
        assert users.hashing.jobs == FREE_FAILURES + 1

    def test_a_million_addresses_take_bounded_memory(self):
        clock = Clock()
        attempts = Attempts(clock)
        authenticator = Authenticator(["anna:one"], attempts)
        for n in range(ADDRESSES + 500):
            begin(authenticator, b"anna:wrong", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        assert attempts.remembered == ADDRESSES

    def test_users_that_are_right_leave_nothing_behind(self, users):
        for n in range(100):
            assert users.outcome(b"anna:one", f"192.0.2.{n}") == "passed"
        assert users.attempts.remembered == 0

    def test_a_user_that_nobody_knows_costs_always_the_same(self, users):
        """As hashes may differ in their cost, which would tell known users from others."""
        compared = []

        class Watching(InlinePool):
            def run(self, function, password, hashed):
                compared.append(hashed)
                return super().run(function, password, hashed)

        users.hashing.inner = Watching()
        for n in range(3):
            users.begin(b"nobody:%d" % n, f"192.0.2.{n}")
        assert len(compared) == 3
        assert len(set(compared)) == 1
        for n in range(50):
            users.begin(b"nobody%d:x" % n, f"198.51.100.{n}")
        assert len(set(compared)) == 3, "of all users in turn"


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
            checking = users.authenticator.check(basic(b"anna:one"), HERE)
            Deferred.fromCoroutine(checking).addCallback(passed.append)
        users.clock.advance(ANSWER_SECONDS)
        assert len(passed) == 3
        assert users.outcome(b"anna:one") == "passed", "at once: it is known to hang"
        assert users.looking.jobs == 1
        users.write(dora=hashed(b"four"))
        held.release()
        checking = users.authenticator.check(basic(b"dora:four"), HERE)
        Deferred.fromCoroutine(checking).addCallback(passed.append)
        held.release()
        assert len(passed) == 4


GOOD = b"anna:" + hashed(b"x") + b"\n"


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"", ["expected at least one user, found none"]),
        (b"\n# nobody\n", ["expected at least one user, found none"]),
        (GOOD * 2, ["line 2: duplicate user"]),
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
        rig.reconfigure(read_auth=True)
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
            rig.reconfigure(read_auth=needed)
            for _ in range(2):
                response = rig.get(self.CONTENT)
                assert response.status == (401 if needed else 200)
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"

    @pytest.mark.parametrize("path", ["/", "/status"])
    def test_of_what_is_no_sample_is_open(self, rig, path):
        assert rig.request("GET", path).status == 200

    def test_a_malformed_sha_is_none(self, rig):
        assert rig.get("nosha").status == 404
