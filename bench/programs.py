"""The programs that bench starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

from bench.errors import Missing

#: nginx is in a directory that is not on the PATH of every user.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

#: The package that has each, in Debian 12.
_PACKAGES = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "docker-registry": "docker-registry",
    "rclone": "rclone",
}


@attrs.frozen
class Programs:
    """Where they are."""

    twistd: str
    nginx: str
    wrk: str
    docker_registry: str
    rclone: str

    @classmethod
    def find(cls) -> "Programs":
        """All of them. Raises `Missing`, which names every one that is."""
        twistd = Path(sys.executable).with_name("twistd")
        if not twistd.exists():
            raise Missing("twistd is missing beside this Python: pip install -e .")
        paths = {name: shutil.which(name, path=_PATH) for name in _PACKAGES}
        packages = [_PACKAGES[name] for name, path in paths.items() if path is None]
        if packages:
            raise Missing(f"programs are missing: apt install {' '.join(packages)}")
        return cls(str(twistd), *(str(path) for path in paths.values()))


def first_line(*command: str) -> str:
    """What a program says first, on either stream, whatever its status (`wrk -v` ends with 1)."""
    said = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return said.stdout.partition("\n")[0]
