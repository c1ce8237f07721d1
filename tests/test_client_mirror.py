"""A Stor copied into another one or a directory: what is looked at, copied, kept and told."""

import errno
import json
import os
import random
import tracemalloc
from collections import Counter

import pytest
from twisted.internet.defer import Deferred

from stor.client import CursorGone, GivenUp, MemoryClient, NotStored, Refused, Stopped, Unauthorized
from stor.client.files import walk
from stor.client.get import Get, Template
from stor.client.listing import LandedLines, Listed, index_page
from stor.client.mirror import AGAIN_SECONDS, MOST_AGAIN, Directory, Kept, Mirror
from stor.client.position import BadPosition, Position, load, save, sync
from stor.client.put import Put
from stor.client.relay import Relay
from stor.digest import Digest
from tests.support.http import cuts
from tests.support.pools import InlinePool
from tests.test_client_many import FakeStor, done


class Source(FakeStor):
    """Remembers what it was asked for; `gone` are cursors that it knows nothing of any more."""

    def __init__(self, *contents):
        super().__init__()
        self.looks, self.received, self.gone, self.waits = [], [], set(), []
        self.add(*contents)

    def add(self, *contents):
        self.samples |= {Digest.of(content): content for content in contents}

    async def receive(self, digest, sink):
        self.received.append(digest)
        await super().receive(digest, sink)

    async def index(self, after):
        self.looks.append(after)
        return await super().index(after)

    async def landed(self, cursor, wait_seconds=0):
        if cursor in self.gone:
            raise CursorGone("http://source: 410: gone: long ago")
        if wait_seconds:
            if not self.waits:
                raise GivenUp("the end of the test")
            self.waits.pop(0)()
        return await super().landed(cursor, wait_seconds)


class Copying:
    """A mirror into a double, which may be run again and again."""

    def __init__(self, tmp_path, source, target=None, directory=None):
        self.path = tmp_path / "position.json"
        self.source, self.target, self.directory = source, target or FakeStor(), directory
        self.told, self.lines, self.now, self.make_durable = [], [], 0.0, sync

    def run(self, *, follow=False, **options):
        self.told.clear()
        pool = InlinePool()

        def make_target(report):
            if self.directory is None:
                return Relay(self.source, self.target, pool, report)
            get = Get(self.source, pool, pool, report, str(self.directory), Template("SHA"))
            return Directory(get, str(self.directory), pool, self.make_durable)

        mirror = Mirror(
            self.source,
            make_target,
            Kept(str(self.path), {"from": "http://source"}, **options),
            pool,
            self.told.append,
            self.lines.append,
            lambda: self.now,
            follow=follow,
        )
        self.source.mirror = mirror
        done(mirror.run())
        return Counter(outcome.state for outcome in self.told)

    @property
    def position(self):
        return load(str(self.path))


@pytest.fixture
def copying(tmp_path):
    return lambda *contents, **options: Copying(tmp_path, Source(*contents), **options)


CONTENTS = [b"%d" % n for n in range(100)]


def test_all_there_is_is_copied_and_then_only_what_is_new(copying):
    run = copying(*CONTENTS)
    run.target.samples[Digest.of(CONTENTS[0])] = CONTENTS[0]
    assert run.run() == {"present": 1, "stored": 99}
    assert run.target.samples == run.source.samples
    run.source.add(b"new")
    run.source.looks.clear()
    assert run.run() == {"stored": 1}
    assert run.source.looks == []
    assert run.run() == {}
    # Only when that is asked for.
    assert run.run(forget=True) == {"present": 101}


def test_what_is_stored_while_all_is_listed_is_not_left_out(copying):
    run = copying(*CONTENTS)
    listing = run.source.index

    async def index(after):
        found = await listing(after)
        run.source.add(b"meanwhile")  # wherever it would be in the listing
        return found

    run.source.index = index
    run.run()
    assert run.target.samples == run.source.samples


def test_an_interrupted_listing_is_gone_on_with(copying):
    run = copying(*CONTENTS)
    first = sorted(run.source.samples, key=lambda digest: digest.raw)[49]
    save(str(run.path), Position("100", str(first), ""), {})
    assert run.run() == {"stored": 50}
    assert run.source.looks[0] == first


@pytest.mark.parametrize("size", [1000, 2 * 1024 * 1024])
def test_what_fails_is_kept_and_tried_again(copying, size):
    contents = [bytes([n]) * size for n in range(3)]
    run = copying(*contents)
    bad = Digest.of(contents[1])

    async def refuse(digest, sink):
        if digest == bad:
            raise Refused("503: a disk is away; tried for 120 s")

    run.source.on_receive = refuse
    assert run.run() == {"stored": 2, "failed": 1}
    assert run.position.again == (Listed(bad, size),)
    assert run.run() == {"failed": 1}
    run.source.on_receive = None
    assert run.run() == {"stored": 1}
    assert run.position.again == ()


def test_what_nobody_has_is_named_once(copying):
    run = copying(b"a", b"lost")

    async def lose(digest, sink):
        if digest == Digest.of(b"lost"):
            raise NotStored("404: not found")

    run.source.on_receive = lose
    assert run.run() == {"stored": 1, "failed": 1}
    assert [outcome.not_stored for outcome in run.told if outcome.state == "failed"] == [True]
    assert run.run() == {}


