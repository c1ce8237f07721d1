"""The configuration that `twistd stor` is asked for, by its options and the environment."""

import contextlib
import json
import stat

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock

from stor.config import ConfigError, Credentials
from stor.options import Options, configuration
from stor.quickstart import greeting

GOOD = {"storage_pairs": [["/mnt/data1"]], "basic_auth": "writer:pass"}
NOTHING = "no configuration: give --config FILE, $CONFIG_FILE or --data DIR"


@pytest.fixture
def directory(tmp_path):
    """The current directory, in which relative paths begin."""
    with contextlib.chdir(tmp_path):
        yield tmp_path


def chosen(*arguments, **environment):
    options = Options()
    options.parseOptions(arguments)
    return configuration(options, environment, MemoryReactorClock())


def faults(*arguments, **environment):
    """The faults for which a start is refused."""
    with pytest.raises(ConfigError) as refused:
        chosen(*arguments, **environment)
    return list(refused.value.faults)


class TestWhichOne:
    def test_config_before_the_environment(self, directory):
        (directory / "config.json").write_text(json.dumps(GOOD))
        found = chosen("--config", "config.json", CONFIG_FILE="/does/not/exist")
        assert found.sets == (("/mnt/data1",),)

    def test_data_before_the_environment(self, directory):
        """The password of the directory is asked for, not that of the configuration."""
        (directory / "config.json").write_text(json.dumps(GOOD))
        found = chosen("--data", "data", CONFIG_FILE="config.json")
        password = (directory / "data" / "password").read_text().strip()
        assert found.credentials == (Credentials("writer", password),)

    def test_listen_before_the_configuration(self, directory):
        configured = GOOD | {"listen": ["tcp:80"]}
        (directory / "config.json").write_text(json.dumps(configured))
        arguments = ["--listen", "tcp:81", "--listen", "unix:socket"]
        assert chosen("--config", "config.json", *arguments).listen == ("tcp:81", "unix:socket")

    def test_neither_config_nor_data(self):
        assert faults() == [NOTHING]

    def test_both_config_and_data(self, directory):
        found = faults("--config", "c", "--data", "d")
        assert found == ["--config and --data: expected one of them, found both"]
        assert list(directory.iterdir()) == []


class TestFaults:
    def test_a_file_that_is_not_there(self, directory):
        assert faults("--config", "gone.json") == ["gone.json: No such file or directory"]

    def test_a_directory(self, directory):
        assert faults(CONFIG_FILE=str(directory)) == [f"{directory}: Is a directory"]

    @pytest.mark.parametrize("text", [b'{"storage_pairs": [', b"\xff\xfe{}"])
    def test_not_json(self, directory, text):
        (directory / "config.json").write_bytes(text)
        (fault,) = faults("--config", "config.json")
        assert fault.startswith("config.json: ")
        assert "\n" not in fault

    @pytest.mark.parametrize("endpoint", ["nonsense", "tcp:http-port"])
    def test_an_endpoint_that_is_none(self, directory, endpoint):
        (fault,) = faults("--data", "data", "--listen", endpoint)
        expected = f'--listen: expected a Twisted endpoint such as "tcp:8080", found "{endpoint}": '
        assert fault.startswith(expected)

    def test_an_endpoint_that_is_none_in_the_configuration(self, directory):
        (directory / "config.json").write_text(json.dumps(GOOD | {"listen": ["tcp:http"]}))
        (fault,) = faults("--config", "config.json")
        assert fault.startswith("config.json: listen[0]: ")
        assert "tcp:http" in fault


class TestData:
    def test_two_sets_of_two_directories_and_a_private_password(self, directory):
        found = chosen("--data", "data")
        assert found.sets == tuple(
            tuple(str(directory / "data" / f"set{s}" / f"disk{d}") for d in (1, 2)) for s in (1, 2)
        )
        assert all((directory / root).is_dir() for roots in found.sets for root in roots)
        password = directory / "data" / "password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        assert len(password.read_text().strip()) >= 12
        assert not found.require_mount

    def test_the_password_stays(self, directory):
        assert chosen("--data", "data").credentials == chosen("--data", "data").credentials

    def test_an_empty_password_file_is_no_empty_password(self, directory):
        (directory / "data").mkdir()
        (directory / "data" / "password").touch(0o600)
        (credentials,) = chosen("--data", "data").credentials
        assert len(credentials.password) >= 12

    def test_a_password_that_is_no_text(self, directory):
        password = directory / "data" / "password"
        password.parent.mkdir()
        password.write_bytes(b"\xff\xfe")
        where = f"--data {directory / 'data'}: {password}: "
        assert faults("--data", "data") == [f"{where}expected a password of ASCII characters"]

    def test_a_file_in_place_of_the_directory(self, directory):
        (directory / "data").touch()
        data = directory / "data"
        assert faults("--data", "data") == [f"--data {data}: Not a directory: {data}/set1"]

    @pytest.mark.parametrize(
        ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")]
    )
    def test_the_lines_to_paste_name_the_port_that_listens(self, directory, host, shown):
        address, data = IPv4Address("TCP", host, 8123), str(directory / "data")
        text = greeting(chosen("--data", "data"), address, data, private=True)
        lines = [line for line in text.splitlines() if line.startswith("  ")]
        assert len(lines) == 2
        assert all(f" http://{shown}:8123/" in line for line in lines)
