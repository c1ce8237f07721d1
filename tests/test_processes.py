"""What processes share and say to each other, and how a parent keeps their places filled."""

import os
import re
import signal
import socket
import time

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from stor.config import Config, ConfigError
from stor.gauges import ConnectionGauges
from stor.http.access import PerSecond
from stor.http.page import Moment
from stor.http.status import Snapshot
from stor.processes import child, parent
from stor.processes.handover import MESSAGE_BYTES, Line, pair
from stor.processes.memory import FRESH_SECONDS, Memory, make_memory
from stor.processes.parent import (
    CHECK_SECONDS,
    HANGS_SECONDS,
    LONGEST_PAUSE_SECONDS,
    PROVEN_SECONDS,
    Parent,
)
from stor.prometheus import Figures, exposition, lasting, summed
from stor.server import DRAIN_SECONDS
from stor.shared import Count, Number, Record
from tests.conformance import result_of

PROCESSES = 3

VALUES = st.lists(st.binary(max_size=60), min_size=1, max_size=6)


# Memory that is shared.


@given(VALUES, st.data())
def test_what_is_shared_is_whole_whenever_its_writer_is_killed(values, data):
    """At every byte that a writer may have come to, the latest whole value is read."""
    memory = bytearray(512)
    *before, last = values
    for value in before:
        Record(memoryview(memory)).publish(value)
    old = bytes(memory)
    Record(memoryview(memory)).publish(last)
    changed = [n for n, (a, b) in enumerate(zip(old, memory, strict=True)) if a != b]
    # In any order: what a processor writes is seen in none that is sure.
    written = data.draw(st.sets(st.sampled_from(changed))) if changed else set()
    torn = bytearray(old)
    for n in written:
        torn[n] = memory[n]
    found = Record(memoryview(torn)).read()
    whole = (len(values), last)
    assert found in (whole, (len(before), before[-1]) if before else None)
    if written == set(changed):
        assert found == whole
    # The next writer goes on from there.
    Record(memoryview(torn)).publish(b"next")
    number, value = Record(memoryview(torn)).read()
    assert value == b"next"
    assert number > (found[0] if found else 0)


def test_only_what_is_newer_is_read():
    record = Record(memoryview(bytearray(256)))
    assert record.read() is None
    record.publish(b"first")
    assert record.read(after=0) == (1, b"first")
    assert record.read(after=1) is None
    record.publish(b"")
    assert record.read(after=1) == (2, b"")


def test_what_is_too_large_is_refused_and_changes_nothing():
    record = Record(memoryview(bytearray(256)))
    record.publish(b"first")
    with pytest.raises(ValueError, match="at most"):
        record.publish(bytes(200))
    assert record.read() == (1, b"first")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_each_process_counts_its_own_and_knows_the_total(numbers):
    words = memoryview(bytearray(8 * len(numbers))).cast("q")
    counts = [
        Count([Number(words, n) for n in range(len(numbers))], place)
        for place in range(len(numbers))
    ]
    for count, number in zip(counts, numbers, strict=True):
        count.mine += number
    assert [count.mine for count in counts] == numbers
    assert {count.total for count in counts} == {sum(numbers)}
    assert [count.ahead for count in counts] == [n > min(numbers) for n in numbers]


def test_one_process_counts_alone():
    count = Count()
    count.mine += 2
    assert (count.total, count.ahead) == (2, False)


# Figures.


def counted(requests, connections):
    figures = Figures()
    figures.requests["sample", "GET", "200"] += requests
    figures.request_seconds["GET",].observe(0.002 * requests)
    figures.watch(ConnectionGauges(lambda: connections))
    return figures


