"""Stores of disks keep what every store promises, and what only disks can."""

import hashlib
import itertools
import os
import shutil
import stat
from functools import cache

import pytest

from stor.digest import Digest
from stor.errors import NotFound, Unavailable
from tests.conformance import (
    MIB,
    SIZES,
    QuickFiles,
    StoreConformance,
    WritableStoreConformance,
    descriptors,
    put,
    read,
    result_of,
    sample,
    without_nameless_files,
)
from tests.support.files import RecordingFiles
from tests.support.rig import AUTHORIZATION, Rig


class OnDisks:
    """Stores of mirrors; `sets` says how many disks each has, `files` how their calls are made."""

    sets = (2,)
    files = QuickFiles

    @pytest.fixture
    def holding(self, tmp_path):
        def build(contents):
            rig = Rig(tmp_path, self.sets, files=self.files)
            for content in contents:
                result_of(put(rig.store, content))
            return rig.store

        return build


class TestOneDisk(OnDisks, WritableStoreConformance):
    sets = (1,)


class TestPair(OnDisks, WritableStoreConformance):
    sets = (2,)
    files = RecordingFiles  # the real calls and no others


class TestTriple(OnDisks, WritableStoreConformance):
    sets = (3,)


class TestTwoPairs(OnDisks, WritableStoreConformance):
    sets = (2, 2)


class TestReadOnlyPairBesideAWritableOne(WritableStoreConformance):
    @pytest.fixture
    def holding(self, tmp_path):
        def build(contents):
            filled = Rig(tmp_path, (2,), files=QuickFiles)
            for content in contents:
                result_of(put(filled.store, content))
            return Rig(tmp_path, (2, 2), files=QuickFiles, read_only={(0, 0), (0, 1)}).store

        return build


class Degraded:
    """Two disks in the first set, the second one gone since the samples were stored."""

    sets = (2,)
    gone = 1

    @pytest.fixture
    def holding(self, tmp_path):
        def build(contents):
            rig = Rig(tmp_path, self.sets, files=QuickFiles)
            for content in contents:
                result_of(put(rig.store, content))
            shutil.rmtree(rig.roots[self.gone])
            rig.probe()
            return rig.store

        return build


class TestPairWithoutItsSecondDisk(Degraded, StoreConformance):
    gone = 1


class TestPairWithoutItsFirstDisk(Degraded, StoreConformance):
    gone = 0


class TestDegradedPairBesideAWholeOne(Degraded, WritableStoreConformance):
    sets = (2, 2)


SETS = [(1,), (2,), (3,), (2, 2)]


@pytest.fixture(params=SETS, ids=str)
def rig(request, tmp_path):
    return Rig(tmp_path, request.param, files=QuickFiles)


@pytest.mark.parametrize("size", SIZES)
def test_every_disk_of_one_set_has_an_equal_copy_under_the_upper_case_name(rig, size):
    content = sample(size)
    name = hashlib.sha256(content).hexdigest().upper()
    path = f"{name[0:2]}/{name[2:4]}/{name[4:6]}/{name}.dat"

    paths, created = result_of(put(rig.store, content))

    assert created
    (home,) = [m for m in rig.mirrors.mirrors if paths[0].startswith(m.members[0].root)]
    assert paths == [f"{member.root}/{path}" for member in home.members]
    assert sorted(paths) == [str(found) for found in rig.samples()]
    for copy in paths:
        with open(copy, "rb") as file:
            assert file.read() == content
    assert len({os.stat(copy).st_mtime_ns for copy in paths}) == 1
    assert not rig.staged()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
@pytest.mark.parametrize("files", [QuickFiles, without_nameless_files])
def test_modes_are_the_documented_ones_less_the_umask(tmp_path, umask, files):
    before = os.umask(umask)
    try:
        rig = Rig(tmp_path, (2,), files=files)
        paths, _ = result_of(put(rig.store, b"content"))
    finally:
        os.umask(before)
    for root, path in zip(rig.roots, paths, strict=True):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644 & ~umask
        for directory in Digest.of(b"content").directories:
            assert stat.S_IMODE((root / directory).stat().st_mode) == 0o755 & ~umask


def test_samples_leave_no_descriptor_and_no_staged_file(rig):
    before = descriptors()
    for size in SIZES:
        result_of(put(rig.store, sample(size)))
        result_of(put(rig.store, sample(size)))
        result_of(read(rig.store, Digest.of(sample(size))))
    assert descriptors() == before
    assert not rig.staged()


