"""What the commands have in common that ask a running Stor, over its socket for operators."""

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlencode

from stor.paths import printable
from stor.quantities import duration, size

#: Where the package's service listens.
DEFAULT_SOCKET = "/run/stor/admin.sock"

#: A Stor that runs answers from what it knows; a look at a sample takes some seconds.
_SECONDS = 30.0


#: What jobs of a kind do with samples; others read copies.
_DID = {"drain": "samples moved", "rebalance": "samples moved", "walk": "samples found"}


class Failed(Exception):
    """What was asked could not be done; one line."""


class WrongCall(Exception):
    """What was typed makes no sense, whatever Stor would say to it; one line."""


class NotRunning(Failed):
    """Nobody listens where a Stor would."""


class Stor:
    """A running Stor, as its operator asks it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, name: str, **query: str) -> Any:
        """What Stor says. Raises `Failed`."""
        return self._ask("GET", f"/{name}" + (f"?{urlencode(query)}" if query else ""), None)

    def post(self, name: str, **order: Any) -> Any:
        """Have Stor do something; what it says. Raises `Failed`."""
        return self._ask("POST", f"/{name}", json.dumps(order).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            value = json.loads(response.read())
        except PermissionError as error:
            raise Failed(
                f"{self.path}: permission denied: run it as root, or as a user of the group stor"
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(
                f"{self.path}: no Stor listens there: start it, or name the socket with --socket "
                "or $STOR_ADMIN_SOCKET (admin_socket in the configuration)"
            ) from error
        except (HTTPException, ValueError, RecursionError) as error:
            raise Failed(
                f"{self.path}: no answer of a Stor to its operator: expected its admin_socket, "
                "not one for clients or of another program"
            ) from error
        except OSError as error:
            raise Failed(f"{self.path}: no answer of a Stor: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            said = value.get("error") if isinstance(value, dict) else None
            raise Failed(said or f"{self.path}: status {response.status}")
        return value


class _UnixConnection(HTTPConnection):
    """A connection of HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket. Raises `OSError`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self._path)


def add_command(
    commands: Any, name: str, what: str, example: str, run: Callable[["Stor", Any], int]
) -> Any:
    """Add a command to a parser's; `example` shows how it is called."""
    parser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"Example: {example}",
    )
    parser.add_argument(
        "--socket", metavar="PATH", help=f"$STOR_ADMIN_SOCKET, or {DEFAULT_SOCKET}, when not given"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(asking=run)
    return parser


def run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    """Do what was asked of a running Stor; the exit status."""
    path = given.socket or os.environ.get("STOR_ADMIN_SOCKET") or DEFAULT_SOCKET
    try:
        status: int = given.asking(Stor(path), given)
    except WrongCall as error:
        parser.error(f"{given.command}: {error}")
    except Failed as error:
        print(printable(f"stor: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def show(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value))


def show_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        print(printable(line))


def job_line(job: Any) -> str:
    """One job on one line."""
    parts = [f"{job['id']:>4}  {job['kind']} {job['about']}: {job['state']}"]
    if job["state"] in ("running", "paused", "waiting"):
        parts.append(f"{job['done']:.1%}")
        if job["bytes_per_second"]:
            parts.append(f"{size(job['bytes_per_second'])}/s")
        if job["eta_seconds"] is not None:
            parts.append(f"{duration(job['eta_seconds'])} left")
    did = _DID.get(job["kind"], "copies read")
    read = "" if job["kind"] == "walk" else f"{size(job['bytes_done'])} in "
    parts.append(f"{read}{job['samples_done']:,} {did}")
    if job["bad"] or job["missing"]:
        parts.append(f"{job['bad']} bad, {job['missing']} missing, {job['mended']} mended")
    if job["not_mended"]:
        left = "NOT moved" if did == "samples moved" else "NOT mended"
        parts.append(f"{job['not_mended']} {left}")
    if job["duplicates"]:
        parts.append(f"{job['duplicates']} removed that another set has, too")
    if job["reason"]:
        parts.append(job["reason"])
    return ", ".join(parts)
