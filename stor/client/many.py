"""Many files at a time: their outcomes, a feed of work, and a bounded number of workers."""

import threading
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.threads import Pool, settle

T = TypeVar("T")

#: What is fetched in one visit to a thread.
_BATCH = 64


@attrs.frozen
class Outcome:
    """What became of one file or sample.

    `state` is `stored`, `present` (nothing had to be sent), `fetched` or `failed`; then `error`
    says why, and `not_stored` is true where nobody has the sample.
    """

    state: str
    sha: str | None
    path: str | None
    size: int | None = None
    error: str | None = None
    not_stored: bool | None = None


Report = Callable[[Outcome], None]


class Feed(Generic[T]):
    """What an iterator gives that may block, to several who take from it in threads."""

    def __init__(self, items: Iterable[T], pool: Pool) -> None:
        self._items = iter(items)
        self._pool = pool
        self._lock = threading.Lock()
        self._taken: list[T] = []
        self._taking: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._ended = False

    def some(self, count: int) -> list[T]:
        """The next ones, in a thread; none at the end."""
        with self._lock:
            return list(islice(self._items, count))

    async def several(self, count: int) -> list[T]:
        """The next one, and more of those that are there already; none at the end."""
        first = await self.next()
        if first is None:
            return []
        more = [self._taken.pop() for _ in range(min(count - 1, len(self._taken)))]
        return [first, *more]

    async def next(self) -> T | None:
        """The next one; `None` at the end."""
        while not self._taken and not self._ended:
            if self._taking is not None:
                waiter: Deferred[None] = Deferred()
                self._waiting.append(waiter)
                await waiter
                continue
            self._taking = Deferred()
            try:
                self._taken = (await self._pool.run(self.some, _BATCH))[::-1]
                self._ended = not self._taken
            except BaseException:
                self._ended = True
                raise
            finally:
                self._taking = None
                waiting, self._waiting = self._waiting, []
                for waiter in waiting:
                    waiter.callback(None)
        return self._taken.pop() if self._taken else None


async def side_by_side(
    workers: int, work: Callable[[], Awaitable[None]], stop: Callable[[], None]
) -> None:
    """Run `work` in each of `workers`; when one fails, `stop` has the others end as well.

    All have ended when it returns. Raises what the first of them did.
    """
    failures: list[Failure] = []

    def failed(failure: Failure) -> None:
        failures.append(failure)
        if len(failures) == 1:
            stop()

    running = [Deferred.fromCoroutine(_coroutine(work)).addErrback(failed) for _ in range(workers)]
    await settle(running)
    if failures:
        failures[0].raiseException()


async def _coroutine(work: Callable[[], Awaitable[None]]) -> None:
    await work()
