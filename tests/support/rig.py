"""A whole Stor without a reactor: real disks' directories, inline workers, a clock, no port."""

import base64
import random
import time
from collections import deque
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from stor.digest import Digest
from stor.disk.disk import Disk
from stor.disk.identity import KnownDisks
from stor.disk.syscalls import Syscalls
from stor.explain import Explainer
from stor.gauges import ConnectionGauges, DiskGauges, JobGauges, LogGauges, Reloads, WorkGauges
from stor.http.access import Rates, together
from stor.http.api import Api, Budgets
from stor.http.auth import Attempts, Authenticator, Rules
from stor.http.fast_path import FastPath
from stor.http.page import Explanation
from stor.http.proxies import Proxies
from stor.http.request import Serving
from stor.http.site import StorSite
from stor.http.status import Overview
from stor.http.upload import TOTAL_BUFFER_BYTES, SmallBodies, Uploads
from stor.index.index import Shared
from stor.jobs.long_work import LongWork
from stor.logs import LogStream
from stor.metrics import Metrics
from stor.mirror.group_commit import Alone
from stor.mirror.health import Health
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.pools import DiskPools
from stor.store import DiskTier, Store, Tiers
from tests.support.files import FaultyFiles
from tests.support.network import ADDRESS, Connection
from tests.support.pools import HangingPool, InlinePool

USER, PASSWORD = "writer", "writer_pass"
AUTHORIZATION = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


#: What a clock shows that began when the host did.
MONOTONIC_SECONDS = 1000.0

#: The indexes of rigs that may still be asked; those of earlier ones give their memory back.
_OPEN = deque()
_MOST_OPEN = 10

#: The digest of a content; large ones are asked for again and again.
digest_of = lru_cache(maxsize=8)(Digest.of)


