"""Numbers that the processes of one Stor share: each writes its own, and reads everybody's."""

import mmap
import os
from collections.abc import Sequence

import attrs

#: Things that numbers are about.
SUBJECTS = 4096

#: Numbers of one subject, of which each kind of subject has its own use.
_NUMBERS = 8

_ROW_BYTES = SUBJECTS * _NUMBERS * 8


class BoardFull(Exception):
    """More subjects than there is room for."""


@attrs.define
class Subjects:
    """Which subject stands where on the board; those that were once named stay.

    The supervisor names them, and tells the workers before they need one.
    """

    places: dict[str, int] = attrs.field(factory=dict)

    def name(self, subjects: Sequence[str]) -> None:
        """Give each a place. Raises `BoardFull`."""
        for subject in subjects:
            if subject not in self.places:
                if len(self.places) >= SUBJECTS:
                    raise BoardFull(f"{SUBJECTS} disks, sets and counts at most")
                self.places[subject] = len(self.places)


class Board:
    """Memory that all processes of a Stor have mapped (memfd_create(2)).

    Every process writes its own rows alone, an aligned word at a time, so that nobody waits for
    anybody. Pages that nobody writes take no memory.
    """

    def __init__(self, fd: int, process: int, processes: int) -> None:
        """`process` is this one's number, from 0 on."""
        self.processes = processes
        self._process = process
        self._words = memoryview(mmap.mmap(fd, processes * _ROW_BYTES)).cast("q")

    @staticmethod
    def make(processes: int) -> int:
        """The descriptor of a new board."""
        fd = os.memfd_create("stor-board", os.MFD_CLOEXEC)
        os.ftruncate(fd, processes * _ROW_BYTES)
        return fd

    def mine(self, place: int) -> memoryview:
        """What this process has written of a subject, to be read and written."""
        return self._row(self._process, place)

    def everybodys(self, place: int) -> list[memoryview]:
        """What each process has written of it."""
        return [self._row(process, place) for process in range(self.processes)]

    def wipe(self, process: int, places: Sequence[int]) -> None:
        """A process has ended: what it has written is true no more."""
        for place in places:
            self._row(process, place)[:] = _NOTHING

    def _row(self, process: int, place: int) -> memoryview:
        begin = (process * SUBJECTS + place) * _NUMBERS
        return self._words[begin : begin + _NUMBERS]


_NOTHING = memoryview(bytes(_NUMBERS * 8)).cast("q")
