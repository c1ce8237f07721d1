"""Which disk belongs to which storage root. No I/O."""

from collections.abc import Sequence

import attrs

from stor.disk.identity import Marker


@attrs.frozen
class Judgement:
    """What to do with a disk: use it with `marker`, or leave it alone because of `refusal`.

    `waits` means that the first round of probes may still change that.
    """

    marker: Marker | None = None
    refusal: str | None = None
    waits: bool = False


class Roster:
    """The memory of a host for its disks, which every one of them carries in its marker.

    A disk without a marker is used for the first time when nobody knows of another that belongs
    in its place: the rest of its set must have been heard, unless it already holds samples, as
    the disks of the older Stor do.
    """

    def __init__(self, sets: Sequence[Sequence[str]]) -> None:
        """`sets` are the storage roots of the configuration."""
        self._sets = {root: index for index, roots in enumerate(sets) for root in roots}
        self._siblings = {root: [r for r in roots if r != root] for roots in sets for root in roots}
        self._uuids: dict[str, str] = {}
        self._set_uuids: dict[int, str] = {}
        self._heard: set[str] = set()
        #: Until every disk had its chance to be heard, one without a marker waits.
        self.patient = True

    def judge(self, root: str, marker: Marker | None, *, empty: bool, writable: bool) -> Judgement:
        """Judge the disk that is mounted at `root`; `empty` when it holds no samples.

        A disk that is not `writable` is used without a marker when it has none.
        """
        self._heard.add(root)
        for other, known in (marker.disks if marker else {}).items():
            if other in self._sets:
                self._uuids.setdefault(other, known)
        if marker is None:
            return self._judge_unmarked(root, empty, writable)
        return self._judge_marked(root, marker)

    def heed(self, root: str, marker: Marker | None) -> None:
        """Learn from a disk that is in use already, when the configuration is read again."""
        self.judge(root, marker, empty=False, writable=False)

    def outdated(self, marker: Marker | None) -> bool:
        """Whether a marker names other disks than are known by now."""
        return marker is not None and marker.disks != self._uuids

    def marked(self, root: str, marker: Marker) -> None:
        """The disk at `root` carries `marker`; only now may the others be told of it."""
        self._uuids[root] = marker.uuid

    def _judge_unmarked(self, root: str, empty: bool, writable: bool) -> Judgement:
        if root in self._uuids:
            return Judgement(
                refusal=f"{root}: this disk has no marker and {self._uuids[root]} belongs here: "
                "mount the right disk, or give this one its place with `stor adopt`"
            )
        unheard = [other for other in self._siblings[root] if other not in self._heard]
        if self.patient or (empty and unheard):
            who = unheard[0] if unheard else "another disk"
            return Judgement(
                refusal=f"{root}: this disk has no marker, and {who}, which could tell whether it "
                "is the right one, has not been heard; `stor adopt` gives it its place",
                waits=self.patient,
            )
        if not writable:
            return Judgement()
        marker = Marker.new(self._set_uuids.get(self._sets[root]))
        return self._accept(root, marker)

    def _judge_marked(self, root: str, marker: Marker) -> Judgement:
        known = self._uuids.get(root)
        if known not in (None, marker.uuid, *marker.replaces):
            return Judgement(
                refusal=f"{root}: this is disk {marker.uuid} and {known} belongs here: mount the "
                "right disk, or give this one its place with `stor adopt`"
            )
        twin = next((r for r, u in self._uuids.items() if u == marker.uuid and r != root), None)
        if twin is not None:
            return Judgement(refusal=f"{root}: this is the disk that belongs at {twin}")
        if self._set_uuids.get(self._sets[root], marker.set) != marker.set:
            return Judgement(refusal=f"{root}: this disk belongs to another set")
        self.marked(root, marker)
        return self._accept(root, marker)

    def _accept(self, root: str, marker: Marker) -> Judgement:
        self._set_uuids[self._sets[root]] = marker.set
        return Judgement(attrs.evolve(marker, disks={**self._uuids, root: marker.uuid}))
