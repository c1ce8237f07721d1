"""What a Stor knows of its disks beside them, and what it makes of that at its start."""

import html
import json
import os
import shutil

import pytest

from tests.integration.mounts import Mounts
from tests.integration.process import (
    MIB,
    configure,
    poll,
    refused_start,
    sha_of,
    upload_head,
)
from tests.support.http import assert_one_line

UNKNOWN = sha_of(b"a sample that nobody has")


@pytest.fixture(scope="module")
def mounts(tmp_path_factory):
    with Mounts(tmp_path_factory.mktemp("mounts")) as mounts:
        yield mounts


def remembered(stor):
    return json.loads((stor.directory / "stor-state/disks.json").read_bytes())["disks"]


def warnings(stor):
    answer = stor.get("status", Accept="application/json")
    return json.loads(answer.body)["warnings"]


class TestEmptyMountPoints:
    """On another file system than `/`: in a container, or on a data partition."""

    def test_all_disks_away_at_the_start(self, mounts, start):
        """Nobody but the state directory knows that these directories are not the disks."""
        parent = mounts.tmpfs("partition")
        pairs = [
            [mounts.tmpfs(f"away-set{s}-disk{d}", below=parent.point) for d in range(2)]
            for s in range(2)
        ]
        disks = [disk for pair in pairs for disk in pair]
        stor = start(
            storage_pairs=[[str(disk) for disk in pair] for pair in pairs], require_mount=True
        )
        contents = [os.urandom(1000) for _ in range(10)]
        assert [stor.put(content).status for content in contents] == [201] * 10
        stor.stop()
        assert remembered(stor).keys() == {str(disk) for disk in disks}
        for disk in disks:
            disk.unmount()
            assert os.stat(disk.point).st_dev != os.stat("/").st_dev
        stor.start()
        for content in contents:
            assert_one_line(stor.get(sha_of(content)), 503)
            assert_one_line(stor.put(content), 503)
        status = stor.get("status").text
        for disk in disks:
            assert f"{disk}: offline: " in status
            disk.assert_bare_untouched()
            disk.mount()
        poll(lambda: stor.get("status").status == 200, 20, "all disks in use")
        for content in contents:
            assert stor.get(sha_of(content)).body == content
        for disk in disks:
            disk.assert_bare_untouched()

    def test_a_disk_can_be_unmounted_and_given_to_another(self, mounts, start):
        """The lock holds no disk that was taken away."""
        pair = [mounts.tmpfs(f"moved-disk{d}") for d in range(2)]
        first = start(storage_pairs=[[str(disk) for disk in pair]], require_mount=True)
        assert first.put(b"content").status == 201
        for disk in pair:
            disk.unmount()
        poll(lambda: first.get("status").text.count("not mounted") == 2, 20, "both disks away")
        kept = [[str(disk.kept) for disk in pair]]
        second = start(storage_pairs=kept, require_mount=True)
        assert second.get(sha_of(b"content")).body == b"content"
        second.stop()
        for disk in pair:
            disk.mount()
        poll(lambda: first.get("status").body == b"OK\n", 20, "both disks in use")

    @pytest.mark.parametrize("torn", [b"", b'{"disks": {"/mnt', b'{"of": "another program"}'])
    def test_a_file_that_is_torn_or_foreign_is_made_anew(self, start, torn):
        stor = start()
        before = remembered(stor)
        file = stor.directory / "stor-state/disks.json"
        stor.stop()
        file.write_bytes(torn)
        stor.start()
        assert "disks.json: not what Stor has written" in stor.log
        poll(lambda: file.read_bytes() != torn, what="a file that is made anew")
        assert remembered(stor) == before
        assert stor.get("status").body == b"OK\n"

    def test_without_a_place_to_remember_there_is_a_warning(self, start, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        stor = start(state_directory=str(tmp_path / "file/state"))
        (said,) = [line for line in warnings(stor) if line.startswith("state_directory: ")]
        assert "cannot be written (Not a directory)" in said
        assert said in stor.log
        assert stor.get("status").body == b"OK\n"
        assert stor.put(b"content").status == 201


class TestTwoStorsOnTheSameDisks:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_second_leaves_them_alone_and_the_first_goes_on(self, start, workers):
        first = start(sets=(2,), workers=workers)
        kept = [os.urandom(1000) for _ in range(10)]
        assert [first.put(content).status for content in kept] == [201] * 10
        before = first.samples()
        pairs = [[str(root) for root in first.roots]]
        second = start(storage_pairs=pairs, workers=workers)
        status = second.get("status")
        assert status.status == 503
        for root in first.roots:
            assert (
                f"{root}: offline: {root}: another Stor uses this disk: end it, or " in status.text
            )
        assert_one_line(second.put(os.urandom(1000)), 503)
        assert_one_line(second.get(sha_of(kept[0])), 503)
        assert first.samples() == before
        assert first.put(os.urandom(1000)).status == 201
        assert first.get("status").body == b"OK\n"
        first.kill()
        poll(lambda: second.get("status").body == b"OK\n", 20, "the second Stor to have the disks")
        # Readers hear a moment later than the writer that the disks are there.
        for content in kept:
            poll(lambda c=content: second.get(sha_of(c)).body == c, 5, "a sample that was kept")
        assert second.put(os.urandom(1000)).status == 201

    def test_a_set_that_is_taken_out_can_be_given_to_another(self, start):
        """After the upload that was under way: until then there would be two that write."""
        first = start(sets=(2, 2))
        kept, given = [[str(root) for root in first.roots[n : n + 2]] for n in (0, 2)]
        content = os.urandom(16 * MIB)
        first.reload(storage_pairs=[given])
        with first.connect() as sock:
            sock.sendall(upload_head(sha_of(content), len(content)) + content[: 8 * MIB])
            poll(first.staged, what="an upload under way")
            first.reload(storage_pairs=[kept])
            second = start(storage_pairs=[given])
            assert second.get("status").text.count("another Stor uses this disk") == 2
            sock.sendall(content[8 * MIB :])
            assert sock.recv(1000).startswith(b"HTTP/1.1 201 ")
        poll(lambda: second.get("status").body == b"OK\n", 40, "the second Stor to have the set")
        assert second.get(sha_of(content)).body == content
        assert second.put(b"content").status == 201
        assert first.put(b"content").status == 201
        first.reload(storage_pairs=[kept, given])
        assert first.get("status").text.count("another Stor uses this disk") == 2

    def test_a_disk_gets_another_root_at_a_reload(self, mounts, start):
        """The process that has the lock is the one that asks for it."""
        pair = [mounts.tmpfs(f"renamed-disk{d}") for d in range(2)]
        stor = start(storage_pairs=[[str(disk) for disk in pair]], require_mount=True)
        assert stor.put(b"content").status == 201
        stor.reload(storage_pairs=[[str(disk.kept) for disk in pair]], require_mount=True)
        poll(lambda: stor.get("status").body == b"OK\n", 40, "the disks in use at their new roots")
        assert stor.get(sha_of(b"content")).body == b"content"

    def test_a_disk_that_cannot_be_locked_is_read_and_not_written(self, start):
        stor = start(sets=(2,))
        assert stor.put(b"content").status == 201
        stor.stop()
        for root in stor.roots:
            (root / ".stor/lock").unlink()
            (root / ".stor/lock").symlink_to("elsewhere")
        stor.start()
        status = stor.get("status").text
        for root in stor.roots:
            assert f"{root}: cannot be written: .stor/lock cannot be locked" in status
            assert not (root / ".stor/elsewhere").exists()
        assert stor.get(sha_of(b"content")).body == b"content"
        assert_one_line(stor.put(b"other content"), 503)

    def test_one_that_is_killed_and_started_has_its_disks_at_once(self, start):
        stor = start()
        for _ in range(3):
            stor.kill()
            stor.start()
            assert stor.get("status").body == b"OK\n"


class TestASetTakenOut:
    @pytest.fixture
    def stor(self, start):
        stor = start(index=False, sets=(2, 2, 2))
        self.pairs = [[str(root) for root in stor.roots[n : n + 2]] for n in (0, 2, 4)]
        stor.place(b"a sample", self.pairs[1])
        # That there are samples is seen by the next probe.
        stor.stop()
        stor.start()
        return stor

    def assert_named(self, stor, root):
        (said,) = [line for line in warnings(stor) if line.startswith(f"{root} was taken out")]
        assert f"{stor.directory}/stor-state/disks.json" in said
        assert said in stor.log
        assert stor.get("status").body == b"OK\n"
        assert said in html.unescape(stor.get("", Accept="text/html").text)

    def test_it_is_said_at_the_reload_and_at_every_start(self, stor):
        one, with_sample, empty = self.pairs
        assert stor.get(sha_of(b"a sample")).status == 200
        stor.reload(index=False, storage_pairs=[one])
        assert stor.get(sha_of(b"a sample")).status == 404
        for _ in ("after the reload", "after a restart"):
            for root in with_sample:
                self.assert_named(stor, root)
            assert not [line for line in warnings(stor) if line.startswith(tuple(empty))]
            stor.stop()
            stor.start()
        stor.reload(index=False, storage_pairs=[one, with_sample])
        assert warnings(stor) == []
        assert stor.get(sha_of(b"a sample")).status == 200

    def test_what_may_be_forgotten_is_named_no_more(self, stor):
        stor.reload(index=False, storage_pairs=[self.pairs[0]])
        file = stor.directory / "stor-state/disks.json"
        disks = json.loads(file.read_bytes())
        for root in self.pairs[1]:
            del disks["disks"][root]
        file.write_text(json.dumps(disks))
        stor.reload(index=False, storage_pairs=[self.pairs[0]])
        assert warnings(stor) == []
        assert set(self.pairs[1]).isdisjoint(remembered(stor))

    def test_a_disk_that_another_one_has_all_samples_of_is_not_missed(self, stor):
        (kept, left_out), *others = self.pairs[1], self.pairs[0], self.pairs[2]
        stor.reload(index=False, storage_pairs=[[kept], *others])
        assert warnings(stor) == []
        assert stor.get(sha_of(b"a sample")).status == 200
        shutil.rmtree(left_out)


def test_no_state_below_a_storage_root(tmp_path):
    _, roots = configure(tmp_path, state_directory=str(tmp_path / "set0/disk0/state"))
    status, _, errors = refused_start("stor", "--config", "config.json", directory=tmp_path)
    assert status == 1
    assert errors.splitlines() == [
        "stor: config.json: state_directory: expected a directory outside of the storage roots, "
        f"found {roots[0]}/state, which is below {roots[0]}"
    ]
