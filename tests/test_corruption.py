"""Copies that are not what they should be: never taken for good, put back, and kept to look at."""

import errno
import json
import os
import shutil
from contextlib import suppress
from functools import partial

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.block_sums import MIN_BLOCK_BYTES as BLOCK_BYTES
from stor.block_sums import BlockSummer
from stor.digest import Digest
from stor.disk.copy import SUMS_ATTRIBUTE
from stor.errors import Damaged, Unavailable
from tests.conformance import MIB, QuickFiles, sample
from tests.support.http import CHUNKED, assert_one_line, chunked, no_bug_logged, upload_head
from tests.support.rig import FaultyRig, Rig

SIZES = (5, 100_000, 262_145, 3 * MIB)
SMALL_BYTES = 256 * 1024


def flipped(place):
    def damage(path, other):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 0x10
        path.write_bytes(data)

    return damage


def resized(change):
    def damage(path, other):
        os.truncate(path, change(path.stat().st_size))

    return damage


def replaced_by_directory(path, other):
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"not a sample")


def replaced_by_link(path, other):
    path.unlink()
    path.symlink_to(other)


def replaced_by_dangling_link(path, other):
    path.unlink()
    path.symlink_to("nowhere")


def replaced_by_fifo(path, other):
    path.unlink()
    os.mkfifo(path)


def swapped(path, other):
    """The content is that of another sample, of the same size."""
    path.write_bytes(sample(path.stat().st_size, seed="other"))


DAMAGES = {
    "first bit": flipped(0),
    "middle bit": flipped(0.5),
    "last bit": flipped(1),
    "empty": resized(lambda size: 0),
    "shorter by one": resized(lambda size: size - 1),
    "longer by one": resized(lambda size: size + 1),
    "another sample": swapped,
    "directory": replaced_by_directory,
    "link": replaced_by_link,
    "dangling link": replaced_by_dangling_link,
    "FIFO": replaced_by_fifo,
}


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


class Stored:
    """A sample on one of two pairs; each `stor` is one that was started after the damage."""

    def __init__(self, path, size):
        self.path = path
        self.content = sample(size)
        first = FaultyRig(path, kind=QuickFiles)
        assert first.put(self.content).status == 201
        self.copies = first.copies(self.content)
        self.modified_ns = self.copies[0].stat().st_mtime_ns

    def forget_sums(self):
        """As an older Stor has written it, or a program that copies no attributes."""
        for copy in self.copies:
            with suppress(OSError):
                os.removexattr(copy, SUMS_ATTRIBUTE)

    def stor(self, seed=0):
        return FaultyRig(self.path, kind=QuickFiles, seed=seed)

    def damage(self, damage, *which):
        """Damage some of the copies; a link leads to the other one."""
        for index in which:
            DAMAGES[damage](self.copies[index], self.copies[1 - index])

    @property
    def quarantine(self):
        """What is in quarantine, without the reasons."""
        return sorted(p for p in self.path.glob("*/*/.stor/quarantine/*") if p.suffix != ".reason")

    def assert_healed(self, damaged):
        """Both copies are good and alike; each bad one is in quarantine with the reason."""
        for copy in self.copies:
            assert copy.is_file()
            assert not copy.is_symlink()
            assert copy.read_bytes() == self.content
        assert len({copy.stat().st_mtime_ns for copy in self.copies}) == 1
        assert len(self.quarantine) == damaged
        for path in self.quarantine:
            assert path.name.startswith(f"{Digest.of(self.content).raw.hex().upper()}.dat.")
            reason = path.with_name(f"{path.name}.reason").read_text()
            assert reason.endswith("\n")
            assert reason.count("\n") == 1
            assert str(self.copies[0].name) in reason or "it was gone" in reason


def exact(response, content):
    """Whether it is a sample, whole, and then the right one; else it is cut, or to be retried."""
    if response.status == 503:
        assert_one_line(response, 503)
        return False
    assert response.status == 200
    assert not response.complete or response.body == content
    return response.complete


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
def test_one_bad_copy_is_never_served_whole_and_healed(quick_path, damage, size, which, sums):
    stored = Stored(quick_path, size)
    if not sums:
        stored.forget_sums()
    stored.damage(damage, which)
    bad_bytes = os.lstat(stored.copies[which]).st_size
    rig = stored.stor()
    while not stored.quarantine:
        assert exact(rig.get(stored.content), stored.content)
    for _ in range(4):
        assert exact(rig.get(stored.content), stored.content)
    stored.assert_healed(1)
    assert os.lstat(stored.quarantine[0]).st_size == bad_bytes
    assert all(copy.stat().st_mtime_ns == stored.modified_ns for copy in stored.copies)
    assert not list(quick_path.glob("*/*/.stor/repair/*"))


