"""`stor at-risk`: which samples have too few good copies, and why."""

from typing import Any

from stor.cli.admin import Stor, add_command, show, show_lines


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    add_command(
        commands,
        "at-risk",
        "list the samples with fewer good copies than their set has disks, and why",
        "stor at-risk --json",
        _run,
    )


def _run(stor: Stor, given: Any) -> int:
    found = stor.get("at-risk")
    if given.json:
        for sample in found["samples"]:
            show(sample)
        for one in found["sets"]:
            show(one)
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
