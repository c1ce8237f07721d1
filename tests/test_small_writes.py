"""Small new samples that come whole: written in rounds, named in the next, and never before."""

import errno
import random
import shutil

import pytest

from stor.digest import Digest
from stor.mirror.group_commit import (
    REST_SECONDS,
    STUCK_SECONDS,
    UNWRITTEN_BYTES,
    Alone,
    GroupCommit,
)
from tests.conformance import QuickFiles, neighbours, release, sample, without_nameless_files
from tests.durability import JUDGES, Recorded, assert_recorded_first, history
from tests.support.http import descriptors
from tests.support.pools import HeldPool, InlineOutcomes, InlinePool
from tests.support.rig import AUTHORIZATION, FaultyRig, request_bytes

#: Every upload is answered within this time, whatever hangs.
ANSWER_SECONDS = 29

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT)
CONTENTS = [*neighbours(4), sample(60_000, 1), b"", sample(1000, 2)]
HEADERS = [("Authorization", AUTHORIZATION)]


class Rounds(Recorded):
    """A Stor whose index knows all names, and whose rounds wait until the test releases them."""

    def __init__(self, path, disks=2, files=QuickFiles, sets=1):
        self.held, self.unwritten = HeldPool(), 0
        super().__init__(path, disks, files, self.held, sets, self._commits, learnt=True)
        self.clients = []

    def _commits(self, disk):
        return GroupCommit(
            Alone(disk, InlinePool()),
            InlinePool(),
            lambda: self.unwritten,
            InlineOutcomes(),
            lambda: self.rig.clock.seconds(),  # noqa: PLW0108 the rig comes later
        )

    def post(self, content, headers=(), method="POST"):
        """A client that posts a sample, and waits."""
        client = self.rig.connect()
        self.clients.append((client, content))
        path = f"/{Digest.of(content)}"
        client.send(request_bytes(method, path, [*HEADERS, *headers], content))
        return client

    def release(self, jobs=None, choose=lambda jobs: 0):
        """Do what waits, one after the other; note each answer when it comes."""
        while self.held.held and jobs != 0:
            release(self.held, choose(len(self.held.held)))
            self.settle()
            jobs = None if jobs is None else jobs - 1

    def settle(self):
        """Note the answers that have come."""
        for client, content in list(self.clients):
            client.settle()
            if client.received:
                self.clients.remove((client, content))
                if client.responses(["POST"])[0].status == 201:
                    self.answered(content)

    def post_all(self, contents=CONTENTS, choose=lambda jobs: 0):
        """Post all at once: the statuses of the answers."""
        clients = [self.post(content) for content in contents]
        self.release(choose=choose)
        return [client.responses(["POST"])[0].status for client in clients]

    def called(self, name):
        """How often a system call was made, on all disks."""
        return sum(call.name == name for _, call in self.log)


@pytest.mark.parametrize("files", [QuickFiles, without_nameless_files])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("disks", [1, 2, 3])
def test_samples_are_durable_when_they_are_answered(tmp_path, files, seed, disks):
    stor, rng = Rounds(tmp_path, disks, files), random.Random(seed)
    for content in CONTENTS:
        stor.post(content)
        stor.release(rng.randrange(3), rng.randrange)
    stor.release(choose=rng.randrange)
    events = stor.judge(answers=len(CONTENTS))
    assert_recorded_first(events, stor.disks)
    assert stor.called("sync_all") > 0


def test_the_judges_miss_no_shared_sync_that_is_left_out(tmp_path):
    stor = Rounds(tmp_path)
    assert stor.post_all() == [201] * len(CONTENTS)
    events = stor.judge(answers=len(CONTENTS))
    shared = [place for place, event in enumerate(events) if event.kind == "sync_all"]
    assert len(shared) == 4
    for place in shared:
        for judge in JUDGES:
            with pytest.raises(AssertionError):
                judge(events[:place] + events[place + 1 :], stor.disks)


