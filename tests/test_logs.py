"""Log lines for the journal and for programs."""

import fcntl
import io
import json
import os
import select
import tempfile
from contextlib import suppress

import pytest
from twisted.logger import Logger, LogLevel, formatEvent

from stor.http.access import AccessLog, Served
from stor.logs import (
    FLUSH_BYTES,
    LineObserver,
    LogStream,
    is_journal,
    journal_line,
    json_line,
    line_format,
    text_line,
)

SERVED = Served(
    *("192.0.2.1", "GET", "/x", 206, 10, 0, 0.0125, "cut", "sample", "/mnt/data1"),
    user="bob",
    part="bytes=0-9",
    request_id="5-a",
)


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


def test_details_are_left_out_of_a_text_and_not_of_what_can_be_filtered():
    for line_of, lines in ((text_line, 0), (journal_line, 1), (json_line, 1)):
        assert logged(line_of, lambda log: log.debug("a detail")).count("\n") == lines


def access_line(line_of):
    """The line of a request, from an observer that has seen an event before."""
    stream = io.StringIO()
    observer = LineObserver(stream, line_of, wall_seconds=lambda: 1_800_000_000.25)
    Logger(namespace="stor.test", observer=observer).info("first")
    AccessLog(observer)(SERVED)
    _, line = stream.getvalue().splitlines()
    return line


TEXT = (
    "192.0.2.1 bob GET /x 206 10 B sent, 0 B received, 12.5 ms, cut, /mnt/data1, "
    "range bytes=0-9, id 5-a"
)


def test_a_request_is_one_line():
    assert access_line(journal_line) == f"<6>{TEXT}"
    assert access_line(text_line).endswith(f" [stor.http.access.AccessLog#info] {TEXT}")
    found = json.loads(access_line(json_line))
    assert found == {
        "time": "2027-01-15T08:00:00.250+00:00",
        "level": "info",
        "logger": "stor.http.access.AccessLog",
        "message": "GET /x",
        "peer": "192.0.2.1",
        "user": "bob",
        "method": "GET",
        "path": "/x",
        "status": 206,
        "sent_bytes": 10,
        "received_bytes": 0,
        "milliseconds": 12.5,
        "outcome": "cut",
        "storage": "/mnt/data1",
        "range": "bytes=0-9",
        "request_id": "5-a",
    }


@pytest.mark.parametrize("line_of", [journal_line, text_line, json_line])
def test_the_line_of_a_request_is_as_that_of_an_event(line_of):
    """What is written without an event reads like what is written with one."""
    stream = io.StringIO()
    observer = LineObserver(stream, line_of)
    event = {"log_time": 7.5, "log_level": LogLevel.info, "log_format": "x", "log_namespace": "a.b"}
    observer(event | {"log_system": "a.b#info"})
    observer = LineObserver(stream, line_of, wall_seconds=lambda: 7.5)
    observer(event | {"log_format": ""})
    observer.say("a.b", "x")
    first, *_, last = stream.getvalue().splitlines()
    assert first == last


def test_where_the_log_goes_elsewhere_a_request_is_an_event():
    stream, events = io.StringIO(), []

    class Access(AccessLog):
        log = Logger(namespace="stor.test", observer=events.append)

    Access(LineObserver(stream, journal_line))(SERVED)
    assert [formatEvent(event) for event in events] == [TEXT]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("namespace", ["twisted.scripts._twistd_unix.UnixAppLogger", "log_legacy"])
def test_what_twisted_says_of_itself_is_left_out_unless_it_is_a_warning(namespace):
    def write(log):
        log = Logger(namespace=namespace, observer=log.observer)
        log.info("reactor class: epoll")
        log.warn("trouble")

    assert logged(journal_line, write) == "<4>trouble\n"


def test_the_journal_is_recognised():
    with tempfile.TemporaryFile("w") as stream, tempfile.TemporaryFile("w") as other:
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(environment, stream)
        assert line_format(None, environment, stream) is journal_line
        assert line_format("text", environment, stream) is text_line
        assert not is_journal(environment, other)
        assert not is_journal({}, stream)
        assert not is_journal(environment, io.StringIO())
        assert line_format("json", environment, stream) is json_line


def test_lines_wait_for_others_but_not_behind_a_warning():
    written, due = [], []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)

    later = lambda seconds, call: due.append(call)  # noqa: E731
    observer = LineObserver(Stream(), lambda event: event["line"], later)
    line = "x" * 99 + "\n"
    for _ in range(2 * FLUSH_BYTES // 100):
        observer({"line": line, "log_level": LogLevel.info})
    assert len(written) == 1
    assert len(written[0]) >= FLUSH_BYTES
    (flush,) = due
    flush()
    assert "".join(written) == line * (2 * FLUSH_BYTES // 100)
    observer({"line": "last\n", "log_level": LogLevel.info})
    observer({"line": "urgent\n", "log_level": LogLevel.error})
    assert written[2:] == ["last\nurgent\n"]


def test_a_pipe_gets_whole_lines_in_pieces_that_it_takes_at_once(pipe):
    """Several processes write to one pipe: what is written in one piece is not mixed."""
    os.set_blocking(pipe[0], False)
    # Packets (pipe2(2), O_DIRECT): each read gives what one write has written.
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, os.O_DIRECT)
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1024 * 1024)
    lines = [f"{n} {'x' * (n * 37 % 900)}\n" for n in range(100)]
    stream = LogStream(pipe[1], missed)
    stream.write("".join(lines))
    stream.end(10)
    pieces = []
    with suppress(BlockingIOError):
        while True:
            pieces.append(os.read(pipe[0], 65536).decode())
    assert "".join(pieces) == "".join(lines)
    assert all(piece.endswith("\n") for piece in pieces)
    assert len(pieces) < len(lines) / 3


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