def write_by_hand(root, content, modified_seconds=981173106):
    """A copy as it lies on disks that were filled long ago."""
    name = hashlib.sha256(content).hexdigest().upper()
    directory = root / name[0:2] / name[2:4] / name[4:6]
    directory.mkdir(parents=True)
    path = directory / f"{name}.dat"
    path.write_bytes(content)
    os.utime(path, (modified_seconds, modified_seconds))
    return path


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_written_by_hand_is_served_and_counts_as_stored(rig, size):
    content, home = sample(size), rig.mirrors.mirrors[-1]
    roots = [root for root in rig.roots if str(root) in {m.root for m in home.members}]
    paths = [str(write_by_hand(root, content)) for root in roots]

    found = result_of(rig.store.find(Digest.of(content)))

    assert (found.size, found.modified_ns) == (size, 981173106 * 10**9)
    assert result_of(read(rig.store, Digest.of(content))) == content
    assert result_of(put(rig.store, content)) == (paths, False)


def test_a_lower_case_name_is_another_file(tmp_path):
    rig, digest = Rig(tmp_path, (1,)), Digest.of(b"content")
    lower = rig.roots[0] / digest.disk_path.lower()
    lower.parent.mkdir(parents=True)
    lower.write_bytes(b"content")
    with pytest.raises(NotFound):
        result_of(rig.store.find(digest))


GONE = list(itertools.product([False, True], repeat=4))


@pytest.mark.parametrize("gone", GONE)
def test_absent_is_not_found_as_long_as_one_disk_of_every_set_answers(tmp_path, gone):
    rig = Rig(tmp_path, (2, 2))
    for root, is_gone in zip(rig.roots, gone, strict=True):
        if is_gone:
            shutil.rmtree(root)
    rig.probe()
    expected = Unavailable if all(gone[:2]) or all(gone[2:]) else NotFound
    for ask in (rig.store.find, rig.store.open):
        with pytest.raises(expected):
            result_of(ask(Digest.of(b"absent")))


@pytest.mark.parametrize("gone", GONE)
def test_a_sample_is_taken_as_long_as_one_set_is_whole(tmp_path, gone):
    rig = Rig(tmp_path, (2, 2))
    for root, is_gone in zip(rig.roots, gone, strict=True):
        if is_gone:
            shutil.rmtree(root)
    rig.probe()
    if any(gone[:2]) and any(gone[2:]):
        with pytest.raises(Unavailable):
            result_of(put(rig.store, b"content"))
        assert not rig.samples()
    else:
        assert len(result_of(put(rig.store, b"content"))[0]) == 2
    assert not any(root.exists() for root, gone in zip(rig.roots, gone, strict=True) if gone)


def test_a_read_only_disk_answers_for_its_set_and_a_suspect_one_does_not(tmp_path):
    rig = Rig(tmp_path, (2,), read_only={(0, 0), (0, 1)})
    with pytest.raises(NotFound):
        result_of(rig.store.find(Digest.of(b"absent")))
    for member in rig.members:
        for _ in range(3):
            member.health.operation_failed("Input/output error")
    with pytest.raises(Unavailable):
        result_of(rig.store.find(Digest.of(b"absent")))


LOSSES = {
    "missing": lambda path, size: os.unlink(path),
    "empty": lambda path, size: os.truncate(path, 0),
    "shorter": lambda path, size: os.truncate(path, size - 1),
    "longer": lambda path, size: os.truncate(path, size + 1),
}


def quarantined(rig):
    """What lies in quarantine on all disks, without the reasons beside it."""
    found = [path for root in rig.roots for path in root.glob(".stor/quarantine/*.dat.*")]
    return [path for path in found if path.suffix != ".reason"]


@pytest.mark.parametrize("sets", [(2,), (3,), (2, 2)])
@pytest.mark.parametrize("size", [1, 5000, 262145, MIB + 1])
@pytest.mark.parametrize("lost", LOSSES)
def test_a_copy_that_is_lost_is_put_back_before_the_sample_counts_as_stored(
    tmp_path, sets, size, lost
):
    rig, content = Rig(tmp_path, sets, files=QuickFiles), sample(size)
    paths, _ = result_of(put(rig.store, content))
    times = {os.stat(path).st_mtime_ns for path in paths}
    for path in paths[1:]:
        LOSSES[lost](path, size)

    incoming = rig.store.expect(Digest.of(content), size)
    assert result_of(incoming.stored()) == paths
    result_of(incoming.leave())

    assert [path.read_bytes() for path in rig.copies(content)] == [content] * len(paths)
    assert {path.stat().st_mtime_ns for path in rig.copies(content)} == times
    assert len(quarantined(rig)) == (0 if lost == "missing" else len(paths) - 1)
    assert not rig.staged()


