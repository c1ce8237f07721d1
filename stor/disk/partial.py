"""What a disk keeps of an upload that is not complete, to be resumed: `.stor/partial/<SHA>`.

An attribute of the file says how much of it was on stable storage on every disk of its set, and in
which boot of the machine that was. What was written later is relied on in the same boot, where the
kernel has it whatever became of Stor; after another it may be lost, or zeros.
"""

from contextlib import suppress
from pathlib import Path

import attrs

from stor.block_sums import BlockSummer
from stor.digest import Digest, MalformedDigest
from stor.disk.disk import PARTIAL_DIRECTORY, Disk, DiskAway
from stor.disk.staged import NO_ALLOCATION, StagedCopy
from stor.disk.syscalls import is_regular

ATTRIBUTE = "user.stor.partial"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: What st_blocks counts (stat(3type)).
_BLOCK_BYTES = 512

#: Where nobody tells the boots of a machine apart.
_UNKNOWN = "-"


def boot_id() -> str:
    """What tells this boot of the machine from all others (random(4))."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return _UNKNOWN


@attrs.frozen
class Progress:
    """How far an upload is: bytes on stable storage on every disk, and in all, where known."""

    synced_bytes: int
    length: int | None
    boot: str

    @classmethod
    def parse(cls, data: bytes) -> "Progress":
        """Decode what `encode` made. Raises `ValueError`."""
        synced, length, boot = data.decode("ascii").split()
        return cls(int(synced), None if length == _UNKNOWN else int(length), boot)

    def encode(self) -> bytes:
        """As noted with the file."""
        length = _UNKNOWN if self.length is None else self.length
        return f"{self.synced_bytes} {length} {self.boot}".encode("ascii")

    def reliable_bytes(self, size: int, boot: str) -> int:
        """How much of a file of this size is relied on in this boot."""
        same = self.boot == boot != _UNKNOWN
        return size if same else min(size, self.synced_bytes)


@attrs.frozen
class PartialFile:
    """What a disk has of an upload; of `size` bytes only what is relied on."""

    size: int
    progress: Progress
    modified_ns: int


def path_of(digest: Digest) -> str:
    """Where a disk keeps what it has of a sample, below the root."""
    return f"{PARTIAL_DIRECTORY}/{str(digest).upper()}"


def look(disk: Disk, digest: Digest, boot: str) -> PartialFile | None:
    """What the disk has of an upload, if it can be resumed. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        try:
            fd = disk.files.open_to_read(path_of(digest), root_fd)
        except FileNotFoundError:
            return None
        try:
            return _judge(disk, fd, boot)
        finally:
            disk.files.close(fd)


def _judge(disk: Disk, fd: int, boot: str) -> PartialFile | None:
    status = disk.files.fstat(fd)
    # With a second name it is a sample: a crash came before this one was taken away.
    if not is_regular(status) or status.st_nlink != 1:
        return None
    try:
        progress = Progress.parse(disk.files.get_attribute(fd, ATTRIBUTE))
    except (OSError, ValueError):  # without it nothing there can be relied on
        return None
    size = progress.reliable_bytes(status.st_size, boot)
    return PartialFile(size, progress, status.st_mtime_ns)


def hold(disk: Disk, digest: Digest, progress: Progress) -> None:
    """Keep as much as has been synced and no more, durably: a client may be told so.

    Raises `DiskAway`, `OSError`; `FileNotFoundError` when nothing is kept.
    """
    with disk.entered() as root_fd:
        fd = disk.files.open_to_update(path_of(digest), root_fd)
        try:
            _cut(disk, fd, progress.synced_bytes, progress.length)
            disk.files.sync(fd)
            disk.files.set_attribute(fd, ATTRIBUTE, progress.encode())
            disk.files.sync(fd)
        finally:
            disk.files.close(fd)
        disk.sync_directory(PARTIAL_DIRECTORY, root_fd)


