"""The wire to statsd: whatever is at its other end, nobody notices."""

import socket

import pytest
from twisted.internet.task import Clock

from stor.statsd import DATAGRAM_BYTES, FLUSH_SECONDS, LAST_SECONDS, RENEW_SECONDS, RETRY_SECONDS
from tests.support.http import logged_events
from tests.support.metrics import Received
from tests.support.pools import HeldPool
from tests.support.statsd import Network, Server

UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def statsd(network, clock):
    statsd = network.statsd(clock)
    clock.advance(0)
    return statsd


def test_a_line_has_its_prefix_its_kind_and_its_unit(statsd, network, clock):
    statsd.count("a.count")
    statsd.count("a.size", 4096)
    statsd.time("a.time", 0.0125)
    clock.advance(FLUSH_SECONDS)
    lines = b"stor.dev.a.time:12.500000|ms\nstor.dev.a.count:1|c\nstor.dev.a.size:4096|c"
    assert network.datagrams == [lines]
    assert network.asked == [("statsd.example", network.server.port)]


@pytest.mark.parametrize(
    ("prefix", "name"),
    [("stor", b"stor.a"), ("stor.dev.", b"stor.dev.a"), ("", b"a"), ("\ud800é", b"??.a")],
)
def test_any_prefix_that_a_configuration_can_have(network, clock, prefix, name):
    statsd = network.statsd(clock, prefix=prefix)
    clock.advance(0)
    statsd.count("a")
    clock.advance(FLUSH_SECONDS)
    assert network.datagrams == [name + b":1|c"]


def test_lines_wait_for_others_and_travel_together(statsd, network, clock):
    for n in range(1000):
        statsd.count(f"name.{n}.count")
    clock.advance(FLUSH_SECONDS)
    received = Received("stor.dev", network.datagrams)
    assert received.lines == {f"name.{n}.count": 1 for n in range(1000)}
    assert max(map(len, network.datagrams)) <= DATAGRAM_BYTES
    assert min(map(len, network.datagrams[:-1])) > DATAGRAM_BYTES - 40
    clock.advance(10 * FLUSH_SECONDS)
    assert len(Received("stor.dev", network.datagrams).names) == 1000


def test_what_is_counted_meanwhile_is_one_line(statsd, network, clock):
    for n in range(1000):
        statsd.count("a.count")
        statsd.count("a.size", n)
    clock.advance(FLUSH_SECONDS)
    assert network.datagrams == [b"stor.dev.a.count:1000|c\nstor.dev.a.size:499500|c"]
    clock.advance(FLUSH_SECONDS)
    assert len(network.datagrams) == 1


def test_nobody_is_asked_before_the_reactor_runs(network, clock):
    """A process that goes into the background (twistd without -n) loses its threads."""
    connecting = HeldPool()
    network.statsd(clock, connecting)
    assert not connecting.held
    clock.advance(0)
    assert len(connecting.held) == 1


def test_a_line_that_is_longer_than_a_datagram_travels_alone(statsd, network, clock):
    names = ["a", "b" * 2000, "c"]
    for name in names:
        statsd.count(name)
    clock.advance(FLUSH_SECONDS)
    assert [data.split(b":")[0][9:].decode() for data in network.datagrams] == names


def test_an_idle_stor_wakes_for_nothing(statsd, network, clock):
    calls = clock.getDelayedCalls()
    assert [call.getTime() for call in calls] == [RENEW_SECONDS]


def test_the_sample_rate_is_that_of_times_and_counts_are_exact(network, clock):
    statsd = network.statsd(clock, sample_rate=0.1)
    clock.advance(0)
    for _ in range(20_000):
        statsd.count("a.count")
        statsd.time("a.time", 1)
    clock.advance(FLUSH_SECONDS)
    received = Received("stor.dev", network.datagrams)
    assert received.rates == {"0.1", None}
    assert received.totals["a.count"] == 20_000
    # 2000 are expected, with a standard deviation of 42: seven of them.
    assert abs(received.lines["a.time"] - 2000) < 300


def test_a_name_that_cannot_be_resolved_has_no_effect_and_is_logged_once(network, clock):
    known, network.addresses = network.addresses, UNKNOWN
    with logged_events() as events:
        statsd = network.statsd(clock)
        for _ in range(100):
            statsd.count("a")
            statsd.time("a", 1)
            clock.advance(RETRY_SECONDS)
    assert len(network.asked) > 90
    assert network.datagrams == []
    assert [event["log_level"].name for event in events] == ["warn"]
    network.addresses = known
    clock.advance(RETRY_SECONDS)
    statsd.count("b")
    clock.advance(FLUSH_SECONDS)
    assert network.datagrams == [b"stor.dev.b:1|c"]


