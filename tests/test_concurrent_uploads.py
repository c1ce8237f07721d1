"""Many uploads at once, their work done in any order."""

import errno
import random
from itertools import count, pairwise
from pathlib import Path
from threading import Event, Thread

import pytest
from twisted.internet.defer import fail
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import Disk
from stor.disk.durable import Claims
from stor.errors import StorError
from stor.threads import Busy
from tests.conformance import (
    MIB,
    QuickFiles,
    descriptors,
    every_order,
    put,
    release,
    result_of,
    sample,
    start,
)
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import AUTHORIZATION, Rig, request_bytes
from tests.support.staging import begin, name, sync_directories

#: Nothing here takes long; this ends a test that would hang.
PATIENCE_SECONDS = 30


class Crowd:
    """Clients of one Stor whose disks do one job at a time, in the order of a seed."""

    def __init__(self, path, sets=(2, 2), seed=0, files=QuickFiles):
        self.rng = random.Random(seed)
        self.held = HeldPool()
        self.rig = Rig(path, sets, files=files, worker=lambda: self.held, seed=seed)
        self.descriptors = descriptors()
        self.connections = []
        self._unsent = []

    def post(self, content, name=None, cut=None):
        """A client that posts `content`, or hangs up after `cut` bytes of it."""
        path = f"/{name or Digest.of(content)}"
        head = request_bytes("POST", path, [("Authorization", AUTHORIZATION)], content)
        end = len(head) - len(content) + (len(content) if cut is None else cut)
        edges = sorted({0, self.rng.randint(0, end), self.rng.randint(0, end), end})
        todo = [head[a:b] for a, b in pairwise(edges)]
        connection = self.rig.connect()
        self.connections.append(connection)
        self._unsent.append((connection, todo + [None] * (cut is not None)))

    def run(self, check=lambda: None):
        """Send everything, do everything, in random turns; `check` after each."""
        unread = []
        while self._unsent or self.held.held:
            if self._unsent and (not self.held.held or self.rng.random() < 0.4):
                connection, todo = self.rng.choice(self._unsent)
                part = todo.pop(0)
                if not todo:
                    self._unsent.remove((connection, todo))
                if part is None:
                    connection.close()
                else:
                    connection.send(part)
                    unread += [connection] * bool(connection.unread)
            else:
                release(self.held, self.rng.randrange(len(self.held.held)))
                for connection in unread:
                    connection.settle()
                unread = [connection for connection in unread if connection.unread]
            check()
        for connection in self.connections:
            connection.settle()

    @property
    def statuses(self):
        """The status of every answer."""
        return [r.status for c in self.connections for r in c.responses(["POST"])]

    def assert_nothing_left(self):
        """Nothing that an upload needs on its way is there any more."""
        assert_nothing_left(self.rig)
        assert descriptors() == self.descriptors


def assert_nothing_left(rig):
    assert not rig.staged()
    for mirror in rig.mirrors.mirrors:
        assert mirror.reserved.total() == (0, 0)
    assert rig.mirrors.turns.idle
    assert rig.uploads.buffered_bytes == 0


def homes(rig, content):
    """The sets that have a copy of `content`, with the copies' bytes."""
    paths = rig.copies(content)
    sets = {path.relative_to(path.parents[5]).parts[0] for path in paths}
    return sets, [path.read_bytes() for path in paths]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [0, 2000, MIB + 1000])
def test_of_100_posts_of_one_sample_one_creates_it(tmp_path, seed, size):
    crowd, content = Crowd(tmp_path, seed=seed), sample(size)
    for _ in range(100 if size < MIB else 20):
        crowd.post(content)
    crowd.run()
    assert sorted(crowd.statuses) == [200] * (len(crowd.connections) - 1) + [201]
    sets, copies = homes(crowd.rig, content)
    assert len(sets) == 1
    assert copies == [content, content]
    crowd.assert_nothing_left()


@pytest.mark.parametrize("seed", range(10))
def test_posts_that_are_cut_off_leave_the_others_alone(tmp_path, seed):
    crowd, content = Crowd(tmp_path, seed=seed), sample(3000)
    for number in range(100):
        crowd.post(content, cut=crowd.rng.randrange(3000) if number % 3 == 0 else None)
    crowd.run()
    answers = [r.status for c in crowd.connections if not c.closed for r in c.responses()]
    assert sorted(answers) == [200] * 65 + [201]
    sets, copies = homes(crowd.rig, content)
    assert len(sets) == 1
    assert copies == [content, content]
    crowd.assert_nothing_left()


def test_posts_that_are_all_cut_off_leave_nothing(tmp_path):
    crowd, content = Crowd(tmp_path), sample(3000)
    for _ in range(100):
        crowd.post(content, cut=crowd.rng.randrange(3000))
    crowd.run()
    assert not crowd.rig.samples()
    crowd.assert_nothing_left()


