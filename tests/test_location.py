"""Where a digest was last seen: remembered here, shared by way of memcached, and only a hint."""

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheIllegalInputError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownCommandError,
    MemcacheUnknownError,
)
from twisted.internet.defer import CancelledError, ensureDeferred, fail
from twisted.internet.task import Clock

from stor.digest import Digest
from stor.location import (
    LIFETIME_SECONDS,
    REST_SECONDS,
    S3,
    WAIT_SECONDS,
    Locations,
    Memcached,
    mirror_place,
)
from stor.threads import Busy
from tests.conformance import result_of, start
from tests.support.memcached import MemoryClient
from tests.support.pools import HeldPool, InlinePool

HERE = mirror_place("host", ["/mnt/a", "/mnt/b"])
THERE = mirror_place("host", ["/mnt/c"])
PLACES = (HERE, THERE, S3)

DIGEST = Digest.of(b"sample")
KEY = f"stor:2:{DIGEST}"
VALUE = b"2:host:/mnt/a,/mnt/b"


def digests(count):
    return [Digest.of(str(number).encode()) for number in range(count)]


class CrowdedPool(InlinePool):
    """Refuses all work as long as it is `crowded`."""

    crowded = True

    def run(self, function, *args):
        return fail(Busy("crowded")) if self.crowded else super().run(function, *args)


@attrs.define
class Rig:
    """Locations over one memcached, whose thread works when the test says so."""

    client: MemoryClient = attrs.Factory(MemoryClient)
    worker: object = attrs.Factory(HeldPool)
    clock: Clock = attrs.Factory(Clock)
    recent_limit: int = 1000
    locations: Locations = None

    def __attrs_post_init__(self):
        server = Memcached("cache:11211", self.client, self.worker, self.clock)
        self.locations = Locations(PLACES, [server], self.clock, self.recent_limit)

    def where(self, digest=DIGEST):
        """Look the digest up and do what that takes."""
        found = start(self.locations.where(digest))
        self.worker.release()
        (place,) = found
        return place

    def hangs(self):
        """Look something up while memcached is silent."""
        found = start(self.locations.where(Digest.of(b"another")))
        self.clock.advance(WAIT_SECONDS)
        assert found == [None]


def another(rig, **changes):
    """Another process, with the same memcached."""
    return Rig(client=MemoryClient(rig.client.values), **changes)


# What this process remembers.


def test_what_is_remembered_is_known_at_once_and_takes_no_thread():
    rig = Rig()
    rig.locations.remember(DIGEST, HERE)
    rig.worker.held.clear()
    assert result_of(rig.locations.where(DIGEST)) == HERE
    assert not rig.worker.held


def test_without_memcached_it_remembers_all_the_same():
    locations = Locations(PLACES, [], Clock())
    assert result_of(locations.where(DIGEST)) is None
    locations.remember(DIGEST, THERE)
    assert result_of(locations.where(DIGEST)) == THERE
    locations.forget(DIGEST, THERE)
    assert result_of(locations.where(DIGEST)) is None


def test_the_least_recently_used_are_the_first_to_go():
    locations = Locations(PLACES, [], Clock(), recent_limit=3)
    a, b, c, d, e = digests(5)
    for digest in (a, b, c):
        locations.remember(digest, HERE)
    assert result_of(locations.where(a)) == HERE  # which makes b the oldest
    locations.remember(d, HERE)
    locations.remember(c, HERE)
    assert result_of(locations.where(a)) == HERE  # which makes d the oldest
    locations.remember(e, HERE)
    found = [result_of(locations.where(digest)) for digest in (a, b, c, d, e)]
    assert found == [HERE, None, HERE, None, HERE]


def test_a_lookup_in_vain_takes_no_room():
    rig = Rig(recent_limit=1)
    rig.locations.remember(DIGEST, HERE)
    assert rig.where(digests(1)[0]) is None
    assert result_of(rig.locations.where(DIGEST)) == HERE
    assert rig.client.calls == [("set", KEY), ("get", f"stor:2:{digests(1)[0]}")]


def test_only_places_that_there_are_can_be_remembered():
    with pytest.raises(KeyError):
        Rig().locations.remember(DIGEST, "host:/mnt/unknown")


# What others have remembered.


def test_what_one_process_remembers_another_finds():
    first = Rig(worker=InlinePool())
    first.locations.remember(DIGEST, HERE)
    second = another(first)
    assert second.where() == HERE
    # From now on without asking.
    assert result_of(second.locations.where(DIGEST)) == HERE


