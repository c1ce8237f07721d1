"""The commands `put`, `get`, `missing` and `mirror`: from what was typed to the exit status."""

import argparse
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TextIO

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from stor.client.api import CONNECTIONS, RETRY_SECONDS, Client, ClientError, GivenUp, Stopped
from stor.client.files import Problem, lines, quoted, walk
from stor.client.get import BadTemplate, Get, Template
from stor.client.many import Outcome, Report
from stor.client.mirror import Directory, Kept, Mirror, Target
from stor.client.missing import Missing
from stor.client.position import at_home, beside
from stor.client.progress import Progress, Total
from stor.client.put import Put
from stor.client.relay import Relay
from stor.client.settings import BadSettings, Settings, settings
from stor.reactor import own_reactor
from stor.threads import Outcomes, Pool, ThreadPool, start_thread

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


#: The commands of this room.
COMMANDS = ("put", "get", "missing", "mirror")

#: What the status is when a signal has ended it, as shells have it: 128 and the signal's number.
_SIGNALLED = 128

#: What may be asked for.
_MOST_CONNECTIONS = 1000
_MOST_SECONDS = 1e9

_HASHING_THREADS = min(os.cpu_count() or 1, 8)

_URL = "The URL is --url, or $STOR_URL, or `url` in ~/.config/stor/client.json. "

_EPILOG = (
    "User and password are in the URL, or `user` and `password` in ~/.config/stor/client.json, "
    "or in ~/.netrc. "
    "Exit status: 0 all is done; 1 some failed or were passed over, each named on standard error; "
    "2 a wrong call; 128 + N ended by signal N. Called again, it goes on from there."
)


class Work(Protocol):
    """What a command does."""

    async def run(self, names: Any) -> None:
        """Do it."""

    def stop(self) -> None:
        """Do no more."""


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's."""
    putting = _add(commands, "put", "store files", "Store files, and those below directories.")
    putting.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, a directory, or - for a list of names"
    )
    putting.add_argument(
        "-0", "--null", action="store_true", help="the names of the list end with NUL, not newline"
    )
    getting = _add(commands, "get", "fetch samples", "Fetch samples into a directory.")
    getting.add_argument("shas", nargs="+", metavar="SHA", help="a SHA-256, or - for a list")
    getting.add_argument(
        "-C", "--directory", default=".", metavar="DIR", help="where to; default: ."
    )
    getting.add_argument(
        "--name", default="SHA", help="the file's name: SHA (default), aa/bb/SHA, SHA.bin"
    )
    asking = _add(
        commands,
        "missing",
        "say what is not stored",
        "Print those lines of a list, each with a SHA-256 at its beginning, that are not stored.",
    )
    asking.add_argument("shas", nargs="*", default=["-"], metavar="SHA", help="default: - (a list)")

    add_mirror(_add(commands, "mirror", "copy what a Stor has", MIRRORED, with_url=False))


def _add(commands: Any, name: str, brief: str, description: str, *, with_url: bool = True) -> Any:
    epilog = (_URL if with_url else "") + _EPILOG
    parser = commands.add_parser(name, help=brief, description=description, epilog=epilog)
    if with_url:
        parser.add_argument(
            "--url", metavar="URL", help="the Stor, such as http://stor.example:8080"
        )
    parser.add_argument("--json", action="store_true", help="print an object a line")
    parser.add_argument(
        "--connections",
        type=_from_one,
        default=CONNECTIONS,
        metavar="N",
        help="how many requests are under way at once; default: 16",
    )
    parser.add_argument(
        "--retry",
        type=_seconds,
        default=RETRY_SECONDS,
        metavar="SECONDS",
        help="for how long what may still succeed is tried again; default: 120",
    )
    return parser