def open_partial(disk: Disk, digest: Digest) -> int:
    """What the disk has of an upload, open to be read. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        return disk.files.open_to_read(path_of(digest), root_fd)


def remove(disk: Disk, digest: Digest) -> bool:
    """Keep nothing of an upload; whether there was anything. Raises `DiskAway`, `OSError`."""
    with disk.entered() as root_fd:
        try:
            disk.files.unlink(path_of(digest), root_fd)
        except FileNotFoundError:
            return False
        return True


@attrs.frozen
class KeptFile:
    """A file that a disk keeps of an upload, whatever can be relied on: what it takes there."""

    digest: Digest
    modified_ns: int
    held_bytes: int


def kept_files(disk: Disk) -> list[KeptFile]:
    """All that the disk keeps of uploads. Raises `DiskAway`, `OSError`."""
    kept = []
    with disk.entered() as root_fd:
        try:
            fd = disk.files.open_directory(PARTIAL_DIRECTORY, root_fd)
        except FileNotFoundError:
            return []
        try:
            for name in disk.files.list(fd):
                with suppress(MalformedDigest, FileNotFoundError):  # none of ours, or gone by now
                    digest = Digest.parse(name)
                    status = disk.files.stat(name, fd)
                    held = status.st_blocks * _BLOCK_BYTES
                    kept.append(KeptFile(digest, status.st_mtime_ns, held))
        finally:
            disk.files.close(fd)
    return kept


@attrs.define
class PartialCopy(StagedCopy):
    """A staged copy that stays, under a name of its own, when its upload is cut off.

    As `StagedCopy`, and besides: `note` says, after a `sync` on every disk, how much there is;
    `park` keeps all of it. What is reserved for the whole stays reserved, also after a crash.
    """

    @classmethod
    def create(
        cls,
        disk: Disk,
        root_fd: int,
        digest: Digest,
        progress: Progress,
        summer: BlockSummer,
    ) -> "PartialCopy":
        """A new one, in the place of an older one. Raises `OSError`; then nothing stays."""
        path, files = path_of(digest), disk.files
        with suppress(FileNotFoundError):
            files.unlink(path, root_fd)
        fd = disk.in_own_directory(root_fd, lambda: files.create(path, root_fd))
        staged = cls(disk, fd, path, summer)
        try:
            _reserve(disk, fd, progress.length)
            staged.note(progress)
        except BaseException:
            staged.discard()
            raise
        return staged

    @classmethod
    def resume(
        cls,
        disk: Disk,
        root_fd: int,
        digest: Digest,
        progress: Progress,
        summer: BlockSummer,
    ) -> "PartialCopy":
        """What there is of an upload, up to what was synced. Raises `OSError`; then it stays."""
        path, files = path_of(digest), disk.files
        fd = files.open_to_update(path, root_fd)
        staged = cls(disk, fd, path, summer)
        staged._written_bytes = staged._sent_bytes = progress.synced_bytes
        try:
            _cut(disk, fd, progress.synced_bytes, progress.length)
        except BaseException:
            staged.park()
            raise
        return staged

    def note(self, progress: Progress) -> None:
        """Say how much is on stable storage on every disk. Raises `OSError`.

        A file system that keeps no attributes keeps no upload over a restart.
        """
        with suppress(OSError):
            self.disk.files.set_attribute(self._fd, ATTRIBUTE, progress.encode())

    def sync_name(self) -> None:
        """Bring the name of what is kept to stable storage. Raises `DiskAway`, `OSError`."""
        with self.disk.entered() as root_fd:
            self.disk.sync_directory(PARTIAL_DIRECTORY, root_fd)

    def name(self, digest: Digest, root_fd: int, bad: str | None = None) -> bool:
        """See `StagedCopy.name`. Its old name stays until `published`."""
        before, self._temporary = self._temporary, None
        try:
            return StagedCopy.name(self, digest, root_fd, bad)
        finally:
            self._temporary = before

    def published(self, digest: Digest) -> None:
        """See `StagedCopy.published`. Nothing says any more that the copy was a part."""
        with suppress(OSError):
            self.disk.files.remove_attribute(self._fd, ATTRIBUTE)
        with suppress(OSError, DiskAway), self.disk.entered() as root_fd:
            self.disk.files.unlink(path_of(digest), root_fd)
        self._temporary = None
        StagedCopy.published(self, digest)

    def park(self) -> None:
        """Keep what there is; take back the sample's name, and give the descriptor back.

        Never raises.
        """
        self._temporary = None
        self.discard()


def _cut(disk: Disk, fd: int, size: int, length: int | None) -> None:
    if disk.files.fstat(fd).st_size > size:
        disk.files.truncate(fd, size)
        _reserve(disk, fd, length)


def _reserve(disk: Disk, fd: int, length: int | None) -> None:
    """Have room for the whole. Raises `OSError`: there is none."""
    if length:
        try:
            disk.files.reserve(fd, length)
        except OSError as error:
            if error.errno not in NO_ALLOCATION:
                raise
