"""Conditional requests and ranges. Pure functions on header values."""

import re
from datetime import UTC, datetime
from functools import lru_cache

import attrs
from twisted.web.http import datetimeToString

_ENTITY_TAG = re.compile(rb'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
#: IMF-fixdate, and the two obsolete forms that are still to be read (RFC 9110, 5.6.7).
_DATES = [
    re.compile(form.replace("TIME", "(?P<h>[0-9]{2}):(?P<m>[0-9]{2}):(?P<s>[0-9]{2})").encode())
    for form in (
        "[A-Z][a-z]{2}, (?P<day>[0-9]{2}) (?P<month>[A-Z][a-z]{2}) (?P<year>[0-9]{4}) TIME GMT",
        "[A-Z][a-z]+day, (?P<day>[0-9]{2})-(?P<month>[A-Z][a-z]{2})-(?P<year>[0-9]{2}) TIME GMT",
        "[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>[ 0-9][0-9]) TIME (?P<year>[0-9]{4})",
    )
]
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_RANGE = re.compile(rb"(?i:bytes)=[ \t]*(\d*)-(\d*)[ \t]*")


@lru_cache(maxsize=1024)
def http_date(seconds: int) -> bytes:
    """A time since 1970 as an IMF-fixdate (RFC 9110, 5.6.7)."""
    return bytes(datetimeToString(seconds))


@attrs.frozen
class Validators:
    """What a sample's current state is known by (RFC 9110, 8.8)."""

    etag: bytes
    modified_seconds: int

    @property
    def last_modified(self) -> bytes:
        """The time as an IMF-fixdate, `Sun, 06 Nov 1994 08:49:37 GMT`."""
        return http_date(self.modified_seconds)


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

    def evaluate(self, now: Validators, seconds: float) -> int | None:
        """304 or 412 instead of the answer, `None` to go on (the order of RFC 9110, 13.2.2).

        `seconds` is the time of day, since 1970.
        """
        if self.if_match is not None:
            if not _matches(self.if_match, now.etag, weak=False):
                return 412
        elif self.if_unmodified_since is not None:
            since = parse_date(self.if_unmodified_since, seconds)
            if since is not None and now.modified_seconds > since:
                return 412
        if self.if_none_match is not None:
            if _matches(self.if_none_match, now.etag, weak=True):
                return 304
        elif self.if_modified_since is not None:
            since = parse_date(self.if_modified_since, seconds)
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


def parse_date(value: bytes, now_seconds: float) -> int | None:
    """The seconds since 1970 of an HTTP date, `None` of what is none (RFC 9110, 5.6.7)."""
    match = next(filter(None, (form.fullmatch(value) for form in _DATES)), None)
    if match is None or match["month"] not in _MONTHS:
        return None
    month = _MONTHS.index(match["month"]) + 1
    year, day, hour, minute, second = (int(match[part]) for part in ("year", "day", "h", "m", "s"))
    # The last second of a day may be a leap second, which no `datetime` has.
    leap = second == 60
    try:
        if len(match["year"]) == 2:
            now = datetime.fromtimestamp(now_seconds, UTC)
            year += now.year // 100 * 100
            # What seems to be more than 50 years ahead is the last year that ended so.
            if (year, month, day, hour, minute) > (now.year + 50, *now.timetuple()[1:5]):
                year -= 100
        parsed = datetime(year, month, day, hour, minute, second - leap, tzinfo=UTC)
    except ValueError:
        return None
    return int(parsed.timestamp()) + leap
