"""Uploads, connections and open files: how many at once, and what one too many is told."""

import resource

import attrs
import pytest

from stor.config import parse
from stor.descriptors import needed, raise_limit, shortage
from stor.http.channel import TURNED_AWAY_SECONDS
from stor.http.site import MAX_ENDING, StorSite
from stor.shared import Count, Number
from tests.support.http import (
    assert_nothing_kept,
    assert_one_line,
    assert_stored,
    no_bug_logged,
    upload_head,
)
from tests.support.network import Connection
from tests.support.rig import Rig, digest_of, request_bytes

CONTENTS = [b"sample %d" % n for n in range(5)]


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def begun(rig, content, *headers):
    """An upload without its body."""
    connection = rig.connect()
    connection.send(upload_head(content, ("Content-Length", str(len(content))), *headers))
    return connection


class TestUploads:
    @pytest.fixture
    def rig(self, tmp_path):
        return Rig(tmp_path, max_uploads=2)

    @pytest.mark.parametrize("headers", [[], [("Expect", "100-continue")]], ids=["", "expect"])
    def test_one_too_many_is_told_before_its_body(self, rig, headers):
        running = [begun(rig, content) for content in CONTENTS[:2]]
        refused = begun(rig, CONTENTS[2], *headers)
        (response,) = refused.responses()
        assert_one_line(response, 503)
        assert int(response.headers["retry-after"]) > 0
        assert "max_uploads" in response.text
        assert not refused.continued
        for connection, content in zip(running, CONTENTS, strict=False):
            connection.send(content)
            assert_stored(rig, content, connection.responses()[0])

    @pytest.mark.parametrize("end", ["stored", "wrong body", "gone"])
    def test_each_end_of_an_upload_makes_room(self, rig, end):
        running = [begun(rig, content) for content in CONTENTS[:2]]
        if end == "gone":
            running[0].close()
        else:
            running[0].send(CONTENTS[0] if end == "stored" else bytes(len(CONTENTS[0])))
        assert rig.put(CONTENTS[2]).status == 201
        assert rig.uploads.active == 1
        running[1].close()
        assert rig.uploads.active == 0

    def test_what_needs_no_body_is_answered_as_ever(self, rig):
        assert rig.put(CONTENTS[3]).status == 201
        running = [begun(rig, content) for content in CONTENTS[:2]]
        assert rig.get(CONTENTS[3]).body == CONTENTS[3]
        assert rig.put(CONTENTS[3]).status == 200
        assert rig.put(CONTENTS[4], name="nosha").status == 412
        assert rig.request("POST", f"/{digest_of(CONTENTS[4])}", [], b"").status == 401
        for connection in running:
            connection.close()

    def test_nothing_is_left_of_those_that_were_too_many(self, rig):
        running = [begun(rig, content) for content in CONTENTS[:2]]
        for _ in range(20):
            begun(rig, CONTENTS[2]).send(CONTENTS[2])
        for connection in running:
            connection.close()
        assert_nothing_kept(rig)


def asked(rig, name=None):
    """A connection with the answer to one request, for a sample if it says nothing else."""
    connection = rig.connect()
    connection.send(request_bytes("GET", f"/{digest_of(CONTENTS[0]) if name is None else name}"))
    return connection


