"""What was stored, told in order: by memory, by journals, over restarts, and to those who wait."""

import errno
import json
import random
import shutil

import pytest
from twisted.internet.defer import execute

from stor.disk.journal import Kind
from stor.disk.syscalls import Syscalls
from stor.index.index import shared_memory
from stor.mirror.landed import WAKE_SECONDS
from tests.conformance import MIB, QuickFiles, sample
from tests.support.host import Host
from tests.support.http import AUTHORIZED, assert_one_line, no_bug_logged
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import close_indexes, digest_of, request_bytes
from tests.test_unstored import Ending


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Kept(Host):
    """A host with a state directory; each start is another process."""

    made = ()

    def start(self, **options):
        close_indexes()
        shared = shared_memory(str(self.path / "state"), Syscalls())
        self.made = (*self.made, shared)
        return super().start(shared=shared, **options)


@pytest.fixture
def host(quick_path):
    host = Kept(quick_path)
    yield host
    close_indexes()
    for shared in host.made:
        shared.close()


def settle(rig, rounds=3):
    for _ in range(rounds):
        rig.clock.pump([0] * 50)
        rig.rounds(1)
    return rig


def ask(rig, query=""):
    return rig.request("GET", f"/landed{query}", [AUTHORIZED])


def told(response):
    assert response.status == 200, response.text
    return [json.loads(line) for line in response.body.splitlines()]


def follow(rig, cursor, query=""):
    """What landed since, and where to go on."""
    response = ask(rig, f"?after={cursor}{query}")
    return [one["sha"] for one in told(response)], response.headers["stor-cursor"]


def begin(rig):
    return ask(rig).headers["stor-cursor"]


def put(rig, *contents):
    for content in contents:
        assert rig.put(content).status == 201
    return [str(digest_of(content)) for content in contents]


def test_what_lands_is_told_in_order_and_once(host):
    rig = settle(host.start())
    put(rig, b"before")
    cursor = begin(rig)
    shas = put(rig, *[b"%d" % number for number in range(30)])
    assert rig.put(b"3").status == 200
    response = ask(rig, f"?after={cursor}")
    lines = told(response)
    assert [line["sha"] for line in lines] == shas
    assert [line["size"] for line in lines] == [len(b"%d" % number) for number in range(30)]
    assert lines[-1]["cursor"] == response.headers["stor-cursor"]
    assert all(line["time"] > 1.7e9 for line in lines)
    assert response.headers["content-type"] == "application/x-ndjson"
    # Each line says where to go on after it.
    for at in (0, 10, 29):
        assert follow(rig, lines[at]["cursor"])[0] == shas[at + 1 :]


@pytest.mark.parametrize("memory", [True, False])
def test_a_start_changes_nothing_for_who_follows(host, memory):
    rig = settle(host.start())
    cursor = begin(rig)
    shas = put(rig, *[b"%d" % number for number in range(10)])
    if not memory:
        rig = settle(host.start())
    assert follow(rig, cursor)[0] == shas
    shas += put(rig, *[b"%d" % number for number in range(10, 20)])
    found, cursor = follow(rig, cursor)
    assert found == shas
    assert follow(rig, cursor) == ([], cursor)


@pytest.mark.parametrize("size", [0, 10, 100_000, 3 * MIB])
def test_a_body_that_is_another_is_in_no_journal_and_told_to_nobody(host, size):
    rig = settle(host.start())
    cursor, wrong = begin(rig), digest_of(b"another")
    assert rig.put(sample(size), wrong).status == 412
    journals = [path for root in rig.roots for path in root.glob(".stor/index/journal-*")]
    assert not [path for path in journals if wrong.raw in path.read_bytes()]
    rig = settle(host.start())
    assert follow(rig, cursor)[0] == []
    assert [rig.store.held(wrong.raw), sum(s.samples for s in rig.store.status().sets)] == [
        b"-",
        0,
    ]


def test_a_sample_that_is_on_its_way_holds_back_those_after_it(host):
    """Else whoever has gone on would never hear of it."""
    rig = settle(host.start())
    cursor = begin(rig)
    names, (mirror, _) = rig.mirrors.names, rig.mirrors.mirrors
    (first,) = put(rig, b"first")
    slow = names.expect(digest_of(b"slow"), mirror, Kind.STORED)
    slow.begin()
    (second,) = put(rig, b"second")
    assert follow(rig, cursor)[0] == [first]
    slow.given_up(named=False)
    assert follow(rig, cursor)[0] == [first, second]


