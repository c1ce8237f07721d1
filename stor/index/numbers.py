"""The numbers of what happens to names on a host, and what the records in journals say of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stor.disk.journal import Event, Kind
from stor.disk.staged import Small

#: After an unclean end numbers go on so far above the highest that is known: what a crash has lost
#: may have had higher ones, and clients may have been told of them.
GAP = 2**20


class Numbers:
    """Numbers that were given out, and which of them are still in flight."""

    def __init__(self, highest: int, *, clean: bool) -> None:
        """`highest` is the highest number that any disk knows; `clean`: Stor ended as it should."""
        self._next = highest + 1 if clean else highest + GAP
        self._in_flight: dict[int, None] = {}

    @property
    def next(self) -> int:
        """The number that what begins next has."""
        return self._next

    def exceed(self, number: int) -> None:
        """Go on above `number`: a disk knows it."""
        self._next = max(self._next, number + 1)

    def begin(self) -> int:
        """The number of what begins now; in flight until `end`."""
        number = self._next
        self._next += 1
        self._in_flight[number] = None
        return number

    def end(self, number: int) -> None:
        """The index knows what happened, or nothing did."""
        self._in_flight.pop(number, None)

    @property
    def low(self) -> int:
        """The index knows what happened under all numbers below."""
        return next(iter(self._in_flight), self._next)


class Registration:
    """`begin` before its first record is made; ends once, with `done` or `given_up`."""

    def __init__(
        self,
        numbers: Numbers,
        kind: Kind,
        begun: Callable[[int], None],
        ended: Callable[[Event, bool, int | None], None],
    ) -> None:
        """`begun` is told its number; `ended` also whether disks hold it, and its size if they do.

        The number stays in flight until `ended` has returned.
        """
        self._numbers = numbers
        self._kind = kind
        self._begun = begun
        self._ended = ended
        self._event: Event | None = None
        self._over = False

    @property
    def event(self) -> Event:
        """What its records say. Raises `ValueError` before `begin`."""
        if self._event is None:
            raise ValueError("a record is made before its number is known")
        return self._event

    def begin(self) -> None:
        """Its records are about to be made. Not earlier: numbers that are lower wait for it."""
        if self._event is None:
            low, number = self._numbers.low, self._numbers.begin()
            self._event = Event(number, time.time_ns(), self._kind, low)
            self._begun(number)

    def done(self, size: int = 0) -> None:
        """Every copy has its name, durably. To be called before anybody is told."""
        self.begin()
        self._end(held=True, size=size)

    def given_up(self, *, named: bool, shown_size: int | None = None) -> None:
        """Nothing was stored; `named`: but some disk may show the name all the same.

        With `shown_size` one does show it, which could not take it back: a whole copy of that size.
        """
        self._end(held=named, size=shown_size)

    def _end(self, *, held: bool, size: int | None) -> None:
        if not self._over:
            self._over = True
            if self._event is not None:
                self._ended(self._event, held, size)


def number_all(samples: Sequence[Small], numbers: Numbers) -> None:
    """The records of small samples are about to be made: each gets its event, as a client's."""
    now_ns = time.time_ns()
    for sample in samples:
        low, number = numbers.low, numbers.begin()
        sample.event = Event(number, now_ns, Kind.STORED, low)


@contextmanager
def leaving(numbers: Numbers, kind: Kind) -> Iterator[Event]:
    """What the records of samples say that a mirror holds no longer; in flight until the end."""
    low, number = numbers.low, numbers.begin()
    try:
        yield Event(number, time.time_ns(), kind, low)
    finally:
        numbers.end(number)
