"""An upload whose set loses a disk under way is finished on another set."""

import errno
import json
from itertools import product

import pytest

from tests.conformance import MIB, QuickFiles, descriptors, sample
from tests.support.http import (
    CHUNKED,
    assert_nothing_kept,
    assert_one_line,
    assert_stored,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import FaultyRig

CONTENT = sample(2 * MIB + 5)

#: All that is done with a disk once the body is on its way; those after `write` make it durable.
CALLS = ("write", "set_modified", "sync", "name", "make_directory", "open_directory")
PARTS = {"at once": 0, "in the middle": len(CONTENT) // 2, "at the end": len(CONTENT) - 1}


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Moving:
    """An upload of which a part has been sent, to the set `home`."""

    def __init__(self, path, sets, framing="length", sent=0, seed=0, content=CONTENT, **options):
        self.descriptors = descriptors()
        self.content = content
        self.rig = FaultyRig(path, sets, kind=QuickFiles, seed=seed, **options)
        for files in self.rig.disks.values():
            files.calls.clear()
        self._chunked = framing == "chunked"
        self._connection = self.rig.connect()
        length = ("Content-Length", str(len(content)))
        self._connection.send(upload_head(content, CHUNKED if self._chunked else length))
        self.home = self.sets_with("open_nameless").pop()
        self._send(content[:sent])
        self._sent = sent

    def finish(self):
        """Send the rest; the answer."""
        self._send(self.content[self._sent :])
        if self._chunked:
            self._connection.send(b"0\r\n\r\n")
        (response,) = self._connection.responses(["POST"])
        self._connection.close()
        return response

    def fail(self, of_set, call, error=errno.EIO, disks=(0, 1)):
        """From now on a call fails on some disks of a set."""
        for disk in disks:
            self.rig.disks[f"{of_set}/disk{disk}"].fail_always(call, error)

    def sets_with(self, call):
        """The sets on which a call has succeeded."""
        disks = self.rig.disks.items()
        return {label[:4] for label, files in disks if call in [c.name for c in files.calls]}

    @property
    def others(self):
        """The sets that the upload did not go to at first."""
        return sorted({label[:4] for label in self.rig.disks} - {self.home})

    def assert_moved(self, response):
        """It is exact on every disk of another set, and nothing of it is left on the first."""
        assert_stored(self.rig, self.content, response)
        paths = json.loads(response.body)
        assert all(any(f"/{other}/" in path for other in self.others) for path in paths)
        self._assert_nothing_left()
        for root in self.rig.roots:
            if not any(path.startswith(f"{root}/") for path in paths):
                assert {entry.name for entry in root.iterdir()} <= {".stor"}

    def assert_refused(self, response, status):
        """Nothing of it is left anywhere; once all disks work again it is taken."""
        assert_one_line(response, status)
        assert ("retry-after" in response.headers) == (status == 503)
        assert_nothing_kept(self.rig)
        self._assert_nothing_left()
        self.rig.heal()
        self.rig.rounds(2)
        assert_stored(self.rig, self.content, self.rig.put(self.content))

    def _send(self, data):
        if self._chunked and data:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        self._connection.send(data)

    def _assert_nothing_left(self):
        assert self.rig.staged() == []
        for mirror in self.rig.mirrors.mirrors:
            assert mirror.reserved.total() == (0, 0)
        assert self.rig.uploads.buffered_bytes == 0
        assert descriptors() == self.descriptors


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("call", CALLS)
def test_whenever_one_disk_fails(quick_path, figures, call, part, framing):
    faults = [(0, errno.EIO), (1, errno.EIO), (0, errno.ENOSPC), (1, errno.EROFS)]
    for number, (disk, error) in enumerate(faults):
        moving = Moving(quick_path / f"{number}", (2, 2), framing, PARTS[part], seed=number)
        moving.fail(moving.home, call, error, [disk])
        moving.assert_moved(moving.finish())
        figures["uploads that went on to another set"] += 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(("first", "second"), list(product(["write", "sync", "name"], CALLS)))
def test_when_the_second_set_fails_too(quick_path, figures, first, second, framing):
    """Of three sets two are broken; the one that is whole is found, whichever comes first."""
    tried = 0
    for seed in range(4):
        moving = Moving(quick_path / f"{seed}", (2, 2, 2), framing, MIB, seed)
        broken, _ = moving.others if seed % 2 else reversed(moving.others)
        moving.fail(moving.home, first, disks=[seed % 2])
        moving.fail(broken, second, disks=[seed // 2 % 2])
        moving.assert_moved(moving.finish())
        tried += moving.rig.disks[f"{broken}/disk{seed // 2 % 2}"].failed is not None
        figures["uploads that went on to another set"] += 1
    assert tried


NOWHERE = {
    "the other set cannot be written": ("write", errno.EIO, 503),
    "the other set cannot be synced": ("sync", errno.EIO, 503),
    "the other set gives no name": ("name", errno.EROFS, 503),
    "the other set does not answer at all": ("*", errno.EIO, 503),
    "the other set is full": ("allocate", errno.ENOSPC, 503),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("call", ["write", "sync", "name", "open_directory"])
@pytest.mark.parametrize("other", NOWHERE)
def test_with_nowhere_to_go(quick_path, other, call, framing):
    at, error, status = NOWHERE[other]
    moving = Moving(quick_path, (2, 2), framing, MIB)
    moving.fail(moving.home, call, disks=[1])
    at = "write" if (at, framing) == ("allocate", "chunked") else at
    moving.fail(*moving.others, at, error, disks=[0])
    moving.assert_refused(moving.finish(), status)


@pytest.mark.parametrize("call", ["write", "sync", "name"])
def test_when_every_set_is_full(quick_path, call):
    moving = Moving(quick_path, (2, 2), sent=MIB)
    for of_set in (moving.home, *moving.others):
        moving.fail(of_set, call, errno.ENOSPC)
    moving.assert_refused(moving.finish(), 507)


@pytest.mark.parametrize(("call", "status"), [("write", 503), ("sync", 503)])
def test_when_both_disks_fail_nobody_has_the_bytes_any_more(quick_path, call, status):
    moving = Moving(quick_path, (2, 2), sent=MIB)
    moving.fail(moving.home, call)
    moving.assert_refused(moving.finish(), status)


def test_without_another_set(quick_path):
    moving = Moving(quick_path, (2,), sent=MIB)
    moving.fail(moving.home, "write", disks=[0])
    moving.assert_refused(moving.finish(), 503)


@pytest.mark.parametrize("size", [1, 500, 65_536, 65_537, MIB, len(CONTENT)])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_set_that_is_full_to_its_reserve_under_a_body_of_unknown_length(quick_path, part, size):
    """What was written when that was found out is not written twice where it goes on."""
    sent = int(part * (size - 1))
    content = sample(size)
    moving = Moving(quick_path, (2, 2), "chunked", sent, content=content, reserve_bytes=MIB)
    for disk in (0, 1):
        moving.rig.disks[f"{moving.home}/disk{disk}"].full = True
    response = moving.finish()
    moving.assert_moved(response)
    assert moving.rig.get(content).body == content


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("call", ["write", "sync", "name"])
def test_what_comes_back_wrong_from_a_disk_gets_no_name(quick_path, call, framing):
    """What a disk gives back is hashed once more where it goes on, whatever was hashed before."""
    moving = Moving(quick_path, (2, 2), framing, MIB)
    moving.fail(moving.home, call, disks=[0])
    moving.rig.disks[f"{moving.home}/disk1"].rots = True
    moving.assert_refused(moving.finish(), 503)
