"""What is said of the whole Stor: how the storages are, how busy it is, and every figure."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from stor.growth import Growth
from stor.http.access import PerSecond, Rates
from stor.http.page import Moment, usable_bytes
from stor.http.upload import Uploads
from stor.prometheus import Family, Figures, exposition, lasting, summed
from stor.status import Status, as_json


@attrs.frozen
class Snapshot:
    """What one process says of its own work: its figures, and what goes on in it."""

    figures: Sequence[Family]
    moment: Moment = attrs.field(factory=Moment)

    @property
    def lasting(self) -> "Snapshot":
        """What stays of it when the process has ended."""
        return Snapshot(lasting(self.figures))


def picture(status: Status, problems: Sequence[str] | None = None) -> dict[str, Any]:
    """How the storages are, for JSON; `problems` are others than theirs."""
    found = status.problems if problems is None else problems
    return {
        "available": not found,
        "problems": found,
        "warnings": status.warnings,
        "sets": [as_json(one) for one in status.sets],
        "repairs": as_json(status.repairs),
        "jobs": [as_json(job) for job in status.work.jobs],
        "at_risk": status.work.at_risk,
        "partial_uploads": as_json(status.partial_uploads),
        "s3": None if status.s3 is None else as_json(status.s3),
        "memcached": [as_json(server) for server in status.memcached],
    }


class Overview:
    """The whole: this process, and what the others of this Stor have said last."""

    def __init__(
        self,
        status: Callable[[], Status],
        uploads: Uploads,
        rates: Rates,
        figures: Figures,
        others: Callable[[], Sequence[Snapshot]] = lambda: (),
        absent: Callable[[], list[str]] = list,
        growth: Growth | None = None,
        host: str = "",
    ) -> None:
        """`status` says how the storages are; `host` is what this one is called.

        `others` are other processes, and those that were there before; `absent` says which are not
        there.
        """
        self.host = host
        self._growth = growth
        self._status = status
        self._uploads = uploads
        self._rates = rates
        self._figures = figures
        self._others = others
        self._absent = absent

    def status(self) -> Status:
        """How the storages are."""
        own = self._status()
        return attrs.evolve(own, warnings=[*own.warnings, *self._absent()])

    def days_left(self, status: Status) -> float | None:
        """How long the room for new samples lasts at the rate of the last week.

        `None` while that is not known, and when it does not become less.
        """
        rate = None if self._growth is None else self._growth.bytes_a_day(free_of(status))
        return usable_bytes(status) / rate if rate is not None and rate > 0 else None

    def snapshot(self) -> Snapshot:
        """What this process alone does."""
        return Snapshot(self._figures.families(), self._own_moment())

    def moment(self) -> Moment:
        """What goes on now."""
        moments = [self._own_moment(), *(one.moment for one in self._others())]
        rates = zip(*(attrs.astuple(moment.rates) for moment in moments), strict=True)
        return Moment(sum(moment.uploads for moment in moments), PerSecond(*map(sum, rates)))

    def _own_moment(self) -> Moment:
        return Moment(self._uploads.in_progress, self._rates.now())

    def exposition(self) -> bytes:
        """All figures in the text format of Prometheus."""
        own, others = self._figures.families(), self._others()
        return exposition(summed([own, *(one.figures for one in others)]) if others else own)


def free_of(status: Status) -> dict[str, int]:
    """What is free on each set: what is on its smallest disk."""
    return {
        ",".join(disk.root for disk in one.disks): min(disk.free_bytes for disk in one.disks)
        for one in status.sets
        # Before its first probe nothing is known of a disk.
        if all(disk.total_bytes for disk in one.disks)
    }