def test_a_round_is_one_job_on_each_disk_and_one_sync(tmp_path):
    stor = Rounds(tmp_path)
    for n in range(100):
        stor.post(sample(1000, n))
    assert len(stor.held.held) == 2
    stor.release()
    # The first was alone; it gets its name while the others are written.
    assert stor.called("sync_all") == 2 * 2
    stor.judge(answers=100)


def test_one_alone_syncs_what_is_its_own(tmp_path):
    stor = Rounds(tmp_path)
    assert stor.post_all(CONTENTS[:1]) == [201]
    assert stor.called("sync_all") == 0
    assert sum(event.kind == "sync" for event in history(stor.log)) == 2 * 5


def test_what_comes_in_pieces_shares_rounds_with_all_others(tmp_path):
    stor = Rounds(tmp_path)
    contents = [sample(1000, n) for n in range(20)]
    for content in contents:
        client = stor.rig.connect()
        stor.clients.append((client, content))
        request = request_bytes("POST", f"/{Digest.of(content)}", HEADERS, content)
        head, _, body = request.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        while len(stor.held.held) > 2 or (stor.held.held and content is contents[0]):
            release(stor.held)  # its look at the disks
        client.send(body)
    stor.release()
    assert stor.called("sync_all") == 2 * 2
    stor.judge(answers=len(contents))


def much_to_write(stor):
    stor.unwritten = UNWRITTEN_BYTES + 1


def nobody_knows(stor):
    stor.unwritten = None


def file_system_unknown(stor):
    for member in stor.rig.members:
        member.disk.files.type_of = lambda fd: 0x65735546


@pytest.mark.parametrize("trouble", [much_to_write, nobody_knows, file_system_unknown])
def test_where_no_sync_may_be_shared_each_has_rounds_of_its_own(tmp_path, trouble):
    stor = Rounds(tmp_path)
    trouble(stor)
    assert stor.post_all() == [201] * len(CONTENTS)
    assert stor.called("sync_all") == 0
    # For a while it is not even looked whether they may be.
    for n in range(10, 15):
        stor.post(sample(1000, n))
    assert len(stor.held.held) == 2 * 5
    stor.release()
    assert stor.called("sync_all") == 0
    stor.judge(answers=len(CONTENTS) + 5)


def test_syncs_are_shared_again_once_the_others_have_written(tmp_path):
    stor = Rounds(tmp_path)
    much_to_write(stor)
    stor.post_all()
    stor.unwritten = 0
    stor.rig.clock.advance(REST_SECONDS)
    stor.post_all([sample(1000, n) for n in range(20, 25)])
    assert stor.called("sync_all") > 0


def test_the_disks_own_cache_is_flushed_after_a_shared_sync(tmp_path):
    stor = Rounds(tmp_path, 1)
    stor.post_all()
    calls = [call for _, call in stor.log]
    for place, call in enumerate(calls):
        if call.name == "sync_all":
            assert calls[place + 1].name == "sync"
            assert calls[place + 1].args == call.args


