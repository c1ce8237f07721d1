"""Samples with fewer good copies than their sets have disks."""

from collections.abc import Callable, Mapping
from typing import Any

from stor.jobs.kind import Refused
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.mirrors import Mirrors

#: The most samples that one answer lists.
_LISTED = 10_000


class AtRisk:
    """Which samples have fewer good copies than they should, and why."""

    def __init__(self, mirrors: Mirrors, compared: Callable[[], Mapping[str, float]]) -> None:
        """`compared` says how much of each disk that is not complete has been compared."""
        self._mirrors = mirrors
        self._compared = compared

    def view(self) -> dict[str, Any]:
        """Those samples, as their users see them.

        `sets` are those that lack a disk: all their samples have a copy less than they should.
        """
        samples = [
            {
                "sha": str(risk.digest),
                "good": risk.good,
                "wanted": risk.wanted,
                "reason": risk.reason,
            }
            for mirror in self._mirrors.mirrors
            for risk in self._mirrors.repairs.risks(mirror)
        ]
        compared = self._compared()
        sets = [
            {
                "roots": [member.root for member in mirror.members],
                "samples": self._lacking(mirror, compared),
                "reason": "; ".join(map(_shortage, filter(_is_short, mirror.members))),
            }
            for mirror in self._mirrors.mirrors
            if any(map(_is_short, mirror.members))
        ]
        return {"total": self.total, "samples": samples, "sets": sets}

    async def of_set(self, number: int, after: bytes | None) -> list[dict[str, Any]]:
        """Some samples of a set that lacks a disk, sorted, those behind the sha `after`.

        None after the last. `number` is the set's place among `sets` of `view`. Raises
        `Refused` when they cannot be listed now.
        """
        short = [mirror for mirror in self._mirrors.mirrors if any(map(_is_short, mirror.members))]
        learning = self._mirrors.learning
        if not 0 <= number < len(short) or learning is None:
            raise Refused(f"set {number}: no set with this number lacks a disk now")
        mirror, limit = short[number], _LISTED + (after is not None)
        found = await learning.listed(after or bytes(32), limit, [mirror])
        if found is None:
            raise Refused(f"{mirror}: no complete disk that could list its samples can be read")
        lacking = [member for member in mirror.members if _is_short(member)]
        return [
            {
                "sha": sha.hex(),
                "good": len(mirror.members) - len(lacking),
                "wanted": len(mirror.members),
                "reason": "; ".join(map(_shortage, lacking)),
            }
            for sha, _ in found
            if sha != after
        ]

    @property
    def total(self) -> int:
        """How many they are: all of a set where a disk is away."""
        compared = self._compared()
        return sum(
            max(self._lacking(mirror, compared), len(self._mirrors.repairs.risks(mirror)))
            for mirror in self._mirrors.mirrors
        )

    def _lacking(self, mirror: Mirror, compared: Mapping[str, float]) -> int:
        """How many samples lack a copy as a disk is away, or was not compared yet; at most."""
        names = self._mirrors.names
        short = [member for member in mirror.members if _is_short(member)]
        if names is None or not short:
            return 0
        shares = [
            compared.get(member.root, 0.0) if member.health.readable else 0.0 for member in short
        ]
        return round(names.samples(mirror) * (1 - min(shares)))


def _is_short(member: Member) -> bool:
    """Whether a disk may lack samples, or cannot be read."""
    return not (member.health.readable and member.complete)


def _shortage(member: Member) -> str:
    away = member.fault or f"{member.root}: {member.health.state.value}"
    return f"{member.root}: not complete" if member.health.readable else away
