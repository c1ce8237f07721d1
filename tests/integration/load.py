"""A mixed load over raw sockets, whose clients remember what they were promised."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import struct
import threading
import time
from collections import Counter

import attrs

from tests.integration.process import MIB, sample_path, upload_head
from tests.support.rig import request_bytes

#: Whether the long forms are to run (`make soak`).
SOAK = os.environ.get("STOR_SOAK", "0") not in ("", "0")

#: Bytes that the content of samples is cut from; making it anew would cost more than sending it.
_POOL = random.Random(2026).randbytes(4 * MIB)

#: Sizes of samples in bytes, and how often each is taken: nothing, one block, what is read in one
#: visit to a disk and a byte more, what needs more than one visit to be written.
SIZES = {0: 1, 1: 1, 4096: 10, 65_536: 6, 262_144: 3, 262_145: 3, 1_100_000: 2, 3_000_000: 1}

#: What clients do, and how often.
MIXED = {
    "post": 8,
    "chunked": 2,
    "again": 4,
    "get": 6,
    "head": 1,
    "unknown": 1,
    "wrong": 1,
    "cut": 3,
    "leave": 2,
}


@attrs.frozen
class Sample:
    """Content that can be made again from its number and its size."""

    number: int
    size: int

    @property
    def content(self):
        return (b"%015d\n" % self.number + _POOL)[: self.size]

    @property
    def sha(self):
        return hashlib.sha256(self.content).hexdigest()


@attrs.frozen
class Answer:
    """A whole response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


@attrs.frozen
class Surprise:
    """An answer that is wrong while no disk is away or full.

    `paths` are where the sample was when it was asked for, if a client had been told.
    """

    action: str
    status: int | None
    line: str
    paths: tuple[str, ...] = ()


class Connection:
    """One connection, opened when needed and kept while both sides keep it."""

    def __init__(self, port, seconds=60.0):
        self._port = port
        self._seconds = seconds
        self._sock = None

    @property
    def sock(self):
        if self._sock is None:
            self._sock = socket.create_connection(("127.0.0.1", self._port), self._seconds)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._sock

    def exchange(self, *parts, method="GET"):
        """Send `parts` and receive one response. Raises `OSError`, `HTTPException`."""
        for part in parts:
            self.sock.sendall(part)
        return self.answer(method)

    def answer(self, method="GET"):
        response = http.client.HTTPResponse(self.sock, method=method)
        try:
            response.begin()
            answer = Answer(response.status, response.headers, response.read())
            if response.will_close:
                self.close()
        finally:
            response.close()
        return answer

    def close(self, reset=False):
        """End the connection; with `reset` as a process does that is killed with unread data."""
        sock, self._sock = self._sock, None
        if sock is not None:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


