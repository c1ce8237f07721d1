"""A real memcached."""

import getpass
import socket
from pathlib import Path

from tests.engines.process import Group, Process
from tests.integration.process import free_port


class Memcached(Group):
    """A memcached on a loopback port: a `Group` of one, so `with memcached.paused(): ...`."""

    def __init__(self, directory, *options):
        directory = Path(directory)
        directory.mkdir(parents=True)
        self.address = ("127.0.0.1", free_port())
        host, port = self.address
        # As the user that runs the tests: root must say so.
        command = ["memcached", "-l", host, "-p", port, "-u", getpass.getuser(), *options]
        super().__init__(Process(directory, "memcached", command, self._listens))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *reason):
        self.kill()  # at once: it has nothing to save

    def _listens(self):
        with socket.socket() as sock:
            return sock.connect_ex(self.address) == 0
