"""A disk that may lack samples never makes one 404: every way in which that can come about.

For each way: with the disks away that have what it lacks, at once, after a restart and after
everything that Stor could do meanwhile, no sample that is stored is 404; and once all disks are
there, each of them has all.
"""

import errno
import json
import shutil

import pytest

from stor.cli.main import main
from stor.jobs.rebuild import MOST_LEFTOVERS
from stor.jobs.rebuilds import RETRY_SECONDS
from stor.mirror.repair import LEFTOVER_SECONDS
from tests.conformance import QuickFiles, sample
from tests.support.http import assert_one_line, no_bug_logged
from tests.support.rig import FaultyRig, digest_of

SAMPLES = [sample(1000, n) for n in range(12)] + [b"", sample(300_000)]

#: A probe, and whatever follows from it, this often.
ROUND_SECONDS = 60


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Host:
    """One set of disks below `path`, and the Stor that runs on it; `disks` is how many it has.

    It goes by what its disks hold where it `knows` that.
    """

    def __init__(self, path, disks=2, *, knows=True):
        self.path, self.disks, self.knows = path, disks, knows
        self.rig = None

    def probed(self, kind=QuickFiles):
        """A Stor that has looked at its disks, and not compared them yet."""
        self.rig = FaultyRig(self.path, (self.disks,), kind=kind, knows=self.knows)
        return self.rig

    def start(self):
        self.probed().begin()
        return self.rig

    def root(self, disk):
        return self.path / f"set0/disk{disk}"

    def fill(self):
        """Store all samples."""
        for content in SAMPLES:
            assert self.rig.put(content).status == 201

    def place(self, disk, contents=SAMPLES):
        """What the older Stor has left on a disk."""
        for content in contents:
            path = self.root(disk) / digest_of(content).disk_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def replace(self, disk):
        """Another, empty disk is mounted there."""
        shutil.rmtree(self.root(disk), ignore_errors=True)
        self.root(disk).mkdir(parents=True)

    def adopt(self, *disks, lost=False):
        """Have the operator give disks their places: the exit status."""
        roots = [str(self.root(disk)) for disk in range(self.disks)]
        file = self.path / "config.json"
        file.write_text(
            json.dumps({"storage_pairs": [roots], "basic_auth": "a:b", "require_mount": False})
        )
        chosen = [str(self.root(disk)) for disk in disks]
        return main(["adopt", "--config", str(file), *(["--lost"] if lost else []), *chosen])

    def take_away(self, *disks):
        for disk in disks:
            self.root(disk).rename(self.path / f"away{disk}")

    def bring_back(self, *disks):
        for disk in disks:
            shutil.rmtree(self.root(disk), ignore_errors=True)
            (self.path / f"away{disk}").rename(self.root(disk))

    def complete(self):
        """The disks that are known to lack nothing."""
        return [d for d, member in enumerate(self.rig.members) if member.complete]

    def has(self, disk, content):
        return (self.root(disk) / digest_of(content).disk_path).exists()

    def assert_never_404(self, good, figures=None):
        """What the disks have that are taken away is served or 503, whatever is done."""
        answers = 0
        self.take_away(*good)
        for _ in ("while it runs", "after a restart"):
            self.rig.probe()
            for rounds in (0, 3):
                self.rig.rounds(rounds)
                for content in SAMPLES:
                    response = self.rig.get(content)
                    answers += 1
                    if response.status == 200:
                        assert response.body == content
                    else:
                        assert_one_line(response, 503)
                        assert int(response.headers["retry-after"]) > 0
            self.start()
        if figures is not None:
            figures["ways to lack samples, the good disk away"] += 1
            figures["answers with the good disk away, none of them 404"] += answers
        self.bring_back(*good)

    def assert_made_whole(self, rounds=3):
        """With all disks there, each gets what it lacks; then any of them answers for all."""
        self.start()
        self.rig.rounds(rounds)
        for disk in range(self.disks):
            for content in SAMPLES:
                path = self.root(disk) / digest_of(content).disk_path
                assert path.read_bytes() == content
        assert self.complete() == list(range(self.disks))
        assert_one_line(self.rig.get(b"absent"), 404)
        for disk in range(self.disks):
            self.take_away(disk)
            self.rig.probe()
            assert_one_line(self.rig.get(b"absent"), 404 if self.disks > 1 else 503)
            self.bring_back(disk)
            self.rig.probe()


