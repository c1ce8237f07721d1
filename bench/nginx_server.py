"""nginx, giving the files of one of Stor's disks."""

from pathlib import Path

from bench.connection import fetch
from bench.cores import Cores
from bench.process import Process
from bench.programs import Programs
from bench.server import free_port
from stor.digest import Digest

# Without a master the one process is the worker: nothing else to charge, and no change of user,
# so that it may read what bench may read.
_CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
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
    """One nginx of one worker, set up as Debian ships it: sendfile, no cache of open files."""

    name = "nginx"
    authorization = None

    def __init__(self, directory: Path, root: Path, programs: Programs, cores: Cores) -> None:
        self._directory = directory
        self._root = root
        self._nginx = programs.nginx
        self._process = Process(self.name, directory, cores.server)
        self._base = ""

    @property
    def pid(self) -> int:
        """See `Server.pid`."""
        return self._process.pid

    def start(self) -> None:
        """See `Server.start`."""
        self._directory.mkdir(parents=True)
        port = free_port()
        config = self._directory / "nginx.conf"
        config.write_text(_CONFIG.format(port=port, root=self._root))
        self._base = f"http://127.0.0.1:{port}"
        self._process.start(
            [self._nginx, "-p", str(self._directory), "-e", "stderr", "-c", str(config)]
        )
        self._process.wait_until(lambda: fetch(self._base + "/") is not None)

    def url(self, digest: Digest) -> str:
        """See `Server.url`."""
        return f"{self._base}/{digest.disk_path}"

    def stop(self) -> None:
        """See `Server.stop`."""
        self._process.stop()