def test_a_large_sample_with_one_bad_copy_is_exact_at_once(quick_path):
    stored = Stored(quick_path, 3 * MIB)
    stored.damage("middle bit", 0)
    for seed in range(4):  # whichever copy is the first
        assert stored.stor(seed).get(stored.content).body == stored.content


def test_copies_that_are_bad_in_different_blocks_make_one_whole_answer_and_two_good_copies(
    quick_path,
):
    stored = Stored(quick_path, 3 * MIB)
    stored.damage("first bit", 0)
    stored.damage("last bit", 1)
    rig = stored.stor()
    assert rig.get(stored.content).body == stored.content
    for first, last in [(0, 9), (3 * MIB - 9, 3 * MIB - 1), (100, 2 * MIB)]:
        response = rig.get(stored.content, [("Range", f"bytes={first}-{last}")])
        assert response.body == stored.content[first : last + 1]
    rig.rounds(3)
    stored.assert_healed(2)


@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    phases=set(Phase) - {Phase.shrink},  # each example writes megabytes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    bad=st.lists(
        st.none() | st.tuples(st.integers(0, 1), st.none() | st.integers(0, BLOCK_BYTES - 1)),
        min_size=12,
        max_size=12,
    ),
    short=st.none() | st.tuples(st.integers(0, 1), st.integers(0, 3 * MIB)),
    long=st.none() | st.tuples(st.integers(0, 1), st.integers(1, 3 * MIB)),
    seed=st.integers(0, 3),
    begin=st.integers(0, 3 * MIB - 1),
    length=st.integers(1, 3 * MIB),
)
def test_what_is_good_on_one_copy_in_each_block_is_exact_at_the_first_try(
    tmp_path_factory, bad, short, long, seed, begin, length
):
    """Each block is bad on the copy that `bad` names, or on neither.

    It is bad at one byte, or cannot be read. A copy may be `short`: all that it lacks is good on
    the other one. One may be too `long`.
    """
    path = tmp_path_factory.mktemp("stor")
    stored = Stored(path, 3 * MIB)
    unreadable = ([], [])
    for block, place in enumerate(bad):
        copy, at = place or (0, 0)
        if short is not None and (block + 1) * BLOCK_BYTES > short[1]:
            copy = short[0]
        if place is not None and at is None:
            unreadable[copy].append(block)
        elif place is not None:
            flip(stored.copies[copy], block * BLOCK_BYTES + at)
    if long is not None:
        os.truncate(stored.copies[long[0]], 3 * MIB + long[1])
    if short is not None:
        os.truncate(stored.copies[short[0]], short[1])
    stor = partial(with_bad_sectors, stored, unreadable, seed)
    part = stor().get(stored.content, [("Range", f"bytes={begin}-{begin + length - 1}")])
    assert part.status == 206
    assert part.complete
    exact_part = part.body == stored.content[begin : begin + length]
    assert exact_part  # and no comparison of megabytes is printed
    whole = stor().get(stored.content)
    assert whole.complete
    exact_whole = whole.body == stored.content
    assert exact_whole
    shutil.rmtree(path)


def test_copies_that_are_bad_in_every_other_block_by_turns_make_one_whole_answer(quick_path):
    """Blocks that are read at once are good on different copies."""
    stored = Stored(quick_path, 3 * MIB)
    for block in range(12):
        flip(stored.copies[block % 2], block * BLOCK_BYTES + 77)
    answer = stored.stor().get(stored.content)
    assert answer.complete
    exact_whole = answer.body == stored.content
    assert exact_whole


def flip(path, place):
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), place)


class Meddled(QuickFiles):
    """A sample's file is changed by somebody else just before it is read for the n-th time."""

    def __init__(self, label, log, directory, n, change):
        super().__init__(label, log)
        self._directory = directory
        self._left = n
        self._change = change
        self.changed = False

    def _before(self, name, args):
        path = self._path(name, args) or ""
        if name == "read" and path.endswith(".dat"):
            self._left -= 1
            if self._left == -1:
                self.changed = True
                with suppress(FileNotFoundError):
                    self._change(self._directory / self.label / path)
        return super()._before(name, args)


