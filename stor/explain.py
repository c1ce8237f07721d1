"""Why a sample is found, or is not: what every place says of it."""

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from stor.digest import Digest
from stor.disk.copy import Copy
from stor.errors import Unavailable
from stor.mirror.member import ANSWER_SECONDS, Member
from stor.mirror.mirrors import Mirrors
from stor.s3.bucket import Bucket
from stor.s3.client import Stat
from stor.threads import settle


class Explainer:
    """Asks every disk of a sample, and S3, also those that a request would not ask."""

    def __init__(
        self,
        mirrors: Mirrors,
        bucket: Callable[[], Bucket | None],
        scrubbed: Callable[[], Mapping[str, float]],
    ) -> None:
        """`bucket` is what is asked now, where S3 is.

        `scrubbed` says when each disk was scrubbed whole, in seconds since the epoch.
        """
        self._mirrors = mirrors
        self._bucket = bucket
        self._scrubbed = scrubbed

    async def places(self, digest: Digest) -> list[dict[str, Any]]:
        """What each disk and S3 say, for JSON. Each has some seconds for its answer."""
        of_s3 = Deferred.fromCoroutine(self._s3(digest))  # beside the disks
        return [*await self._disks(digest), *await of_s3]

    async def _s3(self, digest: Digest) -> list[dict[str, Any]]:
        bucket = self._bucket()
        if bucket is None:
            return []
        place: dict[str, Any] = {
            "root": "s3",
            "state": "available" if bucket.fault is None else "not available",
            "complete": True,
            "index": None,
            "scrubbed": None,
        }
        if bucket.fault is not None:
            return [{**place, "says": f"not asked: {bucket.fault}"}]
        try:
            found = await bucket.look(digest)
        except Unavailable as error:
            return [{**place, "says": f"cannot be used: {error}"}]
        if found is None:
            return [{**place, "says": "has nothing under its name"}]
        return [{**place, **_has(bucket.place(digest), found)}]

    async def _disks(self, digest: Digest) -> list[dict[str, Any]]:
        mirrors, names = self._mirrors.mirrors, self._mirrors.names
        known = None if names is None else names.find(digest)
        members = [member for mirror in mirrors for member in mirror.members]
        able = [member for member in members if member.health.readable]
        answers = await settle([member.check(digest, None, ANSWER_SECONDS) for member in able])
        said = dict(zip(able, answers, strict=True))
        places = []
        for mirror in mirrors:
            index = "not used"
            if known is not None:
                index = "has it" if mirror in known.holders else "does not have it"
                index = "does not know all of this set" if mirror in known.unsure else index
            risks = {risk.digest: risk for risk in self._mirrors.repairs.risks(mirror)}
            for member in mirror.members:
                place: dict[str, Any] = {
                    "root": member.root,
                    "state": member.health.state.value,
                    "complete": member.complete,
                    "index": index,
                    "scrubbed": self._scrubbed().get(member.root),
                    **_said(member, said.get(member), digest),
                }
                if digest in risks:
                    place["repair"] = risks[digest].reason
                places.append(place)
        return places


def _said(member: Member, answer: Copy | Failure | None, digest: Digest) -> dict[str, Any]:
    """What one disk said, and what is known of its copy."""
    if not member.health.readable:
        return {"says": f"not asked: {member.fault or member.health.state.value}"}
    if answer is None:
        return {"says": "has nothing under its name"}
    if isinstance(answer, Failure):
        return {"says": f"cannot be used: {answer.value}"}
    verified = answer.mark is not None and member.disk.verified.knows(digest, answer.mark)
    return {**_has(answer.path, answer), "verified_lately": verified}


def _has(path: str, found: Copy | Stat) -> dict[str, Any]:
    return {
        "says": "has it",
        "path": path,
        "size": found.size,
        "modified": found.modified_ns / 1e9,
    }
