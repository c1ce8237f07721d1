"""Locations that hosts share by way of real memcached servers, and servers that fail."""

import os
import time

import pytest
import pytest_twisted
from pymemcache.client.base import Client
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from stor.digest import Digest
from stor.location import REST_SECONDS, WAIT_SECONDS, Locations, Memcached, connected, mirror_place
from stor.threads import Outcomes, ThreadPool
from tests.engines.memcached import Memcached as Server

HERE = mirror_place("host", ["/mnt/a", "/mnt/b"])
VALUE = f"2:{HERE}".encode()


#: How much longer than Stor most tests wait for an answer, as a machine may be busy.
PATIENCE = 100


class PatientClock:
    """The reactor's, with time that a test passes over, and time-outs that are longer."""

    def __init__(self, patience):
        self.passed_over_seconds = 0.0
        self._patience = patience

    def seconds(self):
        return reactor.seconds() + self.passed_over_seconds

    def callLater(self, seconds, function, *args):
        return reactor.callLater(seconds * self._patience, function, *args)


class Host:
    """A process's locations over servers at these addresses."""

    def __init__(self, *addresses, patience=PATIENCE):
        self.clock = PatientClock(patience)
        outcomes = Outcomes(reactor)
        self._workers = [ThreadPool(outcomes, f"memcached {port}", 1) for _, port in addresses]
        servers = [
            Memcached(
                f"{host}:{port}",
                connected(host, port, WAIT_SECONDS * patience),
                worker,
                self.clock,
            )
            for (host, port), worker in zip(addresses, self._workers, strict=True)
        ]
        self.locations = Locations([HERE], servers, self.clock)

    async def remember(self, *digests):
        """And wait until memcached has been told."""
        for digest in digests:
            self.locations.remember(digest, HERE)
        await self.done()

    async def where(self, digest):
        return await self.locations.where(digest)

    async def found(self, digests):
        """Those of `digests` of which a place is known."""
        return [digest for digest in digests if await self.where(digest)]

    async def done(self):
        """Wait until all that is to be said to memcached has been."""
        for worker in self._workers:
            await worker.run(lambda: None)

    async def finds(self, digests):
        """Whether all `digests` are found in the end, some of them only after further rests."""
        for _ in range(10):
            if await self.found(digests) == digests:
                return True
            self.rest()
            await self.done()
        return False

    def rest(self):
        """Let the time pass for which a server is left alone."""
        self.clock.passed_over_seconds += REST_SECONDS


@pytest.fixture
def host():
    """Make a `Host`: `host(address, ..., patience=PATIENCE)`."""
    made = []

    def make(*addresses, **keys):
        made.append(Host(*addresses, **keys))
        return made[-1]

    yield make
    for each in made:
        each.locations.stop()


@pytest.fixture
def servers(tmp_path):
    """Two memcached servers that a test may end."""
    with Server(tmp_path / "first") as first, Server(tmp_path / "second") as second:
        yield first, second


def new_digests(count):
    return [Digest(os.urandom(32)) for _ in range(count)]


@pytest_twisted.ensureDeferred
async def test_what_one_host_remembers_another_finds_and_what_it_forgets_not(memcached, host):
    first, second, third = [host(memcached.address) for _ in range(3)]
    digests = new_digests(100)
    await first.remember(*digests)
    assert await second.found(digests) == digests
    first.locations.forget(digests[0], HERE)
    await first.done()
    assert await third.found(digests) == digests[1:]


@pytest_twisted.ensureDeferred
async def test_a_thousand_lookups_at_once_do_not_look_like_a_server_that_hangs(memcached, host):
    """Not all may get their turn in time."""
    digests = new_digests(1000)
    await host(memcached.address).remember(*digests[::2])
    other = host(memcached.address, patience=1)
    found = await gatherResults([ensureDeferred(other.where(digest)) for digest in digests])
    assert all(a in (b, None) for a, b in zip(found, [HERE, None] * 500, strict=True))
    assert other.locations.hits + other.locations.misses == 1000
    # What is under way still is the end of the rest that a lookup in vain has begun.
    await other.done()
    assert await other.found(digests[::2])


