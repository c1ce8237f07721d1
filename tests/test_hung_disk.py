"""A disk that does not answer: nobody waits for it longer than the deadlines, nothing is lost."""

import json

import pytest
from twisted.internet.defer import Deferred

from stor.mirror.health import State
from stor.mirror.member import ANSWER_SECONDS, PROBE_DEADLINE_SECONDS, SLOW_SECONDS
from stor.mirror.put import MEND_SECONDS
from stor.mirror.search import HEDGE_SECONDS
from stor.mirror.write import STEP_SECONDS
from tests.conformance import MIB, QuickFiles, descriptors, sample
from tests.support.http import assert_one_line, no_bug_logged
from tests.support.rig import AUTHORIZATION, FaultyRig, digest_of, request_bytes

#: Clients do not wait for so long without hearing anything.
SILENCE_SECONDS = 30

AUTHORIZED = ("Authorization", AUTHORIZATION)
SIZES = [5000, 300_000]


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Hanging:
    """A Stor of two pairs with samples on both; `home` tells on which disks each is."""

    def __init__(self, path, sets=(2, 2), **options):
        self.rig = FaultyRig(path, sets, kind=QuickFiles, threads=True, **options)
        self.samples = [sample(size, seed) for size in SIZES for seed in range(10)]
        for content in self.samples:
            assert self.rig.put(content).status == 201
        self.descriptors = descriptors()

    def member(self, label):
        return next(m for m in self.rig.members if m.root.endswith(label))

    def asked(self, method, path, data=None, headers=()):
        """A connection on which a request was sent."""
        connection = self.rig.connect()
        connection.send(request_bytes(method, path, headers, data))
        return connection

    def get(self, content, seconds):
        """What a download has received after so many seconds."""
        return self.answer(self.asked("GET", f"/{digest_of(content)}"), seconds)

    def post(self, content, seconds):
        """What an upload has received after so many seconds."""
        upload = self.asked("POST", f"/{digest_of(content)}", content, [AUTHORIZED])
        return self.answer(upload, seconds)

    def answer(self, connection, seconds):
        """What has been received after so many seconds."""
        for _ in range(int(seconds / HEDGE_SECONDS)):
            if not connection.received:
                connection.wait(HEDGE_SECONDS)
        return connection.responses()[0] if connection.received else None

    def assert_nothing_left(self):
        """All that was late has ended and given back what it held."""
        assert descriptors() == self.descriptors
        assert not self.rig.staged()
        assert not any(member.slow or member._under_way for member in self.rig.members)


@pytest.fixture
def hanging(quick_path):
    return Hanging(quick_path)


@pytest.mark.parametrize("label", ["set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1"])
def test_what_the_other_disks_hold_is_served_as_ever(hanging, label):
    hanging.rig.hang(label)
    for content in hanging.samples * 2:
        assert hanging.get(content, HEDGE_SECONDS).body == content
    hanging.rig.heal()
    hanging.rig.clock.advance(ANSWER_SECONDS)
    hanging.assert_nothing_left()


def test_a_disk_that_has_been_slow_is_asked_last(hanging):
    hanging.rig.hang("set0/disk0")
    while not hanging.member("set0/disk0")._under_way:
        for content in hanging.samples:
            hanging.get(content, HEDGE_SECONDS)
    hanging.rig.clock.advance(SLOW_SECONDS + 0.1)
    for content in hanging.samples:
        assert hanging.get(content, 0).body == content
    hanging.rig.heal()
    hanging.rig.clock.advance(ANSWER_SECONDS)
    hanging.assert_nothing_left()


def test_a_miss_waits_for_a_disk_no_longer_than_its_time_to_answer(hanging):
    hanging.rig.hang("set0/disk0")
    connection = hanging.asked("GET", f"/{digest_of(b'absent')}")
    connection.wait(HEDGE_SECONDS)
    assert not connection.received
    connection.wait(ANSWER_SECONDS)
    assert_one_line(connection.responses()[0], 404)


