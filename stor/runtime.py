"""What a process keeps from one configuration to the next: disks, threads, counters, jobs."""

import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from stor.administration import Administration
from stor.app import S3_THREADS, App, Parts, Pools
from stor.config import Config, Statsite
from stor.digest import Digest
from stor.disk.copy import MadeSums
from stor.disk.identity import (
    DISKS_FILE,
    Remembered,
    encode_remembered,
    parse_remembered,
)
from stor.disk.syscalls import Syscalls
from stor.fleet import Disks, Fleet, Writer, adapt
from stor.gauges import DiskGauges, JobGauges, WorkGauges
from stor.growth import GROWTH_FILE, Growth
from stor.http.access import AccessLog, Afterwards, Rates, together
from stor.http.api import Budgets
from stor.http.auth import Attempts
from stor.http.request import Serving
from stor.http.status import Overview, Snapshot, free_of
from stor.http.upload import Uploads
from stor.index.index import Index, Shared, table_path
from stor.logs import LineObserver
from stor.metrics import Metrics
from stor.mirror.health import Picture
from stor.mirror.learning import LearningNames
from stor.mirror.member import PROBE_INTERVAL_SECONDS
from stor.mirror.mirrors import Mirrors
from stor.mirror.names import Names
from stor.mirror.outbox import Outbox
from stor.s3.bucket import Bucket
from stor.s3.queue import CopyQueue
from stor.state import StateDirectory
from stor.statsd import Statsd
from stor.status import Status, Work
from stor.store import DiskTier, Found, Tiers
from stor.threads import Outcomes, ThreadPool, settle, within
from stor.zero_copy import MAX_SPLICE_PIPES, SplicePipes

#: Threads for bodies that wait on a local disk until S3 has them.
SPOOL_THREADS = 4

#: Threads that hash passwords, and passwords that wait for them, one of each address; for one
#: more it is 503. They leave the processor to all others.
PASSWORD_THREADS = 2
WAITING_PASSWORDS = 32
PASSWORDS_NICE = 10


#: How long the first requests wait for the first probes; a hung disk is then offline for them.
FIRST_PROBES_SECONDS = 3.0


@attrs.frozen
class Storages:
    """How the storages are, as one process tells others: each disk, and what is wrong with S3."""

    disks: Mapping[str, Picture]
    s3_fault: str | None


