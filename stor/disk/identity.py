"""Which disk belongs where: the markers that disks carry, and what follows from them together."""

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import attrs

from stor.disk.disk import OWN_DIRECTORY, Disk, DiskAway, replacing, write_all
from stor.disk.journal import Position

MARKER_PATH = f"{OWN_DIRECTORY}/disk.json"
#: What a Stor holds while it uses the disk; it has no content.
LOCK_PATH = f"{OWN_DIRECTORY}/lock"

#: The file of the state directory with the disks.
DISKS_FILE = "disks.json"

#: A marker names every disk of its host; even a thousand of them stay below this.
_MARKER_BYTES = 1024 * 1024

#: Whether a text is a UUID as `str` writes it, ten times sooner than by reading it: with 200 disks
#: each look at all of them meets 40,000.
_is_uuid = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class BadMarker(Exception):
    """The marker cannot be read as one."""


@attrs.frozen
class Marker:
    """What a disk knows of itself, and of the other disks of its host. `.stor/disk.json`.

    `uuid` is the disk's own; `set` is the same on all disks of a set; `disks` tells which UUID
    belongs to which storage root; `replaces` are the UUIDs of the disks that stood here before.

    `complete` is the proof that the disk lacks no sample of its set: the UUIDs of the disks that
    were empty together with it when the set was made, or that it was compared with, itself
    included. A set with any other disk in it proves nothing. `adopted` says that an operator gave
    the disk its place and no Stor has used it there yet.
    """

    uuid: str
    set: str
    disks: Mapping[str, str] = attrs.field(factory=dict)
    replaces: tuple[str, ...] = ()
    complete: tuple[str, ...] = ()
    adopted: bool = False

    @classmethod
    def new(cls, set_uuid: str | None = None) -> "Marker":
        """The marker of a disk that is used for the first time."""
        return cls(_new_uuid(), set_uuid or _new_uuid())

    @classmethod
    def parse(cls, data: bytes) -> "Marker":
        """Read a marker, also one with keys of another version. Raises `BadMarker`."""
        try:
            value = json.loads(data)
            return cls(
                str(uuid.UUID(value["uuid"])),
                str(uuid.UUID(value["set"])),
                {
                    str(root): known if _is_uuid(known) else str(uuid.UUID(known))
                    for root, known in value["disks"].items()
                },
                _uuids(value["replaces"]),
                _uuids(value.get("complete", ())),
                value.get("adopted") is True,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "remove it, and give the disk its place with `stor adopt`"
            raise BadMarker(f"{MARKER_PATH} is damaged ({error!r}): {remedy}") from error

    def encode(self) -> bytes:
        """The marker as it stands on a disk."""
        # A Stor that does not know `complete` asks for `rebuilding`.
        value = {**attrs.asdict(self), "rebuilding": not self.complete}
        return json.dumps(value, indent=2).encode() + b"\n"


def read_marker(disk: Disk, root_fd: int, *, from_device: bool = False) -> Marker | None:
    """The marker of a disk, `None` when it has none. Raises `BadMarker`, `OSError`.

    `from_device`: not what the kernel still has in memory of a disk that may be dead.
    """
    try:
        fd = disk.files.open_to_read(MARKER_PATH, root_fd)
    except FileNotFoundError:
        return None
    try:
        if from_device:
            disk.files.forget_cached(fd)
        return Marker.parse(disk.files.read(fd, _MARKER_BYTES, 0))
    finally:
        disk.files.close(fd)


def write_marker(disk: Disk, marker: Marker, *, probing: bool = False) -> None:
    """Put a marker on a disk, atomically and durably. Raises `DiskAway`, `OSError`."""
    files = disk.files
    with disk.entered(probing=probing) as root_fd:
        create = partial(disk.in_own_directory, root_fd)
        with replacing(files, MARKER_PATH, root_fd, create) as fd:
            write_all(files, fd, marker.encode())
        for directory in (OWN_DIRECTORY, "."):
            disk.sync_directory(directory, root_fd)


def mark_complete(disk: Disk, proof: tuple[str, ...], uuids: Collection[str]) -> Marker:
    """Note in a disk's marker what proves that it is complete, nothing if it is not: the marker.

    Raises `BadMarker`, `OSError`; `DiskAway`, also when it is a disk with none of these `uuids`.
    """
    with disk.entered() as root_fd:
        marker = read_marker(disk, root_fd)
    if marker is None or marker.uuid not in uuids:
        raise DiskAway(f"{disk.root}: another disk is there than before")
    marker = attrs.evolve(marker, complete=proof)
    write_marker(disk, marker)
    return marker


class DiskLock:
    """Keeps a disk for one Stor, by flock(2): the kernel lets go of it when the process ends."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether the disk is kept."""
        return self._fd is not None

    def take(self, *, writable: bool) -> None:
        """Hold the disk, or go on holding it; one that is not written needs no lock made for it.

        Raises `DiskAway` when another process holds it, `OSError` when it cannot be locked.
        """
        files = self._disk.files
        with self._disk.entered() as root_fd:
            fd = self._open(root_fd, writable)
            if fd is None or self._holds(fd):
                if fd is not None:
                    files.close(fd)
                return
            self.release()
            try:
                files.lock(fd)
            except BlockingIOError as error:
                files.close(fd)
                raise DiskAway(
                    f"{self._disk.root}: another Stor uses this disk: end it, or take the root out "
                    "of one of the two configurations"
                ) from error
            except BaseException:
                files.close(fd)
                raise
            self._fd = fd

    def release(self) -> None:
        """Let another process have the disk. Never raises."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # nothing was written
                self._disk.files.close(fd)

    def _holds(self, fd: int) -> bool:
        """Whether this file is the one that is held: not another disk's in its place."""
        if self._fd is None:
            return False
        mine, found = self._disk.files.fstat(self._fd), self._disk.files.fstat(fd)
        return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)

    def _open(self, root_fd: int, writable: bool) -> int | None:
        """The file, open to be read only: a disk can then be remounted read-only."""
        files = self._disk.files
        try:
            return files.open_to_read(LOCK_PATH, root_fd)
        except FileNotFoundError:
            if not writable:
                return None
        with suppress(FileExistsError):  # another Stor was quicker, and has it
            files.close(
                self._disk.in_own_directory(root_fd, lambda: files.create(LOCK_PATH, root_fd))
            )
        return files.open_to_read(LOCK_PATH, root_fd)


