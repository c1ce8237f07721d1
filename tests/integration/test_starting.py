"""What `twistd -n stor` does with its options, its configuration, its port and its disks."""

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.process import (
    REPOSITORY,
    configure,
    endpoint,
    environment,
    free_port,
    place,
    poll,
    refused_start,
    sample_path,
    sha_of,
)

CONTENT = b"a sample"
SHA = sha_of(CONTENT)
UNKNOWN = sha_of(b"a sample that nobody has")


@pytest.fixture
def with_data(start_with, tmp_path):
    """Start a Stor with `--data`: `with_data("data")`, below the test's directory."""

    def start(data, port=None, listen=None, **variables):
        port = port or free_port()
        arguments = ["stor", "--data", data, "--listen", listen or endpoint(port)]
        stor = start_with(*arguments, port=port, **variables)
        stor.roots = [tmp_path / data / f"set{s}" / f"disk{d}" for s in (1, 2) for d in (1, 2)]
        stor.password = (tmp_path / data / "password").read_text().strip()
        return stor

    return start


def pasted(stor):
    """The lines that it prints to be pasted."""
    greeting = stor.log.partition("Try:\n")[2]
    return [line for line in greeting.splitlines() if line.startswith("  ")]


def in_bash(line):
    return subprocess.run(
        ["bash", "-c", line], env=environment(), capture_output=True, timeout=20, check=True
    ).stdout


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("log_format", ["text", "journal", "json"])
def test_a_root_whose_path_is_no_text(start, tmp_path, workers, log_format):
    """Everything is answered, and the log has a line of it."""
    roots = [str(tmp_path / os.fsdecode(b"disk\xff%d" % n)) for n in range(2)]
    for root in roots:
        os.mkdir(root)
    stor = start(storage_pairs=[roots], workers=workers, log_format=log_format)
    assert stor.put(CONTENT).status == 201
    assert stor.get(SHA).body == CONTENT
    assert b"disk\\udcff0" in stor.request("GET", "metrics").body.replace(b"\\\\", b"\\")
    shutil.rmtree(roots[1])
    assert stor.get(UNKNOWN).status in (404, 503)
    poll(lambda: stor.request("GET", "status").status == 503, 20, "a disk that is gone")
    assert b"disk\\udcff1" in stor.request("GET", "status").body
    poll(lambda: "disk\\udcff1" in stor.log.replace("\\\\", "\\"), what="a line about the disk")
    os.mkdir(roots[1])


def assert_refused(ended, *lines):
    """It has ended with status 1, and said these lines and nothing else."""
    status, output, errors = ended
    assert status == 1
    assert "Traceback" not in output + errors
    assert output == ""
    assert errors.splitlines() == [f"stor: {line}" for line in lines]


class TestData:
    def test_a_first_start_has_nothing_to_warn_of(self, with_data):
        stor = with_data("data")
        assert [line for line in stor.log.splitlines() if "#warn" in line] == []
        log = stor.log_so_far()
        assert f" serves at 127.0.0.1:{stor.port}: 2 sets of 4 disks, " in log
        assert "factory" not in log

    def test_the_log_has_no_password(self, with_data):
        """Many read a log, and it is kept; who has the terminal is shown it."""
        stor = with_data("data")
        assert stor.password not in stor.log

    def test_the_printed_lines_store_and_fetch(self, with_data):
        stor = with_data("data")
        store, fetch = poll(lambda: pasted(stor), what="two lines to paste")
        paths = json.loads(in_bash(store))
        assert [Path(path).read_bytes() for path in paths] == [b"hello", b"hello"]
        assert in_bash(fetch) == b"hello"


