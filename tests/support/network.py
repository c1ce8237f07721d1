"""An in-memory connection to a real Site: half-close, abort and back-pressure as TCP has them."""

import re

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

#: The client's.
ADDRESS = "192.0.2.1"


@attrs.frozen
class Response:
    """A response as a client sees it; `headers` has lower-case names."""

    status: int
    headers: dict
    body: bytes
    complete: bool = True

    @property
    def text(self):
        return self.body.decode()


@implementer(ITCPTransport, IPushProducer)
class ServerTransport:
    """The server's end. What it writes waits in `outgoing` until the client takes it."""

    BUFFER_BYTES = 65536

    def __init__(self, connection):
        self._connection = connection
        self.outgoing = bytearray()
        self.producer = None
        self.producerPaused = False
        self.reading = True
        self.connected = True
        self.disconnecting = False
        self.write_closed = False

    def write(self, data):
        if self._connection.closed or self.write_closed or self.disconnecting:
            return
        self.outgoing += data
        if self.producer is not None and len(self.outgoing) > self.BUFFER_BYTES:
            self.producerPaused = True
            self.producer.pauseProducing()

    def writeSequence(self, parts):
        self.write(b"".join(parts))

    def startWriting(self):
        """Always so."""

    # What Twisted's own transports call that.

    @property
    def dataBuffer(self):
        return self.outgoing

    _tempDataLen = 0

    def registerProducer(self, producer, streaming):
        self.producer = producer

    def unregisterProducer(self):
        self.producer = None

    def loseConnection(self):
        self.disconnecting = True

    def loseWriteConnection(self):
        self.write_closed = True

    def abortConnection(self):
        self._connection.aborted = True
        self.connected = False
        self.outgoing.clear()

    def pauseProducing(self):
        self.reading = False

    def resumeProducing(self):
        self.reading = True

    def stopProducing(self):
        self.loseConnection()

    def getPeer(self):
        return IPv4Address("TCP", ADDRESS, 54321)

    def getHost(self):
        return IPv4Address("TCP", "192.0.2.2", 8080)

    def setTcpNoDelay(self, enabled):
        """Always so."""

    def setTcpKeepAlive(self, enabled):
        """Never needed."""


class Connection:
    """A client's connection. `settle` moves bytes and time until nothing moves any more."""

    def __init__(self, site, clock):
        self._clock = clock
        self._incoming = bytearray()
        self.received = bytearray()
        self.closed = False
        self.aborted = False
        self.taking = True
        self.transport = ServerTransport(self)
        self.channel = site.buildProtocol(self.transport.getPeer())
        self.channel.makeConnection(self.transport)

    def send(self, data):
        """Send bytes; they wait while the server does not read."""
        self._incoming += data
        self.settle()

    def stop_taking(self):
        """Read nothing any more."""
        self.taking = False

    def take(self, limit=None):
        """Read up to `limit` bytes of what the server has written, also after `stop_taking`."""
        self._take(limit)
        self.settle()

    def finish_sending(self):
        """Say that nothing more will be sent, and go on reading."""
        self.channel.readConnectionLost()
        self.settle()

    def close(self):
        """Disconnect, as a client does that goes away."""
        self._end(ConnectionDone())

    def wait(self, seconds):
        """Let time pass."""
        self._clock.advance(seconds)
        self.settle()

    def settle(self):
        moved = True
        while moved:
            self._clock.advance(0)
            moved = False
            if self.aborted and not self.closed:
                self._end(ConnectionAborted())
                return
            if self._incoming and self.transport.reading and not self.closed:
                data = bytes(self._incoming[:65536])
                del self._incoming[:65536]
                self.channel.dataReceived(data)
                moved = True
            emptied = self.transport.producerPaused and not self.transport.outgoing
            if emptied or (self.taking and self.transport.outgoing):
                self._take(None)
                moved = True
            if self.transport.disconnecting and not self.transport.outgoing and not self.closed:
                self._end(ConnectionDone())

    @property
    def unread(self):
        """How many bytes the server has not read yet."""
        return len(self._incoming)

    def responses(self, methods=("GET",) * 1000):
        """All responses so far, but for interim ones; `methods` are those of the requests."""
        found, rest = [], bytes(self.received)
        methods = iter(methods)
        while rest:
            head, separator, rest = rest.partition(b"\r\n\r\n")
            assert separator, f"no end of headers in {head!r}"
            status_line, *lines = head.decode("latin-1").split("\r\n")
            status = int(re.fullmatch(r"HTTP/1\.[01] (\d{3}) .*", status_line)[1])
            if status in (100, 104):
                continue
            headers = {}
            for line in lines:
                name, _, value = line.partition(": ")
                assert name.lower() not in headers, f"{name} is there twice"
                headers[name.lower()] = value
            method = next(methods)
            if "transfer-encoding" in headers:
                kind = headers["content-type"]
                assert kind != "application/octet-stream", "no sample is sent chunked"
                body, complete, rest = _chunks(b"" if method == "HEAD" else rest)
                found.append(Response(status, headers, body, complete))
                continue
            if method == "HEAD" and "content-length" not in headers:
                found.append(Response(status, headers, b""))
                continue
            length = (
                0 if method == "HEAD" or status in (204, 304) else int(headers["content-length"])
            )
            found.append(Response(status, headers, rest[:length], len(rest) >= length))
            rest = rest[length:]
        return found

    @property
    def informed(self):
        """The headers of each 104 that was sent."""
        heads = re.findall(rb"HTTP/1\.1 104 [^\r]*\r\n(.*?)\r\n\r\n", self.received, re.S)
        return [dict(line.split(": ") for line in one.decode().split("\r\n")) for one in heads]

    @property
    def continued(self):
        """Whether 100 Continue was sent."""
        return b"HTTP/1.1 100 Continue\r\n\r\n" in self.received

    def _take(self, limit):
        taken = bytes(self.transport.outgoing[:limit])
        del self.transport.outgoing[: len(taken)]
        self.received += taken
        transport = self.transport
        if not transport.outgoing and transport.producerPaused:
            transport.producerPaused = False
            if transport.producer is not None:
                transport.producer.resumeProducing()

    def _end(self, reason):
        if not self.closed:
            self.closed = True
            self.transport.connected = False
            if self.transport.producer is not None:
                self.transport.producer.stopProducing()
            self.channel.connectionLost(Failure(reason))


def _chunks(data):
    """A body from its chunks, whether it is whole, and what comes after it (RFC 9112, 7.1)."""
    body = b""
    while True:
        size, separator, rest = data.partition(b"\r\n")
        count = int(size, 16) if separator else 0
        if not separator or len(rest) < count + 2:
            return body + rest[:count], False, b""
        body, data = body + rest[:count], rest[count + 2 :]
        if count == 0:
            return body, True, data
