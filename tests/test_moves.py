"""Samples that move from one set to another: whole on one of them at every instant."""

import errno
import os
import random
import shutil
from collections import deque
from contextlib import suppress
from posixpath import dirname

import pytest

from stor.digest import Digest
from stor.disk.journal import Journal, Kind
from stor.disk.loading import Loaded
from stor.disk.syscalls import Syscalls
from stor.errors import StorError
from stor.index.index import Index, Shared, shared_memory
from stor.index.merge import DiskSource, extend
from stor.mirror.move import Moves
from stor.mirror.names import Names
from stor.mirror.outbox import Outbox
from stor.mirror.search import HEDGE_SECONDS
from tests.conformance import MIB, QuickFiles, put, read, result_of, sample, start
from tests.durability import Node, _replay, assert_recorded_first, history
from tests.support.files import FaultyFiles
from tests.support.http import no_bug_logged
from tests.support.pools import HeldPool
from tests.support.rig import FaultyRig, close_indexes

SMALL = [sample(2000, n) for n in range(3)]
BATCHES = {"several": SMALL, "large": [sample(2 * MIB + 7)], "empty": [b""]}
YEAR_NS = 365 * 86400 * 10**9


async def _no_turn(length):
    """A job waits here for its turn."""


class Host:
    """Two pairs, the first of which has some samples; each `start` is another process."""

    def __init__(self, path, contents, kind=QuickFiles, **options):
        self.path, self.contents = path, contents
        self.rig = self.start(kind=kind, **options)
        self.rig.mirrors.mirrors[1].draining = "they go to the other"
        for content in contents:
            assert self.rig.put(content).status == 201
        self.rig.mirrors.mirrors[1].draining = None
        self.paths = [path for content in contents for path in self.rig.copies(content)]
        for path in self.paths:
            os.utime(path, ns=(YEAR_NS, YEAR_NS))

    def start(self, **options):
        rig = FaultyRig(self.path, (2, 2), **{"kind": QuickFiles, **options})
        rig.begin()
        for _ in range(3):
            rig.clock.pump([0] * 20)
            rig.rounds(1)
        return rig

    async def move(self, rig=None, source=0, target=1):
        """Move all of them; what became of them."""
        rig = rig or self.rig
        mirrors = rig.mirrors.mirrors
        moves, old, new = Moves(rig.mirrors), mirrors[source], mirrors[target]
        if len(self.contents[0]) > MIB:
            return await moves.move_alone(old, new, Digest.of(self.contents[0]), _no_turn)
        return await moves.move(old, new, [_body(content) for content in self.contents])

    def sets(self, content):
        """On which sets the sample is whole, as the files are."""
        path = Digest.of(content).disk_path
        whole = set()
        for number in (0, 1):
            files = [self.path / f"set{number}" / f"disk{disk}" / path for disk in (0, 1)]
            for file in files:
                assert not file.exists() or file.read_bytes() == content, "wrong under its name"
            if all(file.exists() for file in files):
                whole.add(number)
        return whole

    def judge(self, rig):
        """Every sample is whole on a set, and is read."""
        for content in self.contents:
            assert self.sets(content)
            response = rig.get(content)
            assert (response.status, response.body) == (200, content)


def _body(content):
    return Loaded(Digest.of(content), content, YEAR_NS)


@pytest.fixture(params=BATCHES)
def contents(request):
    return BATCHES[request.param]


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def test_what_has_moved_is_on_its_new_set_alone_with_the_time_that_it_had(quick_path, contents):
    host = Host(quick_path, contents)
    outcome = result_of(host.move())
    assert outcome.moved == {Digest.of(content) for content in contents}
    host.judge(host.rig)
    assert len(host.rig.samples()) == 2 * len(contents)
    assert not host.rig.staged()
    for content in contents:
        assert host.sets(content) == {1}
        assert {path.stat().st_mtime_ns for path in host.rig.copies(content)} == {YEAR_NS}
        assert host.rig.put(content).status == 200
    first, second = host.rig.mirrors.mirrors
    names = host.rig.mirrors.names
    assert (names.samples(first), names.samples(second)) == (0, len(contents))
    host.judge(host.start())


