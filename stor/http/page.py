"""The page at `/` for people with a browser: how the storages are, at a glance.

It asks for nothing else, runs no scripts, and shows nothing that `/status` does not tell.
"""

import base64
import hashlib
from html import escape
from typing import Any

import attrs

from stor import __version__
from stor.http.answer import Answer
from stor.http.rates import PerSecond
from stor.paths import printable
from stor.store import Status

REFRESH_SECONDS = 15

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f5f2; --card: #fff; --ink: #23262b; --soft: #6d7178;
  --line: #e4e2dc; --track: #ebe9e3; --fill: #7d96ad; --good: #3d7a57; --warn: #97690f;
  --bad: #b3402f; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1e2125; --ink: #e3e4e6;
  --soft: #979ba2; --line: #2c3036; --track: #2c3036; --fill: #6f8ca8; --good: #7dbb95;
  --warn: #d6a850; --bad: #e58672; } }
* { box-sizing: border-box; margin: 0; padding: 0; }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; overflow-wrap: anywhere; }
header { display: flex; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.1rem; font-weight: 650; letter-spacing: .01em; }
h2 { font-size: clamp(1.3rem, 1rem + 1.8vw, 1.65rem); font-weight: 600; line-height: 1.3;
  letter-spacing: -.01em; display: flex; gap: .55em; align-items: baseline; }
h3 { font-size: 1rem; font-weight: 600; }
ul { list-style: none; }
.soft { color: var(--soft); font-size: .875rem; }
.verdict { margin: 2.25rem 0 2rem; }
.verdict h2::before { content: ""; flex: none; width: .62em; height: .62em; border-radius: 50%;
  background: currentColor; }
.verdict.good h2::before { color: var(--good); }
.verdict.bad h2::before { color: var(--bad); }
.verdict li { margin: .4rem 0 0 1.66rem; color: var(--soft); }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1.1rem 1.25rem 1.25rem; }
.top { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; }
.disk { margin-top: 1.1rem; }
.state { font-size: .875rem; white-space: nowrap; color: var(--soft); }
.online .state { color: var(--good); }
.suspect .state, .incomplete .state, .unwritable .state { color: var(--warn); }
.offline .state { color: var(--bad); font-weight: 600; }
.bar { display: block; width: 100%; height: .5rem; margin: .4rem 0 .3rem; border-radius: .25rem;
  background: var(--track); overflow: hidden; }