class TestConfig:
    def test_several_endpoints(self, start, tmp_path):
        port, path = free_port(), tmp_path / "socket"
        stor = start(listen=[endpoint(port), f"unix:{path}"], port=port)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.0 200 ")
        assert stor.get("status").body == b"OK\n"

    @pytest.mark.parametrize("arguments", [["-oy", REPOSITORY / "stor.tac"], ["stor"]])
    def test_the_configuration_that_the_environment_names(self, start_with, tmp_path, arguments):
        port, _ = configure(tmp_path)
        stor = start_with(*arguments, port=port, CONFIG_FILE="config.json")
        assert stor.put(CONTENT).status == 201
        assert stor.get(SHA).body == CONTENT

    def test_a_tree_as_the_older_stor_wrote_it(self, start_with, tmp_path):
        port, roots = configure(tmp_path)
        both = place(CONTENT, roots[:2])
        one = place(b"one copy, on the second disk", roots[3:])
        for root in roots[:2]:
            os.utime(Path(root) / sample_path(both), (784_111_777, 784_111_777))
        stor = start_with("stor", "--config", "config.json", port=port)
        answer = stor.get(both)
        assert (answer.status, answer.body) == (200, CONTENT)
        assert answer.headers["last-modified"] == "Sun, 06 Nov 1994 08:49:37 GMT"
        assert stor.get(one.upper()).body == b"one copy, on the second disk"
        assert stor.request("HEAD", one).headers["content-length"] == "28"
        again = stor.put(CONTENT)
        assert again.status == 200
        assert json.loads(again.body) == [f"{root}/{sample_path(both)}" for root in roots[:2]]


