"""What processes share: numbers on a board, figures, messages, and places that are kept filled."""

import os
import socket

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from stor.digest import Digest
from stor.disk.disk import Room
from stor.errors import NotFound, Unavailable
from stor.mirror.health import Faults, State
from stor.mirror.repair import Absent
from stor.processes.board import SUBJECTS, Board, BoardFull, Subjects
from stor.processes.crew import (
    LONGEST_PAUSE_SECONDS,
    PING_INTERVAL_SECONDS,
    PING_SECONDS,
    PROVEN_SECONDS,
    Crew,
)
from stor.processes.figures import Collected, families, lasting, summed
from stor.processes.shared import ReportedHealth, SharedCount, SharedHealth, SharedReserved
from stor.processes.turns import PATIENCE_SECONDS, ProcessTurns
from stor.processes.wire import Wire
from stor.prometheus import Figures
from tests.conformance import result_of
from tests.support.http import no_bug_logged

PROCESSES = 3


@pytest.fixture
def boards():
    """The board as each process has it."""
    fd = Board.make(PROCESSES)
    yield [Board(fd, process, PROCESSES) for process in range(PROCESSES)]
    os.close(fd)


class TestBoard:
    def test_each_writes_its_own_and_all_read_everybodys(self, boards):
        counts = [SharedCount(board, 5) for board in boards]
        for n, count in enumerate(counts):
            count.mine += n + 1
        assert [count.mine for count in counts] == [1, 2, 3]
        assert {count.total for count in counts} == {6}
        boards[0].wipe(2, [5])
        assert {count.total for count in counts} == {3}

    def test_reservations_add_up(self, boards):
        reserved = [SharedReserved(board, 7) for board in boards]
        reserved[0].add(1000, 1)
        reserved[1].add(50, 2)
        reserved[0].add(-400, -1)
        assert {one.total() for one in reserved} == {(650, 2)}

    @given(st.lists(st.tuples(st.integers(0, PROCESSES - 1), st.integers(1, 50)), max_size=20))
    def test_what_was_measured_last_counts_for_all(self, measured):
        fd = Board.make(PROCESSES)
        try:
            healths = [
                SharedHealth(lambda: 0.0, writable=True, board=Board(fd, n, PROCESSES), place=1)
                for n in range(PROCESSES)
            ]
            for process, number in measured:
                healths[process].learn(Room(number * 10, number, 512, number, 10_000))
            newest = max((number for _, number in measured), default=0)
            expected = Room(newest * 10, newest, 512 if newest else 4096, newest)
            for health in healths:
                room = health.room
                assert (room.number, room.free_bytes, room.free_inodes, room.block_bytes) == (
                    expected.number,
                    expected.free_bytes,
                    expected.free_inodes,
                    expected.block_bytes,
                )
        finally:
            os.close(fd)

    def test_a_subject_keeps_its_place(self):
        subjects = Subjects()
        subjects.name(["a", "b"])
        subjects.name(["b", "c", "a"])
        assert subjects.places == {"a": 0, "b": 1, "c": 2}
        with pytest.raises(BoardFull, match=str(SUBJECTS)):
            subjects.name(map(str, range(SUBJECTS + 1)))


class TestReportedHealth:
    def test_what_happens_counts_here_and_is_told(self, boards):
        told = []
        health = ReportedHealth(
            lambda: 0.0,
            writable=True,
            board=boards[1],
            place=0,
            tell=lambda *happened: told.append(happened),
        )
        known = SharedHealth(lambda: 0.0, writable=True, board=boards[0], place=0)
        known.take_over(attrs.evolve(known.picture(), faults=Faults(), device=9, since=1.0))
        health.take_over(known.picture())
        assert (health.state, health.device, health.since) == (State.ONLINE, 9, 1.0)
        health.operation_passed()
        assert told == [], "that all is well is no news"
        for _ in range(3):
            health.operation_failed("EIO")
        assert health.state is State.SUSPECT
        health.operation_passed()
        health.write_refused("read-only")
        health.probe_failed("gone")
        assert told == [
            *[("failed", "EIO", None)] * 3,
            ("passed", ""),
            ("refused", "read-only"),
            ("away", "gone"),
        ]
        health.take_over(known.picture())
        assert health.state is State.ONLINE


