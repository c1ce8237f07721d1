"""One line on a terminal that says how far it is."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import attrs

#: How often it is drawn.
_DRAWN_SECONDS = 0.25

#: What the rate is taken from.
_RATE_SECONDS = 10.0

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Terminal(Protocol):
    """Where the line is drawn."""

    def write(self, text: str, /) -> Any:
        """Write text."""

    def flush(self) -> Any:
        """Have it shown."""


@attrs.define
class Total:
    """How many files there are, as far as they are counted; `final` once they all are."""

    files: int = 0
    final: bool = False


class Progress:
    """Draws the line until it is closed. `width` gives the columns of the terminal."""

    def __init__(
        self, terminal: Terminal, reactor: Any, width: Callable[[], int], total: Total
    ) -> None:
        self._terminal = terminal
        self._reactor = reactor
        self._width = width
        self._total = total
        self._files = 0
        self._bytes = 0
        self._begun = reactor.seconds()
        self._past: deque[tuple[float, int, int]] = deque([(self._begun, 0, 0)])
        self._shown = False
        self._next = reactor.callLater(_DRAWN_SECONDS, self._draw)

    def done(self, count: int) -> None:
        """`count` more files are done."""
        self._files += count

    def moved(self, count: int) -> None:
        """`count` more bytes are done."""
        self._bytes += count

    def clear(self) -> None:
        """Make way for a line of text."""
        if self._shown:
            self._shown = False
            self._terminal.write("\r\x1b[K")
            self._terminal.flush()

    def close(self) -> None:
        """Draw no more; the last line stays."""
        if self._next.active():
            self._next.cancel()
        self._show()
        self._terminal.write("\n")
        self._terminal.flush()

    def line(self) -> str:
        """How far it is."""
        total = self._total
        files = f"{self._files}"
        if total.final:
            files += f" of {total.files}"
        parts = [f"{files} files", human(self._bytes)]
        now, (then, files_then, bytes_then) = self._reactor.seconds(), self._past[0]
        seconds = now - then
        if seconds > 0:
            parts.append(f"{human((self._bytes - bytes_then) / seconds)}/s")
            rate = (self._files - files_then) / seconds
            if total.final and rate > 0:
                parts.append(f"{_clock((total.files - self._files) / rate)} left")
        return ", ".join(parts)

    def _draw(self) -> None:
        now = self._reactor.seconds()
        self._past.append((now, self._files, self._bytes))
        while now - self._past[0][0] > _RATE_SECONDS:
            self._past.popleft()
        self._show()
        self._next = self._reactor.callLater(_DRAWN_SECONDS, self._draw)

    def _show(self) -> None:
        self._shown = True
        self._terminal.write(f"\r{self.line()[: max(self._width() - 1, 1)]}\x1b[K")
        self._terminal.flush()


def human(count: float) -> str:
    """A number of bytes, as people read it."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count /= 1000
        unit += 1
    digits = ".0f" if unit == 0 or count >= 99.5 else ".3g"
    return f"{count:{digits}} {_UNITS[unit]}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
