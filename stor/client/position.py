"""How far a mirror has come, kept in a file. Blocking: for threads."""

import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import attrs

from stor.client.listing import Listed, is_cursor
from stor.digest import Digest, MalformedDigest


class BadPosition(ValueError):
    """What is in the file is no position."""


@attrs.frozen
class Position:
    """Everything up to here is durably at the target, except for what is in `again`."""

    #: Where `GET /landed` goes on.
    cursor: str
    #: The last sample of `GET /index` that was looked at, empty at first; `None` once all are.
    listed: str | None
    #: How files are named below a directory; empty for a Stor.
    names: str
    #: What could not be copied yet, and is tried again.
    again: tuple[Listed, ...] = ()


def beside(directory: str, source: str) -> str:
    """The file for a mirror of the Stor `source` into a directory."""
    return os.path.join(directory, f".stor-mirror-{_short(source)}.json")


def at_home(environment: Mapping[str, str], source: str, target: str) -> str:
    """The file for a mirror of the Stor `source` into the Stor `target`."""
    home = environment.get("HOME") or os.path.expanduser("~")
    state = environment.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    return os.path.join(state, "stor", f"mirror-{_short(source, target)}.json")


def _short(*urls: str) -> str:
    return hashlib.sha256("\n".join(urls).encode()).hexdigest()[:16]


def load(path: str) -> Position | None:
    """What `save` has written; `None`: nothing. Raises `BadPosition`, `OSError`."""
    try:
        with open(path, "rb") as file:
            told = json.loads(file.read())
        listed = told["listed"]
        if not is_cursor(told["cursor"]) or not isinstance(told["names"], str):
            raise BadPosition
        if listed:
            Digest.parse(listed)
        again = tuple(Listed(Digest.parse(sha), int(size)) for sha, size in told["again"])
        return Position(told["cursor"], listed, told["names"], again)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, MalformedDigest):
        raise BadPosition(path) from None


def save(
    path: str,
    position: Position,
    about: Mapping[str, str],
    fsync: Callable[[int], None] = os.fsync,
    rename: Callable[[str, str], None] = os.rename,
) -> None:
    """Keep it, with what it is `about` for those who read the file. Raises `OSError`.

    After a crash there is this one or the one before.
    """
    told = dict(about) | attrs.asdict(position, recurse=False)
    told["again"] = [[str(one.digest), one.size] for one in position.again]
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    aside = f"{path}.{os.getpid()}.part"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            json.dump(told, file)
            file.flush()
            fsync(file.fileno())
        rename(aside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise
    with _opened(directory) as descriptor:
        fsync(descriptor)


def sync(directory: str) -> None:
    """Have all that was written below a directory on its disk. Raises `OSError`."""
    os.makedirs(directory, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    with _opened(directory) as descriptor:
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
