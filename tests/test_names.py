"""What is missing: the names of all samples, learnt when somebody asks."""

import errno
import os

import pytest

from stor.mirror.names import Names
from tests.support.host import Host, member
from tests.support.pools import InlinePool
from tests.support.rig import digest_of

KEPT = [b"sample %d" % number for number in range(40)]
ABSENT = digest_of(b"stored by nobody")


@pytest.fixture
def host(quick_path):
    return Host(quick_path)


@pytest.fixture(autouse=True)
def _stopped():
    """No memory is left to other tests, some of which count descriptors."""
    yield
    while STARTED:
        STARTED.pop().stop()


STARTED = []


def started(host, contents=(), **options):
    """A Stor that can be asked, with these samples stored before anybody asks."""
    rig = host.start(**options)
    rig.mirrors.names = Names(rig.clock, lambda name: InlinePool(), **NAMES)
    STARTED.append(rig.mirrors.names)
    for content in contents:
        assert rig.put(content).status == 201
    rig.mirrors.names.resume(rig.mirrors.mirrors)
    return rig


NAMES = {"recent_limit": 1000}


def ask(rig, digest):
    return rig.store.held(digest.raw)


def learnt(rig):
    """What was asked first has been learnt as far as that can be."""
    ask(rig, ABSENT)
    for _ in range(3):
        rig.clock.pump([0] * 50)
        rig.rounds(1)
    return rig


def answers(rig):
    return {ask(rig, digest_of(content)) for content in KEPT}


def test_nothing_is_known_before_somebody_asks_and_all_after(host):
    rig = started(host, KEPT)
    assert ask(rig, ABSENT) == b"?"
    learnt(rig)
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


def test_a_stor_that_starts_again_learns_what_was_stored_before(host):
    started(host, KEPT)
    rig = learnt(started(host))
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


def test_what_is_stored_afterwards_is_known_at_once_and_what_fails_is_not(host):
    rig = learnt(started(host))
    assert ask(rig, digest_of(b"new")) == b"-"
    assert rig.put(b"new").status == 201
    assert ask(rig, digest_of(b"new")) == b"+"
    assert rig.put(b"wrong", digest_of(b"another")).status == 412
    assert ask(rig, digest_of(b"another")) == b"-"


def test_a_set_that_a_reload_adds_is_not_known_at_once_and_one_that_it_takes_out_is_gone(host):
    started(host, KEPT)
    rig = started(host)
    mirrors, known_disks = rig.mirrors.mirrors, rig.members[0].known_disks
    rig.mirrors.reconfigure(mirrors[:1], known_disks, 0)
    assert ask(learnt(rig), ABSENT) == b"-"
    assert answers(rig) == {b"+", b"-"}
    rig.mirrors.reconfigure(mirrors, known_disks, 0)
    assert answers(rig) == {b"+", b"?"}
    assert answers(learnt(rig)) == {b"+"}
    rig.mirrors.reconfigure(mirrors[:1], known_disks, 0)
    assert answers(rig) == {b"+", b"-"}


@pytest.mark.parametrize("disk", [0, 1])
def test_what_one_disk_of_a_set_has_is_not_missing(host, disk):
    started(host, KEPT)
    for label in (f"set0/disk{disk}", f"set1/disk{disk}"):
        for path in (host.path / label).glob("??/??/??/*"):
            path.unlink()
    rig = started(host)
    assert ask(learnt(rig), ABSENT) == b"-"
    assert answers(rig) == {b"+"}
    assert len(listed(rig, bytes(32), 100)) == len(KEPT)


def test_no_disk_is_asked(host):
    rig = learnt(started(host, KEPT))
    before = sum(len(files.calls) for files in rig.disks.values())
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"
    assert sum(len(files.calls) for files in rig.disks.values()) == before


def test_with_a_set_away_from_the_start_what_is_not_known_may_be_there(host):
    started(host, KEPT)
    for label in ("set1/disk0", "set1/disk1"):
        (host.path / label).rename(host.path / label.replace("/", "-"))
    rig = learnt(started(host))
    assert ask(rig, ABSENT) == b"?"
    assert answers(rig) == {b"+", b"?"}


def test_with_a_set_away_later_on_all_is_known_as_before(host):
    rig = learnt(started(host, KEPT))
    for label in ("set1/disk0", "set1/disk1"):
        (host.path / label).rename(host.path / label.replace("/", "-"))
    rig.rounds(2)
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


def test_a_directory_that_cannot_be_read_leaves_its_set_unknown_until_it_can(host):
    rig = started(host, KEPT)
    for files in rig.disks.values():
        files.fail_always("list_inodes", errno.EACCES)
    learnt(rig)
    assert ask(rig, ABSENT) == b"?"
    for files in rig.disks.values():
        files.heal()
    assert ask(learnt(rig), ABSENT) == b"-"


def test_a_stray_file_in_the_place_of_a_directory_holds_no_samples(host):
    rig = started(host, KEPT)
    path = rig.copies(KEPT[0])[0].parent
    path.rename(f"{path}.aside")
    path.write_bytes(b"no directory")
    assert ask(learnt(rig), ABSENT) == b"-"


@pytest.mark.parametrize("complete", [True, False])
def test_only_a_complete_disk_speaks_for_its_set(host, complete):
    started(host, KEPT)
    if not complete:
        for disk in "01":
            (host.path / f"set0/disk{disk}/.stor/disk.json").unlink()
        (host.path / "set0/disk1").rename(host.path / "away")
    rig = learnt(started(host))
    assert ask(rig, ABSENT) == (b"-" if complete else b"?")
    assert member(rig, "set0/disk0").complete == complete


def test_a_table_is_made_of_many_names_and_nothing_is_forgotten(host):
    NAMES["recent_limit"] = 10
    try:
        rig = learnt(started(host, KEPT))
        rig.rounds(3)
    finally:
        NAMES["recent_limit"] = 1000
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


@pytest.mark.parametrize("limit", [1, 7, len(KEPT), 10_000])
def test_samples_are_listed_in_order_with_their_sizes(host, limit):
    contents = [*KEPT, b"", os.urandom(5000)]
    rig = started(host, contents)
    expected = sorted((digest_of(c).raw, len(c)) for c in contents)
    found, begin = [], bytes(32)
    while True:
        page = listed(rig, begin, limit)
        found += page
        if len(page) < limit:
            break
        begin = (int.from_bytes(page[-1][0], "big") + 1).to_bytes(32, "big")
    assert found == expected


def test_without_a_complete_disk_nothing_is_listed(host):
    started(host, KEPT)
    for disk in "01":
        (host.path / f"set0/disk{disk}").rename(host.path / f"away{disk}")
    assert listed(started(host), bytes(32), 10) is None


def listed(rig, begin, limit):
    listing = rig.store.listed(begin, limit)
    with pytest.raises(StopIteration) as ended:
        listing.send(None)
    return ended.value.value
