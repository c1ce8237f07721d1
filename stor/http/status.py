"""What is said of the whole Stor: how the storages are, how busy it is, and every figure."""

from collections.abc import Awaitable
from typing import Protocol

from stor.http.page import Moment
from stor.http.rates import Rates
from stor.http.upload import Uploads
from stor.prometheus import Figures
from stor.store import Status, Store


class Overview(Protocol):
    """Whoever knows it. Each raises `Unavailable` when it is not to be had."""

    def status(self) -> Awaitable[Status]:
        """How the storages are."""

    def moment(self) -> Awaitable[Moment]:
        """What goes on now."""

    def exposition(self) -> Awaitable[bytes]:
        """All figures in the text format of Prometheus."""


class OwnOverview:
    """The whole Stor is this process."""

    def __init__(self, store: Store, uploads: Uploads, rates: Rates, figures: Figures) -> None:
        self._store = store
        self._uploads = uploads
        self._rates = rates
        self._figures = figures

    async def status(self) -> Status:
        """See `Overview.status`."""
        return self._store.status()

    async def moment(self) -> Moment:
        """See `Overview.moment`."""
        return self.moment_now()

    def moment_now(self) -> Moment:
        """What goes on in this process."""
        return Moment(self._uploads.in_progress, self._rates.now())

    async def exposition(self) -> bytes:
        """See `Overview.exposition`."""
        return self._figures.exposition()
