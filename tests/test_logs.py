"""Log lines for the journal and for programs."""

import fcntl
import io
import json
import os
import select
import tempfile
from contextlib import suppress

import pytest
from twisted.logger import Logger, LogLevel

from stor.http.access import AccessLog, Served
from stor.logs import LineObserver, LogStream, journal_line, json_line, observer_for

SERVED = Served("192.0.2.1", "GET", "/x", 206, 10, 0, 0.0125, "cut", "/mnt/data1")


def logged(line_of, write):
    """What `write(log)` leaves in the stream."""
    stream = io.StringIO()
    write(Logger(namespace="stor.test", observer=LineObserver(stream, line_of)))
    return stream.getvalue()


def fail(log):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.failure("while {doing}", doing="testing")


@pytest.mark.parametrize(
    ("level", "prefix"),
    [("debug", 7), ("info", 6), ("warn", 4), ("error", 3), ("critical", 2)],
)
def test_the_journal_learns_the_priority(level, prefix):
    written = logged(journal_line, lambda log: getattr(log, level)("{n} disks", n=3))
    assert written == f"<{prefix}>3 disks\n"


def test_every_line_of_a_traceback_has_its_priority():
    lines = logged(journal_line, fail).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<2>") for line in lines)
    assert any("ValueError: two" in line for line in lines)


def test_a_program_gets_one_object_an_event():
    for write in (fail, lambda log: log.warn("{root} is away", root="/mnt/a", hidden=object())):
        written = logged(json_line, write)
        assert written.count("\n") == 1
        found = json.loads(written)
        assert found["logger"] == "stor.test"
        assert found["time"].endswith("+00:00")
        assert "hidden" not in found
    assert (found["level"], found["message"], found["root"]) == ("warn", "/mnt/a is away", "/mnt/a")


def test_a_request_is_one_line():
    class Access(AccessLog):
        log = None

    def write(log):
        access = Access()
        access.log = log
        access(SERVED)

    assert logged(journal_line, write).count("\n") == 1
    found = json.loads(logged(json_line, write))
    assert (found["status"], found["sent_bytes"], found["milliseconds"]) == (206, 10, 12.5)
    assert (found["outcome"], found["source"]) == ("cut", "/mnt/data1")


def test_a_request_is_the_same_line_without_an_event():
    stream = io.StringIO()
    observer = LineObserver(stream, journal_line)
    log = Logger(namespace="stor.test", observer=observer)
    log.info("{line}", line="first")
    AccessLog(observer.say)(SERVED)
    assert stream.getvalue().splitlines() == [
        "<6>first",
        "<6>192.0.2.1 GET /x 206 10 B sent, 0 B received, 12.5 ms, cut, /mnt/data1",
    ]


def test_what_has_more_than_its_text_or_goes_elsewhere_needs_an_event():
    stream = io.StringIO()
    assert not LineObserver(stream, journal_line).say("twistd logs elsewhere")
    observer = LineObserver(stream, json_line)
    Logger(namespace="stor.test", observer=observer).info("{line}", line="first")
    assert not observer.say("fields are missing")
    assert stream.getvalue().count("\n") == 1


def test_the_journal_is_recognised():
    with tempfile.TemporaryFile("w") as stream, tempfile.TemporaryFile("w") as other:
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert observer_for(None, environment, stream) is not None
        assert observer_for("text", environment, stream) is None
        assert observer_for(None, environment, other) is None
        assert observer_for(None, {}, stream) is None
        assert observer_for(None, environment, io.StringIO()) is None
        assert observer_for("json", {}, other) is not None


def test_lines_are_written_whole_and_no_more_at_once_than_a_pipe_takes():
    """Several processes write to one pipe: what is written in one piece is not mixed."""
    written = []

    class Pipe(io.StringIO):
        def write(self, text):
            written.append(text)

    observer = LineObserver(Pipe(), lambda event: event["line"], lambda seconds, call: None)
    lines = [f"{n} {'x' * (n * 37 % 900)}\n" for n in range(100)]
    for line in lines:
        observer({"line": line, "log_level": LogLevel.info})
    observer({"line": "urgent\n", "log_level": LogLevel.error})
    assert "".join(written) == "".join([*lines, "urgent\n"])
    assert all(text.endswith("\n") and len(text) <= select.PIPE_BUF for text in written)
    assert len(written) < len(lines) / 3


@pytest.fixture
def pipe():
    """A pipe that takes little."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


def missed(number):
    return f"{number} missed\n"


def read_until(fd, end):
    """What comes from a pipe, up to what ends so."""
    text = b""
    while not text.endswith(end):
        text += os.read(fd, 65536)
    return text


def test_a_reader_that_stands_still_holds_up_nobody_and_hears_how_much_it_has_missed(pipe):
    stream = LogStream(pipe[1], missed, limit_bytes=10_000)
    line = "x" * 99 + "\n"
    for _ in range(1000):
        stream.write(line)  # no test ends that waits here
    kept = 1000 - stream.dropped_lines
    assert 100 <= kept <= 100 + 2 * select.PIPE_BUF // 100 + 1
    text = read_until(pipe[0], b"missed\n").decode()
    assert text == line * kept + missed(1000 - kept)
    stream.write("more\n")
    assert read_until(pipe[0], b"more\n") == b"more\n"


def test_a_reader_that_is_gone_costs_its_lines_and_nothing_else(pipe):
    stream = LogStream(pipe[1], missed)
    os.close(pipe[0])
    for _ in range(10):
        stream.write("a line\n")
    stream.end(10)
    assert stream.dropped_lines == 10


def test_the_last_lines_are_waited_for_but_not_for_ever(pipe):
    stream = LogStream(pipe[1], missed)
    stream.write("last\n")
    stream.end(10)
    assert os.read(pipe[0], 100) == b"last\n"
    left: list[bytes] = []
    stream.write("x" * 2 * select.PIPE_BUF)
    stream.end(0)  # nobody reads yet
    # Read it all: a thread that still writes would write into the pipe of whatever test comes next.
    while sum(map(len, left)) < 2 * select.PIPE_BUF:
        left.append(os.read(pipe[0], 65536))


def test_a_stream_that_does_not_wait_is_waited_for(pipe):
    os.set_blocking(pipe[1], False)
    stream = LogStream(pipe[1], missed)
    stream.write("x" * 3 * select.PIPE_BUF + "\n")
    assert len(read_until(pipe[0], b"\n")) == 3 * select.PIPE_BUF + 1
    assert stream.dropped_lines == 0
