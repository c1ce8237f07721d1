"""An S3 bucket without a server: the calls of `S3Client`, and HTTP requests to signed URLs."""

from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH

from stor.s3.bucket import UNKNOWN, Bucket
from stor.s3.client import Part, S3Failed, Stat
from tests.support.pools import InlinePool

MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
MODIFIED_NS = 784111777 * 10**9
PIECE_BYTES = 16_384


class MemoryS3:
    """Has `objects` by their keys, and what `S3Client` and Twisted's `Agent` have that Stor uses.

    While `refusing` every request and every call that writes is refused, while `unwritable` the
    latter. `calls` are the names and keys of those that were made, but for those of probes.
    `probes` says how many there were.
    `answers` are the statuses, bodies and headers of keys that are answered otherwise.
    `waiting`, when it is a list, gets the answers to probes instead of who asks: to be fired.
    """

    bucket = "samples"

    def __init__(self):
        self.objects = {}
        self.refusing = self.unwritable = False
        self.calls = []
        self.uploads = {}
        self.answers = {}
        self.probes = 0
        self.waiting = None

    def bucket_over(self, clock):
        """The bucket, looked at once."""
        bucket = Bucket(self, InlinePool(), InlinePool(), self, clock)
        Deferred.fromCoroutine(bucket.probe())
        return bucket

    # What S3Client does.

    def sign(self, method, digest):
        return f"http://s3.example/samples/{digest.s3_key}"

    def sign_check(self):
        return "http://s3.example/samples"

    def head(self, digest):
        content = self.objects.get(digest.s3_key)
        return None if content is None else Stat(len(content), MODIFIED_NS)

    def put(self, digest, content, replace):
        self._write("put", digest)
        if digest.s3_key in self.objects and not replace:
            return False
        self.objects[digest.s3_key] = content
        return True

    def begin(self, digest):
        self._write("begin", digest)
        self.uploads[digest.s3_key] = {}
        return digest.s3_key

    def put_part(self, digest, upload, number, content):
        self._write("put_part", digest)
        self.uploads[upload][number] = content
        return Part(number, f"etag {number}")

    def complete(self, digest, upload, parts):
        self._write("complete", digest)
        found = self.uploads.pop(upload)
        self.objects[digest.s3_key] = b"".join(found[part.number] for part in parts)

    def abort(self, digest, upload):
        del self.uploads[upload]

    def _write(self, name, digest):
        self.calls.append((name, digest.s3_key))
        if self.refusing or self.unwritable:
            raise S3Failed("s3: refused (503)", status=503)

    # What an Agent does.

    def request(self, method, uri, headers=None, body_producer=None):
        assert headers.getRawHeaders("Accept-Encoding") == ["identity"]
        key = urlsplit(uri.decode("ascii")).path.removeprefix("/samples").removeprefix("/")
        self.probes += not key
        if key not in ("", UNKNOWN.s3_key):
            self.calls.append((method.decode("ascii"), key))
        if not key and self.waiting is not None:
            self.waiting.append(Deferred())
            return self.waiting[-1]
        if self.refusing:
            return fail(OSError("refused"))
        if not key:
            return succeed(MemoryResponse(200, b""))
        if key in self.answers:
            return succeed(MemoryResponse(*self.answers[key]))
        content = self.objects.get(key)
        if content is None:
            return succeed(MemoryResponse(404, b"<Code>NoSuchKey</Code>"))
        wanted = headers.getRawHeaders("Range")
        if wanted is None:
            return succeed(MemoryResponse(200, content))
        first, _, last = wanted[0].removeprefix("bytes=").partition("-")
        begin, end = int(first), int(last or len(content)) + 1
        if begin >= len(content):
            return succeed(MemoryResponse(416, b"<Code>InvalidRange</Code>"))
        part = f"bytes {begin}-{min(end, len(content)) - 1}/{len(content)}"
        return succeed(MemoryResponse(206, content[begin:end], {"Content-Range": part}))


class MemoryResponse:
    """An answer whose body comes in pieces, while it is wanted."""

    def __init__(self, code, content, headers=None):
        """A header that is `None` is not there; without Content-Length the length is not known."""
        given = {"Last-Modified": MODIFIED, "Content-Length": "", **(headers or {})}
        self.code = code
        self.length = len(content) if given.pop("Content-Length") is not None else UNKNOWN_LENGTH
        self.headers = Headers({n: [value] for n, value in given.items() if value is not None})
        self._rest = content
        self._body = None
        self._paused = self._sending = False

    def deliverBody(self, body):
        self._body = body
        body.makeConnection(self)
        self.resumeProducing()

    @property
    def _producer(self):
        return self

    def pauseProducing(self):
        self._paused = True

    def resumeProducing(self):
        self._paused = False
        if self._sending:
            return
        self._sending = True
        while self._rest and not self._paused:
            piece, self._rest = self._rest[:PIECE_BYTES], self._rest[PIECE_BYTES:]
            self._body.dataReceived(piece)
        self._sending = False
        if not self._rest and self._body is not None:
            self._end(ResponseDone())

    def abortConnection(self):
        self._rest = b""
        self._end(ConnectionDone())

    def _end(self, reason):
        body, self._body = self._body, None
        if body is not None:
            body.connectionLost(Failure(reason))
