"""What the commands of the client do while a Stor, its disks or files are not as they should be."""

import os
import time

import pytest

from tests.integration.process import sha_of
from tests.integration.test_client import (
    CREDENTIALS,
    Failing,
    _Handler,
    begin,
    end,
    files_below,
    run,
    unavailable,
)

CONTENTS = [os.urandom(1000 + n) for n in range(20)]
SHAS = sorted(map(sha_of, CONTENTS))


class _Busy(_Handler):
    """503 to everything for 4 s from the first request on; then it lists what it has, too."""

    def busy(self):
        with self.server.lock:
            self.server.until = self.server.until or time.monotonic() + 4
        if time.monotonic() >= self.server.until:
            return False
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        unavailable(self)
        return True

    def do_POST(self):
        if not self.busy():
            super().do_POST()

    def do_GET(self):
        if self.busy():
            return
        if self.path.startswith("/landed"):
            self.answer(200, Stor_Cursor="host-1")
        elif self.path.startswith("/index"):
            listed = sorted(self.server.samples.items()) if "after=" not in self.path else []
            lines = [f"{sha} {len(content)}\n" for sha, content in listed]
            self.answer(200, f"{''.join(lines)}end {len(lines)}\n".encode())
        else:
            super().do_GET()


class Busy(Failing):
    until = None

    def __init__(self, contents=()):
        super().__init__()
        self.RequestHandlerClass = _Busy
        self.samples |= {sha_of(content): content for content in contents}


@pytest.mark.parametrize("command", ["put", "get", "missing", "mirror"])
def test_a_server_that_is_503_for_a_while_is_waited_for(tmp_path, command):
    server = Busy(() if command == "put" else CONTENTS)
    files, got = tmp_path / "files", tmp_path / "got"
    files.mkdir()
    for content in CONTENTS:
        (files / sha_of(content)).write_bytes(content)
    arguments = {
        "put": [files],
        "get": ["-C", got, *SHAS],
        "missing": SHAS,
        "mirror": [server.url, got, "--name", "SHA"],
    }[command]
    try:
        ended = run(command, *arguments, url=server.url)
    finally:
        server.close()
    assert ended.status == 0
    # One line for each time it was tried in vain is too many.
    assert 0 < len(ended.errors) <= 2
    assert all(line.endswith("; trying again") for line in ended.errors)
    assert sorted(server.samples) == SHAS
    if command in ("get", "mirror"):
        found = [path for path in files_below(got) if not path.name.startswith(".")]
        assert sorted(sha_of(path.read_bytes()) for path in found) == SHAS


def test_get_fetches_all_with_a_disk_pulled_and_the_server_restarted(start, tmp_path):
    stor = start(index=False)
    contents = [os.urandom(5000) for _ in range(1500)] + [os.urandom(400_000) for _ in range(40)]
    for content in contents:
        stor.place(content)
    got = tmp_path / "got"
    url = stor.url(credentials=CREDENTIALS)
    shas = "".join(f"{sha_of(content)}\n" for content in contents)
    (tmp_path / "list").write_text(shas)
    with (tmp_path / "list").open("rb") as listed:
        process = begin("get", "-C", got, "-", url=url, stdin=listed)
        for _ in range(200):
            process.stdout.readline()
        stor.roots[0].rename(tmp_path / "pulled")
        for _ in range(200):
            process.stdout.readline()
        stor.kill()
        time.sleep(1)
        stor.start()
        ended = end(process, seconds=120)
    assert ended.status == 0, ended.errors
    found = {path.name: sha_of(path.read_bytes()) for path in files_below(got)}
    assert found == {sha_of(content): sha_of(content) for content in contents}


def odd_tree(root):
    """A directory with one of everything; what is said of each that is no file to store."""
    (root / "below").mkdir(parents=True)
    (root / "below" / "good").write_bytes(b"good")
    (root / "new\nline").write_bytes(b"a newline in its name")
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"no UTF-8")
    # Nobody may read that where it begins, not even root: an error like that of a bad sector.
    (root / "bad sector").symlink_to("/proc/self/mem")
    (root / "device").symlink_to("/dev/zero")
    os.mkfifo(root / "fifo")
    (root / "gone").symlink_to("nothing")
    return {
        "bad sector": "Input/output error",
        "device": "a device, not a file",
        "fifo": "a FIFO, not a file",
        "gone": "No such file or directory",
    }


@pytest.mark.parametrize("command", ["put", "mirror"])
def test_what_cannot_be_stored_is_named_and_all_else_is_stored(start, tmp_path, command):
    stor = start(index=False)
    root = tmp_path / "tree"
    said = odd_tree(root)
    url = stor.url(credentials=CREDENTIALS)
    arguments = [root] if command == "put" else [root, url]
    ended = run(command, *arguments, url=url)
    assert ended.status == 1
    errors = [line for line in ended.errors if not line.endswith("; trying again")]
    assert sorted(errors) == [f"stor: {root}/{name}: {why}" for name, why in said.items()]
    for content in (b"good", b"a newline in its name", b"no UTF-8"):
        assert stor.get(sha_of(content)).body == content
    assert len(ended.output.splitlines()) == 3
