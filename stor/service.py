"""The composition root: options in, a running service out."""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

from twisted.application.service import IServiceCollection, Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from stor.config import Config, ConfigError
from stor.descriptors import raise_limit, shortage
from stor.disk.syscalls import Syscalls
from stor.gauges import LogGauges
from stor.index.index import shared_memory
from stor.logs import LineObserver, LogStream, is_journal, observer_for, take_standard_output
from stor.options import Options, configuration
from stor.paths import printable
from stor.processes.parent import Parent
from stor.quickstart import greeting
from stor.reactor import Reactor, own_reactor
from stor.runtime import Runtime
from stor.server import DRAIN_SECONDS, Server
from stor.sockets import CannotListen
from stor.threads import Outcomes, ThreadPool


class Notifier:
    """Datagrams to systemd's notification socket (sd_notify(3)); without one, nothing happens.

    Never blocks and never raises: a service manager that does not listen is no reason to stop.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        """`address` as in `$NOTIFY_SOCKET`; `watchdog_seconds` without a word and one is killed."""
        self.watchdog_seconds = watchdog_seconds
        self._address = address
        self._socket: socket.socket | None = None
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Notifier":
        """What a process with this environment has been given (sd_watchdog_enabled(3))."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog = int(microseconds) / 1e6 if microseconds.isdecimal() and ours else 0.0
        return cls(environment.get("NOTIFY_SOCKET"), watchdog or None)

    def send(self, **fields: object) -> None:
        """Send fields such as `READY=1`."""
        if self._socket is None or not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        # An address that begins with @ is in the abstract namespace (unix(7)).
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError):
            self._socket.sendto(message.encode(), address)


__all__ = ["DRAIN_SECONDS", "Options", "StorService", "makeService"]


def makeService(options: Options) -> "StorService":  # noqa: N802 - the name that twistd calls
    """The service that `options` ask for. Ends the process with status 1 when they are wrong."""
    reactor = own_reactor()
    try:
        chosen = configuration(options, os.environ, reactor)
    except ConfigError as error:
        for fault in error.faults:
            print(f"stor: {fault}", file=sys.stderr)
        raise SystemExit(1) from None
    stream = take_standard_output(chosen.log_format, os.environ)
    return StorService(options, chosen, reactor, Notifier.of(os.environ), stream)


