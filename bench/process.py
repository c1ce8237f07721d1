"""A process that bench starts and ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import attrs

from bench.cores import Cores
from bench.errors import Failed

START_SECONDS = 20.0
STOP_SECONDS = 15.0

#: What the processes import first is what stands beside this package: the Stor of the checkout.
_CHECKOUT = str(Path(__file__).resolve().parent.parent)
_IMPORTS = os.pathsep.join(filter(None, [_CHECKOUT, os.environ.get("PYTHONPATH")]))


@attrs.define
class Process:
    """A command in a directory of its own, on given cores; what it says is in `log` there."""

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
        """Its input and its output, when it was started `talking`."""
        child = self._running()
        if child.stdin is None or child.stdout is None:
            raise ValueError(f"{self.name} was not started to be talked to")
        return child.stdin, child.stdout

    def start(self, command: Sequence[str], *, talking: bool = False) -> None:
        """Begin to run. In a session of its own: Ctrl-C reaches bench alone, which ends it."""
        pipe = subprocess.PIPE if talking else None
        with open(self._log, "ab") as log, Cores.held(self.cores):
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
        """Return once `ready()`. Raises `Failed` when the process ends first, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            status = self._running().poll()
            if status is not None:
                raise Failed(f"{self.name} ended with status {status}: {self.last_words}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} is not ready after {START_SECONDS:g} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and wait for its end. Harmless when it was not started."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It leads a group of its own, with all that it has started.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def last_words(self) -> str:
        """The end of its log, as one line."""
        text = self._log.read_text(errors="replace").strip()
        return " | ".join(text.splitlines()[-3:]) or "it said nothing"

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise ValueError(f"{self.name} does not run")
        return self._child
