"""What answers clients under one configuration."""

import socket
import time
from collections.abc import Callable
from typing import Any

import attrs

from stor.config import Config
from stor.http.access import Observer
from stor.http.api import Api, Budgets
from stor.http.auth import Accounts, Attempts, Authenticator, Rules
from stor.http.fast_path import FastPath
from stor.http.page import Explanation
from stor.http.proxies import Proxies
from stor.http.request import Serving
from stor.http.status import Overview
from stor.http.upload import SmallBodies, Uploads
from stor.location import S3 as S3_PLACE
from stor.location import Locations, Memcached, connected, mirror_place
from stor.metrics import Metrics
from stor.s3.body import http_client
from stor.s3.bucket import Bucket
from stor.s3.client import S3Client
from stor.s3.incoming import S3Puts
from stor.s3.queue import CopyQueue
from stor.s3.spool import Spool
from stor.status import Work
from stor.store import DiskTier, Store, Tiers
from stor.threads import Outcomes, Pool, ThreadPool

#: Threads for the calls of boto3. Bodies that are read need none.
S3_THREADS = 8


@attrs.frozen
class Pools:
    """Threads that Apps share: for S3, its signatures, its spool, and passwords."""

    s3: Pool
    signer: Pool
    spool: Pool
    passwords: Pool
    htpasswd: Pool

    def stop(self) -> None:
        """Let them end once they are idle."""
        for pool in (self.s3, self.signer, self.spool, self.passwords, self.htpasswd):
            pool.stop()


@attrs.frozen
class Parts:
    """What every App of a process is made of, whatever its configuration says.

    `writes` is false in a process that only reads. `served` is told of every request that is over,
    `work` goes on beside requests, `explanation` is found out about samples, and `notices` are what
    deserves attention, a line each.
    """

    reactor: Any
    outcomes: Outcomes
    pools: Pools
    disks: DiskTier
    copies: CopyQueue
    attempts: Attempts
    uploads: Uploads
    budgets: Budgets
    overview: Overview
    explanation: Explanation | None
    metrics: Metrics
    writes: bool
    served: Observer
    work: Callable[[], Work]
    notices: Callable[[], list[str]]


class App:
    """Made for a configuration and never changed: with another one, another takes its place."""

    def __init__(self, chosen: Config, parts: Parts, before: "App | None" = None) -> None:
        """What the configuration has in common with that of `before` is taken over from there."""
        self._config = chosen
        self._parts = parts
        self.tiers = self._tiers(before)
        self.store = Store(
            parts.disks, parts.metrics, self.tiers, work=parts.work, notices=parts.notices
        )
        rules = self._rules()
        api = Api(
            *(self.store, parts.uploads, rules, parts.reactor, parts.overview, parts.budgets),
            explanation=parts.explanation,
        )
        proxies = Proxies(chosen.trusted_proxies)
        bodies = SmallBodies(self.store, parts.uploads, rules)
        readable = None if chosen.read_auth else self.store
        fast_path = FastPath(readable, time.time, parts.served, bodies, proxies)
        #: What the site is to answer with.
        self.serving = Serving(api.resource(), api, fast_path, proxies, chosen.max_connections)

    def leave(self, after: "App | None" = None) -> None:
        """Another takes its place, or none: end what that has not taken over."""
        locations = self.tiers.locations
        if locations is not None and (after is None or after.tiers.locations is not locations):
            locations.stop()

    def _rules(self) -> Rules:
        chosen = self._config
        return Rules(
            self._authenticator(),
            max_upload_bytes=chosen.max_upload_bytes,
            max_uploads=chosen.max_uploads,
            read_auth=chosen.read_auth,
            public_listing=chosen.public_listing,
            status_auth=chosen.status_auth,
        )

    def _authenticator(self) -> Authenticator:
        chosen, parts = self._config, self._parts
        known = [f"{one.user}:{one.password}" for one in chosen.credentials]
        if chosen.htpasswd is None:
            return Authenticator(known, parts.attempts)
        pools = parts.pools
        accounts = Accounts(chosen.htpasswd, pools.passwords, pools.htpasswd, parts.reactor)
        return Authenticator(known, parts.attempts, accounts)

    def _tiers(self, before: "App | None") -> Tiers:
        chosen, parts = self._config, self._parts
        bucket = self._bucket(before)
        copies = chosen.s3_write == "copy" and parts.writes
        puts = None
        if chosen.s3_write == "only" and bucket is not None:
            spool = Spool(chosen.spool_directory, chosen.spool_bytes, parts.pools.spool)
            puts = S3Puts(bucket, spool)
        host = socket.gethostname()
        places = {
            mirror_place(host, [member.root for member in mirror.members]): mirror
            for mirror in parts.disks.mirrors.mirrors
        }
        return Tiers(
            order=chosen.lookup_order,
            bucket=bucket,
            puts=puts,
            copies=parts.copies if copies else None,
            locations=self._locations(
                [*places, *([S3_PLACE] if chosen.s3 is not None else [])], before
            ),
            places=places,
        )

    def _bucket(self, before: "App | None") -> Bucket | None:
        chosen, parts = self._config, self._parts
        if before is not None and before._config.s3 == chosen.s3:
            return before.tiers.bucket
        if chosen.s3 is None:
            return None
        client = S3Client(chosen.s3, S3_THREADS)
        http = http_client(parts.reactor, chosen.s3.ca_file)
        return Bucket(client, parts.pools.s3, parts.pools.signer, http, parts.reactor)

    def _locations(self, places: list[str], before: "App | None") -> Locations | None:
        chosen, parts = self._config, self._parts
        if len(places) < 2:  # where there is one place to look, nobody has to remember it
            return None
        servers = chosen.memcached_servers
        if before is not None and before._config.memcached_servers == servers:
            known = before.tiers.locations
            if known is not None and known.places == frozenset(places):
                return known
        return Locations(
            places, [self._memcached(host, port) for host, port in servers], parts.reactor
        )

    def _memcached(self, host: str, port: int) -> Memcached:
        name = f"{host}:{port}"
        pool = ThreadPool(self._parts.outcomes, f"memcached {name}", 1)
        return Memcached(name, connected(host, port), pool, self._parts.reactor)
