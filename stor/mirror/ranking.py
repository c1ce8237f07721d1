"""In which order the disks are asked for a sample."""

import random
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter

import attrs

from stor.mirror.mirror import Mirror, Place
from stor.mirror.scout import Scouts


@attrs.frozen
class Ranking:
    """All disks that can be read from, best first, those that are not `sound` after all others.

    Sound is a disk that nothing is known against: it is not slow, and where others of its mirror
    are complete, it is, too.
    """

    sound: list[Place]
    others: list[Place]


def likeliest(mirror: Mirror, scouts: Scouts, rng: random.Random) -> Place | None:
    """One of the sound disks of a mirror, at random; `None` when it has none."""
    sound = rank([mirror], scouts, rng).sound
    return sound[0] if sound else None


def rank(
    mirrors: Sequence[Mirror], scouts: Scouts, rng: random.Random, hint: Mirror | None = None
) -> Ranking:
    """In random order the first disk of each mirror, then the rest.

    So load spreads, and a sample on a healthy mirror is found in one pass. `hint` is the mirror
    whose disks come before others of their kind.
    """
    draw = rng.random
    sound: defaultdict[int, list[Place]] = defaultdict(list)
    others: list[tuple[bool, bool, int, Place]] = []
    for mirror in sorted(mirrors, key=lambda mirror: (mirror is not hint, draw())):
        first, level = int(draw() * len(mirror.places)), 0
        proved = any(place.member.trusted for place in mirror.places)
        for place in mirror.places[first:] + mirror.places[:first]:
            member = place.member
            if not member.health.readable:
                continue
            good = member.trusted if proved else member.health.sound
            slow = member.slow or scouts.lost_at(member)
            if good and not slow:
                sound[level].append(place)
            else:
                others.append((not good, slow, level, place))
            level += 1
    others.sort(key=itemgetter(0, 1, 2))
    return Ranking(
        [place for level in sorted(sound) for place in sound[level]],
        [place for *_, place in others],
    )