def emptied(path):
    os.truncate(path, 0)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


def grown(path):
    os.truncate(path, path.stat().st_size + 77)


def written_over(path):
    content = sample(path.stat().st_size, seed="over")
    with path.open("r+b") as file:
        file.write(content)


def exchanged(path):
    new = path.with_name("new")
    new.write_bytes(sample(path.stat().st_size, seed="new"))
    new.rename(path)


@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
@pytest.mark.parametrize(
    "change", [emptied, cut_in_half, grown, written_over, exchanged, os.unlink]
)
@pytest.mark.parametrize("n", [0, 1, 5, 11])
def test_a_copy_that_is_changed_between_two_blocks_costs_no_byte(quick_path, change, n, sums):
    stored = Stored(quick_path, 3 * MIB)
    if not sums:
        stored.forget_sums()
    home = stored.copies[0].parents[3]
    label = "/".join(home.parts[-2:])

    def files(its_label, log):
        changes = change if its_label == label else lambda path: None
        return Meddled(its_label, log, quick_path, n, changes)

    changed = []
    for seed in range(4):  # that copy is the first one in some
        rig = FaultyRig(quick_path, kind=files, seed=seed)
        for _ in range(3):
            answer = rig.get(stored.content)
            exact_whole = answer.body == stored.content
            assert exact_whole or not (sums or answer.complete)
        changed.append(rig.disks[label].changed)
        rig.rounds(3)
    assert any(changed)


class BadSectors(QuickFiles):
    """Some blocks of samples cannot be read, and all else can."""

    def __init__(self, label, log):
        super().__init__(label, log)
        self.bad = set()

    def _before(self, name, args):
        if name == "read" and (self._path(name, args) or "").endswith(".dat"):
            _, length, offset = args
            blocks = range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
            if self.bad.intersection(blocks):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super()._before(name, args)


def with_bad_sectors(stored, bad, seed=0):
    """A Stor whose two disks with the sample cannot read these blocks of it."""
    rig = FaultyRig(stored.path, kind=BadSectors, seed=seed)
    for copy, blocks in zip(stored.copies, bad, strict=True):
        disk = next(disk for label, disk in rig.disks.items() if f"/{label}/" in str(copy))
        disk.bad.update(blocks)
    return rig


@pytest.mark.parametrize("bad", [([3], [8]), ([0], [11]), ([0, 5, 10], [1, 6, 11]), ([2, 3], [4])])
def test_blocks_that_cannot_be_read_on_one_copy_are_given_from_the_other(quick_path, bad):
    stored = Stored(quick_path, 3 * MIB)
    for seed in range(4):
        rig = with_bad_sectors(stored, bad, seed)
        answer = rig.get(stored.content)
        assert answer.complete
        exact_whole = answer.body == stored.content
        assert exact_whole
        for block in range(12):
            first = block * BLOCK_BYTES + 5
            part = rig.get(stored.content, [("Range", f"bytes={first}-{first + 9}")])
            assert part.body == stored.content[first : first + 10]


def test_bad_sectors_of_one_file_in_a_row_say_nothing_of_the_disk(quick_path):
    stored = Stored(quick_path, 3 * MIB)
    rig = with_bad_sectors(stored, (range(12), range(12)))
    (member, *_) = [m for m in rig.members if str(stored.copies[0]).startswith(m.root)]
    opening = Deferred.fromCoroutine(member.open(Digest.of(stored.content)))
    source = opening.result
    for block in range(12):
        failed = []
        source.read_checked(block * BLOCK_BYTES, 9).addErrback(failed.append)
        assert [failure.type for failure in failed] == [OSError]
    source.close()
    assert member.health.fault is None


@pytest.mark.parametrize("block", [0, 5, 11])
def test_a_block_that_no_copy_can_read_ends_the_answer_before_it(quick_path, block):
    stored = Stored(quick_path, 3 * MIB)
    rig = with_bad_sectors(stored, ([block], [block]))
    answer = rig.get(stored.content)
    assert not answer.complete or answer.status in (500, 503)
    assert answer.status != 200 or stored.content[: block * BLOCK_BYTES].startswith(answer.body)
    assert not stored.quarantine
    assert rig.put(stored.content).status in (200, 201, 503)
    for disk in rig.disks.values():
        disk.bad.clear()
    rig.rounds(12)
    assert rig.get(stored.content).body == stored.content


