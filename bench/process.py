"""A process that bench starts and ends: on which cores it runs, and what it uses."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import attrs

START_SECONDS = 20.0
STOP_SECONDS = 15.0

#: The checkout that this package is in comes first on the path: its Stor is the one measured.
_CHECKOUT = str(Path(__file__).resolve().parent.parent)
_IMPORTS = os.pathsep.join(filter(None, [_CHECKOUT, os.environ.get("PYTHONPATH")]))

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_MEMORY_LINE = re.compile(r"^(Rss|Pss): +([0-9]+) kB$", re.MULTILINE)


class Failed(Exception):
    """Something did not start, or gave a wrong answer, so a figure would be worthless."""


@attrs.frozen
class Cores:
    """Where servers run, and where their clients do."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def one_each(cls) -> "Cores":
        """The last and the first usable core: neighbours can be one physical core."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[-1:]), frozenset(usable[:1]))

    @classmethod
    def all_for_both(cls) -> "Cores":
        """Every usable core, shared by a server and its clients."""
        usable = frozenset(os.sched_getaffinity(0))
        return cls(usable, usable)

    @property
    def title(self) -> str:
        """How many the server has."""
        count = len(self.server)
        return "one core" if count == 1 else f"all {count} cores, shared with the clients"


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Run on `cores` for a while; processes and threads started meanwhile stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@attrs.define
class Process:
    """A command in a directory of its own, on given cores; its output goes to `log` there."""

    name: str
    directory: Path
    cores: frozenset[int]
    _child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running().pid

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Its input and its output, when it was started with `pipes`."""
        child = self._running()
        if child.stdin is None or child.stdout is None:
            raise ValueError(f"{self.name} was not started with pipes")
        return child.stdin, child.stdout

    def start(self, command: Sequence[str], *, pipes: bool = False) -> None:
        """Start it, in a session of its own: Ctrl-C reaches bench alone, which then ends it."""
        pipe = subprocess.PIPE if pipes else None
        with open(self._log, "ab") as log, pinned(self.cores):
            self._child = subprocess.Popen(
                command,
                cwd=self.directory,
                env=os.environ | {"PYTHONPATH": _IMPORTS},
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()`. Raises `Failed` when the process ends first or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            status = self._running().poll()
            if status is not None:
                raise Failed(f"{self.name} ended with status {status}: {self.end_of_log}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} is not ready after {START_SECONDS:g} s")
            time.sleep(0.05)

    def ask(self, line: str) -> str:
        """Write a line to its input and read one from its output. Raises `Failed` at its end."""
        to_child, from_child = self.pipes
        try:
            to_child.write(f"{line}\n".encode())
            to_child.flush()
            answer = from_child.readline().decode()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise Failed(f"{self.name} ended: {self.end_of_log}")
        return answer

    def stop(self) -> None:
        """End it, and wait for its end. Does nothing when it was not started."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It leads its own process group, with everything that it has started.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def end_of_log(self) -> str:
        """The last lines of its log, as one line."""
        text = self._log.read_text(errors="replace").strip()
        return " | ".join(text.splitlines()[-3:]) or "its log is empty"

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise ValueError(f"{self.name} is not running")
        return self._child


@attrs.frozen
class Memory:
    """Bytes in use. Shared pages count once per process in `resident`, once in `proportional`."""

    resident: int
    proportional: int


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree so far, children that ended included (proc(5))."""
    ticks = 0
    for each in process_tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The second field is a name in parentheses that may hold anything.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_SECOND


def memory(pid: int) -> Memory:
    """Memory of a process tree now (proc(5), smaps_rollup)."""
    totals = {"Rss": 0, "Pss": 0}
    for each in process_tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for name, kib in _MEMORY_LINE.findall(Path(f"/proc/{each}/smaps_rollup").read_text()):
                totals[name] += int(kib) * 1024
    return Memory(totals["Rss"], totals["Pss"])


def process_tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from process_tree(int(child))
