"""`stor mirror`, as processes: between Stors and directories that fail, vanish and fill up."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.mounts import Mounts
from tests.integration.process import MIB, free_port, poll, sha_of
from tests.integration.test_client import CREDENTIALS, begin, end, files_below, run
from tests.support.rig import PASSWORD, USER


def mirror(*arguments, **options):
    return run("mirror", *arguments, url="http://not.asked.invalid", **options)


def begin_mirror(*arguments, home=None, **options):
    variables = {"XDG_STATE_HOME": str(home)} if home else {}
    return begin(
        "mirror", *arguments, url="http://not.asked.invalid", variables=variables, **options
    )


def url_of(stor):
    return stor.url(credentials=CREDENTIALS).rstrip("/")


def fill(stor, count, size=1000):
    """Store samples; their contents by sha."""
    contents = {}
    for _ in range(count):
        content = os.urandom(size)
        assert stor.put(content).status == 201
        contents[sha_of(content)] = content
    return contents


def samples_below(directory):
    return {path.name for path in files_below(directory) if not path.name.startswith(".")}


def position_below(directory):
    (path,) = directory.glob(".stor-mirror-*.json")
    return path, json.loads(path.read_text())


def ready(stor):
    """Wait until it can list its samples."""
    poll(lambda: stor.request("GET", "index").status == 200, what="a listing")
    return stor


class TestIntoADirectory:
    def test_all_there_is_is_copied_and_then_what_is_new(self, start, tmp_path):
        stor, target = ready(start()), tmp_path / "copies"
        contents = fill(stor, 70) | fill(stor, 2, 3 * MIB)
        first = mirror(url_of(stor), target)
        assert (first.status, first.errors) == (0, [])
        assert len(first.lines) == len(contents)
        for sha, content in contents.items():
            assert (target / sha[:2] / sha[2:4] / sha).read_bytes() == content
        new = fill(stor, 3)
        second = mirror(url_of(stor), target)
        assert (second.status, second.errors) == (0, [])
        assert {line.split("  ")[0] for line in second.lines} == set(new)
        assert mirror(url_of(stor), target).output == b""
        assert PASSWORD not in position_below(target)[0].read_text()

    def test_it_follows(self, start, tmp_path):
        stor, target = ready(start()), tmp_path / "copies"
        process = begin_mirror("--follow", url_of(stor), target)
        poll(lambda: list(target.glob(".stor-mirror-*")), what="the first position")
        for content in (b"one", b"two"):
            stor.put(content)
            sha = sha_of(content)
            poll((target / sha[:2] / sha[2:4] / sha).exists, 10, "what has just been stored")
        process.send_signal(signal.SIGINT)
        ended = end(process)
        assert (ended.status, ended.errors) == (130, [])

    @pytest.mark.parametrize(
        "cursor", ["00000000-5", "no cursor at all", None], ids=["another host's", "none", "torn"]
    )
    def test_a_cursor_that_is_of_no_use_is_one_line_and_nothing_is_copied_twice(
        self, start, tmp_path, cursor
    ):
        stor, target = ready(start()), tmp_path / "copies"
        contents = fill(stor, 5)
        assert mirror(url_of(stor), target).status == 0
        path, position = position_below(target)
        text = json.dumps({**position, "cursor": cursor}) if cursor else path.read_text()[:20]
        path.write_text(text)
        new = fill(stor, 1)
        ended = mirror("--json", url_of(stor), target)
        assert ended.status == 0
        (line,) = ended.errors
        assert "starting over" in line
        states = {told["sha"]: told["state"] for told in map(json.loads, ended.lines)}
        assert states == dict.fromkeys(contents, "present") | dict.fromkeys(new, "fetched")

    def test_what_failed_is_tried_again_and_nothing_else(self, start, tmp_path):
        stor, target = ready(start()), tmp_path / "copies"
        contents = fill(stor, 5)
        sha = next(iter(contents))
        (target / sha[:2] / sha[2:4]).mkdir(parents=True)
        (target / sha[:2] / sha[2:4] / sha).mkdir()
        ended = mirror(url_of(stor), target)
        assert ended.status == 1
        assert ended.errors == [f"stor: {sha}: Is a directory"]
        assert [again for again, _ in position_below(target)[1]["again"]] == [sha]
        (target / sha[:2] / sha[2:4] / sha).rmdir()
        ended = mirror(url_of(stor), target)
        assert (ended.status, len(ended.lines)) == (0, 1)
        assert samples_below(target) == set(contents)
        assert position_below(target)[1]["again"] == []

    def test_a_full_disk_is_one_line_and_what_is_kept_is_no_further_than_what_is_there(
        self, start, tmp_path
    ):
        stor = ready(start())
        contents = fill(stor, 30, 200_000)
        with Mounts(tmp_path) as mounts:
            disk = mounts.tmpfs("full", 2)
            ended = mirror(url_of(stor), disk.point)
            assert (ended.status, len(ended.errors)) == (1, 1)
            assert ended.errors[0].endswith("No space left on device")
            for path in files_below(disk.point):
                assert (
                    path.name.startswith(".stor-mirror-") or sha_of(path.read_bytes()) == path.name
                )
            # Nothing half-done, and with room it goes on.
            subprocess.run(["mount", "-o", "remount,size=20m", disk.point], check=True)
            assert mirror(url_of(stor), disk.point).status == 0
            assert samples_below(disk.point) == set(contents)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_ended_at_any_moment_it_goes_on(self, start, tmp_path, number):
        stor, target = ready(start()), tmp_path / "copies"
        contents = fill(stor, 60, 100_000)
        for n in range(6):
            process = begin_mirror("--connections", 2, url_of(stor), target)
            time.sleep(0.4 + 0.1 * n)
            process.send_signal(number)
            process.communicate(timeout=20)
            for path in files_below(target) if target.exists() else []:
                if not path.name.startswith("."):
                    assert sha_of(path.read_bytes()) == path.name
        assert mirror(url_of(stor), target).status == 0
        assert samples_below(target) == set(contents)


class TestIntoAStor:
    @pytest.fixture
    def pair(self, start):
        return ready(start()), ready(start())

    @pytest.fixture
    def go(self, tmp_path):
        def run_mirror(*arguments):
            return end(begin_mirror(*arguments, home=tmp_path / "state"))

        return run_mirror

    def test_all_there_is_and_what_is_new(self, pair, go, tmp_path):
        source, target = pair
        contents = fill(source, 100) | fill(source, 2, 3 * MIB)
        assert target.put(next(iter(contents.values()))).status == 201
        first = go(url_of(source), url_of(target))
        assert (first.status, first.errors) == (0, [])
        assert len(first.lines) == len(contents) - 1
        for sha, content in contents.items():
            assert target.get(sha).body == content
        new = fill(source, 2)
        assert set(go(url_of(source), url_of(target)).lines) == set(new)
        assert go(url_of(source), url_of(target)).output == b""
        (state,) = (tmp_path / "state" / "stor").iterdir()
        assert PASSWORD not in state.read_text()

    @pytest.mark.parametrize("which", ["FROM", "TO"])
    def test_a_wrong_password_is_one_line_and_tried_once(self, pair, go, which):
        source, target = pair
        fill(source, 40)
        urls = [url_of(source), url_of(target)]
        wrong = ["FROM", "TO"].index(which)
        urls[wrong] = urls[wrong].replace(PASSWORD, "wrong")
        ended = go(*urls)
        assert ended.status == 1
        (line,) = ended.errors
        assert line == f"stor: {pair[wrong].url().rstrip('/')}: wrong user or password ({USER})"
        assert pair[wrong].log_so_far().count(" 401 ") == 1

    @pytest.mark.parametrize("which", [0, 1])
    def test_one_that_is_started_again_is_waited_for(self, pair, go, tmp_path, which):
        contents = fill(pair[0], 200, 20_000)
        process = begin_mirror("--connections", 2, *map(url_of, pair), home=tmp_path / "state")
        process.stdout.readline()
        pair[which].kill()
        time.sleep(1)
        pair[which].start()
        ended = end(process)
        assert ended.status == 0, ended.errors
        for sha, content in contents.items():
            assert pair[1].get(sha).body == content

    def test_one_that_cannot_be_reached_is_given_up(self, pair, go):
        nowhere = f"http://127.0.0.1:{free_port()}"
        for urls in ((nowhere, url_of(pair[1])), (url_of(pair[0]), nowhere)):
            fill(pair[0], 1)
            ended = go("--retry", 1, *urls)
            assert ended.status == 1
            assert ended.errors[-1] == f"stor: {nowhere}: connection refused; tried for 1 s"


class TestFromADirectory:
    def test_samples_go_by_their_names_and_damaged_ones_are_named(self, start, tmp_path):
        stor = ready(start())
        contents = fill(stor, 20)
        copies = tmp_path / "copies"
        assert mirror(url_of(stor), copies).status == 0
        other = ready(start())
        damaged = next(iter(contents))
        path = copies / damaged[:2] / damaged[2:4] / damaged
        path.write_bytes(b"damaged")
        (copies / "plain").write_bytes(b"no sample's name")
        ended = mirror(copies, url_of(other))
        assert ended.status == 1
        assert ended.errors == [f"stor: {path}: damaged: its content is {sha_of(b'damaged')}"]
        stored = {sha: 200 if sha != damaged else 404 for sha in contents}
        stored |= {sha_of(b"no sample's name"): 200, sha_of(b"damaged"): 404}
        assert {sha: other.get(sha).status for sha in stored} == stored
        path.unlink()
        again = mirror(copies, url_of(other))
        assert (again.status, again.output) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["http://a", "http://a/"], "FROM and TO are the same Stor"),
        (["http://u:p@a", "http://a"], "FROM and TO are the same Stor"),
        (["DIRECTORY", "DIRECTORY"], "one of FROM and TO has to be a Stor: give its URL"),
        (["http://a", "FILE"], "FILE: not a directory"),
        (["FILE", "http://a"], "FILE: not a directory"),
        (["nowhere", "http://a"], "FROM: nowhere: there is no such directory"),
        (["--follow", "DIRECTORY", "http://a"], "--follow: a directory does not tell what is new"),
        (["http://a", "b:80"], "b:80: no such directory; for a Stor give http://b:80"),
        (["ftp://a", "b"], "FROM: expected a URL such as http://stor.example:8080"),
        (["http://a", "b", "--name", "../SHA"], "--name: expected a path below the directory"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, arguments, line):
    (tmp_path / "FILE").touch()
    (tmp_path / "DIRECTORY").mkdir()
    ended = end(begin_mirror(*arguments, cwd=tmp_path))
    assert ended.status == 2
    (error,) = ended.errors
    assert error.startswith(f"stor: {line}")
    assert {path.name for path in Path(tmp_path).iterdir()} == {"FILE", "DIRECTORY"}
