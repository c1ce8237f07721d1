"""One request body on its way into the store."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.digest import Digest, MalformedDigest
from stor.errors import Mismatch, TooLarge, Unavailable
from stor.http.answer import INTERNAL_ERROR, Answer, answer_to, causes_of
from stor.http.auth import Rules
from stor.store import Put, SmallPut, Store
from stor.threads import Pool, settle

#: A body is passed on in pieces of at least this size, but for its last one.
BATCH_BYTES = 256 * 1024

#: A piece up to this size is hashed at once: handing it to a thread takes as long.
HASH_AT_ONCE_BYTES = 64 * 1024

#: With this many bytes waiting, an upload's socket is no longer read.
BUFFER_BYTES = 1024 * 1024

#: With this many bytes waiting or being written in all uploads together, none is read on that has
#: bytes waiting.
TOTAL_BUFFER_BYTES = 64 * 1024 * 1024

#: When a client that was one too many may try again.
RETRY_SECONDS = 2


#: What those are told who name no sha.
HOW_TO_STORE = (
    "to store a file, name its SHA-256 in the URL, as in "
    "curl -u USER -T FILE URL/$(sha256sum FILE | cut -c 1-64)"
)


class Flow(Protocol):
    """The connection that a body comes from."""

    def proceed(self) -> None:
        """Ask for the body, if the client waits to be asked (100 Continue)."""

    def pause(self) -> None:
        """Read no more for now."""

    def resume(self) -> None:
        """Read on."""


@attrs.frozen
class Head:
    """What is known before the body: the path's last part, credentials, and length in bytes.

    `address` is where the request comes from; `tried` is told as whom somebody asks.
    """

    name: str
    authorization: bytes | None
    length: int | None
    address: str
    tried: Callable[[bytes], None] = lambda user: None


class Stoppable(Protocol):
    """An upload that another Stor can go on with."""

    def stop(self) -> None:
        """Keep what has come, and end."""


class ClientGone(Exception):
    """There is nobody left to answer."""


class Uploads:
    """What all uploads of the process share, under whichever configuration they began."""

    def __init__(self, hashing: Pool, total_buffer_bytes: int = TOTAL_BUFFER_BYTES) -> None:
        self.hashing = hashing
        #: How many bodies are being taken.
        self.active = 0
        self._total_buffer_bytes = total_buffer_bytes
        self.buffered_bytes = 0
        #: Uploads that are not answered yet.
        self.in_progress = 0
        #: Those that can be resumed.
        self.resumable: set[Stoppable] = set()
        #: Whether Stor is about to end.
        self.stopping = False

    def stop(self) -> None:
        """Stor is about to end: nothing waits for the end of what can be resumed."""
        self.stopping = True
        for upload in list(self.resumable):
            upload.stop()

    @property
    def full(self) -> bool:
        """Whether all uploads together hold as much as they may."""
        return self.buffered_bytes >= self._total_buffer_bytes

    @contextmanager
    def taking(self, max_uploads: int) -> Iterator[None]:
        """While a body is taken. Raises `Unavailable` when it would be one too many."""
        if self.active >= max_uploads:
            reason = f"too many uploads: {max_uploads} at once are accepted (max_uploads)"
            raise Unavailable(reason, RETRY_SECONDS)
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def count(self, uploads: int, size: int) -> None:
        """Add to the uploads under way, and to their bytes in memory; both may be negative."""
        self.active += uploads
        self.in_progress += uploads
        self.buffered_bytes += size


class SmallUpload:
    """A small body that has come as a whole, on its way into the store."""

    def __init__(self, uploads: Uploads, put: SmallPut, user: bytes, size: int) -> None:
        self.user = user
        self.size = size
        self._uploads = uploads
        self._put = put
        uploads.count(1, size)

    def begin(self, ended: Callable[[list[str] | None], None]) -> None:
        """Store it: see `SmallPut.begin`. What has failed an `Upload` finds the answer for."""
        self._tell = ended
        self._put.begin(self._ended)

    def _ended(self, paths: list[str] | None) -> None:
        self._uploads.count(-1, -self.size)
        self._tell(paths)


class SmallBodies:
    """Takes small bodies that have come as a whole."""

    def __init__(self, store: Store, uploads: Uploads, rules: Rules) -> None:
        self._store = store
        self._uploads = uploads
        self._rules = rules

    def take(
        self, raw: bytes, content: bytes, authorization: bytes, address: str
    ) -> SmallUpload | None:
        """The upload of a body as the sample `raw`, where nothing stands in its way.

        It is to begin at once. Where there is none, an `Upload` finds the answer.
        """
        size, uploads, rules = len(content), self._uploads, self._rules
        if uploads.active >= rules.max_uploads or uploads.full or uploads.stopping:
            return None
        if rules.max_upload_bytes is not None and size > rules.max_upload_bytes:
            return None
        user = rules.authenticator.recall(authorization, address)
        if user is None or hashlib.sha256(content).digest() != raw:
            return None
        put = self._store.put_small(Digest(raw), content)
        return None if put is None else SmallUpload(uploads, put, user, size)


class Intake(ABC):
    """A request's body as it comes: pieces that wait to be taken.

    While too many wait, the socket is not read.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._ended = False
        self._gone = False
        self._answered = False
        self._more: Deferred[None] | None = None

    @property
    @abstractmethod
    def _crowded(self) -> bool:
        """Whether too much waits."""

    def receive(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._answered:
            return
        self._chunks.append(data)
        self._waiting_bytes += len(data)
        if not self._paused and self._crowded:
            self._paused = True
            self._flow.pause()
        self._wake()

    def end(self) -> None:
        """The body is complete."""
        self._ended = True
        self._wake()

    def abandon(self) -> None:
        """The client is gone, or what it sends is no HTTP: keep nothing."""
        self._gone = True
        self._wake()

    async def _next(self, enough_bytes: int) -> list[bytes]:
        """The pieces that wait, once they have this many bytes or no more are read.

        With `_ended` they are the last. Raises `ClientGone`.
        """
        while not (
            self._gone or self._ended or self._paused or self._waiting_bytes >= enough_bytes
        ):
            self._more = Deferred()
            await self._more
        if self._gone:
            raise ClientGone
        return self._take()

    def _take(self) -> list[bytes]:
        chunks, self._chunks, self._waiting_bytes = self._chunks, [], 0
        return chunks

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            self._flow.resume()

    def _close(self) -> None:
        """Keep nothing: the connection has other requests, or the rest of this to throw away."""
        self._answered = True
        self._take()
        self._read_on()

    def _wake(self) -> None:
        more, self._more = self._more, None
        if more is not None:
            more.callback(None)


class Upload(Intake):
    """A body, from the head of its request to its answer.

    Malformed, unauthorised, stored already, too large and no room are decided before the body is
    asked for. `answer` fires exactly once, perhaps long before the body has ended; by then
    nothing is left of an upload that failed. Memory does not grow with the body.
    """

    log = Logger()

    def __init__(
        self, store: Store, uploads: Uploads, rules: Rules, head: Head, flow: Flow
    ) -> None:
        super().__init__(flow)
        self._store = store
        self._uploads = uploads
        self._rules = rules
        self._head = head
        self._received_bytes = 0
        self.answer: Deferred[Answer] = Deferred()

    def start(self) -> None:
        """Take the decisions that come before the body."""
        self._uploads.in_progress += 1
        Deferred.fromCoroutine(self._run()).addErrback(self._explain).addCallback(self._finish)

    def receive(self, data: bytes) -> None:
        """See `Intake.receive`."""
        if not self._answered:
            self._received_bytes += len(data)
            self._uploads.buffered_bytes += len(data)
        super().receive(data)

    @property
    def _crowded(self) -> bool:
        return self._waiting_bytes >= BUFFER_BYTES or self._uploads.full

    async def _run(self) -> Answer:
        head, rules = self._head, self._rules
        digest = Digest.parse(head.name)
        await rules.authenticator.check(head.authorization, head.address, head.tried)
        incoming = self._store.expect(digest, head.length)
        try:
            stored = await incoming.stored()
            if stored is not None:
                return Answer.paths(200, stored)
            self._limit(head.length or 0)
            with self._uploads.taking(rules.max_uploads):
                await incoming.begin()
                self._flow.proceed()
                await self._take_body(digest, incoming)
                paths, created = await incoming.commit()
            return Answer.paths(201 if created else 200, paths)
        finally:
            await incoming.leave()

    async def _take_body(self, digest: Digest, incoming: Put) -> None:
        hasher = hashlib.sha256()
        last = False
        while not last:
            # In batches that are worth a visit to the disks.
            chunks = await self._next(BATCH_BYTES)
            last, size = self._ended, sum(map(len, chunks))
            try:
                self._limit(self._received_bytes)
                if last:
                    # With the last bytes goes the record of the name, and it is told to others.
                    await self._verify(digest, hasher, chunks)
                    await incoming.add(chunks, last)
                elif size > HASH_AT_ONCE_BYTES:
                    await self._hash_aside(hasher, chunks, incoming.add(chunks, last))
                else:
                    _update(hasher, chunks)
                    await incoming.add(chunks, last)
            finally:
                self._uploads.buffered_bytes -= size
            if not (self._uploads.full and self._waiting_bytes):
                self._read_on()

    async def _verify(self, digest: Digest, hasher: "hashlib._Hash", chunks: list[bytes]) -> None:
        """Hash the last `chunks`. Raises `ClientGone`, `Mismatch`."""
        if sum(map(len, chunks)) > HASH_AT_ONCE_BYTES:
            await self._uploads.hashing.run(_update, hasher, chunks)
        else:
            _update(hasher, chunks)
        if self._gone:
            raise ClientGone
        if hasher.digest() != digest.raw:
            raise Mismatch(str(digest), hasher.hexdigest())

    async def _hash_aside(
        self, hasher: "hashlib._Hash", chunks: list[bytes], adding: Coroutine[Any, Any, None]
    ) -> None:
        """Hash `chunks` in a thread while they are written."""
        hashing = self._uploads.hashing.run(_update, hasher, chunks)
        try:
            await adding
        finally:
            (hashed,) = await settle([hashing])
        if isinstance(hashed, Failure):
            hashed.raiseException()

    def _limit(self, length: int) -> None:
        limit = self._rules.max_upload_bytes
        if limit is not None and length > limit:
            raise TooLarge(limit)

    def _explain(self, failure: Failure) -> Answer:
        if failure.check(MalformedDigest):
            refusal = Answer.line(412, f"{failure.value}; {HOW_TO_STORE}")
            return attrs.evolve(refusal, causes=causes_of(failure.value))
        if failure.check(ClientGone):
            return Answer.line(400, "the body is incomplete; nothing was kept")
        answer = answer_to(failure.value)
        if answer is None:
            self.log.failure("Storing {name!r}", failure, name=self._head.name)
        return answer or INTERNAL_ERROR

    def _finish(self, answer: Answer) -> None:
        self._uploads.in_progress -= 1
        self._uploads.buffered_bytes -= self._waiting_bytes
        self._close()
        self.answer.callback(answer)


def _update(hasher: "hashlib._Hash", chunks: list[bytes]) -> None:
    for chunk in chunks:
        hasher.update(chunk)
