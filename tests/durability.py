"""Proof that an answer comes after all that makes a sample durable.

The system calls of real uploads are recorded over all disks and judged twice: by their order, and
by what each disk still has when the power goes after any one of them.
"""

from itertools import count
from posixpath import basename, dirname

import attrs

from stor.digest import Digest
from stor.disk.partial import ATTRIBUTE
from tests.conformance import QuickFiles, put
from tests.support.files import Call
from tests.support.pools import InlinePool
from tests.support.rig import Rig, close_indexes


@attrs.frozen
class Event:
    """What a system call did to its `subject`, a file or a directory.

    `path` is what came or went below the root, `size` the bytes that were written; of `answer`,
    those of the sample that is acknowledged; `data` is what was written to a journal. `other` is
    where what is renamed or linked, or is to change places with what is at `path`, was before.
    """

    kind: str
    disk: str
    subject: str
    path: str = ""
    size: int = 0
    other: str = ""
    data: bytes = b""


#: The calls that change a disk, or bring a change to it, and the answer.
KINDS = ("create", "make_directory", "remove_directory", "unlink", "answer", "told")
KINDS += ("write", "set_modified", "sync", "sync_all", "name", "link", "exchange", "rename")


#: Before the kind of what is done to a disk's journal.
JOURNAL = "journal"

#: Where uploads are kept that are not complete. One file there is one, whoever opens it.
PARTIAL = ".stor/partial/"


def history(log):
    """The events of a log that several `RecordingFiles` share."""
    events, files, numbers, names = [], {}, count(), {}
    for disk, call in log:
        fd = call.args[0] if call.args else None
        if call.name in ("write", "sync", "set_attribute") and (
            (call.path or "").startswith(PARTIAL) or call.args[1:2] == (ATTRIBUTE,)
        ):
            files.setdefault((disk, fd), f"{disk}: what is partial")
        if call.name in ("allocate", "lock", "write", "set_modified"):
            files.setdefault((disk, fd), f"file {next(numbers)}")
        elif call.name == "close":
            files.pop((disk, fd), None)
        if call.name == "set_attribute" and call.args[1] == ATTRIBUTE:
            noted = call.args[-1].split()[0]
            events.append(Event("note", disk, files[disk, fd], data=noted))
        if call.name not in KINDS:
            continue
        if (call.path or "").startswith(".stor/index"):
            data = bytes(call.args[-1]) if call.name == "write" else b""
            events.append(Event(f"{JOURNAL} {call.name}", disk, call.path, data=data))
            continue
        size = len(call.args[-1]) if call.name in ("write", "answer", "told") else 0
        subject = "" if call.name == "sync_all" else files.get((disk, fd), call.path)
        path = call.path
        if call.name in ("write", "set_modified", "sync", "sync_all"):
            path = ""
        other = call.args[0] if call.name in ("link", "exchange", "rename") else ""
        if call.name == "name":
            names[disk, path] = subject
        elif other:
            subject = names.get((disk, other), other)
            names[disk, path] = subject
        events.append(Event(call.name, disk, subject, path, size, other))
    return events


def assert_durable_order(events, disks):
    """Every answer comes after all that makes the sample durable on each of `disks`, in order.

    Write, then set the times, then sync the file, on every disk before a name on any; after the
    name sync its directory, after a mkdir the parent. Either sync may be that of the whole disk.
    """
    for position, event in enumerate(events):
        if event.kind == "answer":
            _assert_durable(events[:position], event, disks)


