"""What is kept of uploads outlives restarts, losses of power and of disks, and is told truly."""

import errno
import os
import shutil
from itertools import count

import pytest

from stor.disk.partial import ATTRIBUTE
from stor.mirror.partial import SYNC_BYTES
from tests.conformance import MIB, QuickFiles, descriptors, sample
from tests.durability import (
    JUDGES,
    Recorded,
    assert_partial_is_durable,
    assert_recorded_first,
    history,
)
from tests.support.http import AUTHORIZED, no_bug_logged
from tests.support.rig import FaultyRig, Rig, close_indexes, digest_of, request_bytes

CONTENT = sample(2 * MIB + 5)
SHA = str(digest_of(CONTENT))
ALL, SOME = ("Upload-Complete", "?1"), ("Upload-Complete", "?0")
LENGTH = ("Upload-Length", str(len(CONTENT)))


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Client:
    """Somebody who stores CONTENT, however often it takes."""

    def __init__(self, rig, content=CONTENT):
        self.rig = rig
        self.content = content
        self.path = f"/{digest_of(content)}"

    def request(self, method, path, *headers, body=None, seconds=0):
        connection = self.rig.connect()
        connection.send(request_bytes(method, path, [AUTHORIZED, *headers], body))
        for _ in range(seconds):
            if connection.received:
                break
            connection.wait(1)
        found = connection.responses([method])
        return found[0] if found else None

    def begin(self, size, *headers):
        length = ("Upload-Length", str(len(self.content)))
        return self.request("POST", self.path, SOME, length, body=self.content[:size])

    def cut(self, size):
        """Begin, and go away."""
        head = [AUTHORIZED, ALL, ("Content-Length", str(len(self.content)))]
        connection = self.rig.connect()
        connection.send(request_bytes("POST", self.path, head) + self.content[:size])
        connection.close()

    def offset(self, seconds=0):
        """What is told, `None` where there is no upload; or the answer that says neither."""
        response = self.request("HEAD", f"{self.path}/upload", seconds=seconds)
        if response.status == 404:
            return None
        if response.status != 204:
            return response
        return int(response.headers["upload-offset"])

    def go_on(self, offset, size=None, kind=ALL, seconds=0):
        headers = [("Content-Type", "application/partial-upload"), kind]
        headers.append(("Upload-Offset", str(offset)))
        body = self.content[offset : None if size is None else offset + size]
        path = f"{self.path}/upload"
        return self.request("PATCH", path, *headers, body=body, seconds=seconds)

    def step(self, name):
        """One of the three that bring CONTENT."""
        if name == "begin":
            return self.begin(MIB)
        return self.go_on(MIB, 1000, SOME) if name == "go on" else self.complete()

    def complete(self):
        """Go on as told, or from the beginning: what comes of it."""
        offset = self.offset()
        if not isinstance(offset, int | None):
            return offset
        if offset is None:
            return self.request("POST", self.path, ALL, body=self.content)
        if offset == len(self.content) and self.rig.copies(self.content):
            return self.request("POST", self.path, ALL, body=self.content)
        return self.go_on(offset)


def partials(rig):
    return sorted(path for root in rig.roots for path in root.glob(".stor/partial/*"))


def assert_stored(rig, content=CONTENT, sets=2):
    assert [path.read_bytes() for path in rig.copies(content)] == [content] * sets
    for path in rig.copies(content):
        assert ATTRIBUTE not in os.listxattr(path)
    assert not rig.staged()


def restart(rig, **options):
    """A Stor on the same disks, after the first was killed."""
    close_indexes()
    path = rig.roots[0].parent.parent
    return Rig(path, (2, 2), files=lambda label: QuickFiles(), boot="this", **options)


@pytest.fixture
def rig(quick_path):
    return Rig(quick_path, files=lambda label: QuickFiles(), boot="this")


def test_a_restart_loses_nothing_and_the_hash_is_made_again(rig):
    Client(rig).begin(MIB + 3)
    again = restart(rig)
    client = Client(again)
    assert client.offset() == MIB + 3
    assert client.go_on(MIB + 3, 100, SOME).status == 204
    assert client.go_on(MIB + 103).status == 201
    assert_stored(again)
    assert not partials(again)


