"""A resumable upload: draft-ietf-httpbis-resumable-upload-11.

Its resource has no id: the sample's sha names it, so that any client resumes what another began.
"""

import re
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.errors import Mismatch, Superseded, TooLarge, Unavailable
from stor.http.answer import Answer
from stor.http.auth import Rules
from stor.http.request import StorRequest
from stor.http.upload import BATCH_BYTES, ClientGone, Flow, Head, Upload, Uploads
from stor.store import KEPT_SECONDS, FoundUpload, PartialPut, Partials, Store, UploadTurn

#: What a part of a sample is sent as.
PARTIAL_UPLOAD = "application/partial-upload"

#: When a request that another has ended may be made again.
_AGAIN_SECONDS = 5

#: A client whose upload is complete hears from Stor whenever this many parts are hashed.
_SIGNS_OF_LIFE = 32

#: What can be done with an upload that is under way.
UPLOADING = ("HEAD", "PATCH", "DELETE")

_NO_UPLOAD = Answer.line(404, "not found: no upload of this sample is under way")

_BOOLEANS = {b"?0": False, b"?1": True}
_INTEGER = re.compile(rb"[0-9]{1,15}")


class ResumableFlow(Flow, Protocol):
    """The connection that a body comes from, of a client that knows of interim responses."""

    def inform(self, headers: Mapping[str, str]) -> None:
        """Send 104 (Upload Resumption Supported) with these headers."""


@attrs.frozen
class Terms:
    """What a request says of the upload that it is a part of; `None`: nothing, or no sense."""

    complete: bool | None
    offset: int | None = None
    length: int | None = None

    @classmethod
    def parse(cls, header: Callable[[bytes], bytes | None]) -> "Terms":
        """From the header fields; what is none of the right type is not there (3.2 and 4)."""
        return cls(
            _BOOLEANS.get(_item(header(b"upload-complete"))),
            _integer(header(b"upload-offset")),
            _integer(header(b"upload-length")),
        )


def _item(value: bytes | None) -> bytes:
    """The bare item of a structured field (RFC 9651), without its parameters."""
    return (value or b"").partition(b";")[0].strip(b" ")


def _integer(value: bytes | None) -> int | None:
    item = _item(value)
    return int(item) if _INTEGER.fullmatch(item) else None


