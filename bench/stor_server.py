"""Stor, as `twistd -n stor --config` runs it."""

import base64
import json
from pathlib import Path

from bench.connection import fetch
from bench.cores import Cores
from bench.process import Process
from bench.programs import Programs
from bench.server import free_port
from stor.digest import Digest

_CREDENTIALS = "writer:bench"


class StorServer:
    """One Stor of one process, with one mirror of two directories below its own."""

    name = "Stor"
    authorization = f"Basic {base64.b64encode(_CREDENTIALS.encode()).decode()}"

    def __init__(self, directory: Path, programs: Programs, cores: Cores) -> None:
        self.disks = (directory / "disk1", directory / "disk2")
        self._config = directory / "config.json"
        self._twistd = programs.twistd
        self._process = Process(self.name, directory, cores.server)
        self._base = ""

    @property
    def pid(self) -> int:
        """See `Server.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Server.start`."""
        for disk in self.disks:
            disk.mkdir(parents=True)
        port = free_port()
        config = {
            "storage_pairs": [[str(disk) for disk in self.disks]],
            "basic_auth": _CREDENTIALS,
            "listen": [f"tcp:{port}:interface=127.0.0.1"],
            "require_mount": False,
            # As under systemd, which the figures are meant for.
            "log_format": "journal",
        }
        self._config.write_text(json.dumps(config))
        self._base = f"http://127.0.0.1:{port}"
        arguments = ["-n", "--pidfile=", "stor", "--config", str(self._config)]
        self._process.start([self._twistd, *arguments])
        self._process.wait_until(self._available)

    def url(self, digest: Digest) -> str:
        """See `Server.url`."""
        return f"{self._base}/{digest}"

    def stop(self) -> None:
        """See `Server.stop`."""
        self._process.stop()

    def _available(self) -> bool:
        answer = fetch(f"{self._base}/status")
        return answer is not None and answer[0] == 200
