"""A file of users and the hashes of their passwords, as `htpasswd -B` writes it: no Twisted."""

import os
import re
from collections.abc import Mapping

import attrs
import bcrypt

#: bcrypt(3): the version, the cost, and 22 + 31 characters of salt and hash.
_BCRYPT = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")

#: Each step doubles the time that a check takes; 15 is about 2 s.
_COSTS = range(4, 16)

#: bcrypt looks at no more, and so does every program that writes these hashes.
_PASSWORD_BYTES = 72


class HtpasswdError(Exception):
    """The file cannot be used; `faults` say what is wrong in which line, without the hash."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@attrs.frozen
class Htpasswd:
    """What a file held. `stamp` tells whether it is still the same file."""

    path: str
    stamp: tuple[int, int, int]
    hashes: Mapping[bytes, bytes] = attrs.field(repr=False)


def read_htpasswd(path: str) -> Htpasswd:
    """Read the file at `path`. Raises `HtpasswdError`, `OSError`."""
    with open(path, "rb") as file:
        # Before its content: a change in between is seen at the next look.
        stamp = _stamp(os.fstat(file.fileno()))
        content = file.read()
    faults: list[str] = []
    hashes: dict[bytes, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        user, _, hashed = line.partition(b":")
        fault = "duplicate user" if user in hashes else _fault(user, hashed)
        if fault is not None:
            faults.append(f"line {number}: {fault}")
        hashes[user] = hashed
    if not hashes:
        faults.append("expected at least one user, found none")
    if faults:
        raise HtpasswdError(faults)
    return Htpasswd(path, stamp, hashes)


def changed(known: Htpasswd) -> Htpasswd | None:
    """The file as it is by now, `None` when it is still what is `known`.

    Raises `HtpasswdError`, `OSError`.
    """
    return None if _stamp(os.stat(known.path)) == known.stamp else read_htpasswd(known.path)


def matches(password: bytes, hashed: bytes) -> bool:
    """Whether a hash was made from this password. Takes its time: that is what bcrypt is for."""
    try:
        return bcrypt.checkpw(password[:_PASSWORD_BYTES], hashed)
    except ValueError:  # a password that bcrypt does not take, such as one with a NUL
        return False


def _fault(user: bytes, hashed: bytes) -> str | None:
    found = _BCRYPT.fullmatch(hashed)
    if not user:
        return "expected user:hash"
    if found is None:
        return "expected a bcrypt hash, as htpasswd -B writes it, found another kind"
    if int(found[1]) not in _COSTS:
        return f"expected a cost from {_COSTS[0]} up to {_COSTS[-1]}, found {int(found[1])}"
    return None


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size