@pytest.mark.parametrize("seed", range(5))
def test_the_store_takes_100_uploads_of_one_sample_at_once(tmp_path, seed):
    crowd, content = Crowd(tmp_path, seed=seed), sample(3000)
    answers = [start(put(crowd.rig.store, content, piece_bytes=1000)) for _ in range(100)]
    crowd.run()
    paths, created = zip(*[answer[0] for answer in answers], strict=True)
    assert sorted(created) == [False] * 99 + [True]
    assert len({tuple(one) for one in paths}) == 1
    assert sorted(paths[0]) == [str(path) for path in crowd.rig.samples()]
    crowd.assert_nothing_left()


@pytest.mark.parametrize("failing", ["name", "write", "set_modified", "sync"])
def test_when_the_first_fails_another_one_creates_the_sample(tmp_path, failing):
    broken = []

    class FailsOnce(QuickFiles):
        def _before(self, name, args):
            if name == failing and self.label == "set0/disk1" and not broken and armed:
                broken.append(name)
                raise OSError(errno.EIO, "Input/output error")

    armed = []
    crowd, content = Crowd(tmp_path, (2,), files=FailsOnce), sample(2000)
    armed.append(True)
    for _ in range(20):
        crowd.post(content)
    crowd.run()
    assert broken
    assert crowd.statuses.count(503) == 1
    assert crowd.statuses.count(201) == 1
    assert homes(crowd.rig, content)[1] == [content, content]
    crowd.assert_nothing_left()


@pytest.mark.parametrize("first", ["right", "wrong"])
def test_a_wrong_body_never_wins_in_any_order(tmp_path, first):
    right, numbers = sample(500), count()
    wrong, name = sample(500, seed=1), str(Digest.of(right))
    bodies = [right, wrong] if first == "right" else [wrong, right]

    def scenario(choose):
        held = HeldPool()
        path = tmp_path / str(next(numbers))
        rig = Rig(path, (1,), files=QuickFiles, worker=lambda: held)
        clients = [rig.connect() for _ in bodies]
        for client, body in zip(clients, bodies, strict=True):
            headers = [("Authorization", AUTHORIZATION)]
            client.send(request_bytes("POST", f"/{name}", headers, body))
        while held.held:
            release(held, choose(len(held.held)))
            assert {copy.read_bytes() for copy in rig.samples()} <= {right}
        answers = {}
        for client, body in zip(clients, bodies, strict=True):
            client.settle()
            answers[body] = client.responses(["POST"])[0].status
        assert answers[right] == 201
        assert answers[wrong] in (412, 200)  # 200: stored already when it asked
        assert [copy.read_bytes() for copy in rig.samples()] == [right]
        assert_nothing_left(rig)

    assert every_order(scenario) > 3


@pytest.mark.parametrize("seed", range(30))
def test_wrong_bodies_never_win_on_two_pairs(tmp_path, seed):
    crowd, right = Crowd(tmp_path, seed=seed), sample(2000)
    name = str(Digest.of(right))
    for number in range(12):
        wrong = sample(2000, seed=number) if number % 2 else right[:-1]
        crowd.post(right if number % 3 == 0 else wrong, name)

    def only_the_right_bytes():
        assert {copy.read_bytes() for copy in crowd.rig.samples()} <= {right}

    crowd.run(only_the_right_bytes)
    assert crowd.statuses.count(201) == 1
    assert set(crowd.statuses) <= {200, 201, 412}
    assert homes(crowd.rig, right)[1] == [right, right]
    crowd.assert_nothing_left()


def test_1000_distinct_samples_at_once(tmp_path):
    crowd = Crowd(tmp_path, (2,))
    contents = [b"sample %d" % number for number in range(1000)]
    for content in contents:
        crowd.post(content)
    crowd.run()
    assert crowd.statuses == [201] * 1000
    for content in contents:
        assert homes(crowd.rig, content)[1] == [content, content]
    assert len(crowd.rig.samples()) == 2000
    crowd.assert_nothing_left()


@pytest.mark.parametrize("lost", [[0], [1], [0, 1]], ids=str)
def test_a_lost_copy_is_put_back_while_a_slow_upload_of_the_sample_goes_on(tmp_path, lost):
    rig, content = Rig(tmp_path, (2,)), sample(2000)
    slow = rig.store.expect(Digest.of(content), 2000)
    assert result_of(slow.stored()) is None
    paths, _ = result_of(put(rig.store, content))
    for place in lost:
        Path(paths[place]).unlink()

    assert result_of(put(rig.store, content))[0] == paths
    assert homes(rig, content)[1] == [content, content]
    result_of(slow.leave())


def test_an_upload_that_saw_the_copies_lost_writes_them_whatever_others_believe(tmp_path):
    rig, content = Rig(tmp_path, (2,)), sample(2000)
    slow = rig.store.expect(Digest.of(content), 2000)
    assert result_of(slow.stored()) is None
    result_of(slow.begin())
    result_of(slow.add([content], last=True))
    paths, _ = result_of(put(rig.store, content))
    for path in paths:
        Path(path).unlink()

    late = rig.store.expect(Digest.of(content), 2000)
    assert result_of(late.stored()) is None
    result_of(late.begin())
    result_of(late.add([content], last=True))
    result_of(slow.commit())
    assert result_of(late.commit())[0] == paths
    assert homes(rig, content)[1] == [content, content]
    result_of(slow.leave())
    result_of(late.leave())