def test_no_directory_is_made_that_is_there(tmp_path):
    stor = Rounds(tmp_path)
    for content in CONTENTS:
        for root in stor.rig.roots:
            (root / Digest.of(content).directories[-1]).mkdir(parents=True, exist_ok=True)
    assert stor.post_all() == [201] * len(CONTENTS)
    assert stor.called("make_directory") == 0
    stor.judge(answers=len(CONTENTS))


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("error", ERRORS)
def test_a_fault_at_any_call_loses_nothing(quick_path, error, sets, figures):
    def trial(n, disk):
        stor = Rounds(quick_path / f"{sets} {disk} {n}", sets=sets)
        files = stor.rig.members[disk].disk.files
        before = len(files.calls)
        if n is not None:
            files.fail_at(n, error)
        statuses = stor.post_all()
        return stor, files, statuses, len(files.calls) - before

    opened = descriptors()
    for disk in range(2):
        calls = trial(None, disk)[-1]
        for n in range(0, calls, 3):
            stor, files, statuses, _ = trial(n + (errno.EIO + error) % 3, disk)
            files.heal()
            assert set(statuses) <= {201, 503, 507}
            kept = [c for c, s in zip(CONTENTS, statuses, strict=True) if s == 201]
            for content in CONTENTS:
                copies = stor.rig.copies(content)
                assert [path.read_bytes() for path in copies] == [content] * len(copies)
                assert len(copies) == (2 if content in kept else 0)
            if sets == 1:
                for judge in JUDGES:
                    judge(history(stor.log), stor.disks)
            else:
                assert len(kept) == len(CONTENTS)
            assert not stor.rig.staged()
            assert stor.rig.mirrors.turns.idle
            assert all(mirror.reserved.total() == (0, 0) for mirror in stor.rig.mirrors.mirrors)
            assert stor.rig.uploads.buffered_bytes == 0
            assert descriptors() == opened
            stor.rig.probe()
            again = stor.post_all()
            assert again == [200 if content in kept else 201 for content in CONTENTS]
            shutil.rmtree(quick_path)
            quick_path.mkdir()
            figures["uploads that share a round, with one fault"] += 1


def test_nobody_joins_a_round_that_hangs(tmp_path):
    stor = Rounds(tmp_path)
    stuck = [stor.post(content) for content in CONTENTS]
    hanging = list(stor.held.held)
    stor.held.held.clear()
    stor.rig.clock.advance(STUCK_SECONDS + 0.1)
    later = [stor.post(sample(1000, n)) for n in range(10, 13)]
    stor.release()
    assert all(client.received for client in later)
    assert not any(client.received for client in stuck)
    stor.held.held.extend(hanging)
    stor.release()
    assert all(client.received for client in stuck)
    stor.judge(answers=len(stuck) + len(later))


@pytest.mark.parametrize("sets", [(2,), (2, 2)])
@pytest.mark.parametrize("call", range(0, 90, 15))
def test_who_waits_for_a_disk_that_hangs_is_answered(tmp_path, sets, call):
    """And what it does in the end leaves nothing."""
    rig = FaultyRig(tmp_path, sets, kind=QuickFiles, threads=True, learnt=True)
    rig.hang("set0/disk1", call)
    clients = []
    for content in CONTENTS:
        clients.append(rig.connect())
        clients[-1].send(request_bytes("POST", f"/{Digest.of(content)}", HEADERS, content))
    for _ in range(ANSWER_SECONDS):
        rig.clock.advance(1)
        for client in clients:
            client.settle()
    statuses = [client.responses(["POST"])[0].status for client in clients]
    rig.heal()
    rig.clock.advance(60)
    assert set(statuses) <= ({201, 503} if sets == (2,) else {201})
    for content, status in zip(CONTENTS, statuses, strict=True):
        copies = [path.read_bytes() for path in rig.copies(content)]
        assert copies == ([content] * 2 if status == 201 else [])
    assert not rig.staged()
    assert rig.mirrors.turns.idle
    assert all(mirror.reserved.total() == (0, 0) for mirror in rig.mirrors.mirrors)


def test_a_client_that_is_gone_keeps_nobody(tmp_path):
    stor = Rounds(tmp_path)
    first, second = stor.post(sample(1000, 1)), stor.post(sample(1000, 2))
    first.close()
    stor.release()
    assert second.responses(["POST"])[0].status == 201
    assert [one.outcome for one in stor.rig.served] == ["cut", "done"]
    assert len(stor.rig.copies(sample(1000, 1))) == 2
    assert stor.rig.uploads.in_progress == stor.rig.uploads.active == 0


def test_what_comes_meanwhile_is_answered_after_it(tmp_path):
    stor = Rounds(tmp_path)
    client = stor.post(sample(1000))
    client.send(request_bytes("HEAD", f"/{Digest.of(sample(1000))}"))
    client.send(request_bytes("GET", "/status"))
    stor.settle()
    assert not client.received
    stor.release()
    client.settle()
    statuses = [r.status for r in client.responses(["POST", "HEAD", "GET"])]
    assert statuses == [201, 200, 200]


