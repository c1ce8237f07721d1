"""What all disks of a host hold, as a process knows it."""

import fcntl
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import attrs

from stor.disk.journal import Record
from stor.disk.syscalls import Syscalls
from stor.index import memory
from stor.index import table as table_file
from stor.index.merge import DiskSource, Plan
from stor.index.recent import SECRET_OFFSET, Recent, applied, reader_offset
from stor.index.table import (
    SECRET_BYTES,
    SETS_LIMIT,
    Contents,
    Keys,
    Table,
    TableDamaged,
    TableDisk,
)

#: What is kept in the state directory: the host's secret, and a table.
KEY_FILE = "index-key"
TABLE_FILE = "index-table"

#: How often a table that is replaced meanwhile is looked for again.
_ATTEMPTS = 10


@attrs.frozen
class Shared:
    """The memory that all processes of a host share, as descriptors that they inherit.

    Of the two tables one is in use; the next is made in the other.
    """

    recent_fd: int
    table_fds: tuple[int, int]

    @classmethod
    def create(cls, secret: bytes | None = None) -> "Shared":
        """New memory, which knows nothing but the host's secret. Raises `OSError`.

        Without a secret it has one that lives as long as the memory.
        """
        tables = memory.create("stor-table"), memory.create("stor-table")
        return cls(Recent.create(secret or secrets.token_bytes(SECRET_BYTES)), tables)

    @property
    def keys(self) -> Keys:
        """What names are called on this host."""
        return Keys(os.pread(self.recent_fd, SECRET_BYTES, SECRET_OFFSET))

    def leave(self, reader: int) -> None:
        """The process with this number, which has read, has ended: nothing is kept for it."""
        os.pwrite(self.recent_fd, bytes(8), reader_offset(reader))

    def close(self) -> None:
        """Close the descriptors. The memory is gone with the last of them."""
        for fd in (self.recent_fd, *self.table_fds):
            os.close(fd)


class Places(NamedTuple):
    """What the index says of a name.

    `sets` are the numbers of those that hold it, the newest first; `complete` those of which the
    index knows all that they hold. Any other set may hold it as well.
    """

    sets: tuple[int, ...]
    complete: frozenset[int]


class Index:
    """The index in a process that reads. Not for several threads; never waits for a disk."""

    def __init__(self, shared: Shared, keys: Keys, reader: int | None) -> None:
        """`reader` is the number of this process among those that read.

        Raises `TableDamaged`, `RecentDamaged`, `OSError`.
        """
        self._shared = shared
        self._keys = keys
        self._recent = Recent(shared.recent_fd, reader)
        self._table: Table | None = None
        #: Whether the table stays in memory, as far as that is known.
        self.locked: bool | None = None
        self._complete: frozenset[int] = frozenset()
        self._follow()

    def find(self, sha: bytes) -> Places:
        """Where a name is. A set that holds it is never left out by one that is complete.

        Raises `TableDamaged`, `RecentDamaged`, `OSError`.
        """
        self.refresh()
        sets = () if self._table is None else self._table.sets_of(sha)
        events = self._recent.events(sha)
        return Places(applied(events, sets) if events else sets, self._complete)

    def refresh(self) -> None:
        """Know what is new. Raises `TableDamaged`, `RecentDamaged`, `OSError`."""
        if self._recent.refresh():
            self._follow()

    @property
    def sets(self) -> Sequence[str]:
        """The UUIDs of all sets that the index knows, by their numbers."""
        return self._recent.sets

    @property
    def contents(self) -> Contents | None:
        """What the table is made of, `None` while there is none."""
        return None if self._table is None else self._table.contents

    @property
    def recent_names(self) -> int:
        """How many names came since the table was made: a reason to make a new one."""
        return self._recent.names

    def names(self, set_number: int) -> int:
        """How many names a set has."""
        table = self.contents
        known = table is not None and set_number < len(table.sets)
        held = table.sets[set_number].names if table is not None and known else 0
        return held + self._recent.gained(set_number)

    def close(self) -> None:
        """Give the memory back."""
        if self._table is not None:
            self._table.close()
        self._recent.close()

    def _follow(self) -> None:
        """Switch to the newest table."""
        generation = self._recent.generation
        current = 0 if self._table is None else self._table.contents.generation
        if generation != current:
            table = self._open_table()
            if self._table is not None:
                self._table.close()
            self._table = table
            self._recent.uses(table.contents.generation, table.contents.recent)
        self._complete = frozenset() if self._table is None else self._recent.complete

    def _open_table(self) -> Table:
        for _ in range(_ATTEMPTS):
            generation = self._recent.generation
            try:
                table = Table(self._shared.table_fds[generation % 2], self._keys)
            except TableDamaged:
                if self._recent.refresh() and self._recent.generation != generation:
                    continue  # it was replaced, and the next is made in its place
                raise
            if table.contents.generation == generation:
                return table
            table.close()
            self._recent.refresh()
        raise TableDamaged("the shared table is of another generation")