class Load:
    """Clients that use a Stor while `running`, and hold it to what it has said.

    `acknowledged` are the samples that a client has read 200 or 201 for, `paths` where they are by
    that answer; `unsettled` those that were posted whole and not answered; `surprises` are what
    Stor did not do as it should.
    """

    def __init__(self, port, seed=0, clients=4, actions=None, sizes=None):
        self.port = port
        self.acknowledged = {}
        self.paths = {}
        self.unsettled = {}
        self.counts = Counter()
        self.surprises = []
        self._rng = random.Random(seed)
        self._clients = clients
        self._actions = actions or MIXED
        self._sizes = sizes or SIZES
        self._attempted = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._left = float("inf")

    @property
    def lost(self):
        """How many requests were not answered."""
        return sum(n for outcome, n in self.counts.items() if outcome.endswith(" lost"))

    @property
    def requests(self):
        """How many requests were sent, answered or not."""
        return sum(self.counts.values())

    @contextlib.contextmanager
    def running(self):
        """Clients at work."""
        threads = self._start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def run(self, requests):
        """Clients at work until so many requests are done."""
        self._left = requests
        for thread in self._start():
            thread.join()
        self._left = float("inf")

    def settle(self):
        """Post again what was not answered, as clients do."""
        connection = Connection(self.port)
        for sample in list(self.unsettled.values()):
            self._store(connection, sample)
        connection.close()

    def _start(self):
        self._over.clear()
        seeds = [self._rng.random() for _ in range(self._clients)]
        threads = [threading.Thread(target=self._client, args=[seed]) for seed in seeds]
        for thread in threads:
            thread.start()
        return threads

    def _client(self, seed):
        rng = random.Random(seed)
        connection = Connection(self.port)
        actions, weights = zip(*self._actions.items(), strict=True)
        try:
            while not self._over.is_set() and self._taken():
                (action,) = rng.choices(actions, weights)
                try:
                    getattr(self, f"_{action}")(connection, rng)
                except (OSError, http.client.HTTPException):
                    self._count(action, "lost")
                    connection.close()
                    self._over.wait(0.01)
        except BaseException as error:
            self.surprises.append(Surprise("client", None, repr(error)))
            raise
        finally:
            connection.close()

    def _taken(self):
        with self._lock:
            self._left -= 1
            return self._left >= 0

    # What clients do.

    def _post(self, connection, rng):
        self._store(connection, self._new(rng))

    def _again(self, connection, rng):
        self._store(connection, self._known(rng))

    def _chunked(self, connection, rng):
        self._store(connection, self._new(rng), chunked=True)

    def _get(self, connection, rng):
        sample = self._known(rng)
        paths = self.paths.get(sample.sha, ())
        answer = connection.exchange(request_bytes("GET", f"/{sample.sha}"))
        self._judge("get", answer, (200,) if paths else (200, 404), paths)
        if answer.status == 200 and answer.body != sample.content:
            self.surprises.append(Surprise("get", 200, f"wrong bytes for {sample}", paths))

    def _head(self, connection, rng):
        sample = self._known(rng)
        paths = self.paths.get(sample.sha, ())
        answer = connection.exchange(request_bytes("HEAD", f"/{sample.sha}"), method="HEAD")
        self._judge("head", answer, (200,) if paths else (200, 404), paths)

    def _unknown(self, connection, rng):
        sha = hashlib.sha256(rng.randbytes(16)).hexdigest()
        answer = connection.exchange(request_bytes("GET", f"/{sha}"))
        self._judge("unknown", answer, (404,))

    def _wrong(self, connection, rng):
        """Post a body under the name of another sample of the same size."""
        sample = self._new(rng, at_least=16)
        body = Sample(sample.number + 1, sample.size).content
        answer = connection.exchange(upload_head(sample.sha, len(body)), body)
        self._judge("wrong", answer, (412,))

    def _cut(self, connection, rng):
        """Go away in the middle of a body."""
        sample = self._new(rng, at_least=16)
        body = sample.content[: rng.randrange(sample.size)]
        connection.sock.sendall(upload_head(sample.sha, sample.size))
        connection.sock.sendall(body)
        connection.close(reset=rng.random() < 0.5)
        self._count("cut", "done")

    def _leave(self, connection, rng):
        """Go away in the middle of an answer."""
        connection.sock.sendall(request_bytes("GET", f"/{self._known(rng).sha}"))
        connection.sock.recv(rng.randrange(1, 100_000))
        connection.close(reset=rng.random() < 0.5)
        self._count("leave", "done")

    def _store(self, connection, sample, chunked=False):
        content, sha = sample.content, sample.sha
        if chunked:
            body = (
                [b"%x\r\n" % len(content), content, b"\r\n0\r\n\r\n"] if content else [b"0\r\n\r\n"]
            )
            head = upload_head(sha, 0).replace(
                b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"
            )
        else:
            head, body = upload_head(sha, len(content)), [content]
        before = self.paths.get(sha, ())
        self.unsettled[sha] = sample
        answer = connection.exchange(head, *body)
        self.unsettled.pop(sha, None)
        self._judge("post", answer, (200, 201), before)
        if answer.status in (200, 201):
            with self._lock:
                self.acknowledged[sha] = sample
                self.paths[sha] = tuple(json.loads(answer.body))

    def _new(self, rng, at_least=0):
        sizes = {size: weight for size, weight in self._sizes.items() if size >= at_least}
        (size,) = rng.choices(list(sizes), list(sizes.values()))
        sample = Sample(rng.randrange(10**14), size)
        with self._lock:
            self._attempted.append(sample)
        return sample

    def _known(self, rng):
        """A sample that some client has posted or begun to post."""
        with self._lock:
            if self._attempted:
                return rng.choice(self._attempted)
        return self._new(rng)

    # What they keep.

    def _judge(self, action, answer, expected, paths=()):
        self._count(action, answer.status)
        if answer.status not in expected:
            line = answer.body[:500].decode(errors="replace").strip()
            self.surprises.append(Surprise(action, answer.status, line, paths))

    def _count(self, action, outcome):
        with self._lock:
            self.counts[f"{action} {outcome}"] += 1


class Audit:
    """Reads what is on the disks: every file has the bytes of its name, nothing is left over.

    A file that has not changed since it was read (stat(2), st_ctim) is not read again.
    """

    def __init__(self, roots):
        self._roots = roots
        self._read = {}
        self.files_read = 0

    def check(self, samples, paths, copies=None, staging=False):
        """Every one of `samples` is whole at each of its `paths`; no file has wrong bytes.

        `copies` is how many paths each must have; `staging` says whether staged files are no fault.
        """
        for root in self._roots:
            for directory, _, names in os.walk(root):
                below = os.path.relpath(directory, root)
                for name in names:
                    self._check_file(root, os.path.normpath(os.path.join(below, name)), staging)
        for sha, sample in samples.items():
            assert copies in (None, len(paths[sha])), f"{sha} was said to be at {paths[sha]} only"
            for path in paths[sha]:
                found = self._read.get(path)
                assert found, f"{sha} of {sample.size} bytes was acknowledged and is not at {path}"
                assert os.stat(path).st_size == sample.size, path

    def _check_file(self, root, name, staging):
        path = f"{root}/{name}"
        if name.startswith(".stor/"):
            allowed = [".stor/disk.json", ".stor/index/", ".stor/lock", ".stor/repair/"]
            allowed += [".stor/tmp/"] if staging else []
            assert name.startswith(tuple(allowed)), f"{path} is left over"
            return
        status = os.stat(path)
        identity = (status.st_ino, status.st_ctime_ns, status.st_size)
        if self._read.get(path) == identity:
            return
        with open(path, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        self.files_read += 1
        assert name == sample_path(sha), f"{path}: {status.st_size} bytes with SHA-256 {sha}"
        self._read[path] = identity


def percentile(seconds, share):
    """The value below which `share` of all are."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))]


def timed(call, *args):
    """How long a call takes in seconds, and what it returns."""
    begun = time.monotonic()
    result = call(*args)
    return time.monotonic() - begun, result