def test_what_has_changed_meanwhile_is_found_by_the_hash(rig):
    Client(rig).begin(MIB)
    for path in partials(rig):
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"\0\0\0\0")
    again = restart(rig)
    assert Client(again).complete().status == 412
    assert not partials(again)
    assert not again.samples()
    assert Client(again).complete().status == 201


@pytest.mark.parametrize("more", [(0, 7), (500, 0), (300, 300)])
def test_what_a_kill_left_on_one_disk_alone_is_not_told(rig, more):
    """One disk may have taken more of a piece than the other: neither was told of it."""
    Client(rig).begin(MIB)
    for path, extra in zip(partials(rig), more, strict=True):
        with path.open("ab") as file:
            file.write(CONTENT[MIB : MIB + extra])
    again = restart(rig)
    client = Client(again)
    assert client.offset() == MIB + min(more)
    assert [path.stat().st_size for path in partials(again)] == [MIB + min(more)] * 2
    assert client.complete().status == 201
    assert_stored(again)


def test_after_a_loss_of_power_only_what_was_synced_is_relied_on(rig):
    content = sample(SYNC_BYTES + 2 * MIB)
    connection = rig.connect()
    head = [AUTHORIZED, ALL, ("Content-Length", str(len(content)))]
    head = request_bytes("POST", f"/{digest_of(content)}", head)
    connection.send(head + content[: SYNC_BYTES + MIB])
    for path in partials(rig):  # sizes have reached the disk, and bytes have not
        synced = int(os.getxattr(path, ATTRIBUTE).split()[0])
        assert SYNC_BYTES <= synced <= SYNC_BYTES + MIB
        with path.open("r+b") as file:
            file.seek(synced)
            file.write(b"\0" * (SYNC_BYTES + MIB - synced))
    for boot in ("another", "-"):
        close_indexes()
        again = Rig(rig.roots[0].parent.parent, (2, 2), boot=boot)
        client = Client(again, content)
        assert client.offset() == synced
        assert [path.stat().st_size for path in partials(again)] == [synced] * 2
    assert client.complete().status == 201
    assert_stored(again, content)


def test_a_file_that_nobody_vouches_for_is_no_upload(rig):
    Client(rig).begin(MIB)
    os.removexattr(partials(rig)[0], ATTRIBUTE)
    os.setxattr(partials(rig)[1], ATTRIBUTE, b"1 x")
    again = restart(rig)
    assert Client(again).offset() is None
    assert Client(again).complete().status == 201
    assert_stored(again)
    assert not partials(again)


def test_a_name_that_a_kill_left_beside_the_sample_is_no_upload(rig):
    """Going on with it would change the sample itself."""
    Client(rig).complete()
    for path in rig.copies(CONTENT):
        os.link(path, path.parents[3] / ".stor/partial" / SHA.upper())
        os.setxattr(path, ATTRIBUTE, f"{len(CONTENT)} - this".encode())
    again = restart(rig)
    for path in again.copies(CONTENT):  # the sample goes, too: an upload could begin
        path.unlink()
        os.link(path.parents[3] / ".stor/partial" / SHA.upper(), path)
    assert go_on_is_refused(again)
    assert [path.read_bytes() for path in again.copies(CONTENT)] == [CONTENT] * 2


def go_on_is_refused(rig):
    return Client(rig).go_on(len(CONTENT), kind=SOME).status in (404, 410)


def home_of(rig):
    """The labels of the disks that have the upload, and of those that have not."""
    found = {path.parents[2] for path in partials(rig)}
    labels = {root: f"{root.parent.name}/{root.name}" for root in rig.roots}
    return [labels[r] for r in rig.roots if r in found], [
        labels[r] for r in rig.roots if r not in found
    ]


