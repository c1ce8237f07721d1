"""A process of an engine that tests use."""

import contextlib
import signal
import subprocess
from pathlib import Path

from tests.integration.process import environment, poll

#: The first start of an engine reads all its code from disk.
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class Process:
    """A command that can be started, paused and ended as often as a test wants.

    What it says is in `<directory>/<name>.log`, its process id in `<directory>/<name>.pid`.
    """

    def __init__(self, directory, name, command, ready=None, **variables):
        """`ready()` tells whether it can be used."""
        self.name = name
        self._log = Path(directory) / f"{name}.log"
        self._pid_file = Path(directory) / f"{name}.pid"
        self._command = list(map(str, command))
        self._ready = ready
        self._variables = variables
        self._child = None

    @property
    def pid(self):
        return self._child.pid

    @property
    def running(self):
        return self._child is not None and self._child.poll() is None

    def start(self):
        """Begin to run; `wait` tells when it can be used."""
        if self.running:
            return
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                # Ends with the tests, however they end. In a session of its own: Ctrl-C is
                # for the tests alone, which then end it in order.
                ["setpriv", "--pdeathsig", "KILL", "--", *self._command],
                cwd=self._log.parent,
                env=environment(**self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{self.pid}\n")

    def wait(self):
        """Wait until it can be used."""
        poll(self._usable, START_SECONDS, f"{self.name} being ready")

    def pause(self):
        """Have it hang: connections are taken by the kernel, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self):
        """Have it go on where it was paused."""
        self._signal(signal.SIGCONT)

    def kill(self):
        """End it at once, paused or not."""
        self._signal(signal.SIGKILL)
        self._reap(None)

    def stop(self):
        """End it in order."""
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._reap(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self, lines=20):
        """The end of what it has said."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _usable(self):
        assert self.running, f"{self.name} has ended:\n{self.last_words()}"
        return self._ready is None or self._ready()

    def _signal(self, number):
        if self.running:
            self._child.send_signal(number)

    def _reap(self, seconds):
        if self._child is not None:
            self._child.wait(seconds)
            self._pid_file.unlink(missing_ok=True)


class Group:
    """Processes that are one to a test, such as a node of an engine."""

    def __init__(self, *processes):
        self.processes = processes

    def start(self):
        """Start those that do not run, and wait until all can be used."""
        for process in self.processes:
            process.start()
        for process in self.processes:
            process.wait()

    def pause(self):
        """See `Process.pause`."""
        for process in self.processes:
            process.pause()

    def resume(self):
        """See `Process.resume`."""
        for process in self.processes:
            process.resume()

    def kill(self):
        """See `Process.kill`."""
        for process in self.processes:
            process.kill()

    @contextlib.contextmanager
    def paused(self):
        """Within this block they hang."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @contextlib.contextmanager
    def killed(self):
        """Within this block they are gone; they run again after it."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def stop(self):
        """See `Process.stop`."""
        with contextlib.ExitStack() as all_of_them:
            for process in self.processes:
                all_of_them.callback(process.stop)


def run(command, seconds=START_SECONDS, **variables):
    """Run a command to its end; what it printed. Fails with what it said when it fails."""
    ended = subprocess.run(
        list(map(str, command)),
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout
