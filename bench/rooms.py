"""What one request makes Stor call: `python -m bench.rooms`.

Runs a Stor on loopback under a profiler (`sys.setprofile`, in every thread) and counts for each
kind of request: *rooms*, the files of `stor/` that it enters; *moves*, the calls from one room into
another; *Python calls*, those of Twisted, Klein and the standard library included; *C calls*, the
functions written in C that Python calls.

Whatever else happens meanwhile (a probe of the disks, a body that arrives in more pieces) only
adds calls, so the least of several requests counts.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import attrs

import stor
from bench.machine import temporary_directory
from bench.process import Cores
from bench.report import columns
from bench.samples import Bodies, Body, any_digest
from bench.servers import StorClient, StorServer

#: Requests of each kind. The first starts threads and fills caches.
REPEATS = 6

#: A request is over when Stor has made no call for this long: its log line comes last.
QUIET_SECONDS = 0.1

#: Samples that are fetched before: enough that each disk is read.
OTHERS = 32

#: Clients that upload at once, to measure groups, and the samples that each stores.
CLIENTS = 16
SAMPLES_EACH = 10

KIB, MIB = 2**10, 2**20

_STOR = os.path.dirname(stor.__file__) + os.sep


@attrs.frozen
class Calls:
    """What was called while one request was answered."""

    rooms: Sequence[str]
    moves: int
    python_calls: int
    c_calls: int
    #: How often each function in Python was called, those most often called first.
    functions: Mapping[str, int] = attrs.field(factory=dict)

    def share(self, requests: int) -> "Calls":
        """What one of several requests has called, on the average."""
        moves, python, c = (
            round(count / requests) for count in (self.moves, self.python_calls, self.c_calls)
        )
        return Calls(self.rooms, moves, python, c, self.functions)

    @classmethod
    def least(cls, several: Sequence["Calls"]) -> "Calls":
        """The least of every figure, and the rooms that every request has entered."""
        return cls(
            sorted(set.intersection(*(set(calls.rooms) for calls in several))),
            min(calls.moves for calls in several),
            min(calls.python_calls for calls in several),
            min(calls.c_calls for calls in several),
            several[-1].functions,
        )


class Profiler:
    """Counts calls, in the thread that starts it and in all threads that begin later."""

    def __init__(self, below: str = _STOR) -> None:
        """`below` is the directory whose files are rooms."""
        self._below = below
        # What was called and from which room; `None` for a function written in C.
        self._log: list[tuple[CodeType, CodeType | None] | None] = []

    def start(self) -> None:
        """Begin to count."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def stop(self) -> None:
        """Count no more in this thread, nor in threads that begin later."""
        sys.setprofile(None)
        threading.setprofile(None)

    def reset(self) -> None:
        """Forget what was counted."""
        self._log.clear()

    def calls(self) -> Calls:
        """What was called since the last reset."""
        log = list(self._log)
        python = [call for call in log if call is not None]
        own = [call for call in python if call[0].co_filename.startswith(self._below)]
        moves = [
            caller
            for called, caller in own
            if caller is not None and caller.co_filename != called.co_filename
        ]
        rooms = {called.co_filename.removeprefix(self._below) for called, _ in own}
        functions = Counter(self._name(called) for called, _ in python)
        counts = len(moves), len(python), len(log) - len(python)
        return Calls(sorted(rooms), *counts, dict(functions.most_common()))

    def wait_until_quiet(self) -> None:
        """Return once nothing was called for `QUIET_SECONDS`."""
        before = -1
        while before != len(self._log):
            before = len(self._log)
            time.sleep(QUIET_SECONDS)

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        # Appending is atomic, so threads need no lock.
        if event == "call":
            self._log.append((frame.f_code, self._caller(frame)))
        elif event == "c_call":
            self._log.append(None)

    def _name(self, code: CodeType) -> str:
        return f"{code.co_filename.removeprefix(self._below)}:{code.co_qualname}"

    def _caller(self, frame: FrameType) -> CodeType | None:
        """The code in a room that a call comes from, with any callers outside in between."""
        above = frame.f_back
        while above is not None and not above.f_code.co_filename.startswith(self._below):
            above = above.f_back
        return None if above is None else above.f_code


