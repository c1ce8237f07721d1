"""What docs/clients.md shows works as it is written there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.process import REPOSITORY, environment, poll, sha_of
from tests.support.rig import PASSWORD, USER

TEXT = (REPOSITORY / "docs" / "clients.md").read_text()


def blocks(language):
    """What stands in the fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path):
    """A directory with the files that the text speaks of."""
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "video.bin").write_bytes(os.urandom(5_000_000))
    for name in ("photos/2024/a.jpg", "photos/2025/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(os.urandom(100_000))
    return tmp_path


def test_its_commands(stor, start, home):
    other = start(index=False)
    url, other_url = (
        one.url(credentials=f"{USER}:{PASSWORD}@").rstrip("/") for one in (stor, other)
    )
    # The names are learnt when somebody asks first.
    poll(lambda: b"?" not in ask(stor), what="the end of the walk")
    first, *rest = blocks("sh")
    assert first == (
        "export STOR_URL=http://writer:writer_pass@stor.example:8080\n"
        "export OTHER_URL=http://writer:writer_pass@other.example:8080\n"
    )
    commands = "".join([f"export STOR_URL={url}\nexport OTHER_URL={other_url}\n", *rest])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=home,
        env=environment(HOME=str(home), PATH=path),
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 0, ended
    assert (home / "copy.txt").read_text() == "notes\n"
    video = (home / "video.bin").read_bytes()
    assert sha_of(stor.get(sha_of(video)).body) == sha_of(video)
    for photo in home.glob("photos/*/*"):
        sha = sha_of(photo.read_bytes())
        assert (home / "copies" / sha[:2] / sha[2:4] / sha).read_bytes() == photo.read_bytes()
        # Stored by `put`, so `missing` has not named it.
        assert ended.stdout.count(f"{sha}  photos/") == 1
        mirrored = home / "mirrored" / sha[:2] / sha[2:4] / sha
        assert mirrored.read_bytes() == other.get(sha).body == photo.read_bytes()


def ask(stor):
    headers = {"Content-Type": "application/octet-stream"}
    return stor.request("POST", "missing", bytes(32), headers).body


def test_its_python(stor, home):
    url = stor.url(credentials=f"{USER}:{PASSWORD}@")
    program, test = blocks("python")
    runs = f"{program}\nreact(main, [])\n"
    # One that waits for nothing is run by its first step.
    double = f"{test}\ntry:\n    test_it().send(None)\nexcept StopIteration:\n    pass\n"
    for text, said in ((runs, "404: not found: no storage holds this sample\n"), (double, "")):
        ended = subprocess.run(
            [sys.executable, "-c", text],
            cwd=home,
            env=environment(STOR_URL=url, HOME=str(home), PYTHONPATH=str(REPOSITORY)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (0, said), ended.stderr


def test_its_file(home, stor):
    (text,) = blocks("json")
    path = home / ".config" / "stor" / "client.json"
    path.parent.mkdir(parents=True)
    path.write_text(text.replace("http://stor.example:8080", stor.url().rstrip("/")))
    path.chmod(0o600)
    ended = subprocess.run(
        [Path(sys.executable).parent / "stor", "put", "notes.txt"],
        cwd=home,
        env=environment(HOME=str(home)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
