"""What the kernel has in memory is answered on the reactor's thread, which waits for no disk."""

import errno
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from stor.digest import Digest
from stor.disk.disk import Disk, DiskAway
from stor.disk.page_cache import READ_BYTES
from stor.disk.syscalls import Syscalls
from stor.disk.verified import VerifiedSmall
from stor.errors import Damaged
from stor.http.answer import SERVER
from stor.mirror.learning import AUDIT_SECONDS
from tests.conformance import sample
from tests.support.files import MemoryFiles
from tests.support.http import Disks, no_bug_logged
from tests.support.metrics import Exported
from tests.support.rig import FaultyRig, Rig, digest_of, request_bytes

SMALL, LARGE = sample(4096), sample(READ_BYTES + 1)
DIGEST = digest_of(SMALL)
UNKNOWN = digest_of(b"nobody has it")

#: These never wait for a disk of a local file system.
NEVER_WAITING = {
    *("open_cached", "look_cached", "cached", "mapped", "read_cached", "fstat", "close"),
}

FUSE, NFS, OVERLAY, TMPFS = 0x65735546, 0x6969, 0x794C7630, 0x01021994


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


def write(root, content, name=None):
    path = Path(root, (name or digest_of(content)).disk_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def disk_at(root, files, verified_small=None):
    disk = Disk(str(root), files, verified_small=verified_small)
    disk.identify(os.stat(root).st_dev)
    return disk


@pytest.fixture
def files():
    return MemoryFiles()


@pytest.fixture
def disk(tmp_path, files):
    """One that has learnt that it can be read so, with a sample."""
    disk = disk_at(tmp_path, files)
    write(tmp_path, SMALL)
    disk.look(DIGEST)
    assert disk.page_cache.offered
    files.calls.clear()
    return disk


REFUSED = [
    *(("open_cached", name) for name in ("ENOSYS", "EPERM", "EINVAL", "E2BIG", "EOPNOTSUPP")),
    *(("read_cached", name) for name in ("ENOSYS", "EPERM", "EINVAL", "EOPNOTSUPP")),
]


class TestWhereItIsNotOffered:
    @pytest.mark.parametrize(("call", "error"), REFUSED)
    def test_a_refusal_is_noticed_once_and_the_disk_is_read_as_ever(
        self, tmp_path, files, call, error
    ):
        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, files)
        files.fail_always(call, getattr(errno, error))
        for _ in range(3):
            assert disk.open(DIGEST).whole == SMALL
            assert disk.look(DIGEST).size == len(SMALL)
            assert disk.page_cache.read(DIGEST) is disk.page_cache.look(DIGEST) is None
        assert disk.page_cache.offered is False
        name = {"open_cached": "openat2", "read_cached": "preadv2 with RWF_NOWAIT"}[call]
        assert disk.page_cache.refusal == f"{name}: {os.strerror(getattr(errno, error))}"
        files.heal()
        assert disk.page_cache.read(DIGEST) is None
        disk.page_cache.forget()
        disk.look(DIGEST)
        assert (disk.page_cache.offered, disk.page_cache.refusal) == (True, None)

    @pytest.mark.parametrize("kind", [FUSE, NFS, OVERLAY, TMPFS], ids=hex)
    def test_nor_where_to_open_a_file_may_take_more_than_memory(self, tmp_path, kind):
        class Elsewhere(MemoryFiles):
            def type_of(self, fd):
                super().type_of(fd)
                return kind

        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, Elsewhere())
        disk.look(DIGEST)
        assert disk.page_cache.offered is False
        assert f"{kind:#x}" in disk.page_cache.refusal

    @pytest.mark.parametrize("call", ["open_cached", "type_of", "read_cached", "cached", "close"])
    @pytest.mark.parametrize("error", ["EIO", "EMFILE", "ENOENT"])
    def test_an_error_that_may_pass_says_nothing(self, tmp_path, files, call, error):
        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, files)
        files.fail_always(call, getattr(errno, error))
        assert disk.look(DIGEST).size == len(SMALL)
        assert disk.page_cache.offered is None
        files.heal()
        disk.look(DIGEST)
        assert disk.page_cache.offered

    @pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
    def test_a_kernel_without_cachestat_is_asked_by_mincore(self, tmp_path, files, error):
        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, files)
        files.fail_always("cached", getattr(errno, error))
        disk.look(DIGEST)
        assert disk.page_cache.read(DIGEST).content == SMALL
        assert files.calls[-3].name == "mapped"
        files.heal()
        files.fail_always("mapped", errno.EPERM)
        files.fail_always("cached", getattr(errno, error))
        disk.page_cache.forget()
        disk.look(DIGEST)
        assert disk.page_cache.offered is False
        said = os.strerror(getattr(errno, error)), os.strerror(errno.EPERM)
        assert disk.page_cache.refusal == "cachestat: {}, mincore: {}".format(*said)

    def test_a_file_of_another_user_says_nothing(self, tmp_path, files):
        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, files)
        status = list(os.stat(tmp_path / DIGEST.disk_path))
        status[4] += 1
        disk.page_cache.learn("not looked at", os.stat_result(status))
        assert disk.page_cache.offered is None
        assert files.calls == []

    def test_what_is_not_in_memory_by_then_does_not_mean_that_it_cannot_be(self, tmp_path, files):
        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, files)
        files.fail_always("read_cached", errno.EAGAIN)
        disk.look(DIGEST)
        assert disk.page_cache.offered

    def test_another_disk_is_another_file_system(self, disk):
        disk.identify(os.stat(disk.root).st_dev + 1)
        assert disk.page_cache.offered is None