class Mortal(FaultyFiles):
    """All disks of a process: from its last call on, none is done."""

    left = None

    def _before(self, name, args):
        if Mortal.left is not None:
            Mortal.left -= 1
            if Mortal.left < 0:
                self._raise(name, args, errno.EIO)
        return super()._before(name, args)


class QuickMortal(Mortal, QuickFiles):
    """One that notes what is synced instead of waiting for it."""


def died_at(path, contents, number):
    """A host on which a process has ended at this call of a move; how many calls were left."""
    Mortal.left = None
    host = Host(path, contents, QuickMortal)
    Mortal.left = number
    try:
        start(host.move())
        left = Mortal.left
    finally:
        Mortal.left = None
    return host, left


def test_whichever_call_is_the_last_of_a_process_no_sample_is_lost(quick_path, contents):
    number, left, on_both = 0, -1, 0
    while left < 0:
        host, left = died_at(quick_path / str(number), contents, number)
        rig = host.start()
        host.judge(rig)
        on_both += sum(host.sets(content) == {0, 1} for content in contents)
        # Whoever moves them next finishes it.
        sizes = {Digest.of(content): len(content) for content in contents}
        result_of(Moves(rig.mirrors).finish(rig.mirrors.mirrors[0], sizes))
        rest = [content for content in contents if 0 in host.sets(content)]
        host.contents = rest or contents
        if rest:
            assert len(result_of(host.move(rig)).moved) == len(rest)
        host.contents = contents
        host.judge(rig)
        assert [host.sets(content) for content in contents] == [{1}] * len(contents)
        assert len(rig.samples()) == 2 * len(contents)
        assert not rig.staged()
        number += 1
    assert number > 60
    assert on_both


def survives(events, disks, path, size):
    """After each event: a set whose disks all have the sample, whatever of the rest is lost."""
    roots, files = {disk: Node() for disk in disks}, {}
    for event in events:
        if event.kind == "sync_all":
            roots[event.disk].sync_all()
            for file in [file for (disk, _), file in files.items() if disk == event.disk]:
                file.synced = file.written
        elif not event.kind.startswith(("journal", "answer")):
            _replay(event, roots[event.disk], files)
        sets = {}
        for disk in disks:
            copy, now = roots[disk].survivor(path), roots[disk].walk(dirname(path)).entries
            # What is removed may be gone whether that is synced or not.
            held = copy is not None and copy.synced == size and path.rsplit("/")[-1] in now
            sets.setdefault(disk[:4], []).append(held)
        yield event, [of_set for of_set, held in sets.items() if all(held)]


@pytest.mark.parametrize("body", BATCHES)
def test_a_loss_of_power_at_any_moment_leaves_it_whole_on_a_set(quick_path, body):
    contents = BATCHES[body]
    host = Host(quick_path, contents)
    stored = len(history(host.rig.log))
    result_of(host.move())
    events, disks = history(host.rig.log), list(host.rig.disks)
    for content in contents:
        states = list(survives(events, disks, Digest.of(content).disk_path, len(content)))
        assert states[stored - 1][1] == ["set0"]
        assert states[-1][1] == ["set1"]
        for event, sets in states[stored:]:
            assert sets, f"lost after {event}"
        # And the judge would see it: without the syncs of the new set it is lost.
        unsynced = [
            event
            for number, event in enumerate(events)
            if number < stored or event.disk[:4] == "set0" or not event.kind.startswith("sync")
        ]
        path = Digest.of(content).disk_path
        assert not all(s for _, s in list(survives(unsynced, disks, path, len(content)))[stored:])


