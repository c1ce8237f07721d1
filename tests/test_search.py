"""Looking for a sample: no disk too many is asked, and one that hangs or fails holds up nobody."""

import errno

import pytest
from twisted.internet.defer import Deferred

from stor.digest import Digest
from stor.errors import NotFound, Unavailable
from stor.mirror.health import ERRORS_UNTIL_SUSPECT, State
from stor.mirror.member import ANSWER_SECONDS
from stor.mirror.search import HEDGE_SECONDS, MOST_AT_ONCE
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


@pytest.fixture(params=[True, False], ids=["index", "no-index"])
def rig(quick_path, request):
    """Disks of which any can hang."""
    return FaultyRig(quick_path, SETS, kind=QuickFiles, threads=True, knows=request.param)


def ended(asking):
    """What a coroutine or a Deferred has come to, as it does: a list of one, or of none yet."""
    outcome = []
    Deferred.fromCoroutine(asking).addBoth(outcome.append)
    return outcome


@pytest.mark.parametrize(("knows", "most"), [(True, {1}), (False, set(range(1, len(SETS) + 1)))])
def test_no_more_disks_are_asked_than_it_takes_to_find_a_copy(tmp_path, knows, most):
    rig = Rig(tmp_path, SETS, knows=knows)
    contents = [sample(100, seed) for seed in range(40)]
    for content in contents:
        assert rig.put(content).status == 201
    attempts = rig.metrics.figures.lookup_attempts[()]
    rig.reconfigure(locations=None)
    for content in contents:
        before = attempts.total
        assert rig.get(content, method="HEAD").status == 200
        head, before = attempts.total - before, attempts.total
        assert rig.get(content).body == content
        assert {head, attempts.total - before} <= most


@pytest.mark.parametrize("sets", [(2,) * 3, (3,) * 20], ids=str)
def test_where_nobody_knows_a_disk_of_several_mirrors_is_asked_at_once(tmp_path, sets):
    """Never two of one mirror, nor more than are good for all who wait."""
    pools = {}

    def workers(label):
        return pools.setdefault(label, HeldPool()), InlinePool(), InlinePool()

    rig = Rig(tmp_path, sets, workers=workers, knows=False)
    outcome = ended(rig.store.find(ABSENT))
    asked = [label for label, pool in pools.items() if pool.held]
    assert len(asked) == min(len(sets), MOST_AT_ONCE)
    assert len({label.partition("/")[0] for label in asked}) == len(asked)
    while not outcome:
        for pool in pools.values():
            pool.release()
    assert outcome[0].check(NotFound)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("hung", [("set0/disk0",), ("set0/disk0", "set2/disk1", "set3/disk0")])
def test_a_disk_that_hangs_holds_up_nobody(rig, method, hung):
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
            connection.wait(HEDGE_SECONDS)
        assert connection.responses([method])[0].status == 200
    rig.heal()
    rig.clock.advance(ANSWER_SECONDS)
    assert descriptors() == before
    assert not any(member.slow or member.under_way for member in rig.members)


def test_a_miss_is_none_before_a_whole_set_has_answered(quick_path):
    rig = FaultyRig(quick_path, SETS, kind=QuickFiles, threads=True, knows=False)
    for label in ("set1/disk0", "set1/disk1"):
        rig.hang(label)
    outcome = ended(rig.store.find(ABSENT))
    for _ in range(50):
        rig.clock.advance(HEDGE_SECONDS)
    assert outcome[0].check(Unavailable)
    rig.heal()
    assert ended(rig.store.find(ABSENT))[0].check(NotFound)


def test_a_search_notices_that_a_disk_is_away(tmp_path):
    rig = Rig(tmp_path, SETS, knows=False)
    away = rig.members[2]
    (tmp_path / "set1" / "disk0").rename(tmp_path / "elsewhere")
    assert ended(rig.store.find(ABSENT))[0].check(NotFound)
    assert away.health.state is State.OFFLINE
    (tmp_path / "set1" / "disk1").rename(tmp_path / "elsewhere too")
    assert ended(rig.store.find(ABSENT))[0].check(Unavailable)


def test_a_disk_that_is_away_takes_no_part_in_a_survey(tmp_path):
    rig = Rig(tmp_path, SETS, knows=False)
    (tmp_path / "set1" / "disk0").rename(tmp_path / "elsewhere")
    (survey,) = ended(rig.mirrors.survey(ABSENT, 1))[0]
    assert survey.mirror is rig.mirrors.mirrors[1]
    assert survey.answers == [(rig.members[3], None)]


def test_errors_met_by_searches_make_a_disk_suspect(tmp_path):
    files = {}
    made = lambda label: files.setdefault(label, FaultyFiles(label))  # noqa: E731
    rig = Rig(tmp_path, SETS, files=made, knows=False)
    files["set0/disk0"].fail_always("stat", errno.EIO)
    for n in range(ERRORS_UNTIL_SUSPECT):
        assert rig.members[0].health.state is State.ONLINE
        assert rig.members[0].health.errors_total == n
        assert ended(rig.store.find(Digest.of(b"absent %d" % n)))[0].check(Unavailable)
    assert rig.members[0].health.state is State.SUSPECT


@pytest.mark.parametrize("lost", [1, 2])
def test_a_copy_that_is_gone_when_it_is_opened_was_not_found(tmp_path, lost):
    content = sample(100, 1)
    rig = Rig(tmp_path, (2,), knows=False)
    assert rig.put(content).status == 201
    copies = rig.copies(content)
    for path in copies[:lost]:
        path.unlink()
    outcome = ended(rig.store.open(digest_of(content)))
    if lost == 1:
        assert outcome[0].size == len(content)
        outcome[0].close()
    else:
        assert outcome[0].check(NotFound)
