"""Which mirror gets a new sample."""

import random
from collections import Counter

import pytest
from twisted.internet.defer import Deferred

from stor.disk.disk import Room
from stor.mirror.member import HANGS_SECONDS
from stor.mirror.mirrors import WEIGHED_SECONDS
from stor.mirror.placement import PLENTY_BYTES, RESERVE_INODES, Candidate, choose, on_disk
from tests.support.rig import Rig

GB = 1_000_000_000
TB = 1000 * GB
INODES = 10**9


def never():
    pytest.fail("nothing is drawn")


def candidates(*free_bytes):
    return [Candidate(free, INODES) for free in free_bytes]


def place_all(free, sizes, rng, reserve_bytes=0):
    """Place samples of `sizes`, each of which takes its room; how many each mirror got."""
    free, counts = list(free), [0] * len(free)
    for size in sizes:
        chosen = choose(candidates(*free), size, reserve_bytes, rng.random)
        counts[chosen] += 1
        free[chosen] -= on_disk(size, 4096)
    return counts, free


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("free", [(TB, TB), (3 * TB, 2 * TB, 2 * TB, TB), (9 * TB, 3 * TB)])
def test_100_000_placements_follow_free_space(free, seed):
    rng = random.Random(seed)
    # Together they take half of all that is free at first.
    mean_bytes = sum(free) // 200_000
    sizes = [int(mean_bytes * rng.uniform(0.5, 1.5)) for _ in range(100_000)]
    counts, left = place_all(free, sizes, rng)
    for count, before, after in zip(counts, free, left, strict=True):
        assert count / 100_000 == pytest.approx(before / sum(free), rel=0.02)
        assert after / sum(left) == pytest.approx(before / sum(free), rel=0.02)


def test_mirrors_of_unlike_size_become_full_together():
    free = [200 * GB, 100 * GB, 50 * GB]
    count = sum(free) // (40 * 1024**2) * 9 // 10
    _, left = place_all(free, [40 * 1024**2] * count, random.Random(1))
    for before, after in zip(free, left, strict=True):
        assert after / before == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("point", "expected"),
    [(0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 1), (0.75, 2), (0.999999, 2)],
)
def test_the_point_that_is_drawn_decides(point, expected):
    three = candidates(25 * GB, 50 * GB, 25 * GB)
    assert choose(three, 1, 0, lambda: point) == expected


def test_one_that_has_no_room_gets_no_share():
    three = candidates(25 * GB, 10, 25 * GB)
    assert {choose(three, 1, 0, lambda p=p / 100: p) for p in range(100)} == {0, 2}


def test_rounding_never_leaves_nobody():
    three = candidates(3 * GB, 7 * GB, 11 * GB)
    assert choose(three, 1, 0, lambda: 1.0) == 2


def test_a_mirror_has_the_least_of_its_disks():
    rooms = [Room(100, 1000, 512), Room(70, 2000, 4096), Room(90, 900, 1024)]
    assert Candidate.of(rooms, 0, 0) == Candidate(70, 900, 4096)


def test_uploads_in_flight_count_as_written():
    rooms = [Room(100 * GB, 1000), Room(80 * GB, 1000)]
    reserved = Candidate.of(rooms, 30 * GB, 5)
    assert reserved.free_bytes == 50 * GB
    assert reserved.free_inodes < 1000 - 5
    # A mirror that is full of reservations is as good as full.
    full = Candidate.of(rooms, 80 * GB, 0)
    assert [choose([full, reserved], GB, 0, lambda p=p / 9: p) for p in range(9)] == [1] * 9


@pytest.mark.parametrize("reserve_bytes", [0, 4096, 10 * GB])
@pytest.mark.parametrize("length", [1, 4096, 4097, 5 * GB])
def test_a_sample_that_fits_exactly_is_taken(length, reserve_bytes):
    exact = reserve_bytes + on_disk(length, 4096)
    assert choose(candidates(exact), length, reserve_bytes, never if exact < GB else lambda: 0) == 0
    assert choose(candidates(exact - 1), length, reserve_bytes, never) is None


