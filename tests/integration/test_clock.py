"""The wall clock is set forward or back by hours: nothing that takes time hears of it."""

import contextlib
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from stor.mirror.member import PROBE_INTERVAL_SECONDS
from tests.integration.process import parse, poll, receive_all, sha_of, upload_head
from tests.support.rig import request_bytes

#: Where Debian's libfaketime is.
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

CONTENT = os.urandom(300_000)


@pytest.fixture
def wall_clock(tmp_path):
    """What a process reads as the time of day: `wall_clock.write_text("+7200")`."""
    assert LIBRARIES, "libfaketime is missing: apt-get install faketime"
    path = tmp_path / "wall clock"
    path.write_text("+0")
    return path


@pytest.fixture
def service_manager(tmp_path):
    """The socket on which systemd would be told of the service."""
    path = str(tmp_path / "notify")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(path)
        listening.setblocking(False)
        yield listening


def heard(service_manager):
    """What the service has said since it was last asked."""
    said = []
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(service_manager.recv(4096))
    return said


@pytest.mark.parametrize("hours", [2, -2])
def test_a_step_of_the_wall_clock_cuts_nothing_and_stops_nothing(
    start, wall_clock, service_manager, hours, figures
):
    stor = start(
        sets=(2,),
        workers=1,
        variables={
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(wall_clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NOTIFY_SOCKET": service_manager.getsockname(),
            "WATCHDOG_USEC": "1500000",
        },
    )
    sha = sha_of(CONTENT)
    with stor.connect() as upload, stor.connect() as idle:
        upload.sendall(upload_head(sha, len(CONTENT), ("Connection", "close")) + CONTENT[:100_000])
        idle.sendall(request_bytes("GET", "/status"))
        assert idle.recv(4096).endswith(b"OK\n")
        wall_clock.write_text(f"{hours * 3600:+d}")
        poll(lambda: abs(date_of(stor) - time.time() - hours * 3600) < 60, what="another time")
        heard(service_manager)
        time.sleep(1.5)
        assert b"WATCHDOG=1" in heard(service_manager)
        idle.sendall(request_bytes("GET", "/status"))
        assert idle.recv(4096).endswith(b"OK\n")
        upload.sendall(CONTENT[100_000:])
        assert parse(receive_all(upload)).status == 201
    assert stor.get(sha).body == CONTENT
    shutil.rmtree(stor.roots[1])
    poll(
        lambda: stor.request("GET", "status").status == 503,
        PROBE_INTERVAL_SECONDS + 5,
        "a probe after the step",
    )
    stor.roots[1].mkdir()
    figures["steps of the clock, nothing cut and nothing stopped"] += 1


def date_of(stor):
    """The time of day that an answer gives, in seconds since the epoch."""
    date = stor.request("GET", "").headers["date"]
    return time.mktime(time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