@pytest.mark.parametrize(
    ("place", "value"), [(HERE, VALUE), (THERE, b"2:host:/mnt/c"), (S3, b"2:s3")]
)
def test_keys_and_values_are_as_documented_and_do_not_stay_for_ever(place, value):
    rig = Rig(worker=InlinePool())
    rig.locations.remember(DIGEST, place)
    assert rig.client.values == {KEY: value}
    # memcached takes a longer time for a date.
    assert rig.client.lifetimes == {KEY: LIFETIME_SECONDS}
    assert LIFETIME_SECONDS <= 60 * 60 * 24 * 30


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"2:", b"2", b"\0", b"\xff" * 100, b"x" * 1024 * 1024),
        *(VALUE + b"\n", b" " + VALUE, VALUE.upper(), VALUE[:-1], VALUE.removeprefix(b"2:")),
        *(b"1:host:/mnt/a,/mnt/b", b"2:other:/mnt/a,/mnt/b", b"2:host:/mnt/b,/mnt/a"),
        *(b"2:host:/mnt/a", b"/mnt/a/AA/BB/CC/DD.dat", b"2:S3"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_value_that_means_no_place_of_this_process_is_as_good_as_none(value):
    rig = Rig(client=MemoryClient({KEY: value}))
    assert rig.where() is None
    # It did answer, so it goes on being asked, and is put right.
    rig.locations.remember(DIGEST, HERE)
    rig.worker.release()
    assert rig.client.values == {KEY: VALUE}


def test_a_place_with_odd_bytes_in_its_paths_is_a_place():
    odd = mirror_place("host", ["/mnt/\udcff", "/mnt/\ud800 ,:\n"])
    values = {}
    for _ in range(2):
        client = MemoryClient(values)
        server = Memcached("cache", client, InlinePool(), Clock())
        locations = Locations([odd], [server], Clock())
        found = result_of(locations.where(DIGEST))
        locations.remember(DIGEST, odd)
    assert found == odd


def test_a_place_is_written_once():
    rig = Rig(worker=InlinePool())
    for _ in range(3):
        rig.locations.remember(DIGEST, HERE)
    second = another(rig)
    assert second.where() == HERE
    second.locations.remember(DIGEST, HERE)
    second.worker.release()
    assert [name for name, _ in rig.client.calls + second.client.calls] == ["set", "get"]
    # Until it is another one.
    second.locations.remember(DIGEST, THERE)
    second.worker.release()
    assert second.client.values == {KEY: b"2:host:/mnt/c"}


@pytest.mark.parametrize(("forgotten", "left"), [(HERE, None), (THERE, HERE)])
def test_a_place_is_forgotten_unless_another_one_is_known(forgotten, left):
    rig = Rig(worker=InlinePool())
    rig.locations.remember(DIGEST, HERE)
    rig.locations.forget(DIGEST, forgotten)
    assert result_of(rig.locations.where(DIGEST)) == left
    assert another(rig).where() == left


def test_lookups_of_one_digest_at_once_are_one_question():
    rig = Rig(client=MemoryClient({KEY: VALUE}))
    found = [start(rig.locations.where(DIGEST)) for _ in range(3)]
    assert found == [[], [], []]
    rig.worker.release()
    assert found == [[HERE]] * 3
    assert rig.client.calls == [("get", KEY)]


@pytest.mark.parametrize("impatient", [0, 1])
def test_a_lookup_that_is_cancelled_takes_no_other_along(impatient):
    rig = Rig(client=MemoryClient({KEY: VALUE}))
    lookups = [ensureDeferred(rig.locations.where(DIGEST)) for _ in range(2)]
    found = [[], []]
    for lookup, outcomes in zip(lookups, found, strict=True):
        lookup.addBoth(outcomes.append)
    lookups[impatient].cancel()
    rig.worker.release()
    assert found[impatient][0].check(CancelledError)
    assert found[1 - impatient] == [HERE]
    assert rig.where() == HERE


def test_what_comes_to_be_known_during_a_question_is_newer_than_its_answer():
    rig = Rig(client=MemoryClient({KEY: VALUE}))
    found = start(rig.locations.where(DIGEST))
    rig.locations.remember(DIGEST, THERE)
    rig.worker.release()
    assert found == [THERE]
    assert rig.where() == THERE


# A memcached that fails.


def test_a_lookup_waits_50_ms_at_most():
    rig = Rig(client=MemoryClient({KEY: VALUE}))
    found = start(rig.locations.where(DIGEST))
    assert WAIT_SECONDS == 0.05
    rig.clock.advance(WAIT_SECONDS * 0.99)
    assert found == []
    rig.clock.advance(WAIT_SECONDS * 0.02)
    assert found == [None]
    # The answer that comes too late is nobody's.
    rig.worker.release()
    assert found == [None]


def test_a_server_that_hangs_costs_one_lookup_once():
    rig = Rig()
    rig.hangs()
    questions = len(rig.worker.held)
    rig.clock.advance(REST_SECONDS * 0.99)
    for digest in digests(10):
        assert result_of(rig.locations.where(digest)) is None
        rig.locations.remember(digest, HERE)
        rig.locations.forget(digest, HERE)
    assert len(rig.worker.held) == questions
    # Then it is asked again, once, and nobody waits for the answer.
    for _ in range(10):
        rig.clock.advance(REST_SECONDS)
        assert result_of(rig.locations.where(DIGEST)) is None
        assert len(rig.worker.held) == questions + 1


def test_an_answer_that_comes_late_ends_the_rest():
    """As it may be this process that was slow."""
    rig = Rig(client=MemoryClient({KEY: VALUE}))
    rig.hangs()
    rig.worker.release()
    assert rig.where() == HERE


def test_a_server_that_fails_again_rests_again():
    rig = Rig(client=MemoryClient({KEY: VALUE}, errors=[OSError()] * 3))
    assert rig.where() is None
    rig.clock.advance(REST_SECONDS)
    assert rig.where() is None  # asks, and the third error is the answer
    rig.clock.advance(REST_SECONDS * 0.99)
    assert rig.where() is None
    assert len(rig.client.calls) == 3
    rig.clock.advance(REST_SECONDS * 0.02)
    assert rig.where() is None
    assert rig.where() == HERE


def test_what_waits_for_a_server_that_failed_is_not_done():
    """Or each question in the queue would take its own time-out in the thread."""
    rig = Rig(client=MemoryClient(errors=[TimeoutError()]))
    for digest in digests(10):
        rig.locations.remember(digest, HERE)
    rig.worker.release(5)
    rig.clock.advance(REST_SECONDS * 0.9)
    rig.worker.release()
    assert len(rig.client.calls) == 1
    # Nor does it make the rest longer.
    rig.clock.advance(REST_SECONDS * 0.2)
    rig.where()
    assert len(rig.client.calls) == 2


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(), OSError(113, "no route"), ValueError("3x"), KeyError("k")]
)
@pytest.mark.parametrize("action", ["where", "remember", "forget"])
def test_an_error_is_tried_again_on_a_new_connection_and_then_the_server_is_left_alone(
    action, error
):
    actions = {
        "where": lambda rig: rig.where(),
        "remember": lambda rig: rig.locations.remember(DIGEST, HERE),
        "forget": lambda rig: rig.locations.forget(DIGEST, HERE),
    }
    for errors in (1, 2):
        rig = Rig(client=MemoryClient({KEY: VALUE}, [error] * errors))
        actions[action](rig)
        rig.worker.release()
        calls = len(rig.client.calls)
        result_of(rig.locations.where(DIGEST)) if errors == 2 else rig.where(digests(1)[0])
        asked_again = len(rig.client.calls) + len(rig.worker.held) > calls
        assert asked_again == (errors == 1)


