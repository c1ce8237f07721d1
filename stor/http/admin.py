"""What operators ask a running Stor for, over a socket of its own: JSON in, JSON out."""

import json
import re
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NOT_FOUND, Request
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import MethodNotAllowed, NotFound

from stor import __version__
from stor.digest import Digest, MalformedDigest
from stor.http.page import Explanation
from stor.http.status import Overview, picture
from stor.jobs.job import Job, Rate
from stor.jobs.kind import Refused
from stor.jobs.long_work import LongWork
from stor.status import as_json

#: More than anybody has to say.
_MOST_BYTES = 1024 * 1024


class BadOrder(Exception):
    """What was asked for is not to be understood; one line."""


class Admin:
    """The routes; their names are those of the commands."""

    log = Logger()
    app = Klein()

    def __init__(
        self,
        work: LongWork,
        overview: Overview,
        explanation: Explanation,
    ) -> None:
        self._work = work
        self._jobs = work.jobs
        self._overview = overview
        self._explanation = explanation

    def resource(self) -> IResource:
        """The routes for a Site."""
        return self.app.resource()

    @app.route("/status", methods=("GET",))
    def status(self, request: Request) -> Deferred[bytes]:
        """How the host is."""
        return self._run(request, self._status(request))

    async def _status(self, request: Request) -> Any:
        return {"version": __version__, **picture(self._overview.status())}

    @app.route("/jobs", methods=("GET",))
    def jobs(self, request: Request) -> Deferred[bytes]:
        """All jobs, each with what it met."""
        return self._run(request, self._listed(request))

    async def _listed(self, request: Request) -> Any:
        return [as_json(job) for job in self._jobs.status()]

    @app.route("/at-risk", methods=("GET",))
    def at_risk(self, request: Request) -> Deferred[bytes]:
        """The samples with fewer good copies than disks, and the sets that lack a disk."""
        return self._run(request, self._at_risk(request))

    async def _at_risk(self, request: Request) -> Any:
        number, after = _given(request, b"set"), _given(request, b"after")
        if not number:
            return self._work.at_risk.view()
        if re.fullmatch("[0-9]{1,9}", number) is None:
            raise BadOrder(f"set: expected a number, found {number!r}")
        behind = Digest.parse(after).raw if after else None
        return await self._work.at_risk.of_set(int(number), behind)

    @app.route("/explain", methods=("GET",))
    def explain(self, request: Request) -> Deferred[bytes]:
        """What every place says of a sample, and what a client is told."""
        return self._run(request, self._explained(request))

    async def _explained(self, request: Request) -> Any:
        return await self._explanation.of(Digest.parse(_given(request, b"sha")))

    @app.route("/scrub", methods=("POST",))
    def scrub(self, request: Request) -> Deferred[bytes]:
        """Begin to scrub disks, or one sample: the jobs."""
        return self._run(request, self._scrub(request))

    async def _scrub(self, request: Request) -> Any:
        order = _order(request, roots=list, prefix=str, sha=str, rate=dict)
        roots, prefix = _roots(order), order.get("prefix", "")
        if set(prefix.lower()) - set("0123456789abcdef") or len(prefix) > 64:
            raise BadOrder(f"prefix: expected up to 64 hexadecimal digits, found {prefix!r}")
        if "sha" in order and (roots or prefix):
            raise BadOrder("expected a sha, or roots and a prefix, found both")
        rate = _rate(order["rate"]) if "rate" in order else None
        return self._views(self._work.scrubs.ask(roots, prefix, order.get("sha"), rate))

    @app.route("/drain", methods=("POST",))
    def drain(self, request: Request) -> Deferred[bytes]:
        """Begin to move all samples of sets to the others: the jobs; or what that takes."""
        return self._run(request, self._drain(request))

    async def _drain(self, request: Request) -> Any:
        order = _order(request, roots=list, rate=dict, dry_run=bool)
        roots, rate = _roots(order), _rate(order.get("rate", {}))
        if not roots:
            raise BadOrder("roots: expected a list of paths")
        if order.get("dry_run"):
            return await self._work.drains.plan(roots, rate)
        return self._views(await self._work.drains.ask(roots, rate if "rate" in order else None))

    @app.route("/rebalance", methods=("POST",))
    def rebalance(self, request: Request) -> Deferred[bytes]:
        """Begin to even out the sets: the job; or what that takes."""
        return self._run(request, self._rebalance(request))

    async def _rebalance(self, request: Request) -> Any:
        order = _order(request, rate=dict, dry_run=bool)
        rate = _rate(order.get("rate", {}))
        if order.get("dry_run"):
            return await self._work.rebalances.plan(rate)
        return self._views(await self._work.rebalances.ask(rate if "rate" in order else None))

    @app.route("/rescan", methods=("POST",))
    def rescan(self, request: Request) -> Deferred[bytes]:
        """Have disks walked from the beginning: the jobs."""
        return self._run(request, self._rescan(request))

    async def _rescan(self, request: Request) -> Any:
        roots = _roots(_order(request, roots=list))
        return self._views(self._work.walks.ask(roots))

    @app.route("/pause", methods=("POST",))
    def pause(self, request: Request) -> Deferred[bytes]:
        """Have a job rest until it is resumed."""
        return self._run(request, self._change(request, self._jobs.pause))

    @app.route("/resume", methods=("POST",))
    def resume(self, request: Request) -> Deferred[bytes]:
        """Have a job go on."""
        return self._run(request, self._change(request, self._jobs.go_on))

    @app.route("/cancel", methods=("POST",))
    def cancel(self, request: Request) -> Deferred[bytes]:
        """End a job before it is done."""
        return self._run(request, self._change(request, self._jobs.cancel))

    async def _change(self, request: Request, change: Callable[[int], Job]) -> Any:
        return self._views([change(_order(request, job=int)["job"])])[0]

    @app.route("/rate", methods=("POST",))
    def rate(self, request: Request) -> Deferred[bytes]:
        """Limit how much a job reads a second."""
        return self._run(request, self._set_rate(request))

    async def _set_rate(self, request: Request) -> Any:
        order = _order(request, job=int, rate=dict)
        job = self._jobs.set_rate(order["job"], _rate(order.get("rate", {})))
        return self._views([job])[0]

    @app.handle_errors(NotFound, MethodNotAllowed)
    def unknown(self, request: IRequest, failure: Failure) -> bytes:
        """What is no command, or is asked for in another way."""
        request.setHeader(b"Content-Type", b"application/json")
        request.setResponseCode(NOT_FOUND)
        path = request.path.decode("latin-1")
        return _encoded({"error": f"{path}: no command of this name is asked for like that"})

    def _views(self, jobs: list[Job]) -> list[dict[str, Any]]:
        numbers = {job.id for job in jobs}
        return [as_json(job) for job in self._jobs.status() if job.id in numbers]

    def _run(self, request: Request, answering: Coroutine[Any, Any, Any]) -> Deferred[bytes]:
        request.setHeader(b"Content-Type", b"application/json")
        done = Deferred.fromCoroutine(answering)
        return done.addErrback(self._failed, request).addCallback(_encoded)

    def _failed(self, failure: Failure, request: Request) -> Any:
        if failure.check(Refused, BadOrder, MalformedDigest):
            request.setResponseCode(400)
            return {"error": str(failure.value)}
        self.log.failure("Answering an operator", failure)
        request.setResponseCode(500)
        return {"error": f"an error in Stor, see its log: {failure.value!r}"}


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _given(request: Request, name: bytes) -> str:
    """What the query says of a name; nothing when it does not."""
    given: list[bytes] = (request.args or {}).get(name, [])
    return given[0].decode("latin-1") if given else ""


