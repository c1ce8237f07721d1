"""Samples that a job takes from one set to others, in the order in which they lie on its disks."""

from collections.abc import Awaitable, Callable, Sequence

from stor.digest import Digest
from stor.disk.loading import Loaded
from stor.disk.walk import Batch, WalkedSample, walk
from stor.errors import Damaged, NoRoom, StorError, Unavailable
from stor.jobs.kind import NotNow
from stor.jobs.reading import BATCH_BYTES, Reading
from stor.jobs.run import Run
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.move import Moves, Outcome
from stor.mirror.placement import on_disk
from stor.mirror.repair import Absent, Unmendable
from stor.threads import Pool

#: So many move together at most, with one sync for each step.
BATCH_SAMPLES = 256

#: How many of the lowest directories are sorted in one go.
_BATCH_DIRECTORIES = 1024

#: How often a sample is tried again once its copies were mended.
_ATTEMPTS = 2

#: Chooses where samples may go, by their bytes and their number. Raises `NotNow`.
Choose = Callable[[int, int], Mirror]


class Carrier:
    """Carries the samples of a set to others.

    All before the cursor that `run` was told of has gone, but for what the job lists as its
    troubles. A crash leaves each sample on one set whole, or on both: then it is only taken off.
    """

    def __init__(
        self, run: Run, mirrors: Mirrors, moves: Moves, pool: Callable[[str], Pool]
    ) -> None:
        """`pool` gives the thread for a root's long work."""
        self._run = run
        self._job = run.job
        self._mirrors = mirrors
        self._moves = moves
        self._pool = pool

    async def carry(
        self,
        source: Mirror,
        choose: Choose,
        reached: Callable[[str], None],
        cursor: str = "",
        wanted: Callable[[], Awaitable[int]] | None = None,
        least: int = 1,
    ) -> None:
        """Carry all samples from a cursor on; `reached` is told of it.

        `wanted` says how many bytes are still to move, and 0 ends the work. No batch is larger than
        that, and a sample stays if more than half of it would be too much. At `least` this many
        samples go together where each directory holds few.

        Raises `Halted`, `NotNow`, `DiskAway`, `Busy`, `OSError`.
        """
        first, _, rest = cursor.partition(":")
        for number, member in enumerate(source.members):
            if number < int(first or 0):
                continue
            begin = rest if number == int(first or 0) else ""
            pool = self._pool(member.root)
            batches = walk(member.disk, begin, self._run.pace(member), _BATCH_DIRECTORIES)
            waiting: list[WalkedSample] = []
            while True:
                self._require(source)
                await self._run.turn(member)
                batch: Batch | None = await pool.run(next, batches, None)
                if batch is not None:
                    for one in batch.unreadable:
                        self._trouble(f"{member.root}/{one.path}", str(one.error.strerror))
                    waiting += batch.samples
                    if len(waiting) < least:
                        continue
                while waiting:
                    most_bytes = None if wanted is None else await wanted()
                    if most_bytes == 0:
                        return
                    some, waiting = _first(waiting, source.block_bytes, most_bytes)
                    await self._samples(source, member, some, choose)
                if batch is None:
                    break
                reached(f"{number}:{batch.cursor}")

    def _require(self, source: Mirror) -> None:
        """Raises `NotNow` when samples cannot leave the set now."""
        for member in source.members:
            if not member.writable:
                raise NotNow(member.fault or f"{member.root}: is not to be written")
        names = self._mirrors.names
        if names is None or not names.known(source):
            raise NotNow(f"{source}: it is not known yet what all of its disks hold")

    async def _samples(
        self, source: Mirror, member: Member, samples: Sequence[WalkedSample], choose: Choose
    ) -> None:
        """Carry some samples that were seen on a disk."""
        twice = {Digest(one.sha): one.size for one in samples if self._is_elsewhere(source, one)}
        done = self._count(await self._finish(source, twice))
        sizes = {Digest(one.sha): one.size for one in samples if Digest(one.sha) not in done}
        alone = [digest for digest in sizes if self._is_doubtful(source, digest)]
        whole = [one for one in sizes if one not in alone]
        reading = Reading(self._run, member, self._pool(member.root), whole, BATCH_SAMPLES)
        while (batch := await reading.next()) is not None:
            alone += [*batch.large, *batch.bad]
            if batch.samples:
                await self._batch(source, batch.samples, choose)
        for digest in alone:
            await self._alone(source, digest, sizes[digest], choose)

    def _is_elsewhere(self, source: Mirror, sample: WalkedSample) -> bool:
        known = self._mirrors.known(Digest(sample.sha))
        return known is not None and any(one is not source for one in known.holders)

    def _is_doubtful(self, source: Mirror, digest: Digest) -> bool:
        """Whether a copy is known to be bad or missing: what is bad is kept aside first."""
        return any(digest in one.corrupt or digest in one.noted for one in source.members)

    async def _finish(self, source: Mirror, sizes: dict[Digest, int]) -> Outcome:
        try:
            return await self._moves.finish(source, sizes)
        except Unavailable as error:
            raise NotNow(str(error)) from error

    async def _batch(self, source: Mirror, held: Sequence[Loaded], choose: Choose) -> None:
        """Move samples that are in memory."""
        sizes = [on_disk(len(one.content), source.block_bytes) for one in held]
        target = choose(sum(sizes), len(held))
        await self._yield_to_clients(target)
        try:
            outcome = await self._moves.move(source, target, held)
        except (NoRoom, Unavailable) as error:
            raise NotNow(str(error)) from error
        done = self._count(outcome)
        for digest, reason in outcome.refused.items():
            raise NotNow(f"{digest}: {reason}")
        for one in held:
            if one.digest not in done:
                raise NotNow(f"{one.digest}: it is not known on {target}")

    async def _alone(self, source: Mirror, digest: Digest, length: int, choose: Choose) -> None:
        """Move one that is large, or has a copy that is not good, which is seen to first."""
        if length <= BATCH_BYTES and not await self._mend(source, digest):
            return
        refused: StorError | None = None
        for _ in range(_ATTEMPTS):
            target = choose(on_disk(length, source.block_bytes), 1)
            await self._yield_to_clients(target)
            try:
                outcome = await self._moves.move_alone(source, target, digest, self._turn(source))
            except (Damaged, NoRoom, Unavailable) as error:
                refused = error
            else:
                if digest in self._count(outcome):
                    return
                refused = outcome.refused.get(digest)
            if isinstance(refused, NoRoom):
                break
            if not await self._mend(source, digest):
                return
        raise NotNow(f"{digest}: {refused}")

    async def _mend(self, source: Mirror, digest: Digest) -> bool:
        """Have a sample made whole where it is; `False`: there is nothing more to be done."""
        try:
            await self._mirrors.repairs.make_whole(digest, source)
        except Absent:
            return False  # somebody has removed it
        except Unmendable as error:
            self._trouble(str(digest), str(error))
            return False
        except StorError as error:
            raise NotNow(f"{digest}: {error}") from error
        return True

    def _turn(self, source: Mirror) -> Callable[[int], Awaitable[None]]:
        async def turn(length: int) -> None:
            await self._run.turn(source.members[0])
            self._run.did(0, length)

        return turn

    async def _yield_to_clients(self, target: Mirror) -> None:
        for member in target.members:
            await self._run.turn(member)

    def _count(self, outcome: Outcome) -> set[Digest]:
        """Count what has moved; all that needs nothing more."""
        self._run.did(len(outcome.moved), 0)
        for digest, reason in outcome.kept.items():
            self._trouble(str(digest), reason)
        return {*outcome.moved, *outcome.kept}

    def _trouble(self, about: str, reason: str) -> None:
        self._job.not_mended += 1
        self._job.trouble(about, reason)


def _first(
    samples: list[WalkedSample], block_bytes: int, most_bytes: int | None
) -> tuple[list[WalkedSample], list[WalkedSample]]:
    """What of some samples goes next, and those that come later."""
    if most_bytes is None:
        return samples[:BATCH_SAMPLES], samples[BATCH_SAMPLES:]
    first: list[WalkedSample] = []
    taken = 0
    for number, one in enumerate(samples):
        size = on_disk(one.size, block_bytes)
        if first and (taken + size > most_bytes or len(first) == BATCH_SAMPLES):
            return first, samples[number:]
        if size < 2 * most_bytes:
            first.append(one)
            taken += size
    return first, []