def broken_sums(stored, damage):
    """Both copies are right, and what is kept as their block sums is `damage` of it."""
    for copy in stored.copies:
        sums = os.getxattr(copy, SUMS_ATTRIBUTE)
        os.setxattr(copy, SUMS_ATTRIBUTE, damage(sums))


@pytest.mark.parametrize(
    "damage",
    [
        lambda sums: b"",
        lambda sums: sums[:-1],
        lambda sums: sums + b"more",
        lambda sums: bytes(len(sums)),
        lambda sums: sums_of(sample(3 * MIB, 7)),
        lambda sums: sums_of(sample(MIB)),
        lambda sums: sums_of(sample(3 * MIB, 7), Digest.of(sample(3 * MIB))),
        lambda sums: sums_of(sample(MIB), Digest.of(sample(3 * MIB))),
        lambda sums: sums_of(sample(4 * MIB), Digest.of(sample(3 * MIB))),
        lambda sums: resealed(bytes([2]) + sums[1:-4]),
        lambda sums: resealed(sums[:-4] + bytes(4)),
        lambda sums: resealed(sums[:-8]),
    ],
    ids=[
        "empty",
        "torn",
        "too long",
        "zeros",
        "another's",
        "another size",
        "wrong",
        "shorter",
        "longer",
        "another version",
        "one too many",
        "one too few",
    ],
)
def test_wrong_sums_of_right_copies_cost_one_answer_at_most_and_are_made_anew(quick_path, damage):
    stored = Stored(quick_path, 3 * MIB)
    right = os.getxattr(stored.copies[0], SUMS_ATTRIBUTE)
    broken_sums(stored, damage)
    rig = stored.stor()
    first = rig.get(stored.content)
    assert not first.complete or first.status in (500, 503) or first.body == stored.content
    rig.rounds(3)
    for seed in range(4):
        assert exact(stored.stor(seed).get(stored.content), stored.content)
    assert not stored.quarantine
    assert os.getxattr(stored.copies[0], SUMS_ATTRIBUTE) == right


def resealed(body):
    """A body with a right sum of itself."""
    return body + crc32c(body).to_bytes(4, "little")


def sums_of(content, digest=None):
    summer = BlockSummer()
    summer.update(content)
    return summer.finish(digest or Digest.of(content)).encode()


def test_a_copy_without_sums_has_them_once_it_was_read_whole(quick_path):
    stored = Stored(quick_path, 3 * MIB)
    right = os.getxattr(stored.copies[0], SUMS_ATTRIBUTE)
    stored.forget_sums()
    rig = stored.stor()
    assert rig.get(stored.content).body == stored.content
    kept = [copy for copy in stored.copies if SUMS_ATTRIBUTE in os.listxattr(copy)]
    assert kept
    assert {os.getxattr(copy, SUMS_ATTRIBUTE) for copy in kept} == {right}
    (member,) = [m for m in rig.members if str(kept[0]).startswith(m.root)]
    opened = member.disk.open(Digest.of(stored.content))
    assert opened.proven  # though writing the sums has changed the file's ctime
    opened.close()


def test_a_copy_that_was_checked_by_the_sums_of_another_has_its_own(quick_path):
    stored = Stored(quick_path, 3 * MIB)
    right = os.getxattr(stored.copies[0], SUMS_ATTRIBUTE)
    os.removexattr(stored.copies[0], SUMS_ATTRIBUTE)
    for seed in range(8):  # one of which reads that copy
        assert stored.stor(seed).get(stored.content).body == stored.content
    assert os.getxattr(stored.copies[0], SUMS_ATTRIBUTE) == right


def test_two_copies_of_which_nothing_but_the_length_is_bad_are_whole_at_once_and_mended(quick_path):
    stored = Stored(quick_path, 3 * MIB)
    stored.damage("longer by one", 0, 1)
    rig = stored.stor()
    assert rig.get(stored.content).body == stored.content
    rig.rounds(3)
    stored.assert_healed(2)