class OneDisk:
    """Two copies of one sample on their way onto the same disk."""

    def __init__(self, root):
        root.mkdir()
        self.path = root / Digest.of(b"content").disk_path
        self.disk = Disk(str(root), QuickFiles())
        self.disk.identify(root.stat().st_dev)
        self.first, self.second = self._copy(), self._copy()

    def _copy(self):
        staged = begin(self.disk, None)
        staged.write([b"content"])
        staged.seal(Digest.of(b"content"), 10**9)
        staged.sync()
        return staged

    def name(self, staged):
        name(staged, Digest.of(b"content"))
        sync_directories(staged, Digest.of(b"content"))


@pytest.mark.parametrize("last", ["first", "second"])
def test_a_name_that_another_upload_relies_on_is_not_taken_away(tmp_path, last):
    one = OneDisk(tmp_path / "disk")
    one.name(one.first)
    one.name(one.second)
    ends = [one.second.close, one.first.discard]
    for end in ends if last == "first" else reversed(ends):
        end()
    assert one.path.read_bytes() == b"content"


def test_a_name_that_is_relied_on_is_synced_by_each(tmp_path):
    one = OneDisk(tmp_path / "disk")
    one.name(one.first)
    path, seen = Digest.of(b"content").disk_path, len(one.disk.files.calls)
    one.name(one.second)
    synced = [call.path for call in one.disk.files.calls[seen:] if call.name == "sync"]
    assert synced[0] == path
    assert Digest.of(b"content").directories[-1] in synced[1:]
    one.first.close()
    one.second.close()


def test_the_copy_of_an_upload_that_succeeded_outlives_one_that_fails(tmp_path):
    one = OneDisk(tmp_path / "disk")
    one.name(one.first)
    one.name(one.second)
    one.first.close()
    one.second.discard()
    assert one.path.read_bytes() == b"content"


@pytest.mark.parametrize("order", ["first", "second"])
def test_of_two_uploads_that_both_fail_nothing_is_left(tmp_path, order):
    one = OneDisk(tmp_path / "disk")
    one.name(one.first)
    one.name(one.second)
    for staged in (one.first, one.second) if order == "first" else (one.second, one.first):
        staged.discard()
    assert not one.path.exists()
    digest = Digest.of(b"content")
    assert one.disk.durable_directories.missing(digest) == list(digest.directories)


def test_a_name_that_is_being_taken_away_is_not_relied_on_and_holds_up_no_other():
    claims, name, other = Claims(), Digest.of(b"content"), Digest.of(b"other")
    unlinking, go_on, order = Event(), Event(), []

    def unlink():
        unlinking.set()
        assert go_on.wait(PATIENCE_SECONDS)
        order.append("unlinked")

    def rely():
        claims.begin(name)
        order.append("relied on")

    claims.begin(name)
    claims.made(name)
    threads = [Thread(target=claims.fail, args=(name, unlink)), Thread(target=rely)]
    threads[0].start()
    assert unlinking.wait(PATIENCE_SECONDS)
    threads[1].start()
    claims.begin(other)
    claims.succeed(other)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert order == ["unlinked", "relied on"]


class BusyPool(InlinePool):
    """Accepts nothing from its `first` job on for so many `jobs`; the others are done at once."""

    def __init__(self, first, jobs):
        self.first, self.jobs, self.seen = first, jobs, 0

    def run(self, function, *args):
        self.seen += 1
        if self.first < self.seen <= self.first + self.jobs:
            return fail(Busy("set0/disk1: 1000 operations are waiting"))
        return super().run(function, *args)


@pytest.fixture(params=[2000, 3 * MIB], ids=["small", "large"])
def content(request):
    return sample(request.param)


@pytest.fixture(params=[(first, jobs) for first in range(8) for jobs in (1, 2, 3)], ids=str)
def busy(request, tmp_path):
    """A Stor of one pair whose second disk has too much to do for a while."""
    # Each disk is given its worker for reading, then its worker for writing.
    workers = [InlinePool(), InlinePool(), InlinePool(), BusyPool(*request.param)]
    return Rig(tmp_path, (2,), files=QuickFiles, worker=lambda: workers.pop(0))


def test_a_disk_with_too_much_to_do_costs_no_acknowledged_sample(busy, content):
    (outcome,) = start(put(busy.store, content))
    if isinstance(outcome, Failure):
        assert isinstance(outcome.value, StorError)
        assert not busy.samples()
    else:
        assert homes(busy, content)[1] == [content, content]
    assert_nothing_left(busy)


def test_a_disk_with_too_much_to_do_costs_no_descriptor(busy, content):
    before = descriptors()
    start(put(busy.store, content))
    assert descriptors() == before
