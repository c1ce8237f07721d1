"""What is missing: the names of all samples, learnt when somebody asks."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from twisted.internet.defer import Deferred

from stor.cli.main import main
from stor.disk.journal import Kind
from stor.mirror.mirror import Mirror
from tests.conformance import QuickFiles, sample
from tests.support.host import LABELS, Host, member
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import digest_of
from tests.test_adopt import configuration

KEPT = [b"sample %d" % number for number in range(40)]
ABSENT = digest_of(b"stored by nobody")


@pytest.fixture
def host(quick_path):
    return Host(quick_path)


def started(host, contents=(), **options):
    """A Stor that can be asked, with these samples stored before anybody asks."""
    rig = host.start(knows=True, **options)
    for content in contents:
        assert rig.put(content).status == 201
    return rig


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


def test_all_is_known_once_the_disks_were_learnt(host):
    rig = learnt(started(host, KEPT))
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


def test_a_stor_that_starts_again_learns_what_was_stored_before(host):
    started(host, KEPT)
    rig = learnt(started(host))
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


@pytest.mark.parametrize("size", [3, 100_000])
def test_what_is_stored_afterwards_is_known_at_once_and_what_fails_is_not(host, size):
    rig, new, another = learnt(started(host)), sample(size), sample(size + 1)
    assert ask(rig, digest_of(new)) == b"-"
    assert rig.put(new).status == 201
    assert ask(rig, digest_of(new)) == b"+"
    assert rig.put(new, digest_of(another)).status == 412
    assert ask(rig, digest_of(another)) == b"-"


def test_a_set_that_a_reload_adds_is_not_known_at_once_and_one_that_it_takes_out_is_gone(host):
    started(host, KEPT)
    rig = started(host)
    mirrors, known_disks = rig.mirrors.mirrors, rig.mirrors.known_disks
    rig.mirrors.reconfigure(mirrors[:1], known_disks, 0)
    assert ask(learnt(rig), ABSENT) == b"-"
    assert answers(rig) == {b"+", b"-"}
    rig.mirrors.reconfigure(mirrors, known_disks, 0)
    assert b"-" not in answers(rig)
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
    started(host, KEPT)
    for label in LABELS:
        shutil.rmtree(index_of(host, label))

    def unlistable(label, log):
        files = QuickFiles(label, log)
        files.fail_always("list_inodes", errno.EACCES)
        return files

    rig = learnt(started(host, kind=unlistable))
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


@pytest.mark.parametrize("limit", [1, 7, len(KEPT), 10_000])
def test_samples_are_listed_in_order_with_their_sizes(host, limit):
    contents = [*KEPT, b"", os.urandom(5000)]
    rig = learnt(started(host, contents))
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


def index_of(host, label):
    return host.path / label / ".stor" / "index"


def calls_of(rig, name):
    return sum(call.name == name for files in rig.disks.values() for call in files.calls)


def test_a_disk_that_is_known_is_not_walked_again(host):
    learnt(started(host, KEPT))
    rig = started(host)
    before = calls_of(rig, "list_inodes")
    learnt(rig)
    assert answers(rig) == {b"+"}
    assert calls_of(rig, "list_inodes") == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


DAMAGES = [cut, halve, flip, empty, remove]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["journal-000000000001", "proof.json"])
def test_whatever_is_damaged_no_sample_is_said_to_be_missing(host, name, damage):
    learnt(started(host, KEPT))
    for label in LABELS:
        damage(index_of(host, label) / name)
    rig = started(host)
    assert b"-" not in answers(rig)
    learnt(rig)
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


def test_an_index_of_another_disk_is_not_believed(host):
    learnt(started(host, KEPT))
    one, other = (index_of(host, label) for label in ("set0/disk0", "set1/disk0"))
    aside = host.path / "aside"
    for old, new in ((one, aside), (other, one), (aside, other)):
        old.rename(new)
    rig = learnt(started(host))
    assert answers(rig) == {b"+"}


def test_a_disk_that_was_set_back_is_walked_anew(host):
    rig = learnt(started(host, KEPT[:20]))
    name = "journal-000000000001"
    kept = {label: (index_of(host, label) / name).read_bytes() for label in LABELS}
    for content in KEPT[20:]:
        assert rig.put(content).status == 201
    rig.rounds(1)
    for label, content in kept.items():
        (index_of(host, label) / name).write_bytes(content)
    rig = started(host)
    assert b"-" not in answers(rig)
    assert answers(learnt(rig)) == {b"+"}


def on_set(rig, number):
    """The samples whose copies are on this set."""
    label = f"/set{number}/"
    return [content for content in KEPT if label in str(rig.copies(content)[0])]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_copy_removed_by_hand_is_no_404_while_the_other_disk_is_away(host, restarted):
    rig = learnt(started(host, KEPT))
    content = on_set(rig, 0)[0]
    (host.path / "set0/disk1" / digest_of(content).disk_path).unlink()
    (host.path / "set0/disk0").rename(host.path / "away")
    if restarted:
        rig = learnt(started(host))
    else:
        rig.rounds(1)
    assert rig.get(content).status == 503
    (host.path / "set0/disk0").rmdir() if (host.path / "set0/disk0").exists() else None
    (host.path / "away").rename(host.path / "set0/disk0")
    rig.rounds(1)
    assert rig.get(content).body == content


def test_what_is_gone_from_every_disk_is_404_and_said_to_be_lost(host):
    rig = learnt(started(host, KEPT))
    for path in rig.copies(KEPT[0]):
        path.unlink()
    assert ask(rig, digest_of(KEPT[0])) == b"+"
    assert rig.get(KEPT[0]).status == 404
    assert ask(rig, digest_of(KEPT[0])) == b"-"
    assert rig.mirrors.names.lost_total == 1
    assert rig.put(KEPT[0]).status == 201
    assert rig.get(KEPT[0]).body == KEPT[0]


def test_a_sample_that_arrives_while_its_disks_are_asked_is_not_struck(host):
    rig = learnt(started(host))
    names, mirror = rig.mirrors.names, rig.mirrors.mirrors[0]
    digest = digest_of(b"content")
    names.stored(digest, mirror)
    asked = names.next_number
    arriving = names.expect(digest, mirror, Kind.STORED)
    arriving.begin()
    names.lost(digest, mirror, asked)
    assert ask(rig, digest) == b"+"
    arriving.done()
    names.lost(digest, mirror, asked)
    assert ask(rig, digest) == b"+"
    names.lost(digest, mirror, names.next_number)
    assert ask(rig, digest) == b"-"


def by_hand(host, content, label):
    """A sample that somebody has copied to a disk."""
    path = host.path / label / digest_of(content).disk_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def warnings(rig):
    return [warning for warning in rig.store.status().warnings if warning.startswith("index")]


def test_a_no_that_was_wrong_is_found_by_an_audit_and_ends_with_a_walk(host):
    rig = learnt(started(host, KEPT))
    by_hand(host, b"by hand", "set0/disk0")
    assert rig.get(b"by hand").status == 404
    assert rig.get(b"by hand").body == b"by hand"
    assert rig.mirrors.names.wrong_total == 1
    assert len(warnings(rig)) == 1
    by_hand(host, b"more by hand", "set0/disk1")
    assert rig.get(b"more by hand").body == b"more by hand"
    learnt(rig)
    assert warnings(rig) == []
    assert ask(rig, digest_of(b"more by hand")) == b"+"
    assert ask(rig, ABSENT) == b"-"


@pytest.mark.parametrize("roots", [[], ["set0/disk0"]])
def test_rescan_has_a_disk_walked_on_which_files_were_put(host, roots, capsys):
    rig = learnt(started(host, KEPT))
    by_hand(host, b"by hand", "set0/disk0")
    config = configuration(host.path)
    assert main(["rescan", "--config", config, *[str(host.path / root) for root in roots]]) == 0
    assert "set0/disk0: will be walked" in capsys.readouterr().out
    rig.rounds(1)
    assert ask(learnt(rig), digest_of(b"by hand")) == b"+"
    assert rig.get(b"by hand").body == b"by hand"
    assert not list(host.path.glob("*/*/.stor/index/rescan"))


def test_rescan_of_what_is_no_storage_root_says_what_is(host, capsys):
    started(host)
    assert main(["rescan", "--config", configuration(host.path), "/elsewhere"]) == 1
    assert "expected a storage root of the configuration" in capsys.readouterr().err


class OwnFileSystem(QuickFiles):
    """A disk that is alone on its file system, which has as many inodes in use as `used`."""

    used = 1000

    def stat(self, path, *args):
        status = super().stat(path, *args)
        if path == "..":
            return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))
        return status

    def fstatvfs(self, fd):
        room = super().fstatvfs(fd)
        return SimpleNamespace(
            **{name: getattr(room, name) for name in dir(room) if name.startswith("f_")}
            | {"f_files": 10**6, "f_ffree": 10**6 - self.used}
        )


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("more", [0, 1, -1])
def test_files_that_came_or_went_after_a_clean_end_have_the_disk_walked(host, ended, more):
    rig = learnt(started(host, KEPT, kind=OwnFileSystem))
    if ended:
        Deferred.fromCoroutine(rig.mirrors.names.end())
    other = type("Other", (OwnFileSystem,), {"used": 1000 + more})
    after = started(host, kind=other)
    before = calls_of(after, "list_inodes")
    learnt(after)
    assert (calls_of(after, "list_inodes") > before) == (ended and more != 0)
    assert answers(after) == {b"+"}


def asked(rig, act):
    """How many calls of each disk an act has cost, by label."""
    before = {label: len(files.calls) for label, files in rig.disks.items()}
    act()
    return {
        label: len(files.calls) - before[label]
        for label, files in rig.disks.items()
        if len(files.calls) > before[label]
    }


def test_a_miss_asks_no_disk_but_for_one_a_second(host):
    rig = learnt(started(host, KEPT))
    assert asked(rig, lambda: rig.get(b"absent"))
    assert asked(rig, lambda: [rig.get(b"absent, too").status for _ in range(20)]) == {}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_what_is_stored_is_asked_of_its_own_set_alone(host, method):
    rig = learnt(started(host, KEPT))
    for content in KEPT:
        home = rig.copies(content)[0].parents[4].name
        act = (
            (lambda c=content: rig.put(c))
            if method == "POST"
            else (lambda c=content: rig.get(c, method=method))
        )
        assert {label.split("/")[0] for label in asked(rig, act)} == {home}


def test_a_new_sample_asks_no_set_but_the_one_that_gets_it(host):
    rig = learnt(started(host, KEPT))
    for number in range(20):
        content = b"new %d" % number
        labels = asked(rig, lambda c=content: rig.put(c))
        assert {label.split("/")[0] for label in labels} == {rig.copies(content)[0].parents[4].name}


def test_an_upload_that_ends_on_a_set_left_out_is_known_when_the_set_is_back(host):
    rig = learnt(started(host))
    mirrors, known_disks = rig.mirrors.mirrors, rig.mirrors.known_disks
    digest = digest_of(b"under way")
    arriving = rig.mirrors.names.expect(digest, mirrors[0], Kind.STORED)
    arriving.begin()
    rig.mirrors.reconfigure(mirrors[1:], known_disks, 0)
    back = Mirror(mirrors[0].members)
    rig.mirrors.reconfigure([back, mirrors[1]], known_disks, 0)
    learnt(rig)
    assert not rig.mirrors.names.quiet(back, rig.mirrors.names.next_number)
    arriving.done()
    assert rig.mirrors.names.find(digest).holders == (back,)


def test_a_disk_that_was_full_at_the_first_start_takes_samples_once_it_has_room(host):
    def full(label, log):
        files = QuickFiles(label, log)
        for name in ("create", "write", "make_directory"):
            files.fail_always(name, errno.ENOSPC)
        return files

    rig = started(host, kind=full)
    assert rig.put(b"content").status in (503, 507)
    for files in rig.disks.values():
        files.heal()
    rig.rounds(1)
    assert rig.put(b"content").status == 201
    assert ask(learnt(rig), digest_of(b"content")) == b"+"


def test_what_is_known_is_noted_durably_and_in_order(host):
    """A crash at any moment leaves a disk that is walked again, or one of which all is known."""
    started(host, KEPT)
    damage = index_of(host, "set0/disk0") / "journal-000000000001"
    damage.write_bytes(b"damaged")
    rig = learnt(started(host))
    own = [
        (call.name, call.path.removeprefix(".stor/index").lstrip("/"))
        for call in rig.disks["set0/disk0"].calls
        if call.name in ("unlink", "write", "sync", "rename")
        and (call.path or "").startswith(".stor/index")
    ]
    forgotten = own.index(("unlink", "proof.json"))
    assert own[forgotten + 1] == ("sync", "")
    written = [n for n, call in enumerate(own) if call == ("write", "proof.json.new")]
    assert len(written) > 2
    for n in written:
        assert own[n + 1 : n + 4] == [
            ("sync", "proof.json.new"),
            ("rename", "proof.json"),
            ("sync", ""),
        ]
    for n in [n for n, call in enumerate(own) if call == ("write", "journal-000000000001")]:
        assert ("sync", "journal-000000000001") in own[n : min(w for w in written if w > n)]


def test_what_a_base_was_made_of_is_known_after_a_start(host):
    rig = learnt(started(host, KEPT, extend_segments=1))
    for one in rig.members:
        with one.disk.entered() as root_fd:
            one.names.journal.rotate(root_fd)
    learnt(rig)
    assert len(list(host.path.glob("*/*/.stor/index/base-*"))) == 4
    assert rig.put(b"after the base").status == 201
    rig = learnt(started(host))
    assert answers(rig) == {b"+"}
    assert ask(rig, digest_of(b"after the base")) == b"+"
    assert ask(rig, ABSENT) == b"-"
    assert len(listed(rig, bytes(32), 100)) == len(KEPT) + 1


def test_what_only_the_bases_have_is_in_a_table_before_the_next_look_at_the_disks(host):
    rig = learnt(started(host, KEPT, extend_segments=1))
    for one in rig.members:
        with one.disk.entered() as root_fd:
            one.names.journal.rotate(root_fd)
    learnt(rig)
    held = HeldPool()  # what it learns of the disks comes after its last look at them
    learner = lambda name: held if name.startswith("names /") else InlinePool()  # noqa: E731
    rig = started(host, learner=learner)
    assert answers(rig) == {b"?"}
    while held.held:
        held.release(1)
        rig.clock.pump([0.1] * 5)
    assert all(map(rig.mirrors.names.known, rig.mirrors.mirrors))
    assert answers(rig) == {b"+"}
    assert ask(rig, ABSENT) == b"-"


def test_names_that_are_learnt_faster_than_a_table_is_made_do_not_pile_up(host):
    contents = [b"%d" % number for number in range(2200)]
    started(host, contents)
    rig = started(host, recent_limit=100)
    Deferred.fromCoroutine(rig.mirrors.probe())
    for _ in range(20):
        rig.clock.advance(0)
        assert rig.mirrors.names.recent <= 2 * 100 + 500
    learnt(rig)
    assert {ask(rig, digest_of(content)) for content in contents} == {b"+"}
    assert ask(rig, ABSENT) == b"-"


@pytest.mark.parametrize("clean", [True, False])
def test_what_a_process_that_was_killed_has_named_is_synced_before_the_disk_is_used(host, clean):
    """It may have been killed between a name and its sync: the next one answers 200 for that."""
    rig = learnt(started(host, KEPT))
    if clean:
        Deferred.fromCoroutine(rig.mirrors.learning.end())
    else:
        assert all(rig.put(b"more %d" % number).status == 201 for number in range(20))
    rig = started(host)
    for label, files in rig.disks.items():
        names = [call.name for call in files.calls]
        assert names.count("sync_all") == (not clean), label
