"""What a worker leaves to the supervisor, or asks it for."""

from collections.abc import Sequence

from twisted.internet.defer import Deferred

from stor.digest import Digest
from stor.http.page import Moment
from stor.mirror.mirror import Mirror
from stor.processes.wire import Wire
from stor.store import Status

#: A supervisor that has not answered by then has not answered. To put a copy back may take long,
#: and who waits for that has a limit of its own.
ANSWER_SECONDS = 5.0
MEND_SECONDS = 3600.0


class RemoteMending:
    """Copies are put back by the supervisor. Implements `stor.mirror.repair.Mending`."""

    mended_total = 0
    waiting = 0

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def report(self, digest: Digest, mirror: Mirror) -> None:
        """See `Mending.report`."""
        self._wire.tell("report", digest, roots_of(mirror))

    def renewed(self, digest: Digest, mirror: Mirror) -> None:
        """See `Mending.renewed`."""
        self._wire.tell("renewed", digest, roots_of(mirror))

    def mending(self, digest: Digest, mirror: Mirror) -> bool:
        """See `Mending.mending`: names that are not durable yet are seen by nobody out of turn."""
        return False

    async def mend(self, digest: Digest, mirror: Mirror) -> list[str]:
        """See `Mending.mend`."""
        paths: list[str] = await self._wire.ask(MEND_SECONDS, "mend", digest, roots_of(mirror))
        return paths


class RemoteOverview:
    """The supervisor knows the whole. Implements `stor.http.status.Overview`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def status(self) -> Deferred[Status]:
        """See `Overview.status`."""
        return self._wire.ask(ANSWER_SECONDS, "status")

    def moment(self) -> Deferred[Moment]:
        """See `Overview.moment`."""
        return self._wire.ask(ANSWER_SECONDS, "moment")

    def exposition(self) -> Deferred[bytes]:
        """See `Overview.exposition`."""
        return self._wire.ask(ANSWER_SECONDS, "exposition")


def roots_of(mirror: Mirror) -> Sequence[str]:
    """What a set is called between processes."""
    return tuple(member.root for member in mirror.members)
