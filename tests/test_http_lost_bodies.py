"""Bodies that do not arrive, or that nobody can take: nothing is kept of them."""

import errno
import random
import shutil

import pytest

from stor.digest import Digest
from stor.http.channel import LINGER_IDLE_SECONDS
from tests.support.files import FaultyFiles
from tests.support.http import (
    AUTHORIZED,
    CHUNKED,
    Disks,
    assert_nothing_kept,
    assert_stored,
    chunked,
    descriptors,
    no_bug_logged,
    upload_head,
)
from tests.support.rig import Rig, request_bytes

HELLO = b"hello"
SHA = str(Digest.of(HELLO))


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


class NoNamelessFiles(FaultyFiles):
    """A file system without O_TMPFILE, where a staged file has a name to be left behind."""

    def __init__(self, label):
        super().__init__(label)
        self.fail_always("open_nameless", errno.EOPNOTSUPP)


@pytest.mark.parametrize("files", [FaultyFiles, NoNamelessFiles])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_cut_at_any_byte_keeps_nothing(tmp_path, framing, files):
    rig = Rig(tmp_path, files=files)
    data = {
        "length": request_bytes("POST", f"/{SHA}", [AUTHORIZED], HELLO),
        "chunked": upload_head(HELLO, CHUNKED) + chunked([b"he", b"llo"], trailers=b"X: y\r\n"),
    }[framing]
    before, timers = descriptors(), len(rig.clock.getDelayedCalls())
    for sent in range(len(data)):
        connection = rig.connect()
        connection.send(data[:sent])
        connection.close()
        assert connection.responses() == []
    assert_nothing_kept(rig)
    assert descriptors() == before
    assert len(rig.clock.getDelayedCalls()) == timers
    assert not rig.site.channels
    connection = rig.connect()
    connection.send(data)
    assert_stored(rig, HELLO, connection.responses()[0])


@pytest.mark.parametrize("files", [FaultyFiles, NoNamelessFiles])
@pytest.mark.parametrize("sent", [0, 1, 262_143, 262_144, 1_048_577, 2_999_999])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_upload_cut_short_keeps_nothing(tmp_path, framing, sent, files):
    rig = Rig(tmp_path, files=files)
    before = descriptors()
    content = random.Random(3).randbytes(3_000_000)
    connection = rig.connect()
    if framing == "length":
        data = request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content)
        connection.send(data[: len(data) - len(content) + sent])
    else:
        parts = [content[:sent][i : i + 65536] for i in range(0, sent, 65536)]
        connection.send(upload_head(content, CHUNKED) + chunked(parts)[: -len(b"0\r\n\r\n")])
    connection.close()
    assert connection.responses() == []
    assert_nothing_kept(rig)
    assert descriptors() == before


def test_a_silent_client_is_cut_and_nothing_is_kept(rig):
    connection = rig.connect()
    connection.send(request_bytes("POST", f"/{SHA}", [AUTHORIZED, ("Content-Length", "5")]))
    connection.send(b"hell")
    connection.wait(59)
    assert not connection.closed
    connection.wait(1)
    assert connection.closed
    assert_nothing_kept(rig)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [100, 101, 5000])
def test_larger_than_the_limit(tmp_path, framing, size):
    """413 as soon as it is known: by the length, or by counting."""
    rig = Rig(tmp_path, max_upload_bytes=100)
    content = b"x" * size
    connection = rig.connect()
    if framing == "length":
        connection.send(request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content))
    else:
        parts = [content[i : i + 10] for i in range(0, size, 10)]
        connection.send(upload_head(content, CHUNKED) + chunked(parts))
    (response,) = connection.responses()
    if size <= 100:
        assert_stored(rig, content, response)
        return
    assert response.status == 413
    assert "100 bytes" in response.text
    assert_nothing_kept(rig)


def test_counting_ends_an_endless_body(tmp_path):
    rig = Rig(tmp_path, max_upload_bytes=1_000_000)
    connection = rig.connect()
    connection.send(upload_head(HELLO, CHUNKED))
    for _ in range(20):
        connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    (response,) = connection.responses()
    assert response.status == 413
    assert response.headers["connection"] == "close"
    assert connection.unread == 0
    assert_nothing_kept(rig)
    connection.wait(LINGER_IDLE_SECONDS)
    assert connection.closed


@pytest.mark.parametrize(
    ("error", "status"),
    [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EIO, 503), (errno.EROFS, 503)],
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_disk_fails_in_the_middle_of_a_body(tmp_path, framing, error, status):
    """The answer does not wait for the rest of the body."""
    disks = Disks(FaultyFiles)
    rig = Rig(tmp_path, files=disks, sets=(2,))
    before = descriptors()
    content = b"x" * 3_000_000
    connection = rig.connect()
    headers = [AUTHORIZED, ("Content-Length", "3000000") if framing == "length" else CHUNKED]
    connection.send(request_bytes("POST", f"/{Digest.of(content)}", headers))
    part = content[:1_000_000]
    connection.send(part if framing == "length" else b"f4240\r\n" + part + b"\r\n")
    disks["set0/disk1"].fail_always("write", error)
    connection.send(part if framing == "length" else b"f4240\r\n" + part + b"\r\n")
    (response,) = connection.responses()
    assert response.status == status
    assert response.text.count("\n") == 1
    assert ("retry-after" in response.headers) == (status == 503)
    assert response.headers["connection"] == "close"
    connection.close()
    assert_nothing_kept(rig)
    assert descriptors() == before


def test_nobody_may_be_written_to_by_configuration(tmp_path):
    rig = Rig(tmp_path, read_only=[(0, 0), (1, 1)])
    response = rig.put(HELLO)
    assert response.status == 507
    assert "writable_pairs_regex" in response.text
    assert_nothing_kept(rig)


def test_only_sets_that_are_writable_as_a_whole_are_written(tmp_path):
    rig = Rig(tmp_path, read_only=[(0, 1)])
    for n in range(20):
        assert rig.put(b"%d" % n).status == 201
    assert all(
        rig.roots[2] in path.parents or rig.roots[3] in path.parents for path in rig.samples()
    )


def test_every_writable_set_is_broken(tmp_path):
    rig = Rig(tmp_path)
    shutil.rmtree(rig.roots[1])
    shutil.rmtree(rig.roots[2])
    rig.probe()
    response = rig.put(HELLO)
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert f"{rig.roots[1]}: not a directory" in response.text
    assert f"{rig.roots[2]}: not a directory" in response.text
    assert_nothing_kept(rig)


def test_many_clients_store_one_sample(rig):
    """One 201, the rest 200, one file a disk; a third of them goes away in the middle."""
    content = random.Random(9).randbytes(2_000_000)
    data = request_bytes("POST", f"/{Digest.of(content)}", [AUTHORIZED], content)
    before = descriptors()
    connections = [rig.connect() for _ in range(12)]
    for part in range(5):
        for n, connection in enumerate(connections):
            if n % 3 == 0 and part == 3:
                connection.close()
            begin = part * 500_000
            connection.send(data[begin : begin + 500_000])
    answers = [connection.responses() for connection in connections]
    assert all(answers[n] == [] for n in range(0, 12, 3))
    answered = [answer for n, (answer,) in enumerate(a or [None] for a in answers) if n % 3]
    assert sorted(answer.status for answer in answered) == [200] * 7 + [201]
    assert len({answer.body for answer in answered}) == 1
    assert_stored(rig, content, answered[0], answered[0].status)
    assert len(rig.samples()) == 2
    assert rig.staged() == []
    assert descriptors() == before