class IndexWriter(Index):
    """The index in the process that writes. A new one takes over where the last one ended.

    How a table comes to be: `plan`; it is made (`stor.index.merge`); `install`; `settle` until it
    returns true. Or it was kept: `load`, in any thread, and `install`.
    """

    def __init__(self, shared: Shared, keys: Keys, path: str | None = None) -> None:
        """`path` is where the table was kept; the numbers that sets have in it go on to be theirs.

        Raises `TableDamaged`, `RecentDamaged`, `OSError`.
        """
        super().__init__(shared, keys, None)
        self._path = path
        self._old: Contents | None = None
        if path is not None and not self.sets:
            # What is wrong with it is said by `load`.
            with suppress(OSError, TableDamaged), open(path, "rb") as file:
                contents, _ = Contents.parse(file.read(table_file.HEADER_BYTES), keys.host)
                for one in contents.sets:
                    self._recent.add_set(one.uuid)

    def number(self, uuid: str) -> int:
        """The number of a set, a new one if it has none. Raises `ValueError`: too many have one."""
        if uuid in self.sets:
            return self.sets.index(uuid)
        if len(self.sets) >= SETS_LIMIT:
            raise ValueError(f"set {uuid}: the index knows {SETS_LIMIT} sets, that is the limit")
        return self._recent.add_set(uuid)

    def add(self, sha: bytes, set_number: int) -> bool:
        """A set holds a name from now on; whether that is new.

        To be called once the name is durable, and before anybody is told.
        """
        new = set_number not in self.find(sha).sets
        if new:
            self._recent.add(sha, set_number, held=True)
        return new

    def remove(self, sha: bytes, set_number: int) -> bool:
        """No disk of a set holds a name any longer; whether that is new."""
        new = set_number in self.find(sha).sets
        if new:
            self._recent.add(sha, set_number, held=False)
        return new

    def replay(self, set_number: int, disks: Sequence[Iterable[Record]], *, all_disks: bool) -> int:
        """Learn from the journals of a set's disks; how many names are new, or gone.

        A name is gone when each of its disks says so last, and `all_disks` are there to say it.
        """
        last: list[dict[bytes, tuple[int, bool]]] = []
        for records in disks:
            said: dict[bytes, tuple[int, bool]] = {}
            for record in records:
                if record.sequence >= said.get(record.sha, (0, False))[0]:
                    said[record.sha] = record.sequence, not record.kind.is_gone
            last.append(said)
        changed = 0
        for sha in {sha for said in last for sha in said}:
            words = [said[sha][1] for said in last if sha in said]
            if any(words):
                changed += self.add(sha, set_number)
            elif all_disks and len(words) == len(disks):
                changed += self.remove(sha, set_number)
        return changed

    def set_complete(self, set_number: int, complete: bool) -> None:
        """Whether the index knows all that a set holds. Nothing changes when it was so already."""
        if (set_number in self._recent.complete) != complete:
            self._recent.set_complete(set_number, complete)
            self._follow()

    def load(self) -> Contents:
        """Bring the table that was kept into memory; blocks, in any thread; then `install` it.

        Raises `TableDamaged`, `OSError`.
        """
        if self._path is None:
            raise FileNotFoundError("no table is kept")
        generation = self._recent.generation + 1
        fd = self._shared.table_fds[generation % 2]
        # A child may be at it whose parent has died.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            return table_file.load(self._path, fd, self._keys, generation, self._recent.first)
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN)

    def plan(
        self,
        sequence: int,
        disks: Sequence[DiskSource] = (),
        learnt: Sequence[TableDisk] = (),
        *,
        anew: bool = False,
        keep: bool = True,
    ) -> Plan | None:
        """How to make the next table; `None` while the one in use has yet to `settle`.

        All that happened under numbers below `sequence` is known, and in the bases of `disks`; the
        names in these are added. Of the disks `learnt` all names are known, or in these. With
        `anew` nothing is taken from the table in use. The table is kept on disk if `keep`.
        """
        if not self.settle():
            return None
        table = None if anew else self._table
        generation = self._recent.generation + 1
        fds = self._shared.table_fds
        return Plan(
            recent_fd=self._shared.recent_fd,
            new_fd=fds[generation % 2],
            first=self._recent.first,
            recent=self._recent.begin_table(),
            sequence=sequence,
            generation=generation,
            sets=tuple(self.sets),
            old_fd=None if table is None else fds[table.contents.generation % 2],
            disks=tuple(disks),
            learnt=tuple(learnt),
            path=self._path if keep else None,
        )

    def install(self) -> None:
        """The next table has been made, or loaded: all processes are to use it.

        Raises `TableDamaged`: it is not right, and the one in use stays.
        """
        generation = self._recent.generation + 1
        table = Table(self._shared.table_fds[generation % 2], self._keys)
        contents = table.contents
        uuids = [one.uuid for one in contents.sets]
        table.close()
        if contents.generation != generation or uuids != list(self.sets)[: len(uuids)]:
            raise TableDamaged("the table was made for another one to follow, or other sets")
        self._recent.publish_table(generation)
        self._old = self.contents
        self._follow()
        self.settle()

    def lock(self) -> bool:
        """Keep the table in memory; blocks while it is brought there; whether that is allowed."""
        self.locked = self._table is not None and self._table.lock()
        return self.locked

    def settle(self) -> bool:
        """Give back the memory of the table before, and of the names that the one in use has.

        `False` while a process that reads has not confirmed this one: to be called again.
        """
        contents = self.contents
        if contents is None:
            return True
        if not self._recent.confirmed(contents.generation):
            return False
        if self._recent.first < contents.recent:
            self._recent.drop(contents.recent)
        if self._old is not None:
            os.ftruncate(self._shared.table_fds[self._old.generation % 2], 0)
            self._old = None
        return True


def table_path(directory: str | None) -> str | None:
    """Where the table of a host with this state directory is kept."""
    return None if directory is None else os.path.join(directory, TABLE_FILE)


def shared_memory(directory: str | None, files: Syscalls) -> Shared:
    """Memory for the index of a host with this state directory.

    Without one, or where it cannot be used, no table that was kept is of any use. Raises `OSError`:
    no memory.
    """
    secret = None
    if directory is not None:
        with suppress(OSError):  # what is wrong is said where more depends on it
            os.makedirs(directory, mode=0o700, exist_ok=True)
            secret = host_secret(os.path.join(directory, KEY_FILE), files)
    return Shared.create(secret)


def host_secret(path: str, files: Syscalls) -> bytes:
    """The secret of the host that is kept at `path`, made if there is none. Raises `OSError`.

    With another one all tables are made anew.
    """
    with suppress(FileNotFoundError), open(path, "rb") as file:
        found = file.read(SECRET_BYTES + 1)
        if len(found) == SECRET_BYTES:
            return found
    secret = secrets.token_bytes(SECRET_BYTES)
    table_file.keep([secret], path, files, 0o600)
    return secret
