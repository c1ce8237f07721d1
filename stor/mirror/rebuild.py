"""Making a disk that replaces another one whole again."""

from contextlib import suppress

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from stor.digest import Digest, MalformedDigest
from stor.disk.disk import Disk
from stor.disk.identity import BadMarker, read_marker, write_marker
from stor.mirror.member import Member
from stor.mirror.mirror import Mirror
from stor.mirror.repair import Repairs, Unmendable


class Rebuilds:
    """Copies every sample of a mirror to its disks that are being rebuilt; one at a time each.

    A rebuild that is interrupted begins anew, and passes over what it has copied.
    """

    log = Logger()

    def __init__(self, repairs: Repairs) -> None:
        self._repairs = repairs
        #: How much of the mirror each disk has been compared with, from 0 to 1.
        self.progress: dict[Member, float] = {}

    def resume(self, mirror: Mirror) -> None:
        """Begin what is to be done; called every now and then."""
        for member in mirror.members:
            if member.health.rebuilding and member.writable and member not in self.progress:
                self.progress[member] = 0.0
                Deferred.fromCoroutine(self._attempt(member, mirror))

    async def _attempt(self, member: Member, mirror: Mirror) -> None:
        try:
            await self._rebuild(member, mirror)
        except Exception as error:
            self.log.warn(
                "Rebuilding {root} goes on later: {error}", root=member.root, error=str(error)
            )
        finally:
            del self.progress[member]

    async def _rebuild(self, member: Member, mirror: Mirror) -> None:
        self.log.info("Rebuilding {root}", root=member.root)
        givers = [m for m in mirror.members if m is not member and m.trusted]
        if not givers:
            return
        copied = 0
        directories = [f"{n >> 8:02X}/{n & 0xFF:02X}" for n in range(65536)]
        present = await givers[0].read(_outer_directories, givers[0].disk)
        for number, directory in enumerate(directories):
            self.progress[member] = number / len(directories)
            if directory[:2] not in present:
                continue
            for giver in givers:
                for digest in await giver.read(_samples_below, giver.disk, directory):
                    if await member.read(member.disk.look, digest) is None:
                        with suppress(Unmendable):  # said by the repair itself
                            await self._repairs.mend(digest, mirror)
                            copied += 1
        await member.write(_mark_whole, member.disk)
        member.health.rebuilding = False
        self.log.info("Rebuilt {root}: {n} samples copied", root=member.root, n=copied)


def _outer_directories(disk: Disk) -> set[str]:
    """The names in the root of a disk."""
    with disk.entered() as root_fd:
        return set(disk.files.list(root_fd))


def _samples_below(disk: Disk, directory: str) -> list[Digest]:
    """The samples in the directories below `directory`, such as `AA/BB`."""
    found = []
    with disk.entered() as root_fd:
        for inner in _names(disk, directory, root_fd):
            for name in _names(disk, f"{directory}/{inner}", root_fd):
                with suppress(MalformedDigest):  # a file that is not Stor's
                    digest = Digest.parse(name.removesuffix(".dat"))
                    if digest.disk_path == f"{directory}/{inner}/{name}":
                        found.append(digest)
    return found


def _names(disk: Disk, path: str, root_fd: int) -> list[str]:
    try:
        fd = disk.files.open_directory(path, root_fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return disk.files.list(fd)
    finally:
        disk.files.close(fd)


def _mark_whole(disk: Disk) -> None:
    """Note on the disk that it lacks nothing any more."""
    with disk.entered() as root_fd:
        marker = read_marker(disk, root_fd)
    if marker is None:
        raise BadMarker(f"{disk.root}: the marker vanished while the disk was rebuilt")
    write_marker(disk, attrs.evolve(marker, rebuilding=False))