class TestFaults:
    def test_neither_with_the_tac(self, tmp_path):
        assert_refused(
            refused_start("-oy", str(REPOSITORY / "stor.tac"), directory=tmp_path),
            "no configuration: give --config FILE, $CONFIG_FILE or --data DIR",
        )

    def test_every_fault_of_a_configuration_is_listed(self, tmp_path):
        faulty = {
            "storage_pairs": [["/mnt/data1", "/mnt/data2"], ["mnt/data3", "/mnt/data1"]],
            "writable_pairs_regex": "data[12",
            "memcached_server": ["cache1"],
            "reserve_bytes": "1 gigabyte",
            "require_mount": "no",
        }
        path = tmp_path / "config.json"
        path.write_text(json.dumps(faulty))
        status, output, errors = refused_start("stor", "--config", str(path), directory=tmp_path)
        assert (status, output) == (1, "")
        lines = errors.splitlines()
        expected = [
            'memcached_server: unknown key, did you mean "memcached_servers"?',
            'storage_pairs[1][0]: expected an absolute path, found "mnt/data3"',
            "storage_pairs[1][1]: expected a directory of its own "
            '(it is the same as storage_pairs[0][0]), found "/mnt/data1"',
            "writable_pairs_regex: expected a regular expression",
            'basic_auth: missing, expected "user:password"',
            'reserve_bytes: expected a number of bytes from 0 on, or a text such as "100 GB" or '
            '"8 MiB", found "1 gigabyte"',
            'require_mount: expected true or false, found "no"',
        ]
        assert len(lines) == len(expected)
        for fault in expected:
            begin = f"stor: {path}: {fault}"
            assert sum(line.startswith(begin) for line in lines) == 1, f"{begin} in {lines}"

    def test_a_port_that_is_in_use(self, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            where = endpoint(taken.getsockname()[1])
            self.assert_cannot_listen(tmp_path, where, "Address already in use")

    def test_an_address_that_is_not_of_this_host(self, tmp_path):
        where = f"tcp:{free_port()}:interface=203.0.113.9"
        self.assert_cannot_listen(tmp_path, where, "Cannot assign requested address")

    def test_a_socket_in_a_directory_that_is_not_there(self, tmp_path):
        where = f"unix:{tmp_path}/gone/socket"
        self.assert_cannot_listen(tmp_path, where, "No such file or directory")

    @pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
    def test_what_is_no_socket_where_one_should_be(self, tmp_path, make):
        make(tmp_path / "there")
        where = f"unix:{tmp_path}/there"
        self.assert_cannot_listen(tmp_path, where, "what is there is no socket")

    def test_a_socket_that_another_process_listens_at(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(tmp_path / "there"))
            taken.listen()
            where = f"unix:{tmp_path}/there"
            self.assert_cannot_listen(tmp_path, where, "another process listens there")

    def assert_cannot_listen(self, tmp_path, where, reason):
        """One line names the endpoint and the reason, and that is the end."""
        arguments = ["stor", "--data", "data", "--listen", where]
        status, output, errors = refused_start(*arguments, directory=tmp_path, seconds=5)
        said = (output + errors).splitlines()
        assert status == 1
        assert "Traceback" not in output + errors
        (line,) = [line for line in said if "stor: " in line]
        assert line == f"stor: listen: {where}: {reason}"


class TestDisks:
    def test_the_example_starts_as_it_stands(self, start_with, tmp_path):
        shutil.copy(REPOSITORY / "config.json.example", tmp_path)
        port = free_port()
        arguments = ["stor", "--config", "config.json.example", "--listen", endpoint(port)]
        stor = start_with(*arguments, port=port)
        status = stor.get("status")
        assert status.status == 503
        for disk in ("/mnt/data1", "/mnt/data2", "/mnt/data3", "/mnt/data4"):
            assert status.text.count(disk + ": offline") == 1
        answer = stor.get(UNKNOWN)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert stor.put(CONTENT).status == 503

    def test_with_a_root_missing_the_other_set_serves_and_takes(self, start):
        stor = start(index=False)
        missing, rest, *other = stor.roots
        on_the_rest_of_the_pair = stor.place(b"one copy is left", [missing, rest])
        on_the_other_set = stor.place(b"two copies", other)
        stor.stop()
        shutil.rmtree(missing)
        stor.start()

        status = stor.get("status")
        assert status.status == 503
        assert [line.split(": ")[0] for line in status.text.splitlines()] == [str(missing)]
        assert stor.get(on_the_rest_of_the_pair).body == b"one copy is left"
        assert stor.get(on_the_other_set).body == b"two copies"
        for content in (b"one", b"two", b"three", b"four"):
            answer = stor.put(content)
            assert answer.status == 201
            path = sample_path(sha_of(content))
            assert json.loads(answer.body) == [str(root / path) for root in other]
        assert stor.get(UNKNOWN).status == 404, "a disk of each set has answered"
        assert not missing.exists()

    def test_with_a_whole_set_missing_nobody_is_told_404(self, start, tmp_path):
        sets = [[str(tmp_path / "gone1"), str(tmp_path / "gone2")], [str(tmp_path / "there")]]
        Path(sets[1][0]).mkdir()
        stor = start(storage_pairs=sets)
        answer = stor.get(UNKNOWN)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert stor.put(CONTENT).status == 201
        assert stor.get(SHA).body == CONTENT

    def test_a_root_on_the_root_file_system_gets_not_one_byte(self, start, tmp_path):
        roots = [on_root_file_system() / f"stor-{os.getpid()}-disk{d}" for d in (1, 2)]
        for root in roots:
            root.mkdir()
        try:
            stor = start(storage_pairs=[[str(root)] for root in roots], require_mount=True)
            status = stor.get("status")
            assert status.status == 503
            assert [line.split(": ")[:2] for line in status.text.splitlines()] == [
                [str(root), "offline"] for root in roots
            ]
            for answer in (stor.put(CONTENT), stor.get(SHA)):
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) > 0
            assert [list(root.iterdir()) for root in roots] == [[], []]
        finally:
            for root in roots:
                shutil.rmtree(root)


class TestTwistd:
    def test_help_lists_stor_and_nothing_fails(self, tmp_path):
        status, output, errors = refused_start("--help", directory=tmp_path)
        assert (status, errors) == (0, "")
        (line,) = [line.split() for line in output.splitlines() if line.split()[:1] == ["stor"]]
        assert line[1:] == ["Keep", "and", "serve", "files", "by", "SHA-256", "over", "HTTP."]

    def test_help_of_stor_lists_its_options(self, tmp_path):
        status, output, errors = refused_start("stor", "--help", directory=tmp_path)
        assert (status, errors) == (0, "")
        for option in ("--config=", "--data=", "--listen="):
            assert option in output

    def test_an_interrupt_ends_it_as_well(self, start):
        stor = start()
        stor.signal(signal.SIGINT)
        stor.ended(5)


def on_root_file_system():
    """A directory that can be written, on the file system of `/`."""
    device = os.stat("/").st_dev
    candidates = ("/var/tmp", "/tmp", str(Path.home()), str(REPOSITORY))
    return next(
        Path(path)
        for path in candidates
        if os.stat(path).st_dev == device and os.access(path, os.W_OK)
    )
