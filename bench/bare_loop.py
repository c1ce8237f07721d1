"""What storing costs without a server, and answering without Stor.

Storing: a loop that does the same to the disks. Answering: a protocol of Twisted's that does what
no answer can do without, with neither a parser nor figures, limits or a second copy.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TextIO

from twisted.internet import epollreactor
from twisted.internet.protocol import Factory, Protocol

from bench.samples import Bodies, Body
from stor.digest import Digest
from stor.disk.syscalls import Syscalls


class Flat:
    """Names samples in one existing directory: the least work that is durable."""

    def __init__(self, root: str) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def name(self, fd: int, digest: Digest) -> None:
        """Give an open file its name."""
        _link(fd, f"{digest}.dat", self.root_fd)

    def sync(self, digest: Digest) -> None:
        """Make the name durable."""
        os.fsync(self.root_fd)


class Tree:
    """Names samples where Stor does, three directories deep, most of them new."""

    def __init__(self, root: str) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._durable: set[str] = set()

    def name(self, fd: int, digest: Digest) -> None:
        """Give an open file its name, and create the directories that it needs."""
        for directory in digest.directories:
            if directory not in self._durable:
                with suppress(FileExistsError):
                    os.mkdir(directory, dir_fd=self.root_fd)
        _link(fd, digest.disk_path, self.root_fd)

    def sync(self, digest: Digest) -> None:
        """Make the name durable, and the names of new directories."""
        self._sync_directory(digest.directories[-1])
        for directory in digest.directories:
            if directory not in self._durable:
                self._sync_directory(os.path.dirname(directory) or ".")
        self._durable.update(digest.directories)

    def close(self) -> None:
        """Close the root's descriptor."""
        os.close(self.root_fd)

    def _sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


Layout = Flat | Tree
LAYOUTS: dict[str, type[Layout]] = {"flat": Flat, "tree": Tree}


def store(body: Body, disks: Iterable[Layout]) -> None:
    """Hash a content and make it durable on every disk: write, sync, name, sync the name."""
    hasher = hashlib.sha256()
    for part in body.parts:
        hasher.update(part)
    digest = Digest(hasher.digest())
    files = []
    for disk in disks:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o644, dir_fd=disk.root_fd)
        files.append((disk, fd))
        _write(fd, body.parts)
    for _, fd in files:
        os.fsync(fd)
    for disk, fd in files:
        disk.name(fd, digest)
    for disk, fd in files:
        disk.sync(digest)
        os.close(fd)


def store_for(seconds: float, bodies: Bodies, disks: Iterable[Layout]) -> int:
    """Store one sample after the other for `seconds`; how many."""
    end = time.monotonic() + seconds
    samples = 0
    while time.monotonic() < end:
        store(next(bodies), disks)
        samples += 1
    return samples


#: As long as Stor's, for a sample and for none.
_FIELDS = b"Server: bare\r\nX-Fields: %b\r\n"
_OK = b"HTTP/1.1 200 OK\r\n%bContent-Length: %%d\r\n\r\n" % (_FIELDS % (b"x" * 420))
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\n%bContent-Length: 40\r\n\r\n" % (_FIELDS % (b"x" * 130))
_NOT_FOUND_BODY = b"not found: no storage holds this sample\n"


class Answers(Protocol):
    """A connection that gets one request at a time, for a sample below a directory.

    Samples are read from memory and hashed as Stor does, on the reactor's thread. Where it
    `repeats`, what it has answered first it answers to all that follows, and reads nothing.
    """

    transport: Any

    def __init__(self, root: str, log: TextIO, *, repeats: bool) -> None:
        self._root = root
        self._log = log
        self._repeats = repeats
        self._answer: tuple[bytes | bytearray, ...] | None = None
        self._files = Syscalls()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Answer at once, without a turn of the reactor."""
        if data.find(b"\r\n\r\n") < 0:
            self.transport.loseConnection()
            return
        begin = 6 if data.startswith(b"H") else 5
        name = data[begin : begin + 64].decode("ascii")
        answer = self._answer
        if answer is None:
            answer = self._read(name.upper()) if begin == 5 else self._look(name.upper())
            if self._repeats:
                self._answer = answer
        sent = self.transport.socket.sendmsg(answer)
        if sent < sum(map(len, answer)):
            self.transport.write(b"".join(answer)[sent:])
        self._log.write(f"127.0.0.1 - GET /{name} 200 {len(answer[-1])} B sent, 0 B received\n")

    def _read(self, name: str) -> tuple[bytes | bytearray, ...]:
        files = self._files
        path = self._path(name)
        try:
            try:
                fd = files.open_cached(path)
            except BlockingIOError:
                fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return _NOT_FOUND, _NOT_FOUND_BODY
        try:
            size = files.fstat(fd).st_size
            content: bytes | bytearray
            try:
                content = files.read_cached(fd, size, 0)
            except BlockingIOError:
                content = os.pread(fd, size, 0)
        finally:
            files.close(fd)
        if hashlib.sha256(content).hexdigest().upper() != name:
            raise ValueError(f"{name} has another content")
        return _OK % size, content

    def _look(self, name: str) -> tuple[bytes, ...]:
        fd = os.open(self._path(name), os.O_PATH)
        try:
            return (_OK % self._files.fstat(fd).st_size,)
        finally:
            self._files.close(fd)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name[2:4]}/{name[4:6]}/{name}.dat"


def serve(port: int, root: str, *, repeats: bool) -> None:
    """Answer on loopback until the process is ended; lines go to `access.log`, in blocks."""
    reactor = epollreactor.EPollReactor()
    with open("access.log", "w", buffering=2**16, encoding="ascii") as log:
        factory = Factory.forProtocol(lambda: Answers(root, log, repeats=repeats))
        reactor.listenTCP(port, factory, interface="127.0.0.1")
        reactor.run()


def main(layout: str, threads: int, size: int, roots: list[str]) -> None:
    """For each number of seconds on standard input, print a line `samples seconds`."""
    disks = [LAYOUTS[layout](root) for root in roots]
    bodies = Bodies(size)
    with ThreadPoolExecutor(threads) as pool:
        for line in sys.stdin:
            begin = time.monotonic()
            loops = [pool.submit(store_for, float(line), bodies, disks) for _ in range(threads)]
            samples = sum(loop.result() for loop in loops)
            print(samples, time.monotonic() - begin, flush=True)


def _write(fd: int, parts: Iterable[bytes]) -> None:
    left = [memoryview(part) for part in parts]
    while left:
        written = os.writev(fd, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        left[:1] = [left[0][written:]] if left else []


def _link(fd: int, path: str, root_fd: int) -> None:
    # With a descriptor os.link is linkat(2), which follows; without, link(2), which does not.
    os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=root_fd, follow_symlinks=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3], repeats=sys.argv[4] == "repeats")
        sys.exit()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
