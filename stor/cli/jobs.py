"""`stor jobs`: what long work there is, and how far it is."""

from typing import Any

from stor.cli.admin_client import Stor, add_command, job_line, show, show_lines


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands, "jobs", "list the jobs, and how far each is", "stor jobs --json", _run
    )
    parser.add_argument("--all", action="store_true", help="also those that are over")


def _run(stor: Stor, given: Any) -> int:
    found = stor.get("jobs")
    if given.json:
        show(found)
        return 0
    over = ("done", "cancelled")
    shown = [job for job in found if given.all or job["state"] not in over]
    show_lines(map(job_line, shown))
    for job in shown:
        show_lines(f"      {error['about']}: {error['reason']}" for error in job["errors"])
    if not shown:
        print("no job is under way" + ("" if given.all else "; --all lists those that are over"))
    return 0
