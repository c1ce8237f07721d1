"""Scouts: all disks are looked at in one go, and one that hangs or fails is no matter to others."""

import errno

import pytest
from twisted.internet.defer import Deferred

from stor.digest import Digest
from stor.errors import NotFound, Unavailable
from stor.mirror.health import ERRORS_UNTIL_SUSPECT, State
from stor.mirror.member import ANSWER_SECONDS
from stor.mirror.scout import COLD_SECONDS, PATIENCE_SECONDS, TOUR_SECONDS, Scouts
from tests.conformance import QuickFiles, descriptors, sample
from tests.support.files import FaultyFiles
from tests.support.http import no_bug_logged
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import FaultyRig, Rig, digest_of

SETS = (2, 2, 2, 2)
ABSENT = digest_of(b"absent")


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(quick_path):
    """Disks of which any can hang."""
    return FaultyRig(quick_path, SETS, kind=QuickFiles, threads=True)


@pytest.fixture
def held(tmp_path):
    """A rig whose scout sets out when the test says so; all else is done at once."""
    rig = Rig(tmp_path, SETS, files=FaultyFiles, scout=HeldPool())
    rig.scout = rig.mirrors.scouts._worker
    return rig


def places(rig):
    return [place for mirror in rig.mirrors.mirrors for place in mirror.places]


def ended(asking):
    """What a coroutine or a Deferred has come to, as it does: a list of one, or of none yet."""
    outcome = []
    Deferred.fromCoroutine(asking).addBoth(outcome.append)
    return outcome


def reads(rig, member):
    """How many operations on the disk its meter has counted."""
    families = rig.metrics.figures.families()
    (family,) = [one for one in families if one.name == "stor_disk_operation_seconds"]
    return family.samples["_count"].get((member.root, "read"), 0)


def test_a_miss_is_one_visit_to_a_thread(held):
    """However many disks there are; each is asked, and counted."""
    before = [reads(held, member) for member in held.members]
    outcome = ended(held.store.find(ABSENT))
    assert len(held.scout.held) == 1
    assert not outcome
    held.scout.release(1)
    assert outcome[0].check(NotFound)
    assert [reads(held, m) - n for m, n in zip(held.members, before, strict=True)] == [1] * 8
    assert held.metrics.figures.lookup_attempts[()].total == 8


def test_no_more_disks_are_asked_than_it_takes_to_find_a_copy(tmp_path):
    rig = Rig(tmp_path, SETS)
    contents = [sample(100, seed) for seed in range(40)]
    for content in contents:
        assert rig.put(content).status == 201
    attempts = rig.metrics.figures.lookup_attempts[()]
    rig.store.locations = None
    for content in contents:
        before = attempts.total
        assert rig.get(content, method="HEAD").status == 200
        head, before = attempts.total - before, attempts.total
        assert rig.get(content).body == content
        assert {head, attempts.total - before} <= {1, 2, 3, 4}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("hung", [("set0/disk0",), ("set0/disk0", "set2/disk1", "set3/disk0")])
