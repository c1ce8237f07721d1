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


@attrs.frozen
class Programs:
    """Where they are."""

    twistd: str
    nginx: str
    wrk: str

    @classmethod
    def find(cls) -> "Programs":
        """All of them. Raises `Missing`."""
        twistd = Path(sys.executable).with_name("twistd")
        if not twistd.exists():
            raise Missing("twistd is missing beside this Python: pip install -e .")
        return cls(str(twistd), _find("nginx", "nginx-light"), _find("wrk", "wrk"))


def _find(name: str, package: str) -> str:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise Missing(f"{name} is missing: apt install {package}")
    return path


def first_line(*command: str) -> str:
    """What a program says first, on either stream, whatever its status (`wrk -v` ends with 1)."""
    said = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return said.stdout.partition("\n")[0]
