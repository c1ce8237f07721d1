"""`stor put`, `get` and `missing`, as processes, against a Stor and against servers that fail."""

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor

from stor.client import Client, GivenUp, NotStored, Refused, Stopped, Unauthorized
from stor.client.api import Credentials
from stor.digest import Digest
from tests.engines.certificate import Certificate
from tests.integration.mounts import Mounts
from tests.integration.process import MIB, endpoint, environment, free_port, poll, sha_of
from tests.support.rig import PASSWORD, USER

STOR = Path(sys.executable).parent / "stor"

CREDENTIALS = f"{USER}:{PASSWORD}@"


@attrs.frozen
class Ended:
    """What a command has done."""

    status: int
    output: bytes
    errors: list

    @property
    def lines(self):
        return self.output.decode(errors="surrogateescape").splitlines()


def begin(
    *arguments, url, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, variables=None, **options
):
    """Begin a command, whose URL is in its environment."""
    return subprocess.Popen(
        [STOR, *map(str, arguments)],
        bufsize=0,  # `communicate` does not know what `readline` has buffered
        env=environment(STOR_URL=url, HOME="/nonexistent", **(variables or {})),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        **options,
    )


def end(process, data=None, seconds=60):
    """Wait for its end."""
    output, errors = process.communicate(data, seconds)
    errors = errors.decode().splitlines()
    assert not any("Traceback" in line for line in errors), errors
    return Ended(process.returncode, output, errors)


def run(*arguments, url, data=None):
    stdin = subprocess.DEVNULL if data is None else subprocess.PIPE
    return end(begin(*arguments, url=url, stdin=stdin), data)


@pytest.fixture
def url(stor):
    """With user and password."""
    return stor.url(credentials=CREDENTIALS)


@pytest.fixture
def tree(tmp_path):
    """A directory with files of all kinds of names and sizes; their paths and contents."""
    root = tmp_path / "tree"
    (root / "below").mkdir(parents=True)
    names = ["a", "with space", "new\nline", "back\\slash", "\udcff\udcfe", "below/b"]
    contents = {f"{root}/{name}": os.urandom(n * 1000) for n, name in enumerate(names)}
    contents[f"{root}/large"] = os.urandom(5 * MIB + 1)
    for path, content in contents.items():
        Path(path).write_bytes(content)
    return root, contents


def files_below(directory):
    return sorted(path for path in directory.rglob("*") if not path.is_dir())


