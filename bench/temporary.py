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
    """A new directory below `parent`. Removing what is in it can take long; no signal stops it."""
    directory = Path(tempfile.mkdtemp(prefix="stor-bench-", dir=parent))
    try:
        yield directory
    finally:
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
        shutil.rmtree(directory)
        for number, handler in handlers.items():
            signal.signal(number, handler)
