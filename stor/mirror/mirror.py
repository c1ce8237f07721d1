"""The disks that hold the same samples."""

import errno
from collections.abc import Mapping, Sequence

import attrs
from twisted.python.failure import Failure

from stor.disk.copy import Copy
from stor.disk.disk import DiskAway
from stor.errors import Damaged
from stor.mirror.health import Cause
from stor.mirror.member import Member
from stor.mirror.placement import Candidate


class Reserved:
    """What uploads in flight will take of a mirror and no disk shows yet."""

    def __init__(self) -> None:
        self._bytes = 0
        self._samples = 0

    def total(self) -> tuple[int, int]:
        """Bytes and samples."""
        return self._bytes, self._samples

    def add(self, size_bytes: int, samples: int) -> None:
        """Add bytes and samples, or take them away when they are negative."""
        self._bytes += size_bytes
        self._samples += samples


@attrs.frozen(eq=False)
class Place:
    """A disk where a sample may be."""

    mirror: "Mirror"
    member: Member


class Mirror:
    """One set of disks; every acknowledged sample in it is on all of them."""

    def __init__(
        self,
        members: Sequence[Member],
        own_file_systems: bool = True,
        reserved: Reserved | None = None,
    ) -> None:
        """`own_file_systems`: two copies on one file system are worth a warning."""
        self.members = tuple(members)
        self.places = tuple(Place(self, member) for member in self.members)
        self._own_file_systems = own_file_systems
        self.reserved = reserved or Reserved()
        #: How many uploads are being written here.
        self.writes = 0
        #: Why it gets no new samples, if they go to other mirrors.
        self.draining: str | None = None

    def follow(self, *, own_file_systems: bool) -> None:
        """Go on as another configuration says."""
        self._own_file_systems = own_file_systems

    def __str__(self) -> str:
        return ", ".join(member.root for member in self.members)

    @property
    def configured_writable(self) -> bool:
        """Whether the operator lets new samples be written here."""
        return not self.draining and not any(member.health.held for member in self.members)

    @property
    def writable(self) -> bool:
        """Whether every disk can take a new sample."""
        return not self.draining and all(member.writable for member in self.members)

    @property
    def takes_samples(self) -> bool:
        """Whether every disk can take a new sample, and has room for one."""
        return self.writable and all(member.health.unwritable is None for member in self.members)

    @property
    def prompt(self) -> bool:
        """Whether every disk can take a new sample, and none of them seems to hang."""
        return not (self.draining or [m for m in self.members if not m.prompt])

    @property
    def warnings(self) -> list[str]:
        """What does not keep the mirror from being read and should be mended; a line each."""
        full = [
            f"{member.root}: takes no new samples: {unwritable.reason}"
            for member in self.members
            if (unwritable := member.health.unwritable) is not None
            and unwritable.cause is Cause.FULL
        ]
        devices = [m.health.device for m in self.members if m.health.device is not None]
        if self._own_file_systems and len(set(devices)) < len(devices):
            shared = f"{self}: two copies of a set are on one file system; one dead disk takes both"
            return [shared, *full]
        return full

    @property
    def block_bytes(self) -> int:
        """What a file takes at least, on the disk where that is most."""
        return max([member.health.room.block_bytes for member in self.members])

    def candidate(self) -> Candidate:
        """The room for placement."""
        rooms = [member.health.room for member in self.members]
        return Candidate.of(rooms, *self.reserved.total())

    def may_take_later(self, length: int, reserve_bytes: int) -> bool:
        """Whether the mirror, which is away now, may have room for `length` bytes once it is back.

        It has not when a disk of it was too full when it was last seen.
        """
        if self.writable or not self.configured_writable:
            return False
        seen = [m.health.room for m in self.members if m.health.room.number]
        left = [Candidate.of([room], *self.reserved.total()) for room in seen]
        return all(candidate.fits(length, reserve_bytes) for candidate in left)


def _is_away(answer: object) -> bool:
    return isinstance(answer, Failure) and answer.check(DiskAway) is not None


@attrs.frozen
class Survey:
    """What the disks of a mirror answered when they were asked for a sample."""

    mirror: Mirror
    answers: list[tuple[Member, Copy | Failure | None]]

    @classmethod
    def of(cls, mirror: Mirror, heard: Mapping[Member, Copy | Failure | None]) -> "Survey":
        """What those of its disks said that were asked.

        A disk that turned out to be away is none that is available.
        """
        answers = [(m, heard[m]) for m in mirror.members if m in heard]
        return cls(mirror, [(m, answer) for m, answer in answers if not _is_away(answer)])

    @property
    def paths(self) -> list[str]:
        """The good copies, in the mirror's order."""
        return [answer.path for _, answer in self.answers if isinstance(answer, Copy)]

    @property
    def known(self) -> bool:
        """Whether the sample, or something in its place, is on this mirror."""
        return any(
            isinstance(answer, Copy) or (isinstance(answer, Failure) and answer.check(Damaged))
            for _, answer in self.answers
        )

    @property
    def lacking(self) -> list[Member]:
        """The disks that could have a good copy and have none."""
        return [m for m, answer in self.answers if not isinstance(answer, Copy) and m.writable]

    @property
    def unequal(self) -> bool:
        """Whether the copies differ in size, so that not all of them can be good."""
        return len({answer.size for _, answer in self.answers if isinstance(answer, Copy)}) > 1

    @property
    def trouble(self) -> Failure | None:
        """The first answer that was none. A copy that cannot be read may be one that is bad."""
        return next(
            (
                answer
                for _, answer in self.answers
                if isinstance(answer, Failure)
                and not answer.check(Damaged)
                and not (isinstance(answer.value, OSError) and answer.value.errno == errno.EIO)
            ),
            None,
        )
