"""Servers under one workload after the other, of which each is a little more of the same."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import attrs

from bench.comparison import WARM_UP_SECONDS
from bench.contender import Loaded
from bench.measure import RATE
from bench.series import Series
from bench.server import Server
from bench.turn import Turn
from bench.workload import Workload

#: Turns at each point: there are many points.
MOST_ROUNDS = 3


@attrs.frozen
class Curve:
    """The turns of one server, by what was varied."""

    name: str
    points: Mapping[int, Series]


@attrs.frozen
class Curves:
    """What a sweep has found; `tick` writes a value of what was varied."""

    title: str
    axis: str
    tick: Callable[[int], str]
    curves: Sequence[Curve]


@attrs.frozen
class Sweep:
    """Servers, and workloads by what is varied."""

    title: str
    axis: str
    tick: Callable[[int], str]
    servers: Sequence[Server]
    workloads: Mapping[int, Workload]

    def measure(self, rounds: int, seconds: float, tell: Callable[[str], None]) -> Curves:
        """Have every server do everything in each round. Raises `Failed`; no process is left."""
        found = [
            Curve(server.name, {value: Series(server.name) for value in self.workloads})
            for server in self.servers
        ]
        tell(self.title)
        with ExitStack() as running:
            for server in self.servers:
                tell(f"starting {server.name}")
                running.callback(server.stop)
                server.start()
                for workload in self.workloads.values():
                    workload.prepare(server)
                    workload.run(server, WARM_UP_SECONDS)
            for number in range(1, min(rounds, MOST_ROUNDS) + 1):
                for value, workload in self.workloads.items():
                    for server, curve in zip(self.servers, found, strict=True):
                        turn = Turn.of(Loaded(server, workload), seconds)
                        curve.points[value].turns.append(turn)
                        figure = f"{RATE.written(RATE.of(turn))} {RATE.name}"
                        tell(f"round {number}: {self.tick(value)}: {server.name}: {figure}")
        return Curves(self.title, self.axis, self.tick, found)