class TestFigures:
    def test_several_processes_are_added_up(self):
        parts = [Figures() for _ in range(3)]
        for n, part in enumerate(parts, 1):
            part.requests["sample", "GET", "200"] += n
            part.request_seconds["GET",].observe(0.002 * n)
            part.connections = lambda n=n: n
        text = generate_latest(Collected(summed(families(p.metrics()) for p in parts))).decode()
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found["stor_http_requests_total", "200", "GET", "sample"] == 6
        assert found["stor_http_request_duration_seconds_count", "GET"] == 3
        assert found["stor_http_request_duration_seconds_bucket", "0.0025", "GET"] == 1
        assert found["stor_http_request_duration_seconds_bucket", "+Inf", "GET"] == 3
        assert found["stor_http_connections",] == 6
        (build,) = [value for (name, *_), value in found.items() if name == "stor_build_info"]
        assert build == 1
        # One process says all that three do, in the same order.
        alone = generate_latest(Collected(families(parts[0].metrics()))).decode()
        names = [line for line in alone.splitlines() if line.startswith("# TYPE")]
        assert [line for line in text.splitlines() if line.startswith("# TYPE")] == names

    def test_what_stays_of_a_process_that_has_ended(self):
        part = Figures()
        part.requests["sample", "GET", "200"] += 5
        part.connections = lambda: 7
        kept = {name: kind for name, _, kind, _ in lasting(families(part.metrics()))}
        assert kept["stor_http_requests"] == "counter"
        assert kept["stor_http_request_duration_seconds"] == "histogram"
        assert "stor_http_connections" not in kept


class TestTurns:
    @pytest.fixture
    def turns(self):
        clock = Clock()
        fd = ProcessTurns.make(PROCESSES)
        yield [ProcessTurns(fd, process, PROCESSES, clock) for process in range(PROCESSES)]
        os.close(fd)

    def test_a_process_sees_the_changes_of_others_and_not_its_own(self, turns):
        digest = Digest.of(b"")
        before = [one.seen(digest) for one in turns]
        result_of(Deferred.fromCoroutine(turns[1].take(digest)))
        turns[1].end(digest, [])
        after = [one.seen(digest) for one in turns]
        assert [a - b for a, b in zip(after, before, strict=True)] == [1, 0, 1]

    def test_a_turn_lasts_until_what_was_changed_is_over(self, turns):
        class Late:
            def __init__(self):
                self.waiter = Deferred()

            async def over(self):
                await self.waiter

        digest, late = Digest.of(b""), Late()
        result_of(Deferred.fromCoroutine(turns[0].take(digest)))
        turns[0].end(digest, [late])
        assert turns[1].seen(digest) == 0
        late.waiter.callback(None)
        assert turns[1].seen(digest) == 1

    def test_one_process_may_be_in_its_turn_more_than_once(self, turns):
        digest = Digest.of(b"")
        for _ in range(2):
            result_of(Deferred.fromCoroutine(turns[0].take(digest)))
        turns[0].give_back(digest)
        turns[0].give_back(digest)
        assert not turns[0]._held

    def test_patience_is_shorter_than_a_client_waits(self):
        assert PATIENCE_SECONDS <= 30


class Pair:
    """Two ends of a wire, and what goes over it when the test says so."""

    def __init__(self, messages):
        self.clock = Clock()
        self.lost = []
        self.here = Wire({}, self.clock, lambda: self.lost.append("here"))
        self.there = Wire(messages, self.clock, lambda: self.lost.append("there"))
        self.transports = [StringTransport(), StringTransport()]
        self.here.makeConnection(self.transports[0])
        self.there.makeConnection(self.transports[1])

    def carry(self):
        for transport, end in zip(self.transports, (self.there, self.here), strict=True):
            data = transport.value()
            transport.clear()
            for n in range(0, len(data), 7):
                end.dataReceived(data[n : n + 7])


class TestWire:
    def test_replies_come_to_who_asked(self):
        pair = Pair({"add": lambda a, b: a + b, "later": lambda waiter: waiters[waiter]})
        waiters = [Deferred(), Deferred()]
        asked = [pair.here.ask(5, "later", n) for n in range(2)]
        added = pair.here.ask(5, "add", [1], [2])
        pair.carry()
        waiters[1].callback("second")
        waiters[0].callback("first")
        pair.carry()
        assert result_of(added) == [1, 2]
        assert [result_of(one) for one in asked] == ["first", "second"]

    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (Absent("no"), Absent),
            (Unavailable("later"), Unavailable),
            (NotFound(), Unavailable),
        ],
    )
    def test_a_failure_comes_to_who_asked(self, raised, expected):
        def fails():
            raise raised

        pair = Pair({"fails": fails})
        asked = pair.here.ask(5, "fails")
        pair.carry()
        with pytest.raises(expected, match=str(raised)) as found:
            result_of(asked)
        assert type(found.value) is expected

    def test_who_gets_no_answer_is_told_in_time(self):
        pair = Pair({"never": Deferred})
        asked = pair.here.ask(5, "never")
        pair.carry()
        pair.clock.advance(5)
        with pytest.raises(Exception, match="not done within 5 s"):
            result_of(asked)

    def test_an_end_is_told_to_all_who_wait_and_all_who_ask_then(self):
        pair = Pair({"never": Deferred})
        asked = pair.here.ask(5, "never")
        pair.here.connectionLost()
        for one in (asked, pair.here.ask(5, "never")):
            with pytest.raises(Unavailable, match="has ended"):
                result_of(one)
        pair.here.tell("never")
        assert pair.lost == ["here"]


