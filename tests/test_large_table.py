"""A table as large as a host's: ten million names, or three hundred (`make soak`)."""

import os
import random

import attrs

from stor.index.memory import create
from stor.index.merge import HeldNames, Plan, build, make
from stor.index.recent import Recent
from stor.index.table import Keys, Table
from tests.support.index import UUID, sha

SETS = tuple(UUID[:-4] + f"{number:04x}" for number in range(24))
KEYS = Keys(bytes(32))
ASKED = 20_000


def name(number):
    return number.to_bytes(32, "big")


def held(set_number, first, end):
    """The names of a set, as its disk has them."""
    steps = range(first, end, 20_000)
    names = ([name(n) for n in range(step, min(step + 20_000, end))] for step in steps)
    return HeldNames(set_number, end - first, names)


def test_it_takes_up_to_7_bytes_a_name_and_denies_none(soak, figures):
    total = 3 * 10**8 if soak else 10**7
    share = total // 20
    recent_fd, fds = Recent.create(bytes(32)), [create("one"), create("other")]
    recent = Recent(recent_fd)
    plan = Plan(recent_fd, fds[0], 0, 0, 1, 1, SETS)
    build(plan, KEYS, [held(number, number * share, (number + 1) * share) for number in range(20)])
    for number in range(1000):
        recent.add(sha(number), 23, held=True)
    plan = attrs.evolve(plan, new_fd=fds[1], old_fd=fds[0], recent=recent.published, generation=2)
    make(plan, KEYS)
    table = Table(fds[1], KEYS)
    assert table.contents.entries == total + 1000
    assert table.contents.length < 7 * total
    rng = random.Random(1)
    for number in (0, total - 1, *(rng.randrange(total) for _ in range(ASKED))):
        assert number // share in table.sets_of(name(number))
    assert all(table.sets_of(sha(number)) == (23,) for number in range(1000))
    assert not any(table.sets_of(sha(number)) for number in range(1000, ASKED))
    figures["names in a table, none of those asked for denied"] += total + 1000
    table.close()
    recent.close()
    for fd in (recent_fd, *fds):
        os.close(fd)
