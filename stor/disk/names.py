"""The names that one disk holds: its journal, its base, and the proof that these tell of all."""

import json
import secrets
import time
from contextlib import suppress
from threading import Lock
from uuid import UUID

import attrs

from stor.digest import Digest
from stor.disk.base import Base
from stor.disk.disk import INDEX_DIRECTORY, Disk, write_all
from stor.disk.errnos import Fault, fault_of
from stor.disk.identity import mark_complete
from stor.disk.journal import Event, Journal, Kind, Position, Record
from stor.disk.walk import Batch, WalkedSample

PROOF_PATH = f"{INDEX_DIRECTORY}/proof.json"
#: Made by who wants the disk to be walked anew.
WALK_PATH = f"{INDEX_DIRECTORY}/rescan"

#: How far journals reach back at least.
KEPT_SECONDS = 7 * 86400

_NEW_PROOF_PATH = f"{PROOF_PATH}.new"
_PROOF_BYTES = 4096


class BadProof(Exception):
    """What the journal and the base say may not be all that the disk holds."""


@attrs.frozen
class Proof:
    """What is known of a disk's journal, beside it on the disk.

    The journal goes on for `journal` at least. `cursor` is how far the walk of the disk has come;
    `None`: to its end, so that every name is in the journal or in the base. `inodes` is how many
    were in use when Stor ended; `None`: it has not ended, or they cannot be counted.
    """

    uuid: str
    journal: Position
    cursor: str | None
    inodes: int | None = None
    #: Tells this journal from another one that the disk had, or has later; 0: it has none.
    identity: int = 0
    #: Of records with lower numbers it is known whether their samples were stored.
    low: int = 0

    @classmethod
    def parse(cls, data: bytes) -> "Proof":
        """Read a proof. Raises `BadProof`."""
        try:
            value = json.loads(data)
            cursor, inodes = value["cursor"], value.get("inodes")
            return cls(
                str(UUID(value["uuid"])),
                Position(int(value["segment"]), int(value["records"])),
                None if cursor is None else str(cursor),
                None if inodes is None else int(inodes),
                int(value.get("identity", 0)),
                int(value.get("low", 0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadProof(f"{PROOF_PATH} is damaged: {error!r}") from error

    def encode(self) -> bytes:
        """The proof as it stands on a disk."""
        segment, records = self.journal
        value = {
            "uuid": self.uuid,
            "segment": segment,
            "records": records,
            "cursor": self.cursor,
            "inodes": self.inodes,
            "identity": self.identity,
            "low": self.low,
        }
        return json.dumps(value).encode() + b"\n"


class DiskNames:
    """What a disk knows of its names.

    Blocking. For the journal see there; the rest is for several threads.
    """

    def __init__(
        self, disk: Disk, uuid: str, base: Base, journal: Journal, *, written: bool = True
    ) -> None:
        """As `open`, `anew` or `unwritten` have them."""
        self._disk = disk
        #: Whether they are kept on the disk.
        self.written = written
        self.uuid = uuid
        self.base = base
        self.journal = journal
        #: How far the disk was walked; `None`: every name on it is known.
        self.cursor: str | None = ""
        #: See `Proof`.
        self.identity = 0
        #: Whether nothing was on any disk of its set before the first record.
        self.founding = False
        #: Why the disk is walked although what is known of it holds.
        self.strange: str | None = None
        #: See `Proof`, once what happened to these samples is known here.
        self.low = 0
        #: From which number on names may be missing that there are records of.
        self.doubtful: int | None = None
        self._kept: Proof | None = None
        self._keeping = Lock()

    @classmethod
    def open(
        cls, disk: Disk, uuid: str, root_fd: int, noted: tuple[int, Position] | None = None
    ) -> "DiskNames":
        """What the disk with this UUID knows. Writes nothing.

        `noted` is which journal it had, and how far that had come, as is known elsewhere. Where its
        end is torn, or files came or went since Stor ended, what is known holds, and a walk finds
        the rest.
        Raises `BadProof` when less is known than was once, `OSError`.
        """
        proof = _read(disk, root_fd)
        base = Base.open(disk, uuid, root_fd)
        journal = Journal.open(disk, uuid, root_fd, base.covered)
        names = cls(disk, uuid, base, journal)
        damage = names.damage
        if damage is not None:
            raise BadProof(damage)
        if proof is None:
            raise BadProof(f"{disk.root}: its names were never all looked at")
        if proof.uuid != uuid:
            raise BadProof(f"{disk.root}/{PROOF_PATH} is another disk's, {proof.uuid}")
        identity, least = noted or (proof.identity, proof.journal)
        least = max(proof.journal, least)
        if journal.end < least or identity != proof.identity:
            raise BadProof(
                f"{disk.root}/{INDEX_DIRECTORY}: the journal ends at {tuple(journal.end)}, it had "
                f"come to {tuple(least)}, or was another one: the disk was set back"
            )
        names.cursor, names.identity, names._kept = proof.cursor, proof.identity, proof
        names.low = proof.low
        used = None if proof.inodes is None else used_inodes(disk, root_fd)
        if used != proof.inodes:
            names.strange = (
                f"{disk.root}: {used} inodes are in use, {proof.inodes} were when Stor ended: "
                "files were made or removed meanwhile"
            )
        elif journal.torn:
            names.strange = f"{disk.root}/{INDEX_DIRECTORY}: the last records are damaged"
        if names.strange is not None:
            names.cursor = ""
        return names

    @classmethod
    def anew(cls, disk: Disk, uuid: str, root_fd: int) -> "DiskNames":
        """Forget what the disk knew: its names are all to be walked. Raises `OSError`.

        A crash leaves it to be done again.
        """
        files = disk.files
        for name in sorted(_listed(disk, root_fd), key=lambda name: name != "proof.json"):
            files.unlink(f"{INDEX_DIRECTORY}/{name}", root_fd)
            if name == "proof.json":  # first, and durably: without it nothing else is believed
                disk.sync_directory(INDEX_DIRECTORY, root_fd)
        names = cls(disk, uuid, Base(disk, uuid), Journal(disk, uuid))
        names.identity = secrets.randbelow(2**63) + 1
        try:
            names.walked("", root_fd)
        except OSError as error:
            if fault_of(error) is not Fault.ROOM:
                raise
            # The disk is full. Without the note all is walked again at the next start, too.
        return names

    @classmethod
    def unwritten(cls, disk: Disk, uuid: str) -> "DiskNames":
        """Those of a disk that is not to be written: what a walk finds is kept nowhere."""
        return cls(disk, uuid, Base(disk, uuid), Journal(disk, uuid), written=False)

    def event_here(self, event: Event) -> Event:
        """What the next record says of an event on this disk: the first one knows of all before."""
        first = self.founding and not self.journal.end.segment
        return event._replace(low=0) if first else event

    @property
    def known(self) -> bool:
        """Whether every name on the disk is in the journal or in the base."""
        return self.cursor is None

    @property
    def durable(self) -> Position:
        """How far the journal has come on stable storage, as is known, also of earlier starts."""
        kept = self._kept
        return self.journal.durable if kept is None else max(kept.journal, self.journal.durable)

    @property
    def outdated(self) -> bool:
        """Whether what was noted last holds no longer."""
        kept = self._kept
        if kept is None or (kept.journal, kept.cursor) != (self.durable, self.cursor):
            return self.written
        return self.written and kept.low <= self.highest < self.low

    @property
    def damage(self) -> str | None:
        """What was found to be wrong with journal or base, if anything was."""
        return self.base.damage or self.journal.damage

    @property
    def highest(self) -> int:
        """The highest sequence number that the disk knows."""
        return max(self.base.highest, self.journal.highest)

    def begin(self, root_fd: int) -> None:
        """The disk is written from now on: what was said of its end holds no longer."""
        kept = self._kept
        if kept is not None and (kept.inodes is not None or kept.cursor != self.cursor):
            self.keep(root_fd)

    def end(self, root_fd: int) -> None:
        """Note how the disk was left: nobody writes to it any more. Raises `OSError`."""
        self.keep(root_fd, used_inodes(self._disk, root_fd))

    def walked(self, cursor: str | None, root_fd: int) -> None:
        """The walk has come this far; `None`: to its end. Raises `OSError`."""
        self.cursor = cursor
        self.keep(root_fd)

    def keep(self, root_fd: int, inodes: int | None = None) -> None:
        """Note, durably, how far the walk has come, and how long the journal is.

        A crash leaves what was noted before. Raises `OSError`.
        """
        with self._keeping:
            what = self.durable, self.cursor, inodes, self.identity, self.low
            proof = Proof(self.uuid, *what)
            if self.written and proof != self._kept:
                self._replace(proof, root_fd)
                self._kept = proof

    def _replace(self, proof: Proof, root_fd: int) -> None:
        files = self._disk.files
        with suppress(FileNotFoundError):  # the usual case: no write was interrupted
            files.unlink(_NEW_PROOF_PATH, root_fd)
        fd = self._disk.in_own_directory(root_fd, lambda: files.create(_NEW_PROOF_PATH, root_fd))
        try:
            write_all(files, fd, proof.encode())
            files.sync(fd)
        finally:
            files.close(fd)
        files.rename(_NEW_PROOF_PATH, PROOF_PATH, root_fd)
        self._disk.sync_directory(INDEX_DIRECTORY, root_fd)

    def found(
        self,
        samples: tuple[WalkedSample, ...],
        sequence: int,
        low: int,
        time_ns: int,
        root_fd: int,
    ) -> None:
        """Take what a walk has found into the journal, durably. Raises `OSError`."""
        records = [
            Record(one.sha, sequence, one.size, one.inode, time_ns, Kind.FOUND) for one in samples
        ]
        if records and self.written:
            position = self.journal.append(records, root_fd, low)
            try:
                self.journal.sync(root_fd)
            except OSError:
                self.journal.failed()
                raise
            self.journal.synced(position)

    def heed(self, root_fd: int) -> bool:
        """Whether somebody wants the disk walked anew; it is, from now on. Raises `OSError`."""
        files = self._disk.files
        try:
            files.stat(WALK_PATH, root_fd)
        except FileNotFoundError:
            return False
        self.walked("", root_fd)
        files.unlink(WALK_PATH, root_fd)
        return True

    def reopen_base(self, root_fd: int) -> None:
        """The base was extended by another process. Raises `OSError`."""
        self.base = Base.open(self._disk, self.uuid, root_fd)


def used_inodes(disk: Disk, root_fd: int) -> int | None:
    """How many inodes are in use; `None` on a shared file system, or one that counts none.

    Raises `OSError`.
    """
    files = disk.files
    if files.stat("..", root_fd).st_dev == files.fstat(root_fd).st_dev:
        return None
    room = files.fstatvfs(root_fd)
    return room.f_files - room.f_ffree if room.f_files else None


def open_names(
    disk: Disk, uuid: str, noted: tuple[int, Position] | None, writable: bool
) -> DiskNames:
    """What a disk knows; it is written from now on if it is `writable`. `noted`: see there.

    Raises `BadProof`, `DiskAway`, `OSError`.
    """
    with disk.entered() as root_fd:
        names = DiskNames.open(disk, uuid, root_fd, noted)
        if writable:
            if names.journal.end > names.durable or names.highest >= names.low:
                # After a crash, or a failure: names may be there that nobody has synced.
                disk.files.sync_all(root_fd)
                names.journal.synced(names.journal.end)
                names.doubtful = names.low
            names.begin(root_fd)
        return names


def begin_names(disk: Disk, uuid: str, new: bool) -> DiskNames:
    """Have a disk's names learnt anew. Raises `DiskAway`, `BadMarker`, `OSError`.

    One that is not `new` is not complete, before anything is forgotten which shows that.
    """
    if not new:
        mark_complete(disk, (), (uuid,))
    with disk.entered() as root_fd:
        disk.files.sync_all(root_fd)  # as after a crash
        return DiskNames.anew(disk, uuid, root_fd)


def found_names(disk: Disk, names: DiskNames, batch: Batch, sequence: int, low: int) -> None:
    """Take what a walk has found into the journal, durably. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        names.found(batch.samples, sequence, low, time.time_ns(), root_fd)
        names.walked(batch.cursor, root_fd)


def unnamed_samples(disk: Disk, names: DiskNames) -> dict[bytes, int]:
    """Samples whose uploads a crash or a failure has ended, and that have no name on the disk.

    With the numbers of their records. Raises `DiskAway`, `OSError`.
    """
    doubtful, newest = names.doubtful, dict[bytes, Record]()
    if doubtful is None:
        return {}
    with disk.entered() as root_fd:
        for record in names.journal.records(root_fd, doubtful - 1):
            newest[record.sha] = record
        unnamed = {
            sha: record.sequence
            for sha, record in newest.items()
            if record.kind is Kind.STORED and not _has_name(disk, sha, root_fd)
        }
    names.doubtful = None
    return unnamed


def extended_base(disk: Disk, names: DiskNames) -> None:
    """Another process has extended the base: old segments go. Raises `DiskAway`, `OSError`."""
    before_ns = time.time_ns() - KEPT_SECONDS * 10**9
    with disk.entered() as root_fd:
        names.reopen_base(root_fd)
        names.journal.remove(before_ns, names.base.covered, root_fd)


def heed_request(disk: Disk, names: DiskNames) -> bool:
    """Whether somebody wants the disk walked anew; it is, then. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        return names.heed(root_fd)


def ask_for_walk(disk: Disk) -> None:
    """Have the Stor that uses the disk walk it anew. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd, suppress(FileExistsError, FileNotFoundError):
        # Asked before; or never walked yet, which it will be.
        disk.files.close(disk.files.create(WALK_PATH, root_fd))


def _has_name(disk: Disk, sha: bytes, root_fd: int) -> bool:
    try:
        disk.files.stat(Digest(sha).disk_path, root_fd)
    except FileNotFoundError:
        return False
    return True


def _read(disk: Disk, root_fd: int) -> Proof | None:
    try:
        fd = disk.files.open_to_read(PROOF_PATH, root_fd)
    except FileNotFoundError:
        return None
    try:
        return Proof.parse(disk.files.read(fd, _PROOF_BYTES, 0))
    finally:
        disk.files.close(fd)


def _listed(disk: Disk, root_fd: int) -> list[str]:
    try:
        fd = disk.files.open_directory(INDEX_DIRECTORY, root_fd)
    except FileNotFoundError:
        return []
    try:
        return disk.files.list(fd)
    finally:
        disk.files.close(fd)
