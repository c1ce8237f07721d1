"""Uploads, connections and open files: how many at once, and what one too many is told."""

import resource

import attrs
import pytest

from stor.config import parse
from stor.descriptors import needed, raise_limit, shortage
from stor.http.channel import TURNED_AWAY_SECONDS
from stor.http.site import MAX_TURNED_AWAY
from tests.support.http import (
    assert_nothing_kept,
    assert_one_line,
    assert_stored,
    no_bug_logged,
    upload_head,
)
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
        assert rig.uploads.active.total == 1
        running[1].close()
        assert rig.uploads.active.total == 0

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


class TestConnections:
    @pytest.fixture
    def rig(self, tmp_path):
        rig = Rig(tmp_path, max_connections=3)
        rig.put(CONTENTS[0], headers=[("Connection", "close")])
        return rig

    def test_one_too_many_is_told_at_once(self, rig):
        open_ones = [rig.connect() for _ in range(3)]
        refused = rig.connect()
        refused.settle()
        (response,) = refused.responses()
        assert_one_line(response, 503)
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["connection"] == "close"
        assert refused.transport.write_closed
        for connection in open_ones:
            connection.send(request_bytes("GET", f"/{digest_of(CONTENTS[0])}"))
            assert connection.responses()[0].body == CONTENTS[0]

    def test_what_it_sends_is_read_and_thrown_away_for_a_moment(self, rig):
        """Or the answer would be lost to a reset; but not for ever, nor is it obeyed."""
        for _ in range(3):
            rig.connect()
        refused = rig.connect()
        refused.send(upload_head(CONTENTS[1], ("Content-Length", "8")) + CONTENTS[1])
        assert refused.unread == 0
        assert len(refused.responses()) == 1
        for _ in range(10):
            refused.wait(TURNED_AWAY_SECONDS / 10)
            refused.send(b"x")
        assert refused.closed
        assert rig.copies(CONTENTS[1]) == []

    def test_one_that_ends_makes_room(self, rig):
        first, *_ = [rig.connect() for _ in range(3)]
        refused = rig.connect()
        refused.close()
        first.close()
        connection = rig.connect()
        connection.send(request_bytes("GET", "/"))
        assert [r.status for r in connection.responses()] == [200]

    def test_of_a_flood_most_are_closed_without_a_word(self, rig):
        for _ in range(3):
            rig.connect()
        flood = [rig.connect() for _ in range(MAX_TURNED_AWAY + 500)]
        for connection in flood:
            connection.settle()
        told = [connection for connection in flood if connection.received]
        assert len(told) == MAX_TURNED_AWAY
        assert all(connection.closed for connection in flood if connection not in told)
        rig.clock.advance(TURNED_AWAY_SECONDS)
        for connection in told:
            connection.settle()
        assert len(rig.site.channels) == 3

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
            ({"sets": (("/a", "/b", "/c"), ("/d",))}, 1000 + 48),
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
    assert rig.uploads.active.total == 0
    assert rig.put(CONTENTS[1]).status == 201
