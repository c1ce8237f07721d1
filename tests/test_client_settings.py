"""Which Stor a command talks to, and as whom."""

import json

import pytest

from stor.client.api import Credentials
from stor.client.settings import BadSettings, Settings, settings

URL = "http://stor.example:8080"
WRITER = Credentials("writer", "secret")


class Home:
    """A home directory with a configuration file and a .netrc, and the environment of its user."""

    def __init__(self, path):
        self.path = path
        self.environment = {"HOME": str(path)}
        self.file = path / ".config" / "stor" / "client.json"
        self.netrc = path / ".netrc"

    def configure(self, mode=0o600, **keys):
        self.file.parent.mkdir(parents=True)
        self.file.write_text(json.dumps(keys))
        self.file.chmod(mode)

    def remember(self, text):
        self.netrc.write_text(text)
        self.netrc.chmod(0o600)

    def found(self, option=None):
        return settings(option, self.environment)

    def fault(self, option=None):
        with pytest.raises(BadSettings) as caught:
            self.found(option)
        line = str(caught.value)
        assert "\n" not in line
        assert "secret" not in line
        return line


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_an_option_comes_before_the_environment_and_that_before_the_file(home):
    home.configure(url="http://file")
    assert home.found() == Settings("http://file", None)
    home.environment["STOR_URL"] = "http://environment"
    assert home.found().url == "http://environment"
    assert home.found("http://option").url == "http://option"


def test_without_any_it_says_where_one_may_be_given(home):
    line = home.fault()
    assert all(word in line for word in ("--url", "$STOR_URL", str(home.file)))


URLS = {
    "http://h": ("http://h", None),
    "https://h:1/": ("https://h:1", None),
    "http://h/below/it/": ("http://h/below/it", None),
    "http://writer:secret@h": ("http://h", WRITER),
    "http://writer:se%63ret@[::1]:80": ("http://[::1]:80", WRITER),
    "http://writer@h": ("http://h", Credentials("writer", "")),
}


@pytest.mark.parametrize(("text", "expected"), URLS.items(), ids=URLS)
def test_a_url_may_hold_user_and_password(home, text, expected):
    assert home.found(text) == Settings(*expected)


@pytest.mark.parametrize(
    "text",
    ["", "h", "stor.example:8080", "ftp://h", "http://", "http://h:x", "http://h?a", "http://h/ü"],
)
def test_what_is_no_url_is_a_fault_that_says_where_it_is(home, text):
    assert home.fault(text).startswith("--url: expected a URL such as http://stor.example:8080")
    home.environment["STOR_URL"] = text
    assert home.fault().startswith("$STOR_URL: expected")


def test_the_password_of_the_file_is_for_its_own_server(home):
    home.configure(url=URL, user="writer", password="secret")
    assert home.found() == Settings(URL, WRITER)
    assert home.found(f"{URL}/").credentials == WRITER
    assert home.found("http://another:8080").credentials is None
    assert home.found("http://me:mine@stor.example:8080").credentials == Credentials("me", "mine")


def test_netrc_has_what_the_others_have_not(home):
    home.remember("machine stor.example login writer password secret\n")
    assert home.found(URL) == Settings(URL, WRITER)
    assert home.found("http://another").credentials is None
    elsewhere = home.path / "netrc"
    home.netrc.rename(elsewhere)
    assert home.found(URL).credentials is None
    home.environment["NETRC"] = str(elsewhere)
    assert home.found(URL).credentials == WRITER


FAULTS = {
    "no JSON": ("{", "no JSON"),
    "no object": ("[]", "expected"),
    "no text": ('{"url": 5}', "expected"),
    "unknown key": ('{"URL": "http://h"}', "URL: unknown key"),
    "no URL": ('{"url": "h"}', "url: expected a URL"),
    "no UTF-8": (b'{"url": "\xff"}', "no JSON"),
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_cannot_be_used_is_a_fault_that_names_it(home, text, expected):
    home.configure()
    home.file.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = home.fault(URL)
    assert line.startswith(f"{home.file}: ")
    assert expected in line


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_password_that_others_can_read_is_a_fault(home, mode):
    home.configure(mode, url=URL, user="writer", password="secret")
    assert f"chmod 600 {home.file}" in home.fault()


def test_a_file_without_a_password_may_be_read_by_all(home):
    home.configure(0o644, url=URL)
    assert home.found() == Settings(URL, None)


def test_a_netrc_that_is_none_is_a_fault(home):
    home.remember("nonsense\n")
    assert home.fault(URL).startswith(f"{home.netrc}: line ")


def test_a_password_is_not_shown():
    assert "secret" not in repr(Settings(URL, WRITER))
