"""What was found out about a sample (`stor.explain`), in words."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from stor.quantities import size


class Place(NamedTuple):
    """What is said of one disk, or of S3: how it is, and what it says of the sample.

    It `matters` unless it has nothing of the sample and is in order so.
    """

    root: str
    state: str
    says: str
    matters: bool


def places(found: Any) -> Iterator[Place]:
    """One after the other."""
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
        if place["index"] is None:  # S3
            yield Place(place["root"], state, says, matters=True)
            continue
        expected = place["index"] == "does not have it" and place["state"] == "online"
        matters = "path" in place or "repair" in place or not (expected and place["complete"])
        yield Place(place["root"], f"{state}; the index {place['index']}", says, matters)


def conclusion(found: Any) -> str:
    """What a client is told, and why."""
    return f"a GET is answered {found['answer']['status']}: {found['answer']['reason']}"
