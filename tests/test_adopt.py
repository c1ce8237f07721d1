"""A disk that is replaced: refused until the operator says so, then made whole."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from twisted.logger import capturedLogs, formatEvent

from stor.cli.main import main
from stor.mirror.health import State
from tests.support.rig import Rig, digest_of

SAMPLES = [b"", b"hello", b"x" * 300_000, *(b"sample %d" % n for n in range(50))]


@pytest.fixture
def replaced(tmp_path):
    """A pair with samples whose second disk has been replaced by an empty one."""
    rig = Rig(tmp_path, (2, 2))
    for content in SAMPLES:
        assert rig.put(content).status == 201
    for name in os.listdir(rig.roots[1]):
        shutil.rmtree(rig.roots[1] / name)
    return tmp_path


def configuration(path):
    """The configuration of a rig at `path`, as a file."""
    roots = [[str(path / f"set{s}" / f"disk{d}") for d in range(2)] for s in range(2)]
    file = path / "config.json"
    file.write_text(
        json.dumps({"storage_pairs": roots, "basic_auth": "a:b", "require_mount": False})
    )
    return str(file)


RUNBOOKS = Path(__file__).parents[1] / "docs/operators.md"


def commands(heading):
    """The words after `stor` of the commands that a runbook gives."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)^## ", RUNBOOKS.read_text(), re.M | re.S)
    return [
        shlex.split(found) for found in re.findall(r"\bstor ((?:adopt|check-config) [^`]*)`", text)
    ]


@pytest.mark.parametrize(
    ("heading", "lost"),
    [
        ("One disk lost", [1]),
        ("Both disks of a set lost", [0, 1]),
        ("A set grows", []),
        ("A set is taken out", []),
    ],
)
def test_the_commands_of_the_runbooks_work(tmp_path, heading, lost):
    """Afterwards every disk is in use and the set takes samples."""
    rig = Rig(tmp_path, (2, 2))
    assert rig.put(b"content").status == 201
    for disk in lost:
        for name in os.listdir(rig.roots[disk]):
            shutil.rmtree(rig.roots[disk] / name)
    places = {"/etc/stor/config.json": configuration(tmp_path)}
    places |= {f"/srv/stor/disk{d + 1}": str(rig.roots[d]) for d in range(2)}
    given = commands(heading)
    assert given
    for words in given:
        assert main([places.get(word, word) for word in words]) == 0
    after = Rig(tmp_path, (2, 2))
    after.rounds(1)
    assert [m.health.state for m in after.members] == [State.ONLINE] * 4
    assert after.put(b"other content").status == 201


def test_an_empty_disk_in_place_of_another_gets_nothing(replaced):
    rig = Rig(replaced, (2, 2))
    new = rig.members[1]
    assert new.health.state is State.OFFLINE
    assert "stor adopt" in new.health.fault
    assert rig.request("GET", "/status").status == 503
    for content in SAMPLES:
        assert rig.get(content).body == content
        assert rig.put(content).status == 200
    assert rig.put(b"a new one").status == 201
    assert os.listdir(new.root) == []


def test_an_adopted_disk_is_made_whole(replaced, capsys):
    root = replaced / "set0" / "disk1"
    assert main(["adopt", "--config", configuration(replaced), f"{root}/"]) == 0
    assert "adopted" in capsys.readouterr().out
    rig = Rig(replaced, (2, 2))
    new = rig.members[1]
    assert not new.complete
    assert not new.trusted
    rig.rounds(1)
    assert new.complete
    for content in SAMPLES:
        assert len(rig.copies(content)) == 2
    again = Rig(replaced, (2, 2))
    assert [member.health.state for member in again.members] == [State.ONLINE] * 4
    again.probe()
    assert all(member.complete for member in again.members)


def test_the_log_says_how_far_a_rebuild_is_and_not_each_sample(replaced):
    main(["adopt", "--config", configuration(replaced), str(replaced / "set0" / "disk1")])
    rig = Rig(replaced, (2, 2))
    with capturedLogs() as logs:
        rig.rounds(1)
    said = [formatEvent(event) for event in logs]
    copied = sum(len(rig.copies(content)) == 2 for content in SAMPLES)
    (end,) = [line for line in said if line.startswith("Compared ")]
    assert int(re.search(r": (\d+) samples copied, 0 cannot be mended$", end)[1]) > 3
    assert copied == len(SAMPLES)
    assert not [line for line in said for content in SAMPLES if str(digest_of(content)) in line]


def test_a_miss_on_a_disk_that_is_being_rebuilt_is_no_answer(replaced):
    main(["adopt", "--config", configuration(replaced), str(replaced / "set0" / "disk1")])
    shutil.rmtree(replaced / "set0" / "disk0")
    rig = Rig(replaced, (2, 2))
    shutil.rmtree(replaced / "set0" / "disk0")
    rig.probe()
    on_set0 = [c for c in SAMPLES if not rig.copies(c)]
    assert on_set0
    for content in on_set0:
        response = rig.get(content)
        assert response.status == 503
        assert "retry-after" in response.headers


def test_adopting_the_right_disk_changes_nothing(tmp_path, capsys):
    rig = Rig(tmp_path, (2, 2))
    marker = rig.roots[1] / ".stor" / "disk.json"
    before = marker.read_bytes()
    rig.rounds(2)
    settled = marker.read_bytes()
    assert json.loads(before)["uuid"] == json.loads(settled)["uuid"]
    assert main(["adopt", "--config", configuration(tmp_path), str(rig.roots[1])]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert marker.read_bytes() == settled


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("/somewhere/else", "expected a storage root of the configuration"),
        ("{path}/set0/disk1", "not a directory"),
    ],
)
def test_adopting_what_is_no_disk_is_refused(tmp_path, capsys, root, said):
    Rig(tmp_path, (2, 2))
    shutil.rmtree(tmp_path / "set0" / "disk1")
    assert main(["adopt", "--config", configuration(tmp_path), root.format(path=tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_damaged_marker_is_named_with_what_to_do_and_that_works(tmp_path, capsys):
    rig = Rig(tmp_path, (2, 2))
    for content in SAMPLES:
        assert rig.put(content).status == 201
    root = tmp_path / "set0" / "disk0"
    marker = root / ".stor" / "disk.json"
    marker.write_bytes(b"{")
    adopting = ["adopt", "--config", configuration(tmp_path), str(root)]
    assert main(adopting) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"stor: {root}: .stor/disk.json is damaged (")
    assert error.endswith(": remove it, and give the disk its place with `stor adopt`")
    marker.unlink()
    assert main(adopting) == 0
    restarted = Rig(tmp_path, (2, 2))
    restarted.rounds(2)
    assert {member.health.state for member in restarted.mirrors.members} == {State.ONLINE}
    for content in SAMPLES:
        assert restarted.get(content).body == content