def one_of_a_pair_is_empty_from_the_start(host):
    host.place(0)
    return [0]


def the_other_of_a_pair_is_empty_from_the_start(host):
    host.place(1)
    return [1]


def a_pair_of_the_older_stor_has_half_on_each(host):
    host.place(0, SAMPLES[::2])
    host.place(1, SAMPLES[1::2])
    return [0]


def a_copy_of_the_older_stor_is_missing(host):
    host.place(0)
    host.place(1, SAMPLES[1:])
    return [0]


def a_blank_disk_joins_a_pair(host):
    host.start()
    host.fill()
    host.disks = 3
    host.replace(2)
    return [0, 1]


def two_blank_disks_join_one(host):
    host.disks = 1
    host.start()
    host.fill()
    host.disks = 3
    host.replace(1)
    host.replace(2)
    return [0]


def the_markers_are_from_before_completeness(host):
    """Of a Stor that did not know it; a copy is missing."""
    host.start()
    host.fill()
    age_markers(host)
    (host.root(1) / digest_of(SAMPLES[0]).disk_path).unlink()
    return [0]


def age_markers(host):
    for disk in (0, 1):
        path = host.root(disk) / ".stor/disk.json"
        marker = json.loads(path.read_bytes())
        del marker["complete"], marker["adopted"]
        marker["rebuilding"] = False
        path.write_text(json.dumps(marker))


def a_disk_is_replaced(host):
    host.start()
    host.fill()
    host.replace(1)
    assert host.adopt(1) == 0
    return [0]


def a_disk_is_replaced_twice(host):
    good = a_disk_is_replaced(host)
    Filling.interrupt(host)
    host.replace(1)
    assert host.adopt(1) == 0
    return good


def a_disk_that_was_half_filled_is_adopted_again(host):
    good = a_disk_is_replaced(host)
    Filling.interrupt(host)
    assert host.adopt(1) == 0
    return good


def two_of_three_are_replaced(host):
    host.disks = 3
    host.start()
    host.fill()
    host.replace(1)
    host.replace(2)
    assert host.adopt(1, 2) == 0
    return [0]


def a_disk_that_was_replaced_is_put_back(host):
    """Before all that it has was on the other: what was stored meanwhile is missing on it."""
    host.start()
    for content in SAMPLES[::2]:
        assert host.rig.put(content).status == 201
    host.root(1).rename(host.path / "replaced")
    host.replace(1)
    assert host.adopt(1) == 0
    host.start()
    for content in SAMPLES[1::2]:
        assert host.rig.put(content).status == 201
    host.replace(1)
    host.root(1).rmdir()
    (host.path / "replaced").rename(host.root(1))
    assert host.adopt(1) == 0
    return [0]