def test_records_are_durable_before_names_come_and_before_they_go(quick_path, contents):
    host = Host(quick_path, contents)
    host.rig.log.clear()
    result_of(host.move())
    events = history(host.rig.log)
    removed = [n for n, e in enumerate(events) if e.kind == "unlink" and e.path.endswith(".dat")]
    assert len(removed) == 2 * len(contents)
    for content in contents:
        sha = Digest.of(content).raw
        for disk in ("set0/disk0", "set0/disk1"):
            before = [e for e in events[: removed[0]] if e.disk == disk]
            told = [n for n, event in enumerate(before) if sha in event.data]
            kinds = {event.kind for event in before[told[-1] :]}
            assert kinds & {"journal sync", "sync_all"}
        answer = next(e for e in events if e.path == Digest.of(content).disk_path)
        named = [*events[: removed[0]], answer.__class__("answer", "", "", answer.path)]
        assert_recorded_first(named, ["set1/disk0", "set1/disk1"])


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("disk", ["set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1"])
def test_whichever_call_of_a_disk_fails_no_sample_is_lost(quick_path, disk, error):
    contents, number, hit = SMALL[:2], 0, True
    while hit:
        host = Host(quick_path / str(number), contents)
        files = host.rig.disks[disk]
        files.fail_at(number, error)
        outcome = start(host.move())
        assert outcome
        hit = files.failed is not None
        files.heal()
        host.judge(host.rig)
        for content in contents:
            if len([path for path in host.rig.copies(content) if "set0" in str(path)]) < 2:
                assert all(_left(member, content) for member in host.rig.members[:2])
        assert not host.rig.staged()
        host.judge(host.start())
        number += 1
    assert number > 5


def _left(member, content):
    """Whether a disk's journal says that a sample has left it."""
    with member.disk.entered() as root_fd:
        records = Journal.open(member.disk, member.names.uuid, root_fd).records(root_fd)
        return [one.kind for one in records if one.sha == Digest.of(content).raw][-1] is Kind.LEFT


def shuffled(held, rng, meanwhile=lambda: None):
    """Do what waits in any order."""
    while held.held:
        held.held.rotate(-rng.randrange(len(held.held)))
        held.release(1)
        meanwhile()


@pytest.mark.parametrize("seed", range(24))
def test_an_upload_a_repair_and_a_move_of_one_sample_take_turns(quick_path, seed):
    rng, held, content = random.Random(seed), HeldPool(), sample(3000)
    host = Host(quick_path, [content])
    rig = host.start(worker=lambda: held)
    shuffled(held, rng)
    if seed % 3 == 0:
        rng.choice(rig.copies(content)).unlink()
    first = rig.mirrors.mirrors[0]
    outcomes = [
        start(begin())
        for begin in rng.sample(
            [
                lambda: host.move(rig),
                lambda: put(rig.store, content),
                lambda: put(rig.store, content),
                lambda: rig.mirrors.repairs.make_whole(Digest.of(content), first),
            ],
            4,
        )
    ]
    while held.held:
        shuffled(held, rng)
        rig.clock.advance(0)
    assert all(outcomes)
    puts = [one[0] for one in outcomes if isinstance(one[0], tuple)]
    assert [created for _, created in puts] == [False, False]
    assert host.sets(content) in ({1}, {0}), "it is on one set"
    assert len(rig.samples()) == 2
    assert not rig.staged()


