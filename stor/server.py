"""The side that clients see: the site and its sockets, and how they go on and off."""

from typing import Any

from twisted.internet.task import deferLater

from stor.config import Config
from stor.garbage import settle_down
from stor.gauges import ConnectionGauges, Reloads
from stor.http.site import StorSite
from stor.runtime import Runtime
from stor.shared import Count
from stor.sockets import Ports
from stor.summary import summary

#: How long what runs may still run after the end was asked for.
DRAIN_SECONDS = 60.0

#: How long connections that had been made before that have to be taken.
LAST_CALL_SECONDS = 0.05


class Server:
    """What clients see of one process."""

    def __init__(self, runtime: Runtime, reactor: Any, connections: Count | None = None) -> None:
        """`connections` counts those of this process."""
        self._runtime = runtime
        self._reactor = reactor
        #: How the last reload went.
        self.reloads = Reloads()
        self.site = StorSite(runtime.app.serving, reactor, runtime.served, connections)
        open_connections = self.site.channels.__len__
        runtime.metrics.figures.watch(ConnectionGauges(open_connections))
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
        await self._runtime.start()
        settle_down()

    @property
    def summary(self) -> str:
        """What runs here, and with what, in one line."""
        return summary(self._runtime.status(), self.addresses, 1)

    async def reload(self, chosen: Config) -> None:
        """Put another configuration in force. Raises `CannotListen`; then all is as before."""
        await self._ports.change(chosen.listen)
        await self.follow(chosen)

    async def follow(self, chosen: Config) -> None:
        """Answer as another configuration says."""
        await self._runtime.reconfigure(chosen, self.site.serve)

    async def stop(self) -> None:
        """Take no more connections, and let what runs finish."""
        await self.last_call()
        await self._ports.stop()
        await self.drain()
        await self._runtime.stop()

    async def last_call(self) -> None:
        """Say that the end is near, and take the connections that have been made.

        They may still be in the kernel. Closing on them would reset them.
        """
        self._runtime.last_call()
        self.site.last_call()
        await deferLater(self._reactor, LAST_CALL_SECONDS)

    async def drain(self) -> None:
        """Let what runs finish, for `DRAIN_SECONDS` at most."""
        deadline = self._reactor.callLater(DRAIN_SECONDS, self.site.cut)
        await self.site.drain()
        self._runtime.served.tell()
        if deadline.active():
            deadline.cancel()
