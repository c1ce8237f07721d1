"""Disks that are unmounted, swapped and replaced by empty ones while Stor runs."""

import json
import os
import time

import attrs
import pytest

from tests.integration.load import SOAK, Audit, Load
from tests.integration.mounts import Mounts, used
from tests.integration.process import poll, sample_path, sha_of
from tests.support.network import Response

UNKNOWN = sha_of(b"a sample that nobody has")

#: What happens to the sets, by their position.
WHOLE, HALF_AWAY, AWAY, EMPTY_IN_PLACE, SWAPPED, SWAPPED_TOO, READ_ONLY = SETS = range(7)

#: The next probe finds that a disk is back.
BACK_SECONDS = 20

#: By then every process has heard of it from the one that probes.
HEARD_SECONDS = 1.0


@pytest.fixture(scope="module")
def mounts(tmp_path_factory):
    with Mounts(tmp_path_factory.mktemp("mounts")) as mounts:
        yield mounts


@attrs.frozen
class Sight:
    """What a client gets: a sample of each set, one that nobody has, a new one, and `/status`."""

    samples: list[Response]
    unknown: Response
    posted: Response
    status: Response

    @property
    def statuses(self):
        return [response.status for response in self.samples]


class Scene:
    """A Stor with sets of two disks, each a file system of its own, and a load on it."""

    def __init__(self, mounts, start):
        self.sets = [[mounts.tmpfs(f"set{s}-disk{d}", mib=4096) for d in range(2)] for s in SETS]
        self.disks = [disk for of_set in self.sets for disk in of_set]
        self.empty = mounts.tmpfs("empty")
        pairs = [[str(disk) for disk in of_set] for of_set in self.sets]
        self.stor = start(index=False, storage_pairs=pairs, require_mount=True)
        self.contents = [os.urandom(1000 + s % 2 * 300_000) for s in SETS]
        for content, of_set in zip(self.contents, self.sets, strict=True):
            self.stor.place(content, [disk.point for disk in of_set])
        self.load = Load(self.stor.port)

    def restart(self):
        self.stor.stop()
        self.stor.start()
        assert self.stor.get(UNKNOWN).status == 404

    def look(self):
        samples = [self.stor.get(sha_of(content)) for content in self.contents]
        posted = self.stor.put(os.urandom(5000))
        return Sight(samples, self.stor.get(UNKNOWN), posted, self.stor.get("status"))

    def offline(self):
        """The roots that `/status` says are offline, with its reasons."""
        lines = self.stor.get("status").text.splitlines()
        found = [line.partition(": offline: ") for line in lines]
        return {root: reason for root, separator, reason in found if separator}

    def wait_for_offline(self, *disks):
        roots = {str(disk) for disk in disks}
        poll(lambda: set(self.offline()) == roots, BACK_SECONDS, f"only {roots} offline")
        time.sleep(HEARD_SECONDS)

    def set_of(self, paths):
        """The position of the set that paths are in."""
        (found,) = {
            position
            for position, of_set in enumerate(self.sets)
            for path in paths
            if path.startswith(tuple(f"{disk}/" for disk in of_set))
        }
        return found

    def sets_posted_to(self, posts=60):
        found = [self.stor.put(os.urandom(100)).text for _ in range(posts)]
        return {self.set_of(text.strip('[]"\n').split('", "')) for text in found}


@attrs.define
class Story:
    """What was seen, one thing after the other."""

    scene: Scene
    before: Sight
    half_away: Sight = None
    away: Sight = None
    listings: list[list[str]] = None
    returned: Sight = None
    returned_to: set[int] = None
    misplaced: dict[str, str] = None
    misplaced_at_start: dict[str, str] = None
    empty_before: tuple[int, int] = None
    empty_after: tuple[int, int] = None
    whole_again: Sight = None


