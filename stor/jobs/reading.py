"""Samples that a job reads on one disk, a batch at a time, to put them elsewhere."""

from collections.abc import Iterable
from functools import partial

import attrs

from stor.digest import Digest
from stor.disk.loading import Loaded, Loading
from stor.jobs.run import Run
from stor.mirror.member import Member
from stor.threads import Pool

#: So much waits to be written on any disk at most; what is larger is not read whole.
BATCH_BYTES = 8 * 1024 * 1024


@attrs.frozen
class Batch:
    """Samples in memory.

    `large` are larger than a batch, and were not read; `bad` have no copy there that is right and
    can be read.
    """

    samples: tuple[Loaded, ...]
    large: tuple[Digest, ...]
    bad: tuple[Digest, ...]


class Reading:
    """Reads samples on a disk in the order given."""

    def __init__(
        self, run: Run, member: Member, pool: Pool, digests: Iterable[Digest], batch_samples: int
    ) -> None:
        """`pool` has the thread for the disk's long work."""
        self._run = run
        self._member = member
        self._pool = pool
        self._loading = Loading(member.disk, digests, BATCH_BYTES)
        self._batch_samples = batch_samples
        self._ended = False

    async def next(self) -> Batch | None:
        """The next batch, as full as it may be; `None` after the last.

        Raises `Halted`, `DiskAway`, `Busy`, `OSError`.
        """
        if self._ended:
            return None
        samples: list[Loaded] = []
        large: list[Digest] = []
        bad: list[Digest] = []
        full = False
        while not (full or self._ended):
            await self._run.turn(self._member)
            part_bytes, most_samples = self._run.allowance
            free_bytes = BATCH_BYTES - sum(len(one.content) for one in samples)
            free = self._batch_samples - len(samples)
            room = free if most_samples is None else min(free, most_samples)
            reading = partial(self._loading.go_on, part_bytes, free_bytes, room)
            part = await self._member.work(self._pool, reading)
            self._run.did(0, part.read_bytes)
            samples += part.samples
            large += part.large
            bad += part.bad
            self._ended = part.ended
            # Nothing of it: the next one is larger than what is free.
            nothing = not (part.samples or part.large or part.bad)
            full = nothing or len(samples) >= self._batch_samples
        return Batch(tuple(samples), tuple(large), tuple(bad))
