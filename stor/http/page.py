"""The page at `/` for people with a browser: what is wrong, and how the storages are, at a glance.

It asks for nothing else and runs no scripts. But for what a sample is asked about, it shows nothing
that `/status` does not tell.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from typing import Any

import attrs

from stor import __version__
from stor.digest import Digest
from stor.errors import StorError
from stor.explained import conclusion, places
from stor.http.access import PerSecond
from stor.http.answer import INTERNAL_ERROR, Answer, answer_to
from stor.http.page_style import STYLE
from stor.paths import printable
from stor.quantities import duration, size
from stor.status import DiskStatus, JobStatus, MemcachedStatus, S3Status, Status
from stor.store import Found

REFRESH_SECONDS = 15

#: With more sets than this, healthy ones are rows rather than cards; so are troubled ones above
#: their own limit.
_MOST_CARDS = 12
_MOST_SICK_CARDS = 24

#: The most jobs that are listed.
_MOST_JOBS = 30

#: The most problems that are listed, and that are listed one below the other.
_MOST_PROBLEMS = 100
_MOST_IN_ONE_COLUMN = 8

#: With more disks than this, those that have nothing of a sample, and need not, are counted.
_MOST_PLACES = 12

#: The colour of a disk's bar, by how full the disk is at least.
_FILLS = ((0.95, "f3"), (0.9, "f2"), (0.75, "f1"), (0.0, "f0"))

#: What a disk is worst, in the order in which sets are shown.
_BAD, _WARN, _GOOD = 0, 1, 2
_LEVELS = ("bad", "warn", "good")

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode("ascii")

_HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Accept",
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@attrs.frozen
class Moment:
    """What the page shows beside the storages."""

    uploads: int = 0
    rates: PerSecond = attrs.field(factory=lambda: PerSecond(0, 0, 0, 0))


@attrs.frozen
class Asked:
    """What was typed into the box for a sha, and what was found, or why nothing was."""

    text: str = ""
    found: Any = None
    fault: str | None = None


@attrs.frozen
class _Disk:
    """A disk as the page shows it: how bad it is, what is said of it, and why."""

    number: int
    root: str
    level: int
    kinds: str
    said: str
    why: str | None
    total_bytes: int
    free_bytes: int
    seen: bool


@attrs.frozen
class _Set:
    """A set as the page shows it."""

    number: int
    disks: Sequence[_Disk]
    writable: bool
    samples: int | None
    indexed: bool
    usable_bytes: int
    reason: str | None

    @property
    def level(self) -> int:
        """That of its worst disk."""
        return min((disk.level for disk in self.disks), default=_GOOD)


def page(
    status: Status,
    moment: Moment,
    now_seconds: float,
    asked: Asked | None = None,
    *,
    stopping: bool = False,
    host: str = "",
    days_left: float | None = None,
) -> Answer:
    """The whole page. Every text that is not Stor's own is escaped.

    `now_seconds` is of the clock that the storages' times are of. `days_left` is when the room for
    new samples is gone, if that is known. With `asked` there is the box for a sha.
    """
    sets = _sets(status, now_seconds)
    disks = [disk for one in sets for disk in one.disks]
    level, verdict = _verdict(status, disks, stopping)
    name = f"Stor on {host}" if host else "Stor"
    refresh = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">\n'
    when = f"As last seen; this page asks again every {REFRESH_SECONDS} seconds."
    if asked is not None and asked.text:  # each look at a sample asks all disks
        refresh, when = "", "As last seen."
    body = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<title>{_text(verdict)} - {_text(name)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_text(name)}</h1><span class="soft">{__version__}</span></header>
<main>
<section class="verdict {_LEVELS[level]}"><h2>{_text(verdict)}</h2>
{_problems(status, disks)}</section>
<dl>
{_figures(status, moment, sets, days_left)}</dl>
{_box(asked)}{_jobs(status.work.jobs)}{_storages(status, sets)}</main>
<footer class="soft">{when}</footer>
</body>
</html>
"""
    return Answer(200, printable(body).encode(), "text/html; charset=utf-8", _HEADERS)


