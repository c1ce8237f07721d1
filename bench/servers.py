"""The servers: Stor, and those that it is compared with."""

import base64
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bench.clients import ANSWER_SECONDS, Answer, Requests, fetch, one_request, request_head
from bench.machine import TWISTD, Programs
from bench.process import Cores, Failed, Process
from bench.samples import Body
from stor.digest import Digest

_CREDENTIALS = "writer:bench"
AUTHORIZATION = f"Basic {base64.b64encode(_CREDENTIALS.encode()).decode()}"

# Without a master one process is the worker: nothing else to charge. Its workers stay the user that
# bench is, so that they may read what bench may read.
_NGINX_CONFIG = """
{user}
daemon off;
master_process {master};
worker_processes {workers};
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log {access_log};
    log_not_found off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""

_REGISTRY_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{cache: {{blobdescriptor: inmemory}}, filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Server(Protocol):
    """A process, with those that it starts, that answers on loopback."""

    @property
    def name(self) -> str:
        """Its name in the table."""

    @property
    def base(self) -> str:
        """`http://HOST:PORT`, once it was started."""

    @property
    def pid(self) -> int:
        """The process to charge, with all its descendants."""

    def start(self) -> None:
        """Return when it answers. Raises `Failed`."""

    def path(self, digest: Digest) -> str:
        """The path below `base` that fetches a sample."""

    def storing(self, body: Body) -> Requests:
        """The requests that store a new sample. Raises `Failed` when they are refused."""

    def stop(self) -> None:
        """End, leaving no process. Does nothing when it was not started."""


class _Program:
    """What the servers share: a process in a directory, and an address."""

    def __init__(self, name: str, directory: Path, cores: Cores) -> None:
        self.name = name
        self.base = ""
        self._directory = directory
        self._process = Process(name, directory, cores.server)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.stop()

    def _new_port(self) -> int:
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        return port

    def _run(self, command: Sequence[str], path: str, *statuses: int, pipes: bool = False) -> None:
        """Run it until it answers a GET of `path`, with one of `statuses` if there are any."""

        def answers() -> bool:
            answer = fetch(self.base + path)
            return answer is not None and (not statuses or answer[0] in statuses)

        self._process.start(command, pipes=pipes)
        self._process.wait_until(answers)


class StorServer(_Program):
    """One Stor with a process per core; its disks are directories below its own."""

    def __init__(
        self,
        directory: Path,
        cores: Cores,
        name: str = "Stor",
        sets: int = 1,
        copies: int = 2,
        **settings: Any,
    ) -> None:
        """`settings` are further keys of its configuration."""
        super().__init__(name, directory, cores)
        self.sets = [
            [directory / f"set{number}" / f"disk{copy}" for copy in range(1, copies + 1)]
            for number in range(1, sets + 1)
        ]
        self._settings = {"workers": len(cores.server), **settings}

    def start(self) -> None:
        self._run([TWISTD, *self.configured()], "/status", 200)

    def configured(self) -> list[str]:
        """Create the disks and the configuration; the arguments of twistd that run it."""
        for disks in self.sets:
            for disk in disks:
                disk.mkdir(parents=True, exist_ok=True)
        config = {
            "storage_pairs": [[str(disk) for disk in disks] for disks in self.sets],
            "basic_auth": _CREDENTIALS,
            "listen": [f"tcp:{self._new_port()}:interface=127.0.0.1"],
            "require_mount": False,
            # As under systemd, which the figures are meant for.
            "log_format": "journal",
            **self._settings,
        }
        path = self._directory / "config.json"
        path.write_text(json.dumps(config))
        return ["-n", "--pidfile=", "stor", "--config", str(path)]

    def path(self, digest: Digest) -> str:
        return f"/{digest}"

    def storing(self, body: Body) -> Requests:
        start = request_head("POST", self.base, self.path(body.digest), body.size, AUTHORIZATION)
        return one_request([start, *body.parts], 201)


class SumlessServer(StorServer):
    """A Stor that makes no block sums."""

    def start(self) -> None:
        command = [sys.executable, "-m", "bench.without_sums", *self.configured()]
        self._run(command, "/status", 200)


class StorClient:
    """One connection to a Stor that stays open; each request is sent in one go."""

    def __init__(self, base: str) -> None:
        self._base = base
        host, _, port = base.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), ANSWER_SECONDS)

    def get(self, digest: Digest, status: int = 200) -> None:
        """Fetch a sample. Raises `Failed` on another status."""
        self._ask(request_head("GET", self._base, f"/{digest}"), status)

    def head(self, digest: Digest, status: int = 200) -> None:
        """Ask whether a sample is stored. Raises `Failed` on another status."""
        self._ask(request_head("HEAD", self._base, f"/{digest}"), status)

    def post(self, body: Body, status: int = 201) -> None:
        """Store a sample. Raises `Failed` on another status."""
        head = request_head("POST", self._base, f"/{body.digest}", body.size, AUTHORIZATION)
        self._ask(b"".join([head, *body.parts]), status)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _ask(self, request: bytes, status: int) -> None:
        self._socket.sendall(request)
        answer = b""
        while not answer.partition(b"\r\n\r\n")[1]:
            answer += self._receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        if Answer(head).status != status:
            raise Failed(f"{request[:100]!r} was answered {answer[:200]!r}")
        left = 0 if request.startswith(b"HEAD") else Answer(head).length - len(body)
        while left > 0:
            left -= len(self._receive())

    def _receive(self) -> bytes:
        data = self._socket.recv(2**16)
        if not data:
            raise Failed("the server closed the connection in the middle of an answer")
        return data


class NginxServer(_Program):
    """One nginx with a worker per core, serving one of Stor's disks, configured as Debian does."""

    def __init__(
        self, directory: Path, root: Path, programs: Programs, cores: Cores, *, logs: bool = False
    ) -> None:
        """`logs`: it writes a line for each request to a file, as Stor always does."""
        super().__init__("nginx", directory, cores)
        self._root = root
        self._access_log = "access.log" if logs else "off"
        self._nginx = programs.nginx
        self._workers = len(cores.server)

    def start(self) -> None:
        self._directory.mkdir(parents=True)
        config = self._directory / "nginx.conf"
        config.write_text(
            _NGINX_CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                master="off" if self._workers == 1 else "on",
                workers=self._workers,
                access_log=self._access_log,
                port=self._new_port(),
                root=self._root,
            )
        )
        self._run([self._nginx, "-p", str(self._directory), "-e", "stderr", "-c", str(config)], "/")

    def path(self, digest: Digest) -> str:
        return f"/{digest.disk_path}"

    def storing(self, body: Body) -> Requests:
        """It stores nothing: what it serves has to be on Stor's disk."""
        raise Failed(f"{self.name} should serve {body.digest}, which Stor has not stored")


