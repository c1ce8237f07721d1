"""Which core is whose."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.frozen
class Cores:
    """One core for the server and another for its clients; all for both where there is only one."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def choose(cls) -> "Cores":
        """The last and the first of those that may be used: neighbours can be one real core."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[-1:]), frozenset(usable[:1]))

    @property
    def apart(self) -> bool:
        """Whether the server and its clients do not share a core."""
        return self.server != self.client

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
