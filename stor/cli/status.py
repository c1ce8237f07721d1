"""`stor status`: how the host is."""

from typing import Any

from stor.cli.admin_client import Stor, add_command, show, show_lines
from stor.quantities import size


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    add_command(commands, "status", "say how the host is", "stor status", _run)


def _run(stor: Stor, given: Any) -> int:
    picture = stor.get("status")
    if given.json:
        show(picture)
    else:
        show_lines(lines(picture))
    return 0


def lines(picture: Any) -> list[str]:
    """The whole in some ten lines: what is well is counted, what is not is named."""
    disks = [disk for one in picture["sets"] for disk in one["disks"]]
    online = sum(disk["state"] == "online" for disk in disks)
    complete = sum(disk["complete"] for disk in disks)
    writable = sum(one["writable"] for one in picture["sets"])
    samples = sum(one["samples"] or 0 for one in picture["sets"])
    # What a set holds at most is what its smallest disk does.
    free = sum(min(disk["free_bytes"] for disk in one["disks"]) for one in picture["sets"])
    total = sum(min(disk["total_bytes"] for disk in one["disks"]) for one in picture["sets"])
    jobs = picture["jobs"]
    states = {job["state"] for job in jobs}
    counted = [f"{sum(job['state'] == s for job in jobs)} {s}" for s in sorted(states)]
    found = [
        f"Stor {picture['version']}: "
        + ("all storages are available" if picture["available"] else "NOT all is available"),
        f"disks    {len(disks)}: {online} online, {complete} complete",
        f"sets     {len(picture['sets'])}: {writable} take new samples, {samples:,} samples",
        f"free     {size(free)} of {size(total)}",
        f"jobs     {', '.join(counted) or 'none'}",
        f"at risk  {picture['at_risk']:,} samples"
        + (" (see stor at-risk)" * bool(picture["at_risk"])),
        f"repairs  {picture['repairs']['waiting']} waiting, {picture['repairs']['done']} done",
    ]
    if picture["s3"] is not None:
        found.append(f"s3       {'available' if picture['s3']['available'] else 'NOT available'}")
    found += [
        f"set      {' '.join(disk['root'] for disk in one['disks'])}: {one['reason']}"
        for one in picture["sets"]
        if one["reason"]
    ]
    found += [f"problem  {problem}" for problem in picture["problems"]]
    return found + [f"warning  {warning}" for warning in picture["warnings"]]
