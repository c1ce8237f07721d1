"""The reactor's turns: each event is handled, whatever another one does."""

import os

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.epollreactor import EPollReactor
from twisted.logger import globalLogPublisher

from stor.reactor import without_contexts


class Reader(FileDescriptor):
    """The reading end of a pipe that has something to be read, and then does something."""

    def __init__(self, reactor, then):
        super().__init__(reactor)
        self.end, write_end = os.pipe()
        os.write(write_end, b"x")
        os.close(write_end)
        self._then = then
        self.read = b""
        self.startReading()

    def fileno(self):
        return self.end

    def doRead(self):
        self.read += os.read(self.end, 100)
        return self._then(self)

    def connectionLost(self, reason):
        os.close(self.end)
        raise ValueError("at the end")


@pytest.fixture
def reactor():
    reactor = EPollReactor()
    reactor.running = True
    without_contexts(reactor)
    yield reactor
    for reader in reactor.removeAll():
        if reader.fileno() >= 0 and isinstance(reader, Reader):
            os.close(reader.end)


def test_one_that_fails_is_logged_and_holds_up_no_other(reactor):
    logged = []
    observer = lambda event: logged.append(event.get("log_failure"))  # noqa: E731
    globalLogPublisher.addObserver(observer)
    try:
        readers = [Reader(reactor, lambda reader: OSError("gone")) for _ in range(3)]
        reactor.doIteration(0)
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [reader.read for reader in readers] == [b"x"] * 3
    assert [type(failure.value) for failure in logged if failure] == [ValueError] * 3


def test_one_that_another_has_stopped_is_not_read(reactor):
    readers = []

    def stop_others(reader):
        for other in readers:
            if other is not reader:
                other.stopReading()

    readers += [Reader(reactor, stop_others) for _ in range(3)]
    reactor.doIteration(0)
    assert sorted(reader.read for reader in readers) == [b"", b"", b"x"]
