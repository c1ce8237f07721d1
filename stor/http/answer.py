"""What a client is told: one line of plain text, or an array of paths."""

import gzip
import json
from collections.abc import Mapping

import attrs

from stor import __version__
from stor.digest import MalformedDigest
from stor.errors import (
    Damaged,
    Gone,
    Mismatch,
    NoRoom,
    NotFound,
    StorError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from stor.paths import printable
from stor.threads import Busy

SERVER = f"Stor/{__version__}".encode()

#: What is true of a sample whichever part of it is sent, and of what is sent.
SAMPLE_HEADERS = {
    "ETag": '"%(sha)s"',
    "Last-Modified": "%(modified)s",
    "Cache-Control": "%(scope)s, max-age=31536000, immutable",
}
CONTENT_HEADERS = {
    **SAMPLE_HEADERS,
    "Content-Type": "application/octet-stream",
    "Content-Length": "%(length)d",
    "Accept-Ranges": "bytes",
    "X-Content-Type-Options": "nosniff",
    # RFC 9530: of the whole sample, also when a part of it is sent.
    "Repr-Digest": "sha-256=:%(base64)s:",
}

#: A smaller body is one or two packets in any case.
_WORTH_PACKING_BYTES = 2000


@attrs.frozen
class Answer:
    """A whole response. `headers` come on top of Content-Type and Content-Length.

    `causes` say why it is no better one, a word each, for what counts them, and `storage` where the
    sample is, for the log.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = attrs.field(factory=dict)
    causes: tuple[str, ...] = ()
    storage: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Every header that depends on the answer."""
        fields = {}
        # 304: its length would be that of the sample (RFC 9110, 8.6); 204 never has any.
        if self.status not in (204, 304):
            fields["Content-Type"] = self.content_type
            fields["Content-Length"] = str(len(self.body))
        if self.status >= 400:
            # A cache in front may keep a 404 for minutes, and the sample may come in a second.
            fields["Cache-Control"] = "no-store"
        return fields | dict(self.headers)

    def packed(self, accept_encoding: bytes | None) -> "Answer":
        """The same as gzip, for a client that takes that and where it is worth the time."""
        if len(self.body) < _WORTH_PACKING_BYTES:
            return self
        varied = ", ".join(filter(None, (self.headers.get("Vary"), "Accept-Encoding")))
        headers = {**self.headers, "Vary": varied}
        if not _takes_gzip(accept_encoding):
            return attrs.evolve(self, headers=headers)
        # At level 1: it takes a third of the time, and a fifth more bytes.
        body = gzip.compress(self.body, compresslevel=1, mtime=0)
        return attrs.evolve(self, body=body, headers={**headers, "Content-Encoding": "gzip"})

    @classmethod
    def line(cls, status: int, line: str, **headers: str) -> "Answer":
        """One line of text; a header's name is written with underscores."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        return cls(status, printable(f"{' '.join(line.split())}\n").encode(), headers=named)

    @classmethod
    def problem(cls, status: int, kind: str, title: str, **members: int) -> "Answer":
        """A registered problem type (RFC 9457); a member's name is written with underscores."""
        about = {"type": f"https://iana.org/assignments/http-problem-types#{kind}", "title": title}
        more = {name.replace("_", "-"): value for name, value in members.items()}
        body = json.dumps({**about, **more}).encode() + b"\n"
        return cls(status, body, "application/problem+json")

    @classmethod
    def paths(cls, status: int, paths: list[str]) -> "Answer":
        """Where a sample is, as a JSON array."""
        body = json.dumps(paths).encode() + b"\n"
        return cls(status, body, "application/json", storage=storage_of(paths))


def _takes_gzip(accept_encoding: bytes | None) -> bool:
    """Whether a client asks for gzip (RFC 9110, 12.5.3)."""
    for one in (accept_encoding or b"").lower().split(b","):
        name, _, quality = one.replace(b" ", b"").partition(b";q=")
        if name == b"gzip":
            return quality.strip(b"0.") != b"" or not quality
    return False


def storage_of(paths: list[str]) -> str:
    """The storages of a sample's copies, for the log."""
    return ",".join([_root_of(path) for path in paths])


def _root_of(path: str) -> str:
    """The storage of a copy: its path without the sample's three directories and name."""
    return path.rsplit("/", 4)[0] if path.startswith("/") else path


#: The one table from failures to status codes. A malformed sha is 412 where a body is put.
STATUS: dict[type[Exception], int] = {
    MalformedDigest: 404,
    NotFound: 404,
    Unauthorized: 401,
    Gone: 410,
    Mismatch: 412,
    TooLarge: 413,
    NoRoom: 507,
    Unavailable: 503,
    Busy: 503,
    Damaged: 500,
}

#: Why, in a word, for what counts them.
_CAUSES: dict[type[Exception], str] = {
    MalformedDigest: "malformed_sha",
    Unauthorized: "unauthorized",
    Gone: "gone",
    Mismatch: "bad_sha",
    TooLarge: "too_large",
    NoRoom: "no_space",
    Unavailable: "unavailable",
    Busy: "busy",
    Damaged: "damaged",
}

INTERNAL_ERROR = attrs.evolve(
    Answer.line(500, "internal error: it was logged"), causes=("internal",)
)


def answer_to(error: BaseException | None) -> Answer | None:
    """The answer for a known failure, `None` for one that is a bug."""
    answer = _answer_to(error)
    return None if answer is None else attrs.evolve(answer, causes=causes_of(error))


def causes_of(error: BaseException | None) -> tuple[str, ...]:
    """Why a request failed: a word, or one for each tier that was asked in vain."""
    if isinstance(error, NotFound):
        return tuple(f"not_found_{tier}" for tier in error.tiers)
    return (next((word for kind, word in _CAUSES.items() if isinstance(error, kind)), "internal"),)


def _answer_to(error: BaseException | None) -> Answer | None:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        return Answer.line(500, str(error)) if isinstance(error, StorError) else None
    if status == 401:
        return Answer.line(status, str(error), www_authenticate='Basic realm="stor"')
    if status == 503:
        seconds = error.retry_after_seconds if isinstance(error, Unavailable) else 1
        return Answer.line(status, str(error), retry_after=str(seconds))
    return Answer.line(status, str(error))


def head_of(headers: Mapping[str, str]) -> bytes:
    """The lines of a response's head, with the empty one behind them."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{lines}\r\n".encode("ascii")
