"""Whatever became of a disk's index while no Stor ran, no sample is 404 that the other disk has.

The disk answers alone for its set after that, as the other one is away; some of its own copies are
gone, too. Once both are there, all is whole and known again.
"""

import re
import shutil

import pytest
from twisted.internet.defer import Deferred

from stor.disk.journal import RECORD_BYTES, Position
from stor.disk.names import BadProof, DiskNames
from tests.conformance import sample
from tests.support.host import Host
from tests.support.http import assert_one_line, no_bug_logged
from tests.support.rig import FaultyRig, digest_of
from tests.test_names import OwnFileSystem, cut, empty, flip, halve, remove

EARLY = [sample(1000, n) for n in range(10)]
LATE = [sample(1000, n) for n in range(10, 20)]
ALL = [*EARLY, *LATE]

ALONE, AWAY = "set0/disk0", "set0/disk1"


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Pair(Host):
    """A pair of disks, each alone on its file system, and the Stors that run on it in turn."""

    inodes = 1000
    remembered = None

    def start(self, *, clean=True):
        """The next Stor, after an end of the last."""
        if self.remembered is not None:
            names = self.rig.mirrors.names
            if clean:
                Deferred.fromCoroutine(names.end())
            self.remembered = self.rig.mirrors.known_disks.remembered()
        kind = type("Counted", (OwnFileSystem,), {"used": self.inodes})
        self.rig = FaultyRig(self.path, (2,), kind=kind, remembered=self.remembered or {})
        self.remembered = self.remembered or {}
        self.rig.begin()
        self.settle()
        return self.rig

    def settle(self, rounds=3):
        for _ in range(rounds):
            self.rig.clock.pump([0] * 50)
            self.rig.rounds(1)

    def put(self, contents):
        for content in contents:
            assert self.rig.put(content).status == 201
        self.settle(1)

    @property
    def disk(self):
        return self.path / ALONE

    @property
    def index(self):
        return self.disk / ".stor" / "index"

    def unlink(self, contents):
        for content in contents:
            (self.disk / digest_of(content).disk_path).unlink()

    def take_away(self):
        (self.path / AWAY).rename(self.path / "away")

    def bring_back(self):
        shutil.rmtree(self.path / AWAY, ignore_errors=True)
        (self.path / "away").rename(self.path / AWAY)


def copies_are_removed(pair):
    pair.put(ALL)
    pair.start()
    pair.unlink(LATE)
    pair.inodes = 990
    return True


def the_index_is_removed(pair):
    pair.put(ALL)
    shutil.rmtree(pair.index)
    pair.unlink(LATE)
    return False


def the_index_is_the_other_disks(pair):
    pair.put(ALL)
    shutil.rmtree(pair.index)
    shutil.copytree(pair.path / AWAY / ".stor" / "index", pair.index)
    pair.unlink(LATE)
    return False


def the_index_is_an_older_one(pair):
    pair.put(EARLY)
    shutil.copytree(pair.index, pair.path / "kept")
    pair.put(LATE)
    shutil.rmtree(pair.index)
    (pair.path / "kept").rename(pair.index)
    return False


def the_index_is_an_older_one_after_another_start(pair):
    """Which has brought nothing to stable storage itself."""
    pair.put(EARLY)
    shutil.copytree(pair.index, pair.path / "kept")
    pair.put(LATE)
    pair.unlink(LATE)
    pair.start()
    shutil.rmtree(pair.index)
    (pair.path / "kept").rename(pair.index)
    return False


def the_disk_is_an_older_one(pair):
    pair.put(EARLY)
    shutil.copytree(pair.disk, pair.path / "kept")
    pair.put(LATE)
    shutil.rmtree(pair.disk)
    (pair.path / "kept").rename(pair.disk)
    return False


def the_disk_is_one_from_before_its_index_was_lost(pair):
    """Its journal has more segments than the one that was begun then."""
    pair.put(EARLY)
    pair.start()
    pair.put(ALL[10:18])
    shutil.copytree(pair.disk, pair.path / "kept")
    shutil.rmtree(pair.index)
    pair.start()
    pair.put(ALL[18:])
    shutil.rmtree(pair.disk)
    (pair.path / "kept").rename(pair.disk)
    return False


def the_disk_is_as_it_was_after_a_clean_end(pair):
    pair.put(EARLY)
    Deferred.fromCoroutine(pair.rig.mirrors.names.end())
    shutil.copytree(pair.disk, pair.path / "kept")
    pair.start()
    pair.put(LATE)
    shutil.rmtree(pair.disk)
    (pair.path / "kept").rename(pair.disk)
    return False


