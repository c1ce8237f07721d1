"""What the processes of one Stor share: who serves, how the storages are, what each has counted."""

import pickle
import time
from collections.abc import Callable
from typing import Any

import attrs

from stor.config import Config
from stor.gauges import Reloads
from stor.http.status import Snapshot
from stor.runtime import Storages
from stor.shared import Count, Number, Record, make, mapped

#: The place of the process that writes; those that only read follow.
WRITER = 0

#: What a record takes at most, in two slots. Pages that nobody writes take no memory.
_RECORD_BYTES = 16 * 1024 * 1024

#: How many numbers each process has: whether it serves, its connections, its last sign of life.
_NUMBERS = 3
_WORD_BYTES = 8

#: How long what a process has published counts as current.
FRESH_SECONDS = 5.0


@attrs.frozen
class _Published:
    snapshot: Snapshot
    seconds: float


class Memory:
    """Numbers and records, each written by one process alone."""

    def __init__(
        self, fd: int, processes: int, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        """`fd` is of `make_memory` for this many processes; `seconds` is their common clock."""
        self._seconds = seconds
        memory = mapped(fd)
        words = memory[: _begin(processes)].cast("q")
        good, when, *numbers = [Number(words, n) for n in range(2 + processes * _NUMBERS)]
        #: What the parent says of the configuration.
        self.reloads = Reloads(good, when)
        records = [
            Record(memory[begin : begin + _RECORD_BYTES])
            for begin in range(_begin(processes), len(memory), _RECORD_BYTES)
        ]
        self.serving = numbers[:processes]
        self.connections = numbers[processes : 2 * processes]
        #: When each process has last said that it lives, in seconds of the monotonic clock.
        self.alive = numbers[2 * processes :]
        self._config, self._storages, *self._figures = records

    def count(self, process: int) -> Count:
        """The connections of all processes, as `process` counts them."""
        return Count(self.connections, process)

    def ended(self, process: int) -> None:
        """A process has ended: what it was doing is done."""
        for number in (self.serving, self.connections, self.alive):
            number[process].value = 0

    @property
    def config(self) -> Config:
        """What is in force. Raises `ValueError` when nothing is."""
        found = _load(self._config)
        if not isinstance(found, Config):
            raise ValueError("no configuration has been published")
        return found

    @config.setter
    def config(self, config: Config) -> None:
        self._config.publish(pickle.dumps(config))

    def tell_storages(self, storages: Storages) -> None:
        """How the storages are, as the writer sees them."""
        self._storages.publish(pickle.dumps(storages))

    def storages_after(self, number: int) -> tuple[int, Storages] | None:
        """What was told last, with its number, if that is another one than `number`."""
        found = self._storages.read(after=number)
        return None if found is None else (found[0], pickle.loads(found[1]))  # noqa: S301 - see _load

    def publish(self, process: int, snapshot: Snapshot) -> None:
        """Say what `process` has done, those before it in its place included."""
        self._figures[process].publish(pickle.dumps(_Published(snapshot, self._seconds())))

    def snapshots(self) -> list[Snapshot | None]:
        """What each process has said last; of one that says no more, what it has counted."""
        now = self._seconds()
        return [
            published
            and (
                published.snapshot
                if now - published.seconds < FRESH_SECONDS
                else published.snapshot.lasting
            )
            for published in map(_load, self._figures)
        ]


def make_memory(processes: int) -> int:
    """The descriptor of memory for this many processes."""
    return make(_begin(processes) + (2 + processes) * _RECORD_BYTES)


def _begin(processes: int) -> int:
    """Where the numbers end and the records begin."""
    size = (2 + processes * _NUMBERS) * _WORD_BYTES
    return -(-size // 4096) * 4096


def _load(record: Record) -> Any:
    found = record.read()
    # Safe: whoever can write to this memory is a process of this Stor.
    return None if found is None else pickle.loads(found[1])  # noqa: S301