class Rig:
    """Mirrors of directories below `path`; `sets` says how many disks each has.

    `files(label)` makes a disk's system calls, `worker()` its workers for reading and writing, or
    `workers(label)` those for reading, writing and probing; `commits(disk)` is what commits its
    uploads. `read_only` are the roots' positions `(set, disk)` that the configuration does not let
    be written; `forbidden_device` is the one that means "not mounted"; `remembered` is what the
    state directory knows of the disks; `learnt`: the index knows all names from the beginning.
    """

    def __init__(
        self,
        path: Path,
        sets=(2, 2),
        *,
        files=lambda label: Syscalls(),
        worker=InlinePool,
        workers=None,
        commits=None,
        hashing=None,
        forbidden_device=None,
        read_only=(),
        reserve_bytes=0,
        max_upload_bytes=None,
        max_uploads=1000,
        max_connections=10_000,
        total_buffer_bytes=TOTAL_BUFFER_BYTES,
        cache_bytes=0,
        seed=0,
        clock=None,
        knows=True,
        remembered=MappingProxyType({}),
        learner=lambda name: InlinePool(),
        shared=None,
        boot=None,
        store=Store,
        learnt=False,
        **indexing,
    ):
        self.clock = clock or Clock()
        if clock is None:
            self.clock.advance(MONOTONIC_SECONDS)
        self._booted = time.time() - MONOTONIC_SECONDS
        self.metrics = Metrics()
        self.members = []
        roots = [
            [path / f"set{s}" / f"disk{d}" for d in range(disks)] for s, disks in enumerate(sets)
        ]
        known_disks = KnownDisks([[str(root) for root in of_set] for of_set in roots], remembered)
        mirrors = []
        for s, of_set in enumerate(roots):
            members = []
            for d, root in enumerate(of_set):
                root.mkdir(parents=True, exist_ok=True)
                label = f"set{s}/disk{d}"
                disk = Disk(str(root), files(label), forbidden_device)
                health = Health(self.clock.seconds, (s, d) not in read_only, reserve_bytes)
                meter = self.metrics.figures.disk(str(root))
                three = workers(label) if workers else (worker(), worker(), InlinePool())
                own = DiskPools(*three, commits(disk) if commits else Alone(disk, three[1]))
                members.append(
                    Member(disk, health, own, self.clock, known_disks, meter, keeps_names=knows)
                )
            self.members += members
            mirrors.append(Mirror(members, own_file_systems=False))
        names = _index(self.clock, learner, shared, indexing) if knows else None
        self.mirrors = Mirrors(
            mirrors,
            known_disks,
            reserve_bytes=reserve_bytes,
            clock=self.clock,
            now_ns=lambda: int(self.wall_seconds() * 1e9),
            rng=random.Random(seed),
            names=names,
            learning=names,
        )
        self.probe()
        known_disks.stop_waiting()
        self.probe()
        self.disk_tier = DiskTier(self.mirrors, succeed(None), self.wall_seconds, boot)
        self.disk_tier.hot.shrink(cache_bytes)
        self.uploads = Uploads(hashing or InlinePool(), total_buffer_bytes)
        #: Begun by `begin` or `rounds`: nothing is scrubbed but what a test asks for.
        self._begun = False
        self.work = LongWork(
            self.mirrors, self.clock, self.wall_seconds, learner, succeed, drill_seconds=0
        )
        rates = Rates(self.clock.seconds)
        self._overview = Overview(self._status, self.uploads, rates, self.metrics.figures)
        self.served = []
        self._observer = together(self.served.append, self.metrics.served, rates.served)
        self._work = self.work.summary
        self._explanation = None
        self._store_class = store
        self._tiers, self.budgets = Tiers(), Budgets()
        self._rules = Rules(
            Authenticator([f"{USER}:{PASSWORD}"], Attempts(self.clock)),
            max_upload_bytes=max_upload_bytes,
            max_uploads=max_uploads,
        )
        # Who has been right once is remembered, and then needs no turn.
        right = self._rules.authenticator.check(AUTHORIZATION.encode(), ADDRESS)
        Deferred.fromCoroutine(right)
        self.site = StorSite(self._serving(Proxies(), max_connections), self.clock, self._observer)
        self._watch()

        if learnt:
            self.learn()

    def learn(self):
        """Let the index learn what the disks hold."""
        Deferred.fromCoroutine(self.mirrors.probe())
        while not all(map(self.mirrors.names.known, self.mirrors.mirrors)):
            self.clock.advance(0)

    def reconfigure(
        self, *, proxies=None, max_connections=None, work=None, explained=False, **changes
    ):
        """Answer as another configuration says from now on; what is not named stays as it is.

        `changes` are those of the tiers, the rules and the budgets, by their names; `explained`:
        the page explains samples.
        """
        self._work = work or self._work
        if explained:
            places = Explainer(self.mirrors, lambda: self._tiers.bucket, dict).places
            self._explanation = Explanation(places, self._find)
        self._tiers = _evolved(self._tiers, changes)
        self._rules = _evolved(self._rules, changes)
        self.budgets = _evolved(self.budgets, changes)
        assert not changes, "no part has these"
        before = self.site.serving
        most = before.max_connections if max_connections is None else max_connections
        self.site.serve(self._serving(proxies or before.proxies, most))

    async def _find(self, digest):
        return await self.store.find(digest)

    def _serving(self, proxies, max_connections):
        self.store = self._store_class(self.disk_tier, self.metrics, self._tiers, work=self._work)
        self.mirrors.report_to(self.mirrors.outbox, self.store.noticed)
        self.api = Api(
            *(self.store, self.uploads, self._rules, self.clock, self._overview, self.budgets),
            explanation=self._explanation,
            wall_seconds=self.wall_seconds,
        )
        bodies = SmallBodies(self.store, self.uploads, self._rules)
        readable = None if self._rules.read_auth else self.store
        fast_path = FastPath(readable, self.wall_seconds, self._observer, bodies, proxies)
        return Serving(self.api.resource(), self.api, fast_path, proxies, max_connections)

    def _status(self):
        return self.store.status()

    def _summary(self):
        return self._work()

    def _watch(self):
        tiers = lambda: self._tiers  # noqa: E731 - those in force
        for gauges in (
            ConnectionGauges(self.site.channels.__len__),
            DiskGauges(self.mirrors, tiers, self._summary),
            JobGauges(self.work),
            LogGauges(LogStream(1, str)),
            Reloads(),
            WorkGauges(self.disk_tier, tiers, self.uploads, {}),
        ):
            self.metrics.figures.watch(gauges)

    def wall_seconds(self):
        """The time of day; the clock is monotonic."""
        return self._booted + self.clock.seconds()

    def probe(self):
        """Probe every disk again."""
        for member in self.members:
            member.probe()

    def begin(self):
        """Do what follows the first probes: take up what an earlier Stor has left to be done."""
        Deferred.fromCoroutine(self.mirrors.begin())
        self.work.begin(scrub_days=0)
        self._begun = True

    def rounds(self, n):
        """Let `n` rounds of probes, repairs and rebuilds pass, a minute apart."""
        for _ in range(n):
            self.clock.advance(60)
            Deferred.fromCoroutine(self.mirrors.probe())
            if not self._begun:
                self.work.begin(scrub_days=0)
                self._begun = True
            self.work.jobs.resume()

    @property
    def roots(self):
        return [Path(member.root) for member in self.members]

    def connect(self):
        """A new connection to the site."""
        return Connection(self.site, self.clock)

    def request(self, method, path, headers=(), body=None, version="HTTP/1.1"):
        """One request on a connection of its own; its response, whole or cut off."""
        connection = self.connect()
        connection.send(request_bytes(method, path, headers, body, version))
        (response,) = connection.responses([method])
        assert response.complete or connection.aborted, "an answer ends as if it were whole"
        return response

    def put(self, content, name=None, method="POST", headers=()):
        """Store `content` with the right credentials, under its own digest or another `name`."""
        path = f"/{name or digest_of(content)}"
        return self.request(method, path, [("Authorization", AUTHORIZATION), *headers], content)

    def get(self, content_or_name, headers=(), method="GET"):
        """Fetch a sample by its content or its name."""
        name = content_or_name if isinstance(content_or_name, str) else digest_of(content_or_name)
        return self.request(method, f"/{name}", headers)

    def copies(self, content):
        """The paths of all files that have the sample's name."""
        below = digest_of(content).disk_path
        paths = [root / below for root in self.roots]
        return [path for path in paths if path.exists()]

    def samples(self):
        """All files under final names, on all disks."""
        return sorted(p for root in self.roots for p in root.glob("??/??/??/*"))

    def staged(self):
        """All files that an upload could have left behind, on all disks."""
        return sorted(p for root in self.roots for p in root.glob(".stor/tmp/*"))


