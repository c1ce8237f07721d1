"""The composition root: options in, a running service out. Alone imports the reactor."""

import hashlib
import os
import random
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from types import FrameType
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions

from stor import config
from stor.config import Config, ConfigError, Credentials
from stor.disks.disk import Disk
from stor.disks.files import Files
from stor.disks.health import Health
from stor.disks.member import PROBE_INTERVAL_SECONDS, Member, Workers
from stor.disks.mirror import Mirror
from stor.disks.mirrors import Mirrors
from stor.disks.roster import Roster
from stor.store import Store
from stor.web.auth import Authenticator
from stor.web.routes import Api
from stor.web.site import StorSite
from stor.web.upload import Uploads
from stor.worker import ThreadWorker, settle

#: How long what runs may still run after SIGTERM.
DRAIN_SECONDS = 60.0

#: How long the first requests wait for the first probes; a hung disk is then offline for them.
FIRST_PROBES_SECONDS = 3.0

#: Connections that wait to be taken.
BACKLOG = 1024

#: How long requests that had been sent before SIGTERM have to be seen; `stopService`.
LAST_CALL_SECONDS = 0.05

#: Threads a disk, for reading and for writing each: enough for its queue to be sorted.
DISK_THREADS = 4


Reactor = Any  # IReactorCore, IReactorTime and IReactorFromThreads at once, which no type says


