"""What the figures come from."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from bench.programs import Programs, first_line


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
        "nginx": first_line(programs.nginx, "-v").rpartition("/")[2],
        "wrk": first_line(programs.wrk, "-v").split()[1],
        "docker-registry": first_line(programs.docker_registry, "--version").split()[-1],
        "rclone": first_line(programs.rclone, "version").split()[-1],
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


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