def test_a_miss_is_no_404_while_a_whole_set_does_not_answer(hanging):
    rig = hanging.rig
    for label in ("set0/disk0", "set0/disk1"):
        rig.hang(label)
    response = hanging.get(b"absent", 2 * ANSWER_SECONDS)
    assert_one_line(response, 503)
    assert int(response.headers["retry-after"]) > 0
    rig.probe()
    rig.clock.advance(PROBE_DEADLINE_SECONDS)
    response = hanging.get(b"absent", 0)
    assert_one_line(response, 503)
    assert "has not answered for 10 s" in response.text
    rig.heal()
    assert_one_line(hanging.get(b"absent", 0), 404)
    hanging.assert_nothing_left()


def test_the_status_names_it_after_its_deadline_and_forgets_it_when_it_answers(hanging):
    rig, member = hanging.rig, hanging.member("set1/disk0")
    rig.hang("set1/disk0")
    rig.probe()
    rig.clock.advance(PROBE_DEADLINE_SECONDS - 0.1)
    assert rig.request("GET", "/status").body == b"OK\n"
    rig.clock.advance(0.1)
    response = rig.request("GET", "/status")
    assert response.status == 503
    assert response.text == f"{member.root}: offline: {member.root}: has not answered for 10 s\n"
    for _ in range(20):  # it is not asked again while it is being asked
        rig.clock.advance(15)
        rig.probe()
    assert rig.request("GET", "/status").status == 503
    rig.heal()
    assert rig.request("GET", "/status").body == b"OK\n"
    hanging.assert_nothing_left()


def test_once_it_is_known_to_hang_nobody_waits_for_it(hanging):
    rig = hanging.rig
    rig.hang("set0/disk0")
    rig.probe()
    rig.clock.advance(PROBE_DEADLINE_SECONDS)
    for content in hanging.samples:
        assert hanging.get(content, 0).body == content
    assert_one_line(hanging.get(b"absent", 0), 404)
    connection = hanging.asked("GET", "/status", headers=[("Accept", "application/json")])
    picture = json.loads(connection.responses()[0].body)
    assert [d["state"] for s in picture["sets"] for d in s["disks"]].count("offline") == 1
    for n in range(10):
        response = rig.put(b"new %d" % n)
        assert response.status == 201
        assert "set1" in response.text
    stored = [content for content in hanging.samples if "set0" in str(rig.copies(content))]
    assert [rig.put(content).status for content in stored] == [200] * len(stored)


@pytest.mark.parametrize("n", range(0, 40, 3))
@pytest.mark.parametrize("size", [5000, 2 * MIB])
def test_an_upload_goes_to_another_set_while_its_client_still_waits(quick_path, size, n):
    """Whatever it was about to do on the disk, and nobody waits for that to be undone."""
    hanging = Hanging(quick_path)
    rig = hanging.rig
    contents = [sample(size, f"new {number}") for number in range(4)]
    for number, content in enumerate(contents):
        if number == 0:
            rig.hang("set0/disk1", n)
        assert hanging.post(content, STEP_SECONDS + 1).status == 201
    rig.heal()
    rig.clock.advance(60)
    assert [len(rig.copies(content)) for content in contents] == [2] * 4
    hanging.assert_nothing_left()


def test_new_samples_go_elsewhere_once_a_disk_has_not_said_whether_it_has_them(hanging):
    """Long before a probe tells that it hangs."""
    rig = hanging.rig
    rig.hang("set0/disk1")
    for number in range(20):
        response = hanging.post(b"new %d" % number, ANSWER_SECONDS + HEDGE_SECONDS)
        assert response.status == 201
        assert "set1" in response.text
    rig.heal()
    rig.clock.advance(60)
    hanging.assert_nothing_left()


