"""Quantities as people say them."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def size(number_bytes: int) -> str:
    """A number of bytes, in powers of 1000 as disks are sold."""
    value = float(number_bytes)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """How long something takes, or has taken, in the largest unit that it has two of."""
    seconds = max(seconds, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