@attrs.frozen
class Remembered:
    """What the state directory knows of a disk: its UUID, and whether it had samples.

    `journal` says which one it had (`DiskNames.identity`), and how far that had come; `None`:
    nobody has noted that.
    """

    uuid: str
    samples: bool
    journal: tuple[int, Position] | None = None


def parse_remembered(data: bytes) -> dict[str, Remembered]:
    """The disks in a file of the state directory, by their roots. Raises `ValueError`."""
    try:
        return {
            str(root): Remembered(
                str(uuid.UUID(disk["uuid"])),
                disk["samples"] is not False,
                _journal(disk.get("journal")),
            )
            for root, disk in json.loads(data)["disks"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not what Stor has written: {error!r}") from error


def encode_remembered(disks: Mapping[str, Remembered]) -> bytes:
    """The file of the state directory that `parse_remembered` reads."""
    fields = ("uuid", "samples", "journal")
    value = {
        "disks": {
            root: {field: getattr(disk, field) for field in fields}
            for root, disk in sorted(disks.items())
        }
    }
    return json.dumps(value, indent=2).encode() + b"\n"


@attrs.frozen
class Judgement:
    """What to do with a disk: use it with `marker`, or leave it alone because of `refusal`.

    `waits` means that the first round of probes may still change that.
    """

    marker: Marker | None = None
    refusal: str | None = None
    waits: bool = False


class KnownDisks:
    """Which disk belongs at which storage root, and which of them are complete. No I/O.

    What one disk says of the others in its marker holds for all of them. A disk without a marker
    is used for the first time when nobody knows of another that belongs in its place: the rest of
    its set must have been heard, unless it already holds samples, as the disks of the older Stor
    do.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[str]],
        remembered: Mapping[str, Remembered] = MappingProxyType({}),
    ) -> None:
        """`sets` are the storage roots of the configuration.

        `remembered` is what an earlier process has known (`remembered`).
        """
        self._set_of = {root: tuple(roots) for roots in sets for root in roots}
        self._before = dict(remembered)
        #: The roots where samples were seen.
        self._samples = {root for root, disk in remembered.items() if disk.samples}
        self._uuids = {r: disk.uuid for r, disk in remembered.items() if r in self._set_of}
        #: How far the journals of disks have come, by their UUIDs.
        self._journals = {disk.uuid: disk.journal for disk in remembered.values() if disk.journal}
        self._set_uuids: dict[tuple[str, ...], str] = {}
        #: The roots whose disks were looked at, and whether the disk was new: empty, unmarked.
        self._heard: dict[str, bool] = {}
        #: The UUIDs that the disks of a set get which were all new at one time.
        self._planned: dict[str, str] = {}
        #: The disks that held no sample when they were seen to be in their set.
        self._joined_empty: set[str] = set()
        #: What the disks that are in use carry.
        self._carried: dict[str, Marker] = {}
        self._complete: set[str] = set()
        #: Until every disk had its chance to be heard, one without a marker waits.
        self._patient = True

    def stop_waiting(self) -> None:
        """Every disk had its chance to be heard."""
        self._patient = False

    def judge(self, root: str, marker: Marker | None, *, empty: bool, writable: bool) -> Judgement:
        """Judge the disk that is mounted at `root`; `empty` when it holds no samples.

        A disk that is not `writable` is used without a marker when it has none.
        """
        self._heard[root] = marker is None and empty and writable
        if not empty:
            self._samples.add(root)
        for other, known in (marker.disks if marker else {}).items():
            if other in self._set_of and other not in self._uuids:
                self._uuids[other] = known
                self._weigh(other)
        if marker is None:
            return self._judge_unmarked(root, empty, writable)
        return self._judge_marked(root, marker, empty)

    def remembered(self) -> dict[str, Remembered]:
        """What the next process is to know: also of disks that are not configured any more."""
        left_out = {root: disk for root, disk in self._before.items() if root not in self._set_of}
        known = {
            root: Remembered(uuid, root in self._samples, self._journals.get(uuid))
            for root, uuid in self._uuids.items()
        }
        return left_out | known

    def journal(self, uuid: str) -> tuple[int, Position] | None:
        """Which journal a disk has, and how far that has come at least; `None`: unknown."""
        return self._journals.get(uuid)

    def came_to(self, uuid: str, identity: int, position: Position) -> None:
        """The journal of a disk is this one, and has come this far at least."""
        before = self._journals.get(uuid)
        if before is not None and before[0] == identity:
            position = max(before[1], position)
        self._journals[uuid] = identity, position

    def left_out(self) -> list[str]:
        """The roots that were taken out of the configuration with samples that only they hold."""
        held = set(self._uuids.values())
        held.update(*(marker.complete for marker in self._carried.values()))
        return [
            root
            for root, disk in self._before.items()
            if root not in self._set_of and disk.samples and disk.uuid not in held
        ]

    def emptied(self, root: str) -> None:
        """All samples of the disk at `root` are elsewhere by now: it can be taken out."""
        self._samples.discard(root)

    def heed(self, root: str, marker: Marker | None) -> None:
        """Learn from a disk that is in use already, when the configuration is read again."""
        samples = root in self._samples
        self.judge(root, marker, empty=False, writable=False)
        if not samples:
            self._samples.discard(root)

    def outdated(self, root: str, marker: Marker | None) -> bool:
        """Whether the marker of the disk at `root` says something else than is known by now."""
        return marker is not None and (
            marker.disks != self._uuids or marker.complete != self._proof(root, marker)
        )

    def marked(self, root: str, marker: Marker) -> None:
        """The disk at `root` carries `marker`; only now may the others be told of it."""
        self._uuids[root] = marker.uuid
        self._carried[root] = marker
        self._weigh(root)

    def left(self, root: str) -> None:
        """The disk at `root` is not in use any more."""
        self._carried.pop(root, None)
        self._weigh(root)

    def complete(self, root: str) -> bool:
        """Whether the disk at `root` is known to lack no sample of its set."""
        return root in self._complete

    def told(self, root: str, complete: bool) -> None:
        """Another process, which looks after the disks, says whether one is complete."""
        (self._complete.add if complete else self._complete.discard)(root)

    def carried(self, root: str) -> Marker | None:
        """The marker of the disk that is in use at `root`."""
        return self._carried.get(root)

    def missing(self, roots: Sequence[str], adopted: Mapping[str, Marker | None]) -> list[str]:
        """What may hold samples of a set that nobody else has, and is not here; a text each.

        `roots` are those of the set; `adopted` are the disks that are here beside those in use,
        by their roots. What a disk in use was compared with is not missed.
        """
        markers = [self._carried[root] for root in roots if root in self._carried]
        held = {u for marker in markers for u in (marker.uuid, *marker.complete)}
        held |= {marker.uuid for marker in adopted.values() if marker is not None}
        texts = []
        for root in roots:
            known = self._uuids.get(root)
            if known is not None and known not in held:
                texts.append(f"disk {known} of {root}")
            elif known is None and root not in self._heard and root not in adopted:
                texts.append(f"the disk of {root}")
        return texts if held or texts else ["disks that were here before"]

    def proof(self, roots: Sequence[str]) -> tuple[str, ...] | None:
        """What makes these disks complete once they were compared; `None` if one is not in use."""
        carried = [self._carried[root].uuid for root in roots if root in self._carried]
        return tuple(sorted(carried)) if len(carried) == len(roots) else None

    def _judge_unmarked(self, root: str, empty: bool, writable: bool) -> Judgement:
        if root in self._uuids:
            return Judgement(
                refusal=f"{root}: this disk has no marker and {self._uuids[root]} belongs here: "
                f"mount the right disk, or give this one its place with `stor adopt {root}`"
            )
        roots = self._set_of[root]
        unheard = [other for other in roots if other not in self._heard]
        if self._patient or (empty and unheard):
            who = unheard[0] if unheard else "another disk"
            return Judgement(
                refusal=f"{root}: this disk has no marker, and {who}, which could tell whether it "
                f"is the right one, has not been heard: mount it, or give this one its place with "
                f"`stor adopt {root}`",
                waits=self._patient,
            )
        if not writable:
            return Judgement()
        if all(self._heard[other] for other in roots):
            for other in roots:
                self._planned.setdefault(other, _new_uuid())
        marker = Marker.new(self._set_uuids.get(roots))
        if empty and root in self._planned:
            together = tuple(sorted(self._planned[other] for other in roots))
            marker = attrs.evolve(marker, uuid=self._planned[root], complete=together)
        elif empty:
            self._joined_empty.add(marker.uuid)
        return self._accept(root, marker)

    def _judge_marked(self, root: str, marker: Marker, empty: bool) -> Judgement:
        known = self._uuids.get(root)
        if not marker.adopted and known not in (None, marker.uuid, *marker.replaces):
            return self._refuse(
                root,
                f"{root}: this is disk {marker.uuid} and {known} belongs here: mount the right "
                f"disk, or give this one its place with `stor adopt {root}`",
            )
        twin = next((r for r, u in self._uuids.items() if u == marker.uuid and r != root), None)
        if twin is not None and (twin in self._carried or not marker.adopted):
            return self._refuse(
                root,
                f"{root}: this is the disk that belongs at {twin}: mount it there, or give it its "
                f"place here with `stor adopt {root}`",
            )
        roots = self._set_of[root]
        set_uuid = self._set_uuids.get(roots, marker.set)
        if marker.set != set_uuid and not marker.adopted:
            others = ", ".join(other for other in roots if other != root)
            return self._refuse(
                root,
                f"{root}: this disk belongs to another set than {others}: configure it with its "
                f"own set, or let it join this one with `stor adopt {root}`",
            )
        if marker.adopted and twin is not None:
            del self._uuids[twin]
            self._weigh(twin)
        if empty and not marker.complete:
            self._joined_empty.add(marker.uuid)
        self.marked(root, marker)
        if marker.adopted:
            replaces = {*marker.replaces, known or marker.uuid} - {marker.uuid}
            marker = attrs.evolve(
                marker, set=set_uuid, replaces=tuple(sorted(replaces)), adopted=False
            )
        return self._accept(root, marker)

    def _accept(self, root: str, marker: Marker) -> Judgement:
        self._set_uuids[self._set_of[root]] = marker.set
        disks = {**self._uuids, root: marker.uuid}
        return Judgement(attrs.evolve(marker, disks=disks, complete=self._proof(root, marker)))

    def _refuse(self, root: str, refusal: str) -> Judgement:
        self.left(root)
        return Judgement(refusal=refusal)

    def _proof(self, root: str, marker: Marker) -> tuple[str, ...]:
        """The proof of a disk's completeness, with the disks that have joined its set empty."""
        if not marker.complete:
            return ()
        members = {self._uuids[other] for other in self._set_of[root] if other in self._uuids}
        return tuple(sorted({*marker.complete, *(members & self._joined_empty)}))

    def _weigh(self, root: str) -> None:
        """Find out anew which disks are complete of the set that `root` belongs to."""
        uuids = {self._uuids.get(other) for other in self._set_of[root]}
        for other in self._set_of[root]:
            marker = self._carried.get(other)
            self.told(other, marker is not None and uuids <= set(marker.complete))


def _journal(value: Any) -> tuple[int, Position] | None:
    if value is None:
        return None
    identity, (segment, records) = value
    return int(identity), Position(int(segment), int(records))


def _new_uuid() -> str:
    return str(uuid.uuid4())


def _uuids(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(uuid.UUID(one)) for one in values)
