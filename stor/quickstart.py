"""A Stor without a configuration: disks and a password below one directory."""

import hashlib
import os
import re
import secrets
import shlex
from collections.abc import Sequence
from ipaddress import ip_address

from twisted.internet.address import UNIXAddress

from stor.config import Config, ConfigError, Credentials


def data_configuration(directory: str, listen: Sequence[str] = ()) -> Config:
    """Two mirrored sets of two directories below `directory`, and a password made once.

    Raises `ConfigError` when the directory cannot be used.
    """
    sets = tuple(
        tuple(os.path.join(directory, f"set{s}", f"disk{d}") for d in (1, 2)) for s in (1, 2)
    )
    try:
        for roots in sets:
            for root in roots:
                os.makedirs(root, exist_ok=True)
        password = _password(os.path.join(directory, "password"))
    except OSError as error:
        raise ConfigError([f"--data {directory}: {error.strerror}: {error.filename}"]) from error
    return Config(
        sets=sets,
        writable=re.compile(""),
        credentials=(Credentials("writer", password),),
        listen=tuple(listen) or ("tcp:8080:interface=127.0.0.1",),
        require_mount=False,
        state_directory=os.path.join(directory, "state"),
        admin_socket=os.path.join(directory, "admin.sock"),
    )


def _password(path: str) -> str:
    """The password that stands in the file `path`, made when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            password = file.read().strip()
    except FileNotFoundError:
        password = ""
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"--data {os.path.dirname(path)}: {path}: expected a password of ASCII characters"]
        ) from error
    if not password:
        password = secrets.token_urlsafe(12)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{password}\n")
    return password


def greeting(chosen: Config, address: object, directory: str, *, private: bool) -> str:
    """Lines to paste that store and fetch a first sample; `address` is where Stor listens.

    All is below `directory`. The password is shown where that is `private`, on a terminal; a log
    has many readers, and lines that read it from its file.
    """
    curl, port = "curl", getattr(address, "port", 0)
    if isinstance(address, UNIXAddress):
        socket = os.fsdecode(address.name or b"")
        curl = f"curl --unix-socket {shlex.quote(socket)}"
        place = "localhost"
    else:
        host = getattr(address, "host", "127.0.0.1")
        if ip_address(host).is_unspecified:
            host = "127.0.0.1"
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    scheme = "https" if chosen.listen[0].startswith("ssl:") else "http"
    url = f"{scheme}://{place}/{hashlib.sha256(b'hello').hexdigest()}"
    (writer,) = chosen.credentials
    user = f"{writer.user}:{writer.password}"
    if not private:
        user = f'"{writer.user}:$(cat {shlex.quote(os.path.join(directory, "password"))})"'
    return (
        f"\nStor keeps samples in {directory}. Try:\n\n"
        f"  printf hello | {curl} -u {user} --data-binary @- {url}\n"
        f"  {curl} {url}\n\n"
    )