def test_what_it_is_stopped_in_is_looked_at_again(copying, tmp_path):
    """Also where all of what was taken before the stop has come to its end."""
    run = copying(*CONTENTS, directory=tmp_path / "to")

    class Stopping(Source):
        async def receive(self, digest, sink):
            await super().receive(digest, sink)
            if len(self.received) == 10:
                self.mirror.stop()

    run.source = Stopping(*CONTENTS)
    with pytest.raises(Stopped):
        run.run()
    assert run.position.listed == ""
    run.source = Source(*CONTENTS)
    assert run.run()["fetched"] > 0
    assert len(list((tmp_path / "to").iterdir())) == 100


@pytest.mark.parametrize("size", [1000, 2 * 1024 * 1024])
def test_what_is_not_the_sample_is_not_sent(copying, size):
    run = copying(bytes(size))
    digest = Digest.of(bytes(size))
    run.source.samples[digest] = b"x" * size
    assert run.run() == {"failed": 1}
    assert run.target.sent == []


def test_from_a_directory_what_is_damaged_is_named_and_not_stored(tmp_path):
    for content in CONTENTS:
        (tmp_path / f"{Digest.of(content)}.bin").write_bytes(content)
    damaged = tmp_path / str(Digest.of(b"good"))
    damaged.write_bytes(b"damaged")
    client, told = FakeStor(), []
    work = Put(client, InlinePool(), InlinePool(), told.append, by_name=True)
    done(work.run(walk([str(tmp_path)])))
    assert set(client.samples) == set(map(Digest.of, CONTENTS))
    (failed,) = [outcome for outcome in told if outcome.state == "failed"]
    assert (failed.path, failed.error) == (
        str(damaged),
        f"damaged: its content is {Digest.of(b'damaged')}",
    )


def test_what_the_target_refuses_is_tried_again(copying):
    def refuse(digest):
        if digest == Digest.of(b"b"):
            raise Refused("507: no set has room")

    run = copying(b"a", b"b", b"c", target=FakeStor(on_send=refuse))
    assert run.run() == {"stored": 2, "failed": 1}
    assert [one.digest for one in run.position.again] == [Digest.of(b"b")]


def test_a_target_that_takes_nothing_is_asked_once(copying):
    def refuse(digest):
        raise Unauthorized("wrong user or password")

    run = copying(*CONTENTS, target=FakeStor(on_send=refuse))
    with pytest.raises(Unauthorized):
        run.run()
    assert len(run.target.sent) == 1
    assert run.position.listed == ""


def test_one_sample_is_sent_alone_before_all_others():
    class Refusing(FakeStor):
        async def send(self, digest, body):
            self.sent.append(digest)
            await answer
            raise Unauthorized("wrong user or password")

    answer, outcomes = Deferred(), []
    source, target = Source(*(bytes([n]) * 300_000 for n in range(5))), Refusing()
    relay = Relay(source, target, InlinePool(), outcomes.append)
    taking = Deferred.fromCoroutine(relay.take(done(source.index(None))))
    taking.addErrback(outcomes.append)
    assert len(target.sent) == 1
    answer.callback(None)
    (failure,) = outcomes
    assert failure.check(Unauthorized)


