"""Conditional requests and ranges. Pure functions on header values."""

import re
from datetime import UTC, datetime

import attrs
from twisted.web.http import datetimeToString

_ENTITY_TAG = re.compile(rb'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
#: IMF-fixdate, and the two obsolete forms that are still to be read (RFC 9110, 5.6.7).
_DATE_FORMATS = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")
_RANGE = re.compile(rb"(?i:bytes)=[ \t]*(\d*)-(\d*)[ \t]*")


@attrs.frozen
class Validators:
    """What a sample's current state is known by (RFC 9110, 8.8)."""

    etag: bytes
    modified_seconds: int

    @property
    def last_modified(self) -> bytes:
        """The time as an IMF-fixdate, `Sun, 06 Nov 1994 08:49:37 GMT`."""
        return bytes(datetimeToString(self.modified_seconds))


@attrs.frozen
class Conditions:
    """The conditional headers of a request; `None` where one is absent."""

    if_match: bytes | None = None
    if_unmodified_since: bytes | None = None
    if_none_match: bytes | None = None
    if_modified_since: bytes | None = None

    @property
    def present(self) -> bool:
        """Whether there is anything to evaluate."""
        return any(value is not None for value in attrs.astuple(self))

    def evaluate(self, now: Validators) -> int | None:
        """304 or 412 instead of the answer, `None` to go on (the order of RFC 9110, 13.2.2)."""
        if self.if_match is not None:
            if not _matches(self.if_match, now.etag, weak=False):
                return 412
        elif self.if_unmodified_since is not None:
            since = _parse_date(self.if_unmodified_since)
            if since is not None and now.modified_seconds > since:
                return 412
        if self.if_none_match is not None:
            if _matches(self.if_none_match, now.etag, weak=True):
                return 304
        elif self.if_modified_since is not None:
            since = _parse_date(self.if_modified_since)
            if since is not None and now.modified_seconds <= since:
                return 304
        return None


class Unsatisfiable(Exception):
    """The range begins beyond the last byte: 416."""


def select_range(
    value: bytes | None, if_range: bytes | None, size: int, now: Validators
) -> tuple[int, int] | None:
    """The first byte and the byte after the last, `None` for the whole sample.

    Several ranges and malformed ones mean the whole, as RFC 9110, 14.2, lets a server choose; so
    does an If-Range that is not exactly what the sample is known by. Raises `Unsatisfiable`.
    """
    if value is None or (if_range is not None and if_range not in (now.etag, now.last_modified)):
        return None
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    first, last = match.groups()
    begin, end = _number(first), _number(last)
    if first:
        if last and end < begin:
            return None
        if begin >= size:
            raise Unsatisfiable
        return begin, min(end + 1, size) if last else size
    if not last:
        return None
    if end == 0:
        raise Unsatisfiable
    # No Content-Range can describe the last bytes of nothing.
    return (max(size - end, 0), size) if size else None


def _matches(value: bytes, etag: bytes, *, weak: bool) -> bool:
    if value.strip() == b"*":
        return True
    return any(
        (weak or not mark) and b'"' + tag + b'"' == etag for mark, tag in _ENTITY_TAG.findall(value)
    )


def _number(digits: bytes) -> int:
    # int() refuses more than 4300 digits (CVE-2020-10735).
    return int(digits.lstrip(b"0")[:4000] or b"0")


def _parse_date(value: bytes) -> int | None:
    for date_format in _DATE_FORMATS:
        try:
            parsed = datetime.strptime(value.decode("latin-1"), date_format)
        except ValueError:
            continue
        return int(parsed.replace(tzinfo=UTC).timestamp())
    return None