def wants_page(accept: bytes | None) -> bool:
    """Whether a client would rather have HTML than a line of text (RFC 9110, 12.5.1).

    It has to say so: what takes anything, such as curl, gets the line.
    """
    qualities: dict[bytes, float] = {}
    for part in (accept or b"").lower().split(b","):
        kind, *parameters = [piece.strip() for piece in part.split(b";")]
        weights = [piece[2:] for piece in parameters if piece.startswith(b"q=")]
        try:
            qualities[kind] = float(weights[0]) if weights else 1.0
        except ValueError:
            continue
    ranges = (b"text/plain", b"text/*", b"*/*")
    plain = next((qualities[one] for one in ranges if one in qualities), 0.0)
    html = qualities.get(b"text/html", 0.0)
    return html > 0 and html >= plain


def _sets(status: Status, now: float) -> list[_Set]:
    sets, number = [], 0
    for position, of_set in enumerate(status.sets, 1):
        disks = []
        for disk in of_set.disks:
            number += 1
            disks.append(_disk(number, disk, now))
        sets.append(
            _Set(
                position,
                disks,
                of_set.writable,
                of_set.samples,
                of_set.indexed,
                of_set.usable_bytes,
                of_set.reason,
            )
        )
    return sets


def usable_bytes(status: Status) -> int:
    """The room that is left for new samples, beyond the reserve."""
    return sum(of_set.usable_bytes for of_set in status.sets)


def _disk(number: int, disk: DiskStatus, now: float) -> _Disk:
    state, root, why = disk.state, disk.root, disk.reason
    level, kinds, said = _GOOD, [state], state
    if state == "suspect":
        level = _WARN
    if disk.unwritable is not None:
        level = _WARN
        kinds.append("unwritable")
    if not disk.complete and state != "offline":
        level = _WARN
        kinds.append("incomplete")
        done = "" if disk.compared is None else f", {disk.compared:.0%} compared"
        said = f"{state}, not complete{done}"
    if state == "offline":
        level = _BAD
    if why is not None:
        level = min(level, _WARN)
        said = f"{said} for {duration(now - disk.since)}"
    elif disk.unwritable is not None:
        why = disk.unwritable.reason
        said = f"takes no new samples for {duration(now - disk.unwritable.since)}"
    elif disk.held:
        said = f"{said}, held by the operator"
    why = None if why is None else why.removeprefix(f"{root}: ")
    return _Disk(
        *(number, root, level, " ".join(kinds), said, why),
        disk.total_bytes,
        disk.free_bytes,
        state != "offline",
    )


def _verdict(status: Status, disks: Sequence[_Disk], stopping: bool) -> tuple[int, str]:
    if stopping:
        return _BAD, "Stopping: what runs is finished"
    away = sum(disk.reason is not None for of_set in status.sets for disk in of_set.disks)
    missing = [f"{away} of {len(disks)} disks"] if away else []
    if status.s3 is not None and not status.s3.available:
        missing.append("S3")
    if missing:
        verb = "is" if len(missing) == 1 and away <= 1 else "are"
        return _BAD, f"{' and '.join(missing)} {verb} not available"
    if status.problems:
        return _BAD, "; ".join(status.problems)
    but = _to_look_at(status, disks)
    return (_WARN if but else _GOOD), f"All storages are available{f'; {but}' if but else ''}"


def _to_look_at(status: Status, disks: Sequence[_Disk]) -> str:
    """What is to be looked at although all storages are available."""
    ailing = sum(disk.level == _WARN for disk in disks)
    at_risk = status.work.at_risk
    if ailing:
        return f"{ailing} of {len(disks)} disks {'needs' if ailing == 1 else 'need'} a look"
    if at_risk:
        samples = "1 sample has" if at_risk == 1 else f"{at_risk:,} samples have"
        return f"{samples} too few good copies"
    return "read the warnings" if status.warnings else ""