def _order(request: Request, **kinds: type) -> dict[str, Any]:
    """What is asked for: an object with some of these keys. Raises `BadOrder`."""
    content = b"" if request.content is None else request.content.read(_MOST_BYTES)
    try:
        order = json.loads(content or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadOrder(f"expected a JSON object: {error}") from error
    if not isinstance(order, dict):
        raise BadOrder("expected a JSON object")
    for key, value in order.items():
        if key not in kinds:
            raise BadOrder(f"{key}: unknown key, expected one of {', '.join(kinds)}")
        is_bool = isinstance(value, bool) and kinds[key] is not bool
        if not isinstance(value, kinds[key]) or is_bool:
            raise BadOrder(f"{key}: expected {kinds[key].__name__}, found {value!r}")
    if "job" in kinds and "job" not in order:
        raise BadOrder("job: missing, expected the number of a job")
    return order


def _roots(order: dict[str, Any]) -> list[str]:
    """The disks that are named. Raises `BadOrder`."""
    roots: list[Any] = order.get("roots", [])
    if not all(isinstance(root, str) for root in roots):
        raise BadOrder("roots: expected a list of paths")
    return roots


def _rate(given: dict[str, Any]) -> Rate:
    """A rate; what is not in it is not bounded. Raises `BadOrder`."""
    for key, value in given.items():
        if key not in ("bytes_per_second", "samples_per_second"):
            raise BadOrder(f"rate.{key}: unknown key")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value <= sys.float_info.max):
            raise BadOrder(
                f"rate.{key}: expected a number above 0, found {value!r}: to have a job rest, "
                "pause it"
            )
    return Rate(**given)