class TestConnections:
    """One more than there may be takes the place of the one that has been idle longest."""

    @pytest.fixture
    def rig(self, tmp_path):
        rig = Rig(tmp_path, max_connections=3, cache_bytes=1_000_000)
        rig.put(CONTENTS[0], headers=[("Connection", "close")])
        return rig

    @pytest.fixture
    def busy(self, rig):
        """As many as there may be, all with an upload under way."""
        return [begun(rig, content) for content in CONTENTS[1:4]]

    def test_the_one_that_has_been_idle_longest_makes_room(self, rig):
        connections = [rig.connect() for _ in range(3)]
        # Not in the order in which they came: what counts is when they were last of use.
        connections[0].send(b"\r\n")
        upload = begun(rig, CONTENTS[1])
        connections[1].settle()
        assert [connection.closed for connection in connections] == [False, True, False]
        assert not connections[1].aborted
        assert connections[1].received == b""
        upload.send(CONTENTS[1])
        assert upload.responses()[0].status == 201

    def test_nobody_is_refused_while_one_is_idle(self, rig):
        """As with a client that opens a connection for each file and leaves it behind."""
        connections = [asked(rig) for _ in range(500)]
        assert all(c.responses()[0].body == CONTENTS[0] for c in connections)
        assert len(rig.site.channels) <= 3

    def test_nobody_with_a_request_loses_his_place(self, rig):
        uploads = [begun(rig, content) for content in CONTENTS[1:3]]
        for _ in range(20):
            assert asked(rig).responses()[0].body == CONTENTS[0]
        for connection, content in zip(uploads, CONTENTS[1:3], strict=True):
            connection.send(content)
            assert connection.responses()[0].status == 201

    def test_one_at_rest_goes_before_one_that_has_begun_to_ask(self, rig):
        begins, rests = rig.connect(), rig.connect()
        begins.send(b"GET /")
        begun(rig, CONTENTS[1])
        rig.connect()
        rests.settle()
        assert rests.closed
        assert not begins.closed
        begun(rig, CONTENTS[2])
        begun(rig, CONTENTS[3])
        begins.settle()
        assert_one_line(begins.responses()[0], 503)

    def test_one_that_was_answered_and_still_sends_makes_room_too(self, rig):
        lingers = rig.connect()
        lingers.send(request_bytes("POST", "/x", [("Content-Length", "9")]) + b"12345")
        assert lingers.responses()[0].status == 412
        assert not lingers.closed
        uploads = [begun(rig, content) for content in CONTENTS[1:4]]
        lingers.settle()
        assert lingers.aborted
        assert all(upload.responses() == [] for upload in uploads)

    @pytest.mark.parametrize(("limit", "open_ones", "closes"), [(20, 17, False), (20, 18, True)])
    def test_answers_end_connections_where_it_is_crowded(self, tmp_path, limit, open_ones, closes):
        """From nine tenths on, hot samples and others alike."""
        rig = Rig(tmp_path, max_connections=limit, cache_bytes=1_000_000)
        rig.put(CONTENTS[0], headers=[("Connection", "close")])
        rig.request("GET", f"/{digest_of(CONTENTS[0])}", [("Connection", "close")])
        for _ in range(open_ones - 1):
            rig.connect()
        for name in (digest_of(CONTENTS[0]), ""):
            connection = asked(rig, name)
            response = connection.responses()[0]
            assert (response.headers.get("connection") == "close") == closes
            assert connection.closed == closes
            connection.close()

    def test_connections_of_other_processes_crowd_it_as_well(self, rig):
        words = memoryview(bytearray(16)).cast("q")
        own, others = (Count([Number(words, n) for n in range(2)], place) for place in range(2))
        site = StorSite(
            attrs.evolve(rig.site.serving, max_connections=20), rig.clock, connections=own
        )
        for elsewhere, closes in ((0, False), (17, True), (3, False)):
            others.mine = elsewhere
            site.see_others()
            connection = Connection(site, rig.clock)
            connection.send(request_bytes("GET", "/"))
            assert connection.closed == closes
            connection.close()

    def test_one_too_many_is_told_what_to_do(self, rig, busy):
        refused = asked(rig)
        (response,) = refused.responses()
        assert_one_line(response, 503)
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["connection"] == "close"
        assert refused.transport.write_closed
        for connection, content in zip(busy, CONTENTS[1:4], strict=True):
            connection.send(content)
            assert connection.responses()[0].status == 201

    @pytest.mark.parametrize("sent", [b"", b"GET /"])
    def test_one_too_many_that_does_not_ask_is_told_after_a_moment(self, rig, busy, sent):
        refused = rig.connect()
        refused.send(sent)
        assert refused.responses() == []
        refused.wait(TURNED_AWAY_SECONDS)
        assert_one_line(refused.responses()[0], 503)
        refused.wait(TURNED_AWAY_SECONDS)
        assert refused.closed

    @pytest.mark.parametrize("name", ["status", "status/?x", "metrics"])
    def test_how_stor_is_gets_an_answer_always(self, rig, busy, name):
        """Load balancers and operators ask when it is crowded."""
        for _ in range(MAX_ENDING * 2):
            rig.connect()
        connection = asked(rig, name)
        (response,) = connection.responses()
        assert response.status == 200
        assert response.headers["connection"] == "close"
        assert connection.closed

    def test_what_it_sends_is_read_and_thrown_away_for_a_moment(self, rig, busy):
        """Or the answer would be lost to a reset; but not for ever, nor is it obeyed."""
        refused = rig.connect()
        refused.send(upload_head(CONTENTS[4], ("Content-Length", "8")) + CONTENTS[4])
        assert refused.unread == 0
        assert len(refused.responses()) == 1
        for _ in range(10):
            refused.wait(TURNED_AWAY_SECONDS / 10)
            refused.send(b"x")
        assert refused.closed
        assert rig.copies(CONTENTS[4]) == []

    def test_one_that_ends_makes_room(self, rig, busy):
        busy[0].close()
        assert asked(rig).responses()[0].body == CONTENTS[0]

    @pytest.mark.parametrize("idle", [True, False])
    def test_a_flood_takes_no_more_than_its_places(self, rig, idle):
        if not idle:
            for content in CONTENTS[1:4]:
                begun(rig, content)
        flood = []
        for _ in range(MAX_ENDING + 500):
            flood.append(rig.connect())
            for connection in flood:
                connection.settle()
            flood = [connection for connection in flood if not connection.closed]
            assert len(rig.site.channels) <= 3 + MAX_ENDING

    def test_the_end_of_the_service_waits_for_none_of_them(self, rig):
        connections = [rig.connect() for _ in range(5)]
        drained = []
        rig.site.drain().addCallback(drained.append)
        for connection in connections:
            connection.wait(TURNED_AWAY_SECONDS)
        assert drained == [None]


class TestDescriptors:
    CONFIG = parse('{"storage_pairs": [["/a", "/b"], ["/c"]], "basic_auth": "a:b"}')

    def test_the_limit_is_raised_as_far_as_it_may(self):
        before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
        try:
            assert raise_limit() == hard
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))

    def test_a_shortage_is_said_with_what_to_do(self):
        enough = needed(self.CONFIG)
        assert shortage(enough, self.CONFIG) is None
        said = shortage(enough - 1, self.CONFIG)
        assert str(enough) in said
        assert "max_connections" in said

    @pytest.mark.parametrize(
        ("changes", "more"),
        [
            ({"max_connections": 10_007}, 7),
            ({"max_uploads": 1007}, 2 * 7),
            ({"sets": (("/a", "/b", "/c"), ("/d",))}, 1000 + 1000 + 48),
        ],
    )
    def test_what_is_needed_follows_the_configuration(self, changes, more):
        assert needed(attrs.evolve(self.CONFIG, **changes)) == needed(self.CONFIG) + more


def test_the_limits_hold_for_uploads_with_credentials_alone(tmp_path):
    """Nobody without them can take all the room."""
    rig = Rig(tmp_path, max_uploads=1)
    head = request_bytes("POST", f"/{digest_of(CONTENTS[0])}", [("Content-Length", "8")])
    for _ in range(5):
        rig.connect().send(head)
    assert rig.uploads.active == 0
    assert rig.put(CONTENTS[1]).status == 201
