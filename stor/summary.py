"""The first line of a log that an operator looks for: what runs here, and with what."""

from collections.abc import Sequence

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from stor import __version__
from stor.quantities import size
from stor.status import Status


def summary(status: Status, addresses: Sequence[object], workers: int) -> str:
    """One line: version, addresses, sets, disks, what is free, and who answers."""
    disks = [disk for one in status.sets for disk in one.disks]
    parts = []
    if disks:
        away = sum(disk.state == "offline" for disk in disks)
        # Of a disk that was not seen yet nothing is known.
        seen = [[disk for disk in one.disks if disk.total_bytes] for one in status.sets]
        total = sum(min(disk.total_bytes for disk in one) for one in seen if one)
        free = sum(min(disk.free_bytes for disk in one) for one in seen if one)
        parts += [
            f"{_several(len(status.sets), 'set')} of {_several(len(disks), 'disk')}",
            *([f"{away} not available"] if away else []),
            f"{size(free)} free of {size(total)}",
        ]
    if status.s3 is not None:
        parts.append(f"S3 bucket {status.s3.bucket}")
    parts.append(_several(workers, "process", "es"))
    where = ", ".join(map(_address, addresses)) or "no address"
    return f"Stor {__version__} serves at {where}: {', '.join(parts)}"


def _several(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def _address(address: object) -> str:
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, UNIXAddress):
        return f"unix:{(address.name or b'').decode(errors='backslashreplace')}"
    return str(address)
