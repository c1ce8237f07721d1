"""Waiting for jobs, with a line of progress on a terminal."""

import sys
import time
from typing import Any

from stor.cli.admin_client import Stor, job_line, show, show_lines
from stor.quantities import duration, size

_LOOK_SECONDS = 0.5
_OVER = ("done", "failed", "cancelled")


def tell(stor: Stor, begun: list[Any], *, wait: bool, as_json: bool) -> int:
    """Say which jobs have begun, or, with `wait`, how they have ended; the exit status."""
    jobs = ended(stor, {job["id"] for job in begun}) if wait else begun
    if as_json:
        show(jobs)
    else:
        show_lines(map(job_line, jobs))
        for job in jobs:
            show_lines(f"      {error['about']}: {error['reason']}" for error in job["errors"])
    if not wait:
        return 0
    return int(any(job["state"] != "done" or job["not_mended"] for job in jobs))


def ended(stor: Stor, numbers: set[int]) -> list[Any]:
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


def plan_lines(plans: list[Any]) -> list[str]:
    """What jobs that move samples would do, a line each."""
    if not plans:
        return ["nothing to move"]
    return [
        f"{' '.join(plan['roots'])}: {plan['samples']:,} samples, {size(plan['bytes'])} to move, "
        f"{duration(round(plan['hours'] * 3600))} at least"
        for plan in plans
    ]