class Runtime:
    """A Stor but for its sockets: its parts, and the `App` of the configuration in force."""

    log = Logger()

    def __init__(
        self,
        chosen: Config,
        reactor: Any,
        shared: Shared,
        log: LineObserver | None = None,
        *,
        writer: Writer | None = None,
        others: Callable[[], Sequence[Snapshot]] = lambda: (),
        absent: Callable[[], list[str]] = list,
    ) -> None:
        """With a `writer` this process only reads. The memory `shared` stays the caller's.

        Raises `TableDamaged`, `RecentDamaged`, `OSError`: it cannot be used.

        `log` writes the lines of the access log, if Twisted's does not. `others` are other
        processes, and `absent` says which are not there.
        """
        self._reactor = reactor
        self._writes = writer is None
        self._writer = writer
        self._outcomes = outcomes = Outcomes(reactor)
        self._files = Syscalls()
        self._hashing = ThreadPool(outcomes, "hash", os.cpu_count() or 1)
        self._s3_pool = ThreadPool(outcomes, "s3", S3_THREADS)
        self._spool_pool = ThreadPool(outcomes, "spool", SPOOL_THREADS)
        self._pools = Pools(
            s3=self._s3_pool,
            signer=ThreadPool(outcomes, "sign", 1),
            spool=self._spool_pool,
            passwords=ThreadPool(
                outcomes, "passwords", PASSWORD_THREADS, WAITING_PASSWORDS, nice=PASSWORDS_NICE
            ),
            htpasswd=ThreadPool(outcomes, "htpasswd", 1),
        )
        self._resolving = ThreadPool(outcomes, "resolve", 1)
        self._statsd_pool = ThreadPool(outcomes, "statsd", 1)
        self._statsite: Statsite | None = None
        self._statsd: Statsd | None = None
        #: What the requests count, too.
        self.metrics = Metrics()
        self._set_statsd(chosen.statsite)
        self._disks = Disks(reactor, outcomes, self._files, self.metrics.figures, writer)
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._state = StateDirectory(chosen.state_directory if self._writes else None, self._files)
        self._state_pool = ThreadPool(outcomes, "state", 1)
        #: Why disks cannot be read without waiting, as far as the log has it.
        self._said_refusals: set[str] = set()
        self._remembered = self._recall_disks()
        #: Fires when the disks' states are known first.
        self.ready: Deferred[None] = Deferred()
        fleet = self._disks.fleet(chosen, [], self._remembered)
        self.mirrors = self._mirrors(chosen, fleet, shared)
        self._disk_tier = DiskTier(self.mirrors, self.ready)
        self._copies = CopyQueue(self._disk_tier.open, self._sent, reactor)
        self._outbox = Outbox(
            lambda: self.mirrors.mirrors, reactor, self._copies.add, self._copies.__contains__
        )
        self._uploads = Uploads(self._hashing)
        figures = self.metrics.figures
        rates = Rates(reactor.seconds)
        #: Told of every request that is over.
        self.served = Afterwards(
            reactor.callLater, together(AccessLog(log), self.metrics.served, rates.served)
        )
        self._growth = Growth(lambda: time.time_ns() / 1e9)
        self._growth.recall(self._state.read(GROWTH_FILE) or b"")
        #: What is said of the whole.
        self.overview = Overview(
            self.status,
            *(self._uploads, rates, figures, others, absent),
            growth=self._growth,
            host=socket.gethostname(),
        )
        self._administration = self._administer(chosen)
        self._parts = self._put_together()
        #: What answers requests.
        self.app = App(chosen, self._parts)
        self._follow_tiers(chosen)
        self._watch()

    def _administer(self, chosen: Config) -> Administration | None:
        if not self._writes:
            return None
        parts = (self.mirrors, self._find, lambda: self.app.tiers.bucket, self.overview)
        threads = (self._reactor, self._outcomes, self._state, self._state_pool)
        return Administration(chosen, *parts, *threads)

    def _put_together(self) -> Parts:
        admin = self._administration
        return Parts(
            reactor=self._reactor,
            outcomes=self._outcomes,
            pools=self._pools,
            disks=self._disk_tier,
            copies=self._copies,
            # A reload is no new chance to guess passwords.
            attempts=Attempts(self._reactor),
            uploads=self._uploads,
            budgets=Budgets(SplicePipes(MAX_SPLICE_PIPES)),
            overview=self.overview,
            explanation=None if admin is None else admin.explanation,
            metrics=self.metrics,
            writes=self._writes,
            served=self.served,
            work=self._work,
            notices=self._notices,
        )

    def _watch(self) -> None:
        watch = self.metrics.figures.watch
        pools = {"hash": self._hashing, "s3": self._s3_pool, "spool": self._spool_pool}
        watch(WorkGauges(self._disk_tier, self._tiers, self._uploads, pools))
        if self._administration is not None:
            watch(DiskGauges(self.mirrors, self._tiers, self._work))
            watch(JobGauges(self._administration.work))

    def status(self) -> Status:
        """How the storages are, as last seen: never asks a disk."""
        return self.app.store.status()

    def _tiers(self) -> Tiers:
        return self.app.tiers

    def _work(self) -> Work:
        return Work() if self._administration is None else self._administration.work.summary()

    async def _sent(self, digest: Digest) -> None:
        await self._outbox.forget(digest)

    async def _find(self, digest: Digest) -> Found:
        return await self.app.store.find(digest)

    async def reconfigure(self, chosen: Config, serve: Callable[[Serving], None]) -> None:
        """Put another configuration in force. Requests that are under way end under the old one.

        `serve` is told what answers from then on.

        A disk that stays in its set keeps its state, its threads and what is being written to it;
        one that is new, comes back, or is in another set than before is looked at first. The
        threads of one that is left out stay for what they may still be asked for, idle.
        """
        if self._writes:
            await self._take_up_disks(chosen)
        fleet = self._disks.fleet(chosen, self.mirrors.mirrors, self._remembered)
        known_disks = fleet.known_disks
        stay = [
            m for mirror in fleet.mirrors if mirror in self.mirrors.mirrors for m in mirror.members
        ]
        if not self._writes:
            for member in stay:
                known_disks.told(member.root, member.complete)
            self._put_in_force(chosen, fleet, serve)
            return
        for member in stay:
            known_disks.heed(member.root, member.health.marker)
        others = [member for member in fleet.members if member not in stay]
        adapt(others, chosen, known_disks)
        await settle([member.probe() for member in others])
        known_disks.stop_waiting()  # the first look may have waited for what the others know
        await settle([member.probe() for member in others if not member.health.readable])
        self._put_in_force(chosen, fleet, serve)
        await self._let_go()
        await self.begin()
        if self._administration is not None:
            await self._administration.follow(chosen)
        for notice in self._notices():
            self.log.warn("{notice}", notice=notice)
        bucket = self.app.tiers.bucket
        if bucket is not None and bucket.fault is not None:
            Deferred.fromCoroutine(self._look_at(bucket))

    def _put_in_force(self, chosen: Config, fleet: Fleet, serve: Callable[[Serving], None]) -> None:
        adapt(fleet.members, chosen, fleet.known_disks)
        for mirror in fleet.mirrors:
            mirror.follow(own_file_systems=chosen.require_mount)
        self.mirrors.reconfigure(
            fleet.mirrors, fleet.known_disks, chosen.reserve_bytes, indexed=chosen.index
        )
        before, self.app = self.app, App(chosen, self._parts, self.app)
        serve(self.app.serving)
        before.leave(self.app)
        self._follow_tiers(chosen)
        self._set_statsd(chosen.statsite)

    def _follow_tiers(self, chosen: Config) -> None:
        tiers = self.app.tiers
        self._disk_tier.hot.shrink(chosen.cache_bytes // chosen.workers)
        self._copies.send_to(None if tiers.copies is None else tiers.bucket)
        outbox = self._outbox if chosen.s3_write == "copy" else None
        self.mirrors.report_to(outbox, self.app.store.noticed)

    async def start(self) -> None:
        """Look at the storages, and go on looking after them.

        Requests wait for the first look, but not for a disk that hangs.
        """
        first = within(self._reactor, FIRST_PROBES_SECONDS, self._look())
        await settle([first])
        self._looking.start(PROBE_INTERVAL_SECONDS, now=False)
        await self.begin()
        if self._administration is not None:
            await self._administration.start()
        self.ready.callback(None)
        for member in self.mirrors.members:
            member.say()  # also of one that has not been heard yet
        for warning in self.status().warnings:
            self.log.warn("{warning}", warning=warning)

    async def begin(self) -> None:
        """The first look is over: judge the disks that waited, and recall the work that is due."""
        await self.mirrors.begin()
        await self._remember_disks()
        if self.mirrors.outbox is not None:
            await self._outbox.recall()

    async def _look_at_room(self) -> None:
        """Note what is free, to know how quickly that becomes less, also after the next start."""
        if self._growth.due:
            self._growth.note(free_of(self.status()))
            if self._state.fault is None:
                encoded = self._growth.encode()
                await self._state_pool.run(self._state.write, GROWTH_FILE, encoded)

    def _look(self) -> Deferred[None]:
        looking = Deferred.fromCoroutine(self.look_after())
        return looking.addErrback(lambda failure: self.log.failure("Looking after disks", failure))

    async def look_after(self) -> None:
        """See how all storages are, and take up what waits for that. Never raises."""
        probes = [Deferred.fromCoroutine(self.mirrors.probe())]
        bucket = self.app.tiers.bucket
        if bucket is not None:
            probes.append(Deferred.fromCoroutine(self._look_at(bucket)))
        await settle(probes)
        await self._let_go()
        await self._remember_disks()
        await self._look_at_room()
        self._say_refusals()
        if self._writes and self.app.store.partials is not None:
            await self.app.store.partials.expire()
        if self._administration is not None:
            self._administration.work.jobs.resume()

    def _say_refusals(self) -> None:
        """Say once each reason why what the kernel has in memory is not read at once."""
        for member in self.mirrors.members:
            refusal = member.disk.page_cache.refusal
            if refusal is not None and refusal not in self._said_refusals:
                self._said_refusals.add(refusal)
                self.log.info(
                    "{root}: samples that the kernel has in memory wait for a thread, too: {why}",
                    root=member.root,
                    why=refusal,
                )

    async def _let_go(self) -> None:
        """Let other Stors have the disks that are in no set any more and that nobody writes to."""
        kept = {member for mirror in self.mirrors.in_use for member in mirror.members}
        await settle([member.let_go() for member in self._disks.members if member not in kept])

    def _recall_disks(self) -> dict[str, Remembered]:
        """What the state directory knows of disks; what is no such file there is made anew."""
        data = self._state.read(DISKS_FILE)
        try:
            return {} if data is None else parse_remembered(data)
        except ValueError as error:
            path = f"{self._state.path}/{DISKS_FILE}"
            self.log.warn("{path}: {error}; it is made anew", path=path, error=str(error))
            return {}

    def _mirrors(self, chosen: Config, fleet: Fleet, shared: Shared) -> Mirrors:
        names: Names
        learning = None
        if self._writer is None:
            names = learning = LearningNames(
                shared,
                self._reactor,
                lambda name: ThreadPool(self._outcomes, name, 1),
                table_path(self._state.path),
            )
        else:
            names = Names(Index(shared, shared.keys, self._writer.reader), self._writer.mend)
        return Mirrors(
            fleet.mirrors,
            fleet.known_disks,
            reserve_bytes=chosen.reserve_bytes,
            clock=self._reactor,
            now_ns=time.time_ns,
            rng=random.Random(),
            report=None if self._writer is None else self._writer.mend,
            names=names,
            learning=learning,
            indexed=chosen.index,
        )

    async def _take_up_disks(self, chosen: Config) -> None:
        """Know for another configuration what is known; what was left out can be forgotten."""
        known, saved = self.mirrors.known_disks.remembered(), self._remembered
        found = await self._state_pool.run(self._recall_disks) or saved
        configured = {root for of_set in chosen.sets for root in of_set}
        self._remembered = {
            root: disk
            for root, disk in known.items()
            if root in configured or root in found or root not in saved
        }

    def _notices(self) -> list[str]:
        """What deserves attention without keeping a storage from being used; a line each."""
        file = f"{self._state.path}/{DISKS_FILE}"
        left_out = [
            f"{root} was taken out of the configuration with samples on it, which are 404 now: put "
            "its set back into storage_pairs, or, if they may be forgotten, take its entry out of "
            f"{file}, and reload"
            for root in self.mirrors.known_disks.left_out()
        ]
        socket_fault = None if self._administration is None else self._administration.fault
        return [*filter(None, (self._state.fault, socket_fault)), *left_out]

    async def _remember_disks(self) -> None:
        """Have the state directory know what is known of disks, before anything relies on it."""
        disks = self.mirrors.known_disks.remembered()
        if disks != self._remembered or self._state.fault:
            said = self._state.fault
            await self._state_pool.run(self._state.write, DISKS_FILE, encode_remembered(disks))
            self._remembered = disks
            if self._state.fault not in (None, said):
                self.log.warn("{fault}", fault=self._state.fault)

    async def _look_at(self, bucket: Bucket) -> None:
        if await bucket.probe():
            self._copies.resume()

    def last_call(self) -> None:
        """The end is near: nothing waits for the end of what can be resumed."""
        self._uploads.stop()

    def storages(self) -> Storages:
        """How the storages are, for processes that do not look at them."""
        bucket = self.app.tiers.bucket
        pictures = {member.root: member.picture() for member in self.mirrors.members}
        return Storages(pictures, None if bucket is None else bucket.fault)

    def hear(self, storages: Storages) -> None:
        """Another process has looked at the storages."""
        for member in self.mirrors.members:
            picture = storages.disks.get(member.root)
            if picture is not None:
                member.hear(picture)
        self.mirrors.heard()
        bucket = self.app.tiers.bucket
        if bucket is not None:
            bucket.hear(storages.s3_fault)

    def catch_up(self) -> None:
        """Know what another process has learnt of the disks' names."""
        if self.mirrors.names is not None:
            self.mirrors.names.catch_up()

    def probe_soon(self, root: str) -> None:
        """Another process has had an error of a disk."""
        for member in self.mirrors.members:
            if member.root == root:
                member.probe_soon()

    def mend(self, digest: Digest, roots: tuple[str, ...]) -> None:
        """Another process has found that a set lacks a good copy of a sample."""
        for mirror in self.mirrors.mirrors:
            if tuple(member.root for member in mirror.members) == roots:
                self.mirrors.repairs.report(digest, mirror)

    def keep_sums(self, made: MadeSums) -> None:
        """Another process has made block sums that a copy lacks."""
        for member in self.mirrors.members:
            if member.root == made.storage:
                member.keep_sums(made)

    async def stop(self) -> None:
        """Let all threads end once they are idle; returns soon, when the last figures were sent.

        The end of the process waits for no thread.
        """
        if self._looking.running:
            self._looking.stop()
        if self._administration is not None:
            await self._administration.stop()
        if self.mirrors.learning is not None:
            await self.mirrors.learning.end()
            await self._remember_disks()
        for member in self._disks.members:
            member.stop()
        if self.mirrors.names is not None:
            self.mirrors.names.stop()
        self._hashing.stop()
        self._copies.stop()
        self.app.leave()
        self._pools.stop()
        sent = succeed(None) if self._statsd is None else self._statsd.stop()
        self._resolving.stop()
        self._state_pool.stop()
        self._statsd_pool.stop()
        await sent

    def _set_statsd(self, statsite: Statsite | None) -> None:
        if statsite == self._statsite:
            return
        self._statsite = statsite
        if self._statsd is not None:
            self._statsd.stop()
        self._statsd = None
        if statsite is not None:
            pools = self._resolving, self._statsd_pool
            self._statsd = Statsd(statsite, self._reactor, *pools)
        self.metrics.send_to(self._statsd)
