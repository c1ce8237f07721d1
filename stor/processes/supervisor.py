"""The supervisor: it opens the sockets, looks after the disks, and has workers answer."""

from collections.abc import Hashable, Mapping
from typing import Any

import attrs
from prometheus_client import generate_latest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory

from stor.app import App
from stor.commons import Commons
from stor.config import Config
from stor.digest import Digest
from stor.errors import Unavailable
from stor.http.page import Moment
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.processes.board import Board, Subjects
from stor.processes.crew import Crew, Hand
from stor.processes.figures import Collected, Family, families, lasting, summed
from stor.processes.forks import Forks
from stor.processes.listening import SharedPorts
from stor.processes.order import Order, Storages
from stor.processes.shared import COUNTS, SharedCommons, set_subject
from stor.processes.snapshot import memcached_of, moment_of
from stor.processes.turns import ProcessTurns
from stor.server import DRAIN_SECONDS
from stor.store import Status

#: What the workers have after the time in which they end by themselves.
_LAST_SECONDS = 5.0


class Supervisor:
    """The side that clients see, in other processes. Implements `stor.service.Face`."""

    def __init__(
        self, reactor: Any, chosen: Config, environment: Mapping[str, str], *, speaks: bool
    ) -> None:
        """`speaks`: standard output is where the log goes, and workers write there, too."""
        processes = chosen.workers + 1
        board_fd, turns_fd = Board.make(processes), ProcessTurns.make(processes)
        self._reactor = reactor
        self._chosen = chosen
        self._board = Board(board_fd, 0, processes)
        self._subjects = Subjects()
        self._name_subjects(chosen)
        #: What the app of this process is to be made with.
        self.commons: Commons = SharedCommons(
            self._board,
            self._subjects,
            ProcessTurns(turns_fd, 0, processes, reactor),
            self._tell_all,
        )
        self._ports = SharedPorts(_nobody(), reactor)
        forks = Forks(
            reactor,
            environment,
            processes,
            (board_fd, turns_fd),
            speaks=speaks,
        )
        self._crew = Crew(chosen.workers, forks, reactor, self._messages(), self._worker_ended)
        self._app: App | None = None
        self._telling = False
        self._departed: list[Family] = []

    def attend(self, app: App) -> None:
        """Look after the storages of this app, which was made with `commons`."""
        self._app = app
        self._watch(app)

    # The face of Stor.

    @property
    def addresses(self) -> list[object]:
        """See `Face.addresses`."""
        return self._ports.addresses

    def open(self, chosen: Config) -> None:
        """See `Face.open`."""
        self._ports.listen(chosen.listen)

    async def start(self) -> None:
        """See `Face.start`."""
        await self._crew.start(self._order)

    async def prepare(self, chosen: Config) -> None:
        """See `Face.prepare`."""
        self._name_subjects(chosen)
        await self._ports.extend(chosen.listen)

    async def put_in_force(self, chosen: Config) -> None:
        """See `Face.put_in_force`."""
        self._chosen = chosen
        self._watch(self._own())
        await self._crew.serve()
        await self._ports.restrict(chosen.listen)

    def storages_seen(self) -> None:
        """See `Face.storages_seen`."""
        self._crew.tell("storages", self._storages())
        self._crew.gather()

    async def stop(self) -> None:
        """See `Face.stop`."""
        await self._crew.stop(self._ports.stop, DRAIN_SECONDS + _LAST_SECONDS)

    # What the workers ask for, and tell.

    def _messages(self) -> dict[str, Any]:
        return {
            "report": self._report,
            "renewed": self._renewed,
            "mend": self._mend,
            "disk": self._heard_of_disk,
            "copy": self._heard_of_copy,
            "to_send": self._send,
            "status": self._status,
            "moment": self._moment,
            "exposition": self._exposition,
        }

    def _report(self, digest: Digest, roots: tuple[str, ...]) -> None:
        mirror = self._mirror(roots)
        if mirror is not None:
            self._own().mirrors.repairs.report(digest, mirror)

    def _renewed(self, digest: Digest, roots: tuple[str, ...]) -> None:
        mirror = self._mirror(roots)
        if mirror is not None:
            self._own().mirrors.repairs.renewed(digest, mirror)

    def _send(self, digest: Digest) -> None:
        self._own().copies.add(digest)

    async def _mend(self, digest: Digest, roots: tuple[str, ...]) -> list[str]:
        mirror = self._mirror(roots)
        if mirror is None:
            raise Unavailable("the set of the sample is not in use any more")
        return await self._own().mirrors.repairs.mend(digest, mirror)

    def _heard_of_disk(self, root: str, event: str, reason: str, about: Hashable = None) -> None:
        """A worker has noticed something on a disk."""
        member = self._member(root)
        if member is None:
            return
        if event == "away":
            member.probe().addBoth(lambda _: self._storages_changed())
        elif event == "refused":
            member.health.write_refused(reason)
            member.probe_soon()
        elif event == "failed":
            member.health.operation_failed(reason, about)
            member.probe_soon()
        else:
            member.health.operation_passed()

    def _heard_of_copy(self, storage: str, digest: Digest, bad: bool) -> None:
        for corrupt in self._own().corrupt_on(storage):
            if bad:
                corrupt.add(digest)
            else:
                corrupt.discard(digest)

    def _status(self) -> Status:
        own = self._own().store.status()
        missing = [f"worker {number} is not there" for number in self._crew.missing]
        return attrs.evolve(
            own,
            warnings=[*own.warnings, *missing],
            memcached=memcached_of(self._crew.snapshots),
        )

    async def _moment(self) -> Moment:
        await self._crew.gather()
        return moment_of(self._crew.snapshots)

    async def _exposition(self) -> bytes:
        await self._crew.gather()
        own = families(self._own().metrics.figures.metrics())
        workers = [snapshot.figures for snapshot in self._crew.snapshots]
        return generate_latest(Collected(summed([own, *workers, self._departed])))

    # What the workers are told.

    def _order(self) -> tuple[Order, list[int]]:
        listeners, descriptors = self._ports.sockets(self._chosen.listen)
        bad = [
            (member.root, digest)
            for member in self._own().mirrors.members
            for digest in member.corrupt
        ]
        places = dict(self._subjects.places)
        return Order(self._chosen, listeners, self._storages(), bad, places), descriptors

    def _storages(self) -> Storages:
        app = self._own()
        bucket = app.store.bucket
        return Storages(
            {member.root: member.health.picture() for member in app.mirrors.members},
            None if bucket is None else bucket.fault,
        )

    def _storages_changed(self) -> None:
        """Tell the workers, once for all changes that come together."""
        if not self._telling:
            self._telling = True
            self._reactor.callLater(0, self._tell_storages)

    def _tell_storages(self) -> None:
        self._telling = False
        self._crew.tell("storages", self._storages())

    def _tell_all(self, message: str, *arguments: object) -> None:
        self._crew.tell(message, *arguments)

    def _watch(self, app: App) -> None:
        for member in app.mirrors.members:
            member.health.changed = self._storages_changed

    def _worker_ended(self, hand: Hand) -> None:
        """What it has reserved is free, what it has counted stays, what it has left is swept."""
        self._board.wipe(hand.number, list(self._subjects.places.values()))
        if hand.snapshot is not None:
            self._departed = summed([self._departed, lasting(hand.snapshot.figures)])
        app = self._own()
        for member in app.mirrors.members:
            member.sweep_again()
        Deferred.fromCoroutine(app.recall_copies())

    def _name_subjects(self, chosen: Config) -> None:
        roots = [root for roots in chosen.sets for root in roots]
        self._subjects.name([*COUNTS, *roots, *map(set_subject, chosen.sets)])

    def _mirror(self, roots: tuple[str, ...]) -> Mirror | None:
        mirrors = self._own().mirrors.mirrors
        return next((m for m in mirrors if tuple(one.root for one in m.members) == roots), None)

    def _member(self, root: str) -> Member | None:
        return next((m for m in self._own().mirrors.members if m.root == root), None)

    def _own(self) -> App:
        if self._app is None:
            raise ValueError("a supervisor is used before it attends an app")
        return self._app


def _nobody() -> IProtocolFactory:
    """Takes no connection: the supervisor does not read from its sockets."""
    factory = Factory()
    factory.noisy = False
    nobody: IProtocolFactory = factory
    return nobody