@pytest.fixture(scope="module")
def story(mounts, start_in_module):
    scene = Scene(mounts, start_in_module)
    sets = scene.sets
    with scene.load.running():
        story = Story(scene, scene.look(), empty_before=used(scene.empty.kept))
        time.sleep(0.5)
        # All this happens before the second probe of the disks.
        replaced, swapped = sets[EMPTY_IN_PLACE][0], [sets[SWAPPED][0], sets[SWAPPED_TOO][0]]
        sets[READ_ONLY][0].remount("ro")
        for disk in (sets[HALF_AWAY][0], replaced, *swapped):
            disk.unmount()
            time.sleep(0.1)
        replaced.mount(scene.empty)
        swapped[0].mount(swapped[1])
        swapped[1].mount(swapped[0])
        time.sleep(0.5)
        story.half_away = scene.look()
        for disk in sets[AWAY]:
            disk.unmount()
            time.sleep(0.5)
        story.away = scene.look()
        unmounted = [sets[HALF_AWAY][0], *sets[AWAY]]
        story.listings = [os.listdir(disk.point) for disk in unmounted]
        for disk in unmounted:
            disk.mount()
        scene.wait_for_offline(replaced, *swapped)
        story.misplaced = scene.offline()
        story.returned = scene.look()
        story.returned_to = scene.sets_posted_to()
    scene.restart()
    story.misplaced_at_start = scene.offline()
    story.empty_after = used(scene.empty.kept)
    sets[READ_ONLY][0].remount("rw")
    for disk in (replaced, *swapped):
        disk.unmount()
        disk.mount()
    if not SOAK:
        # The long form sees that this takes no restart either.
        scene.restart()
    scene.wait_for_offline()
    story.whole_again = scene.look()
    return story


class TestOneDiskOfASetAway:
    def test_its_samples_and_all_others_are_served(self, story):
        for sight in (story.before, story.half_away):
            assert sight.statuses == [200] * len(SETS)
            assert [response.body for response in sight.samples] == story.scene.contents

    def test_unknown_samples_are_404(self, story):
        assert story.before.unknown.status == story.half_away.unknown.status == 404

    def test_new_samples_go_to_whole_sets(self, story):
        assert story.half_away.posted.status == 201
        assert story.before.status.body == b"OK\n"

    def test_status_names_it(self, story):
        assert story.half_away.status.status == 503
        assert f"{story.scene.sets[HALF_AWAY][0]}: offline: " in story.half_away.status.text
        assert "not mounted" in story.half_away.status.text


class TestBothDisksOfASetAway:
    def test_its_samples_are_503_and_all_others_are_served(self, story):
        expected = [200] * len(SETS)
        expected[AWAY] = 503
        assert story.away.statuses == expected
        assert int(story.away.samples[AWAY].headers["retry-after"]) > 0

    def test_unknown_samples_could_be_there(self, story):
        assert story.away.unknown.status == 503
        assert int(story.away.unknown.headers["retry-after"]) > 0

    def test_new_samples_go_to_whole_sets(self, story):
        assert story.away.posted.status == 201

    def test_status_names_both(self, story):
        for disk in story.scene.sets[AWAY]:
            assert f"{disk}: offline: {disk}: not mounted" in story.away.status.text

    def test_nothing_is_below_their_mount_points(self, story):
        assert story.listings == [[], [], []]


class TestMountedAgain:
    def test_all_is_well_without_a_restart(self, story):
        assert story.returned.statuses == [200] * len(SETS)
        assert story.returned.unknown.status == 404

    def test_new_samples_go_there_again(self, story):
        assert story.returned_to == {WHOLE, HALF_AWAY, AWAY}


class TestAnotherDiskInItsPlace:
    def test_an_empty_file_system_is_named_and_gets_nothing(self, story):
        root = str(story.scene.sets[EMPTY_IN_PLACE][0])
        for reasons in (story.misplaced, story.misplaced_at_start):
            assert "this disk has no marker" in reasons[root]
        assert story.empty_after == story.empty_before
        assert os.listdir(story.scene.empty.kept) == []

    @pytest.mark.parametrize("position", [SWAPPED, SWAPPED_TOO])
    def test_swapped_disks_are_named(self, story, position):
        root = str(story.scene.sets[position][0])
        for reasons in (story.misplaced, story.misplaced_at_start):
            assert "this is disk" in reasons[root]
            assert "belongs here" in reasons[root]

    def test_no_other_disk_is(self, story):
        assert len(story.misplaced) == len(story.misplaced_at_start) == 3

    def test_the_right_disks_are_used_again(self, story):
        assert story.whole_again.statuses == [200] * len(SETS)
        assert story.whole_again.status.body == b"OK\n"
        assert story.scene.sets_posted_to(200) == set(SETS)