class StorService(Service):
    """Stor, from the first probe of its disks to the last byte of its last answer."""

    log = Logger()

    def __init__(
        self,
        options: Options,
        chosen: Config,
        reactor: Reactor,
        notifier: Notifier,
        stream: LogStream | None = None,
    ) -> None:
        """`chosen` is the configuration that `options` ask for; they are asked again on SIGHUP.

        `stream` is the standard output, where it is written by a thread.
        """
        self.name = "stor"
        self._options = options
        self._config = chosen
        #: As of the start: what no reload changes.
        self._begun_with = chosen
        self._reactor = reactor
        self._notifier = notifier
        self._stopping = False
        self._reloading: Deferred[None] | None = None
        # A hung disk holds up the look at its path, and nothing else.
        self._loading = ThreadPool(Outcomes(reactor), "configuration", 1)
        self._observer: LineObserver | None = None
        log_format = chosen.log_format
        if log_format in ("json", "journal") or options.logs_here or is_journal(os.environ):
            self._observer = observer_for(log_format, os.environ, sys.stdout, reactor.callLater)
        #: What answers: this process, or others.
        self._server: Server | Parent
        if chosen.workers == 1:
            shared = shared_memory(chosen.state_directory, Syscalls())
            runtime = Runtime(chosen, reactor, shared, self._observer)
            if stream is not None:
                runtime.metrics.figures.watch(LogGauges(stream))
            server = self._server = Server(runtime, reactor)
            runtime.metrics.figures.watch(server.reloads)
        else:
            speaks = options.logs_to_output
            self._server = Parent(reactor, chosen, os.environ, speaks=speaks)
        self._server.reloads.note(good=True)
        self._started: Deferred[None] = Deferred()
        self._watchdog = LoopingCall(notifier.send, WATCHDOG=1)
        self._watchdog.clock = reactor

    def setServiceParent(self, parent: IServiceCollection) -> None:  # noqa: N802
        """Take part in an application, and write its log in the configured format."""
        super().setServiceParent(parent)
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)

    def privilegedStartService(self) -> None:  # noqa: N802
        """Take the ports, while root if started as root. Ends the process when one is not free."""
        super().privilegedStartService()
        # Whoever finds the port open may ask for a reload.
        signal.signal(signal.SIGHUP, self._hang_up)
        try:
            self._server.open(self._config)
        except CannotListen as error:
            # Not sys.stderr, which is the log by now.
            print(f"stor: {error}", file=sys.__stderr__, flush=True)
            raise SystemExit(1) from None

    def startService(self) -> None:  # noqa: N802
        """Begin to serve."""
        super().startService()
        self._warn(self._config)
        self._reactor.callWhenRunning(self._take_signals)
        Deferred.fromCoroutine(self._start()).addErrback(self._bug)
        if self._notifier.watchdog_seconds is not None:
            self._watchdog.start(self._notifier.watchdog_seconds / 3)

    def stopService(self) -> Deferred[None]:  # noqa: N802
        """Accept no more, let what runs finish, end; fires when all that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        self._notifier.send(STOPPING=1)
        self.log.info("Stopping: no new connections, what runs may finish")
        await self._server.stop()
        if self._watchdog.running:
            self._watchdog.stop()
        self._loading.stop()

    async def _reload(self) -> None:
        """Read the configuration again; a bad one is refused, and the old one stays."""
        await self._started
        if self._stopping:
            return
        self._notifier.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            chosen = await self._loading.run(
                configuration, self._options, os.environ, self._reactor
            )
            if self._stopping:
                return
            await self._server.reload(chosen)
        except ConfigError as error:
            self._refuse(error.faults)
        except CannotListen as error:
            self._refuse([str(error)])
        except Exception:
            self._server.reloads.note(good=False)
            raise
        else:
            self._server.reloads.note(good=True)
            for key in ("workers", "log_format", "state_directory"):
                if getattr(chosen, key) != getattr(self._begun_with, key):
                    self.log.warn("{key} is in force after the next start", key=key)
            self._config = chosen
            self._warn(chosen)
            self.log.info("Reloaded: the configuration is in force")
        finally:
            if not self._stopping:
                self._notifier.send(READY=1)

    def _refuse(self, faults: list[str]) -> None:
        self._server.reloads.note(good=False)
        for fault in faults:
            self.log.error("Not reloaded: {fault}", fault=fault)

    def _warn(self, chosen: Config) -> None:
        short = shortage(raise_limit(), chosen)
        for warning in (*chosen.warnings, *([short] if short else [])):
            self.log.warn("{warning}", warning=warning)

    async def _start(self) -> None:
        await self._server.start()
        if isinstance(self._server, Server):
            self.log.info("{line}", line=self._server.summary)
        self._started.callback(None)
        self._notifier.send(READY=1)
        if self._options["data"] and sys.__stdout__ is not None:
            text = greeting(
                self._config,
                self._server.addresses[0],
                os.path.abspath(self._options["data"]),
                private=sys.__stdout__.isatty(),
            )
            print(printable(text), file=sys.__stdout__, flush=True)

    def _bug(self, failure: Failure) -> None:
        self.log.failure("Starting or reloading", failure)

    def _take_signals(self) -> None:
        """End with status 0 on SIGTERM; Twisted's own handler ends by the signal itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)
        self._reactor.callFromThread(self._reactor.stop)

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reload_next)

    def _reload_next(self) -> None:
        """Reload after the reload that is under way, if there is one."""
        before, done = self._reloading, Deferred[None]()
        self._reloading = done

        def begin(_: object = None) -> None:
            reloading = Deferred.fromCoroutine(self._reload()).addErrback(self._bug)
            reloading.addCallback(done.callback)

        if before is None or before.called:
            begin()
        else:
            before.addCallback(begin)