OUT_OF_MEMORY = MemcacheServerError(b"out of memory storing object")


@pytest.mark.parametrize(
    ("error", "asked_again"),
    [
        (OUT_OF_MEMORY, True),
        (MemcacheServerError(b"object too large for cache"), True),
        (MemcacheClientError(b"bad data chunk"), True),
        (MemcacheIllegalInputError(b"key"), True),
        (MemcacheUnexpectedCloseError(), False),
        (MemcacheUnknownCommandError(b"get"), False),
        (MemcacheUnknownError(b"3x"), False),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("action", ["where", "remember", "forget"])
def test_what_a_server_says_of_one_key_is_said_of_no_other(action, error, asked_again):
    rig = Rig(client=MemoryClient({KEY: VALUE}, [error] * 2))
    if action == "where":
        assert rig.where() is None
    else:
        getattr(rig.locations, action)(DIGEST, HERE)
        rig.worker.release()
    rig.client.errors.clear()
    another = digests(1)[0]
    rig.client.values[f"stor:2:{another}"] = VALUE
    assert (rig.where(another) == HERE) == asked_again


def test_a_server_that_refuses_a_key_after_its_rest_answers():
    rig = Rig(client=MemoryClient({KEY: VALUE}, errors=[OSError(), OSError(), OUT_OF_MEMORY]))
    assert rig.where() is None
    rig.clock.advance(REST_SECONDS)
    assert rig.where() is None  # nobody waits for this question, which is refused
    assert rig.where() == HERE


def test_a_server_with_too_much_to_do_is_asked_again():
    """It answers all the time; only this question has no room."""
    rig = Rig(client=MemoryClient({KEY: VALUE}), worker=CrowdedPool())
    rig.locations.remember(digests(1)[0], HERE)
    assert result_of(rig.locations.where(DIGEST)) is None
    rig.worker.crowded = False
    assert result_of(rig.locations.where(DIGEST)) == HERE


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["where", "remember", "forget"]),
            st.sampled_from(digests(3)),
            st.sampled_from(PLACES),
            st.sampled_from([None, OSError(), TimeoutError(), ValueError()]),
            st.sampled_from([0, WAIT_SECONDS, REST_SECONDS]),
        ),
        max_size=40,
    )
)
def test_whatever_memcached_does_nothing_fails_and_nothing_takes_longer(steps):
    """And what this process knows by itself is what it was told last."""
    rig = Rig(recent_limit=2)
    known = {}
    for action, digest, place, error, seconds in steps:
        if error:
            rig.client.errors.append(error)
        if action == "remember":
            rig.locations.remember(digest, place)
            known.pop(digest, None)
            known[digest] = place
        elif action == "forget":
            rig.locations.forget(digest, place)
            if known.get(digest) == place:
                del known[digest]
        else:
            found = start(rig.locations.where(digest))
            if seconds:
                rig.clock.advance(WAIT_SECONDS)
            else:
                rig.worker.release()
            (answer,) = found
            assert answer in {None, *PLACES}
            assert digest not in known or answer == known[digest]
            if answer:
                known.pop(digest, None)
                known[digest] = answer
        rig.clock.advance(seconds)
        while len(known) > 2:
            del known[next(iter(known))]


