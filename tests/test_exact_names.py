"""A name has the bytes of its SHA-256, whatever hangs, fails, is given up, goes on late or moves.

And a descriptor is used by nobody who has not opened it, nor closed while a call uses it: its
number may be another file's a moment later, and a thread that hung would go on with that.
"""

import errno
import hashlib
import inspect
import random
from collections import Counter
from itertools import count

import pytest

from stor.disk.syscalls import Syscalls
from stor.mirror.group_commit import Alone, GroupCommit
from tests.conformance import MIB, QuickFiles, descriptors, sample
from tests.support.files import CALLS, replace_calls
from tests.support.http import AUTHORIZED, CHUNKED, no_bug_logged, upload_head
from tests.support.pools import InlineOutcomes
from tests.support.rig import FaultyRig, close_indexes, digest_of, request_bytes

#: What returns a descriptor.
OPENING = frozenset(name for name in CALLS if name.startswith("open_")) | {"create", "look_cached"}

#: Which arguments of a call are descriptors.
PLACES = {
    name: [
        place
        for place, argument in enumerate(inspect.signature(getattr(Syscalls, name)).parameters)
        if argument in ("fd", "directory_fd")
    ]
    for name in CALLS
}


class Owned(QuickFiles):
    """Notes in `misuses` what is done with a descriptor that is not open, or is in use."""

    def __init__(self, label="", log=None):
        super().__init__(label, log)
        self._opened, self._used = set(), Counter()
        self.misuses = []


def _owned(name):
    whole = getattr(Owned, name)

    def call(self, *args):
        used = [args[place - 1] for place in PLACES[name] if place <= len(args)]
        used = [fd for fd in used if fd is not None]
        for fd in used:
            if fd not in self._opened:
                self.misuses.append(f"{self.label}: {name} of a descriptor that is not open")
        if name == "close":
            if self._used[args[0]]:
                self.misuses.append(f"{self.label}: close under a call")
            self._opened.discard(args[0])
        self._used.update(used)
        try:
            result = whole(self, *args)
        finally:
            self._used.subtract(used)
        if name in OPENING:
            self._opened.add(result)
        return result

    return call


replace_calls(Owned, _owned)


class Stor(FaultyRig):
    """Two pairs whose disks hang, in threads of their own, and whose uploads share syncs."""

    def __init__(self, path):
        super().__init__(
            *(path, (2, 2)),
            kind=Owned,
            threads=True,
            reserve_bytes=MIB,
            commits=self._shared,
            learnt=True,
            boot="this",
        )
        self._numbers = count()
        self.open = []
        self.acknowledged = {}
        self.statuses = Counter()

    def _shared(self, disk):
        pool = self._hanging_worker("/".join(disk.root.split("/")[-2:]))
        alone = Alone(disk, pool)
        return GroupCommit(alone, pool, lambda: 0, InlineOutcomes(), lambda: self.clock.seconds())  # noqa: PLW0108 the clock comes later

    def post(self, kind, size):
        """A client that stores a sample of its own; what it hears is noted when it comes."""
        content = sample(size, next(self._numbers))
        connection = self.connect()
        path = f"/{digest_of(content)}"
        if kind == "whole":
            connection.send(request_bytes("POST", path, [AUTHORIZED], content))
        elif kind == "chunked":
            half = len(content) // 2
            connection.send(upload_head(content, CHUNKED))
            for part in (content[:half], content[half:]):
                connection.send(b"%x\r\n%s\r\n" % (len(part), part) if part else b"")
            connection.send(b"0\r\n\r\n")
        else:
            self._post_parts(connection, path, content)
        self.open.append((connection, content))
        self.hear()

    def _post_parts(self, connection, path, content):
        half = len(content) // 2
        first = self.connect()
        headers = [AUTHORIZED, ("Upload-Complete", "?0"), ("Upload-Length", str(len(content)))]
        first.send(request_bytes("POST", path, headers, content[:half]))
        first.wait(40)
        headers = [AUTHORIZED, ("Upload-Complete", "?1"), ("Upload-Offset", str(half))]
        headers.append(("Content-Type", "application/partial-upload"))
        connection.send(request_bytes("PATCH", f"{path}/upload", headers, content[half:]))

    def hear(self):
        """Note the answers that have come."""
        for client in list(self.open):
            connection, content = client
            connection.settle()
            for response in connection.responses(["POST"]):  # not one that is interim
                self.open.remove(client)
                self.statuses[response.status] += 1
                if response.status in (200, 201):
                    self.acknowledged[digest_of(content)] = content

    def wait(self, seconds):
        """Let time pass, a quarter of a second at a time."""
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
        self.hear()

    def arm(self, label, fault, n):
        """Have a disk's n-th call from now on meet a fault, or it as a whole."""
        files = self.disks[label]
        if fault == "hang":
            self.hang(label, n)
        elif fault == "short":
            files.short_write_at(n)
        elif fault == "full":
            files.full = True
        elif fault == "rots":
            files.rots = True
        else:
            files.fail_at(n, getattr(errno, fault))

    def wake(self, label):
        """What hangs on a disk goes on, and nothing else fails there."""
        self.disks[label].heal()
        self._hanging[label].wake()
        self.hear()

    def assert_exact(self):
        """Every name has its bytes, and every sample that was acknowledged is there, twice."""
        misuses = [said for files in self.disks.values() for said in files.misuses]
        assert misuses == []
        for path in self.samples():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem.lower()
        for content in self.acknowledged.values():
            assert len(self.copies(content)) >= 2
            assert self.get(content).body == content