def _problems(status: Status, disks: Sequence[_Disk]) -> str:
    """What is wrong, the worst first, with links to the disks; then what else to know."""
    ailing = sorted((disk for disk in disks if disk.level != _GOOD), key=lambda disk: disk.level)
    lines = [
        f'<li class="{_LEVELS[disk.level]}"><a href="#d{disk.number}">{_text(disk.root)}</a> '
        f"{disk.said}{f': {_text(disk.why)}' if disk.why else ''}</li>"
        for disk in ailing
    ]
    # What is said of a disk already is not said again.
    known = tuple(f"{disk.root}: " for disk in ailing)
    if status.s3 is not None and status.s3.reason:
        lines.insert(0, f'<li class="bad">{_text(status.s3.reason)}</li>')
    lines += [
        f'<li class="warn">{_text(warning)}</li>'
        for warning in status.warnings
        if not warning.startswith(known)
    ]
    more = len(lines) - _MOST_PROBLEMS
    if more > 0:
        lines[_MOST_PROBLEMS:] = [f'<li class="warn">and {more} more, see /status</li>']
    many = ' class="many"' if len(lines) > _MOST_IN_ONE_COLUMN else ""
    return f"<ul{many}>{''.join(lines)}</ul>" if lines else ""


def _box(asked: Asked | None) -> str:
    """Where a sha can be asked about, and what was found of it."""
    if asked is None:
        return ""
    form = (
        '<form action="/" method="get"><label for="explain">Explain a sample</label>'
        '<input id="explain" name="explain" required autocomplete="off" spellcheck="false" '
        f'placeholder="its SHA-256" value="{_text(asked.text)}"><button>Explain</button></form>\n'
    )
    if asked.fault is not None:
        found = f'<p class="reason">{_text(asked.fault)}</p>'
    elif asked.found is None:
        found = ""
    else:
        said = conclusion(asked.found)
        told = list(places(asked.found))
        shown = [place for place in told if place.matters or len(told) <= _MOST_PLACES]
        lines = [
            f"<li><b>{_text(place.root)}</b> {_text(place.says)}"
            f' <span class="soft">{_text(place.state)}</span></li>'
            for place in shown
        ]
        if len(told) > len(shown):
            lines.append(f"<li>{len(told) - len(shown)} more disks have nothing of it</li>")
        found = (
            f"<h3>{_text(said[0].upper() + said[1:])}</h3><ul>{''.join(lines)}</ul>"
            '<p class="soft"><a href="/">Close</a></p>'
        )
    return f'<section class="explained">{form}{found}</section>\n'


def _figures(status: Status, moment: Moment, sets: Sequence[_Set], days_left: float | None) -> str:
    """The totals: a set holds as much as its smallest disk."""
    lines = []
    if sets:
        # Of a disk that was not seen yet nothing is known.
        seen = [[disk for disk in one.disks if disk.total_bytes] for one in sets]
        total = sum(min(disk.total_bytes for disk in one) for one in seen if one)
        free = sum(min(disk.free_bytes for disk in one) for one in seen if one)
        lines.append(_figure("Free", f"{size(free)} of {size(total)}"))
        taking = [one for one in sets if one.writable]
        lines.append(_figure("For new samples", size(sum(one.usable_bytes for one in taking))))
        if days_left is not None:
            lines.append(_figure("Full in, at last week's rate", _days(days_left)))
        if len(taking) > 1:
            lowest = min(taking, key=lambda one: one.usable_bytes)
            lines.append(
                _figure("Lowest set", f"{size(lowest.usable_bytes)} (set {lowest.number})")
            )
        known = [one.samples for one in sets if one.samples is not None]
        if known:
            least = "" if all(one.indexed for one in sets) else "at least "
            lines.append(_figure("Samples", f"{least}{sum(known):,}"))
    rates = moment.rates
    lines += [
        _figure("GETs a second", _rate(rates.gets)),
        _figure("POSTs a second", _rate(rates.posts)),
        _figure("Sent a second", size(int(rates.sent_bytes))),
        _figure("Received a second", size(int(rates.received_bytes))),
        _figure("Uploads in flight", moment.uploads),
        _figure("Repairs waiting", status.repairs.waiting),
        _figure("Repaired", status.repairs.done),
        _figure("Samples at risk", status.work.at_risk, warn=status.work.at_risk > 0),
    ]
    return "".join(lines)