@pytest.mark.parametrize("size", [0, 1, MIB])
def test_a_set_that_loses_a_disk_is_left_with_all_that_came(quick_path, size):
    rig = FaultyRig(quick_path, kind=QuickFiles, boot="this")
    client = Client(rig)
    client.begin(MIB)
    ours, others = home_of(rig)
    rig.disks[ours[0]].fail_always("write", errno.EIO)
    response = client.go_on(MIB, size, SOME)
    assert (response.status, client.offset()) == (204, MIB + size)
    if size:
        assert home_of(rig)[0] == others
    assert client.complete().status == 201
    assert_stored(rig)
    assert not partials(rig)


def test_a_disk_that_is_away_when_the_upload_goes_on(quick_path):
    rig = FaultyRig(quick_path, kind=QuickFiles, boot="this")
    client = Client(rig)
    client.begin(MIB)
    ours, others = home_of(rig)
    rig.disks[ours[1]].fail_always("*", errno.EIO)
    rig.probe()
    assert client.offset() == MIB
    assert client.go_on(MIB, 5, SOME).status == 204
    assert set(home_of(rig)[0]) == {ours[1], *others}  # what is away is as it was
    assert client.offset() == MIB + 5
    rig.heal()
    rig.probe()
    assert client.offset() == MIB + 5
    assert client.complete().status == 201
    assert_stored(rig)


def test_with_one_set_alone_a_disk_that_is_away_is_waited_for(quick_path):
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles, boot="this")
    client = Client(rig)
    client.begin(MIB)
    rig.disks["set0/disk0"].fail_always("*", errno.EIO)
    rig.probe()
    assert client.go_on(MIB).status == 503
    assert client.offset() == MIB
    rig.heal()
    rig.probe()
    assert client.offset() == MIB
    assert client.go_on(MIB).status == 201
    assert_stored(rig)
    assert not partials(rig)


def test_a_disk_that_is_replaced_meanwhile_costs_nothing_that_was_told(quick_path):
    rig = FaultyRig(quick_path, kind=QuickFiles, boot="this")
    client = Client(rig)
    client.begin(MIB)
    shutil.rmtree(partials(rig)[0].parent)
    assert client.offset() == MIB
    assert client.complete().status == 201
    assert_stored(rig)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("away", [False, True])
def test_what_comes_back_wrong_from_a_disk_gets_no_name(quick_path, away, later):
    """Where it goes on all of it is hashed anew, also what was hashed as it came."""
    rig = FaultyRig(quick_path, kind=QuickFiles, boot="this")
    client = Client(rig)
    client.begin(MIB)
    (first, second), _ = home_of(rig)
    rig.disks[first].fail_always("*" if away else "write", errno.EIO)
    rig.disks[second].rots = True
    if away:
        rig.probe()
    if later:  # what was moved by one request is named by another
        assert client.go_on(MIB, 5, SOME).status == 204
        rig.heal()
        rig.probe()
        assert client.go_on(MIB + 5).status == 412
    else:
        assert client.go_on(MIB).status in (412, 503)
        rig.heal()
        rig.probe()
    assert not rig.samples()
    assert any(client.complete().status == 201 for _ in range(3))
    assert_stored(rig)


def calls_of_parts(path):
    """How many calls each disk of the set gets while CONTENT comes in two parts, and begins."""
    rig = FaultyRig(path, (2,), kind=QuickFiles, boot="this")
    client = Client(rig)
    for files in rig.disks.values():
        files.calls.clear()
    client.begin(MIB)
    client.go_on(MIB, 1000, SOME)
    client.complete()
    return {label: len(files.calls) for label, files in rig.disks.items()}


FAULTS = ("EIO", "ENOSPC", "EROFS", "ENOENT", "short write")

#: Every so many-th call meets a fault, another one for each fault.
EVERY = 1 if os.environ.get("STOR_SOAK") == "1" else 6


