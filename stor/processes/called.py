"""What a process is called in `ps` and `top`."""

from contextlib import suppress
from pathlib import Path


def call_process(name: str) -> None:
    """Have this process called so, in up to 15 characters (proc(5), comm); never fails."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