WAYS = [
    a_disk_is_replaced,
    a_disk_is_replaced_twice,
    a_disk_that_was_half_filled_is_adopted_again,
    two_of_three_are_replaced,
    a_disk_that_was_replaced_is_put_back,
    one_of_a_pair_is_empty_from_the_start,
    the_other_of_a_pair_is_empty_from_the_start,
    a_pair_of_the_older_stor_has_half_on_each,
    a_copy_of_the_older_stor_is_missing,
    a_blank_disk_joins_a_pair,
    two_blank_disks_join_one,
    the_markers_are_from_before_completeness,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_disk_that_lacks_samples_makes_none_404(quick_path, way, figures):
    host = Host(quick_path)
    good = way(host)
    host.probed()
    host.assert_never_404(good, figures)
    host.assert_made_whole()


def test_the_other_side_of_a_divided_pair(quick_path, figures):
    """What is on the disk that is away, whichever that is, is not 404."""
    host = Host(quick_path)
    a_pair_of_the_older_stor_has_half_on_each(host)
    host.probed()
    host.assert_never_404([1], figures)
    host.assert_made_whole()


#: What each disk of a set has that is filled; of the last one somebody else has all.
SETS = {
    "one of two": [SAMPLES, []],
    "two of three": [SAMPLES, [], []],
    "one of three by two": [SAMPLES[::2], SAMPLES[1::2], []],
}


class Filling:
    """A set whose last disk is blank, while it is filled; something happens at a call."""

    def __init__(self, path, held):
        self.host = Host(path, len(held))
        for disk, contents in enumerate(held):
            self.host.place(disk, contents)
        self.last = len(held) - 1
        for files in self.host.probed().disks.values():
            files.calls.clear()

    @staticmethod
    def interrupt(host):
        """Begin to fill the second disk of a pair; it fails in the middle."""
        host.probed().disks["set0/disk1"].fail_at(150, errno.EIO)
        host.rig.rounds(0)
        host.rig.disks["set0/disk1"].fail_always("write", errno.EIO)
        host.rig.rounds(1)
        assert not all(host.has(1, content) for content in SAMPLES)

    def disk(self, number):
        return self.host.rig.disks[f"set0/disk{number % self.host.disks}"]

    def run(self):
        self.host.rig.rounds(1)

    @classmethod
    def calls(cls, path, held, disk):
        """How many calls a disk gets in a filling."""
        filling = cls(path, held)
        filling.run()
        assert filling.host.complete() == list(range(len(held)))
        calls = len(filling.disk(disk).calls)
        shutil.rmtree(path)
        return calls


def once(disk, error):
    return lambda filling, n: filling.disk(disk).fail_at(n, error)


def for_good(disk, error):
    def arm(filling, n):
        files = filling.disk(disk)

        def begin(name, args):
            files.fail_always("*", error)
            return files._before(name, args)

        files._arm(n, begin)

    return arm


def held_read_only(filling, n):
    """The operator holds the disk that is filled, and a probe sees that."""

    def hold(name, args):
        (filling.host.root(filling.last) / ".stor/read-only").touch()
        filling.host.rig.members[filling.last].probe()

    filling.disk(-1)._arm(n, hold)


#: By the disk that they happen to, the first or the last.
INTERRUPTIONS = {
    "the giver fails once": (0, once(0, errno.EIO)),
    "the giver is gone once": (0, once(0, errno.ENOENT)),
    "the giver fails for good": (0, for_good(0, errno.EIO)),
    "the giver goes away": (0, for_good(0, errno.ENOENT)),
    "the disk fails once": (-1, once(-1, errno.EIO)),
    "the disk fails for good": (-1, for_good(-1, errno.EIO)),
    "the disk is full once": (-1, once(-1, errno.ENOSPC)),
    "the disk is held read-only": (-1, held_read_only),
}


@pytest.mark.parametrize("held", SETS.values(), ids=SETS)
@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_a_filling_that_is_interrupted_anywhere_makes_no_sample_404(
    quick_path, kind, held, figures, soak
):
    disk, arm = INTERRUPTIONS[kind]
    calls = Filling.calls(quick_path / "count", held, disk)
    assert calls > 50
    for n in range(0, calls, 1 if soak else 23 * len(held) // 2):
        filling = Filling(quick_path / f"{n}", held)
        host = filling.host
        arm(filling, n)
        filling.run()
        host.rig.heal()
        host.assert_never_404(range(filling.last), figures)
        (host.root(filling.last) / ".stor/read-only").unlink(missing_ok=True)
        host.assert_made_whole(rounds=2 + int(LEFTOVER_SECONDS / ROUND_SECONDS))
        shutil.rmtree(quick_path / f"{n}")


def test_a_set_that_is_made_new_is_complete_at_once(quick_path):
    host = Host(quick_path)
    host.start()
    assert host.complete() == [0, 1]
    host.take_away(0)
    host.rig.probe()
    assert_one_line(host.rig.get(b"absent"), 404)


def test_a_set_with_nothing_on_it_is_complete_at_the_first_look(quick_path):
    host = Host(quick_path)
    a_blank_disk_joins_a_pair(host)
    for disk in (0, 1):
        shutil.rmtree(host.root(disk))
        host.root(disk).mkdir()
        (host.root(disk) / "00").mkdir()  # not new: something was there
    host.start()
    host.rig.rounds(1)
    assert host.complete() == [0, 1, 2]


def test_what_cannot_be_mended_is_all_that_is_asked_for(quick_path):
    """Both copies bad, or the only one: a disk is complete but for that name."""
    host = Host(quick_path)
    host.place(0)
    path = host.root(0) / digest_of(SAMPLES[0]).disk_path
    path.write_bytes(b"damaged")
    host.start()
    host.rig.rounds(1)
    assert host.complete() == [0, 1]
    for _ in ("while it runs", "after a restart"):
        host.take_away(0)
        host.rig.probe()
        assert_one_line(host.rig.get(SAMPLES[0]), 503)
        assert_one_line(host.rig.get(b"absent"), 404)
        for content in SAMPLES[1:]:
            assert host.rig.get(content).body == content
        host.start()
        host.bring_back(0)
        host.rig.probe()
        assert_one_line(host.rig.get(SAMPLES[0]), 500)
    path.write_bytes(SAMPLES[0])
    host.assert_made_whole(rounds=2 + int(LEFTOVER_SECONDS / ROUND_SECONDS))


def test_what_is_noted_on_a_disk_that_comes_later_is_known_before_it_is_asked(quick_path):
    host = Host(quick_path)
    host.place(0)
    (host.root(0) / digest_of(SAMPLES[0]).disk_path).write_bytes(b"damaged")
    host.start()
    host.rig.rounds(1)
    host.take_away(1)
    host.start()
    host.bring_back(1)
    host.take_away(0)
    host.rig.probe()
    assert_one_line(host.rig.get(SAMPLES[0]), 503)
    assert_one_line(host.rig.get(b"absent"), 404)


def test_a_directory_that_takes_no_name_is_no_obstacle_for_the_others(quick_path):
    host = Host(quick_path)
    host.place(0)
    stray = host.root(1) / digest_of(SAMPLES[0]).disk_path[:5]
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"a file at AA/BB")
    host.start()
    host.rig.rounds(1)
    assert host.complete() == [0, 1]
    host.take_away(0)
    host.rig.probe()
    assert_one_line(host.rig.get(SAMPLES[0]), 503)
    assert_one_line(host.rig.get(b"absent"), 404)
    host.bring_back(0)
    stray.unlink()
    host.assert_made_whole(rounds=2 + int(LEFTOVER_SECONDS / ROUND_SECONDS))


def test_a_disk_with_too_much_that_cannot_be_mended_is_not_complete(quick_path):
    host = Host(quick_path)
    host.place(0, SAMPLES)
    many = [digest_of(b"%d" % n) for n in range(MOST_LEFTOVERS + 1)]
    for digest in many:
        path = host.root(0) / digest.disk_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"damaged")
    host.start()
    host.rig.rounds(1)
    assert host.complete() == []
    host.take_away(0)
    host.rig.probe()
    assert_one_line(host.rig.get(str(many[-1])), 503)


