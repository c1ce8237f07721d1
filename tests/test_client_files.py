"""Files on their way to a Stor: which there are, what they hash to, and what is passed over."""

import io
import os
import socket

import pytest

from stor.client.files import Changed, Hashed, OpenFile, Problem, hash_file, lines, quoted, walk
from stor.digest import Digest

ODD_NAMES = ["a", "with space", "new\nline", "back\\slash", "cr\r", "\udcff\udcfe", "ü", "-", "*"]


def found(*paths):
    """What `walk` gives: the names of files, and of what is passed over with the reason."""
    names, passed = set(), {}
    for item in walk(map(str, paths)):
        if isinstance(item, Problem):
            passed[item.path] = item.reason
        else:
            names.add(item)
    return names, passed


def test_every_file_below_a_directory_is_found_whatever_its_name(tmp_path):
    expected = set()
    for directory in ("", "below", "below/deep"):
        (tmp_path / directory).mkdir(exist_ok=True)
        for name in ODD_NAMES:
            path = os.path.join(tmp_path, directory, name) if directory else f"{tmp_path}/{name}"
            with open(path, "wb") as file:
                file.write(b"x")
            expected.add(path)
    assert found(tmp_path) == (expected, {})


def test_links_to_files_are_followed_and_links_to_directories_are_named(tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "directory" / "to file").symlink_to("../file")
    (tmp_path / "directory" / "loop").symlink_to(".")
    names, passed = found(tmp_path / "directory")
    assert names == {str(tmp_path / "directory" / "to file")}
    assert passed == {
        str(
            tmp_path / "directory" / "loop"
        ): "a symbolic link to a directory, which is not followed"
    }
    # One that is named is meant.
    (tmp_path / "link").symlink_to("directory")
    assert found(tmp_path / "link")[0] == {str(tmp_path / "link" / "to file")}


def test_what_is_not_there_is_named(tmp_path):
    absent = str(tmp_path / "absent")
    assert found(absent) == (set(), {absent: "No such file or directory"})
    assert found("a\0b") == (set(), {"a\0b": "no name that a file can have"})


def test_a_walk_looks_no_further_than_it_is_asked(tmp_path):
    """A list of all would not be flat: what is not asked for yet is not looked at."""
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    walking = walk([str(tmp_path / "a"), str(tmp_path / "gone later"), str(tmp_path / "b")])
    assert next(walking) == str(tmp_path / "a")
    (tmp_path / "gone later").write_bytes(b"x")
    assert next(walking) == str(tmp_path / "gone later")


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 3_000_001])
def test_a_file_is_hashed(tmp_path, size):
    path, content = tmp_path / "file", os.urandom(size)
    path.write_bytes(content)
    hashed = hash_file(str(path))
    assert (hashed.digest, hashed.size) == (Digest.of(content), size)


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.close()


NO_FILES = {
    "FIFO": (_fifo, "a FIFO, not a file"),
    "socket": (_socket, "a socket, not a file"),
    "directory": (os.mkdir, "a directory, not a file"),
    "device": (lambda path: os.symlink("/dev/zero", path), "a device, not a file"),
    "dangling link": (lambda path: os.symlink("nothing", path), "No such file or directory"),
    "link to itself": (
        lambda path: os.symlink(path, path),
        "Too many levels of symbolic links",
    ),
    "absent": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize(("make", "reason"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, make, reason):
    path = tmp_path / "odd"
    make(path)
    assert hash_file(str(path)) == Problem(str(path), reason)


class TestAFileThatChanges:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"before")
        return path

    @pytest.mark.parametrize("content", [b"after!", b"longer than before", b"short", b""])
    def test_is_noticed_when_it_is_opened_again(self, path, content):
        hashed = hash_file(str(path))
        os.utime(path, ns=(0, 0))
        path.write_bytes(content)
        with pytest.raises(Changed):
            OpenFile(hashed)

    def test_is_noticed_while_it_is_read(self, path):
        file = OpenFile(hash_file(str(path)))
        path.write_bytes(b"b")
        with pytest.raises(Changed):
            file.read(0, 6)
        with pytest.raises(Changed):
            file.expect_unchanged()
        file.close()

    def test_that_is_replaced_is_read_as_it_was(self, path):
        file = OpenFile(hash_file(str(path)))
        other = path.with_name("other")
        other.write_bytes(b"another")
        other.rename(path)
        assert file.read(0, 6) == b"before"
        file.expect_unchanged()
        file.close()

    def test_that_never_keeps_still_is_given_up(self):
        """/proc has files whose length is 0 whatever they say."""
        assert hash_file("/proc/self/status") == Problem(
            "/proc/self/status", "it changes while it is read; tried 3 times"
        )


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
@pytest.mark.parametrize("end", [True, False])
def test_a_list_has_a_name_a_line(separator, end):
    names = [name for name in ODD_NAMES if separator == b"\0" or "\n" not in name]
    data = separator.join(map(os.fsencode, names)) + (separator if end else b"")
    assert list(lines(io.BytesIO(data), separator)) == names


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_quoted_as_sha256sum_does(tmp_path, name):
    """Its `-c` reads what is printed."""
    shown, mark = quoted(name)
    assert "\n" not in shown
    assert "\r" not in shown
    plain = shown.replace("\\n", "\n").replace("\\r", "\r").replace("\\\\", "\\")
    assert (plain if mark else shown) == name


def test_what_is_known_of_a_file_is_what_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    assert hash_file(str(path)) == Hashed(
        str(path), Digest.of(b"hello"), 5, path.stat().st_mtime_ns
    )
