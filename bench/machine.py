"""The machine that bench runs on: its programs, its description, and space on its disks."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import attrs

#: What asks bench to end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: nginx is in a directory that is not on every user's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

#: The package that has each program, in Debian 12.
_PACKAGES = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "docker-registry": "docker-registry",
    "rclone": "rclone",
}

#: Beside the Python that runs bench.
TWISTD = str(Path(sys.executable).with_name("twistd"))


class Missing(Exception):
    """A program that bench needs is not installed; the text names the package that has it."""


@attrs.frozen
class Programs:
    """Where the programs are that Stor is compared with, and wrk."""

    nginx: str
    wrk: str
    docker_registry: str
    rclone: str

    @classmethod
    def find(cls) -> "Programs":
        """All of them. Raises `Missing`, which names every one that is missing."""
        if not Path(TWISTD).exists():
            raise Missing("twistd is missing beside this Python: pip install -e .")
        paths = {name: shutil.which(name, path=_PATH) for name in _PACKAGES}
        packages = [_PACKAGES[name] for name, path in paths.items() if path is None]
        if packages:
            raise Missing(f"programs are missing: apt install {' '.join(packages)}")
        return cls(*(str(path) for path in paths.values()))


def describe(programs: Programs, directory: Path) -> dict[str, str]:
    """The machine and the versions, by name. No host name."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "file system": file_system(directory),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Twisted": version("Twisted"),
        "Klein": version("klein"),
        "nginx": _first_line(programs.nginx, "-v").rpartition("/")[2],
        "wrk": _first_line(programs.wrk, "-v").split()[1],
        "docker-registry": _first_line(programs.docker_registry, "--version").split()[-1],
        "rclone": _first_line(programs.rclone, "version").split()[-1],
    }


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on (proc(5), mountinfo)."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "unknown"


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
    """Truncate every file below a directory, and keep the files.

    Ext4 searches longer for a free inode when others close by were freed in the last minutes, so
    removing files now would slow down whatever creates files next.
    """
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # a socket, a dangling link
                os.truncate(os.path.join(parent, name), 0)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    """A program's first line of output, on either stream, whatever its exit status (wrk's is 1)."""
    output = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return output.stdout.partition("\n")[0]
