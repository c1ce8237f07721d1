"""The line that a start leaves in the log."""

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from stor import __version__
from stor.status import DiskStatus, S3Status, SetStatus, Status
from stor.summary import summary

TB = 10**12


def disk(state="online", free=TB):
    return DiskStatus("/mnt/data", state, total_bytes=4 * TB, free_bytes=free)


def status(*sets, s3=None):
    return Status(sets=[SetStatus(disks) for disks in sets], s3=s3)


TWO = [IPv4Address("TCP", "127.0.0.1", 8080), IPv6Address("TCP", "::", 8443)]


@pytest.mark.parametrize(
    ("found", "addresses", "workers", "expected"),
    [
        (
            status([disk(), disk(free=TB // 2)], [disk(), disk()]),
            TWO,
            1,
            "127.0.0.1:8080, [::]:8443: 2 sets of 4 disks, 1.5 TB free of 8.0 TB, 1 process",
        ),
        (
            status([disk(), disk("offline")]),
            [UNIXAddress(b"/run/stor.sock")],
            4,
            "unix:/run/stor.sock: 1 set of 2 disks, 1 not available, 1.0 TB free of 4.0 TB, "
            "4 processes",
        ),
        (
            status([disk(), DiskStatus("/mnt/data", "offline")]),
            TWO[:1],
            1,
            "127.0.0.1:8080: 1 set of 2 disks, 1 not available, 1.0 TB free of 4.0 TB, 1 process",
        ),
        (status(s3=S3Status("samples")), [], 1, "no address: S3 bucket samples, 1 process"),
    ],
)
def test_it_says_what_runs_here(found, addresses, workers, expected):
    assert summary(found, addresses, workers) == f"Stor {__version__} serves at {expected}"
