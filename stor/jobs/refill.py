"""Samples being put on disks that lack them: many at once, with one sync a disk."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.journal import Kind
from stor.disk.loading import Loaded, Streaming
from stor.disk.staged_batch import StagedBatch
from stor.disk.verification import PART_BYTES
from stor.index.numbers import Registration
from stor.jobs.reading import BATCH_BYTES
from stor.jobs.run import Run
from stor.mirror.group_commit import KNOWN_TYPES, reports_errors
from stor.mirror.learning import LearningNames
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.repair import Repairs
from stor.threads import Busy, Pool, settle

#: So many samples are on their way to a disk at most before they are synced.
BATCH_SAMPLES = 1000


class Refill:
    """Puts samples on disks of their mirror that lack them, as a job.

    Nobody is told of a copy before it and its name are on stable storage. What is interrupted
    leaves nothing behind.
    """

    def __init__(
        self,
        run: Run,
        mirror: Mirror,
        repairs: Repairs,
        learning: LearningNames | None,
        pool: Callable[[str], Pool],
    ) -> None:
        """`pool` gives the threads for a root's long work; `learning` is the index, if any."""
        self._run = run
        self._mirror = mirror
        self._repairs = repairs
        self._learning = learning
        self._pool = pool

    async def put(
        self, samples: Sequence[Loaded], lacking: Mapping[Digest, set[Member]]
    ) -> dict[Digest, set[Member]]:
        """Put samples on the disks that lack them: where each of them is now, durably.

        All of them fit into a batch. Raises `Halted`, `DiskAway`, `Busy`, `OSError`: then some
        disks may have got theirs.
        """
        targets = [m for m in self._mirror.members if any(m in lacking[s.digest] for s in samples)]
        batches: dict[Member, StagedBatch] = {}
        try:
            for target in targets:
                batches[target] = batch = await self._begin(target)
                batch.add(sample for sample in samples if target in lacking[sample.digest])
                staged = False
                while not staged:
                    await self._run.turn(target)
                    staged = await target.work(self._pool(target.root), batch.stage)
            return await self._commit(batches)
        finally:
            await self._close(batches)

    async def stream(self, giver: Member, digest: Digest, lacking: set[Member]) -> set[Member]:
        """Put one large sample on the disks that lack it: where it is now, durably.

        Raises like `put`, and `Damaged` when the giver's copy is not right.
        """
        batches: dict[Member, StagedBatch] = {}
        source = await giver.work(self._pool(giver.root), Streaming, giver.disk, digest)
        try:
            for target in lacking:
                batches[target] = batch = await self._begin(target)
                await target.work(self._pool(target.root), batch.begin_large, source.size)
            unsynced = 0
            while not source.ended:
                await self._run.turn(giver)
                part_bytes = min(PART_BYTES, self._run.allowance[0])
                data = await giver.work(self._pool(giver.root), source.go_on, part_bytes)
                self._run.did(int(source.ended), len(data))
                unsynced += len(data)
                sync = unsynced + PART_BYTES > BATCH_BYTES
                for target, batch in batches.items():
                    await self._run.turn(target)
                    append = partial(batch.append, data, sync=sync)
                    await target.work(self._pool(target.root), append)
                unsynced = 0 if sync else unsynced
            for target, batch in batches.items():
                sealing = partial(batch.end_large, digest, source.modified_ns)
                await target.work(self._pool(target.root), sealing)
            return (await self._commit(batches)).get(digest, set())
        finally:
            giver.give_back(source.close).addErrback(lambda _: None)
            await self._close(batches)

    async def _begin(self, target: Member) -> StagedBatch:
        def shares(root_fd: int) -> bool:
            # Also while others have much to write there: nobody waits for a job.
            return reports_errors() and target.disk.files.type_of(root_fd) in KNOWN_TYPES

        return await target.work(self._pool(target.root), StagedBatch, target.disk, shares)

    async def _commit(self, batches: Mapping[Member, StagedBatch]) -> dict[Digest, set[Member]]:
        digests = set[Digest]().union(*(batch.digests for batch in batches.values()))
        registrations = self._registered(digests)
        naming = False
        where: dict[Digest, set[Member]] = {digest: set() for digest in digests}
        try:
            events = {digest: its.event for digest, its in registrations.items()}
            for target, batch in batches.items():
                sync = partial(batch.sync, target.names, events)
                await target.work(self._pool(target.root), sync)
            naming = True
            for target, batch in batches.items():
                name = partial(target.work, self._pool(target.root), batch.name)
                for digest in await self._repairs.naming(batch.digests, self._mirror, name):
                    where[digest].add(target)
            for digest, its in registrations.items():
                if where[digest]:
                    its.done()
        finally:
            for its in registrations.values():
                its.given_up(named=naming)  # unless it is done
        return where

    def _registered(self, digests: set[Digest]) -> dict[Digest, Registration]:
        """The samples are about to be recorded."""
        if self._learning is None:
            return {}
        registrations = {
            digest: self._learning.expect(digest, self._mirror, Kind.MOVED) for digest in digests
        }
        for its in registrations.values():
            its.begin()
        return registrations

    async def _close(self, batches: Mapping[Member, StagedBatch]) -> None:
        closing = [target.give_back(batch.close) for target, batch in batches.items()]
        for outcome in await settle(closing) if closing else []:
            if isinstance(outcome, Failure) and not outcome.check(DiskAway, Busy, OSError):
                outcome.raiseException()