def _assert_durable(events, answer, disks):
    def last(kinds, disk, thing):
        found = [
            i
            for i, event in enumerate(events)
            if event.disk == disk
            and event.kind in kinds
            and thing in (event.subject, event.path, event.other)
        ]
        return max(found, default=None)

    def synced(disk, thing, since, before=None):
        """Whether a thing, or everything on its disk, is synced in the meantime."""
        return any(
            event.disk == disk
            and (event.kind, event.subject) in (("sync", thing), ("sync_all", ""))
            for event in events[since + 1 : before]
        )

    named = {disk: last(("name", "exchange", "rename"), disk, answer.path) for disk in disks}
    assert None not in named.values(), f"not every copy has a name: {named}"
    first = min(named.values())
    for disk, place in named.items():
        file = events[place].subject
        written = sum(e.size for e in events if (e.kind, e.subject) == ("write", file))
        assert written == answer.size, f"{disk}: {written} bytes were written"
        changes = [last([kind], disk, file) for kind in ("write", "set_modified")]
        if answer.size == 0:
            changes = changes[1:]
        assert None not in changes, f"{disk}: write and time are at {changes}"
        assert changes == sorted(changes), f"{disk}: write and time are in the order {changes}"
        assert synced(disk, file, changes[-1], first), (
            f"{disk}: a copy has its name before this one is synced"
        )
        to_sync = [(dirname(answer.path), place)]
        directory = dirname(answer.path)
        while directory:
            made = last(["make_directory"], disk, directory)
            directory = dirname(directory)
            if made is not None:
                to_sync.append((directory or ".", made))
        for directory, since in to_sync:
            assert synced(disk, directory, since), (
                f"{disk}: {directory} is not synced after its last entry"
            )


class Node:
    """A file, or a directory with its entries; what of it is on the platter already."""

    def __init__(self):
        self.written, self.synced = 0, None
        self.entries, self.durable_entries = {}, {}
        self.named = False

    def walk(self, path):
        """What is at `path`; a directory that nobody was seen to make has always been there."""
        node = self
        for name in [part for part in path.split("/") if part not in ("", ".")]:
            if name not in node.entries:
                node.entries[name] = node.durable_entries[name] = Node()
            node = node.entries[name]
        return node

    def sync_all(self):
        """Everything below has reached the platter."""
        self.durable_entries = dict(self.entries)
        for node in self.entries.values():
            node.sync_all()

    def survivor(self, path):
        """What is at `path` when all that was not synced is lost."""
        node = self
        for name in path.split("/"):
            node = node.durable_entries.get(name)
            if node is None:
                return None
        return node


def assert_survives_power_loss(events, disks):
    """Whatever event is the last one before the power fails, nothing acknowledged is lost.

    A file keeps what was written before its last sync, a directory the entries it had at its
    last sync; any later entry may survive too, so what has a name is whole from the first.
    """
    roots, files, answers = {disk: Node() for disk in disks}, {}, []
    for event in events:
        if event.kind == "answer":
            answers.append(event)
        elif event.kind == "sync_all":
            roots.setdefault(event.disk, Node()).sync_all()
            for file in [file for (disk, _), file in files.items() if disk == event.disk]:
                file.synced = file.written
        else:
            _replay(event, roots.setdefault(event.disk, Node()), files)
        for subject, file in files.items():
            assert not file.named or file.synced == file.written, f"{subject} has half its bytes"
        for answer in answers:
            for disk in disks:
                copy = roots[disk].survivor(answer.path)
                assert copy is not None, f"{disk}: {answer.path} is lost after {event}"
                assert copy.synced == answer.size, f"{disk}: bytes are lost after {event}"


def _replay(event, root, files):
    parent = root.walk(dirname(event.path))
    if event.kind in ("create", "make_directory"):
        parent.entries[basename(event.path)] = Node()
    elif event.kind in ("remove_directory", "unlink"):
        parent.entries.pop(basename(event.path))
    elif event.kind == "link":
        linked = root.walk(dirname(event.other)).entries.get(basename(event.other))
        parent.entries[basename(event.path)] = linked or Node()
    elif event.kind in ("exchange", "rename"):
        other, name = root.walk(dirname(event.other)), basename(event.other)
        moved, there = other.entries.pop(name, Node()), parent.entries.get(basename(event.path))
        parent.entries[basename(event.path)] = moved
        if event.kind == "exchange":
            other.entries[name] = there or Node()
    elif event.kind == "sync" and (event.disk, event.subject) not in files:
        directory = root.walk(event.subject)
        directory.durable_entries = dict(directory.entries)
    else:
        file = files.setdefault((event.disk, event.subject), Node())
        file.written += event.size
        if event.kind in ("write", "set_modified"):
            file.synced = None
        elif event.kind == "sync":
            file.synced = file.written
        elif event.kind == "name":
            parent.entries[basename(event.path)] = file
            file.named = True


