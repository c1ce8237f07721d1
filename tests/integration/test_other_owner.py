"""Files on the disks that belong to another user, as an older Stor or an `rsync` leaves them.

Stor runs as the test's user without any capability here, so that it may not open what another user
keeps to himself.
"""

import os

import pytest

from tests.integration.process import MIB, place, poll, sample_path, sha_of
from tests.support.http import assert_one_line

OTHER_USER = 12345

UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

SIZES = {"small": 5000, "large": MIB}


@pytest.fixture(scope="module")
def stor(start_in_module):
    if os.geteuid() != 0:
        pytest.fail("giving files to another user needs root: run this test as root", pytrace=False)
    return start_in_module(index=False, sets=(2,), wrapper=UNPRIVILEGED)


def give_away(path, mode):
    path.chmod(mode)
    os.chown(path, OTHER_USER, OTHER_USER)


def assert_disks_are_well(stor):
    """Nothing is said of them, and uploads go on."""
    new = os.urandom(1000)
    assert stor.put(new).status == 201
    assert stor.get(sha_of(new)).body == new
    assert stor.get("status").body == b"OK\n"


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
class TestASampleOfMode0600:
    def test_both_copies(self, stor, size):
        """However often it is asked for and posted: an error that names the file."""
        content = os.urandom(size)
        sha = place(content, stor.roots)
        for path in stor.copies(sha):
            give_away(path, 0o600)
        for _ in range(5):
            answer = stor.get(sha)
            assert_one_line(answer, 503)
            assert "Permission denied" in answer.text
            assert sample_path(sha) in answer.text
            assert_disks_are_well(stor)
        for _ in range(5):
            answer = stor.put(content)
            # Whether a large one is right is not looked at.
            assert answer.status == (503 if size == SIZES["small"] else 200)
            assert_disks_are_well(stor)
        assert f"Permission denied: '{sample_path(sha)}'" in stor.log
        for path in stor.copies(sha):  # what docs/operators.md says
            give_away(path, 0o644)
        assert stor.get(sha).body == content

    def test_many_samples(self, stor, size):
        """More than make a disk suspect when they have bad sectors, one after the other."""
        before = len(stor.log)
        shas = [place(os.urandom(size), stor.roots) for _ in range(6)]
        for sha in shas:
            for path in stor.copies(sha):
                give_away(path, 0o600)
        for sha in shas:
            assert stor.get(sha).status == 503
        assert stor.get("status").body == b"OK\n"
        assert " is suspect" not in stor.log[before:]
        assert_disks_are_well(stor)

    def test_one_copy(self, stor, size):
        """The other one is served, and this one stays as it is."""
        content = os.urandom(size)
        sha = place(content, stor.roots)
        path = stor.copies(sha)[0]
        give_away(path, 0o600)
        for _ in range(10):
            assert stor.get(sha).body == content
        answer = stor.put(content)
        if size == SIZES["small"]:  # the content of which is looked at
            assert_one_line(answer, 503)
            assert f"Permission denied: '{sample_path(sha)}'" in answer.text
        else:
            assert answer.status == 200
        assert_disks_are_well(stor)
        assert path.stat().st_uid == OTHER_USER
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "bad", [b"", b"cut", os.urandom(5000)], ids=["empty", "cut", "other bytes"]
)
def test_a_bad_copy_that_may_be_read_is_replaced(stor, bad):
    content = os.urandom(5000)
    sha = place(content, stor.roots)
    path = stor.copies(sha)[0]
    path.write_bytes(bad)
    give_away(path, 0o644)
    assert stor.put(content).status == 200
    assert [copy.read_bytes() for copy in stor.copies(sha)] == [content] * 2
    assert path.stat().st_uid != OTHER_USER
    assert_disks_are_well(stor)


def test_a_directory_in_which_it_may_not_make_names(stor):
    """Uploads that belong there are 503 with its path; all others go on."""
    content = os.urandom(1000)
    directory = stor.roots[0] / sample_path(sha_of(content))[:8]
    directory.mkdir(parents=True, exist_ok=True)
    give_away(directory, 0o755)
    for _ in range(5):
        answer = stor.put(content)
        assert_one_line(answer, 503)
        assert str(stor.roots[0]) in answer.text
        assert "Permission denied: '/proc/self/fd/" in answer.text
        assert sample_path(sha_of(content)) in answer.text
        assert_disks_are_well(stor)
    os.chown(directory, os.geteuid(), os.getegid())
    poll(lambda: stor.put(content).status == 201, 20, "an upload there")
