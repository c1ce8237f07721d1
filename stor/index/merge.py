"""A new table, made in a child process: from an old one and recent names, or from the disks."""

import fcntl
import gc
import json
import os
import subprocess
import sys
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate, groupby

import attrs

from stor.disk.base import Base, BaseDamaged
from stor.disk.disk import Disk, DiskAway
from stor.disk.journal import Journal
from stor.disk.syscalls import Syscalls
from stor.index import table as table_file
from stor.index.recent import RecentDamaged, applied, named
from stor.index.table import (
    ENTRY_BYTES,
    REST_BITS,
    SET_BITS,
    Contents,
    Keys,
    SetNames,
    Table,
    TableDamaged,
    TableDisk,
    TableWriter,
)

#: A table is written in parts, one for each value of this many bits of the bucket's number: 3 MB.
_PART_BITS = 16

_ENTRY_BITS = 8 * ENTRY_BYTES
_SET_MASK = (1 << SET_BITS) - 1

#: How the child yields to all that answers clients (sched(7), nice).
_NICE = 10


class MergeFailed(Exception):
    """No new table was made; the old one is as it was."""


@attrs.frozen
class DiskSource:
    """A disk to read or write the base of. `device` is the file system that it is known by."""

    root: str
    uuid: str
    device: int
    set_number: int = 0


@attrs.frozen
class Plan:
    """What a table is made from: an older one, the bases of `disks`, recent names.

    Those from `first` on and below `recent`; the older one is in `old_fd`, if there is one. All
    that happened under numbers below `sequence` is in these. The descriptors are those of shared
    memory, which the child inherits.
    """

    recent_fd: int
    new_fd: int
    first: int
    recent: int
    sequence: int
    generation: int
    sets: Sequence[str]
    old_fd: int | None = None
    disks: Sequence[DiskSource] = ()
    #: The disks all of whose names are in the table then.
    learnt: Sequence[TableDisk] = ()
    #: Where to keep the table, if anywhere.
    path: str | None = None
    #: Of a key, what the buckets of a small table take at the least: it is known for ever.
    least_bits: int = 16


def make(plan: Plan, keys: Keys, progress: Callable[[float], None] = lambda part: None) -> Contents:
    """Make the table. `progress` is told what part is done.

    The new memory is no table before this returns. Raises `MergeFailed`, `OSError`.
    """
    try:
        with _names(plan) as disks:
            return build(plan, keys, disks, progress)
    except (TableDamaged, RecentDamaged, BaseDamaged, DiskAway) as error:
        raise MergeFailed(str(error)) from error


def build(
    plan: Plan,
    keys: Keys,
    disks: "Sequence[HeldNames]",
    progress: Callable[[float], None] = lambda part: None,
) -> Contents:
    """Make the table of a plan, with these names as those of its disks.

    Raises `TableDamaged`, `RecentDamaged`, `OSError`, and what reading the names raises.
    """
    old = None if plan.old_fd is None else Table(plan.old_fd, keys)
    if old is None:
        return _from_scratch(plan, keys, disks, progress)
    try:
        if not old.contents.entries:
            return _from_scratch(plan, keys, disks, progress)
        return _from_old(plan, keys, old, disks, progress)
    finally:
        old.close()


def extend(source: DiskSource, *, despite_damage: bool = False) -> None:
    """Take what the sealed segments of a disk's journal have into its base.

    Raises `MergeFailed`, `OSError`.
    """
    disk = Disk(source.root, Syscalls())
    disk.identify(source.device)
    try:
        with disk.entered() as root_fd:
            base = Base.open(disk, source.uuid, root_fd)
            journal = Journal.open(disk, source.uuid, root_fd, base.covered)
            base.extend(journal, root_fd, despite_damage=despite_damage)
    except (BaseDamaged, DiskAway) as error:
        raise MergeFailed(str(error)) from error


