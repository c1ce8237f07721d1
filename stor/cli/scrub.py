"""`stor scrub`: read every copy, and put right what is wrong."""

import os
import re
import sys
import time
from typing import Any

from stor.cli.admin import Failed, Stor, add_command, job_line, show, show_lines
from stor.cli.change import megabytes
from stor.quantities import duration, size

_LOOK_SECONDS = 0.5
_OVER = ("done", "failed", "cancelled")


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "scrub",
        "read every copy on disks, or those of one sample, and put right what is wrong",
        "stor scrub /srv/stor/disk1 --rate 100 --wait",
        _run,
    )
    parser.add_argument(
        "targets", nargs="*", metavar="ROOT|SHA", help="disks, or one sample; all disks when none"
    )
    parser.add_argument("--prefix", default="", metavar="HEX", help="only samples that begin so")
    parser.add_argument(
        "--rate",
        type=megabytes,
        metavar="MB",
        help="read at most MB megabytes a second from each disk",
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end, and say how it was")


def _run(stor: Stor, given: Any) -> int:
    shas = [target for target in given.targets if re.fullmatch("[0-9A-Fa-f]{64}", target)]
    if shas and (len(given.targets) > 1 or given.prefix):
        raise Failed("expected one SHA, or disks and a prefix, found both")
    order: dict[str, Any] = {"sha": shas[0]} if shas else {}
    if not shas:
        order = {"roots": [os.path.normpath(one) for one in given.targets], "prefix": given.prefix}
    if given.rate is not None:
        order["rate"] = {"bytes_per_second": given.rate}
    begun = stor.post("scrub", **order)
    jobs = _ended(stor, {job["id"] for job in begun}) if given.wait else begun
    if given.json:
        show(jobs)
    else:
        show_lines(map(job_line, jobs))
        for job in jobs:
            show_lines(f"      {error['about']}: {error['reason']}" for error in job["errors"])
    if not given.wait:
        return 0
    return int(any(job["state"] != "done" or job["not_mended"] for job in jobs))


def _ended(stor: Stor, numbers: set[int]) -> list[Any]:
    """The jobs once all are over; meanwhile a line of progress on a terminal."""
    shown = sys.stderr.isatty()
    while True:
        jobs = [job for job in stor.get("jobs") if job["id"] in numbers]
        if all(job["state"] in _OVER for job in jobs):
            break
        if shown:
            print(f"\r\x1b[K{progress(jobs)}", end="", file=sys.stderr, flush=True)
        time.sleep(_LOOK_SECONDS)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return jobs


def progress(jobs: list[Any]) -> str:
    """How far several jobs are, on one line."""
    done = sum(job["done"] for job in jobs) / len(jobs)
    etas = [job["eta_seconds"] for job in jobs if job["eta_seconds"] is not None]
    waiting = [job["reason"] for job in jobs if job["state"] in ("waiting", "paused")]
    parts = [
        f"{done:.1%}",
        f"{sum(job['samples_done'] for job in jobs):,} samples",
        f"{size(sum(job['bytes_per_second'] for job in jobs))}/s",
    ]
    if etas:
        parts.append(f"{duration(max(etas))} left")
    if waiting:
        parts.append(f"{len(waiting)} waiting: {waiting[0] or 'paused'}")
    return ", ".join(parts)
