"""Samples that are still to be sent elsewhere, noted on the disks that hold them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import OUTBOX_DIRECTORY
from stor.disk.notes import forget, note, noted
from stor.errors import Unavailable
from stor.mirror.member import ANSWER_SECONDS, Member
from stor.mirror.mirror import Mirror
from stor.threads import settle, within


class Outbox:
    """What S3 has yet to get: noted before a sample is stored, forgotten when it has been sent.

    So no crash loses one. A note without a sample, which a crash can leave, means nothing.
    """

    log = Logger()

    def __init__(
        self,
        mirrors: Callable[[], Sequence[Mirror]],
        clock: IReactorTime,
        announce: Callable[[Digest], None],
        waits: Callable[[Digest], bool] = lambda digest: True,
    ) -> None:
        """`announce` is told of each sample to send, once it is stored; `waits`: it is not yet."""
        self.announce = announce
        self.waits = waits
        self._mirrors = mirrors
        self._clock = clock
        #: Samples that are being stored: a note without a sample means something there.
        self._arriving: set[Digest] = set()

    @contextmanager
    def arriving(self, digest: Digest) -> Iterator[None]:
        """While the sample is being stored its note stays, whoever finds that there is none yet."""
        self._arriving.add(digest)
        try:
            yield
        finally:
            self._arriving.discard(digest)

    async def add(self, digest: Digest, mirror: Mirror) -> None:
        """Note a sample on every disk of `mirror`. Raises `Unavailable` when none took the note."""
        writing = [
            within(self._clock, ANSWER_SECONDS, m.write(note, m.disk, OUTBOX_DIRECTORY, digest))
            for m in mirror.members
        ]
        outcomes = await settle(writing)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if len(failures) == len(outcomes):
            raise Unavailable(f"no disk took the note for S3: {failures[0].value}")

    async def forget(self, digest: Digest) -> None:
        """It has been sent. Never raises; a note that stays is looked at after the next start."""
        if digest in self._arriving:
            return
        await settle(
            [
                member.write(forget, member.disk, OUTBOX_DIRECTORY, digest)
                for member in self._members
                if member.writable
            ]
        )

    async def recall(self) -> None:
        """Announce what earlier processes were to send. Never raises."""
        asked = [
            within(self._clock, ANSWER_SECONDS, m.read(noted, m.disk, OUTBOX_DIRECTORY))
            for m in self._members
            if m.health.readable
        ]
        for found in await settle(asked):
            for digest in [] if isinstance(found, Failure) else found:
                self.announce(digest)

    @property
    def _members(self) -> list[Member]:
        return [member for mirror in self._mirrors() for member in mirror.members]