class TestPut:
    def test_a_directory_is_stored_and_told_as_sha256sum_tells_it(self, stor, url, tree, tmp_path):
        root, contents = tree
        ended = run("put", root, url=url)
        assert (ended.status, ended.errors) == (0, [])
        for content in contents.values():
            assert stor.get(sha_of(content)).body == content
        sums = subprocess.run(
            ["sha256sum", "-b", *contents], capture_output=True, check=True
        ).stdout.replace(b" *", b"  ")
        assert sorted(ended.output.splitlines()) == sorted(sums.splitlines())
        again = run("put", "--json", root, url=url)
        told = [json.loads(line) for line in again.lines]
        assert {one["path"]: one["sha"] for one in told} == {
            path: sha_of(content) for path, content in contents.items()
        }
        assert [one["state"] for one in told] == ["present"] * len(contents)

    @pytest.mark.parametrize("null", [False, True])
    def test_a_list_of_names_is_stored(self, stor, url, tree, null):
        _, contents = tree
        paths = [path for path in contents if null or "\n" not in path]
        data = (b"\0" if null else b"\n").join(map(os.fsencode, paths))
        ended = run("put", *(["--null"] if null else []), "-", url=url, data=data)
        assert (ended.status, ended.errors) == (0, [])
        assert len(ended.lines) == len(paths)

    def test_what_is_no_file_is_named_and_passed_over(self, stor, url, tree):
        root, contents = tree
        os.mkfifo(root / "fifo")
        with contextlib.chdir(root), socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
        (root / "loop").symlink_to(".")
        (root / "gone").symlink_to("nothing")
        ended = run("put", root, url=url)
        assert ended.status == 1
        assert len(ended.output.splitlines()) == len(contents)
        assert sorted(ended.errors) == [
            f"stor: {root}/fifo: a FIFO, not a file",
            f"stor: {root}/gone: No such file or directory",
            f"stor: {root}/loop: a symbolic link to a directory, which is not followed",
            f"stor: {root}/socket: a socket, not a file",
        ]

    def test_a_file_that_is_written_to_all_the_time_is_named(self, stor, url, tmp_path):
        path, ended = tmp_path / "log", threading.Event()
        path.write_bytes(b"x" * MIB)
        (tmp_path / "quiet").write_bytes(b"quiet")

        def write_on():
            with path.open("ab", buffering=0) as file:
                while not ended.is_set():
                    file.write(b"another line\n" * 20)

        writing = threading.Thread(target=write_on)
        writing.start()
        try:
            told = run("put", tmp_path, url=url)
        finally:
            ended.set()
            writing.join()
        assert told.status == 1
        assert told.errors == [f"stor: {path}: it changes while it is read; tried 3 times"]
        assert told.lines == [f"{sha_of(b'quiet')}  {tmp_path}/quiet"]

    @pytest.mark.parametrize("credentials", ["", "writer:wrong@"])
    @pytest.mark.parametrize("size", [1000, 100 * MIB])
    def test_a_wrong_password_is_one_line_and_tried_once(self, start, tmp_path, credentials, size):
        stor = start()
        for n in range(40):
            with (tmp_path / f"{n}").open("wb") as file:
                file.truncate(size + n if n == 0 or size < MIB else n + 1)
        begun = time.monotonic()
        ended = run("put", tmp_path, url=stor.url(credentials=credentials))
        assert ended.status == 1
        (line,) = ended.errors
        assert ("wrong user or password (writer)" if credentials else "none were given") in line
        assert "wrong@" not in line
        assert ended.output == b""
        assert stor.log_so_far().count(" 401 ") == 1
        assert time.monotonic() - begun < 10
        assert stor.samples() == []

    def test_a_stored_large_file_is_not_sent_to_its_end(self, start, big_file):
        """Also while the server cannot say yet what it has."""
        stor = start()
        url = stor.url(credentials=CREDENTIALS)
        assert run("put", big_file.path, url=url).status == 0
        ended = run("put", "--json", big_file.path, url=url)
        assert json.loads(ended.output)["state"] == "present"
        log = stor.log_so_far()
        received = [int(n) for n in re.findall(r"POST /\w{64} 200 .* (\d+) B received", log)]
        assert sum(received) < 10 * MIB


class TestGet:
    @pytest.fixture
    def stored(self, stor, tree):
        for content in tree[1].values():
            assert stor.put(content).status in (200, 201)
        return [sha_of(content) for content in tree[1].values()]

    def test_samples_are_fetched_and_right(self, stor, stored, tmp_path):
        target = tmp_path / "got"
        ended = run("get", "-C", target, "--name", "aa/bb/SHA", *stored, url=stor.url())
        assert (ended.status, ended.errors) == (0, [])
        for line in ended.lines:
            sha, path = line.split("  ")
            assert path == f"{target}/{sha[:2]}/{sha[2:4]}/{sha}"
            assert sha_of(Path(path).read_bytes()) == sha
        assert len(files_below(target)) == len(stored)
        again = run("get", "-C", target, "--name", "aa/bb/SHA", "--json", *stored, url=stor.url())
        assert {json.loads(line)["state"] for line in again.lines} == {"present"}

    def test_small_ones_come_in_few_answers(self, start, tmp_path):
        stor = start(index=False)
        contents = [os.urandom(1000) for _ in range(500)]
        shas = [stor.place(content) for content in contents]
        ended = run("get", "-C", tmp_path / "got", *shas, url=stor.url())
        assert (ended.status, ended.errors) == (0, [])
        assert {path.name for path in files_below(tmp_path / "got")} == set(shas)
        log = stor.log_so_far()
        assert log.count("POST /batch 200 ") + log.count("GET /") < 150

    def test_a_list_may_be_what_put_has_printed(self, stor, url, tree, tmp_path):
        root, contents = tree
        put = run("put", root, url=url)
        ended = run("get", "-C", tmp_path / "got", "-", url=url, data=put.output)
        assert (ended.status, ended.errors) == (0, [])
        found = {path.name for path in files_below(tmp_path / "got")}
        assert found == {sha_of(content) for content in contents.values()}

    def test_what_is_not_stored_is_named(self, stor, stored, tmp_path):
        ended = run("get", "-C", tmp_path / "got", "0" * 64, "x", stored[0], url=stor.url())
        assert ended.status == 1
        assert sorted(ended.errors) == [
            f"stor: {'0' * 64}: 404: not found: no storage holds this sample",
            "stor: x: malformed sha: expected the 64 hexadecimal digits of a SHA-256",
        ]
        assert [path.name for path in files_below(tmp_path / "got")] == [stored[0]]

    def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(self, stor, stored, tmp_path):
        with Mounts(tmp_path) as mounts:
            disk = mounts.tmpfs("full", 2)
            ended = run("get", "-C", disk.point, *stored, url=stor.url())
            assert ended.status == 1
            assert ended.errors == [f"stor: {disk}: No space left on device"]
            for path in files_below(disk.point):
                assert sha_of(path.read_bytes()) == path.name

    def test_nobody_who_reads_its_output_is_its_end(self, stor, stored, tmp_path):
        process = begin("get", "-C", tmp_path / "got", *stored, url=stor.url())
        process.stdout.close()
        assert process.wait(20) == 1
        assert process.stderr.read() == b""
        process.stderr.close()
        for path in files_below(tmp_path / "got"):
            assert sha_of(path.read_bytes()) == path.name