def damaged(name, damage):
    """Damage to a segment of the journal, to the base, or to what is noted of both."""

    def way(pair):
        pair.put(EARLY)
        pair.start()
        pair.put(LATE)
        damage(pair.index / name)
        pair.unlink(LATE)
        return False

    way.__name__ = f"{damage.__name__} {name}"
    return way


WAYS = [
    copies_are_removed,
    the_index_is_removed,
    the_index_is_the_other_disks,
    the_index_is_an_older_one,
    the_index_is_an_older_one_after_another_start,
    the_disk_is_an_older_one,
    the_disk_is_as_it_was_after_a_clean_end,
    the_disk_is_one_from_before_its_index_was_lost,
    *[
        damaged(name, damage)
        for name in ("journal-000000000001", "journal-000000000002", "proof.json")
        for damage in (cut, halve, flip, empty, remove)
    ],
]


@pytest.fixture
def pair(quick_path):
    pair = Pair(quick_path)
    pair.start()
    return pair


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_sample_is_404_that_the_other_disk_has(pair, way, figures):
    clean = way(pair)
    pair.take_away()
    for _ in ("at once", "after another start"):
        pair.start(clean=clean)
        for content in ALL:
            answer = pair.rig.get(content)
            if answer.status == 200:
                assert answer.body == content
            else:
                assert_one_line(answer, 503)
        clean = True
    pair.bring_back()
    pair.settle()
    for content in ALL:
        assert pair.rig.get(content).body == content
        if way is copies_are_removed:  # which somebody has to ask for before that shows
            assert pair.rig.put(content).status == 200
        assert (pair.disk / digest_of(content).disk_path).read_bytes() == content
    assert [member.complete for member in pair.rig.members] == [True, True]
    assert_one_line(pair.rig.get(b"absent"), 404)
    figures["states of an index, the other disk away, no sample 404"] += 1


def test_a_disk_that_has_lost_its_index_and_is_not_written_proves_nothing(pair):
    """Nothing can be noted on it; it proves nothing whenever it is looked at."""
    pair.put(ALL)
    (pair.disk / ".stor" / "read-only").touch()
    shutil.rmtree(pair.index)
    pair.unlink(LATE)
    pair.take_away()
    for _ in ("at once", "after another start"):
        pair.start()
        assert {pair.rig.get(content).status for content in EARLY} == {200}
        assert {pair.rig.get(content).status for content in LATE} == {503}


@pytest.mark.parametrize("lost_bytes", [0, 1, 90])
def test_a_copy_whose_record_was_torn_is_found(pair, lost_bytes):
    """What was behind the last good record may have been one: the disk is walked."""
    pair.put(EARLY)
    last = LATE[0]
    assert pair.rig.put(last).status == 201
    segment = pair.index / "journal-000000000001"
    content = segment.read_bytes()
    segment.write_bytes(content[: len(content) - lost_bytes - 1] + b"?")
    pair.take_away()
    for _ in ("at once", "after another start"):
        pair.start(clean=False)
        assert pair.rig.get(last).body == last
        assert {pair.rig.get(content).status for content in EARLY} == {200}


def test_a_disk_whose_journal_turns_out_to_be_damaged_is_not_known_from_then_on(pair):
    """Not only once the next probe has been there."""
    damaged("journal-000000000001", flip)(pair)
    pair.take_away()
    pair.settle = lambda: pair.rig.clock.pump([0] * 50)
    pair.start(clean=False)
    assert [pair.rig.get(content).body for content in EARLY] == EARLY


def test_a_start_does_not_forget_how_long_a_journal_was(pair):
    pair.put(ALL)
    before = pair.rig.members[0].names.durable
    for _ in range(3):
        pair.start(clean=False)
    assert pair.rig.members[0].names.durable == before
    shorter = Position(before.segment, before.records - 1)
    segment = pair.index / "journal-000000000001"
    segment.write_bytes(segment.read_bytes()[:-RECORD_BYTES])
    with (
        pair.rig.members[0].disk.entered() as root_fd,
        pytest.raises(BadProof, match=re.escape(f"ends at {tuple(shorter)}")),
    ):
        DiskNames.open(pair.rig.members[0].disk, pair.marker(ALONE)["uuid"], root_fd)
