"""Samples that move from one mirror to another, many at a time."""

import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.content import Content
from stor.digest import Digest
from stor.disk.disk import DiskAway
from stor.disk.leaving import Leaving
from stor.disk.loading import Loaded
from stor.errors import Damaged, StorError, Unavailable
from stor.mirror.group_commit import Step
from stor.mirror.learning import LearningNames
from stor.mirror.member import DiskSource
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors
from stor.mirror.repair import OpenSources
from stor.mirror.turns import Contest
from stor.mirror.write import STEP_SECONDS, MirrorWrite
from stor.threads import Busy, settle, settle_within

T = TypeVar("T")

_CHUNK_BYTES = 1024 * 1024


@attrs.frozen
class Outcome:
    """What became of samples: those that are gone from their old mirror; of others, why not.

    Those of `kept` are on the new mirror, and a disk of the old one does not let go of its copy.
    """

    moved: frozenset[Digest] = frozenset()
    refused: Mapping[Digest, StorError] = attrs.field(factory=dict)
    kept: Mapping[Digest, str] = attrs.field(factory=dict)


class Moves:
    """Moves samples so that at every instant one mirror holds each of them whole, and is known to.

    A sample is on stable storage on every disk of its new mirror, under its name, and the index of
    every process knows it there, before the disks of the old mirror note, durably, that it leaves;
    the index strikes it there, and only then its old copies are removed. A disk of either mirror
    that fails ends that before: then both hold it. So does a crash; whoever moves it next finishes
    it. It keeps its time, and is no news in the feed. Uploads and repairs of it wait meanwhile.
    """

    log = Logger()

    def __init__(self, mirrors: Mirrors) -> None:
        self._mirrors = mirrors

    async def move(self, source: Mirror, target: Mirror, bodies: Sequence[Loaded]) -> Outcome:
        """Move samples that are in memory, with one sync for each step on each disk.

        Raises `Unavailable` when a disk keeps all of them from leaving.
        """
        writes = {}
        for body in bodies:
            size, modified_ns = len(body.content), body.modified_ns
            writes[body.digest] = self._mirrors.write_moved(target, body.digest, size, modified_ns)
        contents = {body.digest: body.content for body in bodies}

        async def fill(digest: Digest, write: MirrorWrite) -> None:
            await write.prepare()
            await write.add([contents[digest]], True)

        return await self._carry(source, writes, fill)

    async def move_alone(
        self,
        source: Mirror,
        target: Mirror,
        digest: Digest,
        turn: Callable[[int], Awaitable[None]],
    ) -> Outcome:
        """Move a sample of any size; `turn` is awaited before each part, and told its length.

        Raises `Damaged` or `Unavailable` where a copy is bad or cannot be read, and like `move`.
        """
        content = await self._open(source, digest)
        try:
            write = self._mirrors.write_moved(target, digest, content.size, content.modified_ns)

            async def fill(digest: Digest, write: MirrorWrite) -> None:
                await write.prepare()
                await self._copy(content, write, turn)

            return await self._carry(source, {digest: write}, fill)
        finally:
            content.close()

    async def finish(self, source: Mirror, sizes: Mapping[Digest, int]) -> Outcome:
        """Take samples of these sizes off a mirror that are whole on another one, too.

        Those that are not are left alone, and in no part of the outcome. Raises like `move`.
        """
        whole = {
            digest: size
            for digest, size in sizes.items()
            if await self._is_whole_elsewhere(source, digest)
        }
        return await self._take_turns(source, whole, {})

    async def _is_whole_elsewhere(self, source: Mirror, digest: Digest) -> bool:
        for mirror in self._elsewhere(source, digest):
            try:
                good = (await self._mirrors.repairs.make_whole(digest, mirror)).good
            except StorError as error:
                self.log.warn("{digest}: {error}", digest=str(digest), error=str(error))
                continue
            if good == set(mirror.members):
                return True
        return False

    def _elsewhere(self, source: Mirror, digest: Digest) -> list[Mirror]:
        """The other mirrors that hold a sample."""
        return [one for one in self._names.find(digest).holders if one is not source]

    async def _open(self, source: Mirror, digest: Digest) -> Content[DiskSource]:
        sources, reasons = [], []
        for member in source.members:
            try:
                opened = await member.open(digest)
            except (Damaged, DiskAway, Busy, OSError) as error:
                reasons.append(str(error))
                continue
            if opened is not None:
                sources.append(opened)
        if not sources:
            raise Unavailable("; ".join(reasons) or f"no disk of {source} has {digest}")
        return Content(digest, sources[0], OpenSources(sources[1:]), self._mirrors.clock)

    async def _copy(
        self,
        content: Content[DiskSource],
        write: MirrorWrite,
        turn: Callable[[int], Awaitable[None]],
    ) -> None:
        """Write all of a sample. Raises `Damaged`, `Unavailable`, and what `turn` raises."""
        if content.whole is not None:
            await turn(content.size)
            await write.add([content.whole], True)
            return
        hasher, offset = hashlib.sha256(), 0
        while offset < content.size:
            length = min(_CHUNK_BYTES, content.size - offset)
            await turn(length)
            data = await content.read(offset, length)
            hasher.update(data)
            offset += len(data)
            if offset == content.size and hasher.digest() != content.digest.raw:
                raise Damaged(f"{content.place}: content does not have the SHA-256 of its name")
            await write.add([data], offset == content.size)

    async def _carry(
        self,
        source: Mirror,
        writes: Mapping[Digest, MirrorWrite],
        fill: Callable[[Digest, MirrorWrite], Coroutine[Any, Any, None]],
    ) -> Outcome:
        """Write samples, and have those change mirrors of which that has gone well.

        In the end nothing of the others is left.
        """
        ended: list[Failure | Outcome] = await settle(
            [Deferred.fromCoroutine(self._write(source, writes, fill))]
        )
        await settle([Deferred.fromCoroutine(w.discard()) for w in writes.values()])
        if isinstance(ended[0], Failure):
            ended[0].raiseException()
        return ended[0]

    async def _write(
        self,
        source: Mirror,
        writes: Mapping[Digest, MirrorWrite],
        fill: Callable[[Digest, MirrorWrite], Coroutine[Any, Any, None]],
    ) -> Outcome:
        refused = await _each(writes, fill)
        staged = {digest: w for digest, w in writes.items() if digest not in refused}
        sizes = {digest: w.written_bytes for digest, w in staged.items()}
        outcome = await self._take_turns(source, sizes, staged)
        return attrs.evolve(outcome, refused={**refused, **outcome.refused})

    async def _take_turns(
        self, source: Mirror, sizes: Mapping[Digest, int], writes: Mapping[Digest, MirrorWrite]
    ) -> Outcome:
        """Name what was written, and let it leave its old mirror, while nobody else is at it."""
        if not sizes:
            return Outcome()
        turns = self._mirrors.turns
        release = await turns.hold(sizes)
        removing: list[Deferred[dict[Digest, OSError]]] = []
        try:
            async with turns.moving(sizes) as contests:
                refused = await self._publish(writes, contests)
                leaving = {
                    digest: size
                    for digest, size in sizes.items()
                    if digest not in refused and self._elsewhere(source, digest)
                }
                kept = await self._leave(source, leaving, removing)
                moved = frozenset(digest for digest in leaving if digest not in kept)
                return Outcome(moved, refused, kept)
        finally:
            # Not before: what a disk that hangs still removes may have come back by then.
            DeferredList(removing, consumeErrors=True).addBoth(lambda _: release())

    async def _publish(
        self, writes: Mapping[Digest, MirrorWrite], contests: Mapping[Digest, Contest]
    ) -> dict[Digest, StorError]:
        """Give samples their names on the new mirror; why some have not got them."""
        outbox = self._mirrors.outbox

        async def commit(digest: Digest, write: MirrorWrite) -> None:
            try:
                if outbox is not None and outbox.waits(digest):
                    await outbox.add(digest, write.mirror)
                contests[digest].stored, _ = await write.commit()
            except Exception:
                await write.discard()  # before anybody else looks at what has a name
                raise

        return await _each(writes, commit)

    async def _leave(
        self,
        source: Mirror,
        sizes: Mapping[Digest, int],
        removing: list[Deferred[dict[Digest, OSError]]],
    ) -> dict[Digest, str]:
        """Let samples leave a mirror; of which a copy stays, and why.

        `removing` gets what may still go on in the end. Raises `Unavailable`.
        """
        if not sizes:
            return {}
        for member in source.members:
            if not member.writable:
                raise Unavailable(member.fault or f"{member.root}: is not to be written")
        clock, members = self._mirrors.clock, source.members
        with self._names.leaving(source) as event:
            leaving = [Leaving(m.disk, m.names, list(sizes), event) for m in members]
            noting = [
                member.commit(Step(one.record, one.sync_record, one.recorded, one.record_lost))
                for member, one in zip(members, leaving, strict=True)
            ]
            noted: list[Failure | None] = await settle_within(clock, STEP_SECONDS, noting)
            _require(source, noted)
            for digest, size in sizes.items():
                self._names.left(digest, source, size)
        removing += [
            member.commit(Step(one.remove, one.sync_removed))
            for member, one in zip(members, leaving, strict=True)
        ]
        # What is told of them to others stays what it is.
        heard = [Deferred[dict[Digest, OSError]]() for _ in removing]
        for one, its in zip(removing, heard, strict=True):
            one.addBoth(_tell, its)
        told: list[Failure | dict[Digest, OSError]] = await settle_within(
            clock, STEP_SECONDS, heard
        )
        outcomes = _require(source, told)
        for digest in sizes:
            self._mirrors.repairs.left(digest, source)
        return {
            digest: f"{member.root}/{digest.disk_path}: cannot be removed: {error.strerror}"
            for member, outcome in zip(members, outcomes, strict=True)
            for digest, error in outcome.items()
        }

    @property
    def _names(self) -> LearningNames:
        names = self._mirrors.learning
        if names is None or names.broken is not None:
            raise Unavailable("samples move only where it is known what the disks hold")
        return names


def _tell(outcome: Any, other: "Deferred[Any]") -> None:
    (other.errback if isinstance(outcome, Failure) else other.callback)(outcome)


def _require(source: Mirror, outcomes: Sequence[T | Failure]) -> list[T]:
    """What all disks said. Raises `Unavailable` when one did not do it."""
    for member, outcome in zip(source.members, outcomes, strict=True):
        if isinstance(outcome, Failure):
            raise Unavailable(f"{member.root}: {outcome.value}") from outcome.value
    return [outcome for outcome in outcomes if not isinstance(outcome, Failure)]


async def _each(
    writes: Mapping[Digest, MirrorWrite],
    step: Callable[[Digest, MirrorWrite], Coroutine[Any, Any, None]],
) -> dict[Digest, StorError]:
    """Do a step of all writes at once; of which it failed, and why."""
    steps = [Deferred.fromCoroutine(step(digest, write)) for digest, write in writes.items()]
    refused: dict[Digest, StorError] = {}
    outcomes: list[Failure | None] = await settle(steps)
    for digest, outcome in zip(writes, outcomes, strict=True):
        if isinstance(outcome, Failure):
            if not isinstance(outcome.value, StorError):
                outcome.raiseException()
            refused[digest] = outcome.value
    return refused
