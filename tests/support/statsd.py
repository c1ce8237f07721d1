"""A network without one: where datagrams go in tests."""

import socket

from stor.config import Statsite
from stor.statsd import Statsd
from tests.support.pools import InlinePool

ADDRESS = (socket.AF_INET, ("192.0.2.7", 8125))


class Network:
    """Names and addresses of a test. A name is resolved to `address`, or fails with it."""

    def __init__(self, address=ADDRESS):
        self.address = address
        self.asked = []
        self.sent = []
        self.open = 0
        #: What `sendto` raises.
        self.fault = None

    def statsd(self, clock, worker=None, sample_rate=1.0, prefix="stor.dev"):
        statsite = Statsite("statsd.example", 8125, prefix, sample_rate)
        return Statsd(
            statsite,
            clock,
            worker or InlinePool(),
            resolve=self.resolve,
            open_socket=self.open_socket,
        )

    def resolve(self, host, port):
        self.asked.append((host, port))
        if isinstance(self.address, Exception):
            raise self.address
        return self.address

    def open_socket(self, family):
        assert family == self.address[0]
        self.open += 1
        return self

    def sendto(self, data, address):
        assert self.open == 1
        if self.fault is not None:
            raise self.fault
        self.sent.append((data, address))
        return len(data)

    def close(self):
        self.open -= 1

    @property
    def datagrams(self):
        return [data for data, _ in self.sent]