class Merge:
    """A child process that makes a table or extends a base. May be killed at any time."""

    def __init__(self, task: Plan | DiskSource, keys: Keys) -> None:
        """Start it. Raises `OSError`."""
        fds = (task.recent_fd, task.new_fd, task.old_fd) if isinstance(task, Plan) else ()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "stor.index.merge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd for fd in fds if fd is not None],
            text=True,
        )
        self._task = task
        self._keys = keys

    def wait(self, progress: Callable[[float], None] = lambda part: None) -> str | None:
        """Wait for its end; why a table that was to be kept was not. Blocks.

        Then the new memory is the table. Raises `MergeFailed`: nothing has changed.
        """
        kind = type(self._task).__name__
        text = json.dumps([kind, self._keys.secret.hex(), attrs.asdict(self._task)])
        outcome: list[str | None] = []
        with self._child as child:
            if child.stdin is None or child.stdout is None:
                raise ValueError("the child has no pipes")
            with suppress(BrokenPipeError):  # its exit status says why
                child.stdin.write(f"{text}\n")
                child.stdin.flush()
            with suppress(BrokenPipeError):
                child.stdin.close()
            for line in child.stdout:
                message = json.loads(line)
                if isinstance(message, float):
                    progress(message)
                else:
                    outcome = message
        if child.returncode or len(outcome) != 2:
            reason = outcome[0] if outcome else f"exit status {child.returncode}"
            raise MergeFailed(f"making the index anew failed: {reason}")
        return outcome[1]

    def kill(self) -> None:
        """End it at once. May be called in any thread; `wait` raises `MergeFailed`."""
        self._child.kill()


def main() -> int:
    """The child: does what its first line of input says, and ends when nobody listens."""
    os.nice(_NICE)
    gc.disable()  # nothing here refers to itself, and it would look through millions of names
    try:
        return _work()
    except BrokenPipeError:  # nobody listens any more
        return 1


def _work() -> int:
    kind, secret, fields = json.loads(sys.stdin.readline())
    try:
        saved = None
        if kind == DiskSource.__name__:
            extend(DiskSource(**fields))
        else:
            fields["disks"] = [DiskSource(**disk) for disk in fields["disks"]]
            fields["learnt"] = [TableDisk(**disk) for disk in fields["learnt"]]
            plan = Plan(**fields)
            saved = _make_and_save(plan, Keys(bytes.fromhex(secret)))
    except BrokenPipeError:
        raise
    except (MergeFailed, OSError) as error:
        _tell([str(error)])
        return 1
    _tell([None, saved])
    return 0