def test_a_disk_that_hangs_holds_one_scout_and_nobody_else(rig, method, hung):
    contents = [sample(100, seed) for seed in range(30)]
    for content in contents:
        assert rig.put(content).status == 201
    before = descriptors()
    for label in hung:
        rig.hang(label)
    for content in contents * 2:
        connection = rig.connect()
        connection.send(f"{method} /{digest_of(content)} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
        for _ in range(2 * len(hung)):
            connection.wait(PATIENCE_SECONDS)
        assert connection.responses([method])[0].status == 200
    assert len(rig.mirrors.scouts._lost) <= len(hung)
    rig.heal()
    rig.clock.advance(ANSWER_SECONDS)
    assert not rig.mirrors.scouts._lost
    assert descriptors() == before
    assert not any(member.slow or member.under_way for member in rig.members)


def test_a_miss_is_none_before_a_whole_set_has_answered(rig):
    for label in ("set1/disk0", "set1/disk1"):
        rig.hang(label)
    outcome = ended(rig.store.find(ABSENT))
    for _ in range(50):
        rig.clock.advance(PATIENCE_SECONDS)
    assert outcome[0].check(Unavailable)
    rig.heal()
    assert ended(rig.store.find(ABSENT))[0].check(NotFound)


def test_with_all_scouts_away_the_disks_are_asked_by_their_own_threads(held):
    content = sample(100, 1)
    outcome = ended(held.mirrors.survey(digest_of(content), 100))
    lost = [ended(held.store.find(ABSENT)) for _ in range(4)]
    held.clock.advance(PATIENCE_SECONDS)
    assert [one.check(NotFound) for (one,) in lost] == [NotFound] * 4
    assert outcome == [[]]
    waiting = len(held.scout.held)
    assert held.put(content).status == 201
    assert held.get(content).body == content
    assert ended(held.store.find(ABSENT))[0].check(NotFound)
    assert len(held.scout.held) == waiting, "a scout was sent though none is left"
    held.scout.release()
    ended(held.store.find(ABSENT))
    assert len(held.scout.held) == 1


def test_what_a_late_scout_saw_is_counted_once(held):
    outcome = ended(held.store.find(ABSENT))
    held.clock.advance(PATIENCE_SECONDS)
    before = [reads(held, member) for member in held.members]
    held.scout.release()
    assert outcome[0].check(NotFound)
    assert [reads(held, member) for member in held.members] == before, "it had been called back"


def test_a_scout_notices_that_a_disk_is_away(tmp_path):
    rig = Rig(tmp_path, SETS)
    away = rig.members[2]
    (tmp_path / "set1" / "disk0").rename(tmp_path / "elsewhere")
    assert ended(rig.store.find(ABSENT))[0].check(NotFound)
    assert away.health.state is State.OFFLINE
    (tmp_path / "set1" / "disk1").rename(tmp_path / "elsewhere too")
    assert ended(rig.store.find(ABSENT))[0].check(Unavailable)


def test_a_disk_that_is_away_takes_no_part_in_a_survey(tmp_path):
    rig = Rig(tmp_path, SETS)
    (tmp_path / "set1" / "disk0").rename(tmp_path / "elsewhere")
    (survey,) = ended(rig.mirrors.survey(ABSENT, 1))[0]
    assert survey.mirror is rig.mirrors.mirrors[1]
    assert survey.answers == [(rig.members[3], None)]


def test_a_scout_notices_errors(tmp_path):
    files = {}
    rig = Rig(tmp_path, SETS, files=lambda label: files.setdefault(label, FaultyFiles(label)))
    files["set0/disk0"].fail_always("stat", errno.EIO)
    for n in range(ERRORS_UNTIL_SUSPECT):
        assert rig.members[0].health.state is State.ONLINE
        assert rig.members[0].health.errors_total == n
        assert ended(rig.store.find(Digest.of(b"absent %d" % n)))[0].check(Unavailable)
    assert rig.members[0].health.state is State.SUSPECT


def test_an_error_that_a_scout_saw_is_in_the_survey(tmp_path):
    files = {}
    rig = Rig(tmp_path, SETS, files=lambda label: files.setdefault(label, FaultyFiles(label)))
    files["set0/disk0"].fail_always("stat", errno.EIO)
    (survey,) = ended(rig.mirrors.survey(ABSENT, 1))[0]
    assert survey.mirror is rig.mirrors.mirrors[0]
    assert [answer.value.errno for _, answer in survey.answers if answer] == [errno.EIO]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_copy_that_is_gone_when_it_is_opened_was_not_found(tmp_path, lost):
    content = sample(100, 1)
    rig = Rig(tmp_path, SETS, scout=HeldPool(), knows=False)
    scout = rig.mirrors.scouts._worker
    Deferred.fromCoroutine(rig.mirrors.survey(ABSENT, 1))
    scout.release()
    rig.mirrors.scouts._worker = InlinePool()
    assert rig.put(content).status == 201
    rig.mirrors.scouts._worker = scout
    rig.store.locations = None
    outcome = ended(rig.store.open(digest_of(content)))
    ((_, walk, (tour,)),) = scout.held
    walk(tour)  # it has been there, and is not back yet
    seen = tour.reports[-1].place.member
    gone = [m for m in rig.members if m is seen] if lost == 1 else rig.members
    for path in rig.copies(content):
        if any(str(path).startswith(member.root) for member in gone):
            path.unlink()
    scout.release()
    scout.release()
    if lost == 1:
        assert outcome[0].size == len(content)
        outcome[0].close()
        assert len(rig.copies(content)) == 2, "the lost one was put back"
    else:
        assert outcome[0].check(NotFound)


def test_no_two_scouts_are_at_one_disk(rig):
    rig.hang("set0/disk0")
    for _ in range(5):
        reports = []
        rig.mirrors.scouts.sweep(places(rig), ABSENT, until_found=False).addCallback(reports.extend)
        rig.clock.advance(PATIENCE_SECONDS)
    assert len(rig.mirrors.scouts._lost) == 1
    assert [report.place.member for report in reports] == rig.members[1:]
    assert rig.mirrors.scouts.lost_at(rig.members[0])
    rig.heal()
    assert not rig.mirrors.scouts.lost_at(rig.members[0])


@pytest.mark.parametrize("until_found", [True, False])
def test_disks_that_must_be_read_from_are_left_to_their_own_threads(tmp_path, until_found):
    """Those wait for many disks at once. A set is as cold as one of its disks."""
    rig = Rig(tmp_path, SETS)
    device_reads = iter(range(100))

    class Cold(FaultyFiles):
        def stat(self, *args):
            rig.clock.advance(0.01)
            return super().stat(*args)

    rig.members[2].disk.files = Cold()
    scouts = Scouts(InlinePool(), 4, rig.clock, lambda: next(device_reads))

    def seen():
        reports = []
        sweep = scouts.sweep(places(rig), ABSENT, until_found=until_found)
        sweep.addCallback(reports.extend)
        return [report.place.member for report in reports]

    assert seen() == rig.members[:3]
    assert seen() == [*rig.members[:2], *rig.members[4:]]
    rig.clock.advance(COLD_SECONDS)
    assert seen() == rig.members[:3]


def test_a_tour_that_waits_its_turn_while_others_get_on_is_waited_for(held):
    """Else many at once would be sent to all disks' own threads, which takes far longer."""
    first, second = [], []
    scouts = held.mirrors.scouts
    scouts.sweep(places(held), ABSENT, until_found=False).addCallback(first.append)
    scouts.sweep(places(held), ABSENT, until_found=False).addCallback(second.append)
    held.clock.advance(PATIENCE_SECONDS * 0.9)
    held.scout.release(1)
    assert len(first) == 1
    held.clock.advance(PATIENCE_SECONDS * 0.9)
    assert not second
    held.clock.advance(PATIENCE_SECONDS * 0.2)
    assert second == [[]]
    held.scout.release()


def test_a_scout_that_gets_on_too_slowly_is_not_waited_for(held):
    outcome = []
    scouts = held.mirrors.scouts
    scouts.sweep(places(held), ABSENT, until_found=False).addCallback(outcome.append)
    ((_, _, (tour,)),) = held.scout.held
    for _ in range(int(TOUR_SECONDS / PATIENCE_SECONDS * 2)):
        assert not outcome
        held.clock.advance(PATIENCE_SECONDS / 2)
        tour.sent, tour.since = True, held.clock.seconds()  # it has come to another disk
    assert outcome == [[]]
    held.scout.release()