class CountedStor(StorServer):
    """A Stor that runs under the profiler."""

    def start(self) -> None:
        command = [sys.executable, "-m", "bench.rooms", "--counted", *self.configured()]
        self._run(command, "/status", 200, pipes=True)

    def calls(self, request: Callable[[], None]) -> Calls:
        """What a request makes it call."""
        self._process.ask("begin")
        request()
        return Calls(**json.loads(self._process.ask("end")))


def count(directory: Path, repeats: int = REPEATS) -> dict[str, Calls]:
    """What each kind of request calls in a Stor with two mirrored pairs."""
    found: dict[str, Calls] = {}
    server = CountedStor(directory, Cores.one_each(), sets=2, workers=1)
    small, large = (list(islice(Bodies(size), repeats)) for size in (4 * KIB, 3 * MIB))
    others = list(islice(Bodies(4 * KIB), OTHERS))

    def measure(kind: str, requests: Sequence[Callable[[], None]]) -> None:
        found[kind] = Calls.least([server.calls(request) for request in requests])

    def post_together() -> None:
        bodies = [list(islice(Bodies(4 * KIB), SAMPLES_EACH)) for _ in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(partial(_post_all, server.base), bodies))

    try:
        server.start()
        client = StorClient(server.base)
        measure("POST 4 KiB", [partial(client.post, body) for body in small])
        measure("POST 3 MiB", [partial(client.post, body) for body in large])
        together = [server.calls(post_together) for _ in range(2)]
        found[f"{CLIENTS} clients"] = together[-1].share(CLIENTS * SAMPLES_EACH)
        measure("POST stored", [partial(client.post, body, 200) for body in small])
        for body in others:
            client.post(body)
        client.close()
        # A new process has none of the samples in memory. With others it looks at each disk once.
        server.stop()
        server.start()
        client = StorClient(server.base)
        for body in others:
            client.get(body.digest)
        measure("GET cold", [partial(client.get, body.digest) for body in small])
        measure("GET hot", [partial(client.get, small[-1].digest)] * repeats)
        measure("404", [partial(client.get, any_digest(), 404) for _ in range(repeats)])
        client.close()
    finally:
        server.stop()
    return found


def _post_all(base: str, bodies: Sequence[Body]) -> None:
    client = StorClient(base)
    for body in bodies:
        client.post(body)
    client.close()


def table(found: Mapping[str, Calls]) -> str:
    """A line for each kind of request."""
    rows = [
        (kind, *map(str, (len(calls.rooms), calls.moves, calls.python_calls, calls.c_calls)))
        for kind, calls in found.items()
    ]
    return "\n".join(columns([("", "rooms", "moves", "Python calls", "C calls"), *rows]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        "python -m bench.rooms", description="Count what one request makes Stor call."
    )
    parser.add_argument("--names", action="store_true", help="list the rooms as well")
    parser.add_argument(
        "--functions", action="store_true", help="list the functions as well, with their calls"
    )
    options = parser.parse_args()
    with temporary_directory(None) as directory:
        found = count(directory)
    print(table(found))
    if options.names:
        for kind, calls in found.items():
            print(f"\n{kind}: {' '.join(calls.rooms)}")
    if options.functions:
        for kind, calls in found.items():
            lines = "\n".join(f"{count:6} {name}" for name, count in calls.functions.items())
            print(f"\n{kind}\n{lines}")


def _serve(arguments: list[str]) -> None:
    """Run twistd under the profiler; `begin` and `end` on standard input say what to count."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the log
    profiler = Profiler()
    threading.Thread(target=_answer, args=(profiler, output), daemon=True).start()
    profiler.start()
    # After the profiler, so that it sees every thread.
    from twisted.scripts.twistd import run  # noqa: PLC0415

    sys.argv = ["twistd", *arguments]
    run()


def _answer(profiler: Profiler, output: Any) -> None:
    profiler.wait_until_quiet()
    for line in sys.stdin:
        if line == "begin\n":
            profiler.reset()
            print("counting", file=output, flush=True)
        else:
            profiler.wait_until_quiet()
            print(json.dumps(attrs.asdict(profiler.calls())), file=output, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--counted"]:
        _serve(sys.argv[2:])
    else:
        main()