@pytest.mark.parametrize("seed", range(18))
def test_reads_that_began_at_any_moment_of_a_move_find_it(quick_path, seed):
    rng, held = random.Random(seed), HeldPool()
    contents = [SMALL[:1], SMALL, [sample(MIB + 1)]][seed % 3]
    host = Host(quick_path, contents)
    rig = host.start(worker=lambda: held)
    shuffled(held, rng)
    begun = []

    def meanwhile():
        if rng.random() < 0.5:
            content = rng.choice(contents)
            begun.append((content, start(read(rig.store, Digest.of(content)))))
            begun.append((None, start(rig.store.find(Digest.of(content)))))

    moving = start(host.move(rig))
    for _ in range(30):
        held.held.rotate(-rng.randrange(max(1, len(held.held))))
        held.release(1)
        meanwhile()
    while held.held:
        shuffled(held, rng)
        rig.clock.advance(1)
    assert len(moving[0].moved) == len(contents)
    for content, outcome in begun:
        assert outcome
        assert not isinstance(outcome[0], Exception)
        assert outcome[0] == content if content is not None else outcome[0].size
    assert len(begun) > 10


class Observed(QuickFiles):
    """Lets a test look between any two calls of a disk."""

    look = staticmethod(lambda: None)

    def _before(self, name, args):
        result = super()._before(name, args)
        if name in ("unlink", "name", "write", "sync", "sync_all"):
            Observed.look()
        return result


def test_a_look_up_that_has_asked_the_new_set_too_early_asks_again(quick_path):
    """Of which not all was known, so that it was asked beside the one that held the sample."""
    held, learner, host = HeldPool(), HeldPool(), Host(quick_path, SMALL[:1])
    digest = Digest.of(SMALL[0])
    rig = host.start(worker=lambda: held, learner=lambda name: learner)
    for _ in range(20):
        held.release()
        learner.release()
        rig.clock.advance(0)
        rig.rounds(1)
    names, second = rig.mirrors.learning, rig.mirrors.mirrors[1]
    names.was_wrong(Digest.of(b"by hand"), second, names.next_number)
    assert rig.mirrors.known(digest).unsure == (second,)
    search = rig.mirrors.search(digest)
    looking = start(search.look())
    rig.clock.pump([HEDGE_SECONDS] * 6)
    late = [job for job in held.held if "set0" in job[1].__self__.root]
    held.held = deque(job for job in held.held if job not in late)
    assert len(late) == 2
    assert len(held.held) == 2  # of the new set, which has nothing yet
    held.release()
    moving = start(host.move(rig))
    held.release()
    assert moving[0].moved == {digest}
    held.held.extend(late)
    while held.held:
        held.release()
    assert looking[0].size == len(SMALL[0])
    search.close()


def test_a_process_that_only_reads_finds_it_at_every_call(quick_path):
    close_indexes()
    shared = Shared.create()
    host = Host(quick_path, SMALL)
    writer = host.start(shared=shared, kind=Observed)
    names = Names(Index(shared, shared.keys, 0), lambda *lacking: None)
    reader = FaultyRig(quick_path, (2, 2), kind=QuickFiles, knows=False)
    names.follow(reader.mirrors.mirrors)
    reader.mirrors.names = reader.mirrors._index = names
    looked, asked = [], []

    def look():
        for content in SMALL:
            holders = names.find(Digest.of(content)).holders
            response = reader.get(content)
            assert (response.status, response.body) == (200, content)
            assert names.held(Digest.of(content)) is True
            looked.append(len(holders))

    Observed.look = staticmethod(look)
    try:
        # A look-up that has begun before goes on after it.
        search = reader.mirrors.search(Digest.of(SMALL[0]))
        assert len(result_of(host.move(writer)).moved) == len(SMALL)
        asked.append(result_of(search.next()))
    finally:
        Observed.look = staticmethod(lambda: None)
    assert asked[0] is not None
    asked[0].close()
    search.close()
    assert {1, 2} <= set(looked)
    names.stop()
    close_indexes()
    shared.close()


