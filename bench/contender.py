"""Whoever takes turns: a server under a workload, or a bare loop."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs

from bench.cores import Cores
from bench.crowd import Crowd
from bench.errors import Failed
from bench.process import Process
from bench.server import Server
from bench.workload import Done, Workload


class Contender(Protocol):
    """A process that works for so many seconds when it is its turn."""

    @property
    def name(self) -> str:
        """What it is called in the table."""

    @property
    def pid(self) -> int:
        """The process to charge, with all below it."""

    def start(self) -> None:
        """Be ready for the first turn. Raises `Failed`."""

    def run(self, seconds: float) -> Done:
        """Take a turn. Raises `Failed`."""

    def stop(self) -> None:
        """End. Harmless when it was not started."""


@attrs.frozen
class Loaded:
    """A server under a workload."""

    server: Server
    workload: Workload

    @property
    def name(self) -> str:
        """See `Contender.name`."""
        return self.server.name

    @property
    def pid(self) -> int:
        """See `Contender.pid`."""
        return self.server.pid

    def start(self) -> None:
        """See `Contender.start`."""
        self.server.start()
        self.workload.prepare(self.server)

    def run(self, seconds: float) -> Done:
        """See `Contender.run`."""
        return self.workload.run(self.server, seconds)

    def stop(self) -> None:
        """See `Contender.stop`."""
        self.server.stop()


@attrs.frozen
class Crowded(Loaded):
    """A server with a crowd of samples on its disks before it starts."""

    disks: Sequence[Path]
    crowd: Crowd

    def start(self) -> None:
        """See `Contender.start`."""
        for disk in self.disks:
            self.crowd.fill(disk)
        super().start()


class BareLoop:
    """The loop of `bench.bare`, in a process of its own on the server's core."""

    def __init__(self, directory: Path, cores: Cores, layout: str, threads: int, size: int) -> None:
        self.name = f"bare loop, {layout}, {threads} thread{'s' * (threads > 1)}"
        self._roots = [directory / "disk1", directory / "disk2"]
        self._arguments = [layout, str(threads), str(size)]
        self._size = size
        self._process = Process(self.name, directory, cores.server)

    @property
    def pid(self) -> int:
        """See `Contender.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Contender.start`."""
        for root in self._roots:
            root.mkdir(parents=True)
        command = [sys.executable, "-m", "bench.bare", *self._arguments, *map(str, self._roots)]
        self._process.start(command, talking=True)

    def run(self, seconds: float) -> Done:
        """See `Contender.run`."""
        to_loop, from_loop = self._process.pipes
        to_loop.write(f"{seconds}\n".encode())
        to_loop.flush()
        answer = from_loop.readline().split()
        if len(answer) != 2:
            raise Failed(f"{self.name} ended: {self._process.last_words}")
        samples = int(answer[0])
        return Done(samples, float(answer[1]), samples * self._size)

    def stop(self) -> None:
        """See `Contender.stop`."""
        self._process.stop()
