"""How a Stor is: its storages, what goes on beside requests, and what is wrong."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

#: What is left out of JSON where there is nothing to say.
_OPTIONAL = ("compared", "copies", "errors")


@attrs.frozen
class Unwritable:
    """Why a disk takes no new samples (`stor.mirror.health.Cause`), and since when."""

    cause: str
    reason: str
    since: float


@attrs.frozen
class DiskStatus:
    """A disk as it was last seen; times are in seconds since the epoch.

    `reason` is what is wrong with it. `held`: the operator does not let it be written. `compared`
    is how much of it has been compared with its twins, from 0 to 1, while that goes on.
    """

    root: str
    state: str
    since: float = 0.0
    reason: str | None = None
    total_bytes: int = 0
    free_bytes: int = 0
    free_inodes: int | None = None
    reserve_bytes: int = 0
    errors: int = 0
    complete: bool = True
    held: bool = False
    unwritable: Unwritable | None = None
    compared: float | None = None


@attrs.frozen
class SetStatus:
    """A mirrored set; `samples` is how many are known, all of them if it is `indexed`.

    `reason` is why it takes no new samples, where that is not for its disks.
    """

    disks: Sequence[DiskStatus]
    writable: bool = True
    samples: int | None = None
    indexed: bool = False
    reason: str | None = None

    @property
    def usable_bytes(self) -> int:
        """The room that is left for new samples, beyond the reserve."""
        usable = min(disk.free_bytes - disk.reserve_bytes for disk in self.disks)
        return max(usable, 0) if self.writable else 0


@attrs.frozen
class S3Copies:
    """Samples that are still to be sent to S3, and how many were sent."""

    waiting: int
    oldest_seconds: float
    sent: int


@attrs.frozen
class S3Status:
    """The bucket; `reason` is why it is not available."""

    bucket: str
    available: bool = True
    reason: str | None = None
    copies: S3Copies | None = None


@attrs.frozen
class MemcachedStatus:
    """A server of the location cache; one that does not answer is left alone for a while."""

    server: str
    answers: bool


@attrs.frozen
class RepairStatus:
    """How many samples wait to be made whole, and how many were."""

    waiting: int = 0
    done: int = 0


@attrs.frozen
class Trouble:
    """One thing that a job could not put right: a sample, or a path, and why."""

    about: str
    reason: str


@attrs.frozen
class JobStatus:
    """Long work as its users see it; `errors` are what it met, as far as that is told.

    `done` is the share of the whole, from 0 to 1. `continuous`: nobody asked for it. Times are in
    seconds since the epoch.
    """

    id: int
    kind: str
    about: str
    state: str
    reason: str | None
    continuous: bool
    done: float
    samples_done: int
    samples_total: int | None
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: int
    eta_seconds: int | None
    bad: int
    missing: int
    mended: int
    not_mended: int
    #: Samples that were taken off a set, as another one has them, too.
    duplicates: int
    bytes_per_second_limit: float | None
    samples_per_second_limit: float | None
    began: float
    ended: float | None
    #: How long it has not come on though it is to: it hangs, or waits for a disk.
    stalled_seconds: int = 0
    errors: Sequence[Trouble] | None = None


@attrs.frozen
class Work:
    """Long work, as far as everybody may know of it, and how many samples have too few copies."""

    jobs: Sequence[JobStatus] = ()
    at_risk: int = 0
    warnings: Sequence[str] = ()
    #: How much of each disk that is not complete has been compared, from 0 to 1; and those of
    #: which that goes on now.
    compared: Mapping[str, float] = attrs.field(factory=dict)
    rebuilding: Collection[str] = ()


@attrs.frozen
class PartialUploads:
    """Uploads that were cut off and are kept to be resumed: how many, and what they take."""

    count: int = 0
    bytes: int = 0


@attrs.frozen
class Status:
    """How the storages are. `problems` is empty when all of them are available."""

    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()
    sets: Sequence[SetStatus] = ()
    repairs: RepairStatus = attrs.field(factory=RepairStatus)
    s3: S3Status | None = None
    #: The servers of the location cache.
    memcached: Sequence[MemcachedStatus] = ()
    work: Work = attrs.field(factory=Work)
    partial_uploads: PartialUploads = attrs.field(factory=PartialUploads)


def as_json(value: Any) -> dict[str, Any]:
    """A status, or a part of one, as JSON has it."""
    return attrs.asdict(
        value, filter=lambda field, found: found is not None or field.name not in _OPTIONAL
    )
