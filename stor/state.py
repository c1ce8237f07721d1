"""The state directory: what a Stor keeps outside of its disks, and can make anew from them."""

import os

from stor.disk.disk import replacing, write_all
from stor.disk.syscalls import Syscalls


class StateDirectory:
    """Files that are replaced as a whole, durably. Where that cannot be done, `fault` says why.

    Plain blocking Python. Without a path everything is forgotten when the process ends.
    """

    def __init__(self, path: str | None, files: Syscalls) -> None:
        self.path = path
        self._files = files
        #: What is wrong with it, one line; nothing is lost before the process ends.
        self.fault: str | None = None

    def read(self, name: str) -> bytes | None:
        """What was written last, `None` when nothing was or it cannot be had. Never raises."""
        if self.path is None:
            return None
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._fail("read", error)
            return None

    def write(self, name: str, data: bytes) -> None:
        """Replace a file: after a crash it is the old one or the new one. Never raises."""
        if self.path is None:
            return
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            self._replace(self.path, name, data)
        except OSError as error:
            self._fail("written", error)
        else:
            self.fault = None

    def _replace(self, directory: str, name: str, data: bytes) -> None:
        files = self._files
        directory_fd = files.open_directory(directory)
        try:
            with replacing(files, name, directory_fd) as fd:
                write_all(files, fd, data)
            files.sync(directory_fd)
        finally:
            files.close(directory_fd)

    def _fail(self, done: str, error: OSError) -> None:
        self.fault = (
            f"state_directory: {self.path} cannot be {done} ({error.strerror}): an empty mount "
            "point may be taken for a new disk after the next start; give Stor a directory that "
            "it may write"
        )
