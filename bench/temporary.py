"""A directory that is gone in the end, whatever happens."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