class Reactor(Clock):
    """A clock that has connections made of sockets, and keeps them."""

    def __init__(self):
        super().__init__()
        self.wires = []

    def adoptStreamConnection(self, descriptor, family, factory):
        wire = factory.buildProtocol(None)
        wire.makeConnection(_Descriptors())
        self.wires.append(wire)


class _Descriptors(StringTransport):
    """Takes descriptors, too."""

    def sendFileDescriptor(self, descriptor):
        """Nobody is there to receive it."""


class FakeForks:
    """Makes workers of which only the socket is real."""

    def __init__(self):
        self.forked, self.killed, self.theirs = [], [], []
        self.stopped = False

    def fork(self, process):
        self.forked.append(process)
        ours, theirs = socket.socketpair()
        self.theirs.append(theirs)
        return ours

    def kill(self, process):
        self.killed.append(process)

    def stop(self):
        self.stopped = True
        for sock in self.theirs:
            sock.close()


class TestCrew:
    @pytest.fixture
    def forks(self):
        forks = FakeForks()
        yield forks
        forks.stop()

    @pytest.fixture
    def crew(self, forks):
        self.reactor, self.ended = Reactor(), []
        crew = Crew(2, forks, self.reactor, {}, lambda hand: self.ended.append(hand.number))
        self.started = Deferred.fromCoroutine(crew.start(lambda: ("the order", [])))
        return crew

    def answer(self, wire, reply=None):
        """What a worker that does well says to all that it was asked."""
        for number in list(wire._waiting):
            wire._waiting.pop(number).callback(reply)

    def test_a_worker_that_ends_is_replaced_after_growing_pauses(self, crew, forks):
        for wire in self.reactor.wires:
            self.answer(wire)
        result_of(self.started)
        assert forks.forked == [1, 2]
        pauses = []
        with no_bug_logged():
            for _ in range(14):
                wire = self.reactor.wires[-1]
                wire.connectionLost()
                before, count = self.reactor.seconds(), len(forks.forked)
                while len(forks.forked) == count:
                    self.reactor.advance(0.1)
                pauses.append(round(self.reactor.seconds() - before, 3))
        assert pauses[0] <= 0.1, "the first at once"
        assert pauses == sorted(pauses)
        assert max(pauses) <= LONGEST_PAUSE_SECONDS + 0.1
        assert pauses[-1] >= LONGEST_PAUSE_SECONDS - 0.1
        self.answer(self.reactor.wires[-1])
        self.reactor.advance(PROVEN_SECONDS)
        self.reactor.wires[-1].connectionLost()
        count = len(forks.forked)
        self.reactor.advance(0)
        assert len(forks.forked) == count + 1, "one that has proven itself, at once"

    def test_a_worker_that_hangs_is_ended(self, crew, forks):
        for wire in self.reactor.wires:
            self.answer(wire)
        steps = int((PING_INTERVAL_SECONDS + PING_SECONDS) / 0.5) + 2
        for _ in range(steps):
            self.answer(self.reactor.wires[0])
            self.reactor.advance(0.5)
        assert forks.killed == [2]

    def test_nobody_is_replaced_in_the_end(self, crew, forks):
        for wire in self.reactor.wires:
            self.answer(wire)
        closed = []

        async def close():
            closed.append(list(crew.missing))

        stopped = Deferred.fromCoroutine(crew.stop(close, 60.0))
        assert closed == []
        for wire in self.reactor.wires:
            self.answer(wire)
        assert closed == [[]], "the sockets are closed when no worker takes connections any more"
        assert not stopped.called
        for wire in self.reactor.wires:
            wire.connectionLost()
        result_of(stopped)
        assert forks.stopped
        self.reactor.advance(100)
        assert forks.forked == [1, 2]

    def test_the_end_does_not_wait_for_ever(self, crew, forks):
        for wire in self.reactor.wires:
            self.answer(wire)

        async def close():
            """Nothing to close."""

        stopped = Deferred.fromCoroutine(crew.stop(close, 60.0))
        self.reactor.wires[0].connectionLost()
        self.answer(self.reactor.wires[1])
        self.reactor.advance(59.9)
        assert not stopped.called
        self.reactor.advance(0.1)
        result_of(stopped)

    def test_a_worker_that_does_not_say_what_it_knows_holds_up_nobody(self, crew):
        for wire in self.reactor.wires:
            self.answer(wire)
        gathered = crew.gather()
        self.answer(self.reactor.wires[0], "no snapshot")
        self.reactor.advance(10)
        assert gathered.called
        assert crew.snapshots == []
