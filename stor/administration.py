"""What looks after a running Stor beside its requests: its jobs, and the socket for operators."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.endpoints import quoteStringArgument
from twisted.web.http import Request
from twisted.web.resource import IResource
from twisted.web.server import Site

from stor.config import Config
from stor.digest import Digest
from stor.explain import Explainer
from stor.http.admin import Admin
from stor.http.page import Explanation
from stor.http.status import Overview
from stor.jobs.jobs import JOBS_FILE
from stor.jobs.long_work import LongWork
from stor.mirror.mirrors import Mirrors
from stor.s3.bucket import Bucket
from stor.sockets import CannotListen, Ports
from stor.state import StateDirectory
from stor.store import Found
from stor.threads import Outcomes, Pool, ThreadPool

#: The threads of jobs leave the processor to all others.
JOBS_NICE = 10


class _Site(Site):
    """Without lines for requests: what was asked for is in the log as it happens."""

    # Twisted would say that it starts and stops.
    noisy = False

    def __init__(self, resource: IResource, reactor: Any) -> None:
        super().__init__(resource, reactor=reactor)

    def log(self, request: Request) -> None:
        """See `Site.log`."""


class Administration:
    """Jobs and their socket, in the process that writes."""

    def __init__(
        self,
        chosen: Config,
        mirrors: Mirrors,
        find: Callable[[Digest], Awaitable[Found]],
        bucket: Callable[[], Bucket | None],
        overview: Overview,
        reactor: Any,
        outcomes: Outcomes,
        state: StateDirectory,
        state_pool: Pool,
    ) -> None:
        self.work = LongWork(
            mirrors,
            reactor,
            time.time,
            lambda name: ThreadPool(outcomes, name, 1, nice=JOBS_NICE),
            lambda data: state_pool.run(state.write, JOBS_FILE, data),
        )
        self._chosen = chosen
        self._state = state
        self._state_pool = state_pool
        places = Explainer(mirrors, bucket, lambda: self.work.scrubs.scrubbed).places
        self.explanation = Explanation(places, find)
        resource = Admin(self.work, overview, self.explanation).resource()
        self._ports = Ports(_Site(resource, reactor), reactor)
        #: What keeps the socket from being used, one line.
        self.fault: str | None = None

    async def start(self) -> None:
        """Take up the jobs that there are, and hear operators. The storages are known."""
        self.work.jobs.load(await self._state_pool.run(self._state.read, JOBS_FILE))
        self.work.begin(self._chosen.scrub_days)
        await self._listen(self._chosen.admin_socket)

    async def follow(self, chosen: Config) -> None:
        """Go on as another configuration says."""
        self.work.follow(chosen.scrub_days)
        await self._listen(chosen.admin_socket)

    async def _listen(self, path: str | None) -> None:
        try:
            # Whoever may connect has the rights of the group: see umask(2), unix(7).
            await self._ports.change(
                [] if path is None else [f"unix:{quoteStringArgument(path)}:mode=660"]
            )
        except CannotListen as error:
            self.fault = f"admin_socket: {error}: the stor command cannot ask this Stor"
        else:
            self.fault = None

    async def stop(self) -> None:
        """Hear nobody any more, and keep how far jobs have come."""
        await self._ports.stop()
        await self.work.jobs.stop()
