"""The side that clients see: the site and its sockets, and how they go on and off."""

import time
from typing import Any, Protocol

from twisted.internet.task import deferLater

from stor.app import App
from stor.commons import Commons
from stor.config import Config
from stor.http.access import AccessLog, Afterwards, together
from stor.http.fast_path import FastPath
from stor.http.site import StorSite
from stor.logs import LineObserver
from stor.sockets import Ports

#: How long what runs may still run after the end was asked for.
DRAIN_SECONDS = 60.0

#: How long connections that had been made before that have to be taken.
LAST_CALL_SECONDS = 0.05


class Face(Protocol):
    """What clients see of a Stor, in this process or in others."""

    @property
    def addresses(self) -> list[object]:
        """Where clients find the service, in the configured order."""

    def open(self, chosen: Config) -> None:
        """Take the sockets. Raises `CannotListen`."""

    async def start(self) -> None:
        """Begin to answer: the storages have been looked at."""

    async def prepare(self, chosen: Config) -> None:
        """Have what another configuration needs. Raises `CannotListen`; then all is as before."""

    async def put_in_force(self, chosen: Config) -> None:
        """Answer as another configuration says, which has been prepared."""

    def storages_seen(self) -> None:
        """The storages have been looked at again."""

    async def stop(self) -> None:
        """Take no more connections, and let what runs finish."""


class Server:
    """The face of a Stor of one process, or of a worker."""

    def __init__(
        self,
        app: App,
        reactor: Any,
        chosen: Config,
        log: LineObserver | None,
        commons: Commons | None = None,
    ) -> None:
        """`log` writes the lines, if it is not Twisted's; `commons` is the app's."""
        self._app = app
        self._reactor = reactor
        api, metrics = app.api, app.metrics
        access = AccessLog() if log is None else AccessLog(log.say)
        observers = together(access, metrics.served, app.rates.served)
        self._served = served = Afterwards(reactor.callLater, observers)
        fast_path = FastPath(app.store.hot, api.hot_head, time.time, served)
        self.site = StorSite(
            app.resource(),
            api,
            reactor,
            served,
            fast_path,
            chosen.max_connections,
            None if commons is None else commons.connections,
        )
        metrics.figures.connections = lambda: len(self.site.channels)
        self._ports = Ports(self.site, reactor)

    @property
    def addresses(self) -> list[object]:
        """See `Face.addresses`."""
        return self._ports.addresses

    def open(self, chosen: Config) -> None:
        """See `Face.open`."""
        self._ports.listen(chosen.listen)

    async def start(self) -> None:
        """See `Face.start`. The site has waited for the storages by itself."""

    async def prepare(self, chosen: Config) -> None:
        """See `Face.prepare`."""
        await self._ports.change(chosen.listen)

    async def put_in_force(self, chosen: Config) -> None:
        """See `Face.put_in_force`."""
        self.site.max_connections = chosen.max_connections

    def storages_seen(self) -> None:
        """See `Face.storages_seen`. What is known in this process is known to all."""

    async def stop(self) -> None:
        """See `Face.stop`."""
        await self.last_call()
        await self._ports.stop()
        await self.drain()

    async def last_call(self) -> None:
        """Say that the end is near, and take the connections that have been made.

        They may still be in the kernel. Closing on them would reset them.
        """
        self._app.api.stopping = True
        self.site.draining = True
        await deferLater(self._reactor, LAST_CALL_SECONDS)

    async def drain(self) -> None:
        """Let what runs finish, for `DRAIN_SECONDS` at most."""
        deadline = self._reactor.callLater(DRAIN_SECONDS, self.site.cut)
        await self.site.drain()
        self._served.tell()
        if deadline.active():
            deadline.cancel()
