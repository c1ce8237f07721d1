"""Paths of storage roots, as a configuration names them."""

import os
from contextlib import suppress
from threading import Thread
from typing import Any

#: A hung disk must not hold up the start: what looks at it may never come back.
_REAL_PATH_SECONDS = 0.5


def real_path(path: str) -> str:
    """The path without symbolic links; as it is when the disk does not say in time."""
    found: list[str] = []
    looking = Thread(target=lambda: found.append(os.path.realpath(path)), daemon=True)
    with suppress(RuntimeError):  # no thread can be started: as if the disk did not say
        looking.start()
        looking.join(_REAL_PATH_SECONDS)
    return found[0] if found else os.path.normpath(path)


def printable(text: str) -> str:
    r"""The text, with bytes of a path that are no UTF-8 written as JSON has them: `\udcff`."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def is_path(value: Any) -> bool:
    """Whether a value is an absolute path that the system can take."""
    if not isinstance(value, str) or not os.path.isabs(value) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True
