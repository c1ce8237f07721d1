"""The side that clients see: the site and its sockets, and how they go on and off."""

import time
from typing import Any

from twisted.internet.task import deferLater

from stor.app import App
from stor.config import Config
from stor.garbage import settle_down
from stor.gauges import Reloads
from stor.http.access import AccessLog, Afterwards, together
from stor.http.fast_path import FastPath
from stor.http.proxies import Proxies
from stor.http.site import StorSite
from stor.logs import LineObserver
from stor.shared import Count
from stor.sockets import Ports
from stor.summary import summary

#: How long what runs may still run after the end was asked for.
DRAIN_SECONDS = 60.0

#: How long connections that had been made before that have to be taken.
LAST_CALL_SECONDS = 0.05


class Server:
    """What clients see of one process."""

    def __init__(
        self,
        app: App,
        reactor: Any,
        chosen: Config,
        log: LineObserver | None,
        connections: Count | None = None,
    ) -> None:
        """`log` writes the lines, if it is not Twisted's; `connections` counts them."""
        self._app = app
        self._reactor = reactor
        api, metrics = app.api, app.metrics
        #: How the last reload went.
        self.reloads = Reloads()
        observers = together(AccessLog(log), metrics.served, app.rates.served)
        self._served = served = Afterwards(reactor.callLater, observers)
        fast_path = FastPath(api, time.time, served, app.uploads)
        self.site = StorSite(
            app.resource(),
            api,
            reactor,
            served,
            fast_path,
            chosen.max_connections,
            connections,
        )
        self._heed(chosen)
        metrics.figures.connections = lambda: len(self.site.channels)
        self._ports = Ports(self.site, reactor)

    @property
    def addresses(self) -> list[object]:
        """Where clients find the service, in the configured order."""
        return self._ports.addresses

    def open(self, chosen: Config) -> None:
        """Take the sockets. Raises `CannotListen`."""
        self._ports.listen(chosen.listen)

    async def start(self) -> None:
        """Answer, once the storages have been looked at."""
        await self._app.start()
        settle_down()

    @property
    def summary(self) -> str:
        """What runs here, and with what, in one line."""
        return summary(self._app.store.status(), self.addresses, 1)

    async def reload(self, chosen: Config) -> None:
        """Put another configuration in force. Raises `CannotListen`; then all is as before."""
        await self._ports.change(chosen.listen)
        await self.follow(chosen)

    async def follow(self, chosen: Config) -> None:
        """Answer as another configuration says."""
        await self._app.reconfigure(chosen)
        self.site.max_connections = chosen.max_connections
        self._heed(chosen)

    def _heed(self, chosen: Config) -> None:
        self.site.proxies = Proxies(chosen.trusted_proxies)
        if self.site.fast_path is not None:
            self.site.fast_path.proxies = self.site.proxies

    async def stop(self) -> None:
        """Take no more connections, and let what runs finish."""
        await self.last_call()
        await self._ports.stop()
        await self.drain()
        await self._app.stop()

    async def last_call(self) -> None:
        """Say that the end is near, and take the connections that have been made.

        They may still be in the kernel. Closing on them would reset them.
        """
        self._app.api.stop()
        self.site.draining = True
        await deferLater(self._reactor, LAST_CALL_SECONDS)

    async def drain(self) -> None:
        """Let what runs finish, for `DRAIN_SECONDS` at most."""
        deadline = self._reactor.callLater(DRAIN_SECONDS, self.site.cut)
        await self.site.drain()
        self._served.tell()
        if deadline.active():
            deadline.cancel()
