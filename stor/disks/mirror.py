"""The disks that hold the same samples."""

from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disks.copy import Copy
from stor.disks.disk import DiskAway
from stor.disks.member import ANSWER_SECONDS, Member
from stor.disks.placement import Candidate
from stor.errors import Damaged
from stor.worker import settle, within


class Mirror:
    """One set of disks; every acknowledged sample in it is on all of them."""

    def __init__(self, members: Sequence[Member], own_file_systems: bool = True) -> None:
        """`own_file_systems`: two copies on one file system are worth a warning."""
        self.members = tuple(members)
        self.own_file_systems = own_file_systems
        #: Bytes and samples that uploads in flight will take and no disk shows yet.
        self.reserved_bytes = 0
        self.reserved_samples = 0

    def __str__(self) -> str:
        return ", ".join(member.root for member in self.members)

    @property
    def configured_writable(self) -> bool:
        """Whether the configuration lets new samples be written here."""
        return all(member.health.writable for member in self.members)

    @property
    def writable(self) -> bool:
        """Whether every disk can take a new sample."""
        return all(member.writable for member in self.members)

    @property
    def warnings(self) -> list[str]:
        """What does not stop the mirror and should be mended; a line each."""
        devices = [m.health.device for m in self.members if m.health.device is not None]
        if self.own_file_systems and len(set(devices)) < len(devices):
            return [f"{self}: two copies of a set are on one file system; one dead disk takes both"]
        return []

    def candidate(self) -> Candidate:
        """The room for placement."""
        rooms = [member.health.room for member in self.members]
        return Candidate.of(rooms, self.reserved_bytes, self.reserved_samples)

    async def survey(self, digest: Digest, length: int | None) -> "Survey":
        """Ask every disk for its copy of the sample. Never raises."""
        asked = [member for member in self.members if member.health.readable]
        answers = await settle([self._ask(member, digest, length) for member in asked])
        heard = zip(asked, answers, strict=True)
        # A disk that turned out to be away is none that is available.
        return Survey(self, [(m, a) for m, a in heard if not _is_away(a)])

    def _ask(self, member: Member, digest: Digest, length: int | None) -> Deferred[Copy | None]:
        answer: Deferred[Copy | None]
        if digest in member.condemned:
            answer = member.read(member.disk.look, digest).addCallback(_condemn)
        else:
            answer = member.read(member.disk.check, digest, length)
        return within(member.clock, ANSWER_SECONDS, answer)


def _condemn(copy: Copy | None) -> Copy | None:
    """What is there is known to be bad; nothing may be there by now."""
    if copy is not None:
        raise Damaged(f"{copy.path} is known to be bad")
    return None


def _is_away(answer: object) -> bool:
    return isinstance(answer, Failure) and answer.check(DiskAway) is not None


@attrs.frozen
class Survey:
    """What the disks of a mirror answered when they were asked for a sample."""

    mirror: Mirror
    answers: list[tuple[Member, Copy | Failure | None]]

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
        """The first answer that was none."""
        return next(
            (a for _, a in self.answers if isinstance(a, Failure) and not a.check(Damaged)), None
        )
