"""Log lines: for a terminal, for the journal, and for programs."""

import json
import os
import select
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsText,
    formatEvent,
)
from zope.interface import implementer

#: How long a line may wait for others.
FLUSH_SECONDS = 0.1

#: What most events are. To look it up in its class takes long.
INFO = LogLevel.info

#: sd-daemon(3): the priority that a line begins with.
_PRIORITIES = {
    LogLevel.debug: 7,
    INFO: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}

#: What a line for programs has beside its text, where an event has it.
_FIELDS = (
    *("peer", "method", "path", "status", "sent_bytes", "received_bytes", "milliseconds"),
    *("outcome", "source", "root", "digest", "error"),
)


@implementer(ILogObserver)
class LineObserver:
    """Writes each event to a stream as one line, a traceback as several in the journal.

    What is no warning may wait here for a moment: a line a request is not worth a system call
    each. Lines are written whole, no more at once than a pipe takes in one piece (pipe(7),
    PIPE_BUF): other processes may write to the same one.
    """

    def __init__(
        self,
        stream: TextIO,
        line_of: Callable[[LogEvent], str],
        call_later: Callable[[float, Callable[[], object]], object] | None = None,
    ) -> None:
        """`call_later` is the reactor's; without it nothing waits."""
        self._stream = stream
        self._line_of = line_of
        self._call_later = call_later
        self._flushes = False
        self._waiting: list[str] = []
        self._size = 0
        self._plain = line_of is journal_line
        self._observes = False

    def __call__(self, event: LogEvent) -> None:
        """See `twisted.logger.ILogObserver`."""
        self._observes = True
        line = self._line_of(event)
        if line:
            self._write(line, urgent=event.get("log_level") is not INFO)

    def say(self, text: str) -> bool:
        """Write an event of level info that is this text alone, if that is what a line has of it.

        `False`, and nothing is written, when lines have more of an event, or when twistd was told
        to log elsewhere and no event ever came here: then the event has to be made.
        """
        says = self._plain and self._observes
        if says:
            self._write(_prefixed(text, _PRIORITIES[INFO]), urgent=False)
        return says

    def _write(self, lines: str, *, urgent: bool) -> None:
        if self._size + len(lines) > select.PIPE_BUF:
            self._flush()
        self._waiting.append(lines)
        self._size += len(lines)
        if urgent or self._call_later is None:
            self._flush()
        elif not self._flushes:
            self._flushes = True
            self._call_later(FLUSH_SECONDS, self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._flushes = False
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._stream.write("".join(self._waiting))
            self._stream.flush()
            self._waiting.clear()
            self._size = 0


def observer_for(
    log_format: str | None,
    environment: Mapping[str, str],
    stream: TextIO,
    call_later: Callable[[float, Callable[[], object]], object] | None = None,
) -> LineObserver | None:
    """The observer for a configured format, or for the journal when `stream` goes there.

    `None` stands for what the command line of twistd says.
    """
    if log_format is None and _is_journal(environment, stream):
        log_format = "journal"
    lines = {"journal": journal_line, "json": json_line}.get(log_format or "text")
    return None if lines is None else LineObserver(stream, lines, call_later)


def journal_line(event: LogEvent) -> str:
    """The event with the prefix that the journal takes its priority from."""
    return _prefixed(_text(event), _PRIORITIES.get(event.get("log_level", INFO), 6))


def json_line(event: LogEvent) -> str:
    """The event as one JSON object."""
    now = datetime.fromtimestamp(event["log_time"], UTC)
    found: dict[str, Any] = {
        "time": now.isoformat(timespec="milliseconds"),
        "level": event.get("log_level", INFO).name,
        "logger": event.get("log_namespace", ""),
        "message": _text(event),
    }
    found |= {name: event[name] for name in _FIELDS if name in event}
    return json.dumps(found, default=str) + "\n"


def _prefixed(text: str, priority: int) -> str:
    return "".join([f"<{priority}>{line}\n" for line in text.splitlines()])


def _text(event: LogEvent) -> str:
    if "log_failure" in event:
        return eventAsText(event, includeTimestamp=False, includeSystem=False)
    return formatEvent(event)


def _is_journal(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Whether `stream` is connected to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
