"""`stor explain`: why a sample is found, or is not."""

import argparse
from collections.abc import Iterator
from typing import Any

from stor.cli.admin_client import Stor, add_command, show, show_lines
from stor.digest import is_digest
from stor.explained import conclusion, places


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "explain",
        "say what every disk, and S3, has to say of a sample, and why the answer is what it is",
        "stor explain 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        _run,
    )
    parser.add_argument("sha", type=_sha, metavar="SHA", help="its SHA-256")


def _sha(text: str) -> str:
    if not is_digest(text):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, found {text}")
    return text


def _run(stor: Stor, given: Any) -> int:
    found = stor.get("explain", sha=given.sha)
    if given.json:
        show(found)
    else:
        show_lines(lines(found))
    return 0


def lines(found: Any) -> Iterator[str]:
    """What was found, a line for each place, and what a client is told."""
    yield found["sha"]
    for place in places(found):
        yield f"  {place.root} ({place.state}): {place.says}"
    yield f"  {conclusion(found)}"
