"""A statsd server on the loopback interface."""

import socket

from stor.config import Statsite
from stor.statsd import Statsd, connect
from tests.support.pools import InlinePool


class Server:
    """Takes datagrams on an address of this host; what is sent arrives at once."""

    def __init__(self, host="127.0.0.1", port=0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024 * 1024)
        self._socket.bind((host, port))
        self._socket.setblocking(False)
        self.address = family, socket.SOCK_DGRAM, 0, "", self._socket.getsockname()
        self.port = self._socket.getsockname()[1]
        self._datagrams = []

    @property
    def datagrams(self):
        """All that came so far, without the empty ones that only ask whether somebody listens."""
        try:
            while True:
                data = self._socket.recv(65536)
                self._datagrams += [data] if data else []
        except BlockingIOError:
            return list(self._datagrams)

    def close(self):
        """Stop listening."""
        self._socket.close()


class Network:
    """Names of a test. A name is resolved to `addresses`, or fails with them."""

    def __init__(self):
        self.server = Server()
        self.addresses = [self.server.address]
        self.asked = []

    def statsd(self, clock, connecting=None, sending=None, sample_rate=1.0, prefix="stor.dev"):
        statsite = Statsite("statsd.example", self.server.port, prefix, sample_rate)
        connecting, sending = connecting or InlinePool(), sending or InlinePool()
        return Statsd(statsite, clock, connecting, sending, self.connect)

    def connect(self, statsite):
        return connect(statsite, self.getaddrinfo)

    def getaddrinfo(self, host, port, **hints):
        self.asked.append((host, port))
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return self.addresses

    @property
    def datagrams(self):
        return self.server.datagrams
