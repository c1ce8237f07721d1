"""The parent of several processes: it has their sockets and their memory, and replaces them.

It answers nothing and looks after no disk, so that nothing but the end of the service ends it.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.config import Config, ConfigError
from stor.disk.syscalls import Syscalls
from stor.errors import Unavailable
from stor.gauges import Reloads
from stor.index.index import shared_memory
from stor.processes.child import (
    CONTROL_FD,
    FIRST_LINE_FD,
    MEMORY_FD,
    RECENT_FD,
    TABLE_FDS,
    Done,
    End,
    Leave,
    Serve,
)
from stor.processes.child import name_of as name_of_process
from stor.processes.handover import Line, pair, send_back
from stor.processes.listener import OpenedPorts
from stor.processes.memory import WRITER, Memory, make_memory
from stor.server import DRAIN_SECONDS
from stor.threads import settle, within

#: How long a process may take to serve as it was told, and to take no more connections.
SERVE_SECONDS = 60.0
LEAVE_SECONDS = 5.0

#: What processes have after the time in which they end by themselves.
LAST_SECONDS = 5.0

#: How long a process may give no sign of life before it is ended.
CHECK_SECONDS = 5.0
HANGS_SECONDS = 30.0

#: What readers have handed to a writer that has ended goes back at once, and once more after this.
SEND_BACK_SECONDS = 0.1

#: One that has lived this long is replaced at once when it ends; others after growing pauses.
PROVEN_SECONDS = 10.0
SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0


class Child(ProcessProtocol):
    """A process that answers, as its parent sees it."""

    log = Logger()

    def __init__(self, place: "Place", reactor: Any, kill: Callable[[int], None]) -> None:
        self.place = place
        self.since = reactor.seconds()
        self.pid = 0
        self._over = False
        #: Fires when the process has ended, with how.
        self.ended: Deferred[str] = Deferred()
        self._reactor = reactor
        self._kill = kill
        self._replies: deque[Deferred[Done]] = deque()
        self._rest: dict[int, bytes] = {}
        self._line: Line | None = None

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], files: dict[int, Any]
    ) -> None:
        """Start it, with these descriptors and one more to hear its orders from."""
        ours, theirs = pair()
        with theirs:
            self._line = Line(ours, self._reactor, self._heard)
            self._line.listen()
            self._reactor.spawnProcess(
                self,
                command[0],
                command,
                dict(environment),
                childFDs=files | {CONTROL_FD: theirs.fileno()},
            )

    def order(
        self, seconds: float, order: object, descriptors: Sequence[int] = ()
    ) -> Deferred[Done]:
        """Have it do something, within `seconds`. Fails with `Unavailable`, `Unanswered`."""
        if self._line is None or not self._line.send(order, descriptors):
            return fail(Unavailable("it has ended"))
        reply: Deferred[Done] = Deferred()
        self._replies.append(reply)
        return within(self._reactor, seconds, reply)

    def kill(self) -> None:
        """End it now, whatever it does."""
        if not self._over:
            self._kill(self.pid)

    def connectionMade(self) -> None:  # noqa: N802
        """It has been started."""
        transport: Any = self.transport
        self.pid = transport.pid

    def _heard(self, done: Done, descriptors: list[int]) -> None:
        self._replies.popleft().callback(done)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N802, N803
        """What it writes, where that is logged here."""
        *lines, self._rest[childFD] = (self._rest.get(childFD, b"") + data).split(b"\n")
        for line in lines:
            self.log.info("{line}", line=line.decode(errors="backslashreplace"))

    def processExited(self, reason: Failure) -> None:  # noqa: N802
        """It has ended."""
        self._over = True
        if self._line is not None:
            self._line.close()
        number = getattr(reason.value, "signal", None)
        how = f"signal {number}" if number else f"status {getattr(reason.value, 'exitCode', 0)}"
        while self._replies:
            self._replies.popleft().errback(Unavailable(f"it has ended: {how}"))
        self.ended.callback(how)


@attrs.define(eq=False)
class Place:
    """Where one process is: who is there now, and how those before fared."""

    process: int
    #: The ends of the lines to other processes, for whoever is there.
    ends: list[int]
    child: Child | None = None
    failures: int = 0

    @property
    def name(self) -> str:
        """What its process is called."""
        return name_of_process(self.process)


class Parent:
    """Keeps one process that writes, and others that only read."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        chosen: Config,
        environment: Mapping[str, str],
        *,
        speaks: bool,
        kill: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
    ) -> None:
        """`speaks`: what processes write to standard output goes where ours goes.

        Else it is logged here. `kill` ends a process by its id.
        """
        self._kill = kill
        self._reactor = reactor
        self._chosen = chosen
        # What is for the process that the service manager has started is not for others.
        ours = ("LISTEN_", "NOTIFY_", "WATCHDOG_")
        # The same modules, wherever this process was started from.
        self._environment = {
            **{name: value for name, value in environment.items() if not name.startswith(ours)},
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._speaks = speaks
        self._memory_fd = make_memory(chosen.workers)
        self._memory = Memory(self._memory_fd, chosen.workers)
        #: What the disks hold: it outlives who has learnt it.
        self._index = shared_memory(chosen.state_directory, Syscalls())
        # Kept here as well: what is on its way when a process ends, the next one takes, or who sent
        # it gets it back.
        lines = [pair() for _ in range(1, chosen.workers)]
        self._lines = [end for line in lines for end in line]
        self._writers_ends = self._lines[::2]
        self._writer = Place(WRITER, [ours.fileno() for ours, _ in lines])
        self._readers = [Place(n, [theirs.fileno()]) for n, (_, theirs) in enumerate(lines, 1)]
        self._ports = OpenedPorts(reactor)
        self._stopping = False
        self._checking = LoopingCall(self._check)
        self._checking.clock = reactor

    @property
    def reloads(self) -> Reloads:
        """How the last reload went."""
        return self._memory.reloads

    @property
    def addresses(self) -> list[object]:
        """Where clients find the service, in the configured order."""
        return self._ports.addresses

    def open(self, chosen: Config) -> None:
        """Take the sockets. Raises `CannotListen`."""
        self._ports.listen(chosen.listen)

    async def start(self) -> None:
        """Have all processes answer."""
        self._follow(self._chosen)
        for place in self._places:
            self._spawn(place)
        self._checking.start(CHECK_SECONDS, now=False)
        # The others hear from the writer how the storages are.
        await self._serve(self._writer)
        await settle([Deferred.fromCoroutine(self._serve(place)) for place in self._readers])

    async def reload(self, chosen: Config) -> None:
        """Have all processes follow another configuration.

        Raises `CannotListen`, `ConfigError`; then all is as before.
        """
        await self._ports.extend(chosen.listen)
        before = self._chosen
        self._follow(attrs.evolve(chosen, workers=len(self._places)))
        fault = await self._serve(self._writer)
        if fault is not None:
            self._follow(before)
            await self._ports.restrict(before.listen)
            raise ConfigError([f"the writer cannot follow it: {fault}"])
        await settle([Deferred.fromCoroutine(self._serve(place)) for place in self._readers])
        await self._ports.restrict(chosen.listen)

    def _follow(self, chosen: Config) -> None:
        """What processes are told from now on, also those that are started."""
        self._chosen = chosen
        self._memory.config = chosen

    async def stop(self) -> None:
        """Take no more connections, and let what runs finish."""
        self._stopping = True
        self._checking.stop()
        deadline = self._reactor.callLater(DRAIN_SECONDS + LAST_SECONDS, self._kill_all)
        there = [place.child for place in self._places if place.child is not None]
        await settle([child.order(LEAVE_SECONDS, Leave()) for child in there])
        await self._ports.stop()
        await self._ended(self._readers)
        if self._writer.child is not None:
            await settle([self._writer.child.order(DRAIN_SECONDS + LAST_SECONDS, End())])
        await self._ended([self._writer])
        if deadline.active():
            deadline.cancel()

    @property
    def _places(self) -> list[Place]:
        return [self._writer, *self._readers]

    def _spawn(self, place: Place) -> None:
        if self._stopping:
            return
        child = Child(place, self._reactor, self._kill)
        numbers = [place.process, len(self._places)]
        # Not -m, which gives the module another name than messages know it by.
        code = "from stor.processes.child import main; main()"
        command = [sys.executable, "-P", "-c", code, *map(str, numbers)]
        with open(os.devnull, "rb") as nothing:
            files: dict[int, Any] = {0: nothing.fileno(), 1: 1, 2: 2, MEMORY_FD: self._memory_fd}
            if not self._speaks:
                files |= {1: "r", 2: "r"}
            files |= {RECENT_FD: self._index.recent_fd}
            files |= dict(zip(TABLE_FDS, self._index.table_fds, strict=True))
            files |= {FIRST_LINE_FD + n: end for n, end in enumerate(place.ends)}
            child.start(command, self._environment, files)
        child.ended.addCallback(self._child_ended, place, child)
        place.child = child

    async def _serve(self, place: Place) -> str | None:
        """Have a process serve as is configured, or why it does not. Never raises.

        One that does not serve at all is ended.
        """
        child = place.child
        if child is None or self._stopping:
            return None
        listeners, descriptors = self._ports.sockets(self._chosen.listen)
        (done,) = await settle([child.order(SERVE_SECONDS, Serve(listeners), descriptors)])
        fault = str(done.value) if isinstance(done, Failure) else done.fault
        if fault is not None and not self._stopping:
            self.log.error("The {name} does not serve: {error}", name=place.name, error=fault)
            if not self._memory.serving[place.process].value:
                child.kill()  # and another one tries
        return fault

    def _child_ended(self, how: str, place: Place, child: Child) -> None:
        place.child = None
        self._memory.ended(place.process)
        if place is not self._writer:
            self._index.leave(place.process - 1)
        if self._stopping:
            return
        if place is self._writer:
            # Nobody is to wait for the next one. Twice: a reader may hand over meanwhile.
            self._send_back()
            self._reactor.callLater(SEND_BACK_SECONDS, self._send_back)
        self.log.error(
            "The {name} (pid {pid}) has ended: {how}", name=place.name, pid=child.pid, how=how
        )
        proven = self._reactor.seconds() - child.since >= PROVEN_SECONDS
        place.failures = 1 if proven else place.failures + 1
        pause = 0.0
        if place.failures > 1:
            pause = min(SHORTEST_PAUSE_SECONDS * 2.0**place.failures, LONGEST_PAUSE_SECONDS)
        self._reactor.callLater(pause, self._replace, place)

    def _send_back(self) -> None:
        """Give readers back what the writer has not taken: they say when to come again."""
        if not self._memory.serving[WRITER].value:
            for end in self._writers_ends:
                send_back(end)

    def _replace(self, place: Place) -> None:
        self._spawn(place)
        if place.child is not None:
            serving = Deferred.fromCoroutine(self._serve(place))
            serving.addCallback(lambda _: self._say_back(place)).addErrback(self._bug)

    def _say_back(self, place: Place) -> None:
        if self._memory.serving[place.process].value:
            self.log.info("The {name} is back", name=place.name)

    def _check(self) -> None:
        for place in self._places:
            if place.child is None:
                continue
            alive = max(self._memory.alive[place.process].value, place.child.since)
            if self._reactor.seconds() - alive > HANGS_SECONDS:
                self.log.error("The {name} hangs, and is ended", name=place.name)
                place.child.kill()

    async def _ended(self, places: Sequence[Place]) -> None:
        for place in places:
            if place.child is not None:
                await place.child.ended

    def _kill_all(self) -> None:
        for place in self._places:
            if place.child is not None:
                place.child.kill()

    def _bug(self, failure: Failure) -> None:
        self.log.failure("Replacing a process", failure)