class Refused(Exception):
    """The upload cannot go on so: what the client is told."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body)
        self.answer = answer


class Stopping(Unavailable):
    """Stor is about to end: what has come is kept, and the next one goes on with it."""

    def __init__(self) -> None:
        super().__init__("Stor is stopping: go on with the upload when it is back", 1)


class Resumable:
    """What is asked of resumable uploads."""

    def __init__(self, store: Store, uploads: Uploads, rules: Rules) -> None:
        self._store = store
        self._uploads = uploads
        self._rules = rules

    def receive(self, request: StorRequest) -> "ResumableUpload | Answer | None":
        """Decide on a request that brings a sample or a part of it; `None`: it is none of those."""
        terms = Terms.parse(request.getHeader)
        if request.method == b"PATCH":
            return self._receive_part(request, terms)
        if terms.complete is None or request.method not in (b"POST", b"PUT"):
            return None
        partials = self._store.partials
        if partials is None:
            line = "samples that go to S3 alone are sent whole, with Upload-Complete: ?1"
            return None if terms.complete else Answer.line(400, line)
        return self._upload(partials, request.head(), request, terms, appends=False)

    def _receive_part(self, request: StorRequest, terms: Terms) -> "ResumableUpload | Answer":
        kind = (request.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind != PARTIAL_UPLOAD.encode():
            line = f"a part of an upload is expected as Content-Type: {PARTIAL_UPLOAD}"
            return Answer.line(415, line, accept_patch=PARTIAL_UPLOAD)
        if terms.complete is None or terms.offset is None:
            line = "Upload-Offset: BYTES and Upload-Complete: ?0 or ?1 are expected"
            return Answer.line(400, line)
        partials = self._store.partials
        if partials is None:
            return _NO_UPLOAD
        head = attrs.evolve(request.head(), name=request.upload or "")
        return self._upload(partials, head, request, terms, appends=True)

    def _upload(
        self, partials: Partials, head: Head, request: StorRequest, terms: Terms, *, appends: bool
    ) -> "ResumableUpload":
        begun_under = self._store, self._uploads, self._rules
        return ResumableUpload(*begun_under, head, request, partials, terms, appends=appends)

    async def answer(self, request: StorRequest, digest: Digest) -> Answer:
        """To HEAD and DELETE of an upload. Raises `Unavailable`."""
        partials = self._store.partials
        if partials is None:
            return _NO_UPLOAD
        async with partials.turn(digest):
            if request.method == b"HEAD":
                return await self._state(partials, digest)
            return Answer(204, b"") if await partials.remove(digest) else _NO_UPLOAD

    async def _state(self, partials: Partials, digest: Digest) -> Answer:
        headers = {"Cache-Control": "no-store"}
        size = await partials.size_of_stored(digest)
        if size is not None:
            headers |= {"Upload-Complete": "?1", "Location": f"/{digest}"}
            headers |= {"Upload-Offset": str(size), "Upload-Length": str(size)}
            return Answer(204, b"", headers=headers)
        found = await partials.find(digest)
        if found is None:
            return _NO_UPLOAD
        await partials.hold(found)
        headers |= {"Upload-Complete": "?0", "Upload-Offset": str(found.offset)}
        if found.length is not None:
            headers["Upload-Length"] = str(found.length)
        headers |= _limits(self._rules, partials.seconds_left(found))
        return Answer(204, b"", headers=headers)


class ResumableUpload(Upload):
    """A request that begins an upload or, with `appends`, goes on with one.

    `answer` fires once what has come is kept, also of a client that has gone.
    """

    def __init__(
        self,
        store: Store,
        uploads: Uploads,
        rules: Rules,
        head: Head,
        flow: ResumableFlow,
        partials: Partials,
        terms: Terms,
        *,
        appends: bool,
    ) -> None:
        super().__init__(store, uploads, rules, head, flow)
        self._partials = partials
        self._informed = flow
        self._terms = terms
        self._appends = appends
        self._cause: Exception | None = None
        self._told_bytes = 0
        self._signs = 0
        self._place = f"/{head.name.lower()}/upload"

    def give_way(self) -> None:
        """Another request goes on with this upload."""
        self._end_for(Superseded())

    def stop(self) -> None:
        """Stor is about to end."""
        self._end_for(Stopping())

    def _end_for(self, cause: Exception) -> None:
        if self._cause is None and not self._gone:
            self._cause = cause
            self.abandon()

    async def _run(self) -> Answer:
        head, uploads = self._head, self._uploads
        digest = Digest.parse(head.name)
        await self._rules.authenticator.check(head.authorization, head.address, head.tried)
        uploads.resumable.add(self)
        try:
            async with self._partials.turn(digest, self.give_way) as turn:
                if uploads.stopping:
                    raise Stopping
                part = self._append if self._appends else self._create
                return await part(digest, turn)
        finally:
            uploads.resumable.discard(self)

    async def _create(self, digest: Digest, turn: UploadTurn) -> Answer:
        head, terms = self._head, self._terms
        whole = head.length if terms.complete else None
        length = _agreed(terms.length, whole)
        put = self._partials.expect(digest, length, self._uploads.hashing)
        try:
            stored = await put.stored()
            if stored is not None:
                return self._completed(Answer.paths(200, stored))
            self._limit(max(length or 0, head.length or 0))
            turn.expect_newest()
            if not terms.complete and head.length == 0:
                found = await self._partials.find(digest)
                if found is not None:
                    return self._begun(201, (await self._partials.hold(found)).offset)
            with self._uploads.taking(self._rules.max_uploads):
                await put.create()
                self._informed.inform({"Location": self._place, **_limits(self._rules)})
                self._flow.proceed()
                return await self._receive_all(put, length)
        finally:
            await put.leave()

    async def _append(self, digest: Digest, turn: UploadTurn) -> Answer:
        head, terms = self._head, self._terms
        found = await self._partials.find(digest)
        known = None if found is None else found.length
        put = self._partials.expect(digest, _known(known, terms, head), self._uploads.hashing)
        try:
            if await put.stored() is not None:
                raise Refused(self._too_late(digest))
            if found is None:
                raise Refused(_NO_UPLOAD)
            if terms.offset != found.offset:
                raise Refused(self._misplaced(await self._partials.hold(found)))
            whole = None
            if terms.complete and head.length is not None:
                whole = found.offset + head.length
            length = _agreed(known, terms.length, whole)
            self._limit(max(length or 0, found.offset + (head.length or 0)))
            if length is not None and found.offset + (head.length or 0) > length:
                raise Refused(_inconsistent())
            turn.expect_newest()
            with self._uploads.taking(self._rules.max_uploads):
                await put.resume(found)
                self._flow.proceed()
                return await self._receive_all(put, length)
        finally:
            await put.leave()

    async def _receive_all(self, put: PartialPut, length: int | None) -> Answer:
        ended = False
        while not ended:
            chunks = await self._pieces()
            # All that has come by now is among them.
            ended, size = self._ended, sum(map(len, chunks))
            gone = self._gone and not ended
            try:
                self._judge(put, size, length)
                if chunks:
                    await put.add(chunks)
            finally:
                self._uploads.buffered_bytes -= size
            if gone:
                raise self._cause or ClientGone()
            self._tell(put)
            if not (self._uploads.full and self._waiting_bytes):
                self._read_on()
        if not self._terms.complete:
            await put.note(durably=True)
            return self._begun(204 if self._appends else 201, put.offset)
        if length is not None and put.offset != length:
            raise Refused(_inconsistent())
        await put.finish(lambda: self._go_on(put))
        paths, created = await put.commit()
        return self._completed(Answer.paths(201 if created else 200, paths))

    async def _pieces(self) -> list[bytes]:
        """What waits, when it is worth a visit to the disks or nothing more comes."""
        try:
            return await self._next(BATCH_BYTES)
        except ClientGone:
            return self._take()

    def _judge(self, put: PartialPut, size: int, length: int | None) -> None:
        """Check that `size` more bytes can be right. Raises `Refused`, `TooLarge`."""
        put.useful = False
        if length is not None and put.offset + size > length:
            raise Refused(_inconsistent())
        self._limit(put.offset + size)
        put.useful = True

    def _tell(self, put: PartialPut) -> None:
        """Tell the client what it need not send again."""
        if put.durable_bytes > self._told_bytes:
            self._told_bytes = put.durable_bytes
            self._informed.inform({"Upload-Offset": str(put.durable_bytes)})

    def _go_on(self, put: PartialPut) -> None:
        if self._cause is not None:
            raise self._cause
        self._signs += 1
        if self._signs % _SIGNS_OF_LIFE == 0:
            self._informed.inform({"Upload-Offset": str(put.durable_bytes)})

    def _begun(self, status: int, offset: int) -> Answer:
        headers = {"Upload-Complete": "?0", "Upload-Offset": str(offset)}
        if status == 201:
            headers["Location"] = self._place
        line = f"{offset} bytes are kept: go on at {self._place}"
        answer = Answer.line(status, line)
        body = b"" if status == 204 else answer.body
        return attrs.evolve(answer, body=body, headers=headers | _limits(self._rules))

    def _completed(self, answer: Answer) -> Answer:
        return attrs.evolve(answer, headers={**answer.headers, "Upload-Complete": "?1"})

    def _too_late(self, digest: Digest) -> Answer:
        """What is said to who goes on with a sample that is stored."""
        if self._head.length != 0:
            return self._completed(_inconsistent())
        gone = Answer.problem(410, "completed-upload", "the upload is completed")
        return attrs.evolve(gone, headers={"Upload-Complete": "?1", "Location": f"/{digest}"})

    def _misplaced(self, found: FoundUpload) -> Answer:
        answer = Answer.problem(
            409,
            "mismatching-upload-offset",
            "the offset of the request is not that of the upload",
            expected_offset=found.offset,
            provided_offset=self._terms.offset or 0,
        )
        headers = {"Upload-Offset": str(found.offset), "Upload-Complete": "?0"}
        return attrs.evolve(answer, headers=headers)

    def _explain(self, failure: Failure) -> Answer:
        error = failure.value
        if isinstance(error, Refused):
            return error.answer
        if isinstance(error, Superseded):
            return Answer.line(409, str(error), retry_after=str(_AGAIN_SECONDS))
        if isinstance(error, ClientGone):
            return Answer.line(400, f"the body is incomplete: go on at {self._place}")
        answer = super()._explain(failure)
        if isinstance(error, Mismatch):
            return self._completed(answer)
        if isinstance(error, TooLarge):
            headers = {**answer.headers, **_limits(self._rules)}
            answer = attrs.evolve(answer, headers=headers)
        return answer


def _limits(rules: Rules, seconds: float = KEPT_SECONDS) -> dict[str, str]:
    """What a client may rely on."""
    max_bytes = rules.max_upload_bytes
    size = "" if max_bytes is None else f"max-size={max_bytes}, "
    return {"Upload-Limit": f"{size}max-age={int(seconds)}"}


def _inconsistent() -> Answer:
    title = "the lengths that were said of this upload are not the same"
    return Answer.problem(400, "inconsistent-upload-length", title)


def _agreed(*lengths: int | None) -> int | None:
    """What all say that say anything. Raises `Refused`."""
    told = {length for length in lengths if length is not None}
    if len(told) > 1:
        raise Refused(_inconsistent())
    return next(iter(told), None)


def _known(known: int | None, terms: Terms, head: Head) -> int | None:
    """The length, from whoever tells it."""
    if known is None and terms.length is None and terms.complete and head.length is not None:
        return (terms.offset or 0) + head.length
    return terms.length if known is None else known
