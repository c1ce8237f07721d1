"""One sample's copies, wherever they are."""

from collections.abc import Sequence
from typing import Any, Protocol

from stor.errors import Damaged, NotFound, StorError, Unavailable
from stor.mirror.mirror import Mirror


class Search(Protocol):
    """One tier's copies of one sample, best first, as `stor.content.Copies` wants them."""

    #: What kind of places these are, and how many of them have been asked.
    tier: str
    attempts: int
    #: What is wrong with copies that were found.
    damaged: list[str]

    @property
    def mirror(self) -> Mirror | None:
        """Where the copy was found, if that is a mirror."""

    @property
    def consulted(self) -> bool:
        """Whether the tier has said anything: its places, or what is known of all of them."""

    @property
    def unanswered(self) -> str | None:
        """Why the tier could hold the sample all the same, `None` when it has answered."""

    async def look(self) -> Any | None:
        """The next copy by its name, with `size` and `modified_ns`. Never raises."""

    async def next(self) -> Any | None:
        """The next copy as a `stor.content.Source`. Never raises."""

    async def twin(self, source: Any) -> Any | None:
        """Another copy that is kept beside `source`."""

    def mark_corrupt(self, source: Any, reason: str) -> None:
        """The copy is bad."""

    def suspect(self, source: Any) -> None:
        """The copy could not be read."""

    def close(self) -> None:
        """No more are wanted."""


class Lookup:
    """One sample's copies in all tiers, in the order of the tiers. Has the face of a `Search`."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self._searches = searches
        self._givers: dict[Any, Search] = {}

    @property
    def attempts(self) -> int:
        """How many places were asked."""
        return sum(search.attempts for search in self._searches)

    @property
    def mirror(self) -> Mirror | None:
        """The mirror that the copy was found on, if it was found on one."""
        return next((search.mirror for search in self._searches if search.mirror), None)

    async def look(self) -> Any | None:
        """See `Search.look`."""
        for search in self._searches:
            found = await search.look()
            if found is not None:
                return found
        return None

    async def next(self) -> Any | None:
        """See `Search.next`."""
        for search in self._searches:
            source = await search.next()
            if source is not None:
                self._givers[source] = search
                return source
        return None

    async def twin(self, source: Any) -> Any | None:
        """See `Search.twin`."""
        search = self._givers[source]
        twin = await search.twin(source)
        if twin is not None:
            self._givers[twin] = search
        return twin

    def mark_corrupt(self, source: Any, reason: str) -> None:
        """See `Search.mark_corrupt`."""
        self._givers[source].mark_corrupt(source, reason)

    def suspect(self, source: Any) -> None:
        """See `Search.suspect`."""
        self._givers[source].suspect(source)

    def close(self) -> None:
        """See `Search.close`."""
        for search in self._searches:
            search.close()

    def missing(self) -> StorError:
        """Why there is no copy to give."""
        unanswered = [search.unanswered for search in self._searches if search.unanswered]
        if unanswered:
            reasons = "; ".join(unanswered)
            return Unavailable(f"a storage that could hold the sample did not answer: {reasons}")
        damaged = [reason for search in self._searches for reason in search.damaged]
        if damaged:
            return Damaged(f"damaged: no good copy is left ({'; '.join(damaged)})")
        return NotFound([search.tier for search in self._searches if search.consulted])
