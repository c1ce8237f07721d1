"""The nursery, as the supervisor sees it."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

#: The first descriptor that a service manager hands over (sd_listen_fds(3)).
_FIRST_SOCKET = 3


class Forks:
    """Has workers forked, and says when they end. A nursery that ends is started again."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        environment: Mapping[str, str],
        processes: int,
        shared: tuple[int, ...],
        *,
        speaks: bool,
    ) -> None:
        """`shared` are descriptors for every worker.

        `speaks`: what workers write to standard output goes where ours goes; else it is logged
        here.
        """
        self._reactor = reactor
        self._environment = environment
        self._processes = processes
        self._shared = shared
        self._speaks = speaks
        #: Told of each worker that has ended: its number, process id, and status of wait(2).
        self.ended: Callable[[int, int, int], None] = lambda process, pid, status: None
        self._line: _Line | None = None
        self._stopping = False
        #: The process id of each worker.
        self.pids: dict[int, int] = {}

    def fork(self, process: int) -> socket.socket:
        """Have a worker forked; our end of the socket to it."""
        if self._line is None:
            self._line = self._start()
        ours, theirs = socket.socketpair()
        self._line.fork(process, theirs)
        ours.setblocking(False)
        return ours

    def kill(self, process: int) -> None:
        """End a worker that hears nothing, if it is there."""
        pid = self.pids.get(process)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Let the nursery end. DiskPools stay."""
        self._stopping = True
        if self._line is not None:
            self._line.transport.loseConnection()

    def _start(self) -> "_Line":
        ours, theirs = socket.socketpair()
        # Twisted has taken the other variables of sd_listen_fds(3) out of the environment.
        names = self._environment.get("LISTEN_FDNAMES", "")
        sockets = len(names.split(":")) if names else 0
        with open(os.devnull, "rb") as nothing:
            # Sockets of the service manager are passed on as all others are; their numbers are
            # taken, so that what Twisted does with those does nothing.
            descriptors: dict[int, Any] = {0: theirs.fileno(), 1: 1, 2: 2}
            if not self._speaks:
                descriptors |= {1: "r", 2: "r"}
            descriptors |= dict.fromkeys(
                range(_FIRST_SOCKET, _FIRST_SOCKET + sockets), nothing.fileno()
            )
            first = _FIRST_SOCKET + sockets
            descriptors |= {first + n: fd for n, fd in enumerate(self._shared)}
            numbers = [self._processes, *range(first, first + len(self._shared))]
            command = [sys.executable, "-m", "stor.processes.nursery", *map(str, numbers)]
            # The same modules, wherever the supervisor was started from.
            environment = {
                **self._environment,
                "LISTEN_FDS": str(sockets),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }
            self._reactor.spawnProcess(
                _Output(self), sys.executable, command, environment, childFDs=descriptors
            )
        theirs.close()
        line = _Line(self)
        ours.setblocking(False)
        factory = Factory.forProtocol(lambda: line)
        self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        ours.close()
        return line

    def forked(self, process: int, pid: int) -> None:
        """A worker was forked."""
        self.pids[process] = pid

    def worker_ended(self, process: int, pid: int, status: int) -> None:
        """A worker has ended, with a status of wait(2)."""
        if self.pids.get(process) == pid:
            del self.pids[process]
        self.ended(process, pid, status)

    def lost(self) -> None:
        """The nursery has ended: the next fork starts another."""
        self._line = None
        if not self._stopping:
            self.log.error("The process that workers are forked from has ended; another follows")


class _Line(LineOnlyReceiver):
    """What is said to the nursery, and by it."""

    delimiter = b"\n"

    def __init__(self, forks: Forks) -> None:
        self._forks = forks
        # They are sent when the reactor comes to it, and are to be open until then.
        self._sending: dict[int, socket.socket] = {}

    def fork(self, process: int, theirs: socket.socket) -> None:
        """Ask for a worker, with its end of a socket."""
        self._sending[process] = theirs
        self.transport.sendFileDescriptor(theirs.fileno())
        self.transport.write(b"fork %d\n" % process)

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """See `stor.processes.nursery.Nursery`."""
        what, *numbers = line.split()
        process, pid, *status = map(int, numbers)
        if what == b"forked":
            self._sending.pop(process).close()
            self._forks.forked(process, pid)
        else:
            self._forks.worker_ended(process, pid, *status)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """The nursery has ended."""
        for theirs in self._sending.values():
            theirs.close()
        self._forks.lost()


class _Output(ProcessProtocol):
    """What nursery and workers write, where it is to be logged here."""

    def __init__(self, forks: Forks) -> None:
        self._log = forks.log
        self._rest: dict[int, bytes] = {}

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N802, N803
        """Some of it."""
        *lines, self._rest[childFD] = (self._rest.get(childFD, b"") + data).split(b"\n")
        for line in lines:
            self._log.info("{line}", line=line.decode(errors="backslashreplace"))