def test_a_server_that_is_not_there_has_no_effect(statsd, network, clock):
    network.server.close()
    with logged_events() as events:
        for n in range(1000):
            statsd.count(f"a.{n}")
            clock.advance(FLUSH_SECONDS / 10)
    assert not events
    network.server = Server(port=network.server.port)
    statsd.count("b")
    clock.advance(FLUSH_SECONDS)
    assert network.datagrams[-1].endswith(b"stor.dev.b:1|c")


def test_a_name_that_takes_for_ever_holds_up_nothing(network, clock):
    connecting = HeldPool()
    statsd = network.statsd(clock, connecting)
    clock.advance(0)
    for n in range(1000):
        statsd.count(f"a.{n}")
        clock.advance(RENEW_SECONDS)
    assert len(connecting.held) == 1, "it is asked for again and again"
    connecting.release()
    statsd.count("b")
    clock.advance(FLUSH_SECONDS)
    assert network.datagrams == [b"stor.dev.b:1|c"]


def test_a_network_that_takes_nothing_for_a_while_costs_times_and_no_memory(network, clock):
    sending = HeldPool()
    statsd = network.statsd(clock, sending=sending)
    clock.advance(0)
    for _ in range(100):
        statsd.count("a")
        statsd.time("a", 1)
        clock.advance(FLUSH_SECONDS)
    assert len(sending.held) == 1
    for _ in range(2):
        sending.release()
        clock.advance(FLUSH_SECONDS)
    received = Received(
        "stor.dev", [data.replace(b".a:1000", b".t:1000") for data in network.datagrams]
    )
    assert received.totals["a"] == 100
    assert received.lines["t"] == 1


@pytest.mark.parametrize("where", ["127.0.0.1", "127.0.0.2", "::1"])
def test_of_several_addresses_the_one_that_listens_gets_the_lines(network, clock, where):
    """A `localhost` that is ::1 first, and a server on 127.0.0.1 alone, or the other way round."""
    network.server.close()
    server = Server(where, network.server.port)
    network.addresses = [
        (family, socket.SOCK_DGRAM, 0, "", (host, server.port, *rest))
        for family, host, *rest in [
            (socket.AF_INET6, "::1", 0, 0),
            (socket.AF_INET, "127.0.0.2"),
            (socket.AF_INET, "127.0.0.1"),
        ]
    ]
    statsd = network.statsd(clock)
    clock.advance(0)
    statsd.count("a")
    clock.advance(FLUSH_SECONDS)
    assert server.datagrams == [b"stor.dev.a:1|c"]


def test_a_server_that_moves_is_found_again(statsd, network, clock):
    for host in ("127.0.0.2", "::1"):
        # A port is the configuration's, and does not move.
        server = Server(host, network.server.port)
        network.addresses = [server.address]
        clock.advance(RENEW_SECONDS)
        statsd.count("a")
        clock.advance(FLUSH_SECONDS)
        assert len(server.datagrams) == 1
    network.addresses = UNKNOWN
    clock.advance(RENEW_SECONDS)
    statsd.count("a")
    clock.advance(FLUSH_SECONDS)
    assert len(server.datagrams) == 2, "the last address is better than none"
    assert network.datagrams == []


@pytest.mark.parametrize("resolved", [True, False])
def test_the_end_sends_what_waits_and_leaves_nothing(network, clock, resolved):
    connecting = HeldPool()
    statsd = network.statsd(clock, connecting)
    clock.advance(0)
    if resolved:
        connecting.release()
    statsd.count("a")
    statsd.stop()
    connecting.release()
    assert network.datagrams == ([b"stor.dev.a:1|c"] if resolved else [])
    statsd.count("b")  # a request that ends late
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("late", [False, True])
def test_the_end_waits_for_what_is_being_sent_but_not_for_long(network, clock, late):
    sending = HeldPool()
    statsd = network.statsd(clock, sending=sending)
    clock.advance(0)
    statsd.count("a")
    ended = []
    statsd.stop().addCallback(lambda _: ended.append(True))
    assert not ended
    if late:
        clock.advance(LAST_SECONDS)
    else:
        sending.release()
        assert network.datagrams == [b"stor.dev.a:1|c"]
    assert ended
    assert not clock.getDelayedCalls()
