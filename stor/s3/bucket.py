"""The samples in a bucket: looked up and read without a thread each, written through a pool."""

import calendar
import re
from email.utils import parsedate
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web._newclient import RequestNotSent
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent

from stor.digest import Digest
from stor.errors import Damaged, Unavailable
from stor.s3.body import Body
from stor.s3.client import Meaning, S3Client, S3Failed, Stat, meaning_of
from stor.s3.source import S3Source
from stor.threads import Pool

T = TypeVar("T")

#: An engine that has not answered by then has not answered. Clients wait for headers for 10 s.
ANSWER_SECONDS = 7.0

#: Samples up to this size are read and verified before their first byte, if they come in time.
SMALL_BYTES = 256 * 1024
SMALL_SECONDS = 3.0

#: After this many failures in a row a probe says whether the engine is asked any more.
FAILURES_UNTIL_PROBE = 3

#: A sample that nobody stores: an engine that says so finds others, too.
UNKNOWN = Digest.of(b"stor asks for this to see whether a bucket answers")

#: After how long a copy with the wrong bytes is asked for again.
CONDEMNED_SECONDS = 300.0

_TRIES = 2
_ERROR_BYTES = 4096


class CorruptCopies:
    """Samples that are known to be bad; each for a while, since others may mend them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._until: dict[Digest, float] = {}

    def add(self, digest: Digest) -> None:
        """Remember one."""
        now = self._clock.seconds()
        self._until = {known: until for known, until in self._until.items() if until > now}
        self._until[digest] = now + CONDEMNED_SECONDS

    def discard(self, digest: Digest) -> None:
        """It has been stored anew."""
        self._until.pop(digest, None)

    def __contains__(self, digest: object) -> bool:
        until = self._until.get(digest) if isinstance(digest, Digest) else None
        return until is not None and until > self._clock.seconds()


class Bucket:
    """One bucket of one engine; `fault` says why it is not available, if it is not."""

    log = Logger()

    def __init__(
        self,
        client: S3Client,
        worker: Pool,
        signer: Pool,
        http: IAgent,
        clock: IReactorTime,
    ) -> None:
        """`worker` is for calls that may take long; no look at S3 waits behind them.

        `signer` is for signing alone, which asks nobody.
        """
        self.client = client
        self.worker = worker
        self.fault: str | None = "s3: not asked yet"
        #: Samples whose copy is known to be bad.
        self.corrupt = CorruptCopies(clock)
        self.requests = 0
        self.errors = 0
        self._signer = signer
        self._http = http
        self._clock = clock
        self._failures = 0
        self._probing = False
        self._probe_again = False

    def place(self, digest: Digest) -> str:
        """Where a sample is, as clients are told."""
        return f"s3://{self.client.bucket}/{digest.s3_key}"

    async def probe(self) -> bool:
        """See whether the bucket can be used; whether it can again. Never raises.

        One at a time: what is asked for while one is under way is looked at once more after it,
        since its answer may be about a trouble that is over.
        """
        if self._probing:
            self._probe_again = True
            return False
        self._probing = True
        was_away = False
        try:
            while True:
                self._probe_again = False
                was_away = await self._probe() or was_away
                if not self._probe_again:
                    return was_away and self.fault is None
        finally:
            self._probing = False

    async def _probe(self) -> bool:
        try:
            await Deferred.fromCoroutine(self._check()).addTimeout(ANSWER_SECONDS, self._clock)
        except Exception as error:
            self._down(_text(error))
            return False
        was_away = self.fault is not None
        if was_away:
            self.log.info("s3: bucket {bucket} is in use", bucket=self.client.bucket)
        self.fault, self._failures = None, 0
        return was_away

    def hear(self, fault: str | None) -> None:
        """Another process has seen whether the bucket can be used; `fault` says why not."""
        self.fault, self._failures = fault, 0

    async def look(self, digest: Digest) -> Stat | None:
        """Size and time of a sample, `None` when the bucket has none. Raises `Unavailable`."""
        # A HEAD's Content-Length is not to be had from Twisted's client; a part tells of the whole.
        response = await self._get("GET", digest, {"Range": "bytes=0-0"})
        if response is None:
            return None
        if response.code == 416:  # it is empty: there is no first byte
            response = await self._get("GET", digest)
            if response is None:
                return None
        self._deliver(response).close()
        size = _whole_size(response) if response.code == 206 else response.length
        return Stat(size, _modified_ns(response))

    async def open(self, digest: Digest, *, part: bool) -> S3Source | None:
        """The sample, `None` when the bucket has none. Raises `Unavailable`, `Damaged`.

        With `part` the first read, which may begin anywhere, is what asks for content.
        """
        if part:
            stat = await self.look(digest)
            return (
                None if stat is None else S3Source(self, digest, stat.size, stat.modified_ns, None)
            )
        response = await self._get("GET", digest)
        if response is None:
            return None
        body = self._deliver(response)
        source = S3Source(self, digest, response.length, _modified_ns(response), body)
        if source.size <= SMALL_BYTES:
            await source.gather(self._clock, SMALL_SECONDS)
        return source

    async def body(self, digest: Digest, offset: int, size: int) -> Body:
        """The sample from `offset` on, for `S3Source`. Raises `S3Failed`."""
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            response = await self._get("GET", digest, wanted)
        except Unavailable as error:
            raise S3Failed(str(error)) from error
        if response is None:
            raise S3Failed("s3: the sample was there and is gone")
        body = self._deliver(response)
        expected = 206 if offset else 200
        if response.code != expected or response.length != size - offset:
            body.close()
            raise S3Failed(f"s3: asked for byte {offset} on, got {response.code}")
        return body

    async def _get(
        self, method: str, digest: Digest, headers: dict[str, str] | None = None
    ) -> Any | None:
        if self.fault is not None:
            raise Unavailable(self.fault)
        asking = Deferred.fromCoroutine(self._ask(method, digest, headers or {}))
        return await self._guard(asking)

    async def _guard(self, asking: Deferred[T]) -> T:
        """The answer of the engine, in time. Raises `Unavailable`."""
        self.requests += 1
        # Cancelling ends the connection: a request to an engine that hangs would stay for ever.
        asking.addTimeout(ANSWER_SECONDS, self._clock)
        try:
            response = await asking
        except Exception as error:
            self.errors += 1
            if not isinstance(error, S3Failed) or error.meaning is not Meaning.SAMPLE:
                self._doubt()
            raise Unavailable(_text(error)) from error
        self._failures = 0
        return response

    def _doubt(self) -> None:
        """The engine has failed: see whether others can still be had from it, if that goes on."""
        self._failures += 1
        if self._failures >= FAILURES_UNTIL_PROBE and not self._probing:
            self._failures = 0
            Deferred.fromCoroutine(self.probe())

    async def _check(self) -> None:
        """See that the bucket is ours to use, and finds samples. Raises what went wrong.

        A gateway may know its buckets by heart while none of its disks answers.
        """
        response = await self._request("HEAD", await self._signer.run(self.client.sign_check))
        if response.code != 200:
            raise S3Failed(f"s3: head_bucket: {response.code} ({response.code})")
        found = await self._ask("GET", UNKNOWN, {})
        if found is not None:
            self._deliver(found).close()

    async def _request(self, method: str, url: str, headers: dict[str, str] | None = None) -> Any:
        wanted = {"Accept-Encoding": "identity", **(headers or {})}
        return await self._http.request(
            method.encode("ascii"),
            url.encode("ascii"),
            Headers({name: [value] for name, value in wanted.items()}),
        )

    async def _ask(self, method: str, digest: Digest, headers: dict[str, str]) -> Any | None:
        for tries_left in reversed(range(_TRIES)):
            url = await self._signer.run(self.client.sign, method, digest)
            try:
                response = await self._request(method, url, headers)
            except Exception as error:
                if not tries_left or not _was_closed(error):
                    raise
                continue
            ranged = "Range" in headers
            if response.code == 200 or (response.code == 206 and ranged):
                if response.length is UNKNOWN_LENGTH:
                    self._deliver(response).close()
                    raise S3Failed("s3: an answer without Content-Length", Meaning.SAMPLE)
                return response
            code = await self._error_code(response)
            if response.code == 416 and ranged:
                return response
            meaning = meaning_of(response.code, code)
            if meaning is Meaning.ABSENT:
                return None
            if response.code < 500 or not tries_left:
                reason = f"s3: {method}: {code or 'refused'} ({response.code})"
                raise S3Failed(reason, meaning, response.code)
        return None

    async def _error_code(self, response: Any) -> str:
        """The code in the body of an error (a short XML document), `""` when there is none."""
        body = self._deliver(response)
        text = b""
        try:
            while len(text) < _ERROR_BYTES and (data := await body.take(_ERROR_BYTES)):
                text += data
        except CancelledError:
            raise
        except Exception as error:
            self.log.debug("s3: {error}", error=str(error))
        finally:
            body.close()
        _, begun, rest = text.partition(b"<Code>")
        return rest.partition(b"</Code>")[0].decode("ascii", "replace") if begun else ""

    def _deliver(self, response: Any) -> Body:
        body = Body(self._clock)
        response.deliverBody(body)
        return body

    def _down(self, reason: str) -> None:
        if self.fault != reason:
            self.log.warn("s3 is not available: {reason}", reason=reason)
        self.fault = reason


def _whole_size(response: Any) -> int:
    """The size of a sample of which a part was asked for (RFC 9110, 14.4)."""
    content_range = str((response.headers.getRawHeaders("Content-Range") or [""])[0])
    found = re.search(r"/(\d{1,18})$", content_range, re.ASCII)
    if found is None:
        raise Unavailable("s3: a part without the size of the whole")
    return int(found[1])


def _modified_ns(response: Any) -> int:
    """When the sample was stored; 1970 when the engine does not say so, or makes no sense."""
    text = str((response.headers.getRawHeaders("Last-Modified") or [""])[0])
    try:
        modified = parsedate(text)
        return max(0, calendar.timegm(modified) * 10**9) if modified else 0
    except (ValueError, OverflowError):
        return 0


def _was_closed(error: Exception) -> bool:
    """Whether the engine has ended a connection that was kept, as it may at any time."""
    reasons = getattr(error, "reasons", [])
    return isinstance(error, RequestNotSent) or any(
        reason.check(ConnectionDone, ConnectionLost) for reason in reasons
    )


def _text(error: BaseException) -> str:
    if isinstance(error, defer.TimeoutError):
        return f"s3: no answer within {ANSWER_SECONDS:g} s"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.startswith("s3: ") else f"s3: {text}"


class S3Search:
    """The one copy of a sample that S3 has or has not. The same face as `stor.mirror.search`."""

    log = Logger()
    tier = "s3"

    def __init__(self, bucket: Bucket, digest: Digest, *, part: bool) -> None:
        """`part` means that only a part of the sample will be read."""
        self.attempts = 0
        self.mirror: None = None
        self.damaged: list[str] = []
        self.unanswered: str | None = None
        self._bucket = bucket
        self._digest = digest
        self._part = part
        self._asked = False

    @property
    def consulted(self) -> bool:
        """See `stor.lookup.Search`."""
        return self.attempts > 0

    async def look(self) -> Stat | None:
        """The copy by its name; `None` when there is none or it is not known. Never raises."""
        if self._done():
            return None
        try:
            return await self._bucket.look(self._digest)
        except Unavailable as error:
            self.unanswered = str(error)
        return None

    async def next(self) -> S3Source | None:
        """The copy, to be read; `None` when there is none or it is not known. Never raises."""
        if self._done():
            return None
        try:
            return await self._bucket.open(self._digest, part=self._part)
        except Damaged as error:
            self.damaged.append(str(error))
            self._bucket.corrupt.add(self._digest)
            self.log.error("Damaged: {error}", error=str(error))
        except Exception as error:
            self.unanswered = str(error)
        return None

    async def twin(self, source: S3Source) -> None:
        """There is no second copy."""

    def mark_corrupt(self, source: S3Source, reason: str) -> None:
        """The copy has turned out to be bad: it is not served again for a while."""
        self.log.error("Damaged: {reason}", reason=reason)
        self._bucket.corrupt.add(self._digest)

    def suspect(self, source: S3Source) -> None:
        """The copy could not be read. The log has said so."""

    def close(self) -> None:
        """No more is wanted."""

    def _done(self) -> bool:
        if self._asked:
            return True
        self._asked = True
        self.attempts += 1
        if self._digest in self._bucket.corrupt:
            self.damaged.append(f"s3: the copy of {self._digest} is known to be bad")
            return True
        return False
