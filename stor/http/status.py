"""What is said of the whole Stor: how the storages are, how busy it is, and every figure."""

from collections.abc import Callable, Sequence

import attrs

from stor.http.page import Moment
from stor.http.rates import PerSecond, Rates
from stor.http.upload import Uploads
from stor.prometheus import Family, Figures, exposition, lasting, summed
from stor.store import Status, Store


@attrs.frozen
class Snapshot:
    """What one process says of its own work: its figures, and what goes on in it."""

    figures: Sequence[Family]
    moment: Moment = attrs.field(factory=Moment)

    @property
    def lasting(self) -> "Snapshot":
        """What stays of it when the process has ended."""
        return Snapshot(lasting(self.figures))


class Overview:
    """The whole: this process, and what the others of this Stor have said last."""

    def __init__(
        self,
        store: Store,
        uploads: Uploads,
        rates: Rates,
        figures: Figures,
        others: Callable[[], Sequence[Snapshot]] = lambda: (),
        absent: Callable[[], list[str]] = list,
    ) -> None:
        """`others` are other processes, and those that were there before.

        `absent` says which are not there.
        """
        self._store = store
        self._uploads = uploads
        self._rates = rates
        self._figures = figures
        self._others = others
        self._absent = absent

    def status(self) -> Status:
        """How the storages are."""
        own = self._store.status()
        return attrs.evolve(own, warnings=[*own.warnings, *self._absent()])

    def snapshot(self) -> Snapshot:
        """What this process alone does."""
        moment = Moment(self._uploads.in_progress, self._rates.now())
        return Snapshot(self._figures.families(), moment)

    def moment(self) -> Moment:
        """What goes on now."""
        moments = [one.moment for one in (self.snapshot(), *self._others())]
        rates = zip(*(attrs.astuple(moment.rates) for moment in moments), strict=True)
        return Moment(sum(moment.uploads for moment in moments), PerSecond(*map(sum, rates)))

    def exposition(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return exposition(summed(one.figures for one in (self.snapshot(), *self._others())))