@pytest.mark.parametrize("n", range(0, 40, 3))
@pytest.mark.parametrize("size", [5000, 2 * MIB])
def test_an_upload_is_answered_within_the_deadlines(quick_path, size, n):
    hanging = Hanging(quick_path, (2,))
    rig = hanging.rig
    rig.hang("set0/disk1", n)
    content = sample(size, "new")
    seconds = 0
    upload = hanging.asked("POST", f"/{digest_of(content)}", content, [AUTHORIZED])
    while not upload.received:
        upload.wait(1)
        seconds += 1
    assert seconds < SILENCE_SECONDS
    assert upload.responses()[0].status in (201, 503)
    rig.heal()
    rig.clock.advance(60)
    assert len(rig.copies(content)) == (2 if upload.responses()[0].status == 201 else 0)
    assert descriptors() == hanging.descriptors
    assert not rig.staged()


@pytest.mark.parametrize("gone_after", [0, 0.1, 3, 20])
@pytest.mark.parametrize("size", SIZES)
def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(hanging, size, gone_after):
    rig = hanging.rig
    rig.hang("set0/disk0")
    rig.hang("set1/disk1")
    for content in hanging.samples:
        if len(content) == size:
            connection = hanging.asked("GET", f"/{digest_of(content)}")
            connection.wait(gone_after)
            connection.close()
    posting = hanging.asked("POST", f"/{digest_of(b'new')}", b"new", [AUTHORIZED])
    posting.wait(gone_after)
    posting.close()
    rig.heal()
    rig.clock.advance(60)
    hanging.assert_nothing_left()


@pytest.mark.parametrize("label", ["set0/disk0", "set1/disk1"])
def test_the_start_does_not_wait_for_what_is_to_be_repaired(hanging, label):
    """The disk has passed its probe, and hangs when it is asked for its notes."""
    begun = []
    hanging.rig.begin()
    hanging.rig.hang(label)
    Deferred.fromCoroutine(hanging.rig.mirrors.begin()).addBoth(begun.append)
    hanging.rig.clock.advance(ANSWER_SECONDS)
    assert begun == [None]
    hanging.rig.heal()
    hanging.assert_nothing_left()


def test_an_upload_without_room_does_not_wait_for_the_room_of_a_disk_that_hangs(quick_path):
    rig = FaultyRig(quick_path, kind=QuickFiles, threads=True, reserve_bytes=2**62)
    rig.hang("set0/disk0", 4)  # after it has said that it does not have the sample
    connection = rig.connect()
    connection.send(request_bytes("POST", f"/{digest_of(b'new')}", [AUTHORIZED], b"new"))
    connection.wait(ANSWER_SECONDS)
    assert_one_line(connection.responses()[0], 507)


def test_a_repair_that_hangs_does_not_hold_up_the_upload_that_asks_for_it(hanging):
    rig = hanging.rig
    content = hanging.samples[0]
    lost, other = rig.copies(content)
    lost.unlink()
    label = "/".join(other.parts[-6:-4])
    rig.hang(label, 17)  # it says that it has its copy, and is read from no more
    connection = hanging.asked("POST", f"/{digest_of(content)}", content, [AUTHORIZED])
    connection.wait(MEND_SECONDS - 1)
    assert not connection.received
    connection.wait(1)
    assert_one_line(connection.responses()[0], 503)
    elsewhere = [c for c in hanging.samples if label[:4] not in str(rig.copies(c))]
    rig.copies(elsewhere[0])[0].unlink()
    connection = hanging.asked("POST", f"/{digest_of(elsewhere[0])}", elsewhere[0], [AUTHORIZED])
    connection.wait(ANSWER_SECONDS)
    assert connection.responses()[0].status == 200
    rig.heal()
    rig.rounds(2)
    assert [path.read_bytes() for path in rig.copies(content)] == [content] * 2
    assert rig.mirrors.repairs.waiting == 0
    hanging.assert_nothing_left()


def test_a_disk_that_comes_back_is_written_again(hanging):
    rig = hanging.rig
    for label in list(rig.disks):
        rig.hang(label)
    rig.probe()
    rig.clock.advance(PROBE_DEADLINE_SECONDS)
    assert_one_line(rig.put(b"new"), 503)
    rig.heal()
    assert {member.health.state for member in rig.members} == {State.ONLINE}
    assert rig.put(b"new").status == 201
    hanging.assert_nothing_left()
