"""nginx, giving the files of one of Stor's disks."""

import os
from pathlib import Path

from bench.body import Body
from bench.cores import Cores
from bench.errors import Failed
from bench.exchange import Conversation, fetch
from bench.process import Process
from bench.programs import Programs
from bench.server import free_port
from stor.digest import Digest

# Without a master one process is the worker: nothing else to charge. Its workers stay the user that
# bench is, so that they may read what bench may read.
_CONFIG = """
{user}
daemon off;
master_process {master};
worker_processes {workers};
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
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


class NginxServer:
    """One nginx, a worker a core, set up as Debian ships it: sendfile, no cache of open files."""

    name = "nginx"

    def __init__(self, directory: Path, root: Path, programs: Programs, cores: Cores) -> None:
        self.base = ""
        self._directory = directory
        self._root = root
        self._nginx = programs.nginx
        self._workers = len(cores.server)
        self._process = Process(self.name, directory, cores.server)

    @property
    def pid(self) -> int:
        """See `Server.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Server.start`."""
        self._directory.mkdir(parents=True)
        port = free_port()
        config = self._directory / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                master="off" if self._workers == 1 else "on",
                workers=self._workers,
                port=port,
                root=self._root,
            )
        )
        self.base = f"http://127.0.0.1:{port}"
        self._process.start(
            [self._nginx, "-p", str(self._directory), "-e", "stderr", "-c", str(config)]
        )
        self._process.wait_until(lambda: fetch(self.base + "/") is not None)

    def path(self, digest: Digest) -> str:
        """See `Server.path`."""
        return f"/{digest.disk_path}"

    def storing(self, body: Body) -> Conversation:
        """It stores nothing: what it gives has to be on Stor's disk."""
        raise Failed(f"{self.name} is to give {body.digest}, and Stor has not stored it")

    def stop(self) -> None:
        """See `Server.stop`."""
        self._process.stop()
