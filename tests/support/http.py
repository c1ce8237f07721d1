"""What HTTP tests share: bytes of requests, disks that wait, and what is true afterwards."""

import json
import os
import re
from contextlib import contextmanager, suppress

from twisted.logger import LogLevel, globalLogPublisher

from stor.digest import Digest
from tests.support.pools import HeldPool
from tests.support.rig import AUTHORIZATION, request_bytes

AUTHORIZED = ("Authorization", AUTHORIZATION)
CHUNKED = ("Transfer-Encoding", "chunked")


def upload_head(name, *headers, method="POST"):
    """The head of an upload with the right credentials; `name` may be the content."""
    name = Digest.of(name) if isinstance(name, bytes) else name
    return request_bytes(method, f"/{name}", [AUTHORIZED, *headers])


def chunked(parts, extension=b"", trailers=b""):
    """A body in chunks (RFC 9112, 7.1)."""
    chunks = [b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts if part]
    return b"".join(chunks) + b"0%s\r\n%s\r\n" % (extension, trailers)


def cuts(data, pieces, rng):
    """`data` cut at random places into that many pieces, some perhaps empty."""
    at = sorted(rng.randrange(len(data) + 1) for _ in range(pieces - 1))
    return [data[begin:end] for begin, end in zip([0, *at], [*at, len(data)], strict=True)]


def descriptors():
    """How many file descriptors the process has open, but for the memory of indexes."""
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the directory that is being listed
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(not target.startswith("/memfd:stor-") for target in targets)


class Disks(dict):
    """Makes the `Syscalls` of each disk, for a Rig, and keeps them by the disk's label."""

    def __init__(self, kind):
        super().__init__()
        self._kind = kind

    def __call__(self, label):
        return self.setdefault(label, self._kind(label))


class HeldPools:
    """Makes pools, for a Rig, whose jobs wait until they are released."""

    def __init__(self):
        self._made = []

    def __call__(self):
        self._made.append(HeldPool())
        return self._made[-1]

    @property
    def held(self):
        """How many jobs wait."""
        return sum(len(worker.held) for worker in self._made)

    def step(self):
        """Do the oldest job of each pool."""
        for worker in self._made:
            worker.release(1)

    def release(self):
        """Do all jobs, and those that they bring about."""
        while self.held:
            self.step()

    def hang(self):
        """Hold back the jobs that wait now; call the returned function to release them."""
        hanging = [(worker, list(worker.held)) for worker in self._made]
        for worker in self._made:
            worker.held.clear()

        def go_on():
            for worker, jobs in hanging:
                worker.held.extend(jobs)

        return go_on


def take_all(connection, limit=None):
    """Read, a part at a time, until the server has ended the connection."""
    for _ in range(10_000):
        if connection.closed:
            return
        connection.take(limit)
    raise AssertionError("the connection does not end")


@contextmanager
def logged_events(least=LogLevel.debug):
    """A list that receives what is logged at this level or above."""
    events = []

    def observe(event):
        if event.get("log_level", LogLevel.debug) >= least:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)


@contextmanager
def no_bug_logged():
    """Fail when an unforeseen error is logged, which is what `critical` is for."""
    with logged_events(LogLevel.critical) as events:
        yield
    bugs = [str(event.get("log_failure") or event) for event in events]
    assert not bugs, "\n".join(bugs)


def assert_one_line(response, status):
    """An error is one line of plain text: no HTML, no traceback, nothing of the request."""
    assert response.status == status
    assert response.complete
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    # Or a cache in front keeps it, and hides a sample that is stored a second later.
    assert status < 400 or response.headers["cache-control"] == "no-store"
    assert response.headers["content-length"] == str(len(response.body))
    assert re.fullmatch(r"[a-zA-Z0-9].*\n", response.text)
    assert "<" not in response.text
    assert "Traceback" not in response.text


def assert_stored(rig, content, response, status=201):
    """Every disk of exactly one set has it, and the answer lists the paths in the set's order."""
    assert response.status == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == str(len(response.body))
    paths = json.loads(response.body)
    sets = [
        [f"{member.root}/{Digest.of(content).disk_path}" for member in mirror.members]
        for mirror in rig.mirrors.mirrors
    ]
    assert paths in sets
    assert [str(path) for path in rig.copies(content)] == paths
    assert all(path.read_bytes() == content for path in rig.copies(content))
    assert rig.get(content).body == content


def assert_nothing_kept(rig):
    """No sample, nothing staged, no directory, no memory, no reservation."""
    assert rig.samples() == rig.staged() == []
    assert rig.uploads.buffered_bytes == 0
    assert all(mirror.reserved.total()[0] == 0 for mirror in rig.mirrors.mirrors)
    entries = {entry.name for root in rig.roots if root.exists() for entry in root.iterdir()}
    assert entries <= {".stor"}
