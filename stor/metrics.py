"""What Stor counts and measures, for statsd and for Prometheus; docs/metrics.md has every name."""

import re
from functools import cache
from typing import Protocol

from stor.prometheus import Figures

#: The place of samples that come from no disk.
S3_STORAGE = "s3"

_GETTING = ("GET", "HEAD")
_PUTTING = ("POST", "PUT")
_METHODS = _GETTING + _PUTTING

#: A client has got what it asked for.
_GOT = (200, 206, 304)

#: statsd's names for why a request failed; those that 5xx alone tell are not among them.
_ERRORS = {
    ("get", "malformed_sha"): "error.get.malformed_sha.count",
    ("get", "not_found_disk"): "error.get.not_found_old.count",
    ("get", "not_found_s3"): "error.get.not_found_hcp.count",
    ("post", "malformed_sha"): "error.post.malformed_sha.count",
    ("post", "bad_sha"): "error.post.bad_sha.count",
    ("post", "no_space"): "error.post.no_space.count",
}

#: By status: what became of an upload, and statsd's name for it.
_STORED = {
    201: ("write", "success.post.write.count"),
    200: ("duplicate", "success.post.duplicate.count"),
}


class Answered(Protocol):
    """A request that is over, as `stor.http.access.Served` has it."""

    @property
    def method(self) -> str:
        """Any text."""

    @property
    def route(self) -> str:
        """What was asked for: `sample`, or the name of a page."""

    @property
    def status(self) -> int:
        """The status that was sent, 0 when none was."""

    @property
    def causes(self) -> tuple[str, ...]:
        """Why it failed, a word each."""

    @property
    def storage(self) -> str | None:
        """The root of the disk that the sample came from, or `S3_STORAGE`."""

    @property
    def sent_bytes(self) -> int:
        """Of the answer's body."""

    @property
    def received_bytes(self) -> int:
        """Of the request's body."""

    @property
    def seconds(self) -> float:
        """From the end of its headers to the end of the answer."""

    @property
    def outcome(self) -> str:
        """`done`, or else the client got less than the whole answer."""


class Lines(Protocol):
    """A statsd server, as `stor.statsd.Statsd` reaches it."""

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""

    def time(self, name: str, seconds: float) -> None:
        """One more of the times."""


class Metrics:
    """Every figure of one Stor. Nothing here waits or fails, or is known to the process at large.

    All of it is kept in `figures`; what statsd knows too goes there as it happens.
    """

    def __init__(self) -> None:
        self.figures = Figures()
        self._statsd: Lines | None = None

    def send_to(self, statsd: Lines | None) -> None:
        """From now on figures are sent there, too."""
        self._statsd = statsd

    def served(self, served: Answered) -> None:
        """Count a request that is over, well or badly."""
        figures, route = self.figures, served.route
        method = served.method if served.method in _METHODS else "other"
        by_method = (method,)
        seconds = max(0.0, served.seconds)
        done = served.outcome == "done"
        figures.requests[route, method, str(served.status)] += 1
        figures.request_seconds[by_method].observe(seconds)
        figures.sent_bytes[by_method].observe(served.sent_bytes)
        if served.received_bytes:
            figures.received_bytes[by_method].observe(served.received_bytes)
        if not done:
            figures.cut[by_method] += 1
        if route == "status":
            figures.healthchecks[()] += 1
            self._count("healthcheck.count")
        elif route == "upload" and served.method == "PATCH":
            self._put(served, done)
        elif route != "sample":
            return
        elif method in _GETTING:
            self._got(served, seconds, done)
        elif method in _PUTTING:
            self._put(served, done)

    def lookup(self, attempts: int, seconds: float) -> None:
        """A sample was looked for: the places that were asked, until it was found or given up."""
        seconds = max(0.0, seconds)
        self.figures.lookup_seconds[()].observe(seconds)
        self.figures.lookup_attempts[()].observe(attempts)
        if self._statsd is not None:
            self._time("lookup.time", seconds)
            self._count(f"lookup.attempt.{attempts}.count")

    def cache(self, hit: bool, seconds: float) -> None:
        """The location cache was asked for a sample's place."""
        result = "hit" if hit else "miss"
        seconds = max(0.0, seconds)
        self.figures.cache[result,] += 1
        self.figures.cache_seconds[()].observe(seconds)
        self._count(f"cache.{result}")
        self._time("cache.time", seconds)

    def _got(self, served: Answered, seconds: float, done: bool) -> None:
        self._count("request.get.count")
        storage, status = served.storage, served.status
        if storage is not None and done and status in _GOT:
            self.figures.served_seconds[storage,].observe(seconds)
            self.figures.served_bytes[storage,] += served.sent_bytes
            if self._statsd is not None:
                count, size, time = _names_of(storage)
                self._count(count)
                self._count(size, served.sent_bytes)
                self._time(time, seconds)
        if status >= 500:
            self._count("error.get.500.count")
        if served.causes:
            self._failed("get", served)

    def _put(self, served: Answered, done: bool) -> None:
        self._count("request.post.count")
        # A part of a sample is kept, and nothing stored: then no storage is named.
        if done and served.status in _STORED and served.storage is not None:
            result, name = _STORED[served.status]
            self.figures.stored[result,] += 1
            self._count(name)
        if served.status >= 500 and served.status != 507:
            self._count("error.post.unknown.count")
        self._failed("post", served)

    def _failed(self, operation: str, served: Answered) -> None:
        for cause in served.causes:
            self.figures.errors[operation, cause] += 1
            name = _ERRORS.get((operation, cause))
            if name is not None:
                self._count(name)

    def _count(self, name: str, number: int = 1) -> None:
        if self._statsd is not None:
            self._statsd.count(name, number)

    def _time(self, name: str, seconds: float) -> None:
        if self._statsd is not None:
            self._statsd.time(name, seconds)


@cache
def _names_of(storage: str) -> tuple[str, str, str]:
    """What samples from there are counted under: how many, their bytes, their times."""
    disk = re.sub("[^A-Za-z0-9]+", "-", storage).strip("-")
    name = "success.get.ok_hcp" if storage == S3_STORAGE else f"success.get.ok_old.{disk}"
    return f"{name}.count", f"{name}.size", f"{name}.time"
