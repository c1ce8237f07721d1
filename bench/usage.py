"""What a process uses, with all processes below it."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_FIGURE = re.compile(r"^(Rss|Pss): +([0-9]+) kB$", re.MULTILINE)


@attrs.frozen
class Memory:
    """Bytes in use. What processes share is in `resident` once for each, in `proportional` once."""

    resident: int
    proportional: int


def cpu_seconds(pid: int) -> float:
    """What all have used so far, in user and kernel mode, those that ended included (proc(5))."""
    ticks = 0
    for each in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The second field is a name in parentheses that may hold anything.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_SECOND


def memory(pid: int) -> Memory:
    """What all have in use now (proc(5), smaps_rollup)."""
    totals = {"Rss": 0, "Pss": 0}
    for each in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for name, kib in _FIGURE.findall(Path(f"/proc/{each}/smaps_rollup").read_text()):
                totals[name] += int(kib) * 1024
    return Memory(totals["Rss"], totals["Pss"])


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from tree(int(child))