@pytest.mark.parametrize(
    ("size", "damage"),
    [(n, d) for n in SIZES for d in DAMAGES if n <= SMALL_BYTES or d != "longer by one"],
)
def test_two_bad_copies_are_an_error_until_it_is_posted_again(quick_path, damage, size):
    stored = Stored(quick_path, size)
    stored.damage(damage, 0)
    if damage == "link":
        stored.copies[1].rename(quick_path / "elsewhere")
        stored.copies[0].unlink()
        for copy in stored.copies:
            copy.symlink_to(quick_path / "elsewhere")
    else:
        stored.damage(damage, 1)
    rig = stored.stor()
    for _ in range(3):
        response = rig.get(stored.content)
        if response.complete:
            assert_one_line(response, 500)
        else:
            assert size > SMALL_BYTES
        rig.rounds(1)
    assert_one_line(rig.get(stored.content), 500)
    response = rig.request("HEAD", f"/{Digest.of(stored.content)}")
    assert response.status == 500
    assert not stored.quarantine
    response = rig.put(stored.content)
    assert response.status == 201
    stored.assert_healed(2)
    assert rig.get(stored.content).body == stored.content
    assert rig.put(stored.content).status == 200
    rig.rounds(3)
    assert rig.mirrors.repairs.waiting == 0
    assert not list(quick_path.glob("*/*/.stor/repair/*"))


@pytest.mark.parametrize("other", DAMAGES)
@pytest.mark.parametrize("one", DAMAGES)
def test_posting_again_is_answered_at_once_whatever_two_bad_copies_are_like(quick_path, one, other):
    """What cannot be put together from both is stored from the body; nobody is sent away."""
    stored = Stored(quick_path, SMALL_BYTES + 1)
    stored.damage(one, 0)
    stored.damage(other, 1)
    alike = all(os.lstat(copy).st_size == SMALL_BYTES + 1 for copy in stored.copies)
    response = stored.stor().put(stored.content)
    if alike:  # a large copy of the right size counts until it is read
        assert response.status == 200
    else:
        assert response.status in (200, 201)
        assert [copy.read_bytes() for copy in stored.copies] == [stored.content] * 2