@pytest.mark.parametrize(
    ("length", "block_bytes", "expected"),
    [(0, 4096, 0), (1, 4096, 4096), (4096, 4096, 4096), (4097, 4096, 8192), (5, 512, 512)],
)
def test_a_file_takes_whole_blocks(length, block_bytes, expected):
    assert on_disk(length, block_bytes) == expected


def test_the_reserve_of_inodes_is_kept():
    needed = next(n for n in range(100) if Candidate(TB, n).fits(1, 0))
    assert needed > RESERVE_INODES
    assert choose([Candidate(TB, needed - 1)], 1, 0, never) is None
    assert choose([Candidate(TB, needed - 1), Candidate(TB, needed)], 1, 0, lambda: 0) == 1


def test_with_nothing_left_even_the_empty_sample_is_refused_inodes():
    assert choose([Candidate(TB, 0)], 0, 0, never) is None
    assert choose([Candidate(0, INODES)], 0, 0, never) == 0
    assert choose([Candidate(-1, INODES)], 0, 0, never) is None


@pytest.mark.parametrize("reserve_bytes", [0, 5 * GB])
def test_with_little_to_spare_everywhere_the_emptiest_is_taken(reserve_bytes):
    little = [reserve_bytes + spare for spare in (1000, PLENTY_BYTES - 1, PLENTY_BYTES - 2, 5000)]
    assert choose(candidates(*little), 1, reserve_bytes, never) == 1


@pytest.mark.parametrize("reserve_bytes", [0, 5 * GB])
def test_with_plenty_to_spare_somewhere_it_is_drawn(reserve_bytes):
    two = candidates(reserve_bytes + PLENTY_BYTES, reserve_bytes + PLENTY_BYTES - 1)
    assert choose(two, 1, reserve_bytes, lambda: 0.0) == 0
    assert choose(two, 1, reserve_bytes, lambda: 0.99) == 1


def test_no_room_anywhere_is_none():
    assert choose([], 1, 0, never) is None
    assert choose(candidates(0, 100, 4095), 1, 0, never) is None
    assert choose(candidates(50 * GB, 60 * GB), 1, 60 * GB, never) is None


@pytest.mark.parametrize("seed", range(20))
def test_what_is_chosen_always_fits(seed):
    rng = random.Random(seed)
    for _ in range(1000):
        mirrors = [
            Candidate(rng.choice([rng.randrange(-GB, 3 * GB), 10 * GB]), rng.randrange(60))
            for _ in range(rng.randrange(1, 6))
        ]
        length, reserve_bytes = rng.randrange(2 * GB), rng.choice([0, GB])
        chosen = choose(mirrors, length, reserve_bytes, rng.random)
        fitting = [i for i, c in enumerate(mirrors) if c.fits(length, reserve_bytes)]
        assert chosen in (fitting or [None])


class Hanging(Deferred):
    """Commits that are not done before they are told to be."""

    def run(self, step):
        """See `stor.mirror.group_commit.Commits.run`."""
        return self


def chooser_of(tmp_path, free, seed=1):
    rig = Rig(tmp_path, (1,) * len(free), seed=seed, commits=lambda disk: Hanging())
    for member, free_bytes in zip(rig.members, free, strict=True):
        set_free(member, free_bytes)
    return rig, rig.mirrors._chooser, rig.mirrors.mirrors


def set_free(member, free_bytes):
    number = member.health.room.number + 1
    member.health.learn(Room(free_bytes, INODES, number=number, total_bytes=TB))


