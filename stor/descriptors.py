"""How many files and connections the process may have open, and how many it may need."""

import resource

from stor.config import Config

#: The threads of a disk, each with a directory and a file, and the disk's root.
_DISK_DESCRIPTORS = 48

#: What a job has open on each disk that it fills (`stor.jobs.refill.BATCH_SAMPLES`).
_BATCH_DESCRIPTORS = 1000

#: The log, the reactor, listening sockets, S3, memcached, and three for each splice pipe.
_OTHER_DESCRIPTORS = 300


def raise_limit() -> int:
    """Raise the limit as far as the process may (getrlimit(2)), and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**63 - 1


def needed(chosen: Config) -> int:
    """What `max_connections` and the disks come to: an upload has a file on each disk of a set.

    In each set all disks but one may be filled at the same time.
    """
    copies = max(map(len, chosen.sets), default=1)
    disks = sum(map(len, chosen.sets))
    return (
        chosen.max_connections
        + chosen.max_uploads * copies
        + disks * _DISK_DESCRIPTORS
        + (disks - len(chosen.sets)) * _BATCH_DESCRIPTORS
        + _OTHER_DESCRIPTORS
    )


def shortage(limit: int, chosen: Config) -> str | None:
    """What to say when the limit is too low for what is configured."""
    if limit >= needed(chosen):
        return None
    return (
        f"{limit} files and connections may be open at once (ulimit -Hn, LimitNOFILE=), and "
        f"{needed(chosen)} may be needed: raise that, or lower max_connections or max_uploads"
    )