class BareServer(_Program):
    """`bench.bare_loop` with a directory of Stor's: the least that an answer takes on Twisted."""

    def __init__(self, directory: Path, root: Path, cores: Cores, *, repeats: bool) -> None:
        """`repeats`: after the first answer of a connection it reads nothing."""
        super().__init__("bare Twisted, no files" if repeats else "bare Twisted", directory, cores)
        self._arguments = [str(root), "repeats" if repeats else "reads"]

    def start(self) -> None:
        self._directory.mkdir(parents=True)
        port = str(self._new_port())
        command = [sys.executable, "-m", "bench.bare_loop", "serve", port, *self._arguments]
        self._run(command, f"/{'0' * 64}", 404)

    def path(self, digest: Digest) -> str:
        return f"/{digest}"

    def storing(self, body: Body) -> Requests:
        """It stores nothing, as nginx."""
        raise Failed(f"{self.name} should serve {body.digest}, which Stor has not stored")


class RegistryServer(_Program):
    """One docker-registry with a directory. One copy, verified when it is stored; not synced."""

    def __init__(self, directory: Path, programs: Programs, cores: Cores) -> None:
        super().__init__("docker-registry", directory, cores)
        self._registry = programs.docker_registry

    def start(self) -> None:
        root = self._directory / "registry"
        root.mkdir(parents=True)
        config = self._directory / "config.yml"
        config.write_text(_REGISTRY_CONFIG.format(root=root, port=self._new_port()))
        self._run([self._registry, "serve", str(config)], "/v2/")

    def path(self, digest: Digest) -> str:
        return f"/v2/samples/blobs/sha256:{digest}"

    def storing(self, body: Body) -> Requests:
        """Two requests, as its protocol has no other way: one begins an upload, one ends it."""
        begun = yield [request_head("POST", self.base, "/v2/samples/blobs/uploads/", 0)]
        if begun.status != 202:
            raise Failed(f"{self.name} begins no upload: {begun.head[:200]!r}")
        place = urlsplit(begun.header("Location"))
        path = f"{place.path}?{place.query}&digest=sha256:{body.digest}"
        ended = yield [request_head("PUT", self.base, path, body.size), *body.parts]
        if ended.status != 201:
            raise Failed(f"{self.name} does not store: {ended.head[:200]!r}")


class RcloneServer(_Program):
    """One `rclone serve restic` with a directory. One copy, neither verified nor synced."""

    def __init__(self, directory: Path, programs: Programs, cores: Cores) -> None:
        super().__init__("rclone", directory, cores)
        self._rclone = programs.rclone

    def start(self) -> None:
        root = self._directory / "repository"
        root.mkdir(parents=True)
        # The configuration of the user who runs bench is not read.
        options = ["--config", "/dev/null", "--addr", f"127.0.0.1:{self._new_port()}"]
        self._run([self._rclone, "serve", "restic", *options, str(root)], "/config")

    def path(self, digest: Digest) -> str:
        return f"/data/{digest}"

    def storing(self, body: Body) -> Requests:
        start = request_head("POST", self.base, self.path(body.digest), body.size)
        return one_request([start, *body.parts], 200)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