# Several servers.


def several(names, clock=None, worker=InlinePool):
    """Locations over servers with these names, and their clients by name."""
    clock = clock or Clock()
    clients = {name: MemoryClient() for name in names}
    servers = [Memcached(name, client, worker(), clock) for name, client in clients.items()]
    return Locations(PLACES, servers, clock), clients


def shares(names, count=3000):
    """Which keys each server has."""
    locations, clients = several(names)
    for digest in digests(count):
        locations.remember(digest, HERE)
    return {name: set(client.values) for name, client in clients.items()}


def test_each_server_has_its_share_whatever_order_they_stand_in():
    found = shares("abc")
    assert sum(map(len, found.values())) == 3000
    assert all(800 < len(keys) < 1200 for keys in found.values())
    assert shares("cab") == found


def test_a_server_less_moves_only_the_keys_that_it_had():
    before, after = shares("abc"), shares("ab")
    for name in "ab":
        assert before[name] < after[name]
        assert after[name] - before[name] <= before["c"]


def test_a_server_that_fails_takes_no_other_along():
    locations, clients = several("abc")
    for digest in digests(300):
        locations.remember(digest, HERE)
    clock = Clock()
    servers = [Memcached(name, clients[name], InlinePool(), clock) for name in "abc"]
    clients["b"].errors = [ConnectionRefusedError()] * 1000
    fresh = Locations(PLACES, servers, clock)
    found = Counter(result_of(fresh.where(digest)) for digest in digests(300))
    assert found == {HERE: 300 - len(clients["b"].values), None: len(clients["b"].values)}
    assert len(clients["b"].errors) == 998


# The rest.


def test_lookups_are_counted_and_timed():
    rig = Rig(client=MemoryClient({KEY: VALUE}))
    counts = []

    def note():
        counts.append((rig.locations.hits, rig.locations.misses, round(rig.locations.seconds, 3)))

    note()
    found = start(rig.locations.where(DIGEST))
    rig.clock.advance(0.02)
    rig.worker.release()
    assert found == [HERE]
    note()
    rig.where()
    note()
    rig.hangs()
    note()
    rig.where(digests(1)[0])
    note()
    assert counts == [(0, 0, 0), (1, 0, 0.02), (2, 0, 0.02), (2, 1, 0.07), (2, 2, 0.07)]


def test_the_end_closes_the_connections_and_ends_the_threads():
    stopped = []

    class Stopping(InlinePool):
        def stop(self):
            stopped.append(self)

    locations, clients = several("ab", worker=Stopping)
    locations.stop()
    assert len(stopped) == 2
    assert all(client.closed for client in clients.values())