class Gate(HeldPool):
    """Does its work at once until it is shut; then a job at a time."""

    shut = False

    def run(self, function, *args):
        return super().run(function, *args) if self.shut else execute(function, *args)


@pytest.mark.parametrize("size", [0, 1000, MIB], ids=["empty", "small", "large"])
@pytest.mark.parametrize("ends", [True, False], ids=["stored", "failed"])
def test_what_is_told_of_can_be_read_at_every_step_of_an_upload(host, size, ends):
    """Its records are durable before its copies have their names, which they may never get."""
    gate, content = Gate(), sample(size)
    sha = str(digest_of(content))
    rig = settle(host.start(sets=(2,), workers=lambda label: (InlinePool(), gate, InlinePool())))
    cursor = begin(rig)
    gate.shut = True
    if not ends:
        rig.disks["set0/disk1"].fail_always("name", errno.EIO)
    client = rig.connect()
    client.send(request_bytes("POST", f"/{sha}", [AUTHORIZED], content))
    steps = 0
    while not client.received and steps < 100:
        gate.release(1)
        client.settle()
        steps += 1
        index = rig.request("GET", "/index", [AUTHORIZED]).text
        missing = rig.request("POST", "/missing", [AUTHORIZED], sha.encode()).text
        landed, _ = follow(rig, cursor)
        stored = rig.get(content).status == 200
        assert (sha in index, sha not in missing) == (stored, stored)
        assert stored or not landed
    assert steps > 3, "an upload of a single step"
    (response,) = client.responses(["POST"])
    outcome = response.status, stored, landed
    assert outcome == ((201, True, [sha]) if ends else (503, False, []))


def test_what_was_begun_and_never_stored_is_not_told(host):
    rig = settle(host.start())
    cursor = begin(rig)
    for files in rig.disks.values():
        files.fail_always("name", 5)
    assert rig.put(b"in vain").status == 503
    for files in rig.disks.values():
        files.heal()
    settle(rig)
    (sha,) = put(rig, b"stored")
    assert follow(rig, cursor)[0] == [sha]


class Dying(QuickFiles):
    """A disk that does nothing more once it has given a sample its name, until it is healed."""

    dies = False

    def name(self, fd, path, directory_fd):
        super().name(fd, path, directory_fd)
        if self.dies and path.endswith(".dat"):
            self.fail_always("*", errno.EIO)


@pytest.mark.parametrize("size", [1000, MIB], ids=["small", "large"])
@pytest.mark.parametrize("memory", [True, False])
def test_what_a_failure_has_left_is_told_before_a_client_hears_that_it_is_stored(
    host, memory, size
):
    """Posted again it is answered 200, and makes no new record."""
    content = sample(size)
    rig = settle(host.start(sets=(2,), kind=Dying))
    cursor = begin(rig)
    for label, files in rig.disks.items():
        files.dies = label.endswith("disk0")
    assert rig.put(content).status == 503
    for files in rig.disks.values():
        files.dies = False
        files.heal()
    assert len(rig.copies(content)) == 1
    rig = settle(rig if memory else host.start(sets=(2,)))
    assert rig.put(content).status == 200
    assert str(digest_of(content)) in follow(rig, cursor)[0]


def test_repairs_and_samples_found_are_no_news(host):
    rig = settle(host.start())
    put(rig, b"kept")
    cursor = begin(rig)
    rig.copies(b"kept")[0].unlink()
    assert rig.put(b"kept").status == 200
    assert len(rig.copies(b"kept")) == 2
    assert follow(settle(host.start()), cursor)[0] == []


