"""What the service manager is told, and how little that may cost."""

import os
import socket

import pytest

from stor.service import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, and its address as $NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@stor-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.settimeout(5)
        yield sock, name


def test_fields_arrive_as_lines(manager):
    sock, name = manager
    Notifier.of({"NOTIFY_SOCKET": name}).send(RELOADING=1, MONOTONIC_USEC=5)
    assert sock.recv(1000) == b"RELOADING=1\nMONOTONIC_USEC=5"


@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all"])
def test_without_a_listener_nothing_happens(address):
    Notifier(address).send(READY=1)


def test_a_manager_that_does_not_listen_holds_up_nobody(manager):
    """Its queue is full after a few hundred."""
    _, name = manager
    notifier = Notifier(name)
    for _ in range(2000):
        notifier.send(WATCHDOG=1)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_the_one_of_this_process(environment, seconds):
    assert Notifier.of(environment).watchdog_seconds == seconds