LABELS = ("set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1")
FAULTS = ("hang", "EIO", "ENOSPC", "EROFS", "ENOENT", "short", "full", "rots")
KINDS = ("whole", "whole", "chunked", "parts")
SIZES = (0, 1, 500, 500, 500, 70_000, 300_000)


def happenings(rng):
    """What happens, in order: uploads, many of them while disks are in a bad way."""
    found = []
    for _ in range(rng.randrange(2, 6)):
        for _ in range(rng.randrange(4)):
            label, fault = rng.choice(LABELS), rng.choice(FAULTS)
            found.append(("arm", (label, fault, rng.randrange(25))))
        for _ in range(rng.randrange(1, 6)):
            found.append(("post", (rng.choice(KINDS), rng.choice(SIZES))))
        found.append(("wait", (rng.choice((0.5, 2, 9, 20)),)))
        if rng.random() < 0.7:
            found.append(("wake", (rng.choice(LABELS),)))
    return found


def play(path, happenings):
    """A Stor to which all this happens, and then nothing more."""
    stor = Stor(path)
    before = descriptors()
    for name, args in happenings:
        getattr(stor, name)(*args)
    stor.wait(40)
    stor.heal()
    stor.wait(40)
    stor.rounds(3)
    stor.hear()
    stor.assert_exact()
    assert stor.open == []
    assert stor.staged() == []
    assert descriptors() == before
    return stor


@pytest.mark.parametrize("part", range(4))
def test_every_name_has_its_bytes(quick_path, figures, part):
    for seed in range(part, 160, 4):
        with no_bug_logged():
            stor = play(quick_path / str(seed), happenings(random.Random(seed)))
        close_indexes()
        figures["uploads while disks hang, fail, fill up and rot"] += sum(stor.statuses.values())
        figures["of them acknowledged"] += len(stor.acknowledged)


class Lying(QuickFiles):
    """A disk that `lies`: it has not written all that it says it has."""

    lies = False

    def write(self, fd, data):
        written = super().write(fd, data[: len(data) // 2] if self.lies else data)
        return len(data) if self.lies else written


@pytest.mark.parametrize("size", [500, 70_000])
def test_a_file_that_is_not_as_large_as_what_was_written_gets_no_name(quick_path, size):
    rig = FaultyRig(quick_path, (2,), kind=Lying, learnt=True)
    rig.disks["set0/disk1"].lies = True
    assert rig.put(sample(size)).status == 503
    assert rig.samples() == []