@pytest.mark.parametrize("disks", [2, 4])
def test_a_disk_that_takes_nothing_for_a_moment_is_not_complete(quick_path, disks):
    """Neither the samples, which another one may have got, nor a note that they are missing."""
    host, last = Host(quick_path, disks), disks - 1
    for disk in range(1, last):
        host.replace(disk)
    for disk in range(disks // 2):
        host.place(disk)
    host.place(last, SAMPLES[1:])

    class Refusing(QuickFiles):
        def _before(self, name, args):
            # Not the name that the probe makes: a disk that refuses that is not written at all.
            if self.label == f"set0/disk{last}" and name == "name" and ".stor" not in args[1]:
                self._raise(name, args, errno.EPERM)
            if self.label == f"set0/disk{last}" and ".stor/repair/" in str(args):
                self._raise(name, args, errno.ENOSPC)

    host.probed(Refusing).rounds(1)
    assert last not in host.complete()
    host.assert_never_404(range(last))
    host.assert_made_whole()


def test_a_proof_does_not_hold_with_another_disk_in_the_set(quick_path):
    """A disk with samples of its own joins a complete pair: neither of them answers for it."""
    host = Host(quick_path)
    host.start()
    host.fill()
    assert host.complete() == [0, 1]
    host.disks = 3
    brought = sample(1000, "brought along")
    host.place(2, [brought])
    host.probed()
    host.take_away(2)
    host.rig.probe()
    assert_one_line(host.rig.get(brought), 503)
    host.bring_back(2)
    host.assert_made_whole()
    assert host.rig.get(brought).body == brought
    host.take_away(2)
    host.rig.probe()
    assert host.rig.get(brought).body == brought
    assert_one_line(host.rig.get(b"absent"), 404)
    host.bring_back(2)


def test_a_full_disk_is_not_complete(quick_path):
    host = Host(quick_path)
    host.place(0)
    host.probed().disks["set0/disk1"].fail_always("write", errno.ENOSPC)
    host.rig.rounds(1)
    assert 1 not in host.complete()
    host.assert_never_404([0])
    host.assert_made_whole()


def test_it_is_not_tried_again_before_its_time(quick_path):
    host = Host(quick_path)
    host.place(0)
    giver = host.probed().disks["set0/disk0"]
    giver.fail_always("list", errno.EIO)
    host.rig.rounds(1)
    giver.heal()
    before = len(giver.calls)
    host.rig.clock.advance(RETRY_SECONDS - 1)
    host.rig.probe()
    listed = [call.path for call in giver.calls[before:] if call.name == "list"]
    assert set(listed) <= {host.rig.members[0].root, ".", ".stor/repair"}


@pytest.fixture
def host(quick_path):
    """A pair that holds the samples."""
    host = Host(quick_path)
    host.start()
    host.fill()
    return host


class TestAdopting:
    """One rule for the operator's word and for the daemon, and a way out of every state."""

    def assert_refused(self, host, capsys, *disks, missing):
        markers = [path.read_bytes() for path in sorted(host.path.glob("set0/*/.stor/disk.json"))]
        assert host.adopt(*disks) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for disk in missing:
            assert str(host.root(disk)) in error.partition("may hold")[0]
        assert f"stor adopt --lost {host.root(disks[0])}" in error
        after = [path.read_bytes() for path in sorted(host.path.glob("set0/*/.stor/disk.json"))]
        assert after == markers

    def test_the_disk_that_has_all_samples_has_to_be_there(self, host, capsys):
        host.replace(1)
        host.take_away(0)
        self.assert_refused(host, capsys, 1, missing=[0])
        host.bring_back(0)
        assert host.adopt(1) == 0
        host.assert_made_whole()

    def test_a_set_that_is_lost_begins_anew_when_that_is_said(self, host, capsys):
        host.root(0).rename(host.path / "original0")
        host.root(1).rename(host.path / "original1")
        host.replace(0)
        host.replace(1)
        self.assert_refused(host, capsys, 0, 1, missing=[])
        assert host.adopt(0, 1, lost=True) == 0
        host.start()
        host.rig.rounds(2)
        assert host.complete() == [0, 1]
        assert_one_line(host.rig.get(SAMPLES[0]), 404)
        assert host.rig.put(b"a new one").status == 201
        # The originals are found after all.
        for disk in (0, 1):
            shutil.rmtree(host.root(disk))
            (host.path / f"original{disk}").rename(host.root(disk))
        assert host.adopt(0, 1, lost=True) == 0
        host.assert_made_whole()

    def test_both_replaced_one_after_the_other(self, host, capsys):
        """The first of them has not been filled when the other one is lost."""
        host.replace(1)
        assert host.adopt(1) == 0
        Filling.interrupt(host)
        host.replace(0)
        self.assert_refused(host, capsys, 0, missing=[0])
        assert host.adopt(0, lost=True) == 0
        host.start()
        host.rig.rounds(2)
        assert host.complete() == [0, 1]

    def test_a_disk_that_was_never_compared_does_not_stand_in_for_the_other(self, host, capsys):
        age_markers(host)
        host.replace(1)
        self.assert_refused(host, capsys, 1, missing=[1])

    def test_swapped_disks_are_given_each_others_places(self, host):
        host.root(0).rename(host.path / "between")
        host.root(1).rename(host.root(0))
        (host.path / "between").rename(host.root(1))
        host.start()
        assert [member.health.readable for member in host.rig.members] == [False, False]
        assert host.adopt(0, 1) == 0
        host.assert_made_whole()

    def test_a_disk_that_is_in_its_place_stays_as_it_is(self, host, capsys):
        host.rig.rounds(1)
        marker = host.root(1) / ".stor/disk.json"
        before = marker.read_bytes()
        assert host.adopt(1) == 0
        assert (
            "belongs here already and is complete; nothing was changed" in capsys.readouterr().out
        )
        host.replace(1)
        assert host.adopt(1) == 0
        host.probed()
        capsys.readouterr()
        assert host.adopt(1) == 0
        assert "belongs here already and is not complete" in capsys.readouterr().out
        assert marker.read_bytes() != before
        host.assert_made_whole()


class TestWhatSpeaksAgainstANo:
    """A complete disk has nothing under the name, and that is not believed."""

    @pytest.fixture(params=[True, False], ids=["index", "asked"])
    def host(self, quick_path, request):
        """A pair that holds the samples."""
        host = Host(quick_path, knows=request.param)
        host.start()
        host.fill()
        return host

    @pytest.mark.parametrize("gone", [0, 1])
    @pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE])
    def test_an_error_of_the_copy_beside_it(self, host, gone, error):
        """One copy cannot be read, the name of the other is gone."""
        content = SAMPLES[-1]
        for call in ("open_to_read", "stat", "read"):
            for method in ("GET", "HEAD"):
                (host.root(gone) / digest_of(content).disk_path).unlink(missing_ok=True)
                host.start().disks[f"set0/disk{1 - gone}"].fail_always(call, error)
                response = host.rig.get(content, method=method)
                sure = (method, call) == ("GET", "open_to_read")
                assert response.status in ((503,) if sure else (200, 503))

    def test_a_copy_that_is_known_to_be_bad(self, host):
        content = SAMPLES[0]
        bad, gone = (host.root(disk) / digest_of(content).disk_path for disk in (0, 1))
        bad.write_bytes(b"damaged")
        gone.unlink()
        assert_one_line(host.rig.get(content), 500)
        for _ in ("while it runs", "after a restart"):
            host.take_away(0)
            host.rig.probe()
            assert_one_line(host.rig.get(content), 503)
            host.bring_back(0)
            host.start()

    def test_a_repair_that_waits(self, host):
        """The sample was seen on the disk that is away; the one that is there could not take it."""
        content = SAMPLES[0]
        (host.root(1) / digest_of(content).disk_path).unlink()
        host.rig.disks["set0/disk1"].fail_always("write", errno.ENOSPC)
        for _ in range(20):
            assert host.rig.get(content).body == content
        for _ in ("while it runs", "after a restart"):
            host.take_away(0)
            host.rig.probe()
            assert_one_line(host.rig.get(content), 503)
            assert_one_line(host.rig.get(b"absent"), 404)
            host.start()
            host.bring_back(0)
