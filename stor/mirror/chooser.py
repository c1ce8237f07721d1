"""The mirror for a new sample, from what is known of all of them."""

import random
from collections.abc import Collection, Sequence
from itertools import accumulate

import attrs
from twisted.internet.interfaces import IReactorTime

from stor.errors import NoRoom, Unavailable
from stor.mirror.mirror import Mirror
from stor.mirror.placement import choose, draw, has_plenty

#: How long mirrors are drawn by the same weights. To weigh them all takes microseconds for each,
#: and what is free on a disk does not change much meanwhile.
WEIGHED_SECONDS = 1.0


@attrs.frozen
class _Weights:
    """What was free on mirrors that had room: of each, with all before it."""

    of: Sequence[Mirror]
    until: float
    mirrors: list[Mirror]
    sums: list[int]
    #: Those that could not be written then, or that hung.
    left_out: list[Mirror]


class Chooser:
    """Chooses mirrors as `stor.mirror.placement` has it."""

    def __init__(self, clock: IReactorTime, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._weights: _Weights | None = None

    def choose(
        self,
        mirrors: Sequence[Mirror],
        length: int,
        reserve_bytes: int,
        excluded: Collection[Mirror] = (),
    ) -> Mirror | None:
        """One that has room for a sample of `length` bytes now, `None` when none has.

        One with a disk that hangs only when no other has. Raises `NoRoom` when none is there to be
        written, `Unavailable` when none is whole.
        """
        drawn = None if excluded else self._draw(mirrors, length, reserve_bytes)
        if drawn is not None:
            return drawn
        configured = [mirror for mirror in mirrors if mirror.configured_writable]
        if not configured:
            raise NoRoom(
                "no room: the operator lets no set of storages be written "
                "(writable_pairs_regex, .stor/read-only)"
            )
        writable = [m for m in configured if m.writable and m not in excluded]
        if not writable:
            faults = [m.fault for mirror in configured for m in mirror.members]
            reasons = "; ".join(fault for fault in faults if fault)
            raise Unavailable(f"no writable set of storages is whole: {reasons}")
        prompt = [mirror for mirror in writable if mirror.prompt]
        if not excluded:
            left_out = [mirror for mirror in configured if not mirror.prompt]
            self._remember(mirrors, prompt, left_out, reserve_bytes)
        for some in (prompt, writable):
            candidates = [mirror.candidate() for mirror in some]
            chosen = choose(candidates, length, reserve_bytes, self._rng.random)
            if chosen is not None:
                return some[chosen]
        return None

    def _draw(self, mirrors: Sequence[Mirror], length: int, reserve_bytes: int) -> Mirror | None:
        """One by the weights of before, if there are any and it has room now."""
        weights = self._weights
        if weights is None or weights.of is not mirrors or weights.until < self._clock.seconds():
            return None
        if any(mirror.prompt for mirror in weights.left_out):
            return None
        mirror = weights.mirrors[draw(weights.sums, self._rng.random)]
        fits = mirror.candidate().fits(length, reserve_bytes)
        return mirror if fits and mirror.prompt else None

    def _remember(
        self,
        mirrors: Sequence[Mirror],
        prompt: list[Mirror],
        left_out: list[Mirror],
        reserve_bytes: int,
    ) -> None:
        of = ((mirror, mirror.candidate()) for mirror in prompt)
        fitting = [(mirror, c) for mirror, c in of if c.fits(0, reserve_bytes)]
        if not has_plenty((candidate for _, candidate in fitting), reserve_bytes):
            self._weights = None
            return
        self._weights = _Weights(
            mirrors,
            self._clock.seconds() + WEIGHED_SECONDS,
            [mirror for mirror, _ in fitting],
            list(accumulate(candidate.free_bytes for _, candidate in fitting)),
            left_out,
        )
