"""A process that answers: the one that writes, or one of those that only read.

Started by `stor.processes.parent` with `python -P`, so that nothing of the current directory is
imported, and not forked: it has a reactor, threads and descriptors of its own from the beginning.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from stor.config import Config
from stor.descriptors import raise_limit
from stor.digest import Digest
from stor.fleet import Writer
from stor.garbage import settle_down
from stor.gauges import LogGauges
from stor.http.status import Snapshot
from stor.index.index import Shared
from stor.logs import LogStream, observer_for, take_standard_output
from stor.mirror.member import PROBE_INTERVAL_SECONDS
from stor.mirror.mirror import Mirror
from stor.processes.handover import Found, Handover, Lacking, Line, Trouble
from stor.processes.listener import InheritedPorts, Listener
from stor.processes.memory import WRITER, Memory
from stor.prometheus import summed
from stor.reactor import Reactor, own_reactor
from stor.runtime import Runtime, Storages
from stor.server import Server
from stor.sockets import CannotListen
from stor.summary import summary

#: The first descriptors of such a process: its line to the parent, the memory of all, that of the
#: index, and then its lines to others.
CONTROL_FD, MEMORY_FD, RECENT_FD, FIRST_LINE_FD = 3, 4, 5, 8
TABLE_FDS = 6, 7

#: How often the storages' state is told and heard, and how often each says what it has done.
STORAGES_SECONDS = 0.25
FIGURES_SECONDS = 1.0

#: prctl(2): the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1

#: What a process does not hear of: the parent says when it ends.
_PARENTS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@attrs.frozen
class Serve:
    """Answer at these listeners, whose descriptors come along, as the configuration says now."""

    listeners: Sequence[Listener]


@attrs.frozen
class Leave:
    """Take no more connections, and finish what runs. Who reads ends with that."""


@attrs.frozen
class End:
    """End when what runs has finished: nobody hands anything over any more."""


@attrs.frozen
class Done:
    """An order has been obeyed, or `fault` says why not."""

    fault: str | None = None


def name_of(process: int) -> str:
    """What a process is called, in logs and by `ps`."""
    return "writer" if process == WRITER else f"reader-{process}"


class Child:
    """The composition root of such a process, and what it does for the parent."""

    log = Logger()

    def __init__(
        self,
        process: int,
        memory: Memory,
        control: socket.socket,
        ends: Sequence[socket.socket],
        reactor: Reactor,
    ) -> None:
        """`process` is its place among those that answer."""
        self._process = process
        self._writes = process == WRITER
        self._memory = memory
        self._reactor = reactor
        self._control = Line(control, reactor, self._heard, self._orphaned)
        self._handover = Handover(
            ends,
            reactor,
            writes=self._writes,
            serves=lambda line: bool(memory.serving[line + 1 if self._writes else WRITER].value),
            told=self._heard_of,
        )
        # What was counted in this place before this process.
        before = memory.snapshots()[process]
        self._before = Snapshot([]) if before is None else before.lasting
        self._runtime: Runtime | None = None
        self._server: Server | None = None
        self._ports: InheritedPorts | None = None
        self._drained: Deferred[None] | None = None
        self._storages_number = 0
        self._published: Storages | None = None
        self._published_seconds = 0.0
        self._loops = [
            (LoopingCall(self._share_storages), STORAGES_SECONDS),
            (LoopingCall(self._share_figures), FIGURES_SECONDS),
        ]
        for loop, _ in self._loops:
            loop.clock = reactor

    def begin(self) -> None:
        """Hear the parent, from now on."""
        self._control.listen()

    # What the parent orders.

    def _heard(self, order: object, descriptors: list[int]) -> None:
        obeying = Deferred.fromCoroutine(self._obey(order, descriptors))
        obeying.addErrback(self._bug).addCallback(self._control.send)

    async def _obey(self, order: object, descriptors: list[int]) -> Done:
        if isinstance(order, Serve):
            return await self._serve(order, descriptors)
        if isinstance(order, Leave):
            await self._leave()
        else:
            await self._end()
        return Done()

    async def _serve(self, order: Serve, descriptors: list[int]) -> Done:
        chosen = self._memory.config
        try:
            if self._runtime is None or self._server is None or self._ports is None:
                self._runtime, self._server, self._ports = await self._begin(chosen)
            else:
                await self._server.follow(chosen)
                self._share_storages()
            await self._ports.inherit(order.listeners, descriptors)
        except CannotListen as error:
            return Done(str(error))
        finally:
            for fd in descriptors:
                os.close(fd)
        number = self._memory.serving[self._process]
        if self._writes and not number.value:
            line = summary(self._runtime.status(), self._ports.addresses, chosen.workers)
            self.log.info("{line}", line=line)
        number.value = 1
        return Done()

    async def _begin(self, chosen: Config) -> tuple[Runtime, Server, InheritedPorts]:
        reactor, memory = self._reactor, self._memory
        stream = take_standard_output(chosen.log_format, os.environ)
        observer = observer_for(chosen.log_format, os.environ, sys.stdout, reactor.callLater)
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
        count = memory.count(self._process)
        self._runtime = runtime = Runtime(
            chosen,
            reactor,
            Shared(RECENT_FD, TABLE_FDS),
            observer,
            writer=None if self._writes else self._writer(),
            others=self._others,
            absent=self._absent,
        )
        if stream is not None:
            runtime.metrics.figures.watch(LogGauges(stream))
        if self._writes:
            runtime.metrics.figures.watch(memory.reloads)
        server = Server(runtime, reactor, count)
        ports = InheritedPorts(server.site, reactor, lambda: count.ahead, plain=not self._writes)
        if self._writes:
            await runtime.start()
        else:
            self._share_storages()
            runtime.ready.callback(None)
        self._handover.open(server.site)
        for loop, seconds in self._loops:
            loop.start(seconds)
        settle_down()
        return runtime, server, ports

    async def _leave(self) -> None:
        if self._server is None or self._ports is None:
            self._reactor.stop()
            return
        if not self._writes:
            # The writer hands nothing back from now on. It takes from readers to the last.
            self._memory.serving[self._process].value = 0
        await self._server.last_call()
        await self._ports.stop()
        self._drained = Deferred.fromCoroutine(self._server.drain())
        if not self._writes:
            Deferred.fromCoroutine(self._end()).addErrback(self._bug)

    async def _end(self) -> None:
        if self._server is not None and self._drained is not None:
            await self._drained
            self._handover.hear_all()
            await self._server.drain()
        await self._stop()

    async def _stop(self) -> None:
        self._memory.serving[self._process].value = 0
        if self._runtime is not None:
            await self._runtime.stop()
        self._reactor.stop()

    # What is shared.

    def _share_storages(self) -> None:
        self._memory.alive[self._process].value = int(time.monotonic())
        if self._runtime is None:
            return
        if self._server is not None:
            self._server.site.see_others()
        if self._writes:
            now, storages = time.monotonic(), self._runtime.storages()
            # Told again all the same: what readers suspect by themselves ends with that.
            if (
                storages != self._published
                or now - self._published_seconds > PROBE_INTERVAL_SECONDS
            ):
                self._memory.tell_storages(storages)
                self._published, self._published_seconds = storages, now
        else:
            self._runtime.catch_up()
            found = self._memory.storages_after(self._storages_number)
            if found is not None:
                self._storages_number, storages = found
                self._runtime.hear(storages)

    def _share_figures(self) -> None:
        if self._runtime is not None:
            own = self._runtime.overview.snapshot()
            figures = summed([own.figures, self._before.figures])
            self._memory.publish(self._process, attrs.evolve(own, figures=figures))

    def _others(self) -> list[Snapshot]:
        found = self._memory.snapshots()
        others = [one for n, one in enumerate(found) if one is not None and n != self._process]
        return [*others, self._before]

    def _absent(self) -> list[str]:
        return [
            f"{name_of(process)} is not there: the others answer"
            for process, serving in enumerate(self._memory.serving)
            if not serving.value and process != self._process
        ]

    def _writer(self) -> Writer:
        tell = self._handover.tell

        def mend(digest: Digest, mirror: Mirror) -> None:
            tell(Lacking(digest, tuple(member.root for member in mirror.members)))

        return Writer(self._process - 1, mend, lambda root: tell(Trouble(root)), tell)

    def _heard_of(self, found: Found) -> None:
        if self._runtime is None:
            return
        if isinstance(found, Lacking):
            self._runtime.mend(found.digest, found.roots)
        elif isinstance(found, Trouble):
            self._runtime.probe_soon(found.root)
        else:
            self._runtime.keep_sums(found)

    def _orphaned(self) -> None:
        """The parent has ended. Without it nobody replaces or ends us."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        if isinstance(sys.stdout, LogStream):
            sys.stdout.end()
        os._exit(1)

    def _bug(self, failure: Failure) -> Done:
        self.log.failure("Obeying the parent", failure)
        return Done(str(failure.value))


def main() -> None:
    """Run with PROCESS and PROCESSES as arguments, and descriptors as above."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    process, processes = map(int, sys.argv[1:])
    # For a process that is not in a state to see that its line to the parent has ended.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):  # at most 15 characters (proc(5), comm)
        Path("/proc/self/comm").write_text(f"stor-{name_of(process)}")
    raise_limit()
    reactor: Any = own_reactor()
    lines = processes - 1 if process == WRITER else 1
    ends = [socket.socket(fileno=fd) for fd in range(FIRST_LINE_FD, FIRST_LINE_FD + lines)]
    memory = Memory(MEMORY_FD, processes)
    Child(process, memory, socket.socket(fileno=CONTROL_FD), ends, reactor).begin()
    reactor.run(installSignalHandlers=False)
