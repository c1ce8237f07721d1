"""An S3 engine that misbehaves on demand; it takes any signature."""

import contextlib
import http.server
import re
import socket
import ssl
import threading
from urllib.parse import parse_qs, urlsplit

from stor.s3.bucket import UNKNOWN
from tests.integration.process import poll, sha_of

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code></Error>"


class BadEngine:
    """Keeps objects in memory, and answers for them as `trouble` says.

    `trouble(answer)` is called for each request that is not about the bucket as such; `answer` is
    an `Answer`, on which it calls what is to be done. Without it every answer is right.
    `requests` are the method and first byte asked for, of those that are about an object, but for
    the one that probes ask for.
    """

    def __init__(self, certificate=None, host="127.0.0.1"):
        """With a `Certificate` it speaks https."""
        self.objects = {}
        self.requests = []
        #: Headers of objects that are not the usual ones, by sha; `None`: the answer has none.
        self.headers = {}
        self.trouble = None
        #: The parts of those that are being stored, by sha and number.
        self.parts = {}
        self._over = threading.Event()
        server = _Server6 if ":" in host else _Server
        self._server = server((host, 0), _Handler)
        self._server.engine = self
        scheme, named = "http", f"[{host}]" if ":" in host else host
        if certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.file, certificate.key_file)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.credentials = {
            **{"access_key": "any", "secret_key": "any"},
            "host": f"{scheme}://{named}:{self._server.server_port}",
        }
        if certificate is not None:
            self.credentials["ca_file"] = str(certificate.file)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05])

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *reason):
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, content, sha=None):
        """Have a sample."""
        sha = sha or sha_of(content)
        self.objects[sha] = content
        return sha

    @contextlib.contextmanager
    def in_trouble(self, trouble):
        """Within this block it misbehaves."""
        self.trouble, self.requests = trouble, []
        try:
            yield self
        finally:
            self.trouble = None

    @property
    def connections(self):
        """How many are open."""
        return self._server.connections

    def sleep(self, seconds):
        """Wait, no longer than until the end; whether that has come."""
        return self._over.wait(seconds)


class Answer:
    """The answer to one request, not sent yet. `begin` is the first byte asked for."""

    def __init__(self, handler):
        self._handler = handler
        self.engine = handler.server.engine
        self.method = handler.command
        self.sha = handler.path.partition("?")[0].rpartition("/")[2]
        self.wanted = handler.headers
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.content = self.engine.objects.get(self.sha)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        self.begin = int(wanted[1]) if wanted else 0
        self._end = int(wanted[2]) + 1 if wanted and wanted[2] else None
        self._ranged = wanted is not None

    def hang(self):
        """Say nothing until the engine ends."""
        self.engine.sleep(60)
        self._handler.close_connection = True

    def refuse(self, status, code):
        """An error."""
        self._head(status, ERROR.format(code).encode())

    def say(self, status, body):
        """Anything."""
        self._head(status, body)

    def refuse_without_end(self, status):
        """An error whose body does not come."""
        self._handler.send_response(status)
        self._handler.send_header("Content-Length", "100")
        self._handler.end_headers()
        self.hang()

    def right(self, content=None, *, until=None, bytes_per_second=None, hanging=False):
        """The object, or `content` in its place.

        The connection is cut, or with `hanging` left alone, when the body is at byte `until`.
        """
        content = self.content if content is None else content
        if content is None:
            self.refuse(404, "NoSuchKey")
            return
        if self._ranged and self.begin >= len(content):
            self.refuse(416, "InvalidRange")
            return
        end = min(self._end or len(content), len(content))
        self._handler.send_response(206 if self._ranged else 200)
        if self._ranged:
            whole = f"bytes {self.begin}-{end - 1}/{len(content)}"
            self._handler.send_header("Content-Range", whole)
        self._handler.send_header("Content-Length", str(end - self.begin))
        usual = {"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}
        for name, value in (usual | self.engine.headers.get(self.sha, {})).items():
            if value is not None:
                self._handler.send_header(name, value)
        self._handler.end_headers()
        if self.method == "HEAD":
            return
        cut = end if until is None else min(until, end)
        self._body(content[self.begin : max(cut, self.begin)], bytes_per_second)
        if cut < end:
            if hanging:
                self.hang()
            self._handler.close_connection = True

    def stored(self, *, etag='"etag"', upload_id="upload"):
        """What was sent is stored, or the next step of storing it in parts is done."""
        query = parse_qs(urlsplit(self._handler.path).query, keep_blank_values=True)
        headers, text = {}, b""
        if self.method == "POST" and "uploads" in query:
            named = f"<UploadId>{upload_id}</UploadId>" if upload_id else ""
            text = (
                f"<InitiateMultipartUploadResult>{named}</InitiateMultipartUploadResult>".encode()
            )
        elif self.method == "POST":
            parts = self.engine.parts.pop(self.sha)
            self.engine.objects[self.sha] = b"".join(parts[number] for number in sorted(parts))
            text = b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"
        elif self.method == "PUT" and "partNumber" in query:
            number = int(query["partNumber"][0])
            self.engine.parts.setdefault(self.sha, {})[number] = self.body
            headers = {"ETag": etag} if etag else {}
        elif self.method == "PUT" and self.wanted.get("If-None-Match") and self.content is not None:
            self.refuse(412, "PreconditionFailed")
            return
        elif self.method == "PUT":
            self.engine.objects[self.sha] = self.body
            headers = {"ETag": etag} if etag else {}
        self._head(200, text, headers)

    def _body(self, data, bytes_per_second):
        if bytes_per_second is None:
            self._handler.wfile.write(data)
            return
        piece = max(1, bytes_per_second // 10)
        for begin in range(0, len(data), piece):
            self._handler.wfile.write(data[begin : begin + piece])
            if self.engine.sleep(piece / bytes_per_second):
                break

    def _head(self, status, body, headers=()):
        self._handler.send_response(status)
        self._handler.send_header("Content-Length", str(len(body)))
        for name, value in dict(headers).items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        if self.method != "HEAD":
            self._handler.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    connections = 0

    def process_request_thread(self, request, client_address):
        self.connections += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections -= 1

    def handle_error(self, request, client_address):
        """Those that Stor hangs up on are no news."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        answer = Answer(self)
        if self.path.partition("?")[0].count("/") == 1:  # the bucket
            answer.right(b"")
            return
        if answer.sha != str(UNKNOWN):
            self.server.engine.requests.append((self.command, answer.begin))
        trouble = self.server.engine.trouble
        if trouble is not None:
            trouble(answer)
        elif self.command in ("GET", "HEAD"):
            answer.right()
        else:
            answer.stored()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, text, *values):
        """Say nothing."""


def start_over(engine, start, **keys):
    """A Stor over `engine`, without samples in memory, when it has seen that S3 can be used."""
    # Tests put samples on its disks while it runs.
    keys = {"index": False, "cache_bytes": 0} | keys
    stor = start(s3_enabled=True, s3_credentials=engine.credentials, **keys)
    poll(lambda: stor.get("status").body == b"OK\n", what="an available S3")
    return stor
