"""What one process knows of its own work, for the supervisor to put together."""

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from stor.app import App
from stor.http.page import Moment
from stor.http.rates import PerSecond
from stor.processes.figures import Family, families


@attrs.frozen
class Snapshot:
    """Its figures, what goes on in it, and the servers of its location cache."""

    figures: Sequence[Family]
    moment: Moment
    memcached: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, app: App) -> "Snapshot":
        """That of this process, now."""
        locations = app.store.locations
        return cls(
            families(app.metrics.figures.metrics()),
            app.own_overview.moment_now(),
            [] if locations is None else locations.servers,
        )


def moment_of(snapshots: Iterable[Snapshot]) -> Moment:
    """What goes on in all processes together."""
    moments = [snapshot.moment for snapshot in snapshots]
    rates = [attrs.astuple(moment.rates) for moment in moments]
    sums = [sum(rate) for rate in zip(*rates, strict=True)]
    return Moment(sum(moment.uploads for moment in moments), PerSecond(*(sums or [0.0] * 4)))


def memcached_of(snapshots: Iterable[Snapshot]) -> list[dict[str, Any]]:
    """The servers; one that any process does without is away."""
    servers: dict[str, dict[str, Any]] = {}
    for snapshot in snapshots:
        for server in snapshot.memcached:
            known = servers.setdefault(server["server"], server)
            if known["available"] and not server["available"]:
                servers[server["server"]] = server
    return list(servers.values())