def test_a_chooser_follows_free_space(tmp_path):
    free = (500 * GB, 300 * GB, 200 * GB, 0)
    _, chooser, mirrors = chooser_of(tmp_path, free)
    counts = Counter(chooser.choose(mirrors, 1, 0) for _ in range(20_000))
    for mirror, free_bytes in zip(mirrors, free, strict=True):
        assert counts[mirror] / 20_000 == pytest.approx(free_bytes / TB, abs=0.02)


def hang(rig, member):
    """Have an operation under way there for so long; ends it when called."""
    hanging = member.commit(None)
    rig.clock.advance(HANGS_SECONDS)
    return lambda: hanging.callback(None)


@pytest.mark.parametrize("change", ["room", "state", "hang"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_full_or_away_is_not_drawn_from_that_moment_on(tmp_path, change, seed):
    rig, chooser, mirrors = chooser_of(tmp_path, (TB, TB, TB), seed)
    if change == "hang":
        rig.members[1].commit(None)
        rig.clock.advance(HANGS_SECONDS - 0.5)
    assert {chooser.choose(mirrors, 1, 0) for _ in range(100)} == set(mirrors)
    if change == "room":
        set_free(rig.members[1], 0)
    elif change == "state":
        rig.members[1].health.probe_failed("away")
    else:
        rig.clock.advance(0.5)  # the weights are still good
    drawn = {chooser.choose(mirrors, 1, 0) for _ in range(100)}
    assert drawn == {mirrors[0], mirrors[2]}


def test_what_hangs_is_better_than_nothing(tmp_path):
    rig, chooser, mirrors = chooser_of(tmp_path, (TB, TB, GB))
    for member in rig.members[:2]:
        hang(rig, member)
    assert {chooser.choose(mirrors, 1, 0) for _ in range(100)} == {mirrors[2]}
    assert chooser.choose(mirrors, 2 * GB, 0) in mirrors[:2]
    assert {chooser.choose(mirrors, 1, 0, mirrors[2:]) for _ in range(100)} == set(mirrors[:2])


def test_nothing_is_drawn_for_what_fits_nowhere(tmp_path):
    _, chooser, mirrors = chooser_of(tmp_path, (TB, TB))
    assert chooser.choose(mirrors, TB, 0) in mirrors
    assert chooser.choose(mirrors, TB + 1, 0) is None
    assert chooser.choose(mirrors, TB - 4096, 8192) is None


def test_what_has_room_again_is_drawn_a_second_later(tmp_path):
    rig, chooser, mirrors = chooser_of(tmp_path, (TB, 0))
    assert {chooser.choose(mirrors, 1, 0) for _ in range(100)} == {mirrors[0]}
    set_free(rig.members[1], TB)
    rig.clock.advance(WEIGHED_SECONDS + 0.1)
    assert {chooser.choose(mirrors, 1, 0) for _ in range(100)} == set(mirrors)


@pytest.mark.parametrize("was", ["away", "away from the start", "hanging"])
def test_what_is_back_is_drawn_from_that_moment_on(tmp_path, was):
    rig, chooser, mirrors = chooser_of(tmp_path, (TB, TB, 0 if "start" in was else TB))
    end = rig.probe
    if was == "hanging":
        end = hang(rig, rig.members[2])
    else:
        rig.members[2].health.probe_failed(was)
    assert {chooser.choose(mirrors, 1, 0) for _ in range(100)} == set(mirrors[:2])
    end()
    set_free(rig.members[2], TB)
    assert {chooser.choose(mirrors, 1, 0) for _ in range(100)} == set(mirrors)


def test_other_mirrors_are_weighed_anew(tmp_path):
    _, chooser, mirrors = chooser_of(tmp_path, (TB, TB, TB))
    chooser.choose(mirrors, 1, 0)
    assert {chooser.choose(mirrors[:1], 1, 0) for _ in range(100)} == {mirrors[0]}
    chosen = {chooser.choose(mirrors, 1, 0, {mirrors[0]}) for _ in range(100)}
    assert chosen == set(mirrors[1:])