def test_what_moves_is_no_news_and_what_was_stored_is_told_as_before(quick_path):
    host = Host(quick_path, SMALL)
    begin = host.rig.mirrors.learning.landed.end
    seen = host.rig.mirrors.learning.landed.after
    before = result_of(seen(0, 100, host.rig.mirrors.mirrors))
    result_of(host.move())
    assert not result_of(seen(begin, 100, host.rig.mirrors.mirrors)).records
    later = result_of(seen(0, 100, host.rig.mirrors.mirrors))
    assert later.records == before.records
    rig = host.start()
    again = result_of(rig.mirrors.learning.landed.after(0, 100, rig.mirrors.mirrors))
    assert [record.sha for record in again.records] == [record.sha for record in before.records]
    with rig.members[0].disk.entered() as root_fd:
        kinds = [record.kind for record in rig.members[0].names.journal.records(root_fd)]
    assert kinds == [Kind.STORED] * 3 + [Kind.LEFT] * 3


def test_a_listing_that_looks_at_the_old_set_after_the_new_one_misses_nothing(quick_path):
    held, rng = HeldPool(), random.Random(1)
    host = Host(quick_path, SMALL)
    rig = host.start(learner=lambda name: held)
    while held.held:
        shuffled(held, rng)
        rig.clock.advance(0)
        rig.rounds(1)
    listing = start(rig.mirrors.learning.listed(bytes(32), 100))
    held.held.rotate(-1)  # the new set's disk first
    held.release(1)
    result_of(host.move(rig))
    held.release()
    assert dict(listing[0]) == {Digest.of(content).raw: 2000 for content in SMALL}


@pytest.mark.parametrize("label", ["set0/disk0", "set0/disk1"])
def test_nothing_leaves_a_set_of_which_a_disk_cannot_be_written(quick_path, label):
    host = Host(quick_path, SMALL)
    member = next(m for m in host.rig.members if m.root.endswith(label))
    member.health.probe_failed("unplugged")
    (failure,) = start(host.move())
    assert failure.check(StorError)
    assert "unplugged" in str(failure.value)
    assert [host.sets(content) for content in SMALL] == [{0, 1}] * 3
    member.probe()
    sizes = {Digest.of(content): len(content) for content in SMALL}
    moves = Moves(host.rig.mirrors)
    assert len(result_of(moves.finish(host.rig.mirrors.mirrors[0], sizes)).moved) == 3
    assert [host.sets(content) for content in SMALL] == [{1}] * 3


def test_what_has_left_is_put_back_by_nobody(quick_path):
    """A copy that stayed, as its disk was away or a crash came before its removal."""
    host = Host(quick_path, SMALL)
    kept = {path: path.read_bytes() for path in host.paths if "disk1" in str(path)}
    result_of(host.move())
    for path, content in kept.items():
        path.write_bytes(content)
    rig = host.start()
    first = rig.mirrors.mirrors[0]
    for content in SMALL:
        digest = Digest.of(content)
        rig.mirrors.repairs.report(digest, first)
        assert isinstance(start(rig.mirrors.repairs.make_whole(digest, first))[0].value, StorError)
    rig.rounds(5)
    assert all(host.sets(content) == {1} for content in SMALL)
    assert not [path for path in rig.samples() if "set0/disk0" in str(path)]
    assert rig.mirrors.learning.lost_total == 0
    host.judge(rig)
    sizes = {Digest.of(content): len(content) for content in SMALL}
    result_of(Moves(rig.mirrors).finish(first, sizes))
    assert len(rig.samples()) == 6


def test_what_another_set_lost_is_not_taken_off_the_one_that_has_it(quick_path):
    host = Host(quick_path, SMALL[:1])
    rig = host.rig
    digest = Digest.of(SMALL[0])
    rig.mirrors.learning.stored(digest, rig.mirrors.mirrors[1])
    outcome = result_of(Moves(rig.mirrors).finish(rig.mirrors.mirrors[0], {digest: 2000}))
    assert not outcome.moved
    host.judge(rig)