class Options(UsageOptions):
    """`twistd stor` on the command line."""

    optParameters = [  # noqa: RUF012 - the name and shape that Twisted asks for
        ["config", "c", None, "The configuration file (JSON); $CONFIG_FILE when not given."],
        ["data", "d", None, "Run without configuration, with all disks under this directory."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Listen on this Twisted endpoint, such as tcp:8080; instead of the configured ones."""
        self["listen"].append(endpoint)


def makeService(options: Options) -> "StorService":  # noqa: N802 - the name that twistd calls
    """The service that `options` ask for. Ends the process with status 1 when they are wrong."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing installs it

    try:
        chosen = _configuration(options)
        _check_endpoints(chosen, reactor)
    except ConfigError as error:
        for fault in error.faults:
            print(f"stor: {fault}", file=sys.stderr)
        raise SystemExit(1) from None
    return StorService(chosen, reactor, greets=options["data"] is not None)


def _configuration(options: Options) -> Config:
    path, data = options["config"], options["data"]
    if path and data:
        raise ConfigError(["--config and --data: expected one of them, found both"])
    if data:
        return data_configuration(os.path.abspath(data), options["listen"])
    path = path or os.environ.get("CONFIG_FILE")
    if not path:
        raise ConfigError(["no configuration: give --config FILE, $CONFIG_FILE or --data DIR"])
    chosen = config.load(path)
    if options["listen"]:
        chosen = attrs.evolve(chosen, listen=tuple(options["listen"]))
    if chosen.s3_write != "never":
        raise ConfigError([f'{path}: s3_write: expected "never", S3 is not written to yet'])
    return chosen


def _check_endpoints(chosen: Config, reactor: Reactor) -> None:
    faults = []
    for description in chosen.listen:
        try:
            serverFromString(reactor, description)
        except Exception as error:
            # Endpoint parsers raise whatever comes to them.
            expected = 'a Twisted endpoint such as "tcp:8080"'
            faults.append(f'listen: expected {expected}, found "{description}": {error}')
    if faults:
        raise ConfigError(faults)


def data_configuration(directory: str, listen: Sequence[str] = ()) -> Config:
    """Two mirrored sets of two directories below `directory`, and a password made once.

    Raises `ConfigError` when the directory cannot be used.
    """
    sets = tuple(
        tuple(os.path.join(directory, f"set{s}", f"disk{d}") for d in (1, 2)) for s in (1, 2)
    )
    try:
        for roots in sets:
            for root in roots:
                os.makedirs(root, exist_ok=True)
        password = _password(os.path.join(directory, "password"))
    except OSError as error:
        raise ConfigError([f"--data {directory}: {error.strerror}: {error.filename}"]) from error
    return Config(
        sets=sets,
        writable=re.compile(""),
        credentials=Credentials("writer", password),
        listen=tuple(listen) or ("tcp:8080:interface=127.0.0.1",),
        require_mount=False,
    )


def _password(path: str) -> str:
    """The password that stands in the file `path`, made when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            password = file.read().strip()
    except FileNotFoundError:
        password = ""
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"--data {os.path.dirname(path)}: {path}: expected a password of ASCII characters"]
        ) from error
    if not password:
        password = secrets.token_urlsafe(12)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{password}\n")
    return password


def greeting(chosen: Config, address: object) -> str:
    """Lines to paste that store and fetch a first sample; `address` is where Stor listens."""
    curl, port = "curl", getattr(address, "port", 0)
    if isinstance(address, UNIXAddress):
        socket = os.fsdecode(address.name or b"")
        curl = f"curl --unix-socket {shlex.quote(socket)}"
        place = "localhost"
    else:
        host = getattr(address, "host", "127.0.0.1")
        if ip_address(host).is_unspecified:
            host = "127.0.0.1"
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    scheme = "https" if chosen.listen[0].startswith("ssl:") else "http"
    url = f"{scheme}://{place}/{hashlib.sha256(b'hello').hexdigest()}"
    user, password = chosen.credentials.user, chosen.credentials.password
    return (
        f"Stor keeps samples in {os.path.commonpath([r for s in chosen.sets for r in s])}. Try:\n"
        f"  printf hello | {curl} -u {user}:{password} --data-binary @- {url}\n"
        f"  {curl} {url}\n"
    )


def _with_backlog(description: str) -> str:
    """A burst of connections waits in the kernel, where Twisted alone would let 50 wait."""
    if description.startswith(("tcp:", "ssl:")) and "backlog=" not in description:
        return f"{description}:backlog={BACKLOG}"
    return description


def build_mirrors(chosen: Config, reactor: Reactor, files: Files) -> Mirrors:
    """The disks of the configuration, each with threads of its own."""
    forbidden = os.stat("/").st_dev if chosen.require_mount else None
    roster = Roster(chosen.sets)

    def member(root: str) -> Member:
        health = Health(reactor.seconds, writable=bool(chosen.writable.search(root)))
        workers = Workers(
            readers=ThreadWorker(reactor, f"read {root}", DISK_THREADS),
            writers=ThreadWorker(reactor, f"write {root}", DISK_THREADS),
            prober=ThreadWorker(reactor, f"probe {root}", 1),
        )
        return Member(Disk(root, files, forbidden), health, workers, reactor, roster)

    return Mirrors(
        [
            Mirror([member(root) for root in roots], own_file_systems=chosen.require_mount)
            for roots in chosen.sets
        ],
        roster,
        reserve_bytes=chosen.reserve_bytes,
        clock=reactor,
        now_ns=time.time_ns,
        rng=random.SystemRandom(),
    )


class StorService(Service):
    """Stor, from the first probe of its disks to the last byte of its last answer."""

    log = Logger()

    def __init__(self, chosen: Config, reactor: Reactor, *, greets: bool = False) -> None:
        """`greets`: print on standard output what a newcomer can try."""
        self.name = "stor"
        self._config = chosen
        self._reactor = reactor
        self._greets = greets
        self._ports: list[IListeningPort] = []
        self._begun = False
        self._mirrors = build_mirrors(chosen, reactor, Files())
        self._hashing = ThreadWorker(reactor, "hash", os.cpu_count() or 1)
        unasked = "s3: configured, and not asked yet by this Stor" if chosen.s3 else None
        self._ready: Deferred[None] = Deferred()
        self.store = Store(self._mirrors, self._ready, unasked)
        credentials = chosen.credentials
        uploads = Uploads(
            self.store,
            Authenticator(credentials.user, credentials.password),
            self._hashing,
            max_upload_bytes=chosen.max_upload_bytes,
        )
        self._api = Api(self.store, uploads, reactor)
        self._site = StorSite(self._api.resource(), self._api, reactor)
        self._probing = LoopingCall(self._probe)
        self._probing.clock = reactor

    def privilegedStartService(self) -> None:  # noqa: N802
        """Take the ports, while root if started as root. Ends the process when one is not free."""
        super().privilegedStartService()
        for description in self._config.listen:
            failures: list[Failure] = []
            endpoint = serverFromString(self._reactor, _with_backlog(description))
            endpoint.listen(self._site).addCallbacks(self._ports.append, failures.append)
            for failure in failures:
                reason = getattr(failure.value, "socketError", failure.value)
                # Not sys.stderr, which is the log by now.
                print(f"stor: listen: {description}: {reason}", file=sys.__stderr__, flush=True)
                raise SystemExit(1)

    def startService(self) -> None:  # noqa: N802
        """Begin to serve."""
        super().startService()
        for warning in self._config.warnings:
            self.log.warn("{warning}", warning=warning)
        self._reactor.callWhenRunning(self._take_signals)
        self._first_probes = self._reactor.callLater(FIRST_PROBES_SECONDS, self._begin)
        self._probe().addCallback(lambda _: self._begin())
        self._probing.start(PROBE_INTERVAL_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:  # noqa: N802
        """Accept no more, let what runs finish, end; fires when all that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.log.info("Stopping: no new connections, {n} are open", n=len(self._site.channels))
        self._api.stopping = True
        self._site.draining = True
        # What was sent before the signal may still be in the kernel: connections that were not
        # taken, requests that were not read. Closing on them would reset them.
        await deferLater(self._reactor, LAST_CALL_SECONDS)
        await settle([maybeDeferred(port.stopListening) for port in self._ports])
        await deferLater(self._reactor, LAST_CALL_SECONDS)
        deadline = self._reactor.callLater(DRAIN_SECONDS, self._site.cut)
        await self._site.drain()
        if deadline.active():
            deadline.cancel()
        if self._probing.running:
            self._probing.stop()
        for member in self._mirrors.members:
            member.stop()
        self._hashing.stop()

    def _probe(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._mirrors.probe()).addErrback(self._bug)

    def _begin(self) -> None:
        """The first probes are over, or have had their time."""
        if self._first_probes.active():
            self._first_probes.cancel()
        if not self._begun:
            self._begun = True
            begin = Deferred.fromCoroutine(self._mirrors.begin()).addErrback(self._bug)
            begin.addCallback(lambda _: self._greet())

    def _greet(self) -> None:
        self._ready.callback(None)
        status = self.store.status()
        for problem in (*status.problems, *status.warnings):
            self.log.warn("{problem}", problem=problem)
        if self._greets and sys.__stdout__ is not None:
            address = self._ports[0].getHost()
            print(greeting(self._config, address), file=sys.__stdout__, flush=True)

    def _bug(self, failure: Failure) -> None:
        self.log.failure("Probing the disks", failure)

    def _take_signals(self) -> None:
        """End with status 0 on SIGTERM; Twisted's own handler ends by the signal itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)
        self._reactor.callFromThread(self._reactor.stop)
