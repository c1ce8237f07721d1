"""A disk with a journal, and made-up records for it."""

import hashlib
import shutil
from contextlib import contextmanager

from stor.disk.disk import Disk
from stor.disk.journal import Journal, Kind, Record
from tests.conformance import QuickFiles

UUID = "6d0f7f2e-6a0f-4b8a-9c58-3a3f0d3f8f11"


def sha(number):
    """The SHA-256 of a made-up sample."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def record(sequence, number=None, kind=Kind.STORED):
    """What happened to a made-up sample."""
    number = sequence if number is None else number
    return Record(sha(number), sequence, number * 10, number + 1000, sequence * 10**9, kind)


class IndexDisk:
    """The disk at `root`, which is made."""

    def __init__(self, root, files=None):
        root.mkdir(exist_ok=True, parents=True)
        self.root = root
        self.path = root / ".stor" / "index"
        self.files = files or QuickFiles()
        self.disk = Disk(str(root), self.files)
        self.disk.identify(root.stat().st_dev)

    @contextmanager
    def journal(self, covered=0, uuid=UUID):
        """The journal, opened anew, and the root."""
        with self.disk.entered() as root_fd:
            yield Journal.open(self.disk, uuid, root_fd, covered), root_fd

    def append(self, *batches):
        """Append each of `batches` durably to the journal, opened anew; the end of each."""
        with self.journal() as (journal, root_fd):
            return [append(journal, root_fd, batch) for batch in batches]

    def read(self, after=0, covered=0):
        """All records and the damage, as a Journal that is opened anew knows them."""
        with self.journal(covered) as (journal, root_fd):
            return list(journal.records(root_fd, after)), journal.damage

    def segments(self):
        """The files of the journal, oldest first."""
        return sorted(self.path.glob("journal-*"))

    def copied(self, root):
        """A disk at `root` with the same index."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root, root)
        return IndexDisk(root)


def append(journal, root_fd, batch):
    """Append a batch of records, durably; where it ends."""
    position = journal.append(batch, root_fd)
    journal.sync(root_fd)
    journal.synced(position)
    return position