.bar rect { fill: var(--fill); }
.bar.full rect { fill: var(--warn); }
.offline .bar { opacity: .45; }
.reason { font-size: .875rem; color: var(--bad); }
.suspect .reason, .read-only .reason, .unwritable .reason { color: var(--warn); }
dl { display: flex; flex-wrap: wrap; gap: 1.25rem 2.5rem; margin: 2rem 0 0; }
dt { color: var(--soft); font-size: .875rem; }
dd { font-size: 1.25rem; font-variant-numeric: tabular-nums; }
footer { margin-top: 2.5rem; }
"""

#: From so much on a disk is shown as nearly full.
_NEARLY_FULL = 0.95

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode("ascii")

_HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Accept",
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


@attrs.frozen
class Moment:
    """What the page shows beside the storages."""

    uploads: int = 0
    rates: PerSecond = attrs.field(factory=lambda: PerSecond(0, 0, 0, 0))


def page(status: Status, moment: Moment, now_seconds: float, *, stopping: bool = False) -> Answer:
    """The whole page. Every text that is not Stor's own is escaped.

    `now_seconds` is of the clock that the storages' times are of.
    """
    disks = [disk for of_set in status.sets for disk in of_set["disks"]]
    away = sum(disk["reason"] is not None for disk in disks)
    good, verdict = _verdict(status, away, len(disks), stopping)
    cards = [_set(n, one, now_seconds) for n, one in enumerate(status.sets, 1)]
    if status.s3 is not None:
        cards.append(_s3(status.s3))
    if status.memcached:
        cards.append(_memcached(status.memcached))
    warnings = "".join(f"<li>{_text(warning)}</li>" for warning in status.warnings)
    notes = f"<ul>{warnings}</ul>" if warnings else ""
    body = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH_SECONDS}">
<title>{_text(verdict)} - Stor</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>Stor</h1><span class="soft">{__version__}</span></header>
<main>
<section class="verdict {"good" if good else "bad"}"><h2>{_text(verdict)}</h2>{notes}</section>
<div class="cards">
{"".join(cards)}</div>
<dl>
{_figure("GETs a second", _rate(moment.rates.gets))}
{_figure("POSTs a second", _rate(moment.rates.posts))}
{_figure("Sent a second", _bytes(int(moment.rates.sent_bytes)))}
{_figure("Received a second", _bytes(int(moment.rates.received_bytes)))}
{_figure("Uploads in flight", moment.uploads)}
{_figure("Repairs waiting", status.repairs["waiting"])}
{_figure("Repaired", status.repairs["done"])}
</dl>
</main>
<footer class="soft">As last seen; this page asks again every {REFRESH_SECONDS} seconds.</footer>
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


def _verdict(status: Status, away: int, disks: int, stopping: bool) -> tuple[bool, str]:
    if stopping:
        return False, "Stopping: what runs is finished"
    missing = [f"{away} of {disks} disks"] if away else []
    if status.s3 is not None and not status.s3["available"]:
        missing.append("S3")
    if missing:
        verb = "is" if len(missing) == 1 and away <= 1 else "are"
        return False, f"{' and '.join(missing)} {verb} not available"
    if status.problems:
        return False, "; ".join(status.problems)
    return True, "All storages are available"


def _set(number: int, of_set: dict[str, Any], now: float) -> str:
    role = "takes new samples" if of_set["writable"] else "takes no new samples"
    samples = ""
    if of_set["samples"] is not None:
        least = "" if of_set["indexed"] else "at least "
        samples = f'<span class="soft">{least}{of_set["samples"]:,} samples</span>'
    disks = "".join(_disk(disk, now) for disk in of_set["disks"])
    return (
        f'<section class="card"><div class="top"><h3>Set {number}</h3>{samples}'
        f'<span class="soft">{role}</span></div><ul>{disks}</ul></section>\n'
    )


def _disk(disk: dict[str, Any], now: float) -> str:
    state = disk["state"]
    kinds, said = [state], state
    if not disk["complete"] and state != "offline":
        kinds.append("incomplete")
        done = f", {disk['compared']:.0%} compared" if "compared" in disk else ""
        said = f"{state}, not complete{done}"
    root, reason, why = disk["root"], "", disk["reason"]
    if why is not None:
        said = f"{said} for {_duration(now - disk['since'])}"
    elif disk["unwritable"] is not None:
        why = disk["unwritable"]["reason"]
        kinds.append("unwritable")
        said = f"takes no new samples for {_duration(now - disk['unwritable']['since'])}"
    elif disk["held"]:
        said = f"{said}, held by the operator"
    if why is not None:
        reason = f'<p class="reason">{_text(why.removeprefix(f"{root}: "))}</p>'
    return (
        f'<li class="disk {" ".join(kinds)}"><div class="top"><span>{_text(root)}</span>'
        f'<span class="state">{said}</span></div>{_room(disk)}{reason}</li>'
    )


def _room(disk: dict[str, Any]) -> str:
    total, free = disk["total_bytes"], disk["free_bytes"]
    if not total:
        return '<p class="soft">size not known yet</p>'
    used = min(max(1 - free / total, 0.0), 1.0)
    known = " when last seen" if disk["state"] == "offline" else ""
    full = " full" if used >= _NEARLY_FULL else ""
    return (
        f'<svg class="bar{full}" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{used:.0%} used"><rect width="{used * 100:.1f}" height="1"/></svg>'
        f'<div class="top soft"><span>{_bytes(free)} free of {_bytes(total)}{known}</span>'
        f'<span class="state">{used:.0%}</span></div>'
    )


def _s3(s3: dict[str, Any]) -> str:
    state, said = ("online", "available") if s3["available"] else ("offline", "not available")
    lines = ""
    if s3.get("copies"):
        copies = s3["copies"]
        oldest = f", the oldest for {_duration(copies['oldest_seconds'])}"
        waiting = f"{copies['waiting']:,} copies to be sent" + (oldest if copies["waiting"] else "")
        lines = f'<p class="soft">{waiting}; {copies["sent"]:,} sent</p>'
    if s3["reason"]:
        lines += f'<p class="reason">{_text(s3["reason"])}</p>'
    return (
        '<section class="card"><h3>S3</h3><ul>'
        f'<li class="disk {state}"><div class="top"><span>bucket {_text(s3["bucket"])}</span>'
        f'<span class="state">{said}</span></div>{lines}</li></ul></section>\n'
    )


def _memcached(servers: list[dict[str, Any]]) -> str:
    lines = "".join(
        f'<li class="disk {"online" if one["answers"] else "offline"}"><div class="top">'
        f"<span>{_text(one['server'])}</span>"
        f'<span class="state">{"answers" if one["answers"] else "left alone"}</span></div></li>'
        for one in servers
    )
    return f'<section class="card"><h3>memcached</h3><ul>{lines}</ul></section>\n'


def _figure(name: str, figure: int | str) -> str:
    shown = f"{figure:,}" if isinstance(figure, int) else figure
    return f"<div><dt>{name}</dt><dd>{shown}</dd></div>"


def _rate(number: float) -> str:
    return f"{number:,.1f}" if 0 < number < 10 else f"{number:,.0f}"


def _bytes(number: int) -> str:
    """A number of bytes as people say it, in powers of 1000 as disks are sold."""
    value = float(number)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"


def _duration(seconds: float) -> str:
    seconds = max(seconds, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _text(value: object) -> str:
    return escape(str(value))
