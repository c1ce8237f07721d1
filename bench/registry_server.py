"""docker-registry: blobs by their SHA-256."""

from pathlib import Path
from urllib.parse import urlsplit

from bench.body import Body
from bench.cores import Cores
from bench.errors import Failed
from bench.exchange import Conversation, fetch, head
from bench.process import Process
from bench.programs import Programs
from bench.server import free_port
from stor.digest import Digest

_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{cache: {{blobdescriptor: inmemory}}, filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class RegistryServer:
    """One registry with a directory. One copy of a blob, verified when it is stored; not synced."""

    name = "docker-registry"

    def __init__(self, directory: Path, programs: Programs, cores: Cores) -> None:
        self.base = ""
        self._directory = directory
        self._registry = programs.docker_registry
        self._process = Process(self.name, directory, cores.server)

    @property
    def pid(self) -> int:
        """See `Server.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Server.start`."""
        root = self._directory / "registry"
        root.mkdir(parents=True)
        port = free_port()
        config = self._directory / "config.yml"
        config.write_text(_CONFIG.format(root=root, port=port))
        self.base = f"http://127.0.0.1:{port}"
        self._process.start([self._registry, "serve", str(config)])
        self._process.wait_until(lambda: fetch(self.base + "/v2/") is not None)

    def path(self, digest: Digest) -> str:
        """See `Server.path`."""
        return f"/v2/samples/blobs/sha256:{digest}"

    def storing(self, body: Body) -> Conversation:
        """Two requests, as its protocol has no other way: begin an upload, and end it at once."""
        begun = yield [head("POST", self.base, "/v2/samples/blobs/uploads/", 0)]
        if begun.status != 202:
            raise Failed(f"{self.name} begins no upload: {begun.head[:200]!r}")
        place = urlsplit(begun.header("Location"))
        path = f"{place.path}?{place.query}&digest=sha256:{body.digest}"
        ended = yield [head("PUT", self.base, path, body.size), *body.parts]
        if ended.status != 201:
            raise Failed(f"{self.name} does not store: {ended.head[:200]!r}")

    def stop(self) -> None:
        """See `Server.stop`."""
        self._process.stop()
