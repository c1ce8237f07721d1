"""Stor, as `twistd -n stor --config` runs it."""

import base64
import json
from pathlib import Path
from typing import Any

from bench.body import Body
from bench.cores import Cores
from bench.exchange import Conversation, asking, fetch, head
from bench.process import Process
from bench.programs import Programs
from bench.server import free_port
from stor.digest import Digest

_CREDENTIALS = "writer:bench"
_AUTHORIZATION = f"Basic {base64.b64encode(_CREDENTIALS.encode()).decode()}"


class StorServer:
    """One Stor of as many processes as it has cores; its disks are directories below its own."""

    def __init__(
        self,
        directory: Path,
        programs: Programs,
        cores: Cores,
        name: str = "Stor",
        sets: int = 1,
        copies: int = 2,
        **settings: Any,
    ) -> None:
        """`settings` are further keys of its configuration."""
        self.name = name
        self.base = ""
        self.sets = [
            [directory / f"set{number}" / f"disk{copy}" for copy in range(1, copies + 1)]
            for number in range(1, sets + 1)
        ]
        self._settings = {"workers": len(cores.server), **settings}
        self._config = directory / "config.json"
        self._twistd = programs.twistd
        self._process = Process(name, directory, cores.server)

    @property
    def pid(self) -> int:
        """See `Server.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Server.start`."""
        for disks in self.sets:
            for disk in disks:
                disk.mkdir(parents=True, exist_ok=True)
        port = free_port()
        config = {
            "storage_pairs": [[str(disk) for disk in disks] for disks in self.sets],
            "basic_auth": _CREDENTIALS,
            "listen": [f"tcp:{port}:interface=127.0.0.1"],
            "require_mount": False,
            # As under systemd, which the figures are meant for.
            "log_format": "journal",
            **self._settings,
        }
        self._config.write_text(json.dumps(config))
        self.base = f"http://127.0.0.1:{port}"
        arguments = ["-n", "--pidfile=", "stor", "--config", str(self._config)]
        self._process.start([self._twistd, *arguments])
        self._process.wait_until(self._available)

    def path(self, digest: Digest) -> str:
        """See `Server.path`."""
        return f"/{digest}"

    def storing(self, body: Body) -> Conversation:
        """See `Server.storing`."""
        start = head("POST", self.base, self.path(body.digest), body.size, _AUTHORIZATION)
        return asking([start, *body.parts], 201)

    def stop(self) -> None:
        """See `Server.stop`."""
        self._process.stop()

    def _available(self) -> bool:
        answer = fetch(f"{self.base}/status")
        return answer is not None and answer[0] == 200