def _evolved(part, changes):
    """`part` with those of the changes that are its own, which are taken out."""
    own = {field.name for field in attrs.fields(type(part))} & changes.keys()
    return attrs.evolve(part, **{name: changes.pop(name) for name in own})


def _index(clock, learner, shared, indexing):
    pace = lambda: lambda reads: None  # noqa: E731 - nothing rests in a test
    ours = shared or Shared.create()
    names = LearningNames(ours, clock, learner, pace=pace, **indexing)
    _OPEN.append((names, None if shared else ours))
    close_indexes(_MOST_OPEN)
    return names


def close_indexes(most=0):
    """Leave no more memory than this to others; some tests count descriptors."""
    while len(_OPEN) > most:
        names, shared = _OPEN.popleft()
        names.stop()
        if shared is not None:
            shared.close()


class FaultyRig(Rig):
    """A Rig whose disks fail and hang on demand.

    `disks` has the `FaultyFiles` of each by its label, such as `set0/disk1`, and `log` the calls
    of all; `kind(label, log)` makes them. Only with `threads` can a disk hang.
    """

    def __init__(self, path, sets=(2, 2), *, kind=FaultyFiles, threads=False, **options):
        self.disks, self.log = {}, []
        self._kind = kind
        self._hanging = {}
        if threads:
            pools = {"workers": self._hanging_workers, "learner": self._hanging_worker}
            options = {**pools, **options}
        super().__init__(path, sets, files=self._files, **options)

    def hang(self, label, n=0):
        """The disk's n-th call from now on is not answered, and none after it."""
        self.disks[label].hang_at(n, HangingPool.hang)

    def heal(self):
        """All disks answer again, without errors; what hung goes on."""
        for files in self.disks.values():
            files.heal()
        for worker in self._hanging.values():
            worker.wake()

    def _files(self, label):
        return self.disks.setdefault(label, self._kind(label, self.log))

    def _hanging_workers(self, label):
        worker = self._hanging_worker(label)
        return worker, worker, worker

    def _hanging_worker(self, name):
        return self._hanging.setdefault(name, HangingPool())


def request_bytes(method, path, headers=(), body=None, version="HTTP/1.1"):
    """A request as it is sent, with Host, and Content-Length when there is a body."""
    lines = [f"{method} {path} {version}", "Host: stor.example"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