class TestReading:
    @pytest.mark.parametrize("content", [SMALL, b"", b"x", sample(READ_BYTES)], ids=len)
    def test_a_copy_is_read_whole_and_known_by_what_its_file_says(self, disk, content):
        path = write(disk.root, content)
        digest = digest_of(content)
        copy = disk.page_cache.read(digest)
        assert (copy.content, copy.size, copy.place) == (content, len(content), str(path))
        looked = disk.page_cache.look(digest)
        assert looked.content is None
        assert (looked.size, looked.modified_ns) == (copy.size, path.stat().st_mtime_ns)

    def test_a_larger_one_is_only_looked_at(self, disk, files):
        write(disk.root, LARGE)
        copy = disk.page_cache.read(digest_of(LARGE))
        assert (copy.content, copy.size) == (None, len(LARGE))
        assert "read_cached" not in {call.name for call in files.calls}

    @pytest.mark.parametrize("call", ["open_cached", "read_cached"])
    def test_what_would_wait_is_not_read(self, disk, files, call):
        files.fail_always(call, errno.EAGAIN)
        assert disk.page_cache.read(DIGEST) is None

    def test_nor_begun_to_be_read(self, tmp_path):
        class Forgotten(MemoryFiles):
            def cached(self, fd, length):
                super().cached(fd, length)
                return False

        write(tmp_path, SMALL)
        files = Forgotten()
        disk = disk_at(tmp_path, files)
        disk.look(DIGEST)
        files.calls.clear()
        assert disk.page_cache.read(DIGEST) is None
        assert "read_cached" not in {call.name for call in files.calls}

    def test_nor_is_what_is_in_memory_in_part(self, tmp_path):
        class Half(MemoryFiles):
            def read_cached(self, fd, length, offset):
                return super().read_cached(fd, length // 2, offset)

        write(tmp_path, SMALL)
        disk = disk_at(tmp_path, Half())
        disk.look(DIGEST)
        assert disk.page_cache.read(DIGEST) is None

    def test_wrong_bytes_are_never_given(self, disk):
        write(disk.root, SMALL[:-1] + b"?", DIGEST)
        with pytest.raises(Damaged):
            disk.page_cache.read(DIGEST)

    def test_what_was_right_lately_is_right_until_the_file_changes(self, tmp_path):
        """Also while it is read, and whatever times are given to it."""

        class Changing(MemoryFiles):
            new = None

            def read_cached(self, fd, length, offset):
                data = super().read_cached(fd, length, offset)
                if self.new is not None:
                    path, data = self.new, bytearray(b"?" * length)
                    status = path.stat()
                    while path.stat().st_ctime_ns == status.st_ctime_ns:  # a tick of its clock
                        path.write_bytes(data)
                        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                return data

        content = sample(READ_BYTES)
        path = write(tmp_path, content)
        files = Changing()
        later = lambda: time.time_ns() + 10**10  # noqa: E731 - the file has settled
        disk = disk_at(tmp_path, files, VerifiedSmall(now_ns=later))
        disk.look(digest_of(content))
        for _ in range(2):
            assert disk.page_cache.read(digest_of(content)).content == content
        files.new = path
        for _ in range(2):
            with pytest.raises(Damaged):
                disk.page_cache.read(digest_of(content))

    def test_what_is_no_file_of_the_disk_is_for_others_to_look_into(self, disk, tmp_path):
        path = Path(disk.root, DIGEST.disk_path)
        path.unlink()
        for make in (
            lambda: None,
            path.mkdir,
            lambda: path.rmdir() or path.symlink_to(tmp_path / "elsewhere"),
            lambda: path.unlink() or os.mkfifo(path),
        ):
            make()
            for ask in (disk.page_cache.read, disk.page_cache.look):
                with pytest.raises((Damaged, OSError)):
                    ask(DIGEST)

    def test_another_file_system_is_not_the_disk(self, disk):
        disk.forbid(os.stat(disk.root).st_dev)
        for ask in (disk.page_cache.read, disk.page_cache.look):
            with pytest.raises(DiskAway):
                ask(DIGEST)

    def test_no_descriptor_is_left_whatever_fails(self, disk, files):
        before = len(os.listdir("/proc/self/fd"))
        for call in NEVER_WAITING:
            files.fail_always(call, errno.EIO)
            for ask in (disk.page_cache.read, disk.page_cache.look):
                with suppress(OSError):
                    ask(DIGEST)
            files.heal()
        assert len(os.listdir("/proc/self/fd")) == before


def device_reads():
    """How many bytes this thread has had read from devices (proc(5), /proc/pid/io)."""
    return int(Path("/proc/thread-self/io").read_text().split("read_bytes: ")[1].split()[0])


class Without(Syscalls):
    """A kernel without cachestat(2)."""

    def cached(self, fd, length):
        raise OSError(errno.ENOSYS, "before Linux 6.5")


@pytest.mark.parametrize("files", [Syscalls(), Without()], ids=["cachestat", "mincore"])
def test_the_kernel_reads_nothing_for_this(tmp_path, files):
    """Real calls on files that are not in memory, as far as the file system forgets them."""
    disk = disk_at(tmp_path, files)
    contents = [b"%d" % number * 1000 for number in range(200)]
    for content in contents:
        fd = os.open(write(tmp_path, content), os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
    disk.look(digest_of(contents[0]))
    found = Counter()
    for round_ in ("warm", "cold"):
        before = device_reads()
        for content in contents:
            if round_ == "cold":
                fd = os.open(tmp_path / digest_of(content).disk_path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            copy = disk.page_cache.read(digest_of(content))
            assert copy is None or copy.content == content
            found[round_] += copy is not None
        assert device_reads() == before
    if disk.page_cache.offered:
        assert found["warm"] == len(contents)
        assert found["cold"] < found["warm"]


class Watched(MemoryFiles):
    """Notes in which thread each call was made."""

    main = threading.main_thread()

    def __init__(self, label="", log=None):
        self.on_main = []
        self.kind = 0xEF53
        super().__init__(label, log)

    def _before(self, name, args):
        if threading.current_thread() is self.main:
            self.on_main.append(name)
        return super()._before(name, args)

    def type_of(self, fd):
        super().type_of(fd)
        return self.kind


def stored(rig, *contents):
    """Samples that are stored, and looked at once on every disk."""
    for content in contents:
        assert rig.put(content).status == 201
        for member in rig.members:
            member.disk.look(digest_of(content))
    rig.rounds(2)
    return rig


def at_once(rig, content_or_digest, method="GET"):
    """What is answered without waiting, `None` if nothing is."""
    digest = content_or_digest
    digest = digest if isinstance(digest, Digest) else digest_of(digest)
    answer = rig.site.serving.fast_path.answer(request_bytes(method, f"/{digest}"), "-", SERVER)
    return None if answer is None else b"".join(answer)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
class TestNobodyWaits:
    def test_for_a_disk_whose_files_are_not_in_memory(self, tmp_path, method):
        rig = stored(FaultyRig(tmp_path, (2,), kind=Watched, threads=True), SMALL)
        for files in rig.disks.values():
            files.fail_always("open_cached", errno.EAGAIN)
            files.fail_always("look_cached", errno.EAGAIN)
            files.on_main.clear()
        assert at_once(rig, SMALL, method) is None
        response = rig.get(SMALL, method=method)
        assert response.status == 200
        assert response.body == (SMALL if method == "GET" else b"")
        for files in rig.disks.values():
            assert files.on_main
            assert set(files.on_main) <= NEVER_WAITING

    def test_for_one_that_hangs_behind_fuse(self, tmp_path, method):
        rig = FaultyRig(tmp_path, (2, 2), kind=Watched, threads=True)
        for files in rig.disks.values():
            files.kind = FUSE
        stored(rig, *[b"%d" % number for number in range(10)])
        hanging = sorted(rig.disks)[0]
        others = [f"{number}".encode() for number in range(10)]
        for files in rig.disks.values():
            files.on_main.clear()
        rig.hang(hanging)
        answered = 0
        for content in others:
            connection = rig.connect()
            connection.send(request_bytes(method, f"/{digest_of(content)}"))
            connection.wait(1)
            answered += bool(connection.received)
        assert answered == len(others), "the other copy is asked for"
        assert all(files.on_main == [] for files in rig.disks.values())
        rig.heal()

    def test_a_disk_that_hangs_still_gives_what_is_in_memory(self, tmp_path, method):
        rig = stored(FaultyRig(tmp_path, (1,), kind=Watched, threads=True), SMALL)
        connection = rig.connect()
        connection.send(request_bytes("GET", f"/{digest_of(SMALL)}", [("Range", "bytes=0-1")]))
        assert at_once(rig, SMALL, method) is not None


def test_many_samples_in_one_answer_take_no_thread_and_no_room_from_others(tmp_path):
    rig = FaultyRig(tmp_path, (2,), kind=Watched, threads=True, cache_bytes=10_000)
    contents = [sample(1000, seed) for seed in range(20)]
    stored(rig, *contents)
    assert at_once(rig, contents[0]) is not None
    rig.log.clear()
    for files in rig.disks.values():
        files.on_main.clear()
    shas = "".join(f"{digest_of(content)}\n" for content in contents)
    response = rig.request("POST", "/batch", [], shas.encode())
    assert [response.body.count(content) for content in contents] == [1] * len(contents)
    on_main = [call for files in rig.disks.values() for call in files.on_main]
    assert set(on_main) <= NEVER_WAITING
    assert len(on_main) >= len(rig.log) > 0, "some calls were made in other threads"
    assert len(rig.store.hot) == 1


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=len)
@pytest.mark.parametrize(
    ("header", "status"), [("If-None-Match", 304), ("If-Match", 200), ("If-Match-Not", 412)]
)
def test_conditions_are_judged_without_a_disk(tmp_path, content, header, status):
    rig = stored(FaultyRig(tmp_path, (2,), kind=Watched, threads=True), content)
    etag = f'"{digest_of(content)}"' if header != "If-Match-Not" else '"another"'
    for files in rig.disks.values():
        files.calls.clear()
    response = rig.get(content, [(header.removesuffix("-Not"), etag)], method="HEAD")
    assert response.status == status
    assert {call.name for files in rig.disks.values() for call in files.calls} <= NEVER_WAITING


def test_a_condition_on_what_nobody_has_is_404_by_the_index(tmp_path):
    rig = stored(FaultyRig(tmp_path, (2,), kind=Watched, threads=True), SMALL)
    rig.get(str(UNKNOWN))  # the one that is checked
    for files in rig.disks.values():
        files.calls.clear()
    assert rig.get(str(UNKNOWN), [("If-None-Match", "*")]).status == 404
    assert all(files.calls == [] for files in rig.disks.values())


class TestWhatIsWrong:
    @pytest.fixture
    def rig(self, tmp_path):
        return stored(Rig(tmp_path, (2,), files=Disks(MemoryFiles)), SMALL)

    def test_what_was_in_memory_is_counted(self, rig):
        for method, further in (("GET", 1), ("HEAD", 1), ("DELETE", 0)):
            before = rig.mirrors.cached_total
            rig.get(SMALL, method=method)
            assert rig.mirrors.cached_total == before + further
        exported = Exported(rig.request("GET", "/metrics").text)
        assert exported.value("stor_page_cache_hits_total") == rig.mirrors.cached_total

    @pytest.mark.parametrize("make", ["missing", "wrong", "short", "longer"])
    def test_a_bad_copy_is_passed_over_and_put_back(self, rig, make):
        bad = rig.copies(SMALL)[0]
        for _ in range(4):
            if make == "missing":
                bad.unlink(missing_ok=True)
            else:
                content = {"wrong": b"x" * 4096, "short": SMALL[:-1], "longer": SMALL + b"x"}
                bad.write_bytes(content[make])
            for _ in range(20):  # any copy is asked for, so that it is met
                assert rig.get(SMALL).body == SMALL
            rig.rounds(1)
            assert bad.read_bytes() == SMALL

    def test_copies_that_are_missing_are_met_whatever_the_order_of_requests(self, rig):
        other = b"another small sample"
        stored(rig, other)
        missing = [rig.copies(content)[n] for content, n in ((SMALL, 0), (other, 1))]
        missing += [rig.copies(content)[n] for content, n in ((SMALL, 1), (other, 0))]
        for two in missing[:2], missing[2:]:
            for path in two:
                path.unlink()
            for content in [SMALL, other] * 20:
                assert rig.get(content).body == content
            rig.rounds(1)
            assert all(path.exists() for path in two)

    def test_a_copy_that_is_known_to_be_bad_says_nothing_of_the_sample(self, rig):
        bad = rig.copies(SMALL)[0]
        bad.write_bytes(b"longer than it was" * 1000)
        member = rig.members[0]
        mark = member.disk.look(DIGEST).mark
        member.found_damaged(DIGEST, "for the test", mark)
        for _ in range(4):
            assert rig.get(SMALL, method="HEAD").headers["content-length"] == str(len(SMALL))

    def test_a_disk_that_is_not_sound_is_not_asked(self, rig):
        for member in rig.members:
            member.health.probe_failed("away")
        assert at_once(rig, SMALL) is None
        assert rig.get(SMALL).status == 503

    def test_with_passwords_for_reading_nobody_is_answered_before_them(self, rig):
        assert at_once(rig, SMALL) is not None
        rig.reconfigure(read_auth=True)
        assert at_once(rig, SMALL) is at_once(rig, UNKNOWN) is None
        assert rig.get(SMALL).status == 401

    def test_a_tier_before_the_disks_is_asked_first(self, rig):
        rig.reconfigure(order=("s3", "disk"))
        assert at_once(rig, SMALL) is None


class TestWhatNobodyHas:
    @pytest.fixture
    def rig(self, tmp_path):
        return stored(FaultyRig(tmp_path, (2, 2), kind=MemoryFiles), SMALL)

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_it_is_404_by_the_index_and_no_disk_is_asked(self, rig, method):
        rig.get(str(UNKNOWN))  # the one that is checked
        for files in rig.disks.values():
            files.calls.clear()
        assert at_once(rig, UNKNOWN, method).startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert all(files.calls == [] for files in rig.disks.values())

    def test_one_in_a_while_is_checked_all_the_same(self, rig):
        put_by_hand = b"put by hand"
        for root in rig.roots[:2]:
            write(root, put_by_hand)
        rig.clock.advance(2 * AUDIT_SECONDS)
        assert rig.get(put_by_hand).status == 404
        assert rig.mirrors.names.wrong_total == 1
        assert rig.get(put_by_hand).body == put_by_hand

    def test_a_set_that_is_not_wholly_known_is_asked(self, tmp_path):
        rig = Rig(tmp_path, (2,), files=Disks(MemoryFiles))
        assert rig.mirrors.known(UNKNOWN).unsure
        assert at_once(rig, UNKNOWN) is None
        assert rig.get(str(UNKNOWN)).status == 404
        rig.rounds(2)
        assert at_once(rig, UNKNOWN) is not None

    def test_without_an_index_all_are_asked(self, tmp_path):
        rig = Rig(tmp_path, (2,), files=Disks(MemoryFiles), knows=False)
        assert at_once(rig, UNKNOWN) is None
        assert rig.get(str(UNKNOWN)).status == 404

    def test_s3_is_asked_where_there_is_one(self, rig):
        class Bucket:
            """One that has never to answer."""

        rig.reconfigure(bucket=Bucket(), order=("disk", "s3"))
        assert at_once(rig, UNKNOWN) is None
        assert at_once(rig, SMALL) is not None


@pytest.mark.parametrize("call", ["open_cached", "look_cached", "read_cached"])
def test_the_calls_say_what_the_kernel_says(tmp_path, call):
    """ENOENT, ELOOP and EBADF, whatever this kernel offers."""
    files = Syscalls()
    (tmp_path / "link").symlink_to("nowhere")
    if call == "read_cached":
        with pytest.raises(OSError, match="descriptor"):
            files.read_cached(-1, 1, 0)
        return
    errors = set()
    for name in ("missing", "link"):
        try:
            os.close(getattr(files, call)(str(tmp_path / name)))
        except OSError as error:
            errors.add(error.errno)
    refused = {errno.ENOSYS, errno.EPERM, errno.EINVAL}
    assert errors <= {errno.ENOENT, errno.ELOOP, errno.EAGAIN} or errors <= refused
