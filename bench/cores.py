"""Which core is whose."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.frozen
class Cores:
    """Where servers run, and where their clients do."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def one_each(cls) -> "Cores":
        """The last and the first of those that may be used: neighbours can be one real core."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[-1:]), frozenset(usable[:1]))

    @classmethod
    def all_for_both(cls) -> "Cores":
        """Every core that may be used; a server and its clients share them."""
        usable = frozenset(os.sched_getaffinity(0))
        return cls(usable, usable)

    @property
    def title(self) -> str:
        """How many the server has."""
        count = len(self.server)
        return "one core" if count == 1 else f"all {count} cores, shared with the clients"

    @staticmethod
    @contextmanager
    def held(cores: frozenset[int]) -> Iterator[None]:
        """Run on `cores` for a while; a process or thread that begins meanwhile stays there."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