def _from_one(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= _MOST_CONNECTIONS:
        expected = f"a number from 1 to {_MOST_CONNECTIONS}"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, found {text}")
    return seconds


def run(given: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    try:
        template = Template(getattr(given, "name", "SHA"))
        if given.command == "mirror":
            ends = mirrored(given, os.environ)
        else:
            ends = Ends(settings(given.url, os.environ))
    except (BadSettings, BadTemplate) as error:
        print(f"stor: {error}", file=sys.stderr)
        return 2
    return _Run(given, ends, template).status()


class _Run:
    """One command, from its start to its end."""

    def __init__(self, given: argparse.Namespace, ends: Ends, template: Template) -> None:
        critical = FilteringLogObserver(
            textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(LogLevel.critical)]
        )
        globalLogBeginner.beginLoggingTo([critical], redirectStandardIO=False)
        self._reactor = own_reactor()
        self._given = given
        self._status = 0
        self._progress: Progress | None = None
        self._troubled = False
        self._client = self._client_of(ends.stor, self._moved)
        outcomes = Outcomes(self._reactor)

        def pool(name: str, threads: int) -> ThreadPool:
            return ThreadPool(outcomes, name, threads)

        naming = pool("stor-names", 1)
        self._total = Total()
        self._names: Iterable[Any]
        self._count: Callable[[], Iterator[object]] | None = None
        self._work: Work
        if given.command == "mirror" and ends.from_directory is None:
            self._names = ()
            self._work = self._mirror(ends, template, pool("stor-write", 8), naming)
        elif given.command in ("put", "mirror"):
            if ends.from_directory is not None:
                directory = ends.from_directory
                self._names = visible(directory)
                self._count = lambda: visible(directory)
            else:
                self._names = walk(self._listed(given.paths, b"\0" if given.null else b"\n"))
                if "-" not in given.paths:
                    self._count = lambda: walk(given.paths)
            self._work = Put(
                self._client,
                pool("stor-hash", _HASHING_THREADS),
                pool("stor-read", 4),
                self._report,
                hashing_threads=_HASHING_THREADS,
                connections=given.connections,
                by_name=ends.from_directory is not None,
            )
        else:
            self._names = self._listed(given.shas, b"\n")
            if "-" not in given.shas:
                self._total = Total(len(given.shas), final=True)
            if given.command == "get":
                self._work = Get(
                    self._client,
                    pool("stor-write", 8),
                    naming,
                    self._report,
                    given.directory,
                    template,
                    connections=given.connections,
                )
            else:
                self._work = Missing(self._client, naming, self._say)

    def _client_of(self, found: Settings, moved: Callable[[int], None]) -> Client:
        return Client(
            self._reactor,
            found.url,
            found.credentials,
            connections=self._given.connections,
            retry_seconds=self._given.retry,
            trouble=self._trouble,
            moved=moved,
        )

    def _mirror(self, ends: Ends, template: Template, writing: Pool, naming: Pool) -> Mirror:
        """A Stor into a directory or another one."""
        given, source = self._given, self._client
        to, directory = ends.to, ends.to_directory

        def target(report: Report) -> Target:
            if to is not None:
                # What passes is counted once.
                client = self._client_of(to, lambda count: None)
                return Relay(source, client, writing, report, connections=given.connections)
            get = Get(
                source,
                writing,
                naming,
                report,
                directory or ".",
                template,
                connections=given.connections,
            )
            return Directory(get, directory or ".", writing)

        return Mirror(
            source,
            target,
            ends.kept(given, os.environ),
            naming,
            self._report,
            self._tell,
            self._reactor.seconds,
            follow=given.follow,
        )

    def status(self) -> int:
        """Run to the end; the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) has it
                signal.signal(number, self._signalled)
        self._reactor.callWhenRunning(self._begin)
        self._reactor.run(installSignalHandlers=False)
        return self._status

    def _begin(self) -> None:
        if sys.stderr.isatty():
            self._progress = Progress(
                sys.stderr,
                self._reactor,
                lambda: shutil.get_terminal_size().columns,
                self._total,
            )
            if self._count is not None:
                start_thread(self._count_all, "stor-count")
        working = Deferred.fromCoroutine(self._work.run(self._names))
        working.addErrback(self._ended_badly).addCallback(lambda _: self._end())

    def _count_all(self) -> None:
        """How much there is to do, in a thread, for who watches."""
        for _ in self._count() if self._count is not None else ():
            self._total.files += 1
        self._total.final = True

    def _ended_badly(self, failure: Failure) -> None:
        if not failure.check(ClientError):
            self._tell(f"internal error: {failure.getTraceback()}")
        elif not failure.check(Stopped):
            self._tell(str(failure.value))
        self._status = max(self._status, 1)

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.close()
        self._reactor.stop()

    def _signalled(self, number: int, frame: object) -> None:
        if self._status >= _SIGNALLED:  # the second one: a disk or a list may never answer
            os._exit(self._status)
        self._status = _SIGNALLED + number
        self._reactor.callFromThread(self._work.stop)
        # Whatever a thread waits for, names on a terminal say.
        self._reactor.callFromThread(self._reactor.callLater, 5.0, os._exit, self._status)

    def _listed(self, arguments: list[str], separator: bytes) -> Iterator[str]:
        for argument in arguments:
            if argument == "-":
                if sys.stdin is None:
                    raise GivenUp("standard input: it is closed")
                try:
                    yield from lines(sys.stdin.buffer, separator)
                except OSError as error:
                    raise GivenUp(f"standard input: {error.strerror}") from error
            else:
                yield argument

    def _report(self, outcome: Outcome) -> None:
        """Tell of a file that is done with."""
        self._troubled = False
        if self._progress is not None:
            self._progress.done(1)
            if outcome.state == "present":
                self._progress.moved(outcome.size or 0)
        if outcome.state == "failed":
            self._status = max(self._status, 1)
            name = outcome.path if outcome.sha is None else outcome.sha
            self._tell(f"{printable_line(name or '')}: {outcome.error}")
        if self._given.command == "mirror" and outcome.state == "present" and not self._given.json:
            return
        if self._given.json:
            told = attrs.asdict(outcome, filter=lambda _, value: value is not None)
            self._print(json.dumps(told))
        elif outcome.state != "failed":
            path, mark = quoted(outcome.path or "")
            self._print(f"{mark}{outcome.sha}" + (f"  {path}" if path else ""))

    def _say(self, state: str, line: str) -> None:
        """Tell of a line of a list."""
        if self._given.json:
            self._print(json.dumps({"state": state, "line": line}))
        if state == "missing":
            if not self._given.json:
                self._print(line)
            return
        self._status = max(self._status, 1)
        why = {
            "malformed": "expected the 64 hexadecimal digits of a SHA-256 at its beginning",
            "unknown": "unknown: a storage that could hold it is away or not looked through yet",
        }
        self._tell(f"{printable_line(line)}: {why[state]}")

    def _moved(self, count: int) -> None:
        if self._progress is not None:
            self._progress.moved(count)

    def _trouble(self, line: str) -> None:
        """Tell once that something is tried again."""
        if not self._troubled:
            self._troubled = True
            self._tell(f"{line}; trying again")

    def _print(self, line: str) -> None:
        if self._progress is not None:
            self._progress.clear()
        try:
            sys.stdout.buffer.write(os.fsencode(f"{line}\n"))
            sys.stdout.buffer.flush()
        except OSError:  # nobody reads it any more, or there is no room for it
            self._status = max(self._status, 1)
            # What is left in the buffer is not tried again at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._work.stop()

    def _tell(self, line: str) -> None:
        if self._progress is not None:
            self._progress.clear()
        _write(sys.stderr, f"stor: {line}\n")


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        pass


def printable_line(text: str) -> str:
    """A name as one line that a terminal can show."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    return shown if shown.isprintable() else repr(shown)[1:-1]