def test_missing_is_a_filter(stor):
    assert stor.put(b"stored").status in (200, 201)
    lines = [f"{sha_of(b'stored')}  a", f"{sha_of(b'not stored')}  b", f"{sha_of(b'stored')}  c"]
    data = "\n".join(lines).encode()

    def known():
        ended = run("missing", url=stor.url(), data=data)
        return ended if ended.status == 0 else None

    assert poll(known, 30, "an answer without unknown").lines == [lines[1]]
    assert run("missing", "--json", "xyz", url=stor.url()).status == 1


@pytest.mark.parametrize("command", [["missing"], ["put", "-"], ["get", "-"]])
def test_a_standard_input_that_is_closed_is_one_line(stor, command):
    process = begin(*command, url=stor.url(), preexec_fn=lambda: os.close(0))
    ended = end(process)
    assert (ended.status, ended.output) == (1, b"")
    assert ended.errors == ["stor: standard input: it is closed"]


@pytest.mark.parametrize("address", ["[::1]", "[0:0:0:0:0:0:0:1]"])
def test_a_host_may_be_an_ipv6_address(start, tmp_path, address):
    port = free_port()
    stor = start(port=port, listen=[endpoint(port), f"tcp:{port}:interface=\\:\\:1"])
    url = stor.url(credentials=CREDENTIALS).replace("127.0.0.1", address)
    (tmp_path / "file").write_bytes(b"by IPv6")
    sha = sha_of(b"by IPv6")
    assert run("put", tmp_path / "file", url=url).lines == [f"{sha}  {tmp_path}/file"]
    assert run("get", "-C", tmp_path, sha, url=url).status == 0
    assert (tmp_path / sha).read_bytes() == b"by IPv6"
    ended = run("put", "--retry", "0", tmp_path / "file", url=f"http://{address}:1")
    assert ended.errors == [f"stor: http://{address}:1: connection refused; tried for 0 s"]


