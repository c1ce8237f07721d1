"""Many requests, good ones and cut-off ones: they leave no descriptor and no memory behind."""

from tests.integration.load import SOAK, Audit, Load
from tests.integration.process import poll

REQUESTS = 100_000 if SOAK else 2400

#: What the second half of the requests may add to the memory that the first half has taken.
GROWTH_KIB = 16 * 1024

#: Mostly small ones: it is the number of requests that counts.
SIZES = {0: 1, 100: 10, 4096: 10, 65_536: 4, 262_145: 2, 1_100_000: 1}

#: More of those that end badly than of those that end well.
ACTIONS = {
    "post": 4,
    "chunked": 2,
    "again": 4,
    "get": 4,
    "head": 1,
    "unknown": 2,
    "wrong": 2,
    "cut": 8,
    "leave": 8,
}


class TestManyRequests:
    def test_leave_nothing_behind(self, start):
        stor = start()
        load = Load(stor.port, seed=7, actions=ACTIONS, sizes=SIZES)
        descriptors = self._at_rest(stor)
        load.run(REQUESTS // 2)
        self._at_rest(stor)
        memory_kib = stor.memory_kib()
        load.run(REQUESTS // 2)
        found = self._at_rest(stor)
        growth_kib = stor.memory_kib() - memory_kib
        print(f"{dict(load.counts)}; {len(found)} descriptors, {memory_kib} + {growth_kib} KiB")
        assert found == descriptors
        assert growth_kib < GROWTH_KIB
        assert load.surprises == []
        assert load.lost == 0
        assert len([outcome for outcome in load.counts if load.counts[outcome] > 10]) > 8
        poll(lambda: stor.staged() == [], what="an empty staging directory")
        Audit(stor.roots).check(load.acknowledged, load.paths)

    def _at_rest(self, stor):
        """What is open once every connection has ended, and no look at a disk is under way."""
        before = [None] * 5

        def connections_ended():
            found = sorted(stor.descriptors())
            before.append(found)
            listening = [name for name in found if name.startswith("socket:")]
            return found if len(listening) == 1 and before[-5:] == [found] * 5 else None

        return poll(connections_ended, what="the end of all connections")