def _make_and_save(plan: Plan, keys: Keys) -> str | None:
    # A child whose parent has died may still be at it.
    fcntl.lockf(plan.new_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    make(plan, keys, _tell)
    if plan.path is None:
        return None
    try:
        table_file.save(plan.new_fd, plan.path, Syscalls())
    except OSError as error:
        return f"{plan.path}: {error.strerror}"
    return None


def _tell(message: float | list[str | None]) -> None:
    # Not by print: what it could not write, Python would try to write again in the end.
    os.write(sys.stdout.fileno(), f"{json.dumps(message)}\n".encode())


#: What came of a name: its key, and the events in their order.
_Change = tuple[int, Sequence[int]]


@attrs.frozen
class HeldNames:
    """The names that a disk holds, many at a time, and about how many they are."""

    set_number: int
    entries: int
    names: Iterator[list[bytes]]


@contextmanager
def _names(plan: Plan) -> Iterator[list[HeldNames]]:
    """The names of the disks. Raises `BaseDamaged`, `DiskAway`, `OSError`, also later."""

    def checked(base: Base, root_fd: int) -> Iterator[list[bytes]]:
        yield from base.names(root_fd)
        if base.damage is not None:
            raise BaseDamaged(base.damage)

    with ExitStack() as stack:
        found = []
        for source in plan.disks:
            disk = Disk(source.root, Syscalls())
            disk.identify(source.device)
            root_fd = stack.enter_context(disk.entered())
            base = Base.open(disk, source.uuid, root_fd)
            found.append(HeldNames(source.set_number, base.entries, checked(base, root_fd)))
        yield found


def _recent_changes(plan: Plan, keys: Keys) -> list[_Change]:
    events: dict[int, list[int]] = {}
    for sha, set_number, held in named(plan.recent_fd, plan.first, plan.recent):
        events.setdefault(keys.key(sha), []).append(set_number << 1 | held)
    return [(key, events[key]) for key in sorted(events)]


def _from_scratch(
    plan: Plan, keys: Keys, disks: Sequence[HeldNames], progress: Callable[[float], None]
) -> Contents:
    recent = _recent_changes(plan, keys)
    # Disks of one set have the same names.
    entries: dict[int, int] = {}
    for disk in disks:
        entries[disk.set_number] = max(disk.entries, entries.get(disk.set_number, 0))
    sorting = _Sorting(plan, sum(entries.values()) + len(recent))
    done, total = 0, sum(disk.entries for disk in disks)
    for disk in disks:
        for names in disk.names:
            for sha in names:
                sorting.add(keys.key(sha), disk.set_number)
            done += len(names)
            progress(0.7 * min(1, done / total))
    for key, events in recent:
        for number in applied(events, ()):
            sorting.add(key, number)
    return sorting.finish(keys, progress)


def _from_old(
    plan: Plan,
    keys: Keys,
    old: Table,
    disks: Sequence[HeldNames],
    progress: Callable[[float], None],
) -> Contents:
    held: dict[int, array[int]] = {}
    for disk in disks:
        found = held.setdefault(disk.set_number, array("Q"))
        for names in disk.names:
            found.extend(map(keys.key, names))
    changes = _Changes(held, _recent_changes(plan, keys))
    making = _Making(plan, keys, old.contents, changes.count)
    making.merge(old, changes, progress)
    return making.finish()


class _Changes:
    """What is to change in a table: names that sets hold, 8 bytes each, then what came recently."""

    def __init__(self, held: "dict[int, array[int]]", recent: Sequence[_Change]) -> None:
        self._held = {number: array("Q", sorted(set(keys))) for number, keys in held.items()}
        self._recent = recent
        self.count = len(recent) + sum(map(len, self._held.values()))

    def between(self, low: int, high: int) -> Sequence[_Change]:
        """The changes to keys from `low` on and below `high`, in order."""
        begin = bisect_left(self._recent, low, key=_key)
        recent = self._recent[begin : bisect_left(self._recent, high, key=_key)]
        if not self._held:
            return recent
        events: dict[int, list[int]] = {}
        for number, keys in self._held.items():
            for key in keys[bisect_left(keys, low) : bisect_left(keys, high)]:
                events.setdefault(key, []).append(number << 1 | 1)
        for key, its in recent:
            events.setdefault(key, []).extend(its)
        return sorted(events.items())


class _Sorting:
    """A table being made from names in any order, each as often as it comes.

    A name takes 8 bytes until it is written: its bucket among the 65,536 of its part, and its
    entry. A part is sorted at a time.
    """

    def __init__(self, plan: Plan, names: int) -> None:
        self._plan = plan
        self._bits = table_file.bucket_bits(names, plan.least_bits)
        self._part_bits = min(self._bits, _PART_BITS)
        count = 1 << (self._bits - self._part_bits)
        self._parts: list[array[int]] = [array("Q") for _ in range(count)]
        self._mask = (1 << self._part_bits) - 1

    def add(self, key: int, set_number: int) -> None:
        bucket, entry = table_file.entry(key, self._bits)
        part = self._parts[bucket >> self._part_bits]
        part.append((bucket & self._mask) << _ENTRY_BITS | entry | set_number)

    def finish(self, keys: Keys, progress: Callable[[float], None]) -> Contents:
        writer = TableWriter(self._plan.new_fd, keys, self._bits)
        counts: Counter[int] = Counter()
        for number, part in enumerate(self._parts):
            values = sorted(set(part))
            self._parts[number] = array("Q")
            counts.update(map(_SET_MASK.__and__, values))
            _write_buckets(writer, values, 1 << self._part_bits)
            progress(0.7 + 0.3 * number / len(self._parts))
        return _finish(self._plan, writer, counts, 0)


class _Making:
    """A table being made from an old one."""

    def __init__(self, plan: Plan, keys: Keys, old: Contents, changes: int) -> None:
        self._plan = plan
        self._old = old
        bits = table_file.bucket_bits(old.entries + changes, old.bucket_bits)
        if bits - old.bucket_bits + old.unknown_bits > table_file.UNKNOWN_LIMIT:
            bits = old.bucket_bits
        #: What the buckets take from the entries is not known at their end.
        self._taken = bits - old.bucket_bits
        self._unknown = old.unknown_bits + self._taken
        self._writer = TableWriter(plan.new_fd, keys, bits)
        self._counts = Counter({number: one.names for number, one in enumerate(old.sets)})

    def merge(self, old: Table, changes: _Changes, progress: Callable[[float], None]) -> None:
        buckets = 1 << self._old.bucket_bits
        step = max(1, (1 << _PART_BITS) >> self._taken)
        shift = table_file.KEY_BITS - self._old.bucket_bits
        for first in range(0, buckets, step):
            last = min(first + step, buckets)
            mine = changes.between(first << shift, last << shift)
            if self._taken:
                self._spread(old, first, last, mine)
            else:
                self._copy(old, first, last, mine)
            progress(last / buckets)

    def finish(self) -> Contents:
        return _finish(self._plan, self._writer, self._counts, self._unknown)

    def _copy(self, old: Table, first: int, last: int, changes: Sequence[_Change]) -> None:
        """Buckets that stay as they are, but for those of `changes`."""
        offsets = old.offsets(first, last + 1)
        done = first
        shift = table_file.KEY_BITS - self._old.bucket_bits
        for bucket, group in groupby(changes, lambda change: change[0] >> shift):
            self._copy_whole(old, offsets, first, done, bucket)
            begin, end = offsets[bucket - first], offsets[bucket - first + 1]
            values = _values(old.entries(begin, end))
            _write_buckets(self._writer, self._changed(values, list(group), bucket), 1)
            done = bucket + 1
        self._copy_whole(old, offsets, first, done, last)

    def _copy_whole(
        self, old: Table, offsets: "array[int]", first: int, begin: int, end: int
    ) -> None:
        if begin < end:
            its = offsets[begin - first : end - first]
            self._writer.add(its, old.entries(its[0], offsets[end - first]))

    def _spread(self, old: Table, first: int, last: int, changes: Sequence[_Change]) -> None:
        """Each bucket as several, by the first bits of its entries."""
        offsets = old.offsets(first, last + 1)
        taken, spread = self._taken, []
        rest_mask = (1 << REST_BITS) - 1
        for bucket in range(last - first):
            for value in _values(old.entries(offsets[bucket], offsets[bucket + 1])):
                rest = (bucket << REST_BITS | value >> SET_BITS) << taken
                new_bucket, rest = rest >> REST_BITS, rest & rest_mask
                spread.append(new_bucket << _ENTRY_BITS | rest << SET_BITS | value & _SET_MASK)
        values = self._changed(spread, changes, first << taken)
        _write_buckets(self._writer, values, (last - first) << taken)

    def _changed(
        self, values: Iterable[int], changes: Sequence[_Change], first: int
    ) -> Sequence[int]:
        """Values of the buckets from `first` on, once what `changes` tell has happened."""
        shift = SET_BITS + self._unknown
        names: dict[int, list[int]] = {}
        for value in values:
            names.setdefault(value >> shift, []).append(value)
        for key, events in changes:
            bucket, entry = table_file.entry(key, self._writer.bits)
            value = (bucket - first) << _ENTRY_BITS | entry
            there = {known & _SET_MASK: known for known in names.get(value >> shift, ())}
            after = applied(events, tuple(there))
            self._counts.subtract(list(there))
            self._counts.update(after)
            names[value >> shift] = [there.get(number, value | number) for number in after]
        return sorted(value for its in names.values() for value in its)


def _key(change: _Change) -> int:
    return change[0]


def _values(entries: bytes) -> list[int]:
    return [
        int.from_bytes(entries[at : at + ENTRY_BYTES], "big")
        for at in range(0, len(entries), ENTRY_BYTES)
    ]


def _write_buckets(writer: TableWriter, values: Sequence[int], buckets: int) -> None:
    """The next buckets; each value is the number of its bucket among these, and an entry."""
    words = array("Q", values)
    if sys.byteorder == "little":
        words.byteswap()
    data = words.tobytes()
    entries = bytearray(ENTRY_BYTES * len(words))
    for byte in range(ENTRY_BYTES):
        entries[byte::ENTRY_BYTES] = data[byte + 2 :: 8]
    counts = array("I", bytes(4 * buckets))
    for value in values:
        counts[value >> _ENTRY_BITS] += 1
    offsets = array("I", accumulate(counts, initial=0))
    writer.add(offsets[:-1], bytes(entries))


def _finish(plan: Plan, writer: TableWriter, counts: "Counter[int]", unknown: int) -> Contents:
    return writer.finish(
        generation=plan.generation,
        sequence=plan.sequence,
        recent=plan.recent,
        unknown_bits=unknown,
        sets=[SetNames(uuid, counts[number]) for number, uuid in enumerate(plan.sets)],
        disks=plan.learnt,
    )


if __name__ == "__main__":
    sys.exit(main())
