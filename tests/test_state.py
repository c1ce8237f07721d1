"""The state directory: replaced as a whole, never half, and no obstacle when it cannot be used."""

import os
import uuid

import pytest

from stor.disk.identity import Remembered, encode_remembered, parse_remembered
from stor.disk.journal import Position
from stor.disk.syscalls import Syscalls
from stor.state import StateDirectory
from tests.support.files import RecordingFiles

DISKS = {
    "/mnt/a": Remembered(str(uuid.uuid4()), True, (2**63, Position(3, 17))),
    "/mnt/\udcff": Remembered(str(uuid.uuid4()), False),
}


def state_at(path, files=None):
    return StateDirectory(path and str(path), files or Syscalls())


def test_a_file_is_durable_before_it_has_its_name(tmp_path):
    files = RecordingFiles()
    state_at(tmp_path, files).write("file", b"data")
    calls = [(call.name, call.path) for call in files.calls if call.name != "close"]
    assert calls == [
        ("open_directory", str(tmp_path)),
        ("create", "file.new"),
        ("write", "file.new"),
        ("sync", "file.new"),
        ("rename", "file"),
        ("sync", str(tmp_path)),
    ]


def test_what_is_written_is_read(tmp_path):
    state = state_at(str(tmp_path / "below" / "state"))
    assert state.read("file") is None
    for data in (b"first", b"second"):
        state.write("file", data)
        assert state_at(state.path).read("file") == data
    assert os.listdir(state.path) == ["file"]
    assert os.stat(state.path).st_mode & 0o077 == 0
    assert state.fault is None


def test_a_write_that_was_interrupted_leaves_the_file_as_it_was(tmp_path):
    state = state_at(str(tmp_path))
    state.write("file", b"whole")
    (tmp_path / "file.new").write_bytes(b"ha")
    assert state.read("file") == b"whole"
    state.write("file", b"next")
    assert os.listdir(tmp_path) == ["file"]


def test_one_that_cannot_be_used_is_a_fault_and_no_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    state = state_at(str(tmp_path / "file" / "state"))
    state.write("disks.json", b"data")
    assert state.fault.startswith(f"state_directory: {state.path} cannot be written (")
    assert "\n" not in state.fault
    assert state.read("disks.json") is None
    (tmp_path / "file").unlink()
    state.write("disks.json", b"data")
    assert state.fault is None
    assert state.read("disks.json") == b"data"


def test_without_a_path_nothing_is_written():
    state = state_at(None)
    state.write("file", b"data")
    assert state.read("file") is None
    assert state.fault is None


def test_disks_are_read_as_they_were_written():
    assert parse_remembered(encode_remembered(DISKS)) == DISKS
    assert parse_remembered(encode_remembered({})) == {}


@pytest.mark.parametrize("cut", range(0, len(encode_remembered(DISKS)) - 2, 7))
def test_a_torn_file_is_not_taken_for_another(cut):
    with pytest.raises(ValueError, match="not what Stor has written"):
        parse_remembered(encode_remembered(DISKS)[:cut])


@pytest.mark.parametrize(
    "data", [b"[]", b"{}", b'{"disks": []}', b'{"disks": {"/a": {}}}', b"\xff"]
)
def test_a_foreign_file_is_none_of_ours(data):
    with pytest.raises(ValueError, match="not what Stor has written"):
        parse_remembered(data)
