"""A worker: it answers requests, and leaves the care of the disks to the supervisor."""

import os
import socket
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from stor.app import App
from stor.config import Config
from stor.descriptors import raise_limit
from stor.digest import Digest
from stor.logs import LineObserver, observer_for
from stor.processes.board import Board, Subjects
from stor.processes.called import call_process
from stor.processes.listening import InheritedPorts
from stor.processes.order import Order, Storages
from stor.processes.remote import RemoteMending, RemoteOverview
from stor.processes.shared import WorkerCommons
from stor.processes.snapshot import Snapshot
from stor.processes.turns import ProcessTurns
from stor.processes.wire import Wire
from stor.reactor import fresh_reactor
from stor.server import Server


def run(process: int, control: int, processes: int, board: int, turns: int) -> None:
    """Be a worker until the supervisor says that it is enough, or has ended.

    `process` is its number, `control` its end of the socket to the supervisor, the other
    descriptors those of what all `processes` share.
    """
    call_process(f"stor-worker-{process}")
    reactor = fresh_reactor()
    raise_limit()
    worker = WorkerProcess(
        reactor, Board(board, process, processes), ProcessTurns(turns, process, processes, reactor)
    )
    factory = Factory.forProtocol(lambda: worker.wire)
    os.set_blocking(control, False)
    reactor.adoptStreamConnection(control, socket.AF_UNIX, factory)
    os.close(control)
    reactor.run(installSignalHandlers=False)


class WorkerProcess:
    """The composition root of a worker, and what it does for the supervisor."""

    log = Logger()

    def __init__(self, reactor: Any, board: Board, turns: ProcessTurns) -> None:
        self._reactor = reactor
        self._board = board
        self._turns = turns
        self._subjects = Subjects()
        self._app: App | None = None
        self._front: Server | None = None
        self._ports: InheritedPorts | None = None
        self.wire = Wire(
            {
                "serve": self._serve,
                "storages": self._hear,
                "copy": self._learn_of_copy,
                "snapshot": self._snapshot,
                "ping": lambda: None,
                "leave": self._leave,
            },
            reactor,
            self._orphaned,
        )

    async def _serve(self, order: Order) -> None:
        """Serve as ordered, from now on. Raises `CannotListen`."""
        descriptors, self.wire.descriptors = self.wire.descriptors, []
        self._subjects.places.update(order.subjects)
        chosen = order.config
        if self._app is None:
            self._begin(chosen)
        else:
            self._app.follow(chosen)
        app, front, ports = self._parts()
        front.site.max_connections = chosen.max_connections
        self._hear(order.storages)
        for root, digest in order.bad:
            self._learn_of_copy(root, digest, True)
        if not app.ready.called:
            app.ready.callback(None)
        await ports.inherit(order.listeners, descriptors)

    def _begin(self, chosen: Config) -> None:
        log = _begin_log(chosen, self._reactor)
        wire = self.wire
        commons = WorkerCommons(
            self._board, self._subjects, self._turns, RemoteMending(wire), wire.tell
        )
        commons.overview = RemoteOverview(wire)
        self._app = App(chosen, self._reactor, commons)
        self._front = Server(self._app, self._reactor, chosen, log, commons)
        self._ports = InheritedPorts(
            self._front.site, self._reactor, lambda: commons.connections.ahead
        )

    def _hear(self, storages: Storages) -> None:
        """The supervisor has looked at the storages."""
        app, _, _ = self._parts()
        for member in app.mirrors.members:
            picture = storages.disks.get(member.root)
            if picture is not None:
                member.hear(picture)
        if app.store.bucket is not None:
            app.store.bucket.hear(storages.s3_fault)

    def _learn_of_copy(self, storage: str, digest: Digest, bad: bool) -> None:
        """Another process has found a copy to be bad, or good again."""
        app, _, _ = self._parts()
        for corrupt in app.corrupt_on(storage):
            corrupt.learn(digest, bad)

    def _snapshot(self) -> Snapshot:
        app, _, _ = self._parts()
        return Snapshot.of(app)

    async def _leave(self) -> None:
        """Take no more connections; the process ends when what runs has finished."""
        app, front, ports = self._parts()
        await front.last_call()
        await ports.stop()
        Deferred.fromCoroutine(self._finish(front, app)).addErrback(self._bug)

    async def _finish(self, front: Server, app: App) -> None:
        await front.drain()
        await app.stop()
        self._reactor.stop()

    def _orphaned(self) -> None:
        """The supervisor has ended. Without it nobody looks after the disks, or after us."""
        if self._reactor.running:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(1)

    def _bug(self, failure: Failure) -> None:
        self.log.failure("Ending", failure)
        self._reactor.stop()

    def _parts(self) -> tuple[App, Server, InheritedPorts]:
        if self._app is None or self._front is None or self._ports is None:
            raise ValueError("a worker is used before it was told to serve")
        return self._app, self._front, self._ports


def _begin_log(chosen: Config, reactor: Any) -> LineObserver | None:
    observer = observer_for(chosen.log_format, os.environ, sys.stdout, reactor.callLater)
    globalLogBeginner.beginLoggingTo(
        [observer or textFileLogObserver(sys.stdout)], redirectStandardIO=False
    )
    return observer