class TestRemountedReadOnly:
    def test_it_is_named_and_read(self, story):
        root = str(story.scene.sets[READ_ONLY][0])
        (line,) = [line for line in story.returned.status.text.splitlines() if root in line]
        assert "Read-only file system" in line
        for sight in (story.half_away, story.away, story.returned):
            assert sight.samples[READ_ONLY].body == story.scene.contents[READ_ONLY]

    def test_posts_succeed_as_long_as_one_set_is_whole(self, mounts, start):
        """One dead controller takes more than one disk."""
        sets = [[mounts.tmpfs(f"dead{s}-disk{d}", mib=4096) for d in range(2)] for s in range(4)]
        pairs = [[str(disk) for disk in of_set] for of_set in sets]
        stor = start(storage_pairs=pairs, require_mount=True)
        for of_set in sets[1:]:
            of_set[0].remount("ro")
        answers = [stor.put(os.urandom(size)) for size in (0, 1000, 300_000, 3_000_000) * 5]
        assert [answer.text for answer in answers if answer.status not in (200, 201)] == []
        assert stor.staged() == []
        assert len(stor.samples()) == 2 * 16  # the sample of no bytes is stored once


class TestAllTheTime:
    def test_no_byte_and_no_inode_below_any_mount_point(self, story):
        for disk in story.scene.disks:
            disk.assert_bare_untouched()

    def test_clients_were_told_the_truth(self, story):
        """503 only of samples that were on the disks that were away, or nowhere."""
        load, scene = story.scene.load, story.scene
        print(f"{load.requests} requests: {dict(load.counts)}")
        wrong = [
            surprise
            for surprise in load.surprises
            if surprise.status != 503
            or surprise.action == "post"
            or (surprise.paths and scene.set_of(surprise.paths) != AWAY)
        ]
        assert wrong == []
        assert load.lost == 0

    def test_what_was_acknowledged_is_whole_on_every_disk(self, story):
        Audit(story.scene.stor.roots).check(story.scene.load.acknowledged, story.scene.load.paths)


class TestTheFirstRequestAfterwards:
    """It finds out that a disk is away, and is answered as if that had been known."""

    @pytest.fixture
    def pair(self, mounts, request):
        return [mounts.tmpfs(f"{request.node.name}-disk{number}") for number in range(2)]

    @pytest.fixture
    def stor(self, pair, start):
        return start(index=False, storage_pairs=[[str(disk) for disk in pair]], require_mount=True)

    def test_to_read_a_sample(self, pair, stor):
        sha = stor.place(b"a sample")
        pair[0].unmount()
        assert stor.get(sha).body == b"a sample"
        pair[0].mount()

    def test_to_store_a_stored_sample(self, pair, stor):
        """All disks that are available have it."""
        sha = stor.place(b"a sample")
        pair[0].unmount()
        answer = stor.put(b"a sample")
        assert (answer.status, json.loads(answer.body)) == (200, [f"{pair[1]}/{sample_path(sha)}"])
        pair[0].mount()


class TestMountPointsOnAnotherDisk:
    """Where an unmounted disk does not show as the file system of `/`, the markers tell.

    They do so from the first answer on: here the disks are used for the first time, and Stor is
    started again at once.
    """

    def test_nothing_is_written_below_them(self, mounts, start_in_module):
        parent = mounts.tmpfs("parent")
        sets = [
            [mounts.tmpfs(f"nested-set{s}-disk{d}", below=parent.point) for d in range(2)]
            for s in range(4)
        ]
        pairs = [[str(disk) for disk in of_set] for of_set in sets]
        stor = start_in_module(index=False, storage_pairs=pairs, require_mount=True)
        sha = stor.place(b"in every set", stor.roots)
        *away, _ = [disk for of_set in sets for disk in of_set]
        for disk in away:
            disk.unmount()
        statuses = [stor.put(os.urandom(100_000)).status for _ in range(20)]
        stor.stop()
        stor.start()
        statuses += [stor.put(os.urandom(100_000)).status for _ in range(20)]
        named = {line.partition(": ")[0] for line in stor.get("status").text.splitlines()}
        for disk in away:
            disk.assert_bare_untouched()
        assert set(statuses) == {503}
        assert named == {str(disk) for disk in away}
        assert stor.get(sha).body == b"in every set"
        for disk in away:
            disk.mount()
