"""`stor at-risk`: which samples have too few good copies, and why."""

from collections.abc import Iterator
from typing import Any

from stor.cli.admin_client import Stor, add_command, show, show_lines


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    add_command(
        commands,
        "at-risk",
        "list the samples with fewer good copies than their set has disks, and why",
        "stor at-risk --json",
        _run,
    )


def _listed(stor: Stor, number: int) -> Iterator[Any]:
    """All samples of a set that lacks a disk."""
    query = {"set": str(number)}
    while some := stor.get("at-risk", **query):
        yield from some
        query["after"] = some[-1]["sha"]


def _run(stor: Stor, given: Any) -> int:
    found = stor.get("at-risk")
    if given.json:
        for sample in found["samples"]:
            show(sample)
        told = {sample["sha"] for sample in found["samples"]}
        for number in range(len(found["sets"])):
            for sample in _listed(stor, number):
                if sample["sha"] not in told:
                    show(sample)
        return 0
    show_lines(
        f"{sample['sha']}  {'?' if sample['good'] is None else sample['good']} of "
        f"{sample['wanted']} copies: {sample['reason']}"
        for sample in found["samples"]
    )
    show_lines(
        f"all {one['samples']:,} samples of {', '.join(one['roots'])}: {one['reason']}"
        for one in found["sets"]
    )
    if not found["total"] and not found["sets"]:
        print("every sample has all its copies, as far as is known")
    return 0