def assert_partial_is_durable(events, disks):
    """What a client is told of an upload is on every disk, and noted there, when the power goes.

    Written, synced, noted, and synced again; and the name is synced.
    """
    for position, told in [(n, e) for n, e in enumerate(events) if e.kind == "told"]:
        for disk in disks:
            ours = [e for e in events[:position] if e.disk == disk]
            file = f"{disk}: what is partial"
            written, synced, noted, durable = 0, 0, 0, 0
            for event in ours:
                if (event.kind, event.subject) == ("sync", file):
                    synced, durable = written, noted
                elif (event.kind, event.subject) == ("write", file):
                    written += event.size
                elif (event.kind, event.subject) == ("note", file):
                    noted = int(event.data)
                    assert noted <= synced, f"{disk}: {noted} bytes are noted, {synced} synced"
            assert durable >= told.size, f"{disk}: {told.size} bytes are told, {durable} are there"
            made = max(n for n, e in enumerate(ours) if (e.kind, e.path) == ("create", told.path))
            directory = (("sync", dirname(told.path)), ("sync_all", ""))
            assert any((e.kind, e.subject) in directory for e in ours[made:]), (
                f"{disk}: the name of what is told is not synced"
            )


def assert_recorded_first(events, disks):
    """Every copy's name is in the journal of its disk, durably, before any copy has it."""
    for answer in [position for position, event in enumerate(events) if event.kind == "answer"]:
        path = events[answer].path
        first = min(
            position
            for position, event in enumerate(events[:answer])
            if event.kind in ("name", "exchange", "rename") and event.path == path
        )
        for disk in disks:
            sha = bytes.fromhex(basename(path).removesuffix(".dat"))
            ours = [event for event in events[:first] if event.disk == disk]
            told = [n for n, event in enumerate(ours) if sha in event.data]
            assert told, f"{disk}: the journal was not told of a name"
            after = {event.kind for event in ours[told[-1] :]}
            assert after & {f"{JOURNAL} sync", "sync_all"}, (
                f"{disk}: a copy has its name before the journal is synced"
            )


JUDGES = [assert_durable_order, assert_survives_power_loss]


class Recorded:
    """A Stor whose system calls and answers are one log."""

    def __init__(self, path, disks, files=QuickFiles, worker=None, sets=1, commits=None, **options):
        self.log = []
        worker = worker or InlinePool()
        self.rig = Rig(
            path,
            (disks,) * sets,
            files=lambda label: files(label, self.log),
            worker=lambda: worker,
            commits=commits,
            **options,
        )
        self.disks = [member.disk.files.label for member in self.rig.members]
        self.log.clear()
        self._again = lambda: Rig(
            path, (disks,) * sets, files=lambda label: files(label, self.log), worker=lambda: worker
        )

    def restart(self):
        """Another process takes over the disks; what it does of itself is not noted."""
        noted = len(self.log)
        close_indexes()
        self.rig = self._again()
        del self.log[noted:]

    def told(self, offset, content):
        """Note that a client is told that so much of an upload is there."""
        path = f"{PARTIAL}{str(Digest.of(content)).upper()}"
        self.log.append(("", Call("told", path, (bytes(offset),))))

    def answered(self, content):
        """Note that an upload is acknowledged now."""
        self.log.append(("", Call("answer", Digest.of(content).disk_path, (content,))))

    async def put(self, content):
        """Store `content` and note when that is acknowledged."""
        paths, created = await put(self.rig.store, content)
        self.answered(content)
        return paths, created

    def judge(self, answers=1, disks=None):
        """Both judges are content with everything so far, which has so many answers.

        `disks` are those that hold the samples, by default all.
        """
        disks = disks or self.disks
        events = history(self.log)
        assert [e.kind for e in events].count("answer") == answers
        for judge in (*JUDGES, assert_recorded_first):
            judge(events, disks)
        return events
