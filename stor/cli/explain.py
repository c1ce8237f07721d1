"""`stor explain`: why a sample is found, or is not."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

from stor.cli.admin_client import Stor, add_command, show, show_lines
from stor.digest import is_digest
from stor.quantities import size


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "explain",
        "say what every disk has to say of a sample, and why the answer is what it is",
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
    for place in found["places"]:
        says = place["says"]
        if "size" in place:
            stored = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place["modified"]))
            says = f"{says}: {size(place['size'])}, stored {stored}"
        if place.get("verified_lately"):
            says = f"{says}, verified within ten minutes"
        if place["scrubbed"] is not None:
            scrubbed = time.strftime("%Y-%m-%d", time.localtime(place["scrubbed"]))
            says = f"{says}, disk scrubbed {scrubbed}"
        if "repair" in place:
            says = f"{says}; at risk: {place['repair']}"
        state = place["state"] if place["complete"] else f"{place['state']}, not complete"
        yield f"  {place['root']} ({state}; the index {place['index']}): {says}"
    yield f"  a GET is answered {found['answer']['status']}: {found['answer']['reason']}"
