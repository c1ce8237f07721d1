"""Copies that are still to be sent to S3."""

import heapq
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from stor.content import Content
from stor.digest import Digest
from stor.errors import NotFound
from stor.s3.bucket import Bucket
from stor.s3.sending import send

#: Samples that are sent at once.
_SENDERS = 4

#: After its n-th failure a sample waits 2**n seconds, at most this long.
_LONGEST_PAUSE_SECONDS = 600.0


@attrs.define
class _Waiting:
    """A sample to send, since when in seconds, and how often that has failed.

    `renewed`: it was stored while it was being looked for.
    """

    since: float
    failures: int = 0
    sending: bool = False
    renewed: bool = False


class CopyQueue:
    """Sends samples to a bucket, a few at a time, until each is there.

    What waits to be sent outlives the process in the outbox; this is the order of doing it. While
    the bucket is known not to be available nothing is tried; `resume` says that it is again.
    """

    log = Logger()

    def __init__(
        self,
        open_sample: Callable[[Digest], Awaitable[Content[Any]]],
        forget: Callable[[Digest], Awaitable[None]],
        clock: IReactorTime,
    ) -> None:
        """`open_sample` gives a sample from the disks; raises like `Store.open`.

        `forget` is told, where samples to send are kept over restarts, that one has been sent.
        It never raises.
        """
        self._bucket: Bucket | None = None
        self._forget = forget
        self.sent_total = 0
        self._open = open_sample
        self._clock = clock
        #: The oldest first.
        self._waiting: dict[Digest, _Waiting] = {}
        #: When each of those that are not being sent is tried next: (time, order, digest).
        self._due: list[tuple[float, int, Digest]] = []
        self._order = itertools.count()
        self._sending = 0
        self._starting = False
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._waiting

    @property
    def age_seconds(self) -> float:
        """How long the oldest sample has been waiting."""
        oldest = next(iter(self._waiting.values()), None)
        return 0.0 if oldest is None else self._clock.seconds() - oldest.since

    def add(self, digest: Digest) -> None:
        """A sample waits to be sent."""
        now = self._clock.seconds()
        if digest not in self._waiting:
            self._waiting[digest] = _Waiting(now)
            self._plan(digest, now)
            self._start()
        elif self._waiting[digest].sending:
            self._waiting[digest].renewed = True

    def send_to(self, bucket: Bucket | None) -> None:
        """From now on samples go to this bucket; `None`: they wait."""
        self._bucket = bucket

    def resume(self) -> None:
        """S3 can be used again: nothing waits for its pause to end."""
        now = self._clock.seconds()
        self._due = [
            (now, next(self._order), digest)
            for digest, waiting in self._waiting.items()
            if not waiting.sending
        ]
        self._start()

    def stop(self) -> None:
        """Begin nothing any more."""
        self._bucket = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _plan(self, digest: Digest, due: float) -> None:
        heapq.heappush(self._due, (due, next(self._order), digest))

    @property
    def _open_bucket(self) -> Bucket | None:
        """The bucket, when there is something to be done with it and a sender is free."""
        usable = self._bucket is not None and self._bucket.fault is None
        return self._bucket if usable and self._due and self._sending < _SENDERS else None

    def _start(self) -> None:
        if self._starting:
            return  # a sample that fails at once ends up here, once for each that waits
        self._starting = True
        now = self._clock.seconds()
        while (bucket := self._open_bucket) is not None and self._due[0][0] <= now:
            _, _, digest = heapq.heappop(self._due)
            self._sending += 1
            self._waiting[digest].sending = True
            Deferred.fromCoroutine(self._send(digest, bucket)).addErrback(self._bug)
        self._starting = False
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._open_bucket is not None:
            delay = max(0.0, self._due[0][0] - self._clock.seconds())
            self._timer = self._clock.callLater(delay, self._start)

    async def _send(self, digest: Digest, bucket: Bucket) -> None:
        waiting = self._waiting[digest]
        waiting.renewed = False
        try:
            await self._copy(digest, bucket)
        except NotFound:  # a note that a crash has left, without a sample
            if waiting.renewed:
                self._plan(digest, self._clock.seconds())
            else:
                await self._done(digest)
        except Exception as error:
            waiting.failures += 1
            pause = min(2.0**waiting.failures, _LONGEST_PAUSE_SECONDS)
            self._plan(digest, self._clock.seconds() + pause)
            self.log.warn(
                "Not sent to S3 yet: {digest}: {error}", digest=str(digest), error=str(error)
            )
        else:
            self.sent_total += 1
            await self._done(digest)
        finally:
            waiting.sending = False
            self._sending -= 1
            self._start()

    async def _copy(self, digest: Digest, bucket: Bucket) -> None:
        there = await bucket.look(digest)
        content = await self._open(digest)
        try:
            if there is not None and there.size == content.size:
                return
            whole = content.whole

            async def read(offset: int, length: int) -> bytes:
                if whole is not None:
                    return whole[offset : offset + length]
                return await content.read(offset, length)

            await send(bucket, digest, content.size, read, replace=there is not None)
        finally:
            content.close()

    async def _done(self, digest: Digest) -> None:
        self._waiting.pop(digest, None)
        await self._forget(digest)

    def _bug(self, failure: Any) -> None:
        self.log.failure("Sending to S3", failure)