def _storages(status: Status, sets: Sequence[_Set]) -> str:
    """Everything that keeps samples or knows where they are, sick sets first."""
    ordered = sorted(sets, key=lambda one: (one.level, one.number))
    shown = len(ordered)
    if shown > _MOST_CARDS:
        shown = min(sum(one.level != _GOOD for one in ordered), _MOST_SICK_CARDS)
    cards = [_card(one) for one in ordered[:shown]]
    if status.s3 is not None:
        cards.append(_s3(status.s3))
    if status.memcached:
        cards.append(_memcached(status.memcached))
    first = f'<div class="cards">\n{"".join(cards)}</div>\n' if cards else ""
    return first + _table(ordered[shown:])


def _card(of_set: _Set) -> str:
    samples = ""
    if of_set.samples is not None:
        samples = f'<span class="soft">{_samples(of_set)} samples</span>'
    disks = "".join(
        f'<li class="disk {disk.kinds}" id="d{disk.number}"><div class="top">'
        f'<span>{_text(disk.root)}</span><span class="state">{disk.said}</span></div>'
        f"{_room(disk)}{_reason(disk)}</li>"
        for disk in of_set.disks
    )
    return (
        f'<section class="card"><div class="top"><h3>Set {of_set.number}</h3>{samples}'
        f'<span class="soft">{_role(of_set)}</span></div><ul>{disks}</ul></section>\n'
    )


def _table(sets: Sequence[_Set]) -> str:
    """A row for each set, its disks side by side."""
    if not sets:
        return ""
    return (
        '<p class="soft">Each set: what is free on its disks, and its samples</p>\n'
        f'<div class="table">\n{"".join(map(_row, sets))}</div>\n'
    )


def _row(of_set: _Set) -> str:
    cells = "".join(
        f'<li class="disk {disk.kinds}" id="d{disk.number}"><span>{_text(disk.root)}</span>'
        f"{_bar(disk)}{_brief(disk)}</li>"
        for disk in of_set.disks
    )
    samples = "" if of_set.samples is None else f"<span>{_samples(of_set)}</span>"
    role = "" if of_set.writable else f"<span>{_role(of_set)}</span>"
    return (
        f"<section><h3>{of_set.number}</h3><ul>{cells}</ul>"
        f'<p class="soft">{samples}{role}</p></section>\n'
    )


def _brief(disk: _Disk) -> str:
    """What a row says of a disk: of one in order, what is free."""
    if disk.level == _GOOD and disk.said == "online":
        free = size(disk.free_bytes) if disk.total_bytes else "not known yet"
        return f'<span class="soft">{free}</span>'
    return f'<span class="state">{disk.said}</span>{_reason(disk)}'


def _reason(disk: _Disk) -> str:
    return "" if disk.why is None else f'<p class="reason">{_text(disk.why)}</p>'


def _samples(of_set: _Set) -> str:
    return f"{'' if of_set.indexed else 'at least '}{of_set.samples:,}"


def _role(of_set: _Set) -> str:
    if of_set.writable:
        return "takes new samples"
    return "takes no new samples" + (f": {_text(of_set.reason)}" if of_set.reason else "")


def _used(disk: _Disk) -> float:
    return min(max(1 - disk.free_bytes / disk.total_bytes, 0.0), 1.0)


def _bar(disk: _Disk) -> str:
    if not disk.total_bytes:
        return ""
    used = _used(disk)
    return _filled(used, next(name for least, name in _FILLS if used >= least), "used")


def _filled(part: float, colour: str, what: str) -> str:
    return (
        f'<svg class="bar {colour}" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{part:.0%} {what}"><rect width="{part * 100:.1f}" height="1"/></svg>'
    )


def _room(disk: _Disk) -> str:
    if not disk.total_bytes:
        return '<p class="soft">size not known yet</p>'
    known = "" if disk.seen else " when last seen"
    return (
        f'{_bar(disk)}<div class="top soft"><span>{size(disk.free_bytes)} free of '
        f"{size(disk.total_bytes)}{known}</span>"
        f"<span>{_used(disk):.0%}</span></div>"
    )