def values_of(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_the_figures_of_several_processes_are_added_up():
    parts = [counted(n, n) for n in (1, 2, 3)]
    text = exposition(summed(part.families() for part in parts))
    found = values_of(text)
    assert found["stor_http_requests_total", "200", "GET", "sample"] == 6
    assert found["stor_http_request_duration_seconds_count", "GET"] == 3
    assert found["stor_http_request_duration_seconds_bucket", "0.0025", "GET"] == 1
    assert found["stor_http_request_duration_seconds_bucket", "+Inf", "GET"] == 3
    assert found["stor_http_connections",] == 6
    (build,) = [value for (name, *_), value in found.items() if name == "stor_build_info"]
    assert build == 1
    # One process says all that three do, in the same order.
    alone = exposition(summed([parts[0].families()]))
    names = [line for line in alone.splitlines() if line.startswith(b"# TYPE")]
    assert [line for line in text.splitlines() if line.startswith(b"# TYPE")] == names


def test_of_a_process_that_has_ended_what_it_has_counted_stays():
    kept = {one.name: one.kind for one in lasting(counted(5, 7).families())}
    assert kept["stor_http_requests"] == "counter"
    assert kept["stor_http_request_duration_seconds"] == "histogram"
    assert "stor_http_connections" not in kept


@pytest.fixture
def memory():
    fd = make_memory(PROCESSES)
    yield Memory(fd, PROCESSES)
    os.close(fd)


def test_what_a_process_says_no_more_is_not_what_it_does(memory):
    now = [time.monotonic()]
    stale = Memory(make_memory(PROCESSES), PROCESSES, lambda: now[0])
    assert stale.snapshots() == [None] * PROCESSES
    moment = Moment(3, PerSecond(1, 2, 3, 4))
    stale.publish(1, Snapshot(counted(5, 7).families(), moment))
    _, found, _ = stale.snapshots()
    assert found.moment == moment
    now[0] += FRESH_SECONDS + 1
    _, found, _ = stale.snapshots()
    assert found.moment == Moment()
    assert "stor_http_connections" not in {one.name for one in found.figures}
    assert "stor_http_requests" in {one.name for one in found.figures}


def test_of_a_process_that_has_ended_nobody_counts_connections(memory):
    for n in range(PROCESSES):
        memory.count(n).mine = 10
        memory.serving[n].value = 1
    memory.ended(1)
    assert memory.count(0).total == 20
    assert [number.value for number in memory.serving] == [1, 0, 1]


# Lines.


class Readers:
    """A reactor that only knows who wants to read."""

    def __init__(self):
        self.readers = set()

    def addReader(self, reader):
        self.readers.add(reader)

    def removeReader(self, reader):
        self.readers.discard(reader)


@pytest.fixture
def line():
    """Two ends of a line, what came to the second, and whether its first is lost to it."""
    reactor, heard, lost = Readers(), [], []
    ours, theirs = pair()
    one = Line(ours, reactor, lambda *message: heard.append(message))
    other = Line(theirs, reactor, lambda *message: heard.append(message), lambda: lost.append(1))
    yield one, other, heard, lost
    one.close()
    other.close()


@given(st.sampled_from([0, 1, MESSAGE_BYTES - 100, MESSAGE_BYTES, 500_000, 5_000_000]))
def test_messages_of_any_size_arrive_whole_with_their_descriptors(size):
    ours, theirs = pair()
    heard = []
    one = Line(ours, Readers(), lambda *message: None)
    other = Line(theirs, Readers(), lambda *message: heard.append(message))
    with open(os.devnull, "rb") as nothing:
        assert one.send(bytes(size), [nothing.fileno()] * 2)
    assert other.hear()
    assert not other.hear()
    ((message, descriptors),) = heard
    assert message == bytes(size)
    assert [os.fstat(fd).st_rdev for fd in descriptors] == [os.stat(os.devnull).st_rdev] * 2
    assert [os.get_inheritable(fd) for fd in descriptors] == [False, False]
    for fd in descriptors:
        os.close(fd)
    one.close()
    other.close()


def test_who_does_not_hear_holds_up_nobody(line):
    one, other, heard, _ = line
    sent = 0
    while one.send(b"x" * 1000):
        sent += 1
    assert 50 < sent < 10_000
    while other.hear():
        pass
    assert len(heard) == sent
    assert one.send(b"again")


def test_the_end_of_a_process_is_seen(line):
    one, other, heard, lost = line
    assert one.send("last words")
    one.close()
    assert not one.send("more")
    while other.hear():
        pass
    assert heard == [("last words", [])]
    assert lost == [1]
    assert not other.send("anybody?")


# The parent.


class Started:
    """A process that the parent has started, of which only its line is real."""

    def __init__(self, reactor, protocol, descriptors):
        self.pid = 100_000 + len(reactor.started)
        self.process = protocol.place.process
        self.protocol = protocol
        self._line = socket.socket(fileno=os.dup(descriptors[child.CONTROL_FD]))
        self.orders = []
        self.replies = True
        self.fault = None
        self.alive = True
        protocol.makeConnection(self)

    def work(self, memory):
        """Hear what the parent orders, and do it."""
        heard = []
        line = Line(self._line, Readers(), lambda order, fds: heard.append((order, fds)))
        while self.alive and line.hear():
            ((order, fds),) = heard
            heard.clear()
            for fd in fds:
                os.close(fd)
            self.orders.append(type(order).__name__)
            if self.replies:
                memory.serving[self.process].value = 1
                self.reply(1)

    def reply(self, times):
        """Say that so many orders were obeyed."""
        for _ in range(times):
            Line(self._line, Readers(), lambda *message: None).send(child.Done(self.fault))
            self.protocol._line.hear()

    def end(self, number=signal.SIGKILL):
        self.alive = False
        self._line.close()
        self.protocol.processExited(Failure(ProcessTerminated(signal=number)))


class Reactor(Clock, Readers):
    """A clock that starts processes which are none."""

    def __init__(self):
        Clock.__init__(self)
        Readers.__init__(self)
        self.advance(time.monotonic())
        self.started = []

    def spawnProcess(self, protocol, executable, command, environment, childFDs):
        assert command[1] == "-P", "nothing of the current directory is imported"
        assert not [name for name in environment if name.startswith(("LISTEN_", "NOTIFY_"))]
        self.started.append(Started(self, protocol, childFDs))


class Family:
    """A parent and its children."""

    def __init__(self):
        self.reactor = Reactor()
        self.killed = []
        chosen = Config((("/disk",),), re.compile(""), (), workers=PROCESSES, listen=())
        environment = {"LISTEN_FDS": "1", "NOTIFY_SOCKET": "/x", "HOME": "/"}
        self.parent = Parent(
            self.reactor, chosen, environment, speaks=True, kill=self.killed.append
        )
        self.starting = Deferred.fromCoroutine(self.parent.start())

    @property
    def there(self):
        return [one for one in self.reactor.started if one.alive]

    def process(self, number):
        (found,) = [one for one in self.there if one.process == number]
        return found

    def work(self, only=(0, 1, 2)):
        for _ in range(5):
            for one in self.there:
                if one.process in only:
                    one.work(self.parent._memory)


@pytest.fixture
def family():
    family = Family()
    yield family
    for one in family.there:
        one.end()


def test_the_others_serve_when_the_writer_does(family):
    assert [one.process for one in family.reactor.started] == [0, 1, 2]
    family.work(only=(1, 2))
    assert [one.orders for one in family.there] == [[], [], []]
    family.work()
    assert [one.orders for one in family.there] == [["Serve"]] * 3
    result_of(family.starting)


@pytest.mark.parametrize("number", range(PROCESSES))
def test_a_process_that_ends_is_replaced_after_growing_pauses(family, number):
    family.work()
    pauses = []
    for _ in range(12):
        family.process(number).end()
        before, count = family.reactor.seconds(), len(family.reactor.started)
        assert not family.parent._memory.serving[number].value
        while len(family.reactor.started) == count:
            family.reactor.advance(0.1)
        pauses.append(round(family.reactor.seconds() - before, 3))
    assert pauses[0] <= 0.1, "the first at once"
    assert pauses == sorted(pauses)
    assert LONGEST_PAUSE_SECONDS - 0.1 <= max(pauses) <= LONGEST_PAUSE_SECONDS + 0.1
    family.work()
    family.reactor.advance(PROVEN_SECONDS)
    family.process(number).end()
    count = len(family.reactor.started)
    family.reactor.advance(0)
    assert len(family.reactor.started) == count + 1, "one that has proven itself, at once"
    family.work()
    assert family.process(number).orders == ["Serve"]


def test_a_process_that_hangs_is_ended(family):
    family.work()
    memory = family.parent._memory
    for _ in range(int(HANGS_SECONDS / CHECK_SECONDS) + 2):
        family.reactor.advance(CHECK_SECONDS)
        for n in (0, 2):
            memory.alive[n].value = int(family.reactor.seconds())
    assert set(family.killed) == {family.process(1).pid}


def test_a_process_that_cannot_serve_is_ended(family):
    family.work(only=(0, 1))
    family.process(2).replies = False
    family.work()
    for number in family.parent._memory.alive:
        number.value = int(family.reactor.seconds() + parent.SERVE_SECONDS)
    family.reactor.advance(parent.SERVE_SECONDS)
    assert family.killed == [family.process(2).pid]


def test_what_the_writer_cannot_follow_is_not_in_force(family):
    family.work()
    before = family.parent._memory.config
    family.process(0).fault = "it has no memory left"
    reloading = Deferred.fromCoroutine(family.parent.reload(attrs.evolve(before, read_auth=True)))
    family.work()
    with pytest.raises(ConfigError, match="the writer cannot follow it: it has no memory left"):
        result_of(reloading)
    assert [one.orders for one in family.there] == [["Serve"] * 2, ["Serve"], ["Serve"]]
    assert family.parent._memory.config == before
    family.process(0).end()
    family.reactor.advance(0.1)
    family.work()
    assert family.parent._memory.config == before, "also for the one that takes its place"


def test_a_process_that_serves_only_when_it_is_to_leave_may_finish(family):
    family.work(only=(0,))
    stopped = Deferred.fromCoroutine(family.parent.stop())
    reader = family.process(1)
    reader.replies = False
    reader.work(family.parent._memory)
    assert reader.orders == ["Serve", "Leave"]
    reader.reply(2)
    family.work(only=(0, 2))
    assert family.killed == []
    for number in (1, 2):
        family.process(number).end(0)
    family.work()
    family.process(0).end(0)
    result_of(stopped)


def test_in_the_end_readers_finish_first_and_nobody_is_replaced(family):
    family.work()
    stopped = Deferred.fromCoroutine(family.parent.stop())
    family.work()
    assert [one.orders[1:] for one in family.there] == [["Leave"]] * 3
    family.process(1).end(0)
    family.work()
    assert family.process(0).orders[-1] == "Leave"
    family.process(2).end(0)
    family.work()
    assert family.process(0).orders[-1] == "End", "nobody hands it anything over any more"
    assert not stopped.called
    family.process(0).end(0)
    result_of(stopped)
    family.reactor.advance(100)
    assert len(family.reactor.started) == PROCESSES


def test_the_end_does_not_wait_for_ever(family):
    family.work()
    stopped = Deferred.fromCoroutine(family.parent.stop())
    family.work()
    family.reactor.advance(DRAIN_SECONDS)
    assert family.killed == []
    family.reactor.advance(parent.LAST_SECONDS)
    assert family.killed == [one.pid for one in family.there]
    for one in family.there:
        one.end()
    result_of(stopped)
