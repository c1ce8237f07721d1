"""The numbers of what happens to names on a host, in the order in which it began."""

#: After an unclean end numbers go on so far above the highest that is known: what a crash has lost
#: may have had higher ones, and clients may have been told of them.
GAP = 2**20


class Sequence:
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