@pytest.mark.parametrize(
    "value", [b"", b"/mnt/a/AA", b"2:elsewhere:/mnt/a", b"\0\r\nEND\r\n", b"x" * 1_000_000]
)
@pytest_twisted.ensureDeferred
async def test_a_value_of_no_meaning_is_as_good_as_none(memcached, host, value):
    (digest,) = new_digests(1)
    client = Client(memcached.address, timeout=5)
    assert client.set(f"stor:2:{digest}", value, noreply=False)
    process = host(memcached.address)
    assert await process.where(digest) is None
    # The next one on the same connection gets its own answer, and the value is put right.
    await process.remember(digest)
    assert client.get(f"stor:2:{digest}") == VALUE
    assert await host(memcached.address).where(digest) == HERE
    client.close()


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_killed_takes_only_its_own_share_along(servers, host):
    first, second = servers
    addresses = first.address, second.address
    digests = new_digests(200)
    await host(*addresses).remember(*digests)
    kept_by_second = await host(second.address).found(digests)
    assert 50 < len(kept_by_second) < 150
    process = host(*addresses)
    with first.killed():
        assert await process.found(digests) == kept_by_second
        await process.remember(*new_digests(100))
    process.rest()
    lost = next(digest for digest in digests if digest not in kept_by_second)
    assert await process.where(lost) is None  # this asks the first server whether it is back
    await process.done()
    await process.remember(lost)
    assert await host(*addresses).where(lost) == HERE


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_costs_50_ms_once(servers, host):
    server, _ = servers
    digests = new_digests(100)
    await host(server.address).remember(*digests)
    process = host(server.address, patience=1)
    assert await process.finds(digests[:1])
    with server.paused():
        begun = time.monotonic()
        assert await process.where(digests[1]) is None
        waited_seconds = time.monotonic() - begun
        begun = time.monotonic()
        assert await process.found(digests) == digests[:1]
        process.rest()
        assert await process.found(digests) == digests[:1]
        seconds_of_200 = time.monotonic() - begun
    # 50 ms each would be 10 s. Five times as much as promised, as a machine may be busy.
    assert waited_seconds < WAIT_SECONDS * 5
    assert seconds_of_200 < WAIT_SECONDS * 5
    assert await process.finds(digests)


@pytest_twisted.ensureDeferred
async def test_a_server_may_be_down_when_stor_starts(servers, host):
    server, _ = servers
    (digest,) = new_digests(1)
    with server.killed():
        process = host(server.address)
        assert await process.where(digest) is None
        await process.remember(digest)
        assert await process.where(digest) == HERE
    process.rest()
    assert await process.where(new_digests(1)[0]) is None
    await process.done()
    (another,) = new_digests(1)
    await process.remember(another)
    assert await host(server.address).where(another) == HERE


@pytest_twisted.ensureDeferred
async def test_a_restarted_server_is_not_left_alone(servers, host):
    server, _ = servers
    process = host(server.address)
    before, after = new_digests(2)
    await process.remember(before)
    with server.killed():
        """Nobody asks meanwhile."""
    assert await host(server.address).where(before) is None
    await process.remember(after)
    assert await host(server.address).where(after) == HERE


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SERVER_ERROR out of memory\r\n",
        b"ERROR\r\n",
        b"VALUE\r\n",
        b"VALUE other 0 5\r\nvalue\r\nEND\r\n",
        b"VALUE other 0 many\r\n",
        b"VALUE other 0 99999999999\r\nvalue",
        b"END",
        b"\xff" * 10_000,
        None,
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_server_that_is_no_memcached_is_nobody(host, answer):
    class Liar(Protocol):
        def dataReceived(self, data):
            if answer is None:
                self.transport.abortConnection()
            else:
                self.transport.write(answer)

    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = await endpoint.listen(Factory.forProtocol(Liar))
    try:
        process = host(("127.0.0.1", port.getHost().port), patience=1)
        digests = new_digests(3)
        for digest in digests:
            assert await process.where(digest) is None
            await process.remember(digest)
            process.locations.forget(digest, HERE)
            process.rest()
        await process.done()
    finally:
        process.locations.stop()
        await maybeDeferred(port.stopListening)