@pytest.mark.parametrize("sets", [(2,), (2, 2)])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_call_fails_the_upload_ends_well(quick_path, figures, fault, sets):
    """What was told holds, and in the end there are the right bytes and nothing else."""
    numbers, trials = count(), 0
    calls = calls_of_parts(quick_path / "calls")
    for label, number in calls.items():
        for n in range(FAULTS.index(fault), number, EVERY):
            rig = FaultyRig(quick_path / str(next(numbers)), sets, kind=QuickFiles, boot="this")
            client, told = Client(rig), 0
            disk = rig.disks[label]
            if fault == "short write":
                disk.short_write_at(n)
            else:
                disk.fail_at(n, getattr(errno, fault))
            for step in ("begin", "go on", "complete"):
                response = client.step(step)
                assert response.status in (200, 201, 204, 400, 404, 409, 410, 503, 507)
                offset = response.headers.get("upload-offset")
                if response.status < 300 and offset is not None:
                    told = int(offset)
            rig.heal()
            rig.rounds(2)
            if not rig.copies(CONTENT):
                offset = client.offset()
                assert (offset or 0) >= told or fault == "ENOENT"
                assert client.complete().status == 201
            assert_stored(rig)
            assert [mirror.reserved.total() for mirror in rig.mirrors.mirrors] == [(0, 0)] * len(
                sets
            )
            shutil.rmtree(rig.roots[0].parent.parent)
            close_indexes()
            trials += 1
    figures["uploads in parts with one fault"] += trials


def test_no_descriptor_stays_open(rig):
    content = sample(MIB)
    Client(rig).begin(MIB)
    Client(rig, content).complete()
    before = descriptors()
    for number in range(5):
        assert Client(rig).offset() == MIB + number
        assert Client(rig).go_on(MIB + number, 1, SOME).status == 204
        assert Client(rig).go_on(3).status == 409
    assert descriptors() == before
    assert Client(rig).complete().status == 201
    assert descriptors() == before


def test_what_hangs_is_given_up_and_nothing_late_spoils_what_comes_after(quick_path):
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles, threads=True, boot="this")
    client = Client(rig)
    client.begin(MIB)
    rig.hang("set0/disk1", 3)
    response = client.go_on(MIB, 1000, SOME, seconds=40)
    assert response.status == 503
    told = client.offset(seconds=20)
    assert told in (MIB, MIB + 1000) or told.status == 503
    rig.heal()
    rig.rounds(4)
    told = client.offset(seconds=20)
    assert told in (MIB, MIB + 1000)
    assert client.go_on(told, seconds=20).status == 201
    assert_stored(rig)


@pytest.mark.parametrize("disks", [1, 2, 3])
@pytest.mark.parametrize(("cut", "restarted"), [(False, False), (True, False), (True, True)])
def test_what_is_told_outlives_a_loss_of_power_and_so_does_the_sample(
    tmp_path, disks, cut, restarted
):
    content = sample(SYNC_BYTES + 3 * MIB)
    stor = Recorded(tmp_path, disks)
    client = Client(stor.rig, content)
    if cut:
        client.cut(MIB)
    else:
        assert client.begin(MIB).status == 201
        stor.told(MIB, content)
    if restarted:
        stor.restart()
        client.rig = stor.rig
    if cut:
        stor.told(client.offset(), content)
    assert client.go_on(MIB, SYNC_BYTES + MIB, SOME).status == 204
    stor.told(SYNC_BYTES + 2 * MIB, content)
    response = client.go_on(SYNC_BYTES + 2 * MIB)
    assert response.status == 201
    stor.answered(content)
    events = history(stor.log)
    assert [event.kind for event in events].count("told") == 2
    for judge in (*JUDGES, assert_recorded_first, assert_partial_is_durable):
        judge(events, stor.disks)
    # No sync can be left out before an offset is told.
    last = max(n for n, event in enumerate(events) if event.kind == "told")
    ours = [
        n
        for n, event in enumerate(events[:last])
        if event.kind == "sync" and event.subject.endswith("what is partial")
    ]
    assert len(ours) >= 2 * disks
    for disk in stor.disks:
        kept = [e for n, e in enumerate(events) if n not in ours or e.disk != disk]
        with pytest.raises(AssertionError):
            assert_partial_is_durable(kept, stor.disks)
