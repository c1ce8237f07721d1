"""Several Stors on the same disks, as the workers of one are: what they do takes turns."""

import errno
import random
from collections import Counter

import pytest

from stor.digest import Digest
from stor.mirror.mirror import Reserved
from tests.conformance import MIB, QuickFiles, release, sample
from tests.support.files import FaultyFiles
from tests.support.pools import HeldPool
from tests.support.rig import AUTHORIZATION, Rig, request_bytes
from tests.support.turns import SharedTurns

PROCESSES = 3


class Crew:
    """Rigs that share their disks, each an upload at a time, their work done in any order."""

    def __init__(self, path, seed, sets=(2, 2), files=QuickFiles, processes=PROCESSES):
        self.rng = random.Random(seed)
        self.held = HeldPool()
        self.turns = SharedTurns()
        self.rigs = [
            Rig(
                path,
                sets,
                files=files,
                worker=lambda: self.held,
                seed=seed + n,
                turns=self.turns.of(n),
            )
            for n in range(processes)
        ]
        self.connections = []

    def post(self, rig, content, body=None):
        """A client of one process that posts `body` under the name of `content`."""
        body = content if body is None else body
        head = [("Authorization", AUTHORIZATION)]
        connection = rig.connect()
        connection.send(request_bytes("POST", f"/{Digest.of(content)}", head, body))
        self.connections.append(connection)

    def run(self):
        """Do everything, in random order; the status of each answer."""
        while self.held.held:
            release(self.held, self.rng.randrange(len(self.held.held)))
            for connection in self.connections:
                connection.settle()
        for connection in self.connections:
            connection.settle()
        statuses = [r.status for c in self.connections for r in c.responses(["POST"])]
        self.connections = []
        assert not self.turns.holders, "a turn that nobody has given back"
        assert all(rig.staged() == [] for rig in self.rigs)
        return statuses


@pytest.mark.parametrize("seed", range(40))
def test_one_sample_is_made_once_whoever_is_first(tmp_path, seed):
    crew = Crew(tmp_path, seed)
    content = sample(crew.rng.choice([0, 1, 4096, 300_000]), seed)
    for _ in range(3):
        for rig in crew.rigs:
            crew.post(rig, content)
    assert Counter(crew.run()) == {201: 1, 200: 3 * PROCESSES - 1}
    copies = crew.rigs[0].copies(content)
    assert [path.read_bytes() == content for path in copies] == [True, True]


@pytest.mark.parametrize("seed", range(40))
def test_a_wrong_body_beside_the_right_one_changes_nothing(tmp_path, seed):
    crew = Crew(tmp_path, seed)
    content = sample(5000, seed)
    for rig in crew.rigs:
        crew.post(rig, content)
        crew.post(rig, content, content[::-1])
    found = Counter(crew.run())
    assert found[201] == 1
    assert set(found) <= {200, 201, 412}
    copies = crew.rigs[0].copies(content)
    assert [path.read_bytes() == content for path in copies] == [True, True]


@pytest.mark.parametrize("processes", [1, PROCESSES])
@pytest.mark.parametrize("n", range(60))
def test_what_one_takes_back_another_has_not_relied_on(tmp_path, n, processes):
    """Whose commit fails takes its names away; whoever was told 2xx still has copies."""
    made = []

    def files(label):
        kind = FaultyFiles(label, [])
        made.append(kind)
        return kind

    crew = Crew(tmp_path, n, (2,), files, processes)
    content = sample(4096, n)
    # The n-th call of one process to one disk fails.
    made[1].fail_at(n, errno.EIO)
    for _ in range(6 // processes):
        for rig in crew.rigs:
            crew.post(rig, content)
    found = Counter(crew.run())
    assert set(found) <= {200, 201, 503}
    assert found[201] <= 1
    copies = crew.rigs[0].copies(content)
    if found[200] or found[201]:
        assert [path.read_bytes() == content for path in copies] == [True, True]
    else:
        assert copies == []


def test_a_large_body_is_stored_once(tmp_path):
    crew = Crew(tmp_path, 7)
    content = sample(MIB + 1, 7)
    for rig in crew.rigs:
        crew.post(rig, content)
    assert Counter(crew.run()) == {201: 1, 200: PROCESSES - 1}
    assert len(crew.rigs[0].copies(content)) == 2


class Overtaken(Reserved):
    """Another process reserves between this one's look and its own reservation."""

    def __init__(self, its_bytes):
        super().__init__()
        self._its_bytes = its_bytes

    def add(self, size_bytes, samples):
        if samples > 0:
            super().add(self._its_bytes, 1)
            self._its_bytes = 0
        super().add(size_bytes, samples)


def test_what_two_reserve_at_once_is_never_more_than_there_is(tmp_path):
    size = 100_000
    rig = Rig(tmp_path, sets=(2,))
    rig.probe()
    (mirror,) = rig.mirrors.mirrors
    free = mirror.candidate().free_bytes
    # Room for one of the two, and half as much again.
    rig.mirrors.reconfigure([mirror], rig.members[0].roster, free - size * 3 // 2)
    mirror.reserved = Overtaken(size)
    refused = rig.put(sample(size, 1))
    assert refused.status == 507
    assert mirror.reserved.total() == (size, 1), "what the other has reserved, and nothing more"
    mirror.reserved = Reserved()
    assert rig.put(sample(size, 1)).status == 201
