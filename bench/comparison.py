"""How servers are compared: run by turns, in rounds, under one workload or a range of them."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import attrs

from bench.measure import (
    BUSY,
    CPU,
    P99,
    PSS,
    RATE,
    RSS,
    Done,
    Measure,
    Run,
    Series,
    Target,
    Verdict,
)
from bench.process import Cores, Process, cpu_seconds, memory
from bench.samples import ManySamples
from bench.servers import Server
from bench.workloads import Workload

WARM_UP_SECONDS = 0.5

#: Rounds at each point of a sweep, which has many points.
SWEEP_ROUNDS = 3


class Subject(Protocol):
    """What is measured: a server under a workload, or a bare loop."""

    @property
    def name(self) -> str:
        """Its name in the table."""

    @property
    def pid(self) -> int:
        """The process to charge, with all its descendants."""

    def start(self) -> None:
        """Return when it is ready for its first run. Raises `Failed`."""

    def run(self, seconds: float) -> Done:
        """Work for `seconds`. Raises `Failed`."""

    def stop(self) -> None:
        """End. Does nothing when it was not started."""


@attrs.frozen
class LoadedServer:
    """A server under a workload."""

    server: Server
    workload: Workload

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def pid(self) -> int:
        return self.server.pid

    def start(self) -> None:
        self.server.start()
        self.workload.prepare(self.server)

    def run(self, seconds: float) -> Done:
        return self.workload.run(self.server, seconds)

    def stop(self) -> None:
        self.server.stop()


@attrs.frozen
class FilledServer(LoadedServer):
    """A server whose disks hold many samples before it starts."""

    disks: Sequence[Path]
    samples: ManySamples

    def start(self) -> None:
        for disk in self.disks:
            self.samples.fill(disk)
        super().start()


class BareLoop:
    """The loop of `bench.bare_loop`, in a process of its own on the server's cores."""

    def __init__(self, directory: Path, cores: Cores, layout: str, threads: int, size: int) -> None:
        self.name = f"bare loop, {layout}, {threads} thread{'s' * (threads > 1)}"
        self._roots = [directory / "disk1", directory / "disk2"]
        self._arguments = [layout, str(threads), str(size)]
        self._size = size
        self._process = Process(self.name, directory, cores.server)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        for root in self._roots:
            root.mkdir(parents=True)
        command = [sys.executable, "-m", "bench.bare_loop", *self._arguments]
        self._process.start([*command, *map(str, self._roots)], pipes=True)

    def run(self, seconds: float) -> Done:
        samples, taken = self._process.ask(str(seconds)).split()
        return Done(int(samples), float(taken), int(samples) * self._size)

    def stop(self) -> None:
        self._process.stop()


def measured_run(subject: Subject, seconds: float) -> Run:
    """One run of a subject. Raises `Failed`, `OSError`."""
    before = cpu_seconds(subject.pid)
    done = subject.run(seconds)
    return Run(done, cpu_seconds(subject.pid) - before, memory(subject.pid))


@attrs.frozen
class Result:
    """What a comparison has found: the first series is Stor's, ratios are to `reference`.

    The first of `measures` is the one that is compared.
    """

    title: str
    series: Sequence[Series]
    reference: str
    measures: Sequence[Measure]
    verdicts: Sequence[Verdict]

    @property
    def reference_series(self) -> Series:
        """The series that the others are compared with."""
        return next(series for series in self.series if series.name == self.reference)


@attrs.frozen
class Comparison:
    """Stor, the first of the subjects, beside others."""

    title: str
    subjects: Sequence[Subject]
    reference: str
    targets: Sequence[Target] = ()
    measures: Sequence[Measure] = (RATE, P99, CPU, BUSY, PSS, RSS)

    def measure(self, rounds: int, seconds: float, log: Callable[[str], None]) -> Result:
        """Run every subject once in each round. Raises `Failed`; no process is left."""
        first = self.measures[0]
        log(self.title)
        with ExitStack() as running:
            for subject in self.subjects:
                log(f"starting {subject.name}")
                running.callback(subject.stop)
                subject.start()
                subject.run(WARM_UP_SECONDS)
            series = [Series(subject.name) for subject in self.subjects]
            for number in range(1, rounds + 1):
                for subject, its in zip(self.subjects, series, strict=True):
                    # No run pays for what others have left to be written.
                    os.sync()
                    run = measured_run(subject, seconds)
                    its.runs.append(run)
                    figure = f"{first.text(first.of(run))} {first.name}"
                    log(f"round {number} of {rounds}: {subject.name}: {figure}")
        table = {its.name: its for its in series}
        verdicts = [target.verdict(series[0].name, table) for target in self.targets]
        return Result(self.title, series, self.reference, self.measures, verdicts)


@attrs.frozen
class Curve:
    """The runs of one server, by the value that was varied."""

    name: str
    points: Mapping[int, Series]


@attrs.frozen
class Curves:
    """What a sweep has found; `tick` formats the value that was varied."""

    title: str
    axis: str
    tick: Callable[[int], str]
    curves: Sequence[Curve]


@attrs.frozen
class Sweep:
    """Servers, and the workloads by the value that is varied."""

    title: str
    axis: str
    tick: Callable[[int], str]
    servers: Sequence[Server]
    workloads: Mapping[int, Workload]

    def measure(self, rounds: int, seconds: float, log: Callable[[str], None]) -> Curves:
        """Run every workload on every server in each round. Raises `Failed`; leaves no process."""
        found = [
            Curve(server.name, {value: Series(server.name) for value in self.workloads})
            for server in self.servers
        ]
        log(self.title)
        with ExitStack() as running:
            for server in self.servers:
                log(f"starting {server.name}")
                running.callback(server.stop)
                server.start()
                for workload in self.workloads.values():
                    workload.prepare(server)
                    workload.run(server, WARM_UP_SECONDS)
            for number in range(1, min(rounds, SWEEP_ROUNDS) + 1):
                for value, workload in self.workloads.items():
                    for server, curve in zip(self.servers, found, strict=True):
                        run = measured_run(LoadedServer(server, workload), seconds)
                        curve.points[value].runs.append(run)
                        figure = f"{RATE.text(RATE.of(run))} {RATE.name}"
                        log(f"round {number}: {self.tick(value)}: {server.name}: {figure}")
        return Curves(self.title, self.axis, self.tick, found)
