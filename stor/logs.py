"""Log lines: for a terminal, for the journal, and for programs."""

import atexit
import io
import json
import os
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from threading import Condition, Thread
from typing import Any, TextIO

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsText,
    formatEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from zope.interface import implementer

from stor.paths import printable

#: How long a line may wait for others, and how many bytes of them: to wake the thread that writes
#: takes as long as to make some lines.
FLUSH_SECONDS = 0.1
FLUSH_BYTES = 64 * 1024

#: How many bytes of lines wait for whoever reads them; more are dropped.
WAITING_BYTES = 1024 * 1024

#: How long the end of the process waits for the last lines to be read.
LAST_LINES_SECONDS = 1.0

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
_FIELDS = ("root", "digest", "error")

#: Who says when it begins what is of no use to an operator: "Starting factory", "reactor class".
_LIBRARY = ("twisted.", "log_legacy")


class LogStream(io.TextIOBase):
    """A text stream that is written by a thread of its own, so that its reader holds up nobody.

    What does not fit into `limit_bytes` while the reader stands still is dropped and counted, and
    so is all once the reader is gone (EPIPE). Each `write` is written whole, or not at all. When
    the reader goes on, it is told how many lines it has missed. Other processes may write to the
    same pipe: lines stay whole, as long as they are no longer than a pipe takes in one piece
    (pipe(7), PIPE_BUF); a file takes all at once.
    """

    def __init__(
        self, fd: int, notice: Callable[[int], str], limit_bytes: int = WAITING_BYTES
    ) -> None:
        """`fd` stays the caller's; `notice` makes the line that says how many were dropped.

        The thread begins with the first line.
        """
        self._fd = fd
        self._piece_bytes = None if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
        self._notice = notice
        self._told_of_lines = 0
        self._limit_bytes = limit_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = Condition()
        self._thread: Thread | None = None
        #: How many lines were not written.
        self.dropped_lines = 0

    def fileno(self) -> int:
        """The descriptor that is written to."""
        return self._fd

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Take `text`; never waits."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) > self._limit_bytes:
                self._drop(data)
            else:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                self._changed.notify_all()
        # A process that goes into the background loses the threads that it has by then.
        if self._thread is None or not self._thread.is_alive():
            thread = Thread(target=self._run, name="log", daemon=True)
            with suppress(RuntimeError):  # no thread can be started: the next line tries again
                thread.start()
                self._thread = thread
        return len(text)

    def flush(self) -> None:
        """Nothing: who writes to it does not wait."""

    def end(self, seconds: float = LAST_LINES_SECONDS) -> None:
        """Wait until all is written, at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                data = self._waiting[0]
            written = all(map(self._send, _pieces(data, self._piece_bytes)))
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)
                if not written:
                    self._drop(data)
                caught_up = written and not self._waiting
                missed = self.dropped_lines - self._told_of_lines
                self._changed.notify_all()
            if caught_up and missed and self._send(self._notice(missed).encode()):
                self._told_of_lines += missed

    def _send(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody has made it so
                select.select([], [self._fd], [], 1.0)
            except OSError:
                return False
        return True

    def _drop(self, data: bytes) -> None:
        self.dropped_lines += data.count(b"\n")


def take_standard_output(
    log_format: str | None, environment: Mapping[str, str]
) -> LogStream | None:
    """Have all that is printed from here on written by a thread; `None` without standard output.

    What waits at the end of the process has `LAST_LINES_SECONDS` to be written.
    """
    try:
        sys.stdout.flush()
        line_of = line_format(log_format, environment, sys.stdout)
        stream = LogStream(sys.stdout.fileno(), lambda number: line_of(_missed(number)))
    except (OSError, ValueError, AttributeError):
        return None
    sys.stdout = stream
    atexit.register(stream.end)
    return stream


@implementer(ILogObserver)
class LineObserver:
    """Writes each event to a stream as one line, a traceback as several in the journal.

    What is no warning may wait here for a moment: a line a request is not worth a system call
    each. What Twisted says of its own comings and goings is left out.
    """

    def __init__(
        self,
        stream: TextIO,
        line_of: Callable[[LogEvent], str],
        call_later: Callable[[float, Callable[[], object]], object] | None = None,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        """`call_later` is the reactor's; without it nothing waits."""
        self._stream = stream
        self._line_of = line_of
        self._wall_seconds = wall_seconds
        self._second, self._stamp = -1, ""
        #: Whether lines have more of an event than its text.
        self.has_fields = line_of is json_line
        self._call_later = call_later
        self._flushes = False
        self._waiting: list[str] = []
        self._size = 0
        self._observes = False

    def __call__(self, event: LogEvent) -> None:
        """See `twisted.logger.ILogObserver`."""
        self._observes = True
        urgent = event.get("log_level") is not INFO
        if not urgent and event.get("log_namespace", "").startswith(_LIBRARY):
            return
        # The journal and programs can leave them out; a text is read as it is.
        if event.get("log_level") is LogLevel.debug and self._line_of is text_line:
            return
        line = self._line_of(event)
        if line:
            self._write(line, urgent=urgent)

    def say(self, logger: str, text: str, fields: str = "") -> bool:
        """Write what an event of level info would be, without making one, which takes long.

        `text` is one printable line; `fields` are members of a JSON object, with a comma before
        each. `False`, and nothing is written, when twistd was told to log elsewhere and no event
        ever came here: then the event has to be made.
        """
        if not self._observes:
            return False
        if self._line_of is journal_line:
            line = f"<6>{text}\n"
        else:
            now = self._wall_seconds()
            if int(now) != self._second:
                self._second = int(now)
                self._stamp = self._stamp_of(self._second)
            if self.has_fields:
                line = (
                    f'{{"time": "{self._stamp}.{int(now * 1000) % 1000:03d}+00:00", "level": "info"'
                    f', "logger": "{logger}", "message": {quoted(text)}{fields}}}\n'
                )
            else:
                line = f"{self._stamp} [{logger}#info] {text}\n"
        self._write(line, urgent=False)
        return True

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._stream.write("".join(self._waiting))
            self._stream.flush()
            self._waiting.clear()
            self._size = 0

    def _stamp_of(self, second: int) -> str:
        if self.has_fields:
            return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return formatTime(second)

    def _write(self, lines: str, *, urgent: bool) -> None:
        self._waiting.append(lines)
        self._size += len(lines)
        if urgent or self._call_later is None or self._size >= FLUSH_BYTES:
            self.flush()
        elif not self._flushes:
            self._flushes = True
            self._call_later(FLUSH_SECONDS, self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._flushes = False
        self.flush()


def observer_for(
    log_format: str | None,
    environment: Mapping[str, str],
    stream: TextIO,
    call_later: Callable[[float, Callable[[], object]], object] | None = None,
) -> LineObserver:
    """The observer for a configured format, or for the journal when `stream` goes there.

    What waits at the end of the process is written.
    """
    observer = LineObserver(stream, line_format(log_format, environment, stream), call_later)
    atexit.register(observer.flush)
    return observer


def line_format(
    log_format: str | None, environment: Mapping[str, str], stream: TextIO
) -> Callable[[LogEvent], str]:
    """What makes a line of an event."""
    if log_format is None and is_journal(environment, stream):
        log_format = "journal"
    return {"journal": journal_line, "json": json_line}.get(log_format or "text", text_line)


def _pieces(data: bytes, most_bytes: int | None) -> Iterator[bytes]:
    """Whole lines, together at most this much, unless one alone is longer."""
    begin = 0
    while begin < len(data):
        end = len(data)
        if most_bytes is not None and end - begin > most_bytes:
            end = data.rfind(b"\n", begin, begin + most_bytes) + 1
            end = end or data.find(b"\n", begin) + 1 or len(data)
        yield data[begin:end]
        begin = end


def _missed(number: int) -> LogEvent:
    return {
        "log_time": time.time(),
        "log_level": LogLevel.warn,
        "log_namespace": "stor.logs",
        "log_system": "stor.logs",
        "log_format": "{number} log lines were dropped: they were not read in time",
        "number": number,
    }


def text_line(event: LogEvent) -> str:
    """The event as twistd writes it."""
    return formatEventAsClassicLogText(event) or ""


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
    return "".join([f"<{priority}>{line}\n" for line in printable(text).splitlines()])


def _text(event: LogEvent) -> str:
    if "log_failure" in event:
        return eventAsText(event, includeTimestamp=False, includeSystem=False)
    return formatEvent(event)


def is_journal(environment: Mapping[str, str], stream: TextIO | None = None) -> bool:
    """Whether `stream` is connected to the journal (systemd.exec(5), $JOURNAL_STREAM).

    By default standard output.
    """
    try:
        status = os.fstat((stream or sys.stdout).fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
