"""From where to where a command goes: a Stor, and for `stor mirror` a directory or another Stor."""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from stor.client.files import Problem, walk
from stor.client.mirror import Kept
from stor.client.position import at_home, beside
from stor.client.settings import BadSettings, Settings, settings

MIRRORED = (
    "Copy what FROM has and TO lacks: from a Stor into a directory or another Stor, or from a "
    "directory into a Stor. From a Stor all there is is copied once, and then what was stored "
    "since: how far that is stands in .stor-mirror-*.json in the directory, or in "
    "~/.local/state/stor/mirror-*.json for a Stor. The samples of a directory are known by their "
    "names; other files are stored like those of `stor put`, names that begin with a dot are "
    "passed over. To list its samples a Stor asks for credentials, of any user."
)


@attrs.frozen
class Ends:
    """The Stor that is asked, `stor`, and what is at the other end."""

    stor: Settings
    to: Settings | None = None
    to_directory: str | None = None
    from_directory: str | None = None

    def kept(self, given: argparse.Namespace, environment: Mapping[str, str]) -> Kept:
        """Where it is kept how far a mirror of the Stor has come."""
        if self.to is not None:
            path = at_home(environment, self.stor.url, self.to.url)
            about = {"from": self.stor.url, "to": self.to.url}
            return Kept(path, about, forget=given.all)
        path = beside(self.to_directory or ".", self.stor.url)
        return Kept(path, {"from": self.stor.url}, given.name, forget=given.all)


def add_mirror(parser: Any) -> None:
    """Add the arguments of `stor mirror`."""
    parser.add_argument("source", metavar="FROM", help="the URL of a Stor, or a directory")
    parser.add_argument("target", metavar="TO", help="the URL of a Stor, or a directory")
    parser.add_argument(
        "--follow", action="store_true", help="go on with what is stored from now on"
    )
    parser.add_argument(
        "--all", action="store_true", help="look at all samples again, not only at new ones"
    )
    parser.add_argument(
        "--name", default="aa/bb/SHA", help="a file's name in a directory: aa/bb/SHA (default), SHA"
    )


def mirrored(given: argparse.Namespace, environment: Mapping[str, str]) -> Ends:
    """The ends of `stor mirror`. Raises `BadSettings`."""
    source, target = _directory(given.source), _directory(given.target)
    if source is None and target is None:
        stor = settings(given.source, environment, "FROM")
        to = settings(given.target, environment, "TO")
        if stor.url == to.url:
            raise BadSettings("FROM and TO are the same Stor")
        return Ends(stor, to=to)
    if source is None:
        return Ends(settings(given.source, environment, "FROM"), to_directory=target)
    if target is not None:
        raise BadSettings("one of FROM and TO has to be a Stor: give its URL")
    if not os.path.isdir(source):
        raise BadSettings(f"FROM: {source}: there is no such directory")
    if given.follow:
        raise BadSettings("--follow: a directory does not tell what is new in it; call it again")
    return Ends(settings(given.target, environment, "TO"), from_directory=source)


def visible(directory: str) -> Iterator[str | Problem]:
    """The files below a directory, without those that a mirror keeps for itself."""
    for found in walk([directory]):
        if isinstance(found, Problem) or not os.path.basename(found).startswith("."):
            yield found


def _directory(text: str) -> str | None:
    """The directory that is meant; `None`: a Stor."""
    if "://" in text:
        return None
    exists = os.path.exists(text)
    if exists and not os.path.isdir(text):
        raise BadSettings(f"{text}: not a directory")
    host, colon, port = text.partition("/")[0].rpartition(":")
    if not exists and colon and host and port.isdigit():
        raise BadSettings(f"{text}: no such directory; for a Stor give http://{text}")
    return text