@pytest.mark.parametrize("seed", range(8))
def test_nobody_misses_a_sample_whatever_becomes_of_disks_and_stors(host, seed):
    """Followers that ask now and then: starts, kills, a disk replaced and rebuilt, one away."""
    chance, stored = random.Random(seed), []
    rig = settle(host.start())
    followers = [(begin(rig), []) for _ in range(3)]
    for step in range(40):
        doing = chance.choice(["put"] * 6 + ["follow"] * 3 + ["start", "replace"])
        if doing == "put":
            stored += put(rig, b"%d of %d" % (step, seed))
        elif doing == "follow":
            at = chance.randrange(len(followers))
            cursor, heard = followers[at]
            found, cursor = follow(rig, cursor)
            followers[at] = cursor, heard + found
        elif doing == "start":
            close_indexes()
            rig = settle(host.start())
        else:
            shutil.rmtree(host.path / "set0/disk0")
            (host.path / "set0/disk0").mkdir()
            close_indexes()
            rig = settle(host.start(), 6)
    for cursor, heard in followers:
        found, _ = follow(rig, cursor)
        assert set(stored) <= set(heard + found)
        assert [sha for sha in dict.fromkeys(heard + found) if sha in stored] == stored


def test_who_waits_is_told_soon_and_answered_in_the_end(host):
    rig = settle(host.start())
    cursor = begin(rig)
    waiting, others = rig.connect(), rig.connect()
    waiting.send(request_bytes("GET", f"/landed?after={cursor}&wait=30", [AUTHORIZED]))
    waiting.wait(2)
    assert waiting.received == b""
    (sha,) = put(rig, b"at last")
    waiting.wait(2 * WAKE_SECONDS)
    (response,) = waiting.responses(["GET"])
    assert [one["sha"] for one in told(response)] == [sha]
    others.send(request_bytes("GET", f"/landed?after={begin(rig)}&wait=3", [AUTHORIZED]))
    others.wait(2)
    assert others.received == b""
    others.wait(2)
    (response,) = others.responses(["GET"])
    assert (response.status, response.body) == (200, b"")


def test_who_waits_does_not_hold_up_the_end(host):
    rig = settle(host.start())
    waiting = rig.connect()
    waiting.send(request_bytes("GET", f"/landed?after={begin(rig)}&wait=60", [AUTHORIZED]))
    rig.uploads.stop()
    waiting.wait(2)
    (response,) = waiting.responses(["GET"])
    assert response.status == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?after=x", 400),
        ("?after=00000000-99999999999999999999", 400),
        ("?after=00000000-1&after=00000000-1", 400),
        ("?wait=-1", 400),
        ("?wait=61", 400),
        ("?wait=0.5", 400),
        ("?limit=1", 400),
        ("?after=00000000-1", 410),
    ],
)
def test_what_makes_no_sense_is_one_line(host, query, status):
    assert_one_line(ask(settle(host.start()), query), status)


def test_a_cursor_from_before_the_journals_is_gone(host):
    rig = settle(host.start())
    cursor = begin(rig)
    put(rig, *[sample(10, seed) for seed in range(20)])
    close_indexes()
    for label in ("set0/disk0", "set0/disk1"):
        shutil.rmtree(host.path / label / ".stor/index")
    response = ask(settle(host.start(), 6), f"?after={cursor}")
    assert response.status == 410


@pytest.mark.parametrize("away", [True, False])
def test_what_cannot_be_read_is_never_told_in_part(host, away):
    """Somebody removes the index of a disk that is in use; its twin may be away."""
    rig = settle(host.start())
    cursor = begin(rig)
    stored = put(rig, *[b"%d" % number for number in range(20)])
    rig = settle(host.start())
    shutil.rmtree(host.path / "set0/disk0" / ".stor/index")
    if away:
        (host.path / "set0/disk1").rename(host.path / "away")
    response = ask(rig, f"?after={cursor}")
    assert (response.status != 200) == away
    if not away:
        assert [one["sha"] for one in told(response)] == stored


def test_strangers_are_told_nothing(host):
    rig = settle(host.start())
    assert rig.request("GET", "/landed").status == 401
    rig.reconfigure(public_listing=True)
    assert rig.request("GET", "/landed").status == 200
    assert rig.request("HEAD", "/landed").body == b""


@pytest.mark.parametrize("size", [0, 1000, MIB], ids=["empty", "small", "large"])
def test_what_a_crash_has_ended_before_its_name_is_not_told(host, size):
    rig = settle(host.start(sets=(2,), kind=Ending))
    cursor = begin(rig)
    shas = put(rig, b"stored before")
    for files in rig.disks.values():
        files.ends = "before"
    assert rig.put(sample(size)).status == 503
    assert follow(settle(host.start(sets=(2,))), cursor)[0] == shas