@pytest.mark.parametrize("size", [262_145, 3 * MIB])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_is_never_wrong(quick_path, damage, size):
    stored = Stored(quick_path, size)
    stored.damage(damage, 1)
    whole = 0
    for seed in range(4):
        rig = stored.stor(seed)
        for first, last in [(0, 99), (size // 2 - 50, size // 2 + 50), (size - 100, size - 1)]:
            response = rig.get(stored.content, [("Range", f"bytes={first}-{last}")])
            if response.status == 206 and response.complete:
                assert response.body == stored.content[first : last + 1]
                whole += 1
            else:
                assert response.status in (206, 503)
    assert whole > 6
    stored.assert_healed(1)


@pytest.mark.parametrize("which", [0, 1])
def test_the_length_is_that_of_a_good_copy_once_the_bad_one_is_known(quick_path, which):
    stored = Stored(quick_path, 3 * MIB)
    rig = stored.stor()
    stored.damage("longer by one", which)
    (bad,) = [m for m in rig.members if str(stored.copies[which]).startswith(m.root)]
    bad.disk.files.fail_always("exchange", errno.EROFS)
    while not bad.corrupt:
        rig.get(stored.content)
    for _ in range(10):
        response = rig.get(stored.content, method="HEAD")
        assert response.status == 200
        assert response.headers["content-length"] == str(3 * MIB)
        assert exact(rig.get(stored.content), stored.content)
    assert rig.mirrors.repairs.waiting == 1
    rig.heal()
    rig.rounds(2)
    stored.assert_healed(1)


@pytest.mark.parametrize("chunked_body", [False, True], ids=["length known", "chunked"])
@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("damage", ["shorter by one", "longer by one", "empty", "directory"])
@pytest.mark.parametrize("sums", [True, False], ids=["sums", "no sums"])
def test_posting_again_repairs_a_copy_of_the_wrong_size(
    quick_path, damage, size, which, chunked_body, sums
):
    stored = Stored(quick_path, size)
    if not sums:
        stored.forget_sums()
    stored.damage(damage, *which)
    if chunked_body and which == [0, 1] and stored.copies[0].stat().st_size > SMALL_BYTES:
        return  # two large copies of one size, and nobody says that it is the wrong one
    rig = stored.stor()
    if chunked_body:
        connection = rig.connect()
        connection.send(upload_head(stored.content, CHUNKED) + chunked([stored.content]))
        (response,) = connection.responses()
    else:
        response = rig.put(stored.content)
    assert response.status == (200 if len(which) == 1 else 201)
    assert json.loads(response.body) == [str(copy) for copy in stored.copies]
    stored.assert_healed(len(which))
    assert rig.get(stored.content).body == stored.content


def test_two_samples_that_changed_places_are_both_put_back(quick_path):
    rig = FaultyRig(quick_path, (2,), kind=QuickFiles)
    contents = [sample(5000, seed) for seed in range(2)]
    for content in contents:
        rig.put(content)
    one, other = (rig.copies(content)[0] for content in contents)
    one.rename(quick_path / "between")
    other.rename(one)
    (quick_path / "between").rename(other)
    for _ in range(10):
        for content in contents:
            assert rig.get(content).body == content
    assert len(list(quick_path.glob("set0/disk0/.stor/quarantine/*"))) == 4
    for content in contents:
        assert [path.read_bytes() for path in rig.copies(content)] == [content] * 2


def test_every_bad_copy_is_kept_however_many_there_are(quick_path):
    stored = Stored(quick_path, 5000)
    rig = stored.stor()
    for n in range(1, 6):
        stored.damage("middle bit", n % 2)
        while len(stored.quarantine) < n:
            assert rig.get(stored.content).body == stored.content
            rig.clock.advance(60)
    stored.assert_healed(5)


def test_a_bad_copy_that_is_gone_is_no_reason_to_store_where_a_disk_is_away(tmp_path):
    """What was known to be bad may have been taken away: the sample goes to a set that is whole."""
    rig = Rig(tmp_path, sets=(2, 2))
    content = b"a sample"
    rig.put(content)
    paths = rig.copies(content)
    for path in paths:
        path.write_bytes(b"x sample")
    assert rig.get(content).status == 500
    for path in paths:
        path.unlink()
    paths[1].parents[3].rename(tmp_path / "away")
    rig.probe()
    assert rig.put(content).status == 201
    assert len(rig.copies(content)) == 2


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("size", [5000, 3 * MIB])
def test_a_copy_that_is_put_back_is_as_old_as_the_oldest_good_one(quick_path, size, lost):
    content = sample(size)
    rig = FaultyRig(quick_path, (3,), kind=QuickFiles)
    assert rig.put(content).status == 201
    copies = rig.copies(content)
    times = [1_000_000_000 * second for second in (300, 100, 200)]
    for copy, modified_ns in zip(copies, times, strict=True):
        os.utime(copy, ns=(modified_ns, modified_ns))
    copies[lost].unlink()
    left = [times[index] for index in range(3) if index != lost]
    rig.mirrors.repairs.report(Digest.of(content), rig.mirrors.mirrors[0])
    rig.rounds(2)
    assert copies[lost].read_bytes() == content
    assert copies[lost].stat().st_mtime_ns == min(left)


def test_slow_readers_of_a_bad_file_do_not_condemn_the_good_one_that_has_replaced_it(quick_path):
    content = sample(3 * MIB)
    digest = Digest.of(content)
    rig = FaultyRig(quick_path, (1,), kind=QuickFiles)
    assert rig.put(content).status == 201
    (copy,) = rig.copies(content)
    flipped(1)(copy, None)
    readers = [done(rig.store.open(digest)) for _ in range(3)]
    assert not rig.get(content).complete
    assert rig.put(content).status == 201
    for reader in readers:
        with pytest.raises((Damaged, Unavailable)):
            read_on(reader, len(content))
        reader.close()
        for _ in range(2):
            response = rig.get(content)
            assert (response.status, response.complete) == (200, True)
            assert response.body == content
        assert rig.put(content).status == 200
    assert len(list(quick_path.glob("*/*/.stor/quarantine/*.reason"))) == 1


def test_what_others_have_mended_is_served_without_being_told(quick_path):
    """One process serves, another mends: neither knows what the other has found to be bad."""
    content = sample(3 * MIB)
    reads, mends = (FaultyRig(quick_path, (1,), kind=QuickFiles) for _ in range(2))
    assert mends.put(content).status == 201
    (copy,) = mends.copies(content)
    flipped(1)(copy, None)
    for rig in (reads, mends):
        assert not rig.get(content).complete
        assert rig.get(content).status == 500  # it is known
    assert mends.put(content).status == 201
    response = reads.get(content)
    assert (response.status, response.complete) == (200, True)
    assert response.body == content


def done(coroutine):
    return Deferred.fromCoroutine(coroutine).result


def read_on(reader, size):
    offset = 0
    while offset < size:
        reading = Deferred.fromCoroutine(reader.read(offset, min(MIB, size - offset)))
        data = reading.result
        if isinstance(data, Failure):
            reading.addErrback(lambda _: None)
            data.raiseException()
        offset += len(data)