def _s3(s3: S3Status) -> str:
    state, said = ("online", "available") if s3.available else ("offline", "not available")
    lines = ""
    copies = s3.copies
    if copies is not None:
        oldest = f", the oldest for {duration(copies.oldest_seconds)}"
        waiting = f"{copies.waiting:,} copies to be sent" + (oldest if copies.waiting else "")
        lines = f'<p class="soft">{waiting}; {copies.sent:,} sent</p>'
    if s3.reason:
        lines += f'<p class="reason">{_text(s3.reason)}</p>'
    return (
        '<section class="card"><h3>S3</h3><ul>'
        f'<li class="disk {state}"><div class="top"><span>bucket {_text(s3.bucket)}</span>'
        f'<span class="state">{said}</span></div>{lines}</li></ul></section>\n'
    )


def _memcached(servers: Sequence[MemcachedStatus]) -> str:
    lines = "".join(
        f'<li class="disk {"online" if one.answers else "offline"}"><div class="top">'
        f"<span>{_text(one.server)}</span>"
        f'<span class="state">{"answers" if one.answers else "left alone"}</span></div></li>'
        for one in servers
    )
    return f'<section class="card"><h3>memcached</h3><ul>{lines}</ul></section>\n'


def _jobs(jobs: Sequence[JobStatus]) -> str:
    """Long work that is not over; the passes over disks that nobody asked for on one line."""
    told = [job for job in jobs if not job.continuous or job.not_mended or job.ended]
    lines = [_job(job) for job in told[:_MOST_JOBS]]
    passes = [job.done for job in jobs if job.continuous]
    if passes:
        far = f"{min(passes):.0%} to {max(passes):.0%} of this pass"
        disks = "disk" if len(passes) == 1 else "disks"
        lines.append(_line("scrub", f"{len(passes)} {disks}, {far}", sum(passes) / len(passes)))
    return f'<ul class="jobs">\n{"".join(lines)}</ul>\n' if lines else ""


def _job(job: JobStatus) -> str:
    said = [job.state, f"{job.done:.1%}"]
    if job.eta_seconds is not None:
        said.append(f"{duration(job.eta_seconds)} left")
    if job.not_mended:
        said.append(f"{job.not_mended:,} not mended")
    if job.reason:
        said.append(job.reason)
    return _line(f"{job.kind} {job.about}", ", ".join(said), job.done)


def _line(what: str, said: str, done: float) -> str:
    return (
        f'<li class="soft"><span>{_text(what)}</span>{_filled(done, "f0", "done")}'
        f"<span>{_text(said)}</span></li>\n"
    )


def _figure(name: str, figure: int | str, *, warn: bool = False) -> str:
    shown = f"{figure:,}" if isinstance(figure, int) else figure
    level = ' class="warn"' if warn else ""
    return f"<div><dt>{name}</dt><dd{level}>{shown}</dd></div>\n"


def _rate(number: float) -> str:
    return f"{number:,.1f}" if 0 < number < 10 else f"{number:,.0f}"


def _days(days: float) -> str:
    if days < 1:
        return "less than a day"
    if days < 730:
        return f"{days:.0f} days" if days >= 1.5 else "a day"
    return f"{days / 365:.0f} years"


def _text(value: object) -> str:
    return escape(str(value))


class Explanation:
    """What is found out about samples."""

    def __init__(
        self,
        places: Callable[[Digest], Awaitable[list[dict[str, Any]]]],
        find: Callable[[Digest], Awaitable[Found]],
    ) -> None:
        """`places` asks every disk; `find` finds a sample for a client, as `Store.find` does."""
        self._places = places
        self._find = find

    async def of(self, digest: Digest) -> dict[str, Any]:
        """All of it, for JSON."""
        places = await self._places(digest)
        answer: dict[str, Any]
        try:
            found = await self._find(digest)
        except StorError as error:
            refused = answer_to(error) or INTERNAL_ERROR
            answer = {"status": refused.status, "reason": str(error)}
        else:
            answer = {"status": 200, "reason": f"from {found.storage}", "size": found.size}
        return {"sha": str(digest), "answer": answer, "places": places}
