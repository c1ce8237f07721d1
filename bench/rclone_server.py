"""`rclone serve restic`: files by name, over restic's REST protocol."""

from pathlib import Path

from bench.body import Body
from bench.cores import Cores
from bench.exchange import Conversation, asking, fetch, head
from bench.process import Process
from bench.programs import Programs
from bench.server import free_port
from stor.digest import Digest


class RcloneServer:
    """One rclone with a directory. One copy of a sample; neither looked at nor synced."""

    name = "rclone"

    def __init__(self, directory: Path, programs: Programs, cores: Cores) -> None:
        self.base = ""
        self._directory = directory
        self._rclone = programs.rclone
        self._process = Process(self.name, directory, cores.server)

    @property
    def pid(self) -> int:
        """See `Server.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Server.start`."""
        root = self._directory / "repository"
        root.mkdir(parents=True)
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        # Nor does it read the configuration of whoever runs bench.
        options = ["--config", "/dev/null", "--addr", f"127.0.0.1:{port}"]
        self._process.start([self._rclone, "serve", "restic", *options, str(root)])
        self._process.wait_until(lambda: fetch(self.base + "/config") is not None)

    def path(self, digest: Digest) -> str:
        """See `Server.path`."""
        return f"/data/{digest}"

    def storing(self, body: Body) -> Conversation:
        """See `Server.storing`."""
        start = head("POST", self.base, self.path(body.digest), body.size)
        return asking([start, *body.parts], 200)

    def stop(self) -> None:
        """See `Server.stop`."""
        self._process.stop()
