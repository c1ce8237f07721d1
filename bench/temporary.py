"""A directory that is gone in the end, whatever happens."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: What asks bench to end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def temporary_directory(parent: Path | None) -> Iterator[Path]:
    """A new directory below `parent`. Removing it can take long; signals wait until it is gone."""
    directory = Path(tempfile.mkdtemp(prefix="stor-bench-", dir=parent))
    try:
        yield directory
    finally:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        shutil.rmtree(directory)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def empty_files(directory: Path) -> None:
    """Give back the space of all files below, and leave them there.

    Ext4 looks longer for a free inode while others close by were freed in the last minutes, so
    that whoever creates files would pay for those that were removed before.
    """
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # a socket, a link to what is gone
                os.truncate(os.path.join(parent, name), 0)