def test_what_lacks_a_copy_elsewhere_stays(quick_path):
    host = Host(quick_path, SMALL[:1])
    result_of(_move_but_leave_nothing(host, host.rig.members[1]))
    lacking = host.rig.mirrors.mirrors[1].members[0]
    (quick_path / "set1" / "disk0" / Digest.of(SMALL[0]).disk_path).unlink()
    lacking.health.probe_failed("unplugged")
    digest = Digest.of(SMALL[0])
    moves = Moves(host.rig.mirrors)
    assert not result_of(moves.finish(host.rig.mirrors.mirrors[0], {digest: 2000})).moved
    host.judge(host.rig)


async def _move_but_leave_nothing(host, member):
    """Move all while a disk of the old set is away: they are on both, then."""
    member.health.probe_failed("unplugged")
    with suppress(StorError):
        await host.move()
    member.probe()
    assert [host.sets(content) for content in host.contents] == [{0, 1}]


def test_a_copy_that_cannot_be_removed_is_named(quick_path):
    host = Host(quick_path, SMALL[:1])
    path = Digest.of(SMALL[0]).disk_path
    unlink = host.rig.disks["set0/disk1"]
    unlink.fail_always("unlink", errno.EPERM)
    outcome = result_of(host.move())
    unlink.heal()
    (reason,) = outcome.kept.values()
    assert reason.endswith(f"set0/disk1/{path}: cannot be removed: Operation not permitted")
    host.judge(host.rig)


def test_what_waits_for_s3_waits_on_its_new_set(quick_path):
    host = Host(quick_path, SMALL[:2])
    rig, waiting = host.rig, Digest.of(SMALL[0])
    rig.mirrors.report_to(
        Outbox(lambda: rig.mirrors.mirrors, rig.clock, lambda digest: None, waiting.__eq__)
    )
    result_of(host.move())
    notes = sorted(path.name for root in rig.roots for path in root.glob(".stor/s3/*"))
    assert notes == [str(waiting)] * 2


def test_two_moves_of_one_sample_at_once_leave_it_on_one_set(quick_path):
    held, rng, host = HeldPool(), random.Random(3), Host(quick_path, SMALL)
    rig = host.start(worker=lambda: held)
    shuffled(held, rng)
    moving = [start(host.move(rig)) for _ in range(2)]
    while held.held:
        shuffled(held, rng)
    assert all(moving)
    assert [host.sets(content) for content in SMALL] == [{1}] * 3


@pytest.mark.parametrize("known", ["a table of before", "a base of before", "neither"])
def test_a_start_that_knows_an_older_state_learns_that_it_has_left(quick_path, known):
    close_indexes()
    state = quick_path / "state"
    tables, options = [], {"table_path": str(state / "table"), "keep_seconds": 0, "recent_limit": 0}

    def begin():
        close_indexes()
        tables.append(shared_memory(str(state), Syscalls()))
        return {"shared": tables[-1], **options}

    host = Host(quick_path, SMALL, **begin())
    if known == "a table of before":
        for _ in range(3):
            host.rig.clock.pump([0] * 20)
            host.rig.rounds(1)
        shutil.copy(state / "table", state / "before")
    elif known == "a base of before":
        for member in host.rig.members:
            with member.disk.entered() as root_fd:
                member.names.journal.rotate(root_fd)
            extend(DiskSource(member.root, member.names.uuid, member.health.device))
            with member.disk.entered() as root_fd:
                member.names.reopen_base(root_fd)
            assert member.names.base.entries in (0, len(SMALL))
    result_of(host.move())
    (state / "table").unlink(missing_ok=True)
    if known == "a table of before":
        (state / "before").rename(state / "table")
    rig = host.start(**begin())
    for _ in range(5):
        rig.clock.pump([0.01] * 20)
        rig.rounds(1)
    names, (first, second) = rig.mirrors.names, rig.mirrors.mirrors
    assert names.known(first)
    assert names.known(second)
    for content in SMALL:
        assert names.find(Digest.of(content)).holders == (second,)
    assert (names.samples(first), names.samples(second)) == (0, 3)
    host.judge(rig)
    close_indexes()
    for shared in tables:
        shared.close()
