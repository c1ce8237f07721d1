"""The process that workers are forked from: it has imported everything, and does nothing else.

A worker that is to take another's place is there within milliseconds, and what was imported is in
memory once. No threads and no reactor run here, so that nothing is forked in the middle of its
work. Run by `stor.processes.forks.Forks`, with one end of a socket as its standard input.
"""

import os
import selectors
import signal
import socket
import sys
from contextlib import suppress

from stor.garbage import settle_down
from stor.processes.called import call_process

#: What a worker does not hear of: the supervisor says when it is to end.
_SUPERVISORS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Nursery:
    """Forks a worker for each line `fork PROCESS`, which one descriptor comes with.

    Says `forked PROCESS PID`, and when a worker has ended `ended PROCESS PID STATUS` (wait(2)).
    """

    def __init__(self, supervisor: socket.socket, shared: list[int]) -> None:
        """`shared` are numbers that every worker is given: how many processes, descriptors."""
        self._supervisor = supervisor
        self._shared = shared
        self._selector = selectors.DefaultSelector()
        self._selector.register(supervisor, selectors.EVENT_READ)
        #: The number of each worker by its process id.
        self._workers: dict[int, int] = {}
        self._text = b""
        self._descriptors: list[int] = []

    def run(self) -> None:
        """Fork until the supervisor has ended."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._supervisor:
                    self._reap(key.fd, key.data)
                elif not self._hear():
                    return

    def _hear(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._supervisor, 4096, 16)
        except ConnectionResetError:
            return False  # it was killed, and has not heard the last we said
        self._descriptors += descriptors
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._fork(int(line.split()[1]), self._descriptors.pop(0))
        return bool(data)

    def _fork(self, process: int, descriptor: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become(process, descriptor)
        os.close(descriptor)
        self._workers[pid] = process
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        self._say(f"forked {process} {pid}")

    def _become(self, process: int, descriptor: int) -> None:
        """Be a worker from here on. Never returns."""
        from stor.processes.worker import run  # noqa: PLC0415 - imported long before

        status = 1
        try:
            self._selector.close()
            self._supervisor.close()
            # Those of workers that follow: their ends are not to be ours as well.
            for another in self._descriptors:
                os.close(another)
            run(process, descriptor, *self._shared)
            status = 0
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            # Not sys.exit: what was begun before the fork is not this process's to end.
            os._exit(status)

    def _reap(self, pidfd: int, pid: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._say(f"ended {self._workers.pop(pid)} {pid} {status}")

    def _say(self, line: str) -> None:
        with suppress(OSError):  # a supervisor that has ended is seen by the next select
            self._supervisor.sendall(f"{line}\n".encode())


def main() -> None:
    """Run as `python -m stor.processes.nursery NUMBER...`, the numbers of `Nursery`."""
    for number in _SUPERVISORS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    call_process("stor-nursery")
    # Twisted looks at this while it is imported: the sockets of the service manager are ours, too.
    os.environ["LISTEN_PID"] = str(os.getpid())
    import stor.processes.worker  # noqa: PLC0415 - once for all workers
    import stor.s3.boto  # noqa: F401, PLC0415

    # Besides, what is never looked at stays in pages that all workers share.
    settle_down()
    # Whatever reads standard input in a worker shall not read what is for the nursery.
    with socket.socket(fileno=os.dup(0)) as supervisor, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        Nursery(supervisor, [int(number) for number in sys.argv[1:]]).run()


if __name__ == "__main__":
    main()
