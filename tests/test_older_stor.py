"""What the older Stor did and this one must not, each by name, in the order of the list.

Most are shown in depth elsewhere; here stands the fault itself.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stor.digest import Digest
from stor.http.upload import BUFFER_BYTES
from tests.conformance import MIB, QuickFiles, sample
from tests.support.files import RecordingFiles
from tests.support.http import (
    AUTHORIZED,
    Disks,
    HeldPools,
    assert_nothing_kept,
    assert_one_line,
    assert_stored,
    no_bug_logged,
    upload_head,
)
from tests.support.pools import HeldPool, InlinePool
from tests.support.rig import FaultyRig, Rig, request_bytes

CONTENT = sample(5000)
SHA = str(Digest.of(CONTENT))
GIB = 1024 * MIB


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def test_80_mb_are_taken_with_75_gib_free(quick_path):
    """Space was compared in KiB with bytes: 507."""

    class Free75GiB(QuickFiles):
        def fstatvfs(self, fd):
            fields = list(os.fstatvfs(fd))
            fields[0:2] = 4096, 4096  # f_bsize, f_frsize
            fields[3:5] = [75 * GIB // 4096] * 2  # f_bfree, f_bavail
            return os.statvfs_result(fields)

    rig = Rig(quick_path, files=Free75GiB, reserve_bytes=GIB)
    connection = rig.connect()
    length = ("Content-Length", "80000000")
    connection.send(upload_head(SHA, length, ("Expect", "100-continue")))
    assert connection.continued
    connection.close()
    connection = rig.connect()
    connection.send(upload_head(SHA, ("Content-Length", str(75 * GIB))))
    assert connection.responses()[0].status == 507


def test_a_half_written_file_is_never_served(tmp_path):
    """It was, as 200, while another client's POST was being saved."""
    rig, content = Rig(tmp_path), sample(3 * MIB)
    connection = rig.connect()
    connection.send(upload_head(content, ("Content-Length", str(len(content)))))
    for begin in range(0, len(content), MIB // 2):
        assert rig.get(content).status == 404
        connection.send(content[begin : begin + MIB // 2])
    assert connection.responses()[0].status == 201
    assert rig.get(content).body == content


@pytest.mark.parametrize("size", [0, 1, 2500, 4999])
def test_a_truncated_file_is_not_served_and_posting_it_again_helps(tmp_path, size):
    """A `kill -9` left one: served for ever, and 200 to every attempt to post it again."""
    rig = Rig(tmp_path)
    rig.put(CONTENT)
    paths = rig.copies(CONTENT)
    for path in paths:
        os.truncate(path, size)
    assert_one_line(rig.get(CONTENT), 500)
    assert rig.put(CONTENT).status == 201
    assert [path.read_bytes() for path in paths] == [CONTENT] * 2
    assert rig.get(CONTENT).body == CONTENT


@pytest.mark.parametrize("disk", ["set0/disk0", "set0/disk1"])
def test_no_copy_is_kept_when_the_other_one_fails(tmp_path, disk):
    """The other one was kept, and never made whole."""
    rig = FaultyRig(tmp_path, (2,))
    rig.disks[disk].fail_always("write", errno.EIO)
    assert rig.put(CONTENT).status == 503
    assert_nothing_kept(rig)
    rig.heal()
    assert_stored(rig, CONTENT, rig.put(CONTENT))


def test_a_read_only_disk_fails_no_post(tmp_path):
    """Every second one was a 500."""
    rig = FaultyRig(tmp_path)
    for call in ("open_nameless", "create", "make_directory", "write"):
        rig.disks["set0/disk1"].fail_always(call, errno.EROFS)
    for number in range(20):
        assert_stored(rig, b"%d" % number, rig.put(b"%d" % number))


def test_nothing_is_written_under_an_unmounted_disk(tmp_path):
    """POST wrote to the root file system while /status failed."""
    rig = Rig(tmp_path, forbidden_device=tmp_path.stat().st_dev)
    assert rig.request("GET", "/status").status == 503
    assert_one_line(rig.put(CONTENT), 503)
    assert [list(root.iterdir()) for root in rig.roots] == [[]] * 4


@pytest.mark.parametrize(("lost", "status"), [([0], 200), ([1], 200), ([0, 1], 404)])
def test_a_file_that_is_gone_since_it_was_found_is_no_error(tmp_path, lost, status):
    """A cached path whose file was gone: 500 for ever."""
    rig = Rig(tmp_path)
    rig.put(CONTENT)
    assert rig.get(CONTENT).body == CONTENT
    paths = rig.copies(CONTENT)
    for index in lost:
        paths[index].unlink()
    for _ in range(5):
        assert rig.get(CONTENT).status == status
    assert rig.put(CONTENT).status == (201 if status == 404 else 200)
    assert rig.get(CONTENT).body == CONTENT


@pytest.mark.parametrize("damaged", [0, 1])
def test_damaged_content_is_not_served_and_is_repaired(tmp_path, damaged):
    """It was served, and never repaired."""
    rig = Rig(tmp_path)
    rig.put(CONTENT)
    path = rig.copies(CONTENT)[damaged]
    path.write_bytes(b"x" + CONTENT[1:])
    for _ in range(50):
        assert rig.get(CONTENT).body == CONTENT
    assert path.read_bytes() == CONTENT


def test_401_comes_before_500_mb_of_body(tmp_path):
    """It came after them."""
    rig = Rig(tmp_path)
    connection = rig.connect()
    connection.send(request_bytes("POST", f"/{SHA}", [("Content-Length", "500000000")]))
    assert connection.responses()[0].status == 401
    assert_nothing_kept(rig)


def test_a_body_over_the_limit_is_413(tmp_path):
    """It was 412."""
    rig = Rig(tmp_path, max_upload_bytes=4999)
    assert_one_line(rig.put(CONTENT), 413)
    assert rig.put(CONTENT[:4999]).status == 201
    assert rig.get(CONTENT).status == 404


def test_100_continue_is_sent(tmp_path):
    """It never was."""
    connection = Rig(tmp_path).connect()
    connection.send(upload_head(SHA, ("Content-Length", "5000"), ("Expect", "100-continue")))
    assert connection.continued
    connection.send(CONTENT)
    assert connection.responses()[0].status == 201


def test_a_body_is_not_held_in_memory(quick_path):
    """Twice the body was, and kept."""
    workers = HeldPools()
    rig, content = Rig(quick_path, worker=workers, files=QuickFiles), sample(20 * MIB)
    connection = rig.connect()
    connection.send(upload_head(content, ("Content-Length", str(len(content)))) + content)
    most = 0
    while workers.held:
        most = max(most, rig.uploads.buffered_bytes)
        workers.step()
        connection.settle()
    assert connection.responses()[0].status == 201
    assert BUFFER_BYTES <= most <= 4 * BUFFER_BYTES
    assert rig.uploads.buffered_bytes == 0


def test_an_upload_does_not_hold_other_clients(tmp_path):
    """One of 400 MiB held them for 4.6 s: hashing and writing are not done where clients wait."""
    hashing, writing = HeldPool(), HeldPool()
    held = InlinePool(), writing, InlinePool()
    rig = Rig(tmp_path, workers=lambda label: held, hashing=hashing)
    for root in rig.roots[:2]:
        path = root / Digest.of(CONTENT).disk_path
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
    content = sample(3 * MIB)
    connection = rig.connect()
    connection.send(upload_head(content, ("Content-Length", str(len(content)))) + content)
    while not connection.received:
        assert rig.get(CONTENT).body == CONTENT
        assert hashing.held or writing.held
        hashing.release(1)
        writing.release(1)
        connection.settle()
    assert connection.responses()[0].status == 201


NO_PROCESS = """
import sys
from pathlib import Path
from tests.support.rig import Rig

rig, events = Rig(Path(sys.argv[1])), []
sys.addaudithook(lambda event, args: events.append(event))
assert rig.put(b"content").status == 201
assert "open" in events
started = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec")
assert not set(started) & set(events), events
"""


def test_a_post_starts_no_process(tmp_path):
    """It started 12."""
    repository = Path(__file__).parent.parent
    command = [sys.executable, "-c", NO_PROCESS, str(tmp_path)]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("end", ["%0A", "%0a", "%0D%0A", "%00", "%20"])
def test_what_follows_a_sha_reaches_nobody(tmp_path, end):
    """`GET /<sha>%0A` reached memcached."""
    disks = Disks(RecordingFiles)
    rig = Rig(tmp_path, files=disks)
    rig.put(CONTENT)
    calls = [len(files.calls) for files in disks.values()]
    assert_one_line(rig.get(f"{SHA}{end}"), 404)
    assert [len(files.calls) for files in disks.values()] == calls


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "%3Cscript%3E", "<b>" * 30])
def test_what_was_asked_for_is_not_repeated(tmp_path, name):
    """The asked sha was echoed unescaped into HTML."""
    rig = Rig(tmp_path)
    assert_one_line(rig.get(name), 404)
    refused = rig.request("POST", f"/{name}", [AUTHORIZED], b"x")
    assert_one_line(refused, 400 if "/" in name else 412)


@pytest.mark.parametrize("line", ["GARBAGE", "GET", "GET  /", "\0\1\2", "GET / HTTP/1.1 x"])
def test_a_garbage_request_line_is_400(tmp_path, line):
    """It was answered 200."""
    connection = Rig(tmp_path).connect()
    connection.send(line.encode() + b"\r\nHost: stor.example\r\n\r\n")
    assert_one_line(connection.responses()[0], 400)


def test_status_is_503_with_a_read_only_disk(tmp_path):
    """It was 200 with one in the set."""
    rig = FaultyRig(tmp_path)
    assert rig.request("GET", "/status").status == 200
    for call in ("open_nameless", "create"):
        rig.disks["set1/disk0"].fail_always(call, errno.EROFS)
    rig.probe()
    response = rig.request("GET", "/status")
    assert response.status == 503
    assert f"{rig.roots[2]}: read-only" in response.text