def test_a_cursor_that_is_gone_starts_over_with_one_line(copying):
    run = copying(*CONTENTS)
    run.run()
    run.source.gone.add("100")
    run.source.add(b"new")
    assert run.run() == {"present": 100, "stored": 1}
    assert run.lines == [
        "http://source: 410: gone: long ago; starting over, only what is missing is copied"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cursor": "../x", "listed": ""}', "\0" * 100])
def test_a_position_that_is_none_starts_over_with_one_line(copying, text):
    run = copying(*CONTENTS)
    run.path.write_text(text)
    with pytest.raises(BadPosition):
        load(str(run.path))
    assert run.run() == {"stored": 100}
    (line,) = run.lines
    assert line.endswith("starting over")


def test_other_names_start_over(copying, tmp_path):
    run = copying(b"a", directory=tmp_path / "to")
    assert run.run(names="SHA") == {"fetched": 1}
    assert run.run(names="aa/SHA") == {"present": 1}
    assert len(run.lines) == 1


def test_a_cursor_is_never_ahead_of_what_is_durable(copying, tmp_path):
    """What is kept is written after the copies are synced, and only where that was possible."""
    run = copying(*CONTENTS, directory=tmp_path / "to")
    there = []

    class Watched(Source):
        async def landed(self, cursor, wait_seconds=0):
            there.append(len(list((tmp_path / "to").glob("*"))) if run.position else None)
            return await super().landed(cursor, wait_seconds)

    def make_durable(directory):
        durable.append((run.position and run.position.listed, len(os.listdir(directory))))

    durable, run.make_durable = [], make_durable
    (tmp_path / "to").mkdir()
    run.source = Watched(*CONTENTS)
    run.run()
    last = str(max(run.source.samples, key=lambda digest: digest.raw))
    # Synced with nothing there; before anything of the listing is kept; and at its end.
    assert durable == [(None, 0), ("", 0), ("", 100), (last, 100)]
    assert there == [None, 100]

    def full(digest):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = run.position
    run.source.add(b"new")
    run.source.on_receive = lambda digest, sink: full(digest)
    with pytest.raises(GivenUp, match="No space left on device"):
        run.run()
    assert run.position == before


def test_a_follower_waits_and_tries_what_failed_once_in_a_while(copying):
    run = copying(b"a")
    fails = {Digest.of(b"b"): 1}

    async def refuse(digest, sink):
        if fails.get(digest, 0):
            fails[digest] -= 1
            raise Refused("503: away")

    run.source.on_receive = refuse

    def an_hour_later():
        run.now += AGAIN_SECONDS

    run.source.waits = [lambda: run.source.add(b"b"), lambda: None, an_hour_later]
    with pytest.raises(GivenUp, match="the end of the test"):
        run.run(follow=True)
    assert [outcome.state for outcome in run.told] == ["stored", "failed", "stored"]
    assert run.position.again == ()


def test_when_all_fails_it_ends(copying):
    contents = [b"%d" % n for n in range(MOST_AGAIN + 100)]
    run = copying(*contents)

    async def refuse(digest, sink):
        raise Refused("503: away")

    run.source.on_receive = refuse
    with pytest.raises(GivenUp, match=f"more than {MOST_AGAIN}"):
        run.run()


def test_memory_does_not_grow_with_the_samples(tmp_path):
    """Pages of a listing come and go."""

    class Endless(MemoryClient):
        def __init__(self, count):
            super().__init__()
            self.count = count

        async def index(self, after):
            begin = 0 if after is None else int.from_bytes(after.raw, "big")
            end = min(begin + 10_000, self.count)
            return [Listed(Digest(n.to_bytes(32, "big")), 1) for n in range(begin + 1, end + 1)]

        async def missing(self, digests):
            return b"+" * len(digests)

    class Forgetful(list):
        def append(self, outcome):
            """Keep nothing."""

    peaks = []
    for count in (20_000, 200_000):
        run = Copying(tmp_path / f"{count}", Endless(count), Endless(0))
        run.told = Forgetful()
        tracemalloc.start()
        run.run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


class TestLandedLines:
    LINES = b"".join(
        json.dumps({"sha": f"{n:064x}", "size": n, "time": 1.5, "cursor": f"h-{n}"}).encode()
        + b"\n"
        for n in range(20)
    )

    @pytest.mark.parametrize("seed", range(20))
    def test_whole_lines_are_good_however_they_come(self, seed):
        pieces = cuts(self.LINES, 40, random.Random(seed))
        lines = LandedLines()
        for piece in pieces:
            done(lines.add(piece, last=False))
        assert [sample.size for sample in lines.samples] == list(range(20))
        assert lines.cursor == "h-19"

    def test_what_was_cut_is_left_for_the_next_answer(self):
        lines = LandedLines()
        done(lines.add(self.LINES[:-5], last=False))
        assert (len(lines.samples), lines.cursor) == (19, "h-18")

    @pytest.mark.parametrize(
        "line",
        [
            b"x",
            b"[]",
            b'{"sha": 1, "size": 1, "cursor": "h-1"}',
            b'{"sha": "%064d", "size": -1, "cursor": "h-1"}' % 0,
            b'{"sha": "%064d", "size": 1, "cursor": "h-1&x=\\n"}' % 0,
            b'{"sha": "%064d", "size": 1}' % 0,
            b"1" * 2000,
        ],
    )
    def test_what_is_no_such_line_is_not_believed(self, line):
        with pytest.raises(ValueError, match=r"\S"):
            done(LandedLines().add(line if len(line) > 1000 else line + b"\n", last=False))


@pytest.mark.parametrize(
    "text", [b"", b"end 1\n", b"%064d 5\n" % 0, b"%064d -5\nend 1\n" % 0, b"x 5\nend 1\n", b"\xff"]
)
def test_an_index_that_is_not_whole_is_not_believed(text):
    with pytest.raises(ValueError, match=r"\S"):
        index_page(text)
    assert index_page(b"%064d 5\nend 1\n" % 0) == [Listed(Digest(bytes(32)), 5)]


def test_a_position_is_whole_or_the_one_before(tmp_path):
    path = tmp_path / "below" / "position"
    position = Position("h-1", None, "SHA", (Listed(Digest.of(b"x"), 1),))
    save(str(path), position, {"from": "http://a"})
    assert load(str(path)) == position
    os.truncate(path, 10)
    with pytest.raises(BadPosition):
        load(str(path))
    assert os.listdir(path.parent) == ["position"]


def test_a_position_has_its_name_once_it_is_durable(tmp_path):
    calls = []

    def fsync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename(old, new):
        calls.append("rename")
        os.rename(old, new)

    path = tmp_path / "position"
    save(str(path), Position("h-1", None, "SHA"), {}, fsync, rename)
    assert calls == [f"{path}.{os.getpid()}.part", "rename", str(tmp_path)]
