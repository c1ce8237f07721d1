"""A Unix socket whose last listener ended without removing it."""

import os
import socket

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory

from stor.sockets import CannotListen, Ports

#: What Twisted's lock would have if the process id of its owner were another process's by now.
LIVING = str(os.getpid())
GONE = "4194305"  # beyond the largest process id of Linux


def bound(path, *, listening):
    """A socket at `path`; closing it leaves its file, as the end of a process does."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    if listening:
        sock.listen(1)
    return sock


def leave(path, *, there, lock):
    if there:
        bound(path, listening=False).close()
    if lock is not None:
        os.symlink(lock, f"{path}.lock")


@pytest.mark.parametrize("options", ["", ":lockfile=0"])
@pytest.mark.parametrize("lock", [None, LIVING, GONE], ids=["no lock", "living", "gone"])
@pytest.mark.parametrize("there", [True, False], ids=["socket", "no socket"])
@pytest_twisted.ensureDeferred
async def test_what_a_process_left_keeps_no_other_from_starting(tmp_path, options, lock, there):
    path = tmp_path / "socket"
    leave(path, there=there, lock=lock)
    ports = Ports(Factory(), reactor)
    ports.listen([f"unix:{path}{options}"])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    await ports.stop()
    assert not path.exists()


@pytest.mark.parametrize("full", [False, True], ids=["free", "full"])
@pytest.mark.parametrize("lock", [None, LIVING], ids=["no lock", "living"])
def test_a_socket_with_a_listener_is_left_alone(tmp_path, lock, full):
    path = tmp_path / "socket"
    with bound(path, listening=True) as owner, socket.socket(socket.AF_UNIX) as waiting:
        leave(path, there=False, lock=lock)
        if full:
            owner.listen(0)
            waiting.connect(str(path))
        inode = path.stat().st_ino
        with pytest.raises(CannotListen, match=f"listen: unix:{path}: "):
            Ports(Factory(), reactor).listen([f"unix:{path}"])
        assert path.stat().st_ino == inode


@pytest.mark.parametrize("lock", [None, LIVING], ids=["no lock", "living"])
def test_a_file_that_is_no_socket_is_left_alone(tmp_path, lock):
    path = tmp_path / "socket"
    path.write_text("precious")
    leave(path, there=False, lock=lock)
    with pytest.raises(CannotListen):
        Ports(Factory(), reactor).listen([f"unix:{path}"])
    assert path.read_text() == "precious"