def test_the_connection_ends_after_it_when_stor_ends(tmp_path):
    stor = Rounds(tmp_path)
    client = stor.post(sample(1000))
    stor.rig.site.drain()
    stor.release()
    (response,) = client.responses(["POST"])
    assert (response.status, response.headers["connection"]) == (201, "close")
    assert client.closed


def test_the_answer_is_what_another_upload_gets(tmp_path):
    """Of one that is sent in pieces, which goes through its Klein route."""
    stor = Rounds(tmp_path)
    answers = []
    for n, pieces in enumerate((1, 2)):
        content = sample(1000, n)
        data = request_bytes("PUT", f"/{Digest.of(content)}", HEADERS, content)
        client = stor.rig.connect()
        cut = len(data) // pieces
        client.send(data[:cut])
        client.send(data[cut:])
        stor.release()
        client.settle()
        (response,) = client.responses(["PUT"])
        paths = [str(path) for path in stor.rig.copies(content)]
        assert response.text == "[" + ", ".join(f'"{path}"' for path in paths) + "]\n"
        answers.append((response.status, response.headers.keys(), len(response.body)))
    assert answers[0] == answers[1]
    one, other = stor.rig.served
    for field in ("peer", "method", "status", "received_bytes", "storage", "user", "outcome"):
        assert getattr(one, field) == getattr(other, field)


ODD = {
    "another sha": (lambda data: data.replace(b"POST /", b"POST /00", 1), 412),
    "another body": (lambda data: data[:-1] + b"\0", 412),
    "no password": (lambda data: data.replace(b"Authorization", b"Nothing"), 401),
    "a wrong one": (lambda data: data.replace(b"Basic ", b"Basic AAAA"), 401),
    "two": (lambda data: data.replace(b"Host", b"Authorization: Basic AAAA\r\nHost"), 201),
    "no host": (lambda data: data.replace(b"Host: stor.example\r\n", b""), 400),
    "two hosts": (lambda data: data.replace(b"Host", b"Host: other\r\nHost"), 400),
    "a form": (lambda data: _with(data, "Content-Type: multipart/form-data; boundary=x"), 415),
    "encoded": (lambda data: _with(data, "Content-Encoding: gzip"), 415),
    "a part": (lambda data: _with(data, "Content-Range: bytes 0-9/10"), 400),
    "two lengths": (lambda data: _with(data, "Content-Length: 5"), 400),
    "HTTP/1.0": (lambda data: data.replace(b"HTTP/1.1", b"HTTP/1.0"), 201),
    "the last one": (lambda data: _with(data, "Connection: close"), 201),
    "with a query": (lambda data: data.replace(b" HTTP", b"?a=b HTTP"), 201),
    "lower case": (lambda data: data.replace(b"Content-Length", b"content-length"), 201),
    "resumable": (lambda data: _with(data, "Upload-Complete: ?1"), 201),
}


def _with(data, line):
    return data.replace(b"Host", line.encode() + b"\r\nHost", 1)


@pytest.mark.parametrize("case", ODD)
def test_an_odd_request_is_answered_as_if_it_had_come_in_pieces(tmp_path, case):
    change, status = ODD[case]
    content = sample(1000)
    for pieces in (1, 40):
        stor = Rounds(tmp_path / str(pieces))
        data = change(request_bytes("POST", f"/{Digest.of(content)}", HEADERS, content))
        client, size = stor.rig.connect(), -(-len(data) // pieces)
        for begin in range(0, len(data), size):
            client.send(data[begin : begin + size])
        stor.release()
        client.settle()
        stor.rig.clock.advance(10)
        assert client.responses(["POST"])[0].status == status
        assert len(stor.rig.copies(content)) == (2 if status == 201 else 0)