class Failing(ThreadingHTTPServer):
    """A server in front of a directory of samples that fails as a test wants it to.

    `faults` is a list of what is done to the next requests, `None` or nothing left: nothing.
    """

    daemon_threads = True

    def __init__(self, faults=(), port=0):
        self.samples, self.faults, self.requests = {}, list(faults), []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://writer:writer_pass@127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that is gone is none."""

    def close(self):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fault(self):
        """Whether the request has been dealt with."""
        with self.server.lock:
            self.server.requests.append((self.command, self.path, dict(self.headers)))
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None:
            fault(self)
        return fault is not None

    def do_HEAD(self):
        """An older Stor: it knows of no uploads."""
        self.answer(404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/missing":
            shas = [body[n : n + 32].hex() for n in range(0, len(body), 32)]
            states = "".join("+" if sha in self.server.samples else "-" for sha in shas)
            self.answer(200, states.encode())
        elif self.path.startswith("/batch"):
            self.answer(405, b"not here\n")
        elif not self.fault():
            assert hashlib.sha256(body).hexdigest() == self.path[1:]
            new = self.path[1:] not in self.server.samples
            self.server.samples[self.path[1:]] = body
            self.answer(201 if new else 200, b"[]\n")

    def do_GET(self):
        if self.fault():
            return
        content = self.server.samples.get(self.path[1:])
        begin = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if content is None:
            self.answer(404, b"not found\n")
        elif begin:
            self.answer(206, content[int(begin[1]) :])
        else:
            self.answer(200, content)


def unavailable(handler):
    handler.answer(503, b"a disk is away\n", Retry_After="1")


def gateway(handler):
    handler.answer(502, b"<html>bad gateway</html>")


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.close_connection = True
    handler.connection.close()


def cut(handler):
    """Half of the sample."""
    content = handler.server.samples.get(handler.path[1:], b"")
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def damaged(handler):
    """As many bytes as there should be."""
    handler.answer(200, b"x" * len(handler.server.samples.get(handler.path[1:], b"")))


FAULTS = {
    "503": unavailable,
    "502 from a proxy": gateway,
    "reset": reset,
    "cut": cut,
    "damaged": damaged,
}


@pytest.fixture
def failing():
    servers = []

    def make(*faults, **options):
        servers.append(Failing(faults, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


class TestAServerThatFails:
    @pytest.mark.parametrize("size", [1000, 3 * MIB, 9 * MIB])
    @pytest.mark.parametrize("fault", [f for f in FAULTS if f not in ("cut", "damaged")])
    def test_an_upload_is_tried_again(self, failing, tmp_path, fault, size):
        for n in range(3):
            (tmp_path / f"{n}").write_bytes(os.urandom(size))
        server = failing(*[FAULTS[fault]] * 3)
        ended = run("put", tmp_path, url=server.url)
        assert ended.status == 0
        assert len(server.samples) == 3
        assert ended.errors
        assert all(line.endswith("; trying again") for line in ended.errors)

    @pytest.mark.parametrize("size", [1000, 3 * MIB])
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_download_is_tried_again(self, failing, tmp_path, fault, size):
        server = failing(*[FAULTS[fault]] * 2)
        content = os.urandom(size)
        server.samples[sha_of(content)] = content
        ended = run("get", "-C", tmp_path, sha_of(content), url=server.url)
        assert ended.status == 0
        assert (tmp_path / sha_of(content)).read_bytes() == content
        assert len(files_below(tmp_path)) == 1
        ranges = [headers.get("Range") for _, _, headers in server.requests]
        assert (ranges[1] is not None) == (fault == "cut")

    def test_retry_after_is_waited_for(self, failing, tmp_path):
        server = failing(lambda handler: handler.answer(503, b"away\n", Retry_After="2"))
        server.samples[sha_of(b"x")] = b"x"
        begun = time.monotonic()
        assert run("get", "-C", tmp_path, sha_of(b"x"), url=server.url).status == 0
        assert time.monotonic() - begun >= 2

    def test_one_that_is_always_503_is_named_and_the_others_are_fetched(self, failing, tmp_path):
        server = failing()
        for content in (b"a", b"b"):
            server.samples[sha_of(content)] = content
        server.faults = [None] + [unavailable] * 100
        shas = [sha_of(b"a"), sha_of(b"b")]
        ended = run("get", "-C", tmp_path, "--connections", 1, "--retry", 2, *shas, url=server.url)
        assert ended.status == 1
        assert ended.errors[-1] == f"stor: {shas[1]}: 503: a disk is away; tried for 2 s"
        assert [path.name for path in files_below(tmp_path)] == [shas[0]]

    @pytest.mark.parametrize("command", ["put", "get"])
    def test_one_that_is_not_there_is_given_up_with_one_line(self, tmp_path, command):
        (tmp_path / "file").write_bytes(b"x")
        given = [tmp_path] if command == "put" else ["-C", tmp_path, *["0" * 64] * 50]
        port = free_port()
        ended = run(command, "--retry", 1, *given, url=f"http://127.0.0.1:{port}")
        assert ended.status == 1
        where = f"stor: http://127.0.0.1:{port}: connection refused"
        assert ended.errors == [f"{where}; trying again", f"{where}; tried for 1 s"]

    def test_a_host_that_does_not_exist_is_not_tried_again(self, tmp_path):
        (tmp_path / "file").write_bytes(b"x")
        begun = time.monotonic()
        ended = run("put", tmp_path, url="http://stor.invalid")
        assert (ended.status, ended.errors) == (1, ["stor: http://stor.invalid: no such host"])
        assert time.monotonic() - begun < 10

    @pytest.mark.parametrize("command", ["put", "get"])
    def test_one_that_is_started_again_is_waited_for(self, start, tmp_path, command):
        stor = start(index=False)
        contents = [os.urandom(100_000) for _ in range(300)]
        (tmp_path / "files").mkdir()
        for content in contents:
            (tmp_path / "files" / sha_of(content)).write_bytes(content)
            if command == "get":
                stor.place(content)
        arguments = [tmp_path / "files"]
        if command == "get":
            arguments = ["-C", tmp_path / "got", *map(sha_of, contents)]
        process = begin(command, "--json", *arguments, url=stor.url(credentials=CREDENTIALS))
        first = process.stdout.readline()
        stor.kill()
        time.sleep(1)
        stor.start()
        ended = end(process)
        told = [json.loads(line) for line in [first, *ended.lines]]
        assert ended.status == 0, ended.errors
        assert {one["sha"] for one in told} == set(map(sha_of, contents))
        for content in contents:
            assert stor.get(sha_of(content)).body == content
            if command == "get":
                assert (tmp_path / "got" / sha_of(content)).read_bytes() == content


class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("seconds", [0.0, 0.5, 0.7, 0.9])
    def test_get_leaves_whole_files_alone_and_goes_on_when_called_again(
        self, stor, tmp_path, number, seconds
    ):
        contents = [os.urandom(2_000_000) for _ in range(40)]
        for content in contents:
            assert stor.put(content).status == 201
        target = tmp_path / "got"
        arguments = ["get", "-C", target, *map(sha_of, contents)]
        process = begin(*arguments, url=stor.url())
        time.sleep(seconds)
        process.send_signal(number)
        process.communicate(timeout=20)
        # Before it has begun Python dies of the signal itself.
        assert process.returncode in (128 + number, -number, 0)
        for path in files_below(target) if target.exists() else []:
            assert sha_of(path.read_bytes()) == path.name
        assert run(*arguments, url=stor.url()).status == 0
        assert {path.name for path in files_below(target)} == set(map(sha_of, contents))

    def test_put_leaves_no_sample_half_done_and_goes_on_with_it(self, start, big_file):
        stor = start(index=False)
        url = stor.url(credentials=CREDENTIALS)
        process = begin("put", big_file.path, url=url)
        poll(stor.partials, what="an upload under way")
        process.send_signal(signal.SIGINT)
        ended = end(process)
        assert (ended.status, ended.errors, ended.output) == (130, [], b"")
        assert stor.samples() == []
        assert run("put", big_file.path, url=url).status == 0
        assert len(stor.samples()) == 2
        assert stor.partials() == stor.staged() == []

    def test_a_list_that_never_ends_is_no_reason_to_stay(self, stor):
        process = begin("get", "-", url=stor.url(), stdin=subprocess.PIPE)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (130, -signal.SIGINT)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


class TestHttps:
    @pytest.fixture
    def secure(self, start, tmp_path):
        """A URL with TLS, and the file of its certificate."""
        certificate, port = Certificate.make(tmp_path), free_port()
        plain_port = free_port()
        secure = (
            f"ssl:{port}:interface=127.0.0.1"
            f":privateKey={certificate.key_file}:certKey={certificate.file}"
        )
        start(port=plain_port, listen=[endpoint(plain_port), secure])
        return f"https://{CREDENTIALS}127.0.0.1:{port}", certificate.file

    def test_large_and_small_files_go_there_and_back(self, secure, tree, tmp_path):
        url, trusted = secure
        root, contents = tree
        trusting = {"SSL_CERT_FILE": str(trusted)}
        put = end(begin("put", root, url=url, variables=trusting))
        assert (put.status, put.errors) == (0, [])
        shas = list(map(sha_of, contents.values()))
        got = end(begin("get", "-C", tmp_path / "got", *shas, url=url, variables=trusting))
        assert (got.status, got.errors) == (0, [])
        for sha in shas:
            assert sha_of((tmp_path / "got" / sha).read_bytes()) == sha

    @pytest.mark.parametrize("size", [5, 5 * MIB])
    def test_a_wrong_password_is_tried_once(self, secure, tmp_path, size):
        url, trusted = secure
        (tmp_path / "file").write_bytes(os.urandom(size))
        wrong = url.replace(PASSWORD, "wrong")
        variables = {"SSL_CERT_FILE": str(trusted)}
        ended = end(begin("put", tmp_path / "file", url=wrong, variables=variables))
        assert ended.status == 1
        assert len(ended.errors) == 1
        assert "wrong user or password" in ended.errors[0]

    def test_a_certificate_that_is_not_trusted_is_one_line_and_tried_once(self, secure, tree):
        begun = time.monotonic()
        ended = run("put", tree[0], url=secure[0])
        assert ended.status == 1
        (line,) = ended.errors
        assert "TLS" in line
        assert "certificate verify failed" in line
        assert PASSWORD not in line
        assert time.monotonic() - begun < 10


def test_there_is_progress_on_a_terminal_and_none_elsewhere(stor, tree, tmp_path):
    root, contents = tree
    url = stor.url(credentials=CREDENTIALS)
    ours, theirs = pty.openpty()
    process = begin("put", root, url=url, stderr=theirs)
    os.close(theirs)
    output, _ = process.communicate(timeout=30)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    assert process.returncode == 0
    assert len(output.splitlines()) == len(contents)
    assert re.search(rf"\r{len(contents)} of {len(contents)} files, 5\.\d+ MB".encode(), shown)
    assert run("put", root, url=url).errors == []


def test_memory_does_not_grow_with_the_list(stor):
    """A list of a million names, of which none is there."""
    peaks = []
    for count in (20_000, 300_000):
        process = begin("put", "-", url=stor.url(credentials=CREDENTIALS), stdin=subprocess.PIPE)
        errors = threading.Thread(target=process.stderr.read)
        errors.start()
        for n in range(count):
            process.stdin.write(b"/nonexistent/%d\n" % n)
        process.stdin.close()
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.join()
        assert process.returncode == 1
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < peaks[0] + 20_000


@pytest_twisted.ensureDeferred
async def test_the_library(stor):
    host = stor.url().rstrip("/")
    client = Client(reactor, host, Credentials(USER, PASSWORD))
    digest = await client.put(b"hello library")
    assert digest == Digest.of(b"hello library")
    assert await client.get(digest) == b"hello library"
    assert len(await client.missing([digest, Digest.of(b"nobody has it")])) == 2
    with pytest.raises(NotStored):
        await client.get(Digest.of(b"nobody has it"))
    await client.close()
    stranger = Client(reactor, host)
    with pytest.raises(Unauthorized):
        await stranger.put(b"of a stranger")
    await stranger.close()


def hang(handler):
    """Say nothing for longer than the client waits."""
    time.sleep(3)
    handler.close_connection = True


def hang_half_way(handler):
    cut(handler)
    handler.wfile.flush()
    hang(handler)


class TestTheLibrary:
    @pytest.fixture
    def client_of(self):
        def make(server, **options):
            host = server.url.replace("writer:writer_pass@", "")
            quick = {"idle_seconds": 0.5, "first_wait_seconds": 0.1, **options}
            return Client(reactor, host, Credentials(USER, PASSWORD), **quick)

        return make

    @pytest.mark.parametrize("fault", [hang, hang_half_way])
    @pytest_twisted.ensureDeferred
    async def test_a_server_that_hangs_is_asked_again(self, failing, client_of, fault):
        server, content = failing(fault), os.urandom(3 * MIB)
        server.samples[sha_of(content)] = content
        troubles = []
        client = client_of(server, trouble=troubles.append)
        assert await client.get(Digest.of(content)) == content
        assert await client.put(b"new") == Digest.of(b"new")
        (trouble,) = troubles
        assert "nothing has moved for 0.5 s" in trouble
        await client.close()

    @pytest_twisted.ensureDeferred
    async def test_an_upload_that_hangs_is_sent_again(self, failing, client_of):
        server = failing(hang)
        client = client_of(server)
        content = os.urandom(3 * MIB)
        assert await client.put(content) == Digest.of(content)
        assert server.samples == {sha_of(content): content}
        await client.close()

    @pytest_twisted.ensureDeferred
    async def test_one_that_always_hangs_is_given_up(self, failing, client_of):
        client = client_of(failing(*[hang] * 50), retry_seconds=1.0)
        with pytest.raises(GivenUp, match="nothing has moved"):
            await client.put(b"new")
        await client.close()

    @pytest_twisted.ensureDeferred
    async def test_one_that_asks_for_more_patience_than_there_is_is_not_waited_for(
        self, failing, client_of
    ):
        server = failing(lambda handler: handler.answer(503, b"later\n", Retry_After="3600"))
        client = client_of(server)
        with pytest.raises(Refused, match="503: later"):
            await client.put(b"new")
        await client.close()

    @pytest_twisted.ensureDeferred
    async def test_once_it_is_stopped_nothing_more_is_asked(self, failing, client_of):
        server = failing(hang)
        client = client_of(server, idle_seconds=60.0)
        reactor.callLater(0.3, client.stop)
        with pytest.raises(Stopped):
            await client.put(b"new")
        with pytest.raises(Stopped):
            await client.get(Digest.of(b"another"))
        assert len(server.requests) == 1
        await client.close()
