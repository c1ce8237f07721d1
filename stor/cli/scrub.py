"""`stor scrub`: read every copy, and put right what is wrong."""

import argparse
import os
import re
from typing import Any

from stor.cli.admin_client import Stor, WrongCall, add_command
from stor.cli.change import megabytes
from stor.cli.waiting import tell
from stor.digest import is_digest


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
    parser.add_argument(
        "--prefix", type=_prefix, default="", metavar="HEX", help="only samples that begin so"
    )
    parser.add_argument(
        "--rate",
        type=megabytes,
        metavar="MB",
        help="read at most MB megabytes a second from each disk",
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end, and say how it was")


def _prefix(text: str) -> str:
    if not re.fullmatch("[0-9A-Fa-f]{0,64}", text):
        raise argparse.ArgumentTypeError(f"expected hexadecimal digits, found {text}")
    return text


def _run(stor: Stor, given: Any) -> int:
    shas = [target for target in given.targets if is_digest(target)]
    if shas and (len(given.targets) > 1 or given.prefix):
        raise WrongCall("expected one SHA, or disks and a prefix, found both")
    order: dict[str, Any] = {"sha": shas[0]} if shas else {}
    if not shas:
        order = {"roots": [os.path.normpath(one) for one in given.targets], "prefix": given.prefix}
    if given.rate is not None:
        order["rate"] = {"bytes_per_second": given.rate}
    begun = stor.post("scrub", **order)
    return tell(stor, begun, wait=given.wait, as_json=given.json)