@pytest.mark.parametrize("size", [1, 5000, 262145, MIB + 1])
@pytest.mark.parametrize("lost", LOSSES)
def test_posting_again_replaces_copies_that_are_all_lost(rig, size, lost):
    content = sample(size)
    paths, _ = result_of(put(rig.store, content))
    for path in paths:
        LOSSES[lost](path, size)

    again, created = result_of(put(rig.store, content))

    assert created
    assert [path.read_bytes() for path in rig.copies(content)] == [content] * len(paths)
    assert sorted(again) == [str(path) for path in rig.copies(content)]
    assert len(quarantined(rig)) == (0 if lost == "missing" else len(paths))
    assert not rig.staged()


@pytest.mark.parametrize(("size", "disks"), [(1, 1), (1, 2), (5000, 1), (5000, 2), (262145, 1)])
@pytest.mark.parametrize("lost", LOSSES)
def test_a_lost_copy_is_noticed_also_when_the_length_is_not_known(tmp_path, size, disks, lost):
    rig, content = Rig(tmp_path, (2,), files=QuickFiles), sample(size)
    paths, _ = result_of(put(rig.store, content))
    for path in paths[:disks]:
        LOSSES[lost](path, size)

    assert result_of(put(rig.store, content, length_known=False))[0] == paths
    assert [path.read_bytes() for path in rig.copies(content)] == [content, content]


def test_a_damaged_copy_does_not_speak_for_a_disk_that_is_away(tmp_path):
    rig = Rig(tmp_path, (2,), files=QuickFiles)
    paths, _ = result_of(put(rig.store, b"content"))
    os.truncate(paths[0], 3)
    rig.roots[1].rename(tmp_path / "away")
    rig.probe()
    with pytest.raises(Unavailable):
        result_of(rig.store.open(Digest.of(b"content")))
    (tmp_path / "away").rename(rig.roots[1])
    rig.probe()
    assert result_of(read(rig.store, Digest.of(b"content"))) == b"content"


def test_the_copies_that_are_left_count_as_stored_while_a_disk_is_away(tmp_path):
    rig = Rig(tmp_path, (3,))
    paths, _ = result_of(put(rig.store, b"content"))
    shutil.rmtree(rig.roots[1])
    rig.probe()
    assert result_of(put(rig.store, b"content")) == ([paths[0], paths[2]], False)


HUGE_TAIL = b"the last bytes"
HUGE_SIZE = 4 * 1024**3 + len(HUGE_TAIL)


@cache
def huge_digest():
    """The name of a sample of 4 GiB of zeros and a tail."""
    zeros, hasher = bytes(32 * MIB), hashlib.sha256()
    for _ in range(4 * 1024**3 // len(zeros)):
        hasher.update(zeros)
    hasher.update(HUGE_TAIL)
    return Digest(hasher.digest())


@pytest.fixture
def huge(tmp_path):
    """A Stor with a sample of more than 4 GiB on one disk, that takes hardly any room."""
    rig, digest = Rig(tmp_path, (1,)), huge_digest()
    path = rig.roots[0] / digest.disk_path
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(HUGE_SIZE - len(HUGE_TAIL))
        file.seek(0, os.SEEK_END)
        file.write(HUGE_TAIL)
    return rig


def test_a_sample_of_more_than_4_gib_is_served_over_http(huge):
    name = str(huge_digest())
    head = huge.get(name, method="HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(HUGE_SIZE))
    for wanted, expected, place in [
        ("0-3", bytes(4), "0-3"),
        (f"{2**31 - 2}-{2**31 + 1}", bytes(4), f"{2**31 - 2}-{2**31 + 1}"),
        (f"{2**32 - 4}-{2**32 + 3}", bytes(4) + HUGE_TAIL[:4], f"{2**32 - 4}-{2**32 + 3}"),
        (f"{2**32}-", HUGE_TAIL, f"{2**32}-{HUGE_SIZE - 1}"),
        ("-5", HUGE_TAIL[-5:], f"{HUGE_SIZE - 5}-{HUGE_SIZE - 1}"),
    ]:
        answer = huge.get(name, [("Range", f"bytes={wanted}")])
        assert (answer.status, answer.body) == (206, expected)
        assert answer.headers["content-range"] == f"bytes {place}/{HUGE_SIZE}"


def test_a_sample_of_more_than_4_gib_is_stored_already_before_its_body_is_read(huge):
    headers = [("Authorization", AUTHORIZATION), ("Content-Length", str(HUGE_SIZE))]
    answer = huge.request("POST", f"/{huge_digest()}", headers)
    assert answer.status == 200
