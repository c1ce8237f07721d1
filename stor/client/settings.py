"""Which Stor, and who asks: an option, the environment, a file and .netrc, in this order."""

import json
import netrc
import os
import stat
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import attrs

from stor.client.api import Credentials


class BadSettings(ValueError):
    """They cannot be used; the text is one line that says what is wrong and what would be right."""


@attrs.frozen
class Settings:
    """`url` has no credentials in it."""

    url: str
    credentials: Credentials | None


@attrs.frozen
class _File:
    url: str | None = None
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)


def settings(
    option: str | None, environment: Mapping[str, str], option_name: str = "--url"
) -> Settings:
    """Find out. Raises `BadSettings`."""
    path = _file_path(environment)
    file = _read(path)
    if option is not None:
        found, whence = option, option_name
    elif "STOR_URL" in environment:
        found, whence = environment["STOR_URL"], "$STOR_URL"
    elif file.url is not None:
        found, whence = file.url, path
    else:
        raise BadSettings(f"no Stor: give its URL with --url, in $STOR_URL or as `url` in {path}")
    url, credentials = _parse(found, whence)
    if credentials is None and file.user is not None and _same(url, file.url):
        credentials = Credentials(file.user, file.password or "")
    if credentials is None:
        credentials = _from_netrc(url, environment)
    return Settings(url, credentials)


def _parse(text: str, whence: str) -> tuple[str, Credentials | None]:
    """A URL without its credentials, and these."""
    expected = "expected a URL such as http://stor.example:8080"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadSettings(f"{whence}: {expected}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSettings(f"{whence}: {expected}")
    if parts.query or parts.fragment or not text.isascii() or not text.isprintable():
        raise BadSettings(f"{whence}: {expected}, without a query")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    at = host if port is None else f"{host}:{port}"
    credentials = None
    if parts.username is not None:
        credentials = Credentials(unquote(parts.username), unquote(parts.password or ""))
    return f"{parts.scheme}://{at}{parts.path.rstrip('/')}", credentials


def _same(url: str, other: str | None) -> bool:
    """Whether what the file has is for this server: a password is for no other one."""
    if other is None:
        return False
    return urlsplit(url)[:2] == urlsplit(_parse(other, "url")[0])[:2]


def _file_path(environment: Mapping[str, str]) -> str:
    home = environment.get("HOME") or os.path.expanduser("~")
    config = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return os.path.join(config, "stor", "client.json")


def _read(path: str) -> _File:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return _File()
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BadSettings(f"{path}: no JSON: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise BadSettings(f'{path}: expected {{"url": TEXT, "user": TEXT, "password": TEXT}}')
    if unknown := sorted(data.keys() - {"url", "user", "password"}):
        raise BadSettings(f"{path}: {unknown[0]}: unknown key, expected url, user or password")
    if "password" in data and stat.S_IMODE(mode) & 0o077:
        raise BadSettings(f"{path}: has a password, and others can read it: chmod 600 {path}")
    found = _File(**data)
    if found.url is not None:
        _parse(found.url, f"{path}: url")
    return found


def _from_netrc(url: str, environment: Mapping[str, str]) -> Credentials | None:
    home = environment.get("HOME") or os.path.expanduser("~")
    path = environment.get("NETRC") or os.path.join(home, ".netrc")
    try:
        entry = netrc.netrc(path).authenticators(urlsplit(url).hostname or "")
    except OSError:
        return None
    except netrc.NetrcParseError as error:
        raise BadSettings(f"{path}: line {error.lineno}: {error.msg}") from None
    if entry is None or not entry[0]:
        return None
    return Credentials(entry[0], entry[2] or "")
