"""One Stor into a directory or another Stor: all there is, and then what comes."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from stor.client.api import CursorGone, GivenUp, Stopped
from stor.client.files import reason
from stor.client.get import Get
from stor.client.listing import Landed, Listed
from stor.client.many import Outcome, Report
from stor.client.position import BadPosition, Position, load, save, sync
from stor.digest import Digest
from stor.threads import Pool

#: How long a follower waits for what lands in one request.
WAIT_SECONDS = 30

#: More that has failed is not kept for another time: something is wrong with all of it.
MOST_AGAIN = 10_000

#: How often a follower tries again what has failed.
AGAIN_SECONDS = 3600.0


class Source(Protocol):
    """What is mirrored: `stor.client.Client`, or its double."""

    async def index(self, after: Digest | None) -> list[Listed]:
        """See `Client.index`."""

    async def landed(self, cursor: str | None, wait_seconds: int = 0) -> Landed:
        """See `Client.landed`."""

    def stop(self) -> None:
        """See `Client.stop`."""


class Target(Protocol):
    """Where it goes."""

    async def take(self, samples: Sequence[Listed]) -> None:
        """Copy what is missing there, and report on each. Raises `GivenUp`, `Stopped`."""

    async def sync(self) -> None:
        """Return once all that was taken is durable. Raises `OSError`."""

    def stop(self) -> None:
        """Take no more."""


class Directory:
    """A directory as the target: what `Get` does, and durable before a cursor counts on it."""

    def __init__(
        self, get: Get, path: str, pool: Pool, make_durable: Callable[[str], None] = sync
    ) -> None:
        self._get = get
        self._make_durable = make_durable
        self._path = path
        self._pool = pool

    async def take(self, samples: Sequence[Listed]) -> None:
        """See `Target`."""
        await self._get.run([str(sample.digest) for sample in samples])

    async def sync(self) -> None:
        """See `Target`."""
        await self._pool.run(self._make_durable, self._path)

    def stop(self) -> None:
        """See `Target`."""
        self._get.stop()


@attrs.frozen
class Kept:
    """Where the position is kept, with what it is about, and whether to resume from it."""

    path: str
    about: Mapping[str, str]
    names: str = ""
    forget: bool = False


class Mirror:
    """Copies what a Stor has, and then what it is given, until there is nothing new.

    The cursor is taken before the listing begins, so that nothing falls between the two; it is
    kept only once what it stands for is durable. So after a crash some is looked at twice.
    """

    def __init__(
        self,
        source: Source,
        make_target: Callable[[Report], Target],
        kept: Kept,
        pool: Pool,
        report: Report,
        tell: Callable[[str], None],
        seconds: Callable[[], float],
        *,
        follow: bool = False,
    ) -> None:
        """`pool` is where the position is read and written; `tell` is for a line to people.

        `follow`: go on, and wait for what comes.
        """
        self._source = source
        self._target = make_target(self._note)
        self._kept = kept
        self._pool = pool
        self._report = report
        self._tell = tell
        self._seconds = seconds
        self._follow = follow
        self._stopped = False
        self._again: dict[Digest, Listed] = {}
        self._taking: dict[str, Listed] = {}

    async def run(self, names: object = None) -> None:
        """Do it. Raises `ClientError`."""
        position = await self._load()
        while not self._stopped:
            try:
                if position is None:
                    position = await self._begin()
                await self._take(position.again)
                position = await self._keep(position)
                position = await self._list(position)
                await self._go_on(position)
                return
            except CursorGone as gone:
                self._tell(f"{gone}; starting over, only what is missing is copied")
                position = None

    def stop(self) -> None:
        """Do no more."""
        self._stopped = True
        self._source.stop()
        self._target.stop()

    async def _load(self) -> Position | None:
        if self._kept.forget:
            return None
        try:
            position = await self._pool.run(load, self._kept.path)
        except BadPosition:
            self._tell(f"{self._kept.path}: it says nothing of how far this was; starting over")
            return None
        except OSError as error:
            raise GivenUp(f"{self._kept.path}: {reason(error)}") from None
        if position is not None and position.names != self._kept.names:
            self._tell(f"files were named {position.names} before; starting over")
            return None
        return position

    async def _begin(self) -> Position:
        self._again.clear()
        now = await self._source.landed(None)
        return await self._keep(Position(now.cursor, "", self._kept.names))

    async def _list(self, position: Position) -> Position:
        """Copy all there is."""
        while position.listed is not None:
            after = Digest.parse(position.listed) if position.listed else None
            samples = await self._source.index(after)
            await self._take(samples)
            last = str(samples[-1].digest) if samples else None
            position = await self._keep(attrs.evolve(position, listed=last))
        return position

    async def _go_on(self, position: Position) -> None:
        """Copy what was stored since."""
        waits, tried = 0, self._seconds()
        while True:
            landed = await self._source.landed(position.cursor, waits)
            if landed.samples:
                await self._take(landed.samples)
            if landed.cursor != position.cursor:
                position = await self._keep(attrs.evolve(position, cursor=landed.cursor))
            if landed.samples:
                continue
            if not self._follow:
                return
            waits = WAIT_SECONDS
            if self._again and self._seconds() - tried >= AGAIN_SECONDS:
                tried = self._seconds()
                await self._take(list(self._again.values()))
                position = await self._keep(position)

    async def _take(self, samples: Sequence[Listed]) -> None:
        self._taking = {str(sample.digest): sample for sample in samples}
        if self._taking:
            await self._target.take(list(self._taking.values()))
        if self._stopped:
            raise Stopped("stopped")
        if len(self._again) > MOST_AGAIN:
            raise GivenUp(f"more than {MOST_AGAIN} samples could not be copied: ended")

    def _note(self, outcome: Outcome) -> None:
        """What became of one; what has failed and may succeed is tried again another time."""
        sample = self._taking.get(outcome.sha or "")
        if sample is not None:
            self._again.pop(sample.digest, None)
            if outcome.state == "failed" and not outcome.not_stored:
                self._again[sample.digest] = sample
        self._report(outcome)

    async def _keep(self, position: Position) -> Position:
        """Keep a position once all before it is durable."""
        position = attrs.evolve(position, again=tuple(self._again.values()))
        path = self._kept.path
        try:
            await self._target.sync()
            await self._pool.run(save, path, position, self._kept.about)
        except OSError as error:
            raise GivenUp(f"{os.path.dirname(path)}: {reason(error)}") from None
        return position
